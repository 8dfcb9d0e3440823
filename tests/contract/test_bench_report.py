"""A bench report: the JSON reads back as the same value and follows its schema; numbers are written by what they are; the page escapes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from ckptstore.errors import InvalidInput
from ckptstore_bench.numbers import written
from ckptstore_bench.page import page
from ckptstore_bench.report import Bars, Column, Figure, Heatmap, Kind, Lines, Report, Samples, Table, samples
from ckptstore_bench.running import positive_size
from tests.browser import opened

HOSTILE = "<script>alert('x')</script>"


def report() -> Report:
    table = Table(
        title="Speeds",
        columns=(Column(key="who", heading="who"), Column(key="stall_s", heading="stall", kind="seconds")),
        rows=({"who": HOSTILE, "stall_s": samples([0.07, 0.05, 0.06])}, {"who": "missing", "stall_s": None}),
    )
    return Report(
        command="bench save",
        title="A title",
        limit="a memory copy, 17 GB/s",
        rounds=3,
        settings={"size_bytes": 1 << 30, "error": HOSTILE},
        machine={"cpu": "a CPU", "cores": 2, "kernel": "6.18", "date": "2026-01-31T12:00:00+00:00"},
        tables=(table,),
        figures=(Figure(name="save.copy", what="copy / memory copy", values=(0.9, 0.8, 1.0), bound=0.85),),
        plots=(
            Bars(title="Stall", kind="seconds", categories=("a", "b"), series={"steady": (samples([0.07, 0.05]), 0.1)}),
            Lines(
                title="Over size",
                x_title="size",
                x_kind="bytes",
                y_title="speed",
                y_kind="bytes_per_s",
                series={"x": ((1e6, 1e9), (2e6, 2e9))},
            ),
            Heatmap(
                title="Map",
                kind="bytes_per_s",
                x_title="block",
                columns=("4K", "4M"),
                y_title="threads",
                rows=("1",),
                values=((1e9, None),),
            ),
        ),
        notes=("a note",),
    )


def test_the_json_reads_back_as_the_same_report() -> None:
    assert Report.model_validate_json(report().model_dump_json()) == report()


def test_the_json_follows_the_published_schema_and_holds_what_the_tables_show() -> None:
    document = json.loads(report().model_dump_json())
    jsonschema.validate(document, Report.model_json_schema(mode="serialization"))
    cell = document["tables"][0]["rows"][0]["stall_s"]
    assert (cell["median"], cell["low"], cell["high"], cell["values"]) == (0.06, 0.05, 0.07, [0.07, 0.05, 0.06])
    assert document["schema_version"] == 1


def test_a_field_that_the_schema_does_not_know_is_refused() -> None:
    document = json.loads(report().model_dump_json()) | {"extra": 1}
    with pytest.raises(ValueError, match="extra"):
        Report.model_validate(document)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0.0672, "seconds", "67.2 ms"),
        (0.00035, "seconds", "350 µs"),
        (119.0, "seconds", "119 s"),
        (7200.0, "seconds", "2.00 h"),
        (17.2e9, "bytes_per_s", "17.2 GB/s"),
        (35e6, "bytes_per_s", "35.0 MB/s"),
        (1536.0, "bytes", "1.50 KiB"),
        (0, "bytes", "0 B"),
        (1.0, "ratio", "1.00×"),
        (20_000, "count", "20,000"),
        (Samples(values=(0.114, 0.0268, 0.2)), "seconds", "114 ms (26.8–200)"),
        (None, "seconds", ""),
        ("why not", "text", "why not"),
    ],
)
def test_a_number_is_written_in_the_unit_that_fits_it(value: float, kind: Kind, text: str) -> None:
    assert written(value, kind) == text


@pytest.mark.parametrize(("values", "at_least", "reached"), [((0.9, 0.8, 1.0), True, True), ((0.9, 0.8, 1.0), False, False)])
def test_a_figure_is_reached_by_its_median(values: tuple[float, ...], at_least: bool, reached: bool) -> None:
    assert Figure(name="x", what="x", values=values, bound=0.85, at_least=at_least).reached is reached


def test_the_page_needs_nothing_else_and_obeys_no_text_of_others() -> None:
    html = page(report())
    scripts = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert HOSTILE not in scripts
    assert "&lt;script&gt;alert" in scripts
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:""", scripts), "the page asks the network for something"
    assert html.count('class="plotly-graph-div"') == 3
    assert all(text in scripts for text in ("A title", "17 GB/s", "60.0 ms (50.0–70.0)", "a CPU", "2026-01-31", "a note", "save.copy"))


@pytest.mark.browser
def test_a_browser_without_a_network_draws_every_plot(tmp_path: Path) -> None:
    place = tmp_path / "report.html"
    place.write_text(page(report()), "utf-8")
    body = opened(place)
    assert body.count("plotly-graph-div js-plotly-plot") == 3
    assert body.count('<g class="trace bars"') == 1, "the bars"
    assert body.count('class="trace scatter') == 1, "the line"
    assert 'class="hm"' in body, "the heat map"


@pytest.mark.parametrize("text", ["0", "0GiB", "many", "-1"])
def test_a_size_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="--size"):
        positive_size(text)
