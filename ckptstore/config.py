"""What this daemon was told: one frozen settings object, read once, from the TOML file, then the environment, then flags.

An unknown key is an error. Every field has its unit in its name or its description, a range, and a default with a reason. With no
file at all: SQLite and an NVMe tier under `$CKPTSTORE_HOME` (default `~/.ckptstore`), and no network port.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from ckptstore.durations import parse_duration
from ckptstore.errors import ConfigInvalid, InvalidInput
from ckptstore.faults import first_faults
from ckptstore.keep_settings import KeepSettings
from ckptstore.paths import check_path
from ckptstore.sockets import socket_path

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGTP]?)(i?)B?(?:/s)?\s*$", re.IGNORECASE)


def parse_size(value: object) -> int:
    """`"8GiB"`, `"500MB/s"` or a number of bytes → bytes (per second)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"a size is a number of bytes or a text such as '8GiB', not {value!r}")
    if not isinstance(value, str):
        return int(value)
    match = _SIZE.match(value)
    if match is None:
        raise ValueError(f"{value!r} is no size; write a number of bytes, or for example '8GiB' or '500MB'")
    number, unit, binary = match.groups()
    factor = 1024 ** "KMGTP".index(unit.upper()) * 1024 if unit and binary else _UNITS[unit.upper()]
    return int(float(number) * factor)


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]

Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, le=365 * 86400)]


class TierSettings(BaseModel):
    """One `[[tiers]]` table. The order in the file is the order of the tiers, from fastest to most durable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$", description="what `wait(name)` and `status` call it")
    kind: Literal["posix", "object"] = Field(description="posix: a folder of any mounted file system; object: a store behind a URL")
    path: Path | None = Field(None, description="posix: the folder that holds the tier", examples=["/mnt/nvme/ckptstore"])
    url: str | None = Field(None, description="object: s3://bucket/prefix, or any fsspec URL", examples=["s3://models/ckptstore"])
    options: dict[str, Any] = Field(default_factory=dict, description="object: endpoint_url, profile, region, or fsspec's own options")
    capacity: Size | None = Field(None, description="how much may be used; unset: what the device has", examples=["800GiB"])
    shared: bool | None = Field(None, description="whether every node sees the same objects; default: object yes, posix no")
    durable: bool = Field(True, description="whether a replica here counts towards publishing")
    bandwidth_limit: Size | None = Field(None, description="what drains into it may use each second; unset: all", examples=["2GB/s"])
    drain_within: Duration | None = Field(
        None,
        description="how soon after its publishing the tier has a checkpoint; `status` says when not; unset: as it comes",
        examples=["5m"],
    )
    compression: Literal["none", "zstd", "float"] = Field(
        "none", description="zstd: the seekable format, `zstd -d` gives the file back; float: weights split into planes, smaller and faster"
    )
    high_water: float = Field(0.90, gt=0, le=1, description="fraction of the capacity above which evictable replicas go")
    low_water: float = Field(0.80, gt=0, le=1, description="fraction that eviction goes down to")
    direct_io: Literal["auto", "always", "never"] = Field("auto", description="posix: O_DIRECT, with a buffered fallback when auto")
    write_threads: int = Field(6, ge=1, le=64, description="posix: blocks that are written at once, in the whole tier")
    write_size: Size = Field(4 << 20, ge=64 << 10, le=4 << 20, description="posix: bytes of one write, a multiple of 64 KiB")

    @property
    def is_shared(self) -> bool:
        return self.shared if self.shared is not None else self.kind == "object"

    @model_validator(mode="after")
    def _place_fits_kind(self) -> TierSettings:
        if self.name in ("snapshot", "published", "memory"):
            raise ValueError(f"the tier name {self.name!r} is taken by the store itself")
        if self.kind == "posix" and (self.path is None or self.url is not None or not self.path.is_absolute()):
            raise ValueError(f"tier {self.name!r} is posix: it needs an absolute `path` and no `url`")
        if self.kind == "object" and (self.url is None or self.path is not None):
            raise ValueError(f"tier {self.name!r} is object: it needs a `url` and no `path`")
        if self.write_size % (64 << 10):
            raise ValueError(f"tier {self.name!r}: write_size must be a multiple of 64 KiB")
        if self.low_water >= self.high_water:
            raise ValueError(f"tier {self.name!r}: low_water must be below high_water")
        return self


class MemorySettings(BaseModel):
    """The `[memory]` table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: Size | None = Field(None, description="all segments together; unset: half of what is free at start", examples=["64GiB"])
    slots: int = Field(2, ge=1, le=64, description="segments per rank: with two, one save is drained while the next is staged")
    idle_release_s: float = Field(300.0, ge=0, description="segments that nobody uses are given back after this")
    huge_pages: bool = Field(True, description="make segments of huge pages: they are ready eight times sooner")

    @model_validator(mode="before")
    @classmethod
    def _is_never_compressed(cls, given: Any) -> Any:
        if isinstance(given, dict) and "compression" in given:
            raise ValueError("memory is never compressed: segments are read where they lie; set `compression` of a posix or object tier")
        return given


