"""What does a measurement say? One value that every `ckptstore bench` command returns, and all outputs are made of.

A report names the limit that it is held against, the settings and the machine, so that a number never travels without them. Tables hold raw
numbers in base units (seconds, bytes, bytes per second); `terminal` and `page` write them for people. The JSON is this model as pydantic
writes it, and reads back as the same value; `schema_version` changes when a field changes its meaning.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field, field_serializer

SCHEMA_VERSION = 1

#: What a number is, and so how it is written. `ratio` is a factor (1.0 = equal), `percent` is already times a hundred.
Kind = Literal["text", "seconds", "bytes", "bytes_per_s", "seconds_per_gb", "ratio", "percent", "count", "per_s"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Samples(BaseModel):
    """One number a round: the table shows the median and the range, the JSON all."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    values: tuple[float, ...] = Field(min_length=1)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def low(self) -> float:
        return min(self.values)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def high(self) -> float:
        return max(self.values)


def samples(values: Iterable[float]) -> Samples | None:
    """None for no values: an empty cell."""
    found = tuple(float(value) for value in values)
    return Samples(values=found) if found else None


Cell = str | int | float | Samples | None


class Column(_Value):
    """`key` names the field in the JSON, its unit last (`stall_s`); `heading` is what people read."""

    key: str
    heading: str
    kind: Kind = "text"


class Table(_Value):
    """Rows are keyed by column; what a row lacks is an empty cell."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[dict[str, Cell], ...]
    note: str = ""


class Figure(_Value):
    """A number that is held against a bound. `values` has one a round, `value` is their median."""

    name: str
    what: str
    values: tuple[float, ...] = Field(min_length=1)
    bound: float | None = None
    at_least: bool = True
    unit: str = "×"

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        if self.bound is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @field_serializer("values")
    def _plain(self, values: tuple[float, ...]) -> list[float | None]:
        return [value if math.isfinite(value) else None for value in values]


class Bars(_Value):
    """Groups of bars: one group a category, one bar a series. A cell of Samples gets a whisker over its range."""

    plot: Literal["bars"] = "bars"
    title: str
    kind: Kind
    categories: tuple[str, ...]
    series: dict[str, tuple[Cell, ...]]


class Lines(_Value):
    """One line a series over a common or own x. `log_x`, `log_y` for block sizes, intervals, latencies."""

    plot: Literal["lines"] = "lines"
    title: str
    x_title: str
    x_kind: Kind
    y_title: str
    y_kind: Kind
    series: dict[str, tuple[tuple[float, float], ...]]
    log_x: bool = False
    log_y: bool = False


class Heatmap(_Value):
    """`values[row][column]`, None where nothing was measured."""

    plot: Literal["heatmap"] = "heatmap"
    title: str
    kind: Kind
    x_title: str
    columns: tuple[str, ...]
    y_title: str
    rows: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


Plot = Annotated[Bars | Lines | Heatmap, Field(discriminator="plot")]


class Report(_Value):
    """`limit` is a sentence: what bounds these numbers, and how that was measured. `machine` is what `machine.describe` found."""

    schema_version: Literal[1] = 1
    command: str
    title: str
    limit: str
    rounds: int
    settings: dict[str, Any]
    machine: dict[str, Any]
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    plots: tuple[Plot, ...] = ()
    notes: tuple[str, ...] = ()
