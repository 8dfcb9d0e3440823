"""What an S3 tier may be told: the `url` and `options` of its settings, checked, with a reason for each default.

Credentials are no option on purpose: they come from the environment, a profile or the instance's role, where they can rotate, and a
configuration file that is shown or logged holds none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ckptstore.config import Size, TierSettings
from ckptstore.errors import ConfigInvalid
from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.s3_buffers import OBJECT_MEMORY_BYTES
from ckptstore_tiers.s3_window import WindowBounds

SCHEMES = ("s3", "s3a")


class S3Options(BaseModel):
    """`[tiers.options]` of a tier whose URL is `s3://bucket/prefix`."""

    # The values of refused options are not repeated: somebody may have written a secret there.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    endpoint_url: str | None = Field(None, description="unset: AWS_ENDPOINT_URL or the profile's, else Amazon's")
    region: str | None = Field(None, description="unset: the environment's or the profile's, else us-east-1")
    profile: str | None = Field(None, description="a profile of ~/.aws; unset: AWS_PROFILE, else the default one")
    addressing: Literal["path", "virtual"] | None = Field(
        None,
        description="unset: path, except at Amazon's own endpoints; other servers seldom have a DNS name per bucket",
    )
    connect_timeout_s: float = Field(5.0, gt=0, le=300, description="the longest that connecting may take")
    read_timeout_s: float = Field(
        7.0, gt=0, le=3600, description="the longest silence of the server, and that 256 KiB of an upload may take to be sent"
    )
    retry_for_s: float = Field(
        6.0,
        ge=0,
        le=3600,
        description="no try begins later than this after the first failure: 15 s in all for a server that is silent",
    )
    part_size: Size = Field(
        4 * BLOCK_BYTES,
        description="the smallest part or range: a multiple of 4 MiB, from 8 MiB to 1 GiB; 16 MiB hides a request's own cost",
    )
    part_size_most: Size = Field(
        16 * BLOCK_BYTES, description="the largest, for endpoints that move more than 16 MiB in half a second on each connection"
    )
    parallel: int = Field(
        16, ge=1, le=64, description="parts and ranges in flight at most, for the whole tier; the endpoint decides how many it gets"
    )
    parallel_start: int = Field(8, ge=1, le=64, description="in flight at first: eight saturated one server")
    parallel_least: int = Field(1, ge=1, le=64, description="in flight at least, when the server asks for less")

    @property
    def window(self) -> WindowBounds:
        """`parallel` and `part_size` win where the others contradict them: an operator who knows a limit sets only these."""
        return WindowBounds(
            least=min(self.parallel_least, self.parallel),
            start=min(max(self.parallel_start, self.parallel_least), self.parallel),
            most=self.parallel,
            part_least=self.part_size,
            part_most=max(self.part_size, self.part_size_most),
            memory_bytes=OBJECT_MEMORY_BYTES,
        )

    @field_validator("part_size", "part_size_most")
    @classmethod
    def _whole_blocks(cls, value: int) -> int:
        # S3 refuses parts below 5 MiB, and a block that two parts share would have to be read twice.
        if value % BLOCK_BYTES or not 2 * BLOCK_BYTES <= value <= 1 << 30:
            raise ValueError("a part is a multiple of 4 MiB, from 8 MiB to 1 GiB")
        return value

    @field_validator("endpoint_url")
    @classmethod
    def _plain_endpoint(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("an endpoint is http://host:port or https://host:port")
            if "@" in parts.netloc:
                raise ValueError("an endpoint holds no user name and password: use the environment or a profile")
        return value


class S3Place(BaseModel):
    """Where a tier lies: bucket, and the prefix of all its keys (empty, or ending in a slash)."""

    model_config = ConfigDict(frozen=True)

    bucket: str
    prefix: str


def read_s3_settings(settings: TierSettings) -> tuple[S3Place, S3Options]:
    """The checked place and options of an S3 tier; ConfigInvalid names the first option that is wrong."""
    return read_s3_place(
        settings.url or "", settings.options, operation="read configuration", subject=f"tiers.{settings.name}"
    )


def read_s3_place(
    url: str, options: Mapping[str, Any], *, operation: str, subject: str
) -> tuple[S3Place, S3Options]:
    """The checked place and options that a URL and its options mean; ConfigInvalid names what is wrong with `subject`."""
    parts = urlsplit(url, allow_fragments=False)
    if not parts.netloc or "@" in parts.netloc or parts.query:
        raise ConfigInvalid("the url of S3 is s3://bucket or s3://bucket/prefix", operation=operation, subject=subject)
    try:
        checked = S3Options(**options)
    except (ValidationError, TypeError) as error:
        why = (
            "; ".join(_fault(fault) for fault in error.errors(include_input=False))
            if isinstance(error, ValidationError)
            else str(error)
        )
        raise ConfigInvalid(why, operation=operation, subject=f"{subject}.options") from None
    prefix = parts.path.strip("/")
    return S3Place(bucket=parts.netloc, prefix=f"{prefix}/" if prefix else ""), checked


def _fault(fault: object) -> str:
    assert isinstance(fault, dict)
    return f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
