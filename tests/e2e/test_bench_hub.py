"""`ckptstore bench hub` as an operator calls it, with a small model: the report, and nothing left. How fast it is, is not asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ckptstore_bench.hub.model import write_model
from ckptstore_client.cli.main import run as command_line
from tests.browser import check_drawn
from tests.mount.mounts import can_mount
from tests.readers.hub_place import minilm_folder

PROGRAM = Path(sys.executable).with_name("ckptstore")
LAYER = "encoder.layer.{}.attention.self.key.weight"


@can_mount
@pytest.mark.browser
def test_a_hot_model_is_measured_beside_a_static_file_server_and_a_local_folder(tmp_path: Path) -> None:
    out, page = tmp_path / "hub.json", tmp_path / "hub.html"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CKPTSTORE_", "HF_"))}
    options = ["--folder", tmp_path / "scratch", "--size", "1MiB", "--rounds", "2", "--json", out, "--report", page]
    command = [PROGRAM, "bench", "hub", *options]
    done = subprocess.run(command, env=inherited, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text("utf-8"))
    rows = report["tables"][0]["rows"]
    assert [len(row["taken_s"]["values"]) for row in rows] == [2] * 4
    assert report["settings"]["size_bytes"] > 50_000_000, "the embeddings and one layer are the least"
    assert {figure["name"]: figure["bound"] for figure in report["figures"]} == {"hub.snapshot": 1.2, "hub.mount": 1.1}
    check_drawn(report, page)
    assert not (tmp_path / "scratch").exists()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text("utf-8")


def test_the_model_has_real_layers_as_often_as_it_takes(tmp_path: Path) -> None:
    size_bytes = write_model(tmp_path / "model", 150_000_000)
    real, made = load_file(minilm_folder() / "model.safetensors"), load_file(tmp_path / "model/model.safetensors")
    layers = json.loads((tmp_path / "model/config.json").read_text("utf-8"))["num_hidden_layers"]
    assert 150_000_000 <= size_bytes < 160_000_000
    assert layers > 6
    for number in range(layers):
        np.testing.assert_array_equal(made[LAYER.format(number)], real[LAYER.format(number % 6)])
    np.testing.assert_array_equal(made["pooler.dense.weight"], real["pooler.dense.weight"])


@pytest.mark.parametrize("arguments", [["--size", "0"], ["--size", "1000TiB"], ["--rounds", "0"]])
def test_nonsense_is_refused_in_one_line(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = command_line(["bench", "hub", "--folder", str(tmp_path / "scratch"), *arguments])
    told = capsys.readouterr()
    assert code in (2, 9)
    assert (told.out, len(told.err.strip().splitlines())) == ("", 1), told.err
    assert not (tmp_path / "scratch").exists()
