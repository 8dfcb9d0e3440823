"""Which tier does a `[[tiers]]` table mean? The one place that knows all kinds, and what wraps what.

The pace of a tier (`bandwidth_limit`) is no wrapper here: it holds for drains, so the drain wraps its sources
(`ckptstore_tiers.paced`).
"""

from __future__ import annotations

from pathlib import Path

from ckptstore.config import TierSettings
from ckptstore.errors import ConfigInvalid
from ckptstore_tiers.codecs import CodecTier
from ckptstore_tiers.interface import Tier
from ckptstore_tiers.posix import PosixTier

SPOOL = "spool"


def open_tier(settings: TierSettings, home: Path) -> CodecTier:
    """Open the tier that `settings` describe. Raises ConfigInvalid, TierUnavailable or TierFull, naming the tier.

    Without compression, too, it reads what an earlier setting has compressed. A codec's spool files lie in `<home>/spool`.
    """
    tier = _open_posix(settings) if settings.kind == "posix" else _open_object(settings)
    return CodecTier(tier, home / SPOOL, settings.compression)


def _open_posix(settings: TierSettings) -> Tier:
    if settings.path is None:
        raise ConfigInvalid("a posix tier needs a `path`", operation="open tier", tier=settings.name)
    return PosixTier(
        settings.name,
        settings.path,
        shared=settings.is_shared,
        durable=settings.durable,
        capacity_bytes=settings.capacity,
        direct_io=settings.direct_io,
        write_threads=settings.write_threads,
        write_size_bytes=settings.write_size,
    )


def _open_object(settings: TierSettings) -> Tier:
    # Imported when one is configured: it brings the S3 client libraries, which cost half a second.
    from ckptstore_tiers.object_tier import open_object_tier

    return open_object_tier(settings)
