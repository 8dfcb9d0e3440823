"""What the command line prints, without a daemon: `status` on one screen of 80 columns, and names that are never obeyed."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from ckptstore.errors import TierFull, TierUnavailable
from ckptstore.wire import AttemptLine, ErrorLine, Hello, MemoryStatus, Status, TierStatus
from ckptstore_client.cli.daemon_commands import raise_for_tiers
from ckptstore_client.cli.status_view import render_status
from ckptstore_client.cli.terminal import Terminal, age, as_document, iso, print_error, size, visible

GIB = 1 << 30
NOW_S = 1_800_000_000.0


def tier(name: str, **changes: object) -> TierStatus:
    quiet = TierStatus(
        name=name,
        kind="posix",
        location=f"/mnt/{name}",
        shared=False,
        durable=True,
        state="ok",
        used_bytes=0,
        limit_bytes=None,
        free_bytes=None,
        rate_bytes_s=0.0,
        bandwidth_limit=None,
        waiting_objects=0,
        waiting_bytes=0,
        oldest_waiting_s=0.0,
        last_error=None,
        details={},
    )
    return quiet.model_copy(update=changes)


def status(**changes: object) -> Status:
    """A node in the middle of a run whose parallel file system is away."""
    down = tier("pfs", state="down", waiting_objects=12, waiting_bytes=24 * GIB, oldest_waiting_s=312.0, last_error="it is [bold]away[/]")
    recorded = Status(
        hello=Hello(api=1, version="0.1.0", store="s-1", node="n-1", pid=4242, tiers=["nvme", "pfs", "s3"], durable_tiers=[]),
        uptime_s=8040.0,
        home="/var/lib/ckptstore",
        catalog="sqlite:////var/lib/ckptstore/catalog.sqlite3",
        counts={"publications": 1200, "open_attempts": 1},
        sessions=8,
        memory=MemoryStatus(
            limit_bytes=64 * GIB,
            segments=16,
            lent_bytes=8 * GIB,
            held_bytes=4 * GIB,
            replica_bytes=2 * GIB,
            free_bytes=GIB,
            dies_with_job=None,
        ),
        tiers=[
            tier("nvme", used_bytes=9 * GIB, limit_bytes=10 * GIB, rate_bytes_s=1.5 * GIB),
            down,
            tier("s3", kind="object", state="full", used_bytes=10 * GIB, limit_bytes=10 * GIB),
        ],
        attempts=[AttemptLine(path="/runs/[red]x", state="open", joined=4, snapshots=3, stored=2, world_size=8, age_s=7.0)],
        errors=[ErrorLine(at_s=NOW_S - 5, where="drain to pfs", what="newest"), ErrorLine(at_s=NOW_S - 90, where="drain", what="older")],
        resident_bytes=90 << 20,
        stopping=False,
    )
    return recorded.model_copy(update=changes)


def rendered(answer: Status, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, markup=False, highlight=False).print(render_status(answer, now_s=NOW_S))
    return out.getvalue()


def test_status_says_all_an_operator_asks_first_in_80_columns_without_colour() -> None:
    text = rendered(status())
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for fact in ("TIER DOWN", "up 2 h 14 min", "pid 4242", "/var/lib/ckptstore", "9.0 GiB 90%", "1.5 GiB/s", "12 (24.0 GiB)", "FULL"):
        assert fact in text, fact
    for fact in ("16 segments", "8.0 GiB lent", "4.0 GiB held", "2.0 GiB replicas", "1.0 GiB free", "limit 64.0 GiB", "4/8", "3/8"):
        assert fact in text, fact


def test_the_newest_error_stands_last_with_its_age() -> None:
    lines = rendered(status()).splitlines()
    older, newest = (next(i for i, line in enumerate(lines) if word in line) for word in ("older", "newest"))
    assert older < newest
    assert lines[newest].strip().startswith("5 s")


def test_markup_in_names_and_errors_is_printed_as_it_is() -> None:
    text = rendered(status())
    assert "/runs/[red]x" in text
    assert "it is [bold]away[/]" in text


def test_control_characters_in_an_error_reach_no_terminal() -> None:
    text = rendered(status(errors=[ErrorLine(at_s=NOW_S, where="x", what="\x1b[2Jgone\nforged line")]))
    assert "\x1b" not in text
    assert "\\x1b[2Jgone\\nforged line" in text


def test_a_daemon_that_would_die_with_its_job_says_so() -> None:
    memory = status().memory.model_copy(update={"dies_with_job": "start it outside of the job"})
    assert "advice: start it outside of the job" in rendered(status(memory=memory))
    assert "advice" not in rendered(status())


@pytest.mark.parametrize(("changes", "headline"), [({"stopping": True}, "STOPPING"), ({"tiers": [tier("nvme")]}, "serving")])
def test_the_headline_is_the_worst_that_is_true(changes: dict[str, object], headline: str) -> None:
    assert headline in rendered(status(**changes)).splitlines()[0]


def test_check_takes_a_tier_that_is_down_before_one_that_is_full() -> None:
    with pytest.raises(TierUnavailable, match="away"):
        raise_for_tiers(status())
    with pytest.raises(TierFull):
        raise_for_tiers(status(tiers=[tier("nvme"), tier("s3", state="full")]))
    raise_for_tiers(status(tiers=[tier("nvme")]))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        *(("plain ü 模型", "plain ü 模型"), ("\x1b[31m", "\\x1b[31m"), ("a\nb", "a\\nb")),
        *(("\u202egpj.exe", "\\u202egpj.exe"), ("\x9b2J", "\\x9b2J")),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_its_escape(given: str, shown: str) -> None:
    assert visible(given) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3600, "1 h"), (8040, "2 h 14 min"), (86400 + 60, "1 d"), (90061, "1 d 1 h"), (-3, "0 s")],
)
def test_an_age_has_its_two_largest_units(seconds: float, shown: str) -> None:
    assert age(seconds) == shown


def test_sizes_have_units_and_moments_are_iso() -> None:
    assert [size(n) for n in (0, 1023, 1536, 3 * GIB)] == ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
    assert iso(0.5) == "1970-01-01T00:00:00Z"
    assert as_document({"at_s": 0.0, "errors": [{"at_s": 60.0}], "metadata": {"beat_s": 1.0}}) == {
        "at_s": 0.0,
        "at": "1970-01-01T00:00:00Z",
        "errors": [{"at_s": 60.0, "at": "1970-01-01T00:01:00Z"}],
        "metadata": {"beat_s": 1.0},
    }


def test_an_error_is_one_line_and_with_json_one_more(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("put /a\nb: why", {"error": "x"}, as_json=True)
    printed = capsys.readouterr()
    first, second = printed.err.splitlines()
    assert first == "ckptstore: put /a\\nb: why"
    assert json.loads(second) == {"error": "x"}
    assert printed.out == ""


def test_a_result_is_one_json_document_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(as_json=True).result(status(), "text that must not appear")
    document = json.loads(capsys.readouterr().out)
    assert document["tiers"][1]["waiting_bytes"] == 24 * GIB
    assert document["errors"][0]["at"] == iso(NOW_S - 5)


def test_nothing_is_cut_off_in_80_columns_however_large_the_numbers() -> None:
    large = 1023 * GIB + GIB // 2
    busy = tier(
        "a-tier-with-a-name-of-31-chars-",
        kind="object",
        state="down",
        used_bytes=large,
        limit_bytes=large,
        rate_bytes_s=float(large),
        waiting_objects=12_345_678,
        waiting_bytes=large,
        oldest_waiting_s=86000.0,
    )
    text = rendered(status(tiers=[busy]))
    together = "".join(text.split())
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for fact in ("12,345,", "678", "(1023.5", "object", "DOWN", "1023.5 GiB 100%", "1023.5 GiB/s", "23 h"):
        assert fact.replace(" ", "") in together, fact