class QuietSettings(BaseModel):
    """The `[quiet]` table: how drains keep out of training's way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    busy_share: float = Field(0.02, gt=0, le=1, description="fraction of all CPU time for drains while training needs it; 1: no restraint")
    nice: int = Field(10, ge=0, le=19, description="how far threads that drain stand back for others; 0: not at all, also for the disk")


class CacheSettings(BaseModel):
    """The `[cache]` table: copies of what readers read, on this node's disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(True, description="whether anything is kept; without, every read goes to where the file lies")
    folder: Path | None = Field(
        None, description="where the copies lie; unset: `cache` in the node's first posix tier", examples=["/mnt/nvme2/ckptstore-cache"]
    )
    size: Size | None = Field(
        None, description="how much may be kept; unset: what the tier leaves below its high-water mark", examples=["500GiB"]
    )
    quotas: dict[str, Size] = Field(
        default_factory=dict, description="the most that may be kept of what lies below a path", examples=[{"/models/public": "100GiB"}]
    )
    fetch_threads: int = Field(8, ge=1, le=64, description="requests to each origin at once, each for up to four blocks of 4 MiB")
    window: Size = Field(128 << 20, ge=4 << 20, le=1 << 30, description="how far a reader is read ahead, at most")
    scrub_every: Duration = Field(7 * 86400.0, description="how often all that is kept is read and compared with its checksums")

    @model_validator(mode="after")
    def _paths_are_absolute(self) -> CacheSettings:
        for path in self.quotas:
            try:
                check_path(path)
            except InvalidInput as error:
                raise ValueError(f"quotas: {error.why}: {path!r}") from error
        if self.folder is not None and not self.folder.is_absolute():
            raise ValueError("folder must be an absolute path")
        return self


