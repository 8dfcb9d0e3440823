"""What does the configuration file look like? Written from the settings' own models, so that it cannot disagree with them.

Every field stands there, commented out, with its default, its unit, its range and its reason; an unset one shows an example. A file that
pins no default keeps up with better ones. `fields` is the same knowledge for whoever else wants to list the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tomlkit
from pydantic import BaseModel, BeforeValidator, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ckptstore.config import (
    CacheSettings,
    HuggingFaceSettings,
    MemorySettings,
    QuietSettings,
    Settings,
    TierSettings,
    parse_size,
)
from ckptstore.durations import parse_duration

EXAMPLE_KEEP = """\
# What stays of a folder's checkpoints, or in one tier of it; `ckptstore keep` says it, too.
#[[keep]]
#folder = "/runs/gpt"
#policies = "latest:3 every-steps:1000"
"""

EXAMPLE_TIERS = """\
# Three tiers, as a training cluster has them. The order is the order of the tiers: from fastest to most durable.
#[[tiers]]
#name = "nvme"
#kind = "posix"
#path = "/mnt/nvme/ckptstore"
#capacity = "800GiB"
#
#[[tiers]]
#name = "pfs"
#kind = "posix"
#path = "/mnt/lustre/ckptstore"
#shared = true
#bandwidth_limit = "2GB/s"
#drain_within = "5m"
#
#[[tiers]]
#name = "s3"
#kind = "object"
#url = "s3://models/ckptstore"
#options = { endpoint_url = "https://s3.example.org", region = "eu-central-1" }
#compression = "float"
"""


@dataclass(frozen=True)
class Setting:
    """One field, as people read it."""

    name: str
    what: str  # description, and what it accepts
    default: Any  # as TOML says it; None: unset
    example: Any  # for an unset one

    @property
    def line(self) -> str:
        """`name = value`, with the default, or the example of an unset one."""
        return f"{self.name} = {toml(self.example if self.default is None else self.default)}"


def fields(model: type[BaseModel]) -> Iterator[Setting]:
    """The fields of a settings model that are values, not tables of their own."""
    for name, field in model.model_fields.items():
        if _is_table(field.annotation):
            continue
        default = None if field.default is PydanticUndefined else field.default
        if name == "home":
            default = "~/.ckptstore"  # what default_home() means, in words that hold on every machine
        if _is_read_by(parse_size, field) and default is not None:
            default = round_size(default)
        what = "; ".join(part for part in (field.description, accepts(name, field), "required" if field.is_required() else "") if part)
        yield Setting(name, what, default, field.examples[0] if field.examples else _any_value(field))


def accepts(name: str, field: FieldInfo) -> str:
    """Type, unit and range of a field: `seconds, above 0`."""
    kinds = [kind for kind in _alternatives(field.annotation) if kind is not type(None)]
    metadata = _metadata(field)
    if _is_read_by(parse_size, field):
        return 'a number of bytes, or a text such as "8GiB" or "500MB"'
    if _is_read_by(parse_duration, field):
        return 'a number of seconds, or a text such as "5m" or "1h30m"'
    if choices := [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]:
        return "one of " + ", ".join(choices)
    unit = ["seconds"] if name.endswith("_s") else ["true or false"] if bool in kinds else []
    words = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}"}
    limits = [(word, getattr(item, key, None)) for item in metadata for key, word in words.items()]
    return ", ".join(unit + [word.format(f"{limit:,}") for word, limit in limits if limit is not None])


def round_size(size_bytes: int) -> int | str:
    """`"64MiB"` for a whole number of a unit, else the bytes: the text must mean exactly the number."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size_bytes and size_bytes % 1024**power == 0:
            return f"{size_bytes // 1024**power}{unit}"
    return size_bytes


def template() -> str:
    """The file that `config init` writes."""
    lines = [
        "# ckptstore's configuration. Every setting stands here with its default, commented out; what is unset shows an example.",
        "# An environment variable CKPTSTORE_<NAME> (CKPTSTORE_MEMORY__LIMIT for a table's) overrides the file, and a flag both.",
        "# `ckptstore config check` says whether it is right; the daemon reads it once, at its start.",
        "",
    ]
    lines += _commented(Settings)
    lines += ["# Host memory that is lent to training processes, for their snapshots.", "#[memory]", *_commented(MemorySettings)]
    lines += ["# How copies between tiers keep out of training's way.", "#[quiet]", *_commented(QuietSettings)]
    lines += ["# Copies of what readers read, on this node's disk.", "#[cache]", *_commented(CacheSettings)]
    lines += ["# Models for clients of the Hugging Face Hub: HF_ENDPOINT=http://<listen>/hf."]
    lines += ["#[hugging_face]", *_commented(HuggingFaceSettings)]
    lines += [
        "# Where bytes live. Without any: one NVMe tier in the home. What a [[tiers]] table may say:",
        *(f"#   {setting.name}: {_reason(setting)}" for setting in fields(TierSettings)),
        "#",
    ]
    return "\n".join(lines) + "\n" + EXAMPLE_TIERS + "\n" + EXAMPLE_KEEP


def toml(value: Any) -> str:
    """A value as TOML writes it, in one line."""
    if isinstance(value, dict):
        table = tomlkit.inline_table()
        table.update(value)
        return table.as_string()
    return tomlkit.item(str(value) if isinstance(value, Path) else value).as_string()


def as_toml(settings: Settings) -> str:
    """The settings in effect, as a file that would give them again; the token is not told."""
    document = settings.model_dump(mode="json", exclude_none=True)
    if settings.token is not None:
        document["token"] = "(set)"
    document["tiers"] = [tier.model_dump(mode="json", exclude_none=True) for tier in settings.effective_tiers]
    document["keep"] = [kept.model_dump(mode="json") for kept in settings.keep]
    document["catalog_url"] = shown_url(settings.effective_catalog_url)
    return tomlkit.dumps(document)


def shown_url(url: str) -> str:
    """A catalog's URL without its password."""
    from sqlalchemy.engine import make_url  # half a second of imports, which no other command needs

    return make_url(url).render_as_string(hide_password=True)


def _commented(model: type[BaseModel]) -> list[str]:
    return [line for setting in fields(model) for line in (f"# {_reason(setting)}", f"#{setting.line}", "")]


def _reason(setting: Setting) -> str:
    default = "unset by default" if setting.default is None else f"default {toml(setting.default)}"
    return f"{setting.what} ({default})" if "required" not in setting.what else setting.what


def _alternatives(annotation: Any) -> list[Any]:
    """`Size | None` → [Size, None]; anything else → itself."""
    return [annotation] if get_origin(annotation) in (Literal, dict, tuple) or not get_args(annotation) else list(get_args(annotation))


def _metadata(field: FieldInfo) -> list[Any]:
    """What limits a field, also inside `X | None`."""
    return [*field.metadata, *(item for kind in _alternatives(field.annotation) for item in getattr(kind, "__metadata__", ()))]


def _is_read_by(parse: Callable[[object], object], field: FieldInfo) -> bool:
    return any(isinstance(item, BeforeValidator) and item.func is parse for item in _metadata(field))


def _is_table(annotation: Any) -> bool:
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in (annotation, *get_args(annotation)))


def _any_value(field: FieldInfo) -> Any:
    kinds = _alternatives(field.annotation)
    return False if bool in kinds else "" if str in kinds or Path in kinds or SecretStr in kinds else 0
