"""An operator steers what stays hot: warm, pin, evict, and what `status` and `cache top` say of it; from Python and from the shell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptstore
from ckptstore.errors import NotFound
from ckptstore_client import Store
from ckptstore_client.cli.main import run
from ckptstore_tiers.checksums import BLOCK_BYTES
from tests.cache_bed import content
from tests.daemon_process import DaemonProcess, write_config
from tests.until import until

SIZES = {"config.json": 700, "model.safetensors": 2 * BLOCK_BYTES + 5, "onnx/model.onnx": BLOCK_BYTES}
MODEL_BYTES = sum(SIZES.values())


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("steering")
    tiers = [{"name": "pfs", "kind": "posix", "path": folder / "pfs", "shared": True}]
    write_config(folder / "home", tiers=tiers, memory={"limit": "64MiB"}, cache={"folder": folder / "copies"})
    with DaemonProcess(folder / "home") as process:
        yield process


@pytest.fixture
def store(daemon: DaemonProcess) -> Iterator[Store]:
    with ckptstore.connect(home=daemon.home, start=False) as connected:
        yield connected


@pytest.fixture
def model(store: Store, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A model of three files in a folder of the test's own."""
    for seed, (name, size_bytes) in enumerate(SIZES.items()):
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content(seed, size_bytes))
    path = f"/models/{request.node.name}"
    store.put(tmp_path / "model", path)
    return path


def kept(store: Store, path: str) -> int:
    return sum(model.held_bytes for model in store.cache.models() if model.path == path or model.path.startswith(f"{path}/"))


def test_a_warmed_model_is_all_here_and_reading_it_fetches_nothing(store: Store, model: str, daemon: DaemonProcess) -> None:
    heard: list[tuple[int, int]] = []
    done = store.warm(model, progress=lambda here, total: heard.append((here, total)))
    assert (done.files, done.held_bytes, done.problems) == (3, MODEL_BYTES, 0)
    assert heard[-1] == (MODEL_BYTES, MODEL_BYTES)
    before = store.cache.status().fetched_bytes
    with daemon.http() as http:
        for seed, name in [*enumerate(SIZES)] * 2:
            assert http.get("/v1/tree/content", params={"path": f"{model}/{name}"}).content == content(seed, SIZES[name])
    after = store.cache.status()
    assert after.fetched_bytes == before
    assert after.saved_bytes == MODEL_BYTES  # read twice, fetched once
    with daemon.http() as http:
        lines = http.get("/metrics").text.splitlines()
    told = dict(line.rsplit(" ", 1) for line in lines if line.startswith("ckptstore_cache_"))
    assert (float(told["ckptstore_cache_saved_bytes"]), told["ckptstore_cache_up"]) == (MODEL_BYTES, "1.0")


def test_a_check_tells_how_much_is_here_and_fetches_nothing(store: Store, model: str) -> None:
    cold = list(store.cache.warm(model, check=True))
    assert [line.held_bytes for line in cold] == [0, 0, 0, 0]
    store.warm(f"{model}/onnx")
    warm = {line.path: line.held_bytes for line in store.cache.warm(model, check=True) if not line.done}
    assert {path.removeprefix(f"{model}/") for path, here in warm.items() if here} == {"onnx/model.onnx"}


def test_without_waiting_the_daemon_warms_by_itself(store: Store, model: str) -> None:
    assert store.warm(model, wait=False).begun
    until("the model is here", lambda: kept(store, model) == MODEL_BYTES)


def test_evict_gives_up_what_is_not_pinned(store: Store, model: str) -> None:
    store.warm(model)
    assert model in store.cache.pin(model)
    assert store.cache.evict(model).files == 0
    store.cache.unpin(model)
    gone = store.cache.evict(model)
    assert (gone.files, gone.size_bytes) == (3, MODEL_BYTES)
    assert kept(store, model) == 0
    with pytest.raises(NotFound, match="nothing is pinned"):
        store.cache.unpin(model)


def test_warming_what_is_not_there_is_an_error(store: Store) -> None:
    with pytest.raises(NotFound):
        store.warm("/models/no-such-model")


def test_the_shell_warms_pins_and_shows_it(store: Store, model: str, daemon: DaemonProcess, capsys: pytest.CaptureFixture[str]) -> None:
    def shell(*arguments: str) -> str:
        assert run([*arguments, "--home", str(daemon.home)]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert "3 files, 12.0 MiB of 12.0 MiB here" in shell("warm", model, "--pin")
    top = shell("cache", "top")
    assert any(model in line and "yes" in line for line in top.splitlines()), top
    assert f"pinned  {model}" in shell("cache", "status")
    assert "CACHE" in shell("status")
    found = json.loads(shell("cache", "top", "--json"))
    assert next(one for one in found["models"] if one["path"] == model)["files"] == 2
    shell("cache", "unpin", model)
    assert "evicted 3 files" in shell("cache", "evict", model)
