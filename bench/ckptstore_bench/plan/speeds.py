"""How fast is each tier: given by hand, or measured by `bench tiers`?

A speed is what one node gets. A tier that all nodes share may have a limit for all of them together (`in_all`); without one, it is taken to
grow with the nodes, which no real one does for long: say so where you know better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from ckptstore.config import parse_size
from ckptstore.errors import InvalidInput
from ckptstore_bench.report import Cell, Report, Samples

MEMORY = "memory"
#: Columns of the table in which `bench tiers` says what one node gets of each tier at its best; `read_measured` finds it by them.
SPEED_COLUMNS = frozenset({"tier", "shared", "write_bytes_per_s", "read_bytes_per_s"})
#: What one node is taken to get, at most, of a tier of which only the whole is known: the 100 Gbit/s of its network.
NODE_LINK_BYTES_PER_S = 12.5e9


@dataclass(frozen=True)
class Speed:
    """Bytes per second."""

    write: float
    read: float

    def __post_init__(self) -> None:
        if not (self.write > 0 and self.read > 0):
            raise InvalidInput("a speed is above 0", operation="plan")


@dataclass(frozen=True)
class TierSpeed:
    name: str
    node: Speed
    shared: bool = False
    in_all: Speed | None = None

    def write(self, nodes: int) -> float:
        """What each of so many nodes gets when all write at once."""
        return min(self.node.write, self.in_all.write / nodes) if self.in_all else self.node.write

    def read(self, nodes: int) -> float:
        return min(self.node.read, self.in_all.read / nodes) if self.in_all else self.node.read


def parse_speed(text: str) -> Speed:
    """`6GB/s,3.4GB/s`: write, read; one alone stands for both."""
    parts = text.split(",")
    try:
        if len(parts) > 2:
            raise ValueError("a speed is WRITE or WRITE,READ")
        write, read = parse_size(parts[0]), parse_size(parts[-1])
    except ValueError as error:
        raise InvalidInput(str(error), operation="read speed", subject=text, hint="for example 6GB/s,3.4GB/s") from error
    return Speed(write, read)


def parse_tiers(nodes: Sequence[str], shared: Sequence[str], measured: tuple[TierSpeed, ...] = ()) -> tuple[TierSpeed, ...]:
    """Tiers of `NAME=WRITE[,READ]`, over what was measured.

    `nodes` says what one node gets of a tier, `shared` what all nodes get of it together, and so that they share it. The order of the tiers
    is that in which they are first named: what was measured first, then nodes', then shared ones.
    """
    tiers = {tier.name: tier for tier in measured}
    for name, speed in map(_named, nodes):
        tiers[name] = replace(tiers[name], node=speed) if name in tiers else TierSpeed(name, speed)
    for name, speed in map(_named, shared):
        if name == MEMORY:
            raise InvalidInput("memory is each node's own", operation="read speed", subject=name)
        link = Speed(min(speed.write, NODE_LINK_BYTES_PER_S), min(speed.read, NODE_LINK_BYTES_PER_S))
        tiers[name] = replace(tiers.get(name, TierSpeed(name, link)), shared=True, in_all=speed)
    return tuple(tiers.values())


def _named(text: str) -> tuple[str, Speed]:
    name, separator, speed = text.partition("=")
    if not name or not separator:
        hint = "for example nvme=6GB/s,3.4GB/s"
        raise InvalidInput("a tier's speed is NAME=WRITE[,READ]", operation="read speed", subject=text, hint=hint)
    return name.strip(), parse_speed(speed)


def read_measured(file: Path) -> tuple[TierSpeed, ...]:
    """The tiers of a JSON file that `bench tiers` wrote, each at its best setting."""
    try:
        report = Report.model_validate_json(file.read_bytes())
        rows = next(table.rows for table in report.tables if {column.key for column in table.columns} >= SPEED_COLUMNS)
        return tuple(_measured(row) for row in rows)
    except OSError as error:
        raise InvalidInput(error.strerror or "unreadable", operation="read measurements", subject=str(file)) from error
    except (ValidationError, StopIteration) as error:
        why, hint = "this is no JSON file of `ckptstore bench tiers`", "write one with `bench tiers --json FILE`"
        raise InvalidInput(why, operation="read measurements", subject=str(file), hint=hint) from error


def _measured(row: dict[str, Cell]) -> TierSpeed:
    speed = Speed(_median(row["write_bytes_per_s"]), _median(row["read_bytes_per_s"]))
    return TierSpeed(str(row["tier"]), speed, shared=row["shared"] == "yes")


def _median(cell: Cell) -> float:
    return cell.median if isinstance(cell, Samples) else float(cell or 0)