class HuggingFaceSettings(BaseModel):
    """The `[hugging_face]` table: models for clients of the Hugging Face Hub, under `/hf` of the network API."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: str = Field("/models", description="the folder whose `org/name` are the models")
    public: tuple[str, ...] = Field(
        default_factory=tuple, description="folders whose models need no token", examples=[["/models/public"]]
    )
    read_token: SecretStr | None = Field(
        None, description="opens this endpoint alone, for those who only read; so does the API's token", examples=["a long random text"]
    )
    upstream: str | None = Field(
        None, description="the endpoint that has the models that are not here; what it gives is cached", examples=["https://huggingface.co"]
    )
    upstream_token: SecretStr | None = Field(None, description="for private models there", examples=["hf_…"])

    @model_validator(mode="after")
    def _folders_and_secrets_are_usable(self) -> HuggingFaceSettings:
        for path in (self.models, *self.public):
            try:
                check_path(path)
            except InvalidInput as error:
                raise ValueError(f"{error.why}: {path!r}") from error
        if self.read_token is not None and len(self.read_token.get_secret_value()) < 8:
            raise ValueError("read_token needs at least 8 characters")
        if self.upstream is not None and not re.match(r"^https?://[^/?#@]+(/[^?#]*)?$", self.upstream):
            raise ValueError(f"upstream is a URL such as https://huggingface.co, not {self.upstream!r}")
        return self


def default_home() -> Path:
    return Path(os.environ.get("CKPTSTORE_HOME") or Path.home() / ".ckptstore")


class Settings(BaseSettings):
    """Everything the daemon is told. `read_settings` is how to get one."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="CKPTSTORE_", env_nested_delimiter="__")

    home: Path = Field(default_factory=default_home, description="catalog, sockets, log and lock of this node's daemon")
    memory: MemorySettings = Field(default_factory=MemorySettings)
    quiet: QuietSettings = Field(default_factory=QuietSettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
    hugging_face: HuggingFaceSettings = Field(default_factory=HuggingFaceSettings)
    tiers: tuple[TierSettings, ...] = Field((), description="empty: one NVMe tier under the home")
    keep: tuple[KeepSettings, ...] = Field((), description="what is kept of folders' checkpoints, besides what the catalog knows")
    catalog_url: str | None = Field(
        None, description="sqlite:////path or postgresql://…; unset: SQLite under the home", examples=["postgresql://user@host/ckptstore"]
    )
    listen: str | None = Field(None, description="host:port of the network API; unset: none", examples=["127.0.0.1:8900"])
    token: SecretStr | None = Field(
        None, description="bearer token of the network API, 8 characters or more; required with `listen`", examples=["a long random text"]
    )
    attempt_timeout_s: float = Field(600.0, gt=0, description="an attempt without progress for this long is aborted")
    grace_s: float = Field(300.0, ge=0, description="how long a deleted object's bytes stay for readers that hold them")
    drain_workers: int = Field(2, ge=1, le=64, description="objects drained at once, per tier")
    queue_limit: Size = Field(1 << 40, description="what may wait to be drained before saves are slowed down")
    idle_exit_s: float | None = Field(
        None, ge=1, description="a daemon nobody uses exits after this; unset: it stays; set for auto-started ones", examples=[600.0]
    )
    max_request: Size = Field(64 << 20, description="the longest JSON body of an API request")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what the log in the home holds, and worse")

    @field_validator("home")
    @classmethod
    def _home_is_absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @model_validator(mode="after")
    def _whole_fits_together(self) -> Settings:
        names = [tier.name for tier in self.effective_tiers]
        if len(set(names)) != len(names):
            raise ValueError(f"two tiers have the same name: {', '.join(names)}")
        if not any(tier.durable for tier in self.effective_tiers):
            raise ValueError("no tier is durable: nothing could ever be published")
        durable = ["", *(tier.name for tier in self.effective_tiers if tier.durable)]
        for kept in self.keep:
            for name in {kept.tier, kept.safe_in}.difference(durable):
                raise ValueError(f"keep {kept.folder}: there is no durable tier {name!r}")
        if self.listen is not None:
            host, _, port = self.listen.rpartition(":")
            if not host or not port.isdigit() or not 0 <= int(port) <= 65535:
                raise ValueError(f"listen must be host:port, not {self.listen!r}")
            if self.token is None or len(self.token.get_secret_value()) < 8:
                raise ValueError("listen needs a token of at least 8 characters")
        return self

    @property
    def effective_tiers(self) -> tuple[TierSettings, ...]:
        """The configured tiers, or the default one."""
        return self.tiers or (TierSettings(name="nvme", kind="posix", path=self.home / "nvme"),)

    @property
    def effective_catalog_url(self) -> str:
        return self.catalog_url or f"sqlite:///{self.home / 'catalog.sqlite3'}"

    @property
    def api_socket(self) -> Path:
        return socket_path(self.home, "api.sock")

    @property
    def fd_socket(self) -> Path:
        return socket_path(self.home, "fd.sock")

    def tier(self, name: str) -> TierSettings | None:
        return next((tier for tier in self.effective_tiers if tier.name == name), None)


def config_file(home: Path | None = None) -> Path:
    """`$CKPTSTORE_CONFIG`, or `config.toml` in the home."""
    named = os.environ.get("CKPTSTORE_CONFIG")
    return Path(named) if named else (home or default_home()) / "config.toml"


def read_settings(file: Path | None = None, **flags: Any) -> Settings:
    """Settings from `file` (or the default place, if it exists), then the environment, then `flags` that are not None.

    Raises ConfigInvalid that names the file and the key.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    home = Path(given["home"]).expanduser().absolute() if "home" in given else None
    place = file or config_file(home)
    document: dict[str, Any] = {}
    if file is not None or place.exists():
        try:
            document = tomllib.loads(place.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigInvalid(str(error), operation="read configuration", subject=str(place)) from error
    try:
        return Settings(**_merge(document, _environment(), given))
    except ValidationError as error:
        raise ConfigInvalid(first_faults(error, "settings", most=5), operation="read configuration", subject=str(place)) from error


def _environment() -> dict[str, Any]:
    """What the CKPTSTORE_… variables say, as nested keys; CONFIG, GROUP, TOKEN_FILE and URL are the client's own."""
    source = EnvSettingsSource(Settings)
    return {key: value for key, value in source().items() if key in Settings.model_fields}


def _merge(*layers: dict[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = merged.get(key)
            merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
