"""The families of figures: which there are, each in a store of its own, and the report that they make together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ckptstore.errors import InvalidInput
from ckptstore_bench import machine
from ckptstore_bench.figures import daemon_figures, load_figures, other_figures, save_figures
from ckptstore_bench.measure import Result
from ckptstore_bench.report import Column, Report, Table, samples
from ckptstore_bench.running import Steps

#: name → (folder, bytes of the state, rounds, steps) to what it gives. `many` is called with a number of checkpoints for the bytes.
FAMILIES: dict[str, Callable[[Path, int, int, Steps], Result]] = {
    "save": save_figures.measure_steady,
    "first": save_figures.measure_first,
    "small": save_figures.measure_small,
    "incremental": save_figures.measure_incremental,
    "load": load_figures.measure_cold,
    "memory": load_figures.measure_memory,
    "s3": other_figures.measure_s3,
    "codecs": other_figures.measure_codecs,
    "interference": other_figures.measure_interference,
    "rest": daemon_figures.measure_rest,
    "many": daemon_figures.measure_many,
}


#: Whose versions are told beside the usual ones.
PEERS = (
    "fastsafetensors", "runai-model-streamer",
    "obstore", "s3torchconnector", "boto3", "botocore", "awscrt", "s3transfer", "s3fs", "zstandard",
)  # fmt: skip


def measure(steps: Steps, only: Sequence[str], size_bytes: int, rounds: int, checkpoints: int, folder: Path | None) -> Report:
    if unknown := sorted(set(only) - set(FAMILIES)):
        raise InvalidInput(f"there are {', '.join(FAMILIES)}", operation="bench figures", subject=f"--only {', '.join(unknown)}")
    results: dict[str, Result] = {}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ckptstore-figures-", dir=folder) as place:
        described = machine.describe(Path(place), *PEERS)
        for name in FAMILIES:
            if not only or name in only:
                amount = checkpoints if name == "many" else size_bytes
                results[name] = FAMILIES[name](Path(place) / name, amount, rounds, steps)
    settings: dict[str, Any] = {"size_bytes": size_bytes, "checkpoints": checkpoints, "families": list(results)}
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
