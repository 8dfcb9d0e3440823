"""`cat`: looking into a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ckptstore_client.cli.invocation import CommandGroup, Invocation
from ckptstore_client.cli.namespace_commands import PathArgument
from ckptstore_client.cli.status_view import table
from ckptstore_client.cli.terminal import Terminal, size, visible

if TYPE_CHECKING:
    from ckptstore_client.inspecting.tensors import TensorStatistics

RankOption = Annotated[
    int | None, typer.Option("--rank", min=0, metavar="K", help="Whose state, where each rank saved one of its own.")
]
#: Pieces of a tensor that are told one by one.
MOST_PLACES = 8


def register(root: CommandGroup) -> None:
    root.command("cat")(cat)


def cat(
    invocation: Invocation,
    path: PathArgument,
    tensors: Annotated[
        list[str] | None, typer.Argument(metavar="TENSOR", help="Names or patterns, such as model/*; none: list all.")
    ] = None,
    rank: RankOption = None,
) -> None:
    """Show what is in a checkpoint: its tensors, or the numbers of some of them.

    PATH may end with /@latest. Only the blocks that hold these tensors are read, each verified. With --json it prints one JSON document a
    line.

    Example: ckptstore cat /runs/gpt/@latest model/layer.0.weight
    """
    from ckptstore_client.inspecting.tensors import describe, list_tensors

    terminal = invocation.terminal
    with invocation.store() as store:
        entry = store.stat(path)
        if tensors:
            for found in describe(store, entry.path, tensors, rank=rank):
                if terminal.as_json:
                    terminal.document(found)
                else:
                    terminal.show(_facts(terminal, found, ", ".join(entry.durability)))
            return
        with store.open_tensors(entry.path, rank=rank) as checkpoint:
            listed = list(list_tensors(checkpoint))
    if terminal.as_json:
        for info in listed:
            terminal.document(info)
        return
    shown = table("DTYPE", "SHAPE", "SIZE", "TENSOR", right=("SIZE",), fold=("TENSOR",))
    for info in listed:
        shown.add_row(info.dtype, shown_shape(info.shape), size(info.size_bytes), terminal.name(info.name))
    terminal.show(shown)
    terminal.note(f"{len(listed):,} tensors, {size(sum(info.size_bytes for info in listed))}, in {visible(entry.path)}")


def shown_shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "one number"


def _facts(terminal: Terminal, found: TensorStatistics, safe_in: str) -> Table:
    """What is known of a tensor, one fact a line."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("tensor", terminal.name(found.name))
    facts.add_row("shape", f"{found.dtype}  {shown_shape(found.shape)}  ({size(found.size_bytes)})")
    if found.minimum is not None:
        told = {"min": found.minimum, "max": found.maximum, "mean": found.mean, "std": found.std}
        facts.add_row("numbers", "  ".join(f"{name} {shown_number(value)}" for name, value in told.items()))
    facts.add_row("of these", f"{found.zeros:,} are zero, {found.nans:,} NaN, {found.infinities:,} infinite")
    facts.add_row("first", ", ".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in found.first))
    facts.add_row("safe in", Text(visible(safe_in) or "no tier holds all of it"))
    for place in found.places[:MOST_PLACES]:
        where = place.file or f"object {place.object_id} of an earlier checkpoint"
        facts.add_row("lies at", f"{where}, bytes {place.start:,} to {place.start + place.size_bytes:,}: {place.box}")
    if found.pieces > MOST_PLACES:
        facts.add_row("", f"and {found.pieces - MOST_PLACES:,} more pieces")
    return facts


def shown_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
