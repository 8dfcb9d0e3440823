"""What is a figure, and how is it made of rounds?

Speeds of a machine drift, so a figure is never a speed: contenders take turns within each round, a figure is a ratio of two of them,
formed in every round, and its value is the median over the rounds. The raw seconds of every round are kept for the JSON.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ckptstore_bench.report import Figure


@dataclass
class Rounds:
    """Seconds of each contender, one a round. Contender names are what the table calls them."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, contender: str, seconds: float) -> None:
        self.seconds.setdefault(contender, []).append(seconds)

    @contextmanager
    def timed(self, contender: str) -> Iterator[None]:
        began_s = time.perf_counter()
        yield
        self.add(contender, time.perf_counter() - began_s)

    def ratio(self, above: str, below: str) -> list[float]:
        """above/below, round by round; nothing if one of them could not run."""
        return [a / b for a, b in zip(self.seconds.get(above, []), self.seconds.get(below, []), strict=False)]

    def best_ratio(self, below: str, *above: str) -> list[float]:
        """The fastest of `above` that could run, in each round, over `below`."""
        fastest = [min(row) for row in zip(*(self.seconds[name] for name in above if name in self.seconds), strict=True)]
        return [a / b for a, b in zip(fastest, self.seconds.get(below, []), strict=False)]


@dataclass
class Result:
    """What one family of figures gives: the figures, and the seconds behind them."""

    figures: list[Figure]
    rounds: Rounds


def figure(name: str, what: str, values: list[float], bound: float | None, *, at_least: bool = True, unit: str = "×") -> list[Figure]:
    """The figure, or none where a contender that it needs could not run."""
    return [Figure(name=name, what=what, values=tuple(values), bound=bound, at_least=at_least, unit=unit)] if values else []
