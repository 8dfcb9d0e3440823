"""The families of figures: which there are, each in a store of its own, and the report that they make together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ckptstore.errors import InvalidInput
from ckptstore_bench import machine
from ckptstore_bench.figures import daemon_figures, load_figures, save_figures
from ckptstore_bench.measure import Result
from ckptstore_bench.report import Column, Report, Table, samples
from ckptstore_bench.running import Steps
from ckptstore_bench.scratch import Scratch
from ckptstore_bench.workspace import Workspace

#: Two segments for the saves, one for what is loaded meanwhile.
SEGMENTS = 3
#: What a family has on the disk at once, in sizes of the state: the store's, fio's and the peers' files.
FILES = 6


def families(size_bytes: int, rounds: int, checkpoints: int, say: Callable[[str], None]) -> dict[str, Callable[[Workspace], Result]]:
    return {
        "save": lambda workspace: save_figures.measure(workspace, size_bytes, rounds, say),
        "load": lambda workspace: load_figures.measure_cold(workspace, size_bytes, rounds, say),
        "memory": lambda workspace: load_figures.measure_memory(workspace, size_bytes, rounds, say),
        "rest": lambda workspace: daemon_figures.measure_rest(workspace, size_bytes, rounds, say),
        "many": lambda workspace: daemon_figures.measure_many(workspace, checkpoints, rounds, say),
    }


def measure(steps: Steps, only: Sequence[str], size_bytes: int, rounds: int, checkpoints: int, folder: Path | None) -> Report:
    chosen = families(size_bytes, rounds, checkpoints, steps.say)
    if unknown := sorted(set(only) - set(chosen)):
        raise InvalidInput(f"there are {', '.join(chosen)}", operation="bench figures", subject=f"--only {', '.join(unknown)}")
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(prefix="ckptstore-figures-", dir=folder) as place:
        described = machine.describe(Path(place))
        names = [name for name in chosen if not only or name in only]
        steps.plan(len(names))
        for name in names:
            scratch = Scratch(folder=Path(place) / name)
            scratch.check_room(FILES * size_bytes)
            with Workspace(scratch, memory_limit_bytes=SEGMENTS * (size_bytes + (64 << 20))) as workspace:
                results[name] = chosen[name](workspace)
            steps.next()
    settings: dict[str, Any] = {"size_bytes": size_bytes, "checkpoints": checkpoints}
    settings |= {f"{name}: {fact}": value for name, result in results.items() for fact, value in result.facts.items()}
    return Report(
        command="bench figures",
        title="Figures of the store",
        limit="each figure's own contender, in turns within each round: a warm memory copy, fio with O_DIRECT, or another way to save",
        rounds=rounds,
        settings=settings,
        machine=described,
        tables=(_seconds(results),),
        figures=tuple(figure for result in results.values() for figure in result.figures),
    )


def _seconds(results: dict[str, Result]) -> Table:
    columns = (
        Column(key="family", heading="family"),
        Column(key="contender", heading="contender"),
        Column(key="s", heading="time", kind="seconds"),
    )
    rows = [(family, name, values) for family, result in results.items() for name, values in result.rounds.seconds.items()]
    return Table(
        title="Time of each contender: median and range",
        columns=columns,
        rows=tuple({"family": family, "contender": name, "s": samples(values)} for family, name, values in rows),
    )
