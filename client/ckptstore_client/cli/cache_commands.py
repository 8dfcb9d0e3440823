"""`warm`, and `cache status`, `top`, `warm`, `pin`, `unpin`, `evict`: what stays hot on this node."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from ckptstore.cache_messages import CachedModel, WarmLine
from ckptstore.errors import TierUnavailable
from ckptstore_client.cli.cache_view import render_cache
from ckptstore_client.cli.invocation import CommandGroup, Invocation
from ckptstore_client.cli.namespace_commands import PathArgument
from ckptstore_client.cli.status_view import table
from ckptstore_client.cli.terminal import age, size, visible
from ckptstore_client.cli.transfer_commands import TRANSFER_COLUMNS

group = CommandGroup("What stays hot on this node: copies of what readers read.")


def register(root: CommandGroup) -> None:
    root.command("warm")(warm)
    root.add("cache", group)


@group.command("status")
def status(invocation: Invocation) -> None:
    """Show how much is kept, where, and what it was good for.

    Example: ckptstore cache status --json
    """
    with invocation.store() as store:
        found = store.cache.status()
    invocation.terminal.result(found, render_cache(found, all_pins=True))


@group.command("top")
def top(invocation: Invocation) -> None:
    """Show each model: how much of it is kept, how often it was found here, and how many bytes that saved.

    Example: ckptstore cache top
    """
    with invocation.store() as store:
        models = store.cache.models()
    invocation.terminal.result({"models": [model.model_dump() for model in models]}, _models(models))


def warm(
    invocation: Invocation,
    path: PathArgument,
    pin: Annotated[bool, typer.Option("--pin", help="Let it stay until it is unpinned.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Fetch nothing: say how much of it is here.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when it is here, or at once.")] = True,
) -> None:
    """Fetch a file or folder to this node before anybody reads it.

    Exit 10 if something of it could not be fetched or kept; the rest is here all the same.

    Example: ckptstore warm /models/llama --pin
    """
    terminal, problems, here, last = invocation.terminal, 0, 0, WarmLine()
    with invocation.store() as store, terminal.progress(*TRANSFER_COLUMNS) as progress:
        bar = progress.add_task(f"{'checking' if check else 'warming'} {visible(path)}", total=None)
        for last in store.cache.warm(path, pin=pin, check=check, wait=wait):
            if terminal.as_json:
                terminal.document(last)
            elif last.problem is not None or (check and not last.done):
                terminal.show(_file(last))
            problems += last.problem is not None
            here += 0 if last.done else last.held_bytes
            progress.update(bar, completed=here, total=last.total_bytes)
    if not terminal.as_json:
        terminal.show(_sum(last))
    if problems:
        raise TierUnavailable(f"{problems} of {last.files} files could not be fetched or kept", operation="warm", subject=path)


group.command("warm")(warm)


@group.command("pin")
def pin(invocation: Invocation, path: PathArgument) -> None:
    """Let what is at or below a path stay, once it is here. `warm --pin` fetches it, too.

    Example: ckptstore cache pin /models/llama
    """
    with invocation.store() as store:
        pins = store.cache.pin(path)
    invocation.terminal.result({"pins": pins}, Text("pinned ") + invocation.terminal.name(path))


@group.command("unpin")
def unpin(invocation: Invocation, path: PathArgument) -> None:
    """Let what is at or below a path go again when room is needed.

    Example: ckptstore cache unpin /models/llama
    """
    with invocation.store() as store:
        pins = store.cache.unpin(path)
    invocation.terminal.result({"pins": pins}, Text("unpinned ") + invocation.terminal.name(path))


@group.command("evict")
def evict(invocation: Invocation, path: PathArgument) -> None:
    """Give up the copies at or below a path, unless they are pinned. Who has a file open reads on; the files stay where they lie.

    Example: ckptstore cache evict /models/old
    """
    with invocation.store() as store:
        gone = store.cache.evict(path)
    invocation.terminal.result(gone, Text(f"evicted {gone.files:,} files ({size(gone.size_bytes)})"))


def _models(models: list[CachedModel]) -> RenderableType:
    numbers = ("FILES", "HERE", "HITS", "MISSES", "FETCHED", "SAVED", "LAST USED")
    shown = table("MODEL", "PINNED", *numbers, right=numbers, fold=("MODEL",))
    for model in models:
        shown.add_row(
            Text(visible(model.path)),
            "yes" if model.pinned else "-",
            f"{model.files:,}",
            size(model.held_bytes),
            f"{model.hits:,}",
            f"{model.misses:,}",
            size(model.fetched_bytes),
            size(model.saved_bytes),
            age(time.time() - model.used_at_s) if model.used_at_s else "-",
        )
    return shown


def _file(line: WarmLine) -> Text:
    if line.problem is not None:
        return Text.assemble(visible(line.path), ": ", (visible(line.problem), "bold red"))
    share = 100 * line.held_bytes // line.size_bytes if line.size_bytes else 100
    return Text(f"{visible(line.path)}: {size(line.held_bytes)} of {size(line.size_bytes)} ({share}%)")


def _sum(last: WarmLine) -> Text:
    if last.begun:
        return Text("begun; `ckptstore cache top` shows how far it is")
    return Text(f"{last.files:,} files, {size(last.held_bytes)} of {size(last.size_bytes)} here")
