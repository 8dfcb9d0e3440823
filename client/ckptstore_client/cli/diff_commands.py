"""`diff`: which tensors of two checkpoints differ, and by how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ckptstore_client.cli.invocation import CommandGroup, Invocation
from ckptstore_client.cli.status_view import table
from ckptstore_client.cli.tensor_commands import RankOption, shown_number, shown_shape
from ckptstore_client.cli.terminal import Terminal

if TYPE_CHECKING:
    from ckptstore_client.inspecting.comparing import Comparison, TensorDifference


def register(root: CommandGroup) -> None:
    root.command("diff")(diff)


def diff(
    invocation: Invocation,
    before: Annotated[str, typer.Argument(metavar="A", help="A checkpoint; may end with /@latest.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    only: Annotated[list[str] | None, typer.Option("--only", metavar="PATTERN", help="Just these tensors, such as model/*.")] = None,
    rank: RankOption = None,
) -> None:
    """Tell which tensors of a checkpoint are not the same in another one: added, removed, of another type, or changed, and how much.

    Tensors that are known to be equal by their checksums are not read.

    Example: ckptstore diff /runs/gpt/step-000400 /runs/gpt/step-000500 --only 'model/*'
    """
    terminal = invocation.terminal
    with invocation.store() as store, terminal.progress() as progress:
        progress.add_task("comparing", total=None)
        found = store.diff(before, after, only=only or None, rank=rank)
    terminal.result(found, _shown(terminal, found) if found.differences else None)
    changes = [difference.change for difference in found.differences]
    told = [f"{changes.count(change):,} {change}" for change in ("changed", "added", "removed", "retyped") if change in changes]
    if not terminal.as_json:
        terminal.note(f"{', '.join([*told, f'{found.equal:,} equal'])} ({found.unread:,} of these without reading them)")


def _shown(terminal: Terminal, found: Comparison) -> Table:
    shown = table("CHANGE", "ELEMENTS", "LARGEST", "RELATIVE", "TENSOR", right=("ELEMENTS", "LARGEST", "RELATIVE"), fold=("TENSOR",))
    for difference in found.differences:
        changed = difference.change == "changed"
        shown.add_row(
            difference.change,
            f"{difference.elements:,}" if changed else "-",
            shown_number(difference.max_abs),
            shown_number(difference.relative),
            terminal.name(difference.name).append(_types(difference)),
        )
    return shown


def _types(difference: TensorDifference) -> str:
    """What each side has of it, where that is not the same; and what no number says."""
    if difference.change == "changed":
        return f"  ({difference.not_finite:,} NaN or infinite)" if difference.not_finite else ""
    sides = [f"{side.dtype} {shown_shape(side.shape)}" for side in (difference.before, difference.after) if side is not None]
    return f"  ({' → '.join(sides)})"
