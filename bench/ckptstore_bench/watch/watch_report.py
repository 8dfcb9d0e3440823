"""What was found about watching, as a table, a figure and bars."""

from __future__ import annotations

from typing import Any

from ckptstore_bench.measure import Rounds, figure
from ckptstore_bench.report import Bars, Column, Report, Table, samples
from ckptstore_bench.shape import StateShape
from ckptstore_bench.watch.measuring import COPY, LOAD, LOADED, TOLD

LIMIT_SAID = "a plain copy of the same bytes into the same tensors, in the watcher's process, in the same round."
#: Seconds from the publish until the watcher holds the weights, beyond those of the copy.
BEYOND_COPY_S = 0.3
SAID = {
    TOLD: "from the publish until the watcher hears of it",
    LOADED: "from the publish until it holds the weights",
    LOAD: "a load of the same, later",
    COPY: "a copy of the same",
}


def build(taken: Rounds, shape: StateShape, *, rounds: int, tiers: list[dict[str, Any]], machine: dict[str, Any]) -> Report:
    beyond = [loaded - copy for loaded, copy in zip(taken.seconds[LOADED], taken.seconds[COPY], strict=True)]
    table = Table(
        title=shape.what,
        columns=(Column(key="what", heading="what"), Column(key="taken_s", heading="seconds", kind="seconds")),
        rows=tuple({"what": said, "taken_s": samples(taken.seconds[name])} for name, said in SAID.items()),
    )
    what = "from the publish until a watcher on the node holds the weights, beyond a copy of them"
    bars = {"seconds": tuple(samples(taken.seconds[name]) for name in SAID)}
    return Report(
        command="bench watch",
        title="Watching for new weights",
        limit=LIMIT_SAID,
        rounds=rounds,
        settings={"size_bytes": shape.size_bytes, "tensors": len(shape.tensors), "tiers": tiers},
        machine=machine,
        tables=(table,),
        figures=tuple(figure("watch.loaded", what, beyond, BEYOND_COPY_S, at_least=False, unit="s")),
        plots=(Bars(title="Seconds", kind="seconds", categories=tuple(SAID.values()), series=bars),),
    )
