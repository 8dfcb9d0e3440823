"""`ckptstore bench save` and `load` as an operator calls them, tiny: every peer, three tiers, a real S3 server; and nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest

from ckptstore_bench.contenders.catalogue import LOADERS, SAVERS
from ckptstore_bench.report import Report
from ckptstore_bench.services.seaweedfs import SeaweedS3
from tests.browser import check_drawn
from tests.daemon_process import write_config
from tests.e2e.shell import COMMAND, Shell, heed_ctrl_c, until_hung_up

pytestmark = pytest.mark.timeout(1200)

TIMEOUT_S = 900.0
BUCKET, PREFIX = "models", "theirs"
TINY = ("--size", "8MiB", "--tensors", "9", "--rounds", "1")
#: The store and what the machine itself can do: each peer is a process more, which imports torch.
ALONE = ("--against", "")
FILE_PEERS = {"torch", "torch-mmap", "safetensors", "dcp", "runai", "fastsafetensors"}


@dataclass(frozen=True)
class Operator:
    """A home with three tiers, one of them behind S3, and a shell."""

    folder: Path
    s3: SeaweedS3

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CKPTSTORE_")}
        return kept | self.s3.environment() | {"CKPTSTORE_HOME": str(self.folder / "home"), "TERM": "xterm"}

    def bench(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, "bench", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=self.environment | environment)

    def report(self, *arguments: str | Path, **environment: str) -> tuple[Any, str]:
        """The JSON of a run that must succeed, and what the terminal showed."""
        place = self.folder / "out" / "report.json"
        place.parent.mkdir(exist_ok=True)
        done = self.bench(*arguments, "--json", place, **environment)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "", "a peer's noise, or a progress bar without a terminal"
        return json.loads(place.read_text("utf-8")), done.stdout

    def left(self) -> dict[str, Any]:
        """What must be the same before and after a run: files, S3 objects, processes."""
        files = {path.relative_to(self.folder) for path in self.folder.rglob("*") if "s3" not in path.parts and "out" not in path.parts}
        listed = self.s3.client().list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return {"files": files, "objects": {item["Key"] for item in listed}, "processes": [p.info for p in self.processes()]}

    def processes(self) -> list[psutil.Process]:
        """Whoever was started for a bench of this home: daemons carry its path, contenders are our descendants."""
        return [
            process
            for process in psutil.process_iter(["pid", "cmdline"])
            if any("bench-" in part and str(self.folder) in part for part in process.info["cmdline"] or [])
        ]


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    folder = tmp_path_factory.mktemp("bench")
    with SeaweedS3(folder / "s3") as s3:
        s3.create_bucket(BUCKET)
        url = f"s3://{BUCKET}/{PREFIX}"
        tiers: list[dict[str, Any]] = [
            {"name": "nvme", "kind": "posix", "path": folder / "nvme"},
            {"name": "pfs", "kind": "posix", "path": folder / "pfs", "shared": True},
            {"name": "object", "kind": "object", "url": url, "options": {"endpoint_url": s3.endpoint_url, "region": "us-east-1"}},
        ]
        write_config(folder / "home", tiers=tiers)
        (folder / "nvme").mkdir()
        (folder / "nvme" / "theirs").write_text("the operator's", "utf-8")
        yield Operator(folder, s3)


def rows(report: Any, title: str) -> dict[str, Any]:
    """The rows of the table whose title begins so, by contender."""
    table = next(table for table in report["tables"] if table["title"].startswith(title))
    return {row["contender"]: row for row in table["rows"]}


@pytest.mark.browser
def test_every_peer_saves_beside_the_store_and_nothing_is_left(operator: Operator, tmp_path: Path) -> None:
    before, page = operator.left(), tmp_path / "report.html"
    report, shown = operator.report("save", *TINY, "--against", "all", "--guard", "--report", page)
    jsonschema.validate(report, Report.model_json_schema(mode="serialization"))
    steady = rows(report, "Steady state")
    assert set(steady) == set(SAVERS), report["tables"][-1]
    for tier in ("snapshot", "nvme", "pfs", "object"):
        assert steady["ckptstore"][f"{tier}_s"]["median"] > 0
    assert steady["s3torchconnector"]["object_s"]["median"] > 0
    assert steady["fio"]["nvme_s"]["median"] > 0
    cost = rows(report, "What a save costs")
    assert cost["ckptstore"]["cpu_s_per_gb"]["median"] > 0
    assert cost["ckptstore"]["daemon_cpu_s_per_gb"]["median"] > 0
    assert cost["ckptstore"]["peak_bytes"] >= 8 << 20
    assert rows(report, "First save")["dcp-process"]["stall_s"] > 0
    assert rows(report, "Time of each")["torch"]["stall_ratio"]["median"] > 0
    assert report["machine"]["versions"]["orbax-checkpoint"]
    assert "GB/s" in report["limit"]
    assert "dcp-process" in shown
    assert operator.left() == before
    assert len(report["plots"]) == 4
    check_drawn(report, page)


@pytest.mark.browser
def test_every_loader_reads_cold_and_gets_what_was_saved(operator: Operator, tmp_path: Path) -> None:
    before = operator.left()
    report, _ = operator.report("load", *TINY, "--against", "all")
    speed = rows(report, "Time until")
    assert set(speed) == set(LOADERS) - {"s3torchconnector"}, report["tables"][-1]
    assert speed["fio"]["limit_ratio"]["median"] == 1.0
    assert rows(report, "Who could not run") == {
        "s3torchconnector": {"contender": "s3torchconnector", "why": "it reads objects, and --from is nvme"}
    }
    assert operator.left() == before
    check_drawn(report, tmp_path / "report.html")


@pytest.mark.parametrize(
    ("source", "against", "peers"),
    [
        ("memory", "", set()),
        ("pfs", "safetensors", {"safetensors"}),
        ("object", "safetensors,s3torchconnector", {"s3torchconnector"}),
    ],
)
def test_a_load_comes_from_where_it_was_told_to(operator: Operator, source: str, against: str, peers: set[str]) -> None:
    before = operator.left()
    report, _ = operator.report("load", *TINY, "--from", source, "--against", against)
    assert report["settings"]["from"] == source
    speed = rows(report, "Time until")
    assert {"ckptstore", "ckptstore into", "memory copy", *peers} <= set(speed)
    assert not FILE_PEERS - peers & set(speed)
    assert operator.left() == before


def test_an_incremental_save_writes_what_changed_and_reserve_comes_before_the_first(operator: Operator) -> None:
    report, _ = operator.report("save", "--size", "64MiB", "--tensors", "100", "--rounds", "2", "--incremental", "--reserve", *ALONE)
    written = rows(report, "What an incremental save writes")["ckptstore"]
    assert 1.0 <= written["ratio"]["median"] <= 1.02
    assert report["settings"]["changed"] == 0.1
    assert report["settings"]["reserve"] is True


def test_a_peer_that_cannot_be_imported_says_why_and_the_others_go_on(operator: Operator, tmp_path: Path) -> None:
    (tmp_path / "orbax").mkdir()
    (tmp_path / "orbax" / "__init__.py").write_text("raise ModuleNotFoundError('no orbax', name='orbax')", "utf-8")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    report, shown = operator.report("save", *TINY, "--against", "orbax,torch", PYTHONPATH=path)
    assert "torch" in rows(report, "Steady state")
    assert rows(report, "Who could not run")["orbax"]["why"] == "the module orbax is not installed: pip install 'ckptstore[peers]'"
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["save", "--size", "0"], 2, "nothing to measure"),
        (["load", "--size", "0GiB"], 2, "nothing to measure"),
        (["save", "--size", "lots"], 2, "no size"),
        (["save", "--size", "16", "--tensors", "9"], 2, "--tensors"),
        (["save", "--size", "500TiB"], 9, "there is room for"),
        (["save", "--like", "llama9"], 2, "known are"),
        (["save", "--like", "llama3-8b", "--scale", "0"], 2, "scale"),
        (["save", "--against", "nobody"], 2, "known are"),
        (["load", "--from", "tape"], 2, "no tier 'tape'"),
        (["save", "--changed", "0.5"], 2, "--incremental"),
        (["save", "--rounds", "0"], 2, "--rounds"),
        (["save", "--folder", "{folder}/nvme"], 4, "in use"),
        (["save", "--json", "/nowhere/at/all.json"], 2, "cannot be written"),
        (["save", "--report", "{folder}"], 2, "cannot be written"),
    ],
)
def test_nonsense_is_refused_in_one_line_before_anything_is_written(operator: Operator, arguments: list[str], code: int, told: str) -> None:
    before = operator.left()
    done = Shell(operator.folder / "home")("bench", *(argument.format(folder=operator.folder) for argument in arguments))
    assert done.code == code, done.err
    assert told in done.err
    assert done.err.startswith("ckptstore: ")
    assert len(done.err.splitlines()) <= 2
    assert done.out == ""
    assert operator.left() == before


@pytest.mark.parametrize(
    ("number", "code", "against"),
    [
        (signal.SIGINT, 130, "dcp-process"),
        (signal.SIGTERM, 143, ""),
        pytest.param(signal.SIGHUP, 129, "", marks=pytest.mark.soak),
    ],
)
def test_an_interrupted_run_leaves_no_file_and_no_process(operator: Operator, number: signal.Signals, code: int, against: str) -> None:
    before = operator.left()
    command = [*COMMAND, "bench", "save", "--size", "8MiB", "--rounds", "10000", "--against", against]
    process = subprocess.Popen(command, env=operator.environment, preexec_fn=heed_ctrl_c, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        family = until_it_saves(operator, process)
        process.send_signal(number)
        process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == code
    assert psutil.wait_procs(family, timeout=60)[1] == []
    assert operator.left() == before


def until_it_saves(operator: Operator, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Wait until a checkpoint of the run is in the NVMe tier's scratch place; its processes, those of peers included."""
    deadline = time.monotonic() + TIMEOUT_S
    while not list((operator.folder / "nvme").glob("bench-*/tier/records/*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3, "the contenders"
    assert operator.processes(), "the daemon"
    return [*family, *operator.processes()]


def test_the_progress_goes_to_a_terminal_and_json_to_stdout_is_the_report_and_nothing_else(operator: Operator, tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [*COMMAND, "bench", "save", *TINY, *ALONE, "--json", "-"]
    with open(tmp_path / "out", "wb") as out:
        process = subprocess.Popen(command, env=operator.environment, stdout=out, stderr=theirs)
    os.close(theirs)
    seen = until_hung_up(ours)
    assert process.wait(TIMEOUT_S) == 0
    assert "first save: ckptstore" in seen
    assert Report.model_validate_json((tmp_path / "out").read_text("utf-8")).command == "bench save"


def test_the_command_says_what_is_missing_where_the_extra_is_not_installed(operator: Operator, tmp_path: Path) -> None:
    (tmp_path / "psutil.py").write_text("raise ModuleNotFoundError('none', name='psutil')", "utf-8")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = operator.bench("save", *TINY, PYTHONPATH=path)
    assert done.returncode == 2
    assert done.stderr == "ckptstore: bench: the module psutil is not installed; pip install 'ckptstore[bench]'\n"
