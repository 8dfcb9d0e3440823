"""What `status` answers at a glance: what is safe where, what is slow, what is full, what went wrong last."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.engine import make_url

from ckptstore import __version__
from ckptstore.catalog.model import AttemptState, Backlog
from ckptstore.wire import API_VERSION, AttemptLine, ErrorLine, Hello, MemoryStatus, QuietStatus, Status, TierStatus
from ckptstore_server.node import Node
from ckptstore_server.priority import nice_counts
from ckptstore_server.tier_handle import TierHandle

if TYPE_CHECKING:
    from ckptstore_server.services import Services

#: Attempts that `status` lists; more are counted.
LISTED_ATTEMPTS = 50


def hello(node: Node) -> Hello:
    return Hello(
        api=API_VERSION,
        version=__version__,
        store=node.catalog.store_id,
        node=node.node_id,
        pid=os.getpid(),
        tiers=[handle.name for handle in node.handles],
        durable_tiers=[handle.name for handle in node.durable],
    )


async def collect(services: Services) -> Status:
    node = services.node
    waiting = {backlog.tier: backlog for backlog in await node.query(node.catalog.backlog)}
    attempts = await node.query(node.catalog.attempts, [AttemptState.OPEN, AttemptState.COMPLETE])
    counts = await node.query(node.catalog.count)
    tiers = await node.run(node.read_executor, lambda: [_tier(handle, waiting.get(handle.name)) for handle in node.handles])
    return Status(
        hello=await node.query(hello, node),
        uptime_s=time.time() - node.started_s,
        home=str(node.settings.home),
        catalog=make_url(node.settings.effective_catalog_url).render_as_string(hide_password=True),
        counts=counts | {"open_attempts": len(attempts)},
        sessions=len(services.sessions),
        memory=MemoryStatus(**memory_numbers(node), dies_with_job=services.sessions.dies_with_job()),
        quiet=QuietStatus(cpus=node.gauge.cpus, allowed_cpus=node.quiet.allowed_cpus, nice_counts=await asyncio.to_thread(nice_counts)),
        cache=await node.run(node.read_executor, services.cache_control.status),
        tiers=tiers,
        attempts=[
            AttemptLine(
                path=view.path,
                state=view.state.value,
                joined=view.joined,
                snapshots=view.snapshots,
                stored=view.stored,
                world_size=view.world_size,
                age_s=max(0.0, time.time() - view.opened_at_s),
            )
            for view in attempts[:LISTED_ATTEMPTS]
        ],
        errors=[ErrorLine(at_s=remark.at_s, where=remark.where, what=remark.what) for remark in node.remarks],
        resident_bytes=resident_bytes(),
        stopping=not services.attempts.accepting,
    )


def memory_numbers(node: Node) -> dict[str, int]:
    usage = node.pool.usage()
    names = ("limit_bytes", "segments", "lent_bytes", "held_bytes", "replica_bytes", "free_bytes")
    return {name: int(usage[name]) for name in names}


def resident_bytes() -> int:
    """This process's resident memory without shared pages, which are the segments."""
    fields = Path("/proc/self/statm").read_text("ascii").split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def _tier(handle: TierHandle, waiting: Backlog | None) -> TierStatus:
    tier = handle.opened
    usage = handle.usage()
    place = str(handle.settings.path or handle.settings.url)
    return TierStatus(
        name=handle.name,
        kind=handle.settings.kind,
        location=tier.facts.location if tier is not None else place,
        shared=handle.settings.is_shared,
        durable=handle.settings.durable,
        state=handle.state,
        used_bytes=usage.used_bytes,
        limit_bytes=usage.limit_bytes,
        free_bytes=usage.free_bytes,
        rate_bytes_s=handle.written.rate_bytes_s(),
        bandwidth_limit=handle.settings.bandwidth_limit,
        drain_within_s=handle.settings.drain_within,
        alarm=handle.alarm,
        waiting_objects=waiting.objects if waiting else 0,
        waiting_bytes=waiting.size_bytes if waiting else 0,
        oldest_waiting_s=waiting.oldest_age_s if waiting else 0.0,
        last_error=(waiting.last_error if waiting else None) or handle.last_error,
        details=dict(tier.facts.details) if tier is not None else {},
    )
