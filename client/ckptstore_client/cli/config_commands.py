"""`config init | show | path | check`: the configuration, without a daemon."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ckptstore.config import Settings, config_file, read_settings
from ckptstore.errors import AlreadyExists, ConfigInvalid
from ckptstore_client.cli.config_template import as_toml, shown_url, template
from ckptstore_client.cli.invocation import CommandGroup, Invocation

group = CommandGroup("Write, show and check the configuration.")


@group.command("init")
def init(
    invocation: Invocation, force: Annotated[bool, typer.Option("--force", help="Overwrite the file that is there.")] = False
) -> None:
    """Write a configuration file in which every setting is explained and commented out.

    Example: ckptstore config init --home /var/lib/ckptstore
    """
    place = config_file(invocation.home_or_default)
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Mode 0600: a token may come to stand in it. O_EXCL: two of us at once do not overwrite each other.
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL), 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(template())
    except FileExistsError as error:
        raise AlreadyExists("it is there already", operation="config init", subject=str(place), hint="--force overwrites it") from error
    except OSError as error:
        raise ConfigInvalid(f"it cannot be written: {error.strerror}", operation="config init", subject=str(place)) from error
    invocation.terminal.result({"path": str(place)}, Text("wrote ") + invocation.terminal.name(str(place)))


@group.command("show")
def show(invocation: Invocation) -> None:
    """Show the settings in effect: file, environment and flags together, defaults included. The token is not shown.

    Example: ckptstore config show --json
    """
    settings = read_settings(home=invocation.home)
    invocation.terminal.result(_document(settings), Text(as_toml(settings).rstrip()))


@group.command("path")
def path(invocation: Invocation) -> None:
    """Show where the configuration file is, or would be.

    Example: $EDITOR "$(ckptstore config path)"
    """
    place = config_file(invocation.home_or_default)
    invocation.terminal.result({"path": str(place), "exists": place.exists()}, invocation.terminal.name(str(place)))


@group.command("check")
def check(
    invocation: Invocation,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="Else the one that a daemon would read.")] = None,
) -> None:
    """Say whether the configuration is right; exit 2, and what is wrong where, if not. Connects to nothing.

    Example: ckptstore config check ./config.toml
    """
    settings = read_settings(file, home=invocation.home)
    place = file or config_file(settings.home)
    warnings = _warnings(settings, place)
    for warning in warnings:
        invocation.terminal.note(f"warning: {warning}")
    told = "no file, all defaults" if not place.exists() else "ok"
    invocation.terminal.result(
        {"ok": True, "path": str(place), "exists": place.exists(), "warnings": warnings}, invocation.terminal.name(f"{place}: {told}")
    )


def _warnings(settings: Settings, place: Path) -> list[str]:
    """What is allowed, and yet seldom meant."""
    found = []
    if settings.token is not None and place.exists() and stat.S_IMODE(place.stat().st_mode) & 0o077:
        found.append(f"{place} can be read by others, and a token is set: chmod 600, or put the token into CKPTSTORE_TOKEN")
    if not any(tier.is_shared and tier.durable for tier in settings.effective_tiers):
        found.append("no durable tier is shared: what is saved does not survive the loss of this node")
    found += [
        f"tier {tier.name!r} is of this node and compressed: what lies there is decoded by the daemon at every read, never opened"
        for tier in settings.effective_tiers
        if tier.compression != "none" and not tier.is_shared
    ]
    if settings.listen is not None and not settings.listen.startswith(("127.", "localhost:", "[::1]")):
        found.append(f"listen = {settings.listen!r} sends the token and all bytes unencrypted over the network")
    return found


def _document(settings: Settings) -> dict[str, object]:
    document: dict[str, object] = json.loads(settings.model_dump_json())
    document["token"] = None if settings.token is None else "(set)"
    document["catalog_url"] = shown_url(settings.effective_catalog_url)
    document["tiers"] = [tier.model_dump(mode="json") for tier in settings.effective_tiers]
    return document
