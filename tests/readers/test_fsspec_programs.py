"""Programs of others open `ckpt://` URLs, with no code of ours between: pandas, pyarrow, datasets, safetensors, numpy, PyTorch's DCP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from ckptstore.errors import InvalidInput, NotFound
from ckptstore.paths import is_below, parent_and_name
from ckptstore_client import Store
from ckptstore_client.fsspec_files.filesystem import CkptFileSystem
from tests.contract.store_place import folder
from tests.readers.fsspec_place import FilesPlace, files_place
from tests.until import until

__all__ = ["files_place", "folder"]


@pytest.fixture(autouse=True)
def default_daemon(files_place: FilesPlace, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a user's environment says: URLs need no options."""
    monkeypatch.setenv("CKPTSTORE_HOME", str(files_place.daemon.home))
    CkptFileSystem.clear_instance_cache()
    yield
    CkptFileSystem.current().store.close()
    CkptFileSystem.clear_instance_cache()


@pytest.fixture
def store() -> Store:
    filesystem: CkptFileSystem = fsspec.filesystem("ckpt")
    return filesystem.store


def state(value: float) -> dict[str, Any]:
    return {"model": {"w": torch.full((300, 500), value), "b": torch.arange(7) * value}, "step": int(value)}


# --- tables ------------------------------------------------------------------------------------------------------------------------


def test_pandas_writes_and_reads_csv_and_parquet(folder: str) -> None:
    frame = pandas.DataFrame({"a": range(1000), "b": [f"é{i}" for i in range(1000)]})
    frame.to_csv(f"ckpt://{folder}/t.csv.gz", index=False)
    frame.to_parquet(f"ckpt://{folder}/t.parquet")
    assert pandas.read_csv(f"ckpt://{folder}/t.csv.gz").equals(frame)
    assert pandas.read_parquet(f"ckpt://{folder}/t.parquet", columns=["b"]).equals(frame[["b"]])


def test_pyarrow_reads_a_partitioned_data_set(folder: str) -> None:
    table = pyarrow.table({"part": [0, 1] * 500, "x": range(1000)})
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem("ckpt")))
    pyarrow.dataset.write_dataset(table, folder, filesystem=filesystem, format="parquet", partitioning=["part"])
    found = pyarrow.dataset.dataset(folder, filesystem=filesystem, partitioning=["part"])
    found = found.to_table(filter=pyarrow.dataset.field("part") == 1)
    assert found.column("x").to_pylist() == list(range(1, 1000, 2))


