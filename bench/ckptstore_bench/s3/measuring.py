"""Which client of S3 moves an object fastest, and for how many CPU seconds a GB? All of them, in turns, on one endpoint.

Each round, every client gets the same object and puts the same file, in an order that moves on by one; the first round is not counted.
Everything lies below a prefix of this run's own, which goes with it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ckptstore.config import TierSettings
from ckptstore_bench.report import Figure
from ckptstore_bench.running import Steps
from ckptstore_bench.s3.clients import LIMIT, STORE, Place
from ckptstore_bench.s3.worker import DIRECTIONS, Direction, Turn, Worker
from ckptstore_bench.scratch import remove_objects
from ckptstore_tiers.checksums import BlockDigests

GB = 1e9
GET_FASTER, CPU_S_PER_GB = 1.3, 0.45


@dataclass
class Results:
    size_bytes: int
    turns: dict[tuple[Direction, str], list[Turn]] = field(default_factory=dict)
    why_not: dict[tuple[Direction, str], str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)

    def rates(self, direction: Direction, client: str) -> list[float]:
        return [self.size_bytes / turn.seconds for turn in self.turns.get((direction, client), ())]

    def cpu_s_per_gb(self, direction: Direction, client: str) -> list[float]:
        return [turn.cpu_s / self.size_bytes * GB for turn in self.turns.get((direction, client), ())]


def measure(
    settings: TierSettings, clients: Sequence[str], folder: Path, size_bytes: int, part_bytes: int, parallel: int, rounds: int, steps: Steps
) -> Results:
    """`settings` are an S3 tier's; `folder` is where the file that is put lies. Clients that fail say why, and take no more turns."""
    options = settings.options | {"part_size": part_bytes, "parallel_start": parallel}
    url = f"{(settings.url or '').rstrip('/')}/bench-{secrets.token_hex(4)}"
    own = settings.model_copy(update={"url": url, "options": options, "capacity": None})
    place, results = Place(own, part_bytes, parallel), Results(size_bytes)
    steps.plan((rounds + 1) * len(clients) * len(DIRECTIONS))
    with _file(folder, size_bytes) as (file, root), ExitStack() as stack:
        stack.callback(remove_objects, own, folder)
        workers = [stack.enter_context(Worker(client, place, size_bytes)) for client in clients]
        results.details = _prepare(own, file)
        for number in range(rounds + 1):
            for worker in workers[number % len(workers) :] + workers[: number % len(workers)]:
                for direction in DIRECTIONS:
                    steps.next(f"{worker.client} {direction}")
                    name = "objects/got" if direction == "get" else f"objects/{worker.client}-{number}"
                    turn = worker.turn(direction, name, file, root)
                    if turn is not None and number > 0:
                        results.turns.setdefault((direction, worker.client), []).append(turn)
            _forget(own, workers, number)
        results.why_not = {(way, worker.client): why for worker in workers for way, why in worker.why_not.items()}
    return results


def _prepare(own: TierSettings, file: Path) -> dict[str, str]:
    """Put what all clients get; what our own probe says of the server."""
    from ckptstore_tiers.s3_tier import S3Tier
    from ckptstore_tiers.sources import FileSource

    tier = S3Tier(own)
    with file.open("rb") as opened:
        source = FileSource(opened.fileno(), file.stat().st_size)
        tier.put("objects/got", source)
        source.close()
    details = dict(tier.facts.details)
    tier.close()
    return details


def _forget(own: TierSettings, workers: Sequence[Worker], number: int) -> None:
    """What was put in this round; a server in memory would be full otherwise."""
    from ckptstore_tiers.s3_tier import S3Tier

    tier = S3Tier(own)
    for worker in workers:
        tier.delete(f"objects/{worker.client}-{number}")
    tier.close()


@contextmanager
def _file(folder: Path, size_bytes: int) -> Iterator[tuple[Path, str]]:
    """A file of random bytes, fsynced, and the digest of its content."""
    data = np.random.default_rng(0).integers(0, 256, size_bytes, dtype=np.uint8).data
    file = folder / "object"
    try:
        with file.open("wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        yield file, BlockDigests.of(data).root
    finally:
        file.unlink(missing_ok=True)


def figures(results: Results) -> list[Figure]:
    """The store against the fastest library of each round, and its CPU seconds."""
    found = []
    for direction, bound in (("get", GET_FASTER), ("put", 1.0)):
        ours = results.rates(direction, STORE)  # type: ignore[arg-type]
        others = [results.rates(direction, client) for way, client in results.turns if way == direction and client not in (STORE, LIMIT)]
        whole = [rates for rates in others if len(rates) == len(ours)]
        if ours and whole:
            ratios = [mine / max(row) for mine, row in zip(ours, zip(*whole, strict=True), strict=True)]
            what = f"{direction}: the store's speed, to that of the fastest library in each round"
            found.append(Figure(name=f"s3.{direction}.libraries", what=what, values=tuple(ratios), bound=bound))
        if ours:
            cpu = tuple(results.cpu_s_per_gb(direction, STORE))  # type: ignore[arg-type]
            what = f"{direction}: CPU seconds of the store's client process a GB"
            found.append(Figure(name=f"s3.{direction}.cpu", what=what, values=cpu, bound=CPU_S_PER_GB, at_least=False, unit=" s/GB"))
    return found
