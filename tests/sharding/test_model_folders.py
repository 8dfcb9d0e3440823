"""Hugging Face folders out of checkpoints and into them, read back by the safetensors library itself."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import Shard

from ckptstore.errors import AlreadyExists, InvalidInput
from ckptstore_client.model_folders import export_model, import_model
from tests.daemon_process import DaemonProcess
from tests.e2e.shell import Shell
from tests.sharding.simulated import Ranks, dtensor, full, mesh_of, states_of

WEIGHTS = {
    "model.embed.weight": torch.randn(64, 16).bfloat16(),
    "model.layers.0.weight": torch.randn(33, 7),
    "model.layers.1.weight": torch.randn(128, 8).half(),
    "lm_head.bias": torch.randint(0, 9, (5,)),
}
SIDE_FILES = {"config.json": b'{"model_type": "tiny"}', "tokenizer.json": b"\x00\xff{}", "merges.txt": b"", "README.md": b"# tiny\n"}


def read_folder(folder: Path) -> dict[str, torch.Tensor]:
    """As a Hugging Face reader finds the tensors: by the index, where there is one."""
    index = folder / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    found = {}
    for name in sorted(names):
        with safe_open(str(folder / name), "pt") as opened:
            found |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it is no dict
    return found


def check(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], whole) and found[name].dtype == whole.dtype for name, whole in WEIGHTS.items())


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """Two weight files, an index, config and tokenizer."""
    folder = tmp_path / "hub"
    folder.mkdir()
    names = list(WEIGHTS)
    files = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file, keys in files.items():
        save_file({key: WEIGHTS[key] for key in keys}, folder / file, metadata={"format": "pt"})
    weight_map = {key: file for file, keys in files.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    for name, content in SIDE_FILES.items():
        (folder / name).write_bytes(content)
    return folder


def test_an_imported_folder_is_exported_as_it_was(ranks: Ranks, folder: str, hub_folder: Path, tmp_path: Path) -> None:
    entry = import_model(ranks[0], hub_folder, f"{folder}/base")
    assert entry.world_size == 2
    made = export_model(ranks[0], f"{folder}/base", tmp_path / "out")
    check(read_folder(tmp_path / "out"))
    assert {name: (tmp_path / "out" / name).read_bytes() for name in SIDE_FILES} == SIDE_FILES
    assert made.tensors == 4 and made.files == sorted(["model.safetensors", *SIDE_FILES])


def test_an_imported_model_loads_into_a_sharded_state(ranks: Ranks, folder: str, hub_folder: Path) -> None:
    import_model(ranks[0], hub_folder, f"{folder}/base")

    def blank(rank: int) -> dict[str, dict[str, Any]]:
        return {"model": {name: dtensor(whole, mesh_of((3,)), [Shard(0)], empty=True) for name, whole in WEIGHTS.items()}}

    for state in states_of(3, blank):
        ranks[0].load(f"{folder}/base", into=state)
        assert all(torch.equal(state["model"][name].to_local(), full(state["model"][name], whole)) for name, whole in WEIGHTS.items())


def test_a_sharded_training_checkpoint_becomes_a_folder_of_bounded_files(
    ranks: Ranks, folder: str, hub_folder: Path, tmp_path: Path
) -> None:
    """Eight ranks on two dimensions; nested names; the optimizer stays behind; config comes from the model that training began with."""
    import_model(ranks[0], hub_folder, f"{folder}/base")

    def state(rank: int) -> object:
        mesh = mesh_of((4, 2))
        nested: dict[str, object] = {}
        for name, whole in WEIGHTS.items():
            first, _, rest = name.partition(".")
            nested.setdefault(first, {})[rest] = dtensor(whole, mesh, [Shard(0), Shard(0)])  # type: ignore[index]
        return {"model": nested, "optimizer": {"m": dtensor(torch.ones(8, 2), mesh, [Shard(0), Shard(1)])}, "step": 4}

    ranks.save(f"{folder}/step", states_of(8, state))
    made = export_model(ranks[0], f"{folder}/step", tmp_path / "out", files_from=f"{folder}/base", shard_bytes=2048)
    check(read_folder(tmp_path / "out"))
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == made.size_bytes == sum(whole.nbytes for whole in WEIGHTS.values())
    assert {file.name for file in (tmp_path / "out").glob("*.safetensors")} == set(index["weight_map"].values())
    assert "model-00001-of-00004.safetensors" in made.files and (tmp_path / "out/config.json").read_bytes() == SIDE_FILES["config.json"]


def test_a_checkpoint_of_one_process_is_exported_and_says_what_it_left_out(ranks: Ranks, folder: str, tmp_path: Path) -> None:
    side = tmp_path / "side"
    side.mkdir()
    (side / "config.json").write_text("{}")
    (side / "old.safetensors").write_text("not carried along")
    state = {"net": {**{name: whole.clone() for name, whole in WEIGHTS.items()}, "note": "x"}, "step": 3}
    ranks[0].save(f"{folder}/x", state).wait("nvme", timeout_s=60)
    made = export_model(ranks[0], f"{folder}/x", tmp_path / "out", part="net", files_from=side)
    check(read_folder(tmp_path / "out"))
    assert made.left_out == ["note"] and made.files == ["config.json", "model.safetensors"]


def test_an_export_is_all_or_nothing_and_never_replaces_unasked(ranks: Ranks, folder: str, tmp_path: Path) -> None:
    ranks[0].save(f"{folder}/x", {"model": {"w": torch.ones(3)}, "n": 1}).wait("nvme", timeout_s=60)
    with pytest.raises(InvalidInput, match="no part 'other'"):
        export_model(ranks[0], f"{folder}/x", tmp_path / "out", part="other")
    assert list(tmp_path.iterdir()) == []
    export_model(ranks[0], f"{folder}/x", tmp_path / "out")
    with pytest.raises(AlreadyExists):
        export_model(ranks[0], f"{folder}/x", tmp_path / "out")
    export_model(ranks[0], f"{folder}/x", tmp_path / "out", replace=True)


def test_pickled_and_broken_weights_are_refused_by_name(ranks: Ranks, folder: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InvalidInput, match=r"pytorch_model\.bin.*pickle"):
        import_model(ranks[0], tmp_path / "a", f"{folder}/a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/model.safetensors").write_bytes(struct.pack("<Q", 999) + b"{}")
    with pytest.raises(InvalidInput, match=r"b/model\.safetensors"):
        import_model(ranks[0], tmp_path / "b", f"{folder}/b")
    (tmp_path / "c").mkdir()
    with pytest.raises(InvalidInput, match=r"no \.safetensors file"):
        import_model(ranks[0], tmp_path / "c", f"{folder}/c")


def test_weights_that_lie_unaligned_in_their_file_are_imported(ranks: Ranks, folder: str, tmp_path: Path) -> None:
    """Other writers put a tensor of bytes before one of floats."""
    header = json.dumps(
        {"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]}}
    ).encode()
    (tmp_path / "m").mkdir()
    data = struct.pack("<Q", len(header)) + header + bytes([1, 2, 3]) + struct.pack("<ff", 1.5, -2.0)
    (tmp_path / "m/model.safetensors").write_bytes(data)
    import_model(ranks[0], tmp_path / "m", f"{folder}/m")
    loaded = ranks[0].load(f"{folder}/m")["model"]
    assert loaded["a"].tolist() == [1, 2, 3] and loaded["b"].tolist() == [1.5, -2.0]


def test_the_command_line_imports_and_exports(daemon: DaemonProcess, folder: str, hub_folder: Path, tmp_path: Path) -> None:
    shell = Shell(daemon.home)
    imported = shell("import", hub_folder, f"{folder}/base", "--json")
    assert imported.code == 0 and imported.document["world_size"] == 2
    exported = shell("export", f"{folder}/base", tmp_path / "out", "--shard-gb", "1", "--json")
    assert exported.code == 0 and exported.document["tensors"] == 4
    check(read_folder(tmp_path / "out"))
