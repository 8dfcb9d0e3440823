"""`ls`, `stat`, `du`, `rm`, `mv`, `watch`: what is in the namespace.

Nothing is held whole: a folder of millions is printed a page at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ckptstore.paths import check_folder
from ckptstore.wire import EntryInfo
from ckptstore_client.cli.invocation import CommandGroup, Invocation
from ckptstore_client.cli.status_view import table
from ckptstore_client.cli.terminal import Terminal, age, counted, iso, size, visible

if TYPE_CHECKING:
    from ckptstore_client.store import Store

#: Entries whose columns are aligned with each other; a longer list is printed as several tables.
ENTRIES_PER_TABLE = 1000

PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="An absolute path of the namespace, such as /runs/gpt.")]


def register(root: CommandGroup) -> None:
    root.command("ls")(ls)
    root.command("stat")(stat)
    root.command("du")(du)
    root.command("rm")(rm)
    root.command("mv")(mv)
    root.command("watch")(watch)


def ls(
    invocation: Invocation,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder or a checkpoint.")] = "/",
    long: Annotated[bool, typer.Option("-l", "--long", help="With kind, size, step, age and the tiers that hold all of it.")] = False,
    recursive: Annotated[bool, typer.Option("-r", "--recursive", help="With everything below, by whole paths.")] = False,
    sort: Annotated[str | None, typer.Option("--sort", metavar="KEY", help="By step, size, age, or a key of the metadata.")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="With --sort: the largest first.")] = False,
) -> None:
    """List a folder, in the byte order of its names, or sorted; what lacks the key comes last.

    With --json it prints one JSON document a line.

    Example: ckptstore ls -l /runs/gpt --sort loss
    """
    terminal = invocation.terminal

    def told(count: int) -> None:
        terminal.note(f"{count:,} more are left out: their names cannot be in a path, or they are links that lead out")

    with invocation.store() as store:
        entries = _walk(store, check_folder(path), told) if recursive else iter(store.ls(path, on_skipped=told))
        if sort is not None:
            entries = iter(sorted_by(sort, entries, reverse=reverse))
        if terminal.as_json:
            for entry in entries:
                terminal.document(entry)
        elif long:
            _print_long(terminal, entries, whole_paths=recursive, key=sort if sort not in _COLUMNS else None)
        else:
            for entry in entries:
                terminal.show(_name(terminal, entry, whole_paths=recursive))


def stat(invocation: Invocation, path: PathArgument) -> None:
    """Show what an entry is, and where it is safe.

    PATH may end with /@latest: the newest checkpoint of a folder.

    Example: ckptstore stat /runs/gpt/@latest
    """
    with invocation.store() as store:
        entry = store.stat(path)
    invocation.terminal.result(entry, _facts(invocation.terminal, entry))


def du(invocation: Invocation, path: Annotated[str, typer.Argument(metavar="PATH")] = "/") -> None:
    """Add up the files at and below a path.

    Each counts once, in however many tiers it is, and under the checkpoint that wrote it: what incremental checkpoints refer to is
    told apart from it.

    Example: ckptstore du /runs
    """
    with invocation.store() as store:
        usage = store.du(path)
    what = "checkpoint, folder or file" if usage.publications == 1 else "checkpoints, folders and files"
    of = f" of {usage.publications:,} {what}" if usage.publications or usage.complete else ""
    shown = Text(f"{size(usage.size_bytes)} in {counted(usage.files, 'files')}{of} under ")
    shown += invocation.terminal.name(usage.path)
    if usage.referred_bytes:
        shown.append(f"\n{size(usage.referred_bytes)} more are referred to, in files of earlier checkpoints")
    if usage.kept_bytes:
        shown.append(f"\n{size(usage.kept_bytes)} are kept of removed checkpoints, for those that refer to them")
    if usage.attached:
        shown.append(f"\nnot counted: what is attached at {', '.join(map(visible, usage.attached))}")
    if not usage.complete:
        shown.append("\nat least: there is more than could be counted in time")
    invocation.terminal.result(usage, shown)


def rm(
    invocation: Invocation,
    path: PathArgument,
    recursive: Annotated[bool, typer.Option("-r", "--recursive", help="Also a folder with everything below it.")] = False,
) -> None:
    """Remove what is at a path, from every tier.

    A folder that holds others needs -r. What is removed is gone from the namespace at once; its bytes go after the configured grace time.

    Example: ckptstore rm /runs/gpt/step-000100
    """
    terminal = invocation.terminal
    with invocation.store() as store:
        removed = store.rm(path, recursive=recursive)
    if terminal.as_json:
        terminal.document({"removed": removed})
    for name in [] if terminal.as_json else removed:
        terminal.show(Text("removed ") + terminal.name(name))


def mv(
    invocation: Invocation,
    path: PathArgument,
    to: Annotated[str, typer.Argument(metavar="TO", help="Its new path.")],
    replace: Annotated[bool, typer.Option("--replace", help="In place of what is published there.")] = False,
) -> None:
    """Give what is at a path another one, at once.

    A folder moves with everything below it. No bytes move: in the tiers files keep the names under which they were stored.

    Example: ckptstore mv /runs/gpt/step-000100 /models/acme/gpt
    """
    terminal = invocation.terminal
    with invocation.store() as store:
        moved = store.mv(path, to, replace=replace)
    if terminal.as_json:
        terminal.document({"moved": moved})
    for name in [] if terminal.as_json else moved:
        terminal.show(Text("now at ") + terminal.name(name))


def _walk(store: Store, folder: str, on_skipped: Callable[[int], None]) -> Iterator[EntryInfo]:
    """Everything below `folder`, each folder before what is in it."""
    for entry in store.ls(folder, on_skipped=on_skipped):
        yield entry
        if entry.kind in ("folder", "checkpoint"):
            yield from _walk(store, entry.path, on_skipped)


def _name(terminal: Terminal, entry: EntryInfo, *, whole_paths: bool) -> Text:
    shown = terminal.name(entry.path if whole_paths else entry.name, style="" if entry.kind == "file" else "bold")
    return shown if entry.kind == "file" else shown.append("/")


#: What `--sort` knows beside the keys of the metadata.
_COLUMNS: dict[str, Callable[[EntryInfo], float | None]] = {
    "step": lambda entry: entry.step,
    "size": lambda entry: entry.size_bytes,
    "age": lambda entry: None if (at_s := entry.published_at_s or entry.modified_s) is None else -at_s,
}


def sorted_by(key: str, entries: Iterable[EntryInfo], *, reverse: bool) -> list[EntryInfo]:
    """The entries by a column or by their metadata: numbers before words, and what has neither last, in the order of names."""

    numbers: list[tuple[float, EntryInfo]] = []
    words: list[tuple[str, EntryInfo]] = []
    rest: list[EntryInfo] = []
    for entry in entries:
        found = _COLUMNS[key](entry) if key in _COLUMNS else entry.metadata.get(key)
        if found is None:
            rest.append(entry)
        elif isinstance(found, int | float) and found == found:
            numbers.append((found, entry))
        else:
            words.append((str(found), entry))
    numbers.sort(key=lambda pair: pair[0], reverse=reverse)
    words.sort(key=lambda pair: pair[0], reverse=reverse)
    return [entry for _, entry in numbers] + [entry for _, entry in words] + rest


def _print_long(terminal: Terminal, entries: Iterator[EntryInfo], *, whole_paths: bool, key: str | None) -> None:
    first = True
    while page := list(islice(entries, ENTRIES_PER_TABLE)):
        terminal.show(_long(terminal, page, whole_paths=whole_paths, headed=first, key=key))
        first = False


def _long(terminal: Terminal, page: list[EntryInfo], *, whole_paths: bool, headed: bool, key: str | None) -> Table:
    """`key`: of the metadata, with a column of its own."""
    mine = [] if key is None else [visible(key).upper()]
    shown = table("KIND", "SIZE", "STEP", "AGO", *mine, "SAFE IN", "NAME", right=("SIZE", "STEP", "AGO", *mine), fold=("NAME", "SAFE IN"))
    shown.show_header = headed
    now_s = time.time()
    for entry in page:
        shown.add_row(
            entry.kind,
            size(entry.size_bytes) if entry.kind != "folder" or entry.size_bytes else "-",
            "-" if entry.step is None else str(entry.step),
            "-" if (since_s := entry.published_at_s or entry.modified_s) is None else age(now_s - since_s),
            *([] if key is None else [Text(visible(str(entry.metadata.get(key, "-"))))]),
            Text(visible(",".join(entry.durability) or entry.origin or "-")),
            _name(terminal, entry, whole_paths=whole_paths),
        )
    return shown


def _facts(terminal: Terminal, entry: EntryInfo) -> Table:
    """What is known of an entry, one fact a line; what it has none of is left out."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("path", terminal.name(entry.path))
    facts.add_row("kind", entry.kind)
    facts.add_row("size", f"{size(entry.size_bytes)} ({entry.size_bytes:,} bytes)")
    if entry.referred_bytes:
        facts.add_row("refers to", f"{size(entry.referred_bytes)} ({entry.referred_bytes:,} bytes) in files of earlier checkpoints")
    for label, value in (("files", entry.files), ("step", entry.step), ("ranks", entry.world_size), ("id", entry.publication_id)):
        if value is not None:
            facts.add_row(label, Text(visible(str(value))))
    if entry.published_at_s is not None:
        facts.add_row("published", f"{age(time.time() - entry.published_at_s)} ago ({iso(entry.published_at_s)})")
        facts.add_row("safe in", Text(visible(", ".join(entry.durability)) or "no tier holds all of it"))
    if entry.origin is not None:
        facts.add_row("attached", Text(visible(entry.origin)))
    if entry.modified_s is not None:
        facts.add_row("changed", f"{age(time.time() - entry.modified_s)} ago ({iso(entry.modified_s)})")
    if entry.best_effort:
        facts.add_row("note", "it is too young, or lies where versions are not told for certain: a change may not be seen")
    for tier, stored_bytes in entry.stored_bytes.items():
        facts.add_row(Text(visible(f"in {tier}")), f"{size(stored_bytes)} compressed ({stored_bytes:,} bytes)")
    for key, value in sorted(entry.metadata.items()):
        facts.add_row(Text(visible(f"metadata.{key}")), Text(visible(str(value))))
    return facts


def watch(
    invocation: Invocation,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder or a checkpoint.")] = "/",
    since: Annotated[int | None, typer.Option("--since", metavar="N", help="Also what came after the event of this number.")] = None,
    count: Annotated[int | None, typer.Option("-n", "--count", min=1, help="End after so many events.")] = None,
) -> None:
    """Tell what is published at or below a path, when it becomes safer, and what is said about it (`tag`), as it happens.

    With --json it prints one JSON document a line. It ends with Ctrl-C.

    Example: ckptstore watch /runs/gpt --json
    """
    terminal = invocation.terminal
    with invocation.store() as store:
        for event in islice(store.watch(path, since=since), count):
            if terminal.as_json:
                terminal.document(event)
            else:
                step = "" if event.step is None else f"  step {event.step}"
                what = f"in {event.tier}" if event.event == "durable" else event.event
                terminal.show(Text(f"{what:<12}") + terminal.name(event.path) + Text(step))
