"""`ckptstore bench tiers` as an operator calls it, on tiers that are in use, with tiny sizes: the report, and nothing left or touched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import ckptstore
from ckptstore.config import read_settings
from ckptstore_client.cli.main import run as command_line
from tests.browser import check_drawn
from tests.daemon_process import DaemonProcess, write_config
from tests.services.moto_s3 import moto_s3

PROGRAM = Path(sys.executable).with_name("ckptstore")
TINY = ["--size", "4MiB", "--rounds", "2", "--blocks", "1MiB,8MiB", "--threads", "1,2", "--reads", "40", "--small-writes", "5"]
BUCKET = "bench"


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with moto_s3(BUCKET) as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CKPTSTORE_")]:
        monkeypatch.delenv(name)
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)


def bench(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [PROGRAM, "--home", home, "bench", "tiers", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def posix_tier(folder: Path, **more: Any) -> dict[str, Any]:
    return {"name": "nvme", "kind": "posix", "path": folder, **more}


def files_below(folder: Path) -> set[Path]:
    return {found.relative_to(folder) for found in folder.rglob("*")}


def rows(report: dict[str, Any], title: str) -> list[dict[str, Any]]:
    return next(table["rows"] for table in report["tables"] if table["title"] == title)


@pytest.mark.browser
def test_every_tier_is_measured_beside_its_device_and_a_store_in_use_notices_nothing(tmp_path: Path, s3_url: str) -> None:
    home, measured, page = tmp_path / "home", tmp_path / "tiers.json", tmp_path / "tiers.html"
    tiers = [
        posix_tier(tmp_path / "nvme"),
        {"name": "pfs", "kind": "posix", "path": tmp_path / "pfs", "shared": True, "compression": "zstd"},
        {"name": "s3", "kind": "object", "url": f"s3://{BUCKET}/in-use", "options": {"endpoint_url": s3_url}},
    ]
    write_config(home, tiers=tiers, grace_s=0, quiet={"busy_share": 1.0, "nice": 0})  # the drain is only what the measuring needs first
    state = {"w": torch.arange(100_000)}
    with DaemonProcess(home), ckptstore.connect(home=home, start=False) as store:
        store.save("/run/step-1", state).wait("s3", timeout_s=60)
        before = files_below(tmp_path / "nvme"), files_below(tmp_path / "pfs")
        done = bench(home, *TINY, "--json", str(measured), "--report", str(page))
        assert done.returncode == 0, done.stderr
        assert (files_below(tmp_path / "nvme"), files_below(tmp_path / "pfs")) == before
        listing = httpx.get(f"{s3_url}/{BUCKET}", trust_env=False).text
        assert "<Key>in-use/objects/" in listing
        assert "bench-" not in listing
        assert torch.equal(store.load("/run/step-1")["w"], state["w"])
        store.save("/run/step-2", state).wait("s3", timeout_s=60)
    assert not list(home.glob("bench-*"))
    report = json.loads(measured.read_text("utf-8"))
    best = {row["tier"]: row for row in rows(report, "Each tier at its best")}
    assert list(best) == ["memory", "nvme", "pfs", "s3"]
    assert [row["shared"] for row in best.values()] == ["no", "no", "yes", "yes"]
    for row in best.values():
        for key in ("write_bytes_per_s", "device_write_bytes_per_s", "read_bytes_per_s", "device_read_bytes_per_s"):
            assert len(row[key]["values"]) == 2, "one a round"
            assert row[key]["median"] > 0
    assert_every_setting_is_there(report)
    assert {"date", "kernel", "versions", "cpu"} <= set(report["machine"])
    assert report["rounds"] == 2
    assert "botocore" in report["limit"]
    assert any("without its compression" in note for note in report["notes"])
    check_drawn(report, page)
    planned = subprocess.run(
        [PROGRAM, "bench", "plan", "--params", "8B", "--nodes", "4", "--measured", measured, "--json", "-"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert [row["tier"] for row in rows(json.loads(planned.stdout), "Saving: each tier, while all nodes write")] == list(best)


def assert_every_setting_is_there(report: dict[str, Any]) -> None:
    nvme = rows(report, "nvme: all of it, by setting")
    seen = {(row["act"], row["block_bytes"] >> 20, row["threads"], row["way"]) for row in nvme}
    ways = {row["way"] for row in nvme}
    assert seen >= {(act, block, threads, way) for act in ("write", "read") for block in (1, 8) for threads in (1, 2) for way in ways}
    # A put has no blocks above 4 MiB: there, only the device was written.
    assert all((row["bytes_per_s"] is None) == (row["block_bytes"] > 4 << 20) for row in nvme if row["act"] == "write")
    small = rows(report, "Small and random")
    assert {(row["tier"], row["act"]) for row in small} >= {("nvme", "fsync"), ("nvme", "small write"), ("s3", "random read")}
    assert all(row["device_p50_s"] <= row["device_p99_s"] for row in small)
    for row in small:  # fsync is the device's own, by itself
        assert (row["ratio"] is None) == (row["per_s"] is None) == (row["act"] == "fsync")
        if row["ratio"] is not None:
            assert row["ratio"]["values"] == pytest.approx(
                [ours / its for ours, its in zip(row["per_s"]["values"], row["device_per_s"]["values"], strict=True)]
            )
    assert {(row["block_bytes"] >> 20, row["threads"]) for row in rows(report, "s3: all of it, by setting")} >= {(8, 1), (8, 2)}


def test_apply_changes_nothing_but_what_the_report_advises(tmp_path: Path) -> None:
    home = tmp_path / "home"
    file = write_config(home, tiers=[posix_tier(tmp_path / "nvme", write_threads=1, write_size="64KiB", direct_io="never")])
    text = "# mine\n" + file.read_text("utf-8")
    file.write_text(text, "utf-8")
    done = bench(home, *TINY, "--only", "nvme", "--apply", "--json", "-")
    assert done.returncode == 0, done.stderr
    (row,) = rows(json.loads(done.stdout), "Each tier at its best")
    tier = read_settings(home=home).tiers[0]
    assert file.read_text("utf-8").startswith("# mine\n")
    if row["advice"] == "as it is":
        assert file.read_text("utf-8") == text
    else:
        assert row["advice"].startswith(f"direct_io = {tier.direct_io}, write_threads = {tier.write_threads}, write_size = ")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    home, tier = tmp_path / "home", tmp_path / "nvme"
    write_config(home, tiers=[posix_tier(tier)])
    before = files_below(home)
    command = [PROGRAM, "--home", home, "bench", "tiers", "--only", "nvme", "--size", "64MiB", "--rounds", "1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not list(tier.rglob("device.read")):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline, "it did not begin to write"
            time.sleep(0.02)  # the loop's condition is the file
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + how, errors
    assert files_below(home) == before
    assert not tier.exists(), "the tier's root was not there before either"


def test_a_tier_with_too_little_room_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (tmp_path / "nvme").mkdir()
    (tmp_path / "nvme" / "used").write_bytes(bytes(8 << 20))
    write_config(home, tiers=[posix_tier(tmp_path / "nvme", capacity="16MiB")])
    done = bench(home, *TINY)
    assert done.returncode == 9
    assert "nvme" in done.stderr
    assert "--size" in done.stderr
    assert files_below(tmp_path / "nvme") == {Path("used")}


def test_buffered_reads_that_cannot_be_cold_are_refused_unless_warm_is_said() -> None:
    shm = Path("/dev/shm") / f"ckptstore-test-{os.getpid()}"
    try:
        home = shm / "home"
        write_config(home, tiers=[posix_tier(shm / "nvme")])
        refused = bench(home, *TINY, "--only", "nvme")
        assert refused.returncode == 10
        assert "cold" in refused.stderr
        assert not (shm / "nvme").exists()
        warm = bench(home, *TINY, "--only", "nvme", "--warm", "--json", "-")
        assert warm.returncode == 0, warm.stderr
        assert json.loads(warm.stdout)["settings"]["extent"]["warm"] is True
    finally:
        shutil.rmtree(shm, ignore_errors=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--size", "0"],
        ["--only", "tape"],
        ["--blocks", "1000"],
        ["--blocks", "0"],
        ["--threads", "0"],
        ["--threads", "many"],
        ["--threads", "1000"],
        ["--rounds", "0"],
        ["--folder", "/tmp", "--apply"],
        ["--folder", "/proc"],
    ],
)
def test_nonsense_is_refused_in_one_line(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    write_config(home, tiers=[posix_tier(tmp_path / "nvme")])
    code = command_line(["--home", str(home), "bench", "tiers", *arguments])
    told = capsys.readouterr()
    assert code in (2, 4)
    assert (told.out, len(told.err.strip().splitlines())) == ("", 1), told.err
    assert not (tmp_path / "nvme").exists()
