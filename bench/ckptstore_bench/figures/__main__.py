"""`python -m ckptstore_bench.figures`: measure, show a table, and write a JSON file if asked. Nothing here passes or fails by time."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ckptstore.config import parse_size
from ckptstore.errors import CkptStoreError
from ckptstore_bench.figures import daemon_figures, load_figures, machine, save_figures
from ckptstore_bench.figures.measure import Figure, Result, Say
from ckptstore_bench.figures.workspace import Workspace

#: Two segments for the saves, one for what is loaded meanwhile.
SEGMENTS = 3


def families(size_bytes: int, rounds: int, checkpoints: int, say: Say) -> dict[str, Callable[[Workspace], Result]]:
    return {
        "save": lambda workspace: save_figures.measure(workspace, size_bytes, rounds, say),
        "load": lambda workspace: load_figures.measure_cold(workspace, size_bytes, rounds, say),
        "memory": lambda workspace: load_figures.measure_memory(workspace, size_bytes, rounds, say),
        "rest": lambda workspace: daemon_figures.measure_rest(workspace, size_bytes, rounds, say),
        "many": lambda workspace: daemon_figures.measure_many(workspace, checkpoints, rounds, say),
    }


def main(
    only: Annotated[list[str] | None, typer.Option(help="save, load, memory, rest or many; repeat for several")] = None,
    size: Annotated[str, typer.Option(help="bytes of the state")] = "1GiB",
    rounds: Annotated[int, typer.Option(min=1, help="rounds in which the contenders take turns")] = 5,
    checkpoints: Annotated[int, typer.Option(min=200, help="how many small checkpoints `many` saves")] = 10_000,
    folder: Annotated[Path | None, typer.Option(help="a folder on the disk to measure; default: a temporary one")] = None,
    output: Annotated[Path | None, typer.Option("--json", help="write all of it to this file")] = None,
) -> None:
    """The figures of the store, as ratios to what they are compared with in the same run."""
    progress = Console(stderr=True)
    size_bytes = parse_size(size)
    chosen = families(size_bytes, rounds, checkpoints, lambda text: progress.print(text, style="dim", highlight=False))
    unknown = set(only or ()) - set(chosen)
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: known are {', '.join(chosen)}", param_hint="--only")
    results: dict[str, Result] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="ckptstore-figures-", dir=folder) as place:
            settings = {"size_bytes": size_bytes, "rounds": rounds, "checkpoints": checkpoints}
            document: dict[str, Any] = {"machine": machine.describe(Path(place)), "settings": settings}
            for name, run in chosen.items():
                if not only or name in only:
                    with Workspace(Path(place) / name, limit_bytes=SEGMENTS * (size_bytes + (64 << 20))) as workspace:
                        results[name] = run(workspace)
    except CkptStoreError as error:
        progress.print(f"ckptstore: {error}", style="bold red", markup=False)
        raise typer.Exit(error.exit_code) from error
    Console(width=130 if not sys.stdout.isatty() else None).print(_table(results))
    if output is not None:
        document["families"] = {name: _to_json(result) for name, result in results.items()}
        output.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def _to_json(result: Result) -> dict[str, Any]:
    return {"figures": [figure.to_json() for figure in result.figures], "seconds": result.rounds.seconds, "facts": result.facts}


def _table(results: dict[str, Result]) -> Table:
    table = Table(title="Figures: medians over the rounds", title_justify="left")
    for heading in ("figure", "what", "value", "range", "to reach", ""):
        table.add_column(heading, justify="right" if heading in ("value", "range", "to reach") else "left")
    for result in results.values():
        for figure in result.figures:
            table.add_row(*_row(figure))
    return table


def _row(figure: Figure) -> tuple[str, ...]:
    bound = "" if figure.bound is None else f"{'≥' if figure.at_least else '≤'} {figure.bound:g}"
    verdict = {True: "✓", False: "✗", None: ""}[figure.reached]
    spread = f"{min(figure.values):.2f}–{max(figure.values):.2f}" if len(figure.values) > 1 else ""
    return figure.name, figure.what, f"{figure.value:.2f} {figure.unit}", spread, bound, verdict


if __name__ == "__main__":
    typer.run(main)
