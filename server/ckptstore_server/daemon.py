"""`ckptstore serve`: one process per node, from its lock to its last flush.

Start, in order: the home and its lock (a second daemon is refused by name), the catalog, the tiers (a root of another store is refused,
a tier that does not answer is not), attempts that died with the last daemon are aborted and interrupted publishes finished, then the
sockets. Stop, for SIGTERM when the jobs here have taken their last snapshots: no new saves, what was handed over is stored, drains stay in
the catalog for the next daemon.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import IO, Any

from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

from ckptstore import sockets
from ckptstore.catalog import Catalog
from ckptstore.catalog.model import TierRow
from ckptstore.config import Settings
from ckptstore.errors import AlreadyRunning, ConfigInvalid, TierUnavailable
from ckptstore.paths import is_id, new_id
from ckptstore_server.api.app import create_app
from ckptstore_server.fd_server import DescriptorServer
from ckptstore_server.generations import catch_up
from ckptstore_server.lane import Lane
from ckptstore_server.lending import Lending
from ckptstore_server.node import Node
from ckptstore_server.pressure import Gauge
from ckptstore_server.quiet import QuietBudget
from ckptstore_server.readers.cache.lending import CopyLending
from ckptstore_server.replicas import mark_lost
from ckptstore_server.services import Services
from ckptstore_server.step_times import StepTimes
from ckptstore_server.tier_handle import TierHandle
from ckptstore_server.upkeep import Upkeep
from ckptstore_tiers.memory import SegmentPool

#: How long a graceful stop waits for what was handed over, in seconds.
STOP_TIMEOUT_S = 120.0


def lock_home(home: Path) -> IO[str]:
    """Create the home (mode 0700) and take its lock; AlreadyRunning, with the pid, if another daemon has it."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(home / "daemon.lock", "a+", encoding="ascii")  # noqa: SIM115 - held for the life of the process
    except OSError as error:
        raise ConfigInvalid(f"the home cannot be used: {error.strerror}", operation="serve", subject=str(home)) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        why = f"another daemon (pid {holder}) serves this home"
        raise AlreadyRunning(why, operation="serve", subject=str(home), hint="use it, stop it, or choose another home") from error
    lock.seek(0)
    lock.truncate()
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def node_identity(home: Path) -> str:
    """This node's id: made once, kept in the home."""
    place = home / "node"
    if place.exists():
        node_id = place.read_text("ascii").strip()
        if not is_id(node_id):
            raise ConfigInvalid("the file does not hold a node's id", operation="serve", subject=str(place))
        return node_id
    node_id = new_id()
    fresh = place.with_suffix(".new")
    with open(fresh, "w", encoding="ascii") as file:
        file.write(f"{node_id}\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(place)
    return node_id


def open_node(settings: Settings) -> Node:
    """Catalog, tiers and memory of a home, without serving anything. WrongStore if a tier's root belongs elsewhere."""
    node_id = node_identity(settings.home)
    catalog = Catalog.open(settings.effective_catalog_url, node=node_id, node_name=socket.gethostname())
    try:
        catalog.register_tiers([TierRow(t.name, position, t.is_shared, t.durable) for position, t in enumerate(settings.effective_tiers)])
        gauge, steps = Gauge(), StepTimes()
        quiet = QuietBudget(gauge, settings.quiet.busy_share)
        handles = tuple(
            TierHandle(
                tier,
                home=settings.home,
                store_id=catalog.store_id,
                unfinished_names=catalog.unfinished_names,
                mark_lost=partial(mark_lost, catalog),
                lane=Lane(quiet, limit_bytes_s=tier.bandwidth_limit, nice=settings.quiet.nice, on_use=steps.note_use),
            )
            for tier in settings.effective_tiers
        )
        pool = SegmentPool(settings.memory.limit, settings.memory.slots, settings.memory.huge_pages)
    except BaseException:
        catalog.close()
        raise
    return Node(
        settings=settings, catalog=catalog, node_id=node_id, handles=handles, pool=pool, gauge=gauge, quiet=quiet, steps=steps
    )  # fmt: skip


class Daemon:
    """Owns everything that runs. `run` returns when the daemon was told to stop and has done so."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None

    async def run(self) -> None:
        lock = lock_home(self._settings.home)
        try:
            node = await asyncio.to_thread(open_node, self._settings)
            try:
                await self._serve(node)
            finally:
                await asyncio.to_thread(node.close)
        finally:
            lock.close()

    async def _serve(self, node: Node) -> None:
        await self._open_tiers(node)
        await node.run(node.upkeep_executor, catch_up, node)
        services = Services.build(node, self._stop.set)
        node.pool.process_of = services.sessions.pid_of
        lost = await node.query(node.catalog.abandon, node.node_id, "the daemon that held its snapshot was restarted")
        services.attempts.ended(lost)
        await services.keeper.set_configured()
        await services.publisher.resume()
        upkeep = Upkeep(services)
        await node.run(node.upkeep_executor, services.cache.start)
        upkeep.start()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._stop.set)
        loop.add_signal_handler(signal.SIGTERM, self._told_to_end, services)
        copies = CopyLending(services.tree, services.cache, loop)
        lending = Lending(node, services.sessions, services.attempts, services.replicas, copies, loop)
        descriptors = DescriptorServer(self._settings.fd_socket, lending)
        servers = [(server, asyncio.create_task(server.serve())) for server in self._http_servers(services)]
        try:
            await asyncio.to_thread(descriptors.start)
            await self._announce(servers)
            await self._until_stopped([task for _, task in servers])
            services.attempts.accepting = False
            services.changes.stop()
            services.snapshots.stop()
            await services.attempts.drain_ingests(STOP_TIMEOUT_S)
        finally:
            for server, _ in servers:
                server.stop()  # type: ignore[no-untyped-call]
            await asyncio.gather(*(task for _, task in servers), return_exceptions=True)
            await asyncio.to_thread(descriptors.close)
            await upkeep.stop()
            await services.warmer.stop()
            await asyncio.to_thread(services.cache.close)
            await asyncio.to_thread(services.attached.close)
            self._settings.api_socket.unlink(missing_ok=True)

    def _told_to_end(self, services: Services) -> None:
        """By a signal that the jobs of this node may have got as well: they take their last snapshot first. The second time, at once."""
        if self._ending is not None:
            self._stop.set()
        else:
            self._ending = asyncio.create_task(services.snapshots.jobs_over())
            self._ending.add_done_callback(lambda _: self._stop.set())

    async def _open_tiers(self, node: Node) -> None:
        """A wrong root stops the start; a tier that is down does not."""
        for handle in node.handles:
            try:
                await asyncio.to_thread(handle.open)
            except TierUnavailable as error:
                node.remark(f"open {handle.name}", error)

    def _http_servers(self, services: Services) -> list[Server]:
        sockets.claim(self._settings.api_socket)
        local = create_app(services, local=True)
        # HTTP/1 only: there every body has a length that is known before it comes, and can be refused.
        plain: dict[str, Any] = {"interface": Interfaces.ASGI, "http": HTTPModes.http1, "log_enabled": False, "websockets": False}
        servers = [Server(local, uds=self._settings.api_socket, **plain)]
        # Set before granian listens, and so before anybody can connect; its constructor does not take it.
        servers[0].uds_permissions = 0o600
        if self._settings.listen is not None:
            host, _, port = self._settings.listen.rpartition(":")
            remote = create_app(services, local=False)
            servers.append(Server(remote, address=host.strip("[]"), port=int(port), **plain))
        return servers

    async def _announce(self, servers: list[tuple[Server, asyncio.Task[None]]]) -> None:
        """Wait until the socket is there."""
        for _ in range(500):
            if self._settings.api_socket.exists():
                print(f"ckptstore: serving {self._settings.home} (pid {os.getpid()})", file=sys.stderr, flush=True)
                return
            for _, task in servers:
                if task.done():
                    task.result()
            await asyncio.sleep(0.01)
        raise ConfigInvalid("the API socket did not come up", operation="serve", subject=str(self._settings.api_socket))

    async def _until_stopped(self, servers: list[asyncio.Task[None]]) -> None:
        stop = asyncio.create_task(self._stop.wait())
        done, _ = await asyncio.wait({stop, *servers}, return_when=asyncio.FIRST_COMPLETED)
        if stop not in done:
            stop.cancel()
            for task in done:
                task.result()
            raise ConfigInvalid("a server ended by itself", operation="serve", hint="is the address free?")
