"""Which implementation serves an object tier's URL: ours for S3, fsspec for everything else. Opened here, imported when needed."""

from __future__ import annotations

from ckptstore.config import TierSettings
from ckptstore.errors import ConfigInvalid
from ckptstore_tiers.interface import Tier


def open_object_tier(settings: TierSettings) -> Tier:
    """The open tier of `settings.url`; ConfigInvalid for a URL or an option that nobody understands. A store that is down opens."""
    scheme, separator, _ = (settings.url or "").partition("://")
    if not separator:
        raise ConfigInvalid(
            f"{settings.url!r} is no URL; write s3://bucket/prefix or any fsspec URL",
            operation="open",
            subject=settings.name,
        )
    # botocore and fsspec cost a quarter of a second each to import; a daemon without such a tier never pays it.
    if scheme in ("s3", "s3a"):
        from ckptstore_tiers.s3_tier import S3Tier

        return S3Tier(settings)
    from ckptstore_tiers.fsspec_tier import FsspecTier

    return FsspecTier(settings)