def test_datasets_loads_files_by_their_url(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    pandas.DataFrame({"text": ["one", "two", "three"]}).to_json(f"ckpt://{folder}/t.jsonl", orient="records", lines=True)
    found = datasets.load_dataset("json", data_files=f"ckpt://{folder}/t.jsonl", split="train", cache_dir=str(tmp_path))
    assert found["text"] == ["one", "two", "three"]
    found.save_to_disk(f"ckpt://{folder}/saved")
    assert datasets.load_from_disk(f"ckpt://{folder}/saved")["text"] == ["one", "two", "three"]


# --- tensors -----------------------------------------------------------------------------------------------------------------------


def test_numpy_safetensors_and_torch_read_what_they_wrote(folder: str) -> None:
    tensors = {"w": torch.randn(100, 100), "b": torch.arange(5).bfloat16()}
    with fsspec.open(f"ckpt://{folder}/m.safetensors", "wb") as file:
        file.write(safetensors.torch.save(tensors))
    with fsspec.open(f"ckpt://{folder}/m.safetensors") as file:
        found = safetensors.torch.load(file.read())
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    with fsspec.open(f"ckpt://{folder}/m.pt", "wb") as file:
        torch.save(tensors, file)
    with fsspec.open(f"ckpt://{folder}/m.pt") as file:
        assert torch.equal(torch.load(file, weights_only=True)["w"], tensors["w"])
    with fsspec.open(f"ckpt://{folder}/a.npy", "wb") as file:
        np.save(file, np.arange(10))
    with fsspec.open(f"ckpt://{folder}/a.npy") as file:
        assert np.load(file).tolist() == list(range(10))


def test_a_saved_checkpoint_is_read_through_latest_by_safetensors(store: Store, folder: str) -> None:
    store.save(f"{folder}/step-1", {"w": torch.arange(100.0)}).wait("nvme", timeout_s=60)
    with fsspec.open(f"ckpt://{folder}/@latest/rank-00000-of-00001.safetensors") as file:
        (tensor,) = safetensors.torch.load(file.read()).values()
    assert torch.equal(tensor, torch.arange(100.0))


# --- torch.distributed.checkpoint --------------------------------------------------------------------------------------------------


def test_dcp_saves_and_loads_by_url(folder: str) -> None:
    dcp.save(state(3), checkpoint_id=f"ckpt://{folder}/step-3", no_dist=True)
    found = state(0)
    dcp.load(found, checkpoint_id=f"ckpt://{folder}/step-3", no_dist=True)
    assert torch.equal(found["model"]["w"], state(3)["model"]["w"])
    assert found["step"] == 3


def test_a_dcp_folder_is_the_latest_checkpoint_only_once_its_metadata_is_renamed_in(
    store: Store, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem: CkptFileSystem = fsspec.filesystem("ckpt")
    dcp.save(state(1), checkpoint_id=f"ckpt://{folder}/step-1", no_dist=True)
    seen: list[dict[str, Any]] = []

    def look_then_move(source: str, target: str, **options: Any) -> None:
        assert filesystem.exists(f"{folder}/step-2/__0_0.distcp")
        seen.append(filesystem.info(f"{folder}/@latest/.metadata"))
        CkptFileSystem.mv(filesystem, source, target, **options)

    monkeypatch.setattr(filesystem, "mv", look_then_move)
    monkeypatch.setattr(filesystem, "rename", look_then_move)
    dcp.save(state(2), checkpoint_id=f"ckpt://{folder}/step-2", no_dist=True)
    assert [info["version"] for info in seen] == [filesystem.info(f"{folder}/step-1/.metadata")["version"]]
    assert store.stat(f"{folder}/@latest").path == f"{folder}/step-2"
    found = state(0)
    dcp.load(found, checkpoint_id=f"ckpt://{folder}/@latest", no_dist=True)
    assert found["step"] == 2


def test_dcp_saves_over_its_own_checkpoint_and_fails_clearly_over_another(store: Store, folder: str) -> None:
    for value in (1, 2):
        dcp.save(state(value), checkpoint_id=f"ckpt://{folder}/it", no_dist=True)
    found = state(0)
    dcp.load(found, checkpoint_id=f"ckpt://{folder}/it", no_dist=True)
    assert found["step"] == 2
    store.save(f"{folder}/native", {"x": 1}).wait("nvme", timeout_s=60)
    with pytest.raises(CheckpointException, match="closed"):
        dcp.save(state(3), checkpoint_id=f"ckpt://{folder}/native", no_dist=True)
    assert store.load(f"{folder}/native") == {"x": 1}


def test_a_dcp_folder_is_not_taken_for_a_checkpoint_of_ours(store: Store, folder: str) -> None:
    dcp.save(state(1), checkpoint_id=f"ckpt://{folder}/step-1", no_dist=True)
    with pytest.raises(InvalidInput, match="not a checkpoint"):
        store.load(f"{folder}/@latest")
    with pytest.raises(NotFound):
        store.load(f"{folder}/step-1")


def test_folders_that_dcp_wrote_go_and_come_back_as_wholes_and_incomplete_ones_are_left_alone(store: Store, folder: str) -> None:
    filesystem: CkptFileSystem = fsspec.filesystem("ckpt")
    filesystem.pipe(f"{folder}/half/__0_0.distcp", b"somebody writes here")
    for value in (1, 2, 3):
        dcp.save(state(value), checkpoint_id=f"ckpt://{folder}/step-{value}", no_dist=True)
    planned = store.retention.keep(folder, "latest:1", dry_run=True)
    assert [(parent_and_name(judged.path)[1], judged.goes) for judged in planned.checkpoints] == [
        ("step-1", True), ("step-2", True), ("step-3", False),
    ]  # fmt: skip
    store.retention.keep(folder, "latest:1")
    until("the older ones are gone", lambda: [entry.name for entry in store.ls(folder)] == ["half", "step-3"])
    assert [parent_and_name(lying.path)[1] for lying in store.retention.trash() if is_below(lying.path, folder)] == ["step-1", "step-2"]
    assert store.retention.undo(f"{folder}/step-2") == f"{folder}/step-2"
    found = state(0)
    dcp.load(found, checkpoint_id=f"ckpt://{folder}/step-2", no_dist=True)
    assert found["step"] == 2
    store.retention.keep_all(folder)
