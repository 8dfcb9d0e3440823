"""A report on the terminal: rich tables, widths as the terminal has them. Machine and settings stand in the files, with one line here."""

from __future__ import annotations

import json

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from ckptstore_bench.numbers import written
from ckptstore_bench.report import Figure, Report, Table


def render(report: Report) -> RenderableType:
    parts: list[RenderableType] = [Text(report.title, style="bold"), Text(under_title(report), style="dim")]
    parts += [_table(table) for table in report.tables]
    if report.figures:
        parts.append(_figures(report.figures))
    parts.append(Text(f"Held against: {report.limit}", style="dim"))
    if report.notes:
        parts.append(Text("\n".join(f"· {note}" for note in report.notes)))
    return Group(*(line for part in parts for line in (part, Text(""))))


def under_title(report: Report) -> str:
    """On what and when, in a line."""
    machine = report.machine
    known = [machine.get("cpu"), f"{machine.get('cores')} cores", f"Linux {machine.get('kernel')}", machine.get("file_system")]
    return " · ".join(str(part) for part in (*known, f"{report.rounds} rounds", machine.get("date")) if part)


def settings_lines(settings: dict[str, object]) -> list[tuple[str, str]]:
    return [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)) for name, value in settings.items()]


def figure_cells(figure: Figure) -> tuple[str, str, str, str, str, str]:
    bound = "" if figure.bound is None else f"{'≥' if figure.at_least else '≤'} {figure.bound:g}"
    verdict = {True: "✓", False: "✗", None: ""}[figure.reached]
    spread = f"{min(figure.values):.2f}–{max(figure.values):.2f}" if len(figure.values) > 1 else ""
    return figure.name, figure.what, f"{figure.value:.2f} {figure.unit}", spread, bound, verdict


FIGURE_HEADINGS = ("figure", "what", "value", "range", "to reach", "")


def _table(table: Table) -> RichTable:
    shown = RichTable(title=table.title, title_justify="left", caption=table.note or None, caption_justify="left")
    for column in table.columns:
        shown.add_column(column.heading, justify="left" if column.kind == "text" else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(written(row.get(column.key), column.kind)) for column in table.columns))
    return shown


def _figures(figures: tuple[Figure, ...]) -> RichTable:
    shown = RichTable(title="Figures: medians over the rounds", title_justify="left")
    for heading in FIGURE_HEADINGS:
        shown.add_column(heading, justify="right" if heading in ("value", "range", "to reach") else "left")
    for figure in figures:
        shown.add_row(*(Text(cell) for cell in figure_cells(figure)))
    return shown
