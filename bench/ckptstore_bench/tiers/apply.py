"""How does a setting get into the operator's configuration? Into the file itself, comments and order kept, whole or not at all.

The new text is checked as the daemon would read it before it takes the old one's place (temporary file beside it, fsync, rename). Mode and
owner stay. A daemon that runs reads it at its next start.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import AoT, InlineTable, Table

from ckptstore.config import TierSettings, config_file, read_settings
from ckptstore.errors import ConfigInvalid

#: {"nvme": {"write_threads": 8}, "memory": {"huge_pages": False}}
Changes = dict[str, dict[str, Any]]
MEMORY = "memory"


def apply_changes(changes: Changes, home: Path) -> Path:
    """Write `changes` into the configuration of `home`; the file that was written. ConfigInvalid, and nothing changed, if it cannot be."""
    place = config_file(home).resolve()
    before = place.read_text("utf-8") if place.exists() else ""
    document = tomlkit.parse(before)
    for name, values in changes.items():
        table = _memory(document) if name == MEMORY else _tier(document, name, home)
        _set(table, values)
    try:
        _replace(place, tomlkit.dumps(document), home)
    except OSError as error:
        raise ConfigInvalid(f"it cannot be written: {error.strerror}", operation="bench: apply", subject=str(place)) from error
    return place


def _memory(document: tomlkit.TOMLDocument) -> Any:
    if MEMORY not in document:
        # Before the first [[tiers]], where a reader looks for it.
        document.add(MEMORY, tomlkit.table())
    return document[MEMORY]


def _tier(document: tomlkit.TOMLDocument, name: str, home: Path) -> Any:
    """The `[[tiers]]` table of that name; where none is configured, the default tier's, written out."""
    if "tiers" not in document:
        document.add("tiers", _written_out(read_settings(home=home).effective_tiers))
    for table in document["tiers"]:
        if table["name"] == name:
            return table
    raise ConfigInvalid(f"it has no tier {name!r}", operation="bench: apply", subject=str(config_file(home)))


def _written_out(tiers: tuple[TierSettings, ...]) -> AoT:
    tables = tomlkit.aot()
    for tier in tiers:
        table = tomlkit.table()
        table.update({"name": tier.name, "kind": tier.kind, "path": str(tier.path)})
        tables.append(table)
    return tables


def _set(table: Any, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(table.get(key), Table):
            _set(table[key], value)
        elif isinstance(value, dict):
            table[key] = _inline(table.get(key), value)
        else:
            table[key] = value


def _inline(before: InlineTable | None, values: dict[str, Any]) -> InlineTable:
    """`{ … }` with the values in it, and the comment behind it. One that is changed in place would lose its blanks."""
    fresh = tomlkit.inline_table()
    fresh.update({**(before.unwrap() if before is not None else {}), **values})
    if before is not None:
        fresh.trivia.comment_ws, fresh.trivia.comment = before.trivia.comment_ws, before.trivia.comment
    return fresh


def _replace(place: Path, text: str, home: Path) -> None:
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f"{place.name}.", dir=place.parent)  # mode 0600: a token may stand in it
    fresh = Path(name)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        read_settings(fresh, home=home)
        if place.exists():
            shutil.copystat(place, fresh)
            found = place.stat()
            os.chown(fresh, found.st_uid, found.st_gid)
        fresh.replace(place)
    finally:
        fresh.unlink(missing_ok=True)
