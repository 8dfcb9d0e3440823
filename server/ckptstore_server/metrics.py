"""The same figures as `status`, for Prometheus. A registry per scrape: nothing here is global, nothing grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from ckptstore_server.status import collect
from ckptstore_tiers.transfer_figures import ReportsTransfers

if TYPE_CHECKING:
    from ckptstore_server.services import Services

#: name → (attribute of TierStatus, help)
_TIER_GAUGES = {
    "ckptstore_tier_used_bytes": ("used_bytes", "Bytes that the tier holds"),
    "ckptstore_tier_waiting_bytes": ("waiting_bytes", "Bytes that wait to be drained into the tier"),
    "ckptstore_tier_waiting_objects": ("waiting_objects", "Objects that wait to be drained into the tier"),
    "ckptstore_tier_oldest_waiting_seconds": ("oldest_waiting_s", "Age of the oldest object that waits"),
    "ckptstore_tier_write_rate_bytes_per_second": ("rate_bytes_s", "Bytes written per second, over the last minute"),
}


#: name → (attribute of TransferFigures, help)
_TRANSFER_GAUGES = {
    "ckptstore_tier_parallel": ("parallel", "Parts and ranges that may be on their way at once, by what the endpoint gives"),
    "ckptstore_tier_in_flight": ("in_flight", "Parts and ranges that are on their way"),
    "ckptstore_tier_part_bytes": ("part_bytes", "Bytes of a part or range of a large object"),
    "ckptstore_tier_refusals": ("refusals", "Requests that the server had no room for since the tier was opened: 503, SlowDown, silence"),
    "ckptstore_tier_moved_bytes": ("moved_bytes", "Bytes sent and received since the tier was opened"),
}


#: name → (attribute of CacheStatus, help)
_CACHE_GAUGES = {
    "ckptstore_cache_held_bytes": ("held_bytes", "Bytes of copies that are kept"),
    "ckptstore_cache_limit_bytes": ("limit_bytes", "Bytes of copies that may be kept, as the disk is now"),
    "ckptstore_cache_pinned_bytes": ("pinned_bytes", "Bytes of copies that stay"),
    "ckptstore_cache_files": ("files", "Files of which something is kept"),
    "ckptstore_cache_hits": ("hits", "Opens that found all of a file here"),
    "ckptstore_cache_misses": ("misses", "Opens that did not"),
    "ckptstore_cache_fetched_bytes": ("fetched_bytes", "Bytes that were fetched from origins"),
    "ckptstore_cache_saved_bytes": ("saved_bytes", "Bytes that were asked for and not fetched"),
}


async def render(services: Services) -> str:
    status = await collect(services)
    registry = CollectorRegistry()
    for name, (attribute, text) in _TIER_GAUGES.items():
        gauge = Gauge(name, text, ["tier"], registry=registry)
        for tier in status.tiers:
            gauge.labels(tier.name).set(getattr(tier, attribute))
    opened = {handle.name: handle.opened for handle in services.node.handles}
    transfers = {name: tier.transfers for name, tier in opened.items() if isinstance(tier, ReportsTransfers)}
    for name, (attribute, text) in _TRANSFER_GAUGES.items():
        gauge = Gauge(name, text, ["tier"], registry=registry)
        for tier_name, figures in transfers.items():
            if figures is not None:
                gauge.labels(tier_name).set(getattr(figures, attribute))
    up = Gauge("ckptstore_tier_up", "1 while the tier takes writes", ["tier"], registry=registry)
    for tier in status.tiers:
        up.labels(tier.name).set(tier.state == "ok")
    said = "2 while a checkpoint is later than drain_within, 1 while one will be"
    alarm = Gauge("ckptstore_tier_drain_alarm", said, ["tier"], registry=registry)
    late = Gauge("ckptstore_tier_drain_late_seconds", "By how much drain_within is exceeded", ["tier"], registry=registry)
    for tier in status.tiers:
        alarm.labels(tier.name).set(0 if tier.alarm is None else 2 if tier.alarm.kind == "late" else 1)
        late.labels(tier.name).set(tier.alarm.late_s if tier.alarm is not None else 0)
    memory = Gauge("ckptstore_memory_bytes", "Bytes of segments by state", ["state"], registry=registry)
    for state in ("limit", "lent", "held", "replica", "free"):
        memory.labels(state).set(getattr(status.memory, f"{state}_bytes"))
    if status.quiet is not None:
        Gauge("ckptstore_drain_allowed_cpus", "CPUs that drains may use now", registry=registry).set(status.quiet.allowed_cpus)
    Gauge("ckptstore_sessions", "Connected clients", registry=registry).set(status.sessions)
    Gauge("ckptstore_resident_bytes", "The daemon's own memory", registry=registry).set(status.resident_bytes)
    if status.cache is not None:
        for name, (attribute, text) in _CACHE_GAUGES.items():
            Gauge(name, text, registry=registry).set(getattr(status.cache, attribute))
        Gauge("ckptstore_cache_up", "1 while copies are kept", registry=registry).set(status.cache.state in ("ok", "full"))
    counts = Gauge("ckptstore_catalog_rows", "What the catalog holds", ["kind"], registry=registry)
    for kind, count in status.counts.items():
        counts.labels(kind).set(count)
    return generate_latest(registry).decode("utf-8")
