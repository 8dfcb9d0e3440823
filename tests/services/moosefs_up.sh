#!/bin/bash
# moosefs_up.sh DIR
#
# Start a real distributed file system below DIR and mount it twice, at DIR/mnt1 and DIR/mnt2: two clients that know
# nothing of each other, as two nodes do. Prints the two mount points once a file written through one was read through the
# other. Needs root, /dev/fuse and the Debian packages moosefs-master, moosefs-chunkserver and moosefs-client.
#
# MooseFS refuses loopback addresses, so it lives in a network namespace of its own, which has nothing but a loopback
# interface with the address 10.77.0.1: nothing outside reaches it, and ports cannot collide.
# `moosefs_down.sh DIR` stops exactly what this started.
set -euo pipefail
D=$(mkdir -p "${1:?directory}" && cd "$1" && pwd -P)
HOST=10.77.0.1 SERVERS=2
mkdir -p "$D"/{run,log,etc,master,mnt1,mnt2}

start() { # NAME COMMAND…: in the background, its own session, its process id in run/NAME.pid
  local name=$1; shift
  setsid "$@" </dev/null >>"$D/log/$name.log" 2>&1 &
  echo $! >"$D/run/$name.pid"
}
until_ok() { # COMMAND…: within 30 s, or show the logs and give up
  for ((n = 0; n < 600; n++)); do "$@" 2>/dev/null && return 0; sleep 0.05; done
  echo "moosefs_up: timed out waiting for: $*" >&2; tail -n 5 "$D"/log/*.log >&2; return 1
}

# 1. The namespace: a sleeper holds it. DIR stands in its name, so that moosefs_down.sh can be sure whom it stops.
start netns unshare --net bash -c "ip link set lo up && ip addr add $HOST/32 dev lo && exec -a 'netns of $D/' sleep infinity"
holder=$(cat "$D/run/netns.pid")
holder_ready() { grep -q sleep "/proc/$holder/comm"; }
until_ok holder_ready
inside() { nsenter "--net=/proc/$holder/ns/net" "$@"; }
port_open() { inside bash -c "exec 3<>/dev/tcp/$HOST/$1"; }

# 2. The master, which holds the names.
cp /var/lib/mfs/metadata.mfs.empty "$D/master/metadata.mfs"
echo "$HOST / rw,alldirs,admin,maproot=0:0,mingoal=1,maxgoal=9,mintrashtime=0,maxtrashtime=365d" >"$D/etc/exports.cfg"
: >"$D/etc/topology.cfg"
cat >"$D/etc/master.cfg" <<CFG
WORKING_USER = root
WORKING_GROUP = root
NICE_LEVEL = 0
DISABLE_OOM_KILLER = 0
DATA_PATH = $D/master
EXPORTS_FILENAME = $D/etc/exports.cfg
TOPOLOGY_FILENAME = $D/etc/topology.cfg
MATOML_LISTEN_HOST = $HOST
MATOCS_LISTEN_HOST = $HOST
MATOCL_LISTEN_HOST = $HOST
REPLICATIONS_DELAY_INIT = 5
CHUNKS_LOOP_MIN_TIME = 60
CFG
start master nsenter "--net=/proc/$holder/ns/net" mfsmaster -f -a -c "$D/etc/master.cfg" start
until_ok port_open 9420

# 3. The chunk servers, which hold the data.
for ((i = 1; i <= SERVERS; i++)); do
  mkdir -p "$D/server$i"/{state,data}
  echo "~$D/server$i/data 64GiB" >"$D/etc/disks$i.cfg"
  cat >"$D/etc/server$i.cfg" <<CFG
WORKING_USER = root
WORKING_GROUP = root
NICE_LEVEL = 0
DISABLE_OOM_KILLER = 0
DATA_PATH = $D/server$i/state
HDD_CONF_FILENAME = $D/etc/disks$i.cfg
HDD_LEAVE_SPACE_DEFAULT = 64MiB
HDD_TEST_SPEED = 0
BIND_HOST = $HOST
MASTER_HOST = $HOST
MASTER_RECONNECTION_DELAY = 1
CSSERV_LISTEN_HOST = $HOST
CSSERV_LISTEN_PORT = $((9500 + i))
WORKERS_MAX = 16
WORKERS_MAX_IDLE = 4
CFG
  start "server$i" nsenter "--net=/proc/$holder/ns/net" mfschunkserver -f -c "$D/etc/server$i.cfg" start
done
until_ok port_open 9421

# 4. Two mounts.
for i in 1 2; do
  start "mnt$i" nsenter "--net=/proc/$holder/ns/net" mfsmount "$D/mnt$i" -f \
    -o "mfsmaster=$HOST,mfsbind=$HOST,mfsnice=0,mfsallowoomkiller,mfscfgfile=/dev/null"
  until_ok mountpoint -q "$D/mnt$i"
done
inside mfssetgoal 1 "$D/mnt1" >/dev/null    # one copy of each chunk
inside mfssettrashtime 0 "$D/mnt1" >/dev/null
round_trip() { echo "$$" >"$D/mnt2/.up" && [ "$(cat "$D/mnt1/.up")" = "$$" ] && rm "$D/mnt2/.up"; }
until_ok round_trip
echo "$D/mnt1"
echo "$D/mnt2"
