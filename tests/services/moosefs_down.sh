#!/bin/bash
# moosefs_down.sh DIR: unmount what moosefs_up.sh DIR mounted, stop what it started (known by process id, and by a command
# line that names DIR), delete DIR. May be called again.
set -euo pipefail
[ -d "${1:?directory}" ] || exit 0
D=$(cd "$1" && pwd -P)

gone() { [ ! -d "/proc/$1" ] || grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null; }
stop() { # NAME: at once, since all that these processes could save is about to be deleted
  local file=$D/run/$1.pid pid
  [ -f "$file" ] || return 0
  pid=$(cat "$file")
  if ! gone "$pid" && tr '\0' ' ' <"/proc/$pid/cmdline" | grep -qF -- "$D/"; then
    kill -KILL "$pid" 2>/dev/null || true
    for ((n = 0; n < 200; n++)); do gone "$pid" && break; sleep 0.05; done
  fi
  rm -f "$file"
}

# Mounts first, while their servers still answer; lazily if something keeps one busy.
for i in 1 2; do
  if mountpoint -q "$D/mnt$i"; then timeout 20 umount "$D/mnt$i" 2>/dev/null || umount -l "$D/mnt$i"; fi
done
for name in mnt1 mnt2 server1 server2 master netns; do stop "$name"; done
if mountpoint -q "$D/mnt1" || mountpoint -q "$D/mnt2"; then
  echo "moosefs_down: still mounted below $D, not deleted" >&2
  exit 1
fi
rm -rf "${D:?}"
