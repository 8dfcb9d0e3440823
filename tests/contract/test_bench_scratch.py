"""Where the bench works: refused before anything is written, gone afterwards, and nothing of the operator's touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckptstore.errors import AlreadyExists, CkptStoreError, InvalidInput, TierFull
from ckptstore_bench.contenders.catalogue import LOADERS, SAVERS, Contender, chosen
from ckptstore_bench.contenders.interface import Saved, Setup
from ckptstore_bench.contenders.process import ContenderProcess
from ckptstore_bench.contests import Contest
from ckptstore_bench.scratch import SPARE_BYTES, Scratch
from ckptstore_bench.shape import equal_tensors
from ckptstore_bench.shared_state import SharedState

CONFIGURATION = """
[memory]
limit = "1GiB"
[[tiers]]
name = "nvme"
kind = "posix"
path = "{folder}/nvme"
capacity = "1MiB"
[[tiers]]
name = "pfs"
kind = "posix"
path = "{folder}/deep/pfs"
shared = true
"""

SECRET = """
[[tiers]]
name = "nvme"
kind = "posix"
path = "/mnt/nvme"
compression = "zstd"
[[tiers]]
name = "s3"
kind = "object"
url = "s3://models"
options = { endpoint_url = "http://127.0.0.1:9", profile = "mine" }
[[tiers]]
name = "other"
kind = "object"
url = "ftp://me:secret@host/models"
options = { password = "secret" }
"""


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A configured home with two tiers, one of which is in use."""
    place = tmp_path / "home"
    place.mkdir()
    (place / "config.toml").write_text(CONFIGURATION.format(folder=tmp_path), "utf-8")
    (tmp_path / "nvme").mkdir()
    (tmp_path / "nvme" / "store.json").write_text("the operator's", "utf-8")
    return place


def test_every_tier_has_a_place_of_its_own_and_all_go_again(home: Path, tmp_path: Path) -> None:
    before = everything(tmp_path)
    scratch = Scratch(home=home)
    assert everything(tmp_path) == before, "it wrote before it was entered"
    with scratch:
        paths = [tier.path for tier in scratch.tiers]
        assert [tier.name for tier in scratch.tiers] == ["nvme", "pfs"]
        assert all(path is not None and path.is_dir() and not any(path.iterdir()) for path in paths)
        assert (tmp_path / "nvme") in scratch.tiers[0].path.parents  # type: ignore[union-attr]
    assert everything(tmp_path) == before


def test_it_all_goes_when_the_run_fails_too(home: Path, tmp_path: Path) -> None:
    before = everything(tmp_path)
    with pytest.raises(KeyboardInterrupt), Scratch(home=home):
        raise KeyboardInterrupt
    assert everything(tmp_path) == before


def test_a_tier_too_small_is_refused_by_name(home: Path, tmp_path: Path) -> None:
    before = everything(tmp_path)
    with pytest.raises(TierFull, match="tier nvme") as refusal:
        Scratch(home=home).check_room(2 << 20)
    assert refusal.value.tier == "nvme"
    with pytest.raises(TierFull, match="room"):
        Scratch(folder=tmp_path / "new").check_room(1 << 60)
    assert everything(tmp_path) == before


def test_tiers_and_peers_on_one_device_share_its_room(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = SPARE_BYTES + 3_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=room))
    scratch = Scratch(home=home)
    scratch.check_room(1_000_000, beside_bytes=1_000_000)
    for need, beside in ((1_000_000, 1_000_001), (1_000_001, 1_000_000)):
        with pytest.raises(TierFull, match="tier nvme, pfs"):
            scratch.check_room(need, beside_bytes=beside)


def test_a_folder_in_use_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "theirs").write_text("x", "utf-8")
    before = everything(tmp_path)
    with pytest.raises(AlreadyExists, match="in use"):
        Scratch(folder=tmp_path / "used")
    with pytest.raises(AlreadyExists, match="in use"):
        Scratch(folder=tmp_path / "used" / "theirs")
    assert everything(tmp_path) == before


