"""`ckptstore bench s3` as an operator calls it, with tiny objects on a real server: the report, what cannot run, and nothing left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore_bench.services.seaweedfs import SeaweedS3
from tests.browser import check_drawn

PROGRAM = Path(sys.executable).with_name("ckptstore")
BUCKET = "bench"
TINY = ["--size", "20MiB", "--part", "8MiB", "--parallel", "2", "--rounds", "2"]


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedS3]:
    with SeaweedS3(tmp_path_factory.mktemp("seaweed")) as server:
        server.create_bucket(BUCKET)
        yield server


def bench(seaweed: SeaweedS3, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CKPTSTORE_", "AWS_"))}
    return subprocess.run(
        [PROGRAM, "--home", home, "bench", "s3", *arguments],
        env={**inherited, **seaweed.environment(), **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.browser
def test_every_client_moves_the_object_and_leaves_nothing(seaweed: SeaweedS3, tmp_path: Path) -> None:
    out, page = tmp_path / "s3.json", tmp_path / "s3.html"
    place = ["--url", f"s3://{BUCKET}/scratch", "--endpoint", seaweed.endpoint_url]
    done = bench(seaweed, tmp_path, *place, *TINY, "--against", "obstore,boto3,s3fs", "--json", str(out), "--report", str(page))
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text("utf-8"))
    for table in report["tables"]:
        rows = {row["client"]: row for row in table["rows"]}
        assert list(rows) == ["ckptstore", "http.client", "obstore", "boto3", "s3fs"]
        assert {name: row["why_not"] for name, row in rows.items()} == dict.fromkeys(rows, "")
        assert all(len(row["bytes_per_s"]["values"]) == len(row["cpu_s_per_gb"]["values"]) == 2 for row in rows.values())
    names = {"s3.get.libraries", "s3.get.cpu", "s3.put.libraries", "s3.put.cpu"}
    assert {figure["name"] for figure in report["figures"]} == names
    assert report["settings"]["server"]["checksum"] == "crc32, checked by the server"
    check_drawn(report, page)
    assert seaweed.client().list_objects_v2(Bucket=BUCKET).get("Contents", []) == []


def test_a_client_that_cannot_says_why_and_the_others_go_on(seaweed: SeaweedS3, tmp_path: Path) -> None:
    place = ["--url", f"s3://{BUCKET}/scratch", "--endpoint", seaweed.endpoint_url]
    broken = tmp_path / "modules"
    broken.mkdir()
    (broken / "obstore.py").write_text("raise ImportError('no wheel for this machine')\n", "utf-8")
    done = bench(seaweed, tmp_path, *place, *TINY, "--against", "obstore", "--json", "-", PYTHONPATH=str(broken))
    assert done.returncode == 0, done.stderr
    rows = {row["client"]: row for row in json.loads(done.stdout)["tables"][0]["rows"]}
    assert "no wheel for this machine" in rows["obstore"]["why_not"]
    assert len(rows["ckptstore"]["bytes_per_s"]["values"]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "0"], "nothing to measure"),
        (["--against", "carrier-pigeons"], "carrier-pigeons"),
        (["--url", "file:///tmp"], "s3:// URL"),
        (["--endpoint", "http://127.0.0.1:1"], "goes with --url"),
        ([], "no such S3 tier"),
        (["--url", f"s3://{BUCKET}/x", "--part", "5MiB"], "4 MiB"),
    ],
)
def test_nonsense_is_refused_before_a_byte_is_written(seaweed: SeaweedS3, tmp_path: Path, arguments: list[str], said: str) -> None:
    url = [] if not arguments or arguments[0] in ("--url", "--endpoint") else ["--url", f"s3://{BUCKET}/x"]
    done = bench(seaweed, tmp_path, *url, *arguments)
    assert done.returncode not in (0, 1)
    assert said in done.stderr
    assert seaweed.client().list_objects_v2(Bucket=BUCKET).get("Contents", []) == []
