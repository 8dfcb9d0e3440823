"""What is a figure, and how is it made of rounds?

Speeds of a machine drift, so a figure is never a speed: contenders take turns within each round, a figure is a ratio of two of them,
formed in every round, and its value is the median over the rounds. The raw seconds of every round are kept for the JSON.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

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
        """above/below, round by round."""
        return [a / b for a, b in zip(self.seconds[above], self.seconds[below], strict=True)]

    def best_ratio(self, below: str, *above: str) -> list[float]:
        """The fastest of `above` in each round, over `below`."""
        fastest = [min(row) for row in zip(*(self.seconds[name] for name in above), strict=True)]
        return [a / b for a, b in zip(fastest, self.seconds[below], strict=True)]


@dataclass
class Result:
    """What one family of figures gives: the figures, the seconds behind them, and facts worth keeping."""

    figures: list[Figure]
    rounds: Rounds
    facts: dict[str, Any] = field(default_factory=dict)


def figure(name: str, what: str, values: list[float], bound: float | None, *, at_least: bool = True, unit: str = "×") -> Figure:
    return Figure(name=name, what=what, values=tuple(values), bound=bound, at_least=at_least, unit=unit)
