"""What was found about clients of S3, as tables, figures and bars."""

from __future__ import annotations

from typing import Any

from ckptstore_bench.report import Bars, Cell, Column, Report, Table, samples
from ckptstore_bench.s3.clients import CLIENTS, LIMIT
from ckptstore_bench.s3.measuring import Results, figures
from ckptstore_bench.s3.worker import DIRECTIONS

COLUMNS = (
    Column(key="client", heading="client"),
    Column(key="bytes_per_s", heading="speed", kind="bytes_per_s"),
    Column(key="cpu_s_per_gb", heading="CPU s/GB", kind="seconds_per_gb"),
    Column(key="why_not", heading=""),
)
HEADINGS = {"get": "server → memory", "put": "file → server"}
LIMIT_SAID = (
    f"`{LIMIT}`: presigned requests over plain connections, received straight into place, without checksums or retries, in the same run. "
    "Server and clients share this machine's processors where the endpoint is local."
)


def build(results: Results, *, rounds: int, settings: dict[str, Any], machine: dict[str, Any]) -> Report:
    clients = [name for name in CLIENTS if name in settings["clients"]]
    tables = []
    for direction in DIRECTIONS:
        rows: list[dict[str, Cell]] = [
            {
                "client": name,
                "bytes_per_s": samples(results.rates(direction, name)),
                "cpu_s_per_gb": samples(results.cpu_s_per_gb(direction, name)),
                "why_not": results.why_not.get((direction, name), ""),
            }
            for name in clients
        ]
        tables.append(Table(title=HEADINGS[direction], columns=COLUMNS, rows=tuple(rows)))
    ran = tuple(name for name in clients if all(results.rates(direction, name) for direction in DIRECTIONS))
    speeds = {HEADINGS[way]: tuple(samples(results.rates(way, name)) for name in ran) for way in DIRECTIONS}
    costs = {HEADINGS[way]: tuple(samples(results.cpu_s_per_gb(way, name)) for name in ran) for way in DIRECTIONS}
    return Report(
        command="bench s3",
        title="Clients of S3",
        limit=LIMIT_SAID,
        rounds=rounds,
        settings=settings | {"server": results.details},
        machine=machine,
        tables=tuple(tables),
        figures=tuple(figures(results)),
        plots=(
            Bars(title="Speed", kind="bytes_per_s", categories=ran, series=speeds),
            Bars(title="CPU seconds of the client a GB", kind="seconds_per_gb", categories=ran, series=costs),
        ),
    )