def test_a_report_tells_the_tiers_settings_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(SECRET, "utf-8")
    nvme, s3, other = Scratch(home=tmp_path).described()
    assert (nvme["kind"], nvme["write_threads"], nvme["compression"]) == ("posix", 6, "zstd")
    assert s3["options"] == {"endpoint_url": "http://127.0.0.1:9", "profile": "mine"} and s3["url"].startswith("s3://models/bench-")
    assert (other["url"], other["options"]) == ("ftp://…", {})


def test_the_environment_of_the_operators_store_does_not_reach_the_scratch_one(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKPTSTORE_CONFIG", str(home / "config.toml"))
    with Scratch(folder=tmp_path / "new"):
        assert "CKPTSTORE_CONFIG" not in os.environ
    assert os.environ["CKPTSTORE_CONFIG"] == str(home / "config.toml")


def test_unknown_peers_are_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="safetensors") as refusal:
        chosen(SAVERS, "dcp,nonsense")
    assert "nonsense" in str(refusal.value)


@pytest.mark.parametrize("known", [SAVERS, LOADERS])
def test_all_means_every_peer_and_nothing_means_none(known: dict[str, Contender]) -> None:
    peers = [contender for contender in known.values() if contender.role == "peer"]
    assert [one for one in chosen(known, "all") if one.role == "peer"] == peers
    assert not [one for one in chosen(known, "") if one.role == "peer"]


#: Peers as bad as they come; each is imported in a process of its own.
PEERS = """
import os
from ckptstore_bench.contenders.interface import CannotRun, Saved

class Crashes:
    def __init__(self, setup): ...
    def save(self, number):
        if number == 1:
            os.abort()
        print("noise that must not reach the terminal")
        return Saved(0.5, {"nvme": 1.0})
    def close(self): ...

class Refuses:
    def __init__(self, setup):
        raise CannotRun("no GPU here")

class Raises(Crashes):
    def save(self, number):
        raise OSError(28, "No space left on device", "/x")
"""


def peer(name: str, setup: Setup, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ContenderProcess:
    (folder / "bad_peers.py").write_text(PEERS, "utf-8")
    monkeypatch.syspath_prepend(str(folder))
    return ContenderProcess(Contender("peer", "a peer", name), setup)


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    shape = equal_tensors(64, 2)
    with SharedState(shape) as state:
        yield Setup(shape=shape, state=state.path, home=tmp_path, folder=tmp_path / "peer", disk="nvme", tiers=("nvme",))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("an_absent_module:Nothing", "an_absent_module is not installed: pip install"),
        ("bad_peers:Refuses", "no GPU here"),
        ("bad_peers:Raises", "OSError: [Errno 28] No space left"),
    ],
)
def test_a_peer_that_cannot_run_says_why_and_leaves_no_process(
    setup: Setup, name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with peer(name, setup, tmp_path, monkeypatch) as runner:
        runner.launch()
        runner.wait_ready()
        assert runner.turn("save", 0) is None
        assert why in (runner.why or "")
        assert runner.turn("save", 1) is None
    assert runner.pids == []


def test_a_peer_that_crashes_is_out_and_the_turns_before_count(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with peer("bad_peers:Crashes", setup, tmp_path, monkeypatch) as runner:
        runner.launch()
        runner.wait_ready()
        first = runner.turn("save", 0)
        assert first is not None
        assert first.value == Saved(0.5, {"nvme": 1.0})
        assert runner.turn("save", 1) is None
        assert runner.why == "its process ended (SIGABRT)"
    assert runner.pids == []
    assert "noise" not in "".join(capfd.readouterr())


def test_a_contender_of_the_run_itself_that_fails_ends_the_run_with_its_reason(setup: Setup) -> None:
    runner = ContenderProcess(Contender("ckptstore", "the store", "x:y", role="store"), setup, why="no daemon")
    contest = Contest(None, None, [runner])  # type: ignore[arg-type]
    with pytest.raises(CkptStoreError, match="ckptstore failed: no daemon"):
        contest.require("ckptstore")
