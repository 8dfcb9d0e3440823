"""What is around every measurement: outputs that can be written are checked first, progress on stderr, the report on stdout and in files.

A sub-command's function parses, and calls `run` with a function from `Steps` to a `Report`. What is missing of the extra `[bench]` is an
error with the line that installs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from ckptstore.config import parse_size
from ckptstore.errors import ConfigInvalid, InvalidInput
from ckptstore_bench.interruption import ended_by_signals
from ckptstore_bench.report import Report
from ckptstore_bench.terminal_report import render
from ckptstore_client.cli.invocation import Invocation

#: `--json FILE`, where other commands have the flag `--json`: the parameter must be called `as_json`.
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write all of it as JSON; - for stdout, without tables.")
]
PageFile = Annotated[Path | None, typer.Option("--report", metavar="FILE.html", help="Write one self-contained page with plots.")]
RoundsOption = Annotated[int, typer.Option(min=1, help="Rounds in which the contenders take turns.")]
FolderOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Measure one tier in this new or empty folder, not the configured ones.")
]
STDOUT = Path("-")


class Steps:
    """The bar of a measurement, on stderr; nothing where that is no terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("preparing", total=None)

    def plan(self, total: int) -> None:
        """So many calls of `next` will follow."""
        self._progress.update(self._task, total=total, completed=0)

    def say(self, text: str) -> None:
        """What is being measured now."""
        self._progress.update(self._task, description=text)

    def next(self, text: str | None = None) -> None:
        """One step is done; `text` is the one that begins."""
        self._progress.advance(self._task)
        if text is not None:
            self.say(text)


def run(invocation: Invocation, measure: Callable[[Steps], Report], *, as_json: Path | None, page_file: Path | None) -> None:
    """Measure, and put the report where it was asked for. Signals unwind `measure`, so that its `with` blocks clean up."""
    for place in (as_json, page_file):
        if place not in (None, STDOUT):
            _refuse_unwritable(place)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with extra_installed(), ended_by_signals():
        with invocation.terminal.progress(*columns) as progress:
            report = measure(Steps(progress))
        publish(invocation, report, as_json=as_json, page_file=page_file)


def publish(invocation: Invocation, report: Report, *, as_json: Path | None, page_file: Path | None) -> None:
    document = report.model_dump_json(indent=1)
    if page_file is not None:
        from ckptstore_bench.page import page  # plotly: a quarter of a second that only pages need

        page_file.write_text(page(report), "utf-8")
    if as_json is not None and as_json != STDOUT:
        as_json.write_text(document + "\n", "utf-8")
    if as_json == STDOUT or invocation.terminal.as_json:
        print(document, flush=True)
    else:
        invocation.terminal.show(render(report))


@contextmanager
def extra_installed() -> Iterator[None]:
    """A module that the bare install does not bring → ConfigInvalid that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("ckptstore"):
            raise
        raise ConfigInvalid(
            f"the module {error.name} is not installed", operation="bench", hint="pip install 'ckptstore[bench]'"
        ) from error


def positive_size(text: str, option: str = "--size") -> int:
    """A size that can be measured; InvalidInput for 0 and for what is no size."""
    try:
        size_bytes = parse_size(text)
    except ValueError as error:
        raise InvalidInput(str(error), operation="bench", subject=option) from error
    if size_bytes <= 0:
        raise InvalidInput("nothing to measure with no bytes", operation="bench", subject=f"{option} {text}", hint="for example 1GiB")
    return size_bytes


def _refuse_unwritable(place: Path | None) -> None:
    """An hour of measuring must not end with a path that cannot be written."""
    assert place is not None
    was_there = place.exists()
    try:
        with place.open("ab"):
            pass
        if not was_there:
            place.unlink()
    except OSError as error:
        raise InvalidInput(f"it cannot be written: {error.strerror}", operation="bench", subject=str(place)) from error
