"""Draws the plots of a report with plotly. Axes carry units: seconds with SI prefixes, rates in GB/s, sizes in MiB."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from ckptstore_bench.numbers import written
from ckptstore_bench.report import Bars, Cell, Heatmap, Kind, Lines, Samples

#: Told apart in print and by colour-blind readers (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442", "#000000")
#: kind → (factor to what the axis shows, its unit)
_AXES: dict[Kind, tuple[float, str]] = {
    "bytes_per_s": (1e-9, "GB/s"),
    "bytes": (2.0**-20, "MiB"),
    "seconds_per_gb": (1.0, "s/GB"),
    "percent": (1.0, "%"),
    "ratio": (1.0, "×"),
    "per_s": (1.0, "1/s"),
}


def draw(plot: Bars | Lines | Heatmap) -> Any:
    """A plotly Figure."""
    figure = {"bars": _bars, "lines": _lines, "heatmap": _heatmap}[plot.plot](plot)  # type: ignore[operator]
    figure.update_layout(
        title={"text": plot.title, "font": {"size": 16}},
        template="plotly_white",
        colorway=list(COLOURS),
        font={"family": "system-ui, sans-serif", "size": 13},
        margin={"l": 80, "r": 20, "t": 50, "b": 60},
        legend={"orientation": "h", "y": -0.2},
        height=420,
    )
    return figure


def _bars(plot: Bars) -> Any:
    figure = go.Figure()
    factor, _ = _AXES.get(plot.kind, (1.0, ""))
    for name, cells in plot.series.items():
        spreads = [_spread(cell, factor) for cell in cells]
        up, down = [high for _, high, _ in spreads], [low for _, _, low in spreads]
        whiskers = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "visible": any(up) or any(down)}
        texts = [written(cell, plot.kind) for cell in cells]
        figure.add_bar(
            name=name, x=list(plot.categories), y=[y for y, _, _ in spreads], error_y=whiskers, hovertext=texts, hoverinfo="text+name+x"
        )
    figure.update_layout(barmode="group", yaxis=_axis("", plot.kind), yaxis_rangemode="tozero")
    return figure


def _lines(plot: Lines) -> Any:
    figure = go.Figure()
    x_factor, y_factor = _AXES.get(plot.x_kind, (1.0, ""))[0], _AXES.get(plot.y_kind, (1.0, ""))[0]
    for name, points in plot.series.items():
        mode = "lines+markers" if len(points) <= 200 else "lines"
        figure.add_scatter(name=name, x=[x * x_factor for x, _ in points], y=[y * y_factor for _, y in points], mode=mode)
    figure.update_layout(
        xaxis={**_axis(plot.x_title, plot.x_kind), "type": "log" if plot.log_x else "linear"},
        yaxis={**_axis(plot.y_title, plot.y_kind), "type": "log" if plot.log_y else "linear"},
    )
    return figure


def _heatmap(plot: Heatmap) -> Any:
    factor, unit = _AXES.get(plot.kind, (1.0, ""))
    scaled = [[None if value is None else value * factor for value in row] for row in plot.values]
    texts = [[written(value, plot.kind) for value in row] for row in plot.values]
    figure = go.Figure(
        go.Heatmap(
            x=list(plot.columns),
            y=list(plot.rows),
            z=scaled,
            text=texts,
            texttemplate="%{text}",
            colorscale="Viridis",
            colorbar={"title": unit},
        )
    )
    figure.update_layout(xaxis={"title": plot.x_title, "type": "category"}, yaxis={"title": plot.y_title, "type": "category"})
    return figure


def _spread(cell: Cell, factor: float) -> tuple[float | None, float, float]:
    """(value, up to the highest, down to the lowest), scaled."""
    if isinstance(cell, Samples):
        return cell.median * factor, (cell.high - cell.median) * factor, (cell.median - cell.low) * factor
    return (None if cell is None or isinstance(cell, str) else cell * factor), 0.0, 0.0


def _axis(title: str, kind: Kind) -> dict[str, Any]:
    if kind == "seconds":
        return {"title": title or "seconds", "tickformat": "~s", "ticksuffix": "s"}
    unit = _AXES.get(kind, (1.0, ""))[1]
    return {"title": f"{title} ({unit})" if title and unit else title or unit}
