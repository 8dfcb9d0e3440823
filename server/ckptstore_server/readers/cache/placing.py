"""Where does this node's cache lie, and what does it know of the store? The one place where the cache meets the daemon."""

from __future__ import annotations

from ckptstore_server.node import Node
from ckptstore_server.readers.cache.cache import Cache
from ckptstore_server.readers.cache.needs import OpensFiles
from ckptstore_server.readers.cache.own_replica import OwnReplicas
from ckptstore_server.readers.cache.room import Room
from ckptstore_server.replicas import Replicas, digests_of
from ckptstore_server.tier_handle import TierHandle
from ckptstore_tiers.keys import COPIES


def cache_of(node: Node, replicas: Replicas, tree: OpensFiles) -> Cache:
    """The daemon's cache, not started."""
    settings = node.settings.cache
    return Cache(
        tree,
        _room(node),
        digests_of=lambda object_id: digests_of(node.catalog.object(object_id)),
        own_replica=OwnReplicas(node, replicas),
        remark=node.remark,
        scratch=node.scratch,
        fetch_threads=settings.fetch_threads,
        window_bytes=settings.window,
        quotas=settings.quotas,
    )


def _room(node: Node) -> Room | None:
    """A folder of the operator's choice, or one in the root of the first tier that is the node's own; None: nothing is kept."""
    settings = node.settings.cache
    if not settings.enabled:
        return None
    if settings.folder is not None:
        return Room(settings.folder, settings.size)
    return next((_room_in(handle, settings.size) for handle in node.node_local if handle.settings.path is not None), None)


def _room_in(handle: TierHandle, size_bytes: int | None) -> Room:
    assert handle.settings.path is not None
    return Room(
        handle.settings.path / COPIES,
        size_bytes,
        capacity_bytes=handle.settings.capacity,
        tier_usage=handle.usage,
        mark=handle.settings.high_water,
        is_ready=lambda: handle.opened is not None,
    )
