"""What was found about hot models, as a table, figures and bars."""

from __future__ import annotations

from typing import Any

from ckptstore_bench.hub.measuring import ENDPOINT, FOLDER, MOUNT, SERVER, Measured
from ckptstore_bench.measure import figure
from ckptstore_bench.report import Bars, Column, Report, Table, samples

LIMIT_SAID = "the same calls on the model's plain files on the same disk, in the same round: from a static file server, and from a folder."
ENDPOINT_BOUND, MOUNT_BOUND = 1.2, 1.1
WAYS = (ENDPOINT, SERVER, MOUNT, FOLDER)


def build(measured: Measured, *, rounds: int, tiers: list[dict[str, Any]], machine: dict[str, Any]) -> Report:
    seconds = measured.rounds.seconds
    table = Table(
        title="A hot model",
        columns=(
            Column(key="what", heading="what"),
            Column(key="taken_s", heading="seconds", kind="seconds"),
            Column(key="speed", heading="speed", kind="bytes_per_s"),
        ),
        rows=tuple(
            {"what": way, "taken_s": samples(seconds[way]), "speed": samples(measured.model_bytes / taken_s for taken_s in seconds[way])}
            for way in WAYS
        ),
    )
    ratio = measured.rounds.ratio
    what = "snapshot_download of a hot model, to the same from a static file server"
    figures = figure("hub.snapshot", what, ratio(ENDPOINT, SERVER), ENDPOINT_BOUND, at_least=False)
    what = "from_pretrained of a hot model through the mount, to the same from a local folder"
    figures += figure("hub.mount", what, ratio(MOUNT, FOLDER), MOUNT_BOUND, at_least=False)
    return Report(
        command="bench hub",
        title="A hot model in a program of the Hugging Face world",
        limit=LIMIT_SAID,
        rounds=rounds,
        settings={"size_bytes": measured.model_bytes, "tiers": tiers},
        machine=machine,
        tables=(table,),
        figures=tuple(figures),
        plots=(Bars(title="Seconds", kind="seconds", categories=WAYS, series={"seconds": tuple(samples(seconds[way]) for way in WAYS)}),),
    )
