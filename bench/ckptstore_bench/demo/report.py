"""How does the demo tell what happened? A line for each moment as it comes; at the end a timeline, a table of the saves, and the claims."""

from __future__ import annotations

import time

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ckptstore_bench.demo.record import STAGES, Moment, Record, Save

COLUMNS = 84
_COLOURS = {"trainer": "cyan", "daemon": "magenta", "nvme": "yellow", "pfs": "blue", "object": "green", "demo": "bold"}


def say(console: Console, moment: Moment) -> None:
    line = Text(f"{moment.at_s:6.1f} s  ")
    line.append(f"{moment.actor:8}", style=_COLOURS.get(moment.actor, ""))
    line.append(moment.text, style="bold" if moment.actor == "demo" else "")
    console.print(line, highlight=False)


def timeline(record: Record) -> Table:
    """A lane for each process and tier: bars are lives, ✗ a SIGKILL, ■ a stop, ● a checkpoint that arrived, ∅ a loss of everything."""
    total_s = time.monotonic() - record.began_s
    title = f"Timeline: {total_s:.0f} s, one column is {total_s / COLUMNS:.1f} s"
    table = Table(title=title, box=None, show_header=False, title_justify="left")
    table.add_column(justify="right")
    table.add_column(no_wrap=True)

    def column(at_s: float) -> int:
        return min(COLUMNS - 1, int((at_s - record.began_s) / total_s * COLUMNS))

    for actor in ("trainer", "daemon"):
        lane = [" "] * COLUMNS
        for span in record.spans:
            if span.actor == actor:
                first, last = column(span.began_s), column(span.ended_s or time.monotonic())
                lane[first + 1 : last] = "━" * (last - first - 1)
                lane[last] = span.end_mark
        table.add_row(actor, Text("".join(lane), style=_COLOURS[actor]))
    for tier in STAGES[1:]:
        lane = ["·"] * COLUMNS
        for save in record.saves:
            if tier in save.reached_s:
                lane[column(save.began_s + save.reached_s[tier])] = "●"
        for lost, at_s in record.losses:
            if lost == tier:
                lane[column(at_s)] = "∅"
        table.add_row(tier, Text("".join(lane), style=_COLOURS[tier]))
    table.add_row("", Text("━ alive  ✗ SIGKILL  ■ ended by itself or told to stop  ● a checkpoint arrived  ∅ everything lost", style="dim"))
    return table


def saves_table(record: Record) -> Table:
    title = "Saves: the stall of training, and the time from the call until the checkpoint was in each place"
    table = Table(title=title, title_justify="left")
    for heading in ("life", "step", "stall", *STAGES, ""):
        table.add_column(heading, justify="left" if heading in ("life", "") else "right")
    for save in record.saves:
        stall = "" if save.stall_s is None else f"{save.stall_s * 1e3:.1f} ms"
        table.add_row(save.life, str(save.step), stall, *(_when(save, stage) for stage in STAGES), save.fate)
    table.caption = "~ seen by the demo after a restart of the daemon, which no longer knows when exactly"
    table.caption_justify = "left"
    return table


def _when(save: Save, stage: str) -> str:
    seconds = save.reached_s.get(stage)
    if seconds is None:
        return "-"
    text = f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
    return f"~{text}" if stage in save.seen else text


def claims_list(claims: list[str]) -> Text:
    text = Text()
    for claim in claims:
        text.append("✓ ", style="bold green")
        text.append(claim + "\n")
    return text
