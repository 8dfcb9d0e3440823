"""A report as one self-contained HTML page: tables, plots, settings and machine, with plotly's script inside it. Needs no network.

Texts come from configurations and peers' errors: Jinja escapes them.
"""

from __future__ import annotations

import jinja2
from plotly.offline import get_plotlyjs

from ckptstore_bench.numbers import written
from ckptstore_bench.plots import draw
from ckptstore_bench.report import Report
from ckptstore_bench.terminal_report import FIGURE_HEADINGS, figure_cells, settings_lines, under_title

_ENVIRONMENT = jinja2.Environment(loader=jinja2.PackageLoader("ckptstore_bench", ""), autoescape=True, undefined=jinja2.StrictUndefined)


def page(report: Report) -> str:
    drawn = [
        draw(plot).to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
        for plot in report.plots
    ]
    return _ENVIRONMENT.get_template("page.html.j2").render(
        report=report,
        under_title=under_title(report),
        plots=drawn,
        # Its own </script> would end ours; plotly writes none, and this test keeps it so.
        plotly_js=get_plotlyjs() if drawn else "",
        written=written,
        figure_headings=FIGURE_HEADINGS,
        figures=[figure_cells(figure) for figure in report.figures],
        settings=settings_lines(report.settings),
        machine=settings_lines(report.machine),
    )
