"""`put`, `get`, `wait`, `verify`: what takes a while, with a bar on stderr where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from ckptstore.errors import AlreadyExists, ChecksumMismatch
from ckptstore.wire import VerifyLine
from ckptstore_client.cli.invocation import CommandGroup, Invocation
from ckptstore_client.cli.namespace_commands import PathArgument
from ckptstore_client.cli.terminal import Terminal, counted, size, visible

if TYPE_CHECKING:
    from ckptstore_client.store import Store

#: A bar of bytes.
TRANSFER_COLUMNS: tuple[ProgressColumn, ...] = (
    TextColumn("{task.description}", markup=False, table_column=Column(overflow="ellipsis", no_wrap=True, max_width=24)),
    BarColumn(bar_width=20),
    DownloadColumn(binary_units=True),
    TransferSpeedColumn(),
)


def register(root: CommandGroup) -> None:
    root.command("put")(put)
    root.command("get")(get)
    root.command("wait")(wait)
    root.command("verify")(verify)


def put(
    invocation: Invocation,
    local: Annotated[Path, typer.Argument(metavar="LOCAL", help="A file or a folder of this machine.")],
    path: PathArgument,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of what is there, atomically.")] = False,
) -> None:
    """Store a file or a folder of this machine.

    A folder appears whole or not at all. The command returns once a durable tier holds it.

    Example: ckptstore put ./MiniLM /models/minilm
    """
    terminal = invocation.terminal
    with invocation.store() as store:
        with terminal.progress(*TRANSFER_COLUMNS) as progress, told_by_option("put"):
            store.put(local, path, replace=replace, progress=bar(progress, f"putting {visible(local.name)}"))
        entry = store.stat(path)
    files = "" if entry.files is None else f", {entry.files:,} files"
    terminal.result(entry, Text("put ") + terminal.name(entry.path) + Text(f" ({size(entry.size_bytes)}{files})"))


def get(
    invocation: Invocation,
    path: PathArgument,
    local: Annotated[Path, typer.Argument(metavar="LOCAL", help="Where to write it.")],
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of what is there.")] = False,
) -> None:
    """Write what is at a path to this machine.

    PATH is a checkpoint, folder or file, or ends with /@latest. Every byte is verified; LOCAL is complete or not there at all.

    Example: ckptstore get /runs/gpt/@latest ./resume
    """
    terminal = invocation.terminal
    with invocation.store() as store:
        entry = store.stat(path)
        with terminal.progress(*TRANSFER_COLUMNS) as progress, told_by_option("get"):
            store.get(entry.path, local, replace=replace, progress=bar(progress, f"getting {visible(entry.name)}"))
    document = {"path": entry.path, "local": str(local.absolute()), "size_bytes": entry.size_bytes}
    terminal.result(document, Text("got ") + terminal.name(entry.path) + Text(f" ({size(entry.size_bytes)})"))


def wait(
    invocation: Invocation,
    path: PathArgument,
    tier: Annotated[str, typer.Argument(metavar="TIER", help="A configured tier's name, as `ckptstore status` lists them.")],
    timeout: Annotated[float | None, typer.Option(min=0.0, metavar="SECONDS", help="Give up after so long (exit 12).")] = None,
) -> None:
    """Wait until a tier holds all of a checkpoint, folder or file.

    Example: ckptstore wait /runs/gpt/@latest object --timeout 600
    """
    terminal = invocation.terminal
    with invocation.store() as store:
        with terminal.progress() as progress:
            progress.add_task(f"waiting until {visible(tier)} holds {visible(path)}", total=None)
            store.wait(path, tier, timeout_s=timeout)
        entry = store.stat(path)
    terminal.result(entry, terminal.name(entry.path) + Text(f" is safe in {visible(', '.join(entry.durability))}"))


def verify(invocation: Invocation, path: Annotated[str, typer.Argument(metavar="PATH")] = "/") -> None:
    """Read every replica again and compare it with its checksums, and every commit record with the catalog.

    What is bad is repaired from what is good. Exit 0: all is whole, or was repaired. Exit 8: something is not. With --json it prints one
    JSON document a line; the last one has `done`.

    Example: ckptstore verify /runs/gpt/step-000100
    """
    terminal = invocation.terminal
    with invocation.store() as store:
        last, unrepaired = _follow(terminal, store, path)
    read = f"{counted(last.replicas, 'replicas')} and {counted(last.records, 'commit records')}"
    if not terminal.as_json:
        mended = last.problems - unrepaired
        told = f"{read} read, {counted(last.problems, 'problems')}"
        terminal.show(told + (f", {mended:,} of them repaired" if mended else ""))
        if last.elsewhere:
            terminal.show(f"{counted(last.elsewhere, 'replicas')} in the tiers of other nodes not read: run verify there, too")
    if unrepaired:
        why = f"{unrepaired} of {read} are damaged or unreadable, and could not be repaired"
        raise ChecksumMismatch(why, operation="verify", subject=path, hint="`ckptstore status` shows whether a tier is down")


def bar(progress: Progress, description: str) -> Callable[[int, int], None]:
    """A bar, and what moves it."""
    task = progress.add_task(description, total=None)
    return lambda done_bytes, total_bytes: progress.update(task, completed=done_bytes, total=total_bytes)


@contextmanager
def told_by_option(operation: str) -> Iterator[None]:
    """The library's hint names its own argument, replace=True; here it is an option."""
    try:
        yield
    except AlreadyExists as error:
        raise AlreadyExists(error.why, operation=operation, subject=error.subject, hint="--replace takes its place") from error


def _follow(terminal: Terminal, store: Store, path: str) -> tuple[VerifyLine, int]:
    """Print the lines as they come; the last one, and how many problems stay."""
    last, unrepaired, file = VerifyLine(), 0, ""
    total = store.du(path).files
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with terminal.progress(*columns) as progress:
        task = progress.add_task("verifying files", total=total)
        for line in store.verify(path):
            if terminal.as_json:
                terminal.document(line)
            elif line.problem is not None:
                terminal.show(_problem(terminal, line))
            unrepaired += line.problem is not None and not line.repaired
            progress.advance(task, float(file not in ("", line.path)))
            last, file = line, line.path
    return last, unrepaired


def _problem(terminal: Terminal, line: VerifyLine) -> Text:
    outcome = ("repaired", "green") if line.repaired else ("NOT REPAIRED", "bold red")
    return terminal.name(line.path) + Text.assemble(f" in {visible(line.tier)}: {visible(line.problem or '')}: ", outcome)
