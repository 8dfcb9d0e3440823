"""What was found about mounts, as tables, figures and bars."""

from __future__ import annotations

from typing import Any

from ckptstore_bench.measure import figure
from ckptstore_bench.mount.measuring import DISK, DOWNLOAD, READERS, STORE, Results
from ckptstore_bench.report import Bars, Column, Figure, Report, Table, samples

COLUMNS = (Column(key="who", heading="where"),)
LIMIT_SAID = (
    "the same file on the local disk, read in the same way in the same round. "
    "The S3 server runs on this machine, and takes its share of it."
)
#: measure → bound against the disk (speed), and against the fastest of the others
SPEEDS = {
    "hot sequential": (0.95, 2.0),
    "hot mmap": (0.95, 2.0),
    "dropped sequential": (None, 3.0),
    "dropped mmap": (None, 3.0),
    "cold sequential": (None, 1.5),
}
OF_A_DOWNLOAD = 0.6
SENT = 1.005  # once, and the heads of the answers
SLOWER_THAN_DISK, OPEN_S, FIRST_BYTE_EXTRA_S, FIRST_BYTE = 3.0, 200e-6, 0.005, 1.3


def build(results: Results, *, rounds: int, settings: dict[str, Any], machine: dict[str, Any]) -> Report:
    speeds = [name for name in (*SPEEDS, DOWNLOAD) if name in results.seconds]
    who = list(dict.fromkeys(name for measure in speeds for name in results.seconds[measure].seconds))
    reading = Table(
        title="Reading one file",
        columns=(*COLUMNS, *(Column(key=name, heading=name, kind="bytes_per_s") for name in speeds), Column(key="why_not", heading="")),
        rows=(
            *({"who": name} | {measure: samples(_speeds(results, measure, name)) for measure in speeds} for name in who),
            *({"who": name, "why_not": why} for name, why in results.why_not.items()),
        ),
    )
    looks = [name for name in ("stat", "ls", "open+close", "cold first byte") if name in results.seconds]
    looking = Table(
        title="Looking and opening",
        columns=(*COLUMNS, *(Column(key=name, heading=name, kind="seconds") for name in looks)),
        rows=tuple(
            {"who": name} | {look: samples(results.seconds[look].seconds.get(name, ())) for look in looks}
            for name in (*who, "get")
            if any(name in results.seconds[look].seconds for look in looks)
        ),
    )
    bars = {measure: tuple(samples(_speeds(results, measure, name)) for name in who) for measure in speeds}
    return Report(
        command="bench mount",
        title="Files through the mount",
        limit=LIMIT_SAID,
        rounds=rounds,
        settings=settings,
        machine=machine,
        tables=(reading, looking),
        figures=tuple(figures(results)),
        plots=(Bars(title="Reading one file", kind="bytes_per_s", categories=tuple(who), series=bars),),
    )


def _speeds(results: Results, measure: str, name: str) -> list[float]:
    return [results.size_bytes / seconds for seconds in results.seconds[measure].seconds.get(name, ())]


def figures(results: Results) -> list[Figure]:
    """Ratios of each round: speeds against the disk and the fastest peer, costs against the disk."""
    found: list[Figure] = []
    for measure, (to_disk, to_peers) in SPEEDS.items():
        rounds = results.seconds.get(measure)
        if rounds is None:
            continue
        key = measure.replace(" ", ".")
        if to_disk is not None:
            found += figure(f"mount.{key}.disk", f"{measure}: speed through the mount, to the disk's", rounds.ratio(DISK, STORE), to_disk)
        peers = [name for name in rounds.seconds if name not in (DISK, STORE) and name not in results.why_not]
        if peers:
            what = f"{measure}: speed through the mount, to the fastest other mount's"
            found += figure(f"mount.{key}.peers", what, rounds.best_ratio(STORE, *peers), to_peers)
    if (clients := results.seconds.get(DOWNLOAD)) is not None:
        ours = results.seconds["cold sequential"].seconds[STORE]
        ran = [name for name in clients.seconds if name not in results.why_not]
        ratios = [min(row) / own for own, *row in zip(ours, *(clients.seconds[name] for name in ran), strict=True)]
        what = "cold sequential: speed through the mount, to the fastest parallel client's onto the disk"
        found += figure("mount.cold.sequential.clients", what, ratios, OF_A_DOWNLOAD)
    if results.sent:
        what = f"bytes that the server sent to {READERS} readers of one cold file at once, to the file's"
        found += figure("mount.origin", what, results.sent, SENT, at_least=False)
    for look in ("stat", "ls"):
        ratios = results.seconds[look].ratio(STORE, DISK)
        found += figure(f"mount.{look}", f"{look}: seconds through the mount, to the disk's", ratios, SLOWER_THAN_DISK, at_least=False)
    opens = [seconds * 1e6 for seconds in results.seconds["open+close"].seconds[STORE]]
    found += figure("mount.open", "open and close of a hot file", opens, OPEN_S * 1e6, at_least=False, unit="µs")
    first = results.seconds.get("cold first byte")
    if first is not None:
        ratios = [(ours - FIRST_BYTE_EXTRA_S) / get for ours, get in zip(first.seconds[STORE], first.seconds["get"], strict=False)]
        what = "first byte of a cold file, less 5 ms, to a GET of one block"
        found += figure("mount.first_byte", what, ratios, FIRST_BYTE, at_least=False)
    return found
