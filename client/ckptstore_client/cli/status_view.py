"""What does `status` look like? One screen: the daemon, its tiers, its memory, the saves under way, and the last errors.

Every fact is in words (`DOWN`, not a colour alone), and the columns fit 80 characters, so that it reads the same in a log, a pipe and a
terminal. Rendering is pure: a Status in, something that rich prints out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ckptstore.wire import MemoryStatus, Status, TierStatus
from ckptstore_client.cli.cache_view import render_cache
from ckptstore_client.cli.terminal import age, counted, size, visible

#: Errors that fit a screen; `--json` has all that the daemon remembers.
SHOWN_ERRORS = 5
SHOWN_ATTEMPTS = 10
_STATE_STYLE = {"ok": "green", "full": "bold yellow", "down": "bold red"}


def render_status(status: Status, *, now_s: float | None = None) -> RenderableType:
    """The whole screen. `now_s` is what ages are counted from; the present, unless given."""
    parts: list[RenderableType] = [_headline(status), Text(), _tiers(status.tiers)]
    parts += [note for tier in status.tiers if (note := _tier_note(tier)) is not None]
    parts += [Text(), *_memory(status.memory)]
    if status.cache is not None and status.cache.state != "off":
        parts.append(render_cache(status.cache))
    if status.attempts:
        parts += [Text(), _attempts(status)]
    if status.errors:
        parts += [Text(), _errors(status, time.time() if now_s is None else now_s)]
    return Group(*parts)


def state_of(status: Status) -> tuple[str, str]:
    """The daemon's state in one word, and its style."""
    if status.stopping:
        return "STOPPING", "bold yellow"
    states = {tier.state for tier in status.tiers}
    alarms = {tier.alarm.kind for tier in status.tiers if tier.alarm is not None}
    if "down" in states:
        return "TIER DOWN", "bold red"
    if "full" in states:
        return "TIER FULL", "bold yellow"
    if alarms:
        return ("DRAIN LATE" if "late" in alarms else "DRAIN AT RISK"), "bold yellow"
    return "serving", "green"


def table(*columns: str, right: Iterable[str] = (), fold: Iterable[str] = ()) -> Table:
    """A plain table: headings, no lines. `right` aligns numbers; `fold` names the columns that may take several lines."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(
            column, justify="right" if column in right else "left", no_wrap=column not in fold, overflow="fold", min_width=len(column)
        )
    return made


def _headline(status: Status) -> RenderableType:
    state, style = state_of(status)
    hello = status.hello
    first = Text.assemble("ckptstore ", visible(hello.version), "  ", (state, style), f"  up {age(status.uptime_s)}, pid {hello.pid}")
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("home", Text(visible(status.home)))
    facts.add_row("store", Text(visible(hello.store)))
    facts.add_row("catalog", Text(visible(status.catalog)))
    counts = [counted(number, visible(name.replace("_", " "))) for name, number in status.counts.items() if number]
    facts.add_row("holds", Text(", ".join(counts) or "nothing yet"))
    facts.add_row("clients", Text(f"{status.sessions} connected; the daemon itself uses {size(status.resident_bytes)}"))
    return Group(first, facts)


def _tiers(tiers: list[TierStatus]) -> Table:
    headings = ("TIER", "KIND", "STATE", "USED", "LIMIT", "RATE", "WAITING", "OLDEST")
    shown = table(*headings, right=("USED", "LIMIT", "RATE"), fold=("TIER", "WAITING", "OLDEST"))
    for tier in tiers:
        waiting = f"{tier.waiting_objects:,} ({size(tier.waiting_bytes)})" if tier.waiting_objects else "-"
        state = tier.state if tier.state == "ok" else tier.state.upper()
        shown.add_row(
            Text(visible(tier.name)),
            Text(visible(tier.kind)),
            Text(state, style=_STATE_STYLE[tier.state]),
            _used(tier),
            size(tier.limit_bytes) if tier.limit_bytes is not None else "-",
            f"{size(tier.rate_bytes_s)}/s",
            waiting,
            age(tier.oldest_waiting_s) if tier.waiting_objects else "-",
        )
    return shown


def _used(tier: TierStatus) -> str:
    if not tier.limit_bytes:
        return size(tier.used_bytes)
    return f"{size(tier.used_bytes)} {100 * tier.used_bytes // tier.limit_bytes}%"


def _tier_note(tier: TierStatus) -> Text | None:
    """Why a tier is not well, that it is late, or what its drains met last."""
    notes = [visible(note) for note in (tier.alarm and tier.alarm.what, tier.last_error) if note]
    return Text.assemble((f"{visible(tier.name)}: ", "bold"), "; ".join(notes), overflow="fold") if notes else None


def _memory(memory: MemoryStatus) -> list[RenderableType]:
    line = Text.assemble(
        ("MEMORY", "bold"),
        f"  {counted(memory.segments, 'segments')}: {size(memory.lent_bytes)} lent, {size(memory.held_bytes)} held,"
        f" {size(memory.replica_bytes)} replicas, {size(memory.free_bytes)} free; limit {size(memory.limit_bytes)}",
    )
    if memory.dies_with_job is None:
        return [line]
    return [line, Text(f"advice: {visible(memory.dies_with_job)}", style="yellow")]


def _attempts(status: Status) -> RenderableType:
    numbers = ("JOINED", "HANDED OVER", "STORED")
    shown = table("SAVE UNDER WAY", "STATE", *numbers, "AGE", right=numbers, fold=("SAVE UNDER WAY",))
    for attempt in status.attempts[:SHOWN_ATTEMPTS]:
        shown.add_row(
            Text(visible(attempt.path)),
            Text(visible(attempt.state)),
            f"{attempt.joined}/{attempt.world_size}",
            f"{attempt.snapshots}/{attempt.world_size}",
            str(attempt.stored),
            age(attempt.age_s),
        )
    more = max(status.counts.get("open_attempts", 0), len(status.attempts)) - SHOWN_ATTEMPTS
    return Group(shown, Text(f"and {more} more")) if more > 0 else shown


def _errors(status: Status, now_s: float) -> RenderableType:
    shown = table("AGO", "LAST ERRORS", right=("AGO",), fold=("LAST ERRORS",))
    for error in sorted(status.errors, key=lambda line: line.at_s)[-SHOWN_ERRORS:]:
        shown.add_row(age(now_s - error.at_s), Text.assemble((f"{visible(error.where)}: ", "bold"), visible(error.what)))
    return shown
