"""What trainers share: words for the leaves of their states, and a folder whose old checkpoints go only when newer ones are published."""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore.errors import AttemptAborted, InvalidInput, NotFound, NotStorable
from ckptstore_client.store import Store
from ckptstore_client.trainers.folder import RunFolder
from ckptstore_client.trainers.random_states import random_states, set_random_states
from tests.daemon_process import DaemonProcess, write_config


class Word(str, Enum):  # noqa: UP042 - as the frameworks' own enums are made
    STEPS = "steps"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    home = tmp_path_factory.mktemp("folders")
    write_config(home, tiers=[{"name": "nvme", "kind": "posix", "path": home / "nvme"}], grace_s=0)
    with DaemonProcess(home), ckptstore.connect(home=home, start=False) as connected:
        yield connected


def folder_of(store: Store, path: str, **options: Any) -> RunFolder:
    return RunFolder(path, **{"store": store, "pickle": False, "on_busy": "wait", "incremental": False} | options)


def test_what_schedulers_and_callbacks_have_comes_back_as_it_was(store: Store) -> None:
    folder = folder_of(store, "/leaves")
    state = {
        "milestones": Counter({3: 1, 7: 2}),
        "seen": {1, 2},
        "names": frozenset({"a"}),
        "last": deque([torch.ones(2), 5], maxlen=3),
        "where": Path("/tmp/x"),
        "nested": [({"deep": Counter("aab")}, None)],
        "looks like ours": ("ckptstore", 1),
    }
    folder.save("/leaves/one", state).wait_published()
    loaded = folder.load("/leaves/one")
    assert torch.equal(loaded["last"].popleft(), state.pop("last").popleft())
    assert loaded.pop("last").maxlen == 3
    assert loaded == state
    assert type(loaded["milestones"]) is Counter and type(loaded["names"]) is frozenset


def test_an_enum_of_text_is_its_text(store: Store) -> None:
    folder = folder_of(store, "/enums")
    folder.save("/enums/one", {"strategy": Word.STEPS}).wait_published()
    assert folder.load("/enums/one") == {"strategy": "steps"}


def test_what_has_no_words_is_refused_by_place_and_pickled_only_on_demand_on_both_ways(store: Store) -> None:
    state = {"hyper": {"counts": defaultdict(int, a=1)}}
    with pytest.raises(NotStorable, match="hyper/counts"):
        folder_of(store, "/pickles").save("/pickles/one", state)
    trusting = folder_of(store, "/pickles", pickle=True)
    trusting.save("/pickles/one", state).wait_published()
    with pytest.raises(InvalidInput, match="hyper/counts: it was stored as pickle"):
        folder_of(store, "/pickles").load("/pickles/one")
    assert trusting.load("/pickles/one") == state


def test_random_numbers_go_on_where_they_were_saved(store: Store) -> None:
    folder = folder_of(store, "/random")
    folder.save("/random/one", {"random": random_states()}).wait_published()
    expected = random.random(), np.random.rand(), torch.rand(3)
    set_random_states(folder.load("/random/one")["random"])
    assert (random.random(), np.random.rand()) == expected[:2]
    assert torch.equal(torch.rand(3), expected[2])


def test_an_old_checkpoint_goes_when_what_was_being_saved_is_published(store: Store) -> None:
    folder = folder_of(store, "/runs/removing")
    folder.save("/runs/removing/1", {"x": 1})
    folder.save("/runs/removing/2", {"x": 2})
    folder.remove("/runs/removing/1")
    folder.finish()
    assert [entry.name for entry in store.ls("/runs/removing")] == ["2"]
    assert folder.newest() == "/runs/removing/2"


def test_an_old_checkpoint_stays_when_the_save_after_it_fails_and_the_end_tells(store: Store) -> None:
    one, other = store.sibling("pair"), store.sibling("pair")
    folder = folder_of(one, "/runs/failing")
    folder.save("/runs/failing/1", {"x": 1}, alone=True).wait_published()
    folder.save("/runs/failing/2", {"x": 2}, rank=0, world_size=2)
    folder.remove("/runs/failing/1")
    with pytest.raises(NotStorable):
        other.save("/runs/failing/2", {"x": object()}, rank=1, world_size=2, replace=True)
    with pytest.raises(AttemptAborted, match="rank 1 failed"):
        folder.finish()
    assert [entry.name for entry in store.ls("/runs/failing")] == ["1"]


def test_a_save_that_failed_is_a_warning_when_another_one_follows(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    one, other = store.sibling("second pair"), store.sibling("second pair")
    folder = folder_of(one, "/runs/warning")
    failed = folder.save("/runs/warning/1", {"x": 1}, rank=0, world_size=2)
    with pytest.raises(NotStorable):
        other.save("/runs/warning/1", {"x": object()}, rank=1, world_size=2, replace=True)
    with pytest.raises(AttemptAborted):
        failed.wait_published()
    folder.save("/runs/warning/2", {"x": 2}, alone=True)
    folder.finish()
    assert "/runs/warning/1 failed: rank 1 failed" in caplog.text
    assert [entry.name for entry in store.ls("/runs/warning")] == ["2"]


def test_a_checkpoint_that_is_held_stays_and_training_goes_on(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of(store, "/runs/held")
    folder.save("/runs/held/1", {"x": 1}).wait_published()
    store.retention.hold("/runs/held/1", "the paper's")
    folder.remove("/runs/held/1")
    assert folder.newest() == "/runs/held/1"
    assert "the paper's" in caplog.text


def test_a_folder_without_checkpoints_has_no_newest(store: Store) -> None:
    assert folder_of(store, "/runs/none").newest() is None
    with pytest.raises(NotFound):
        folder_of(store, "/runs/none").load("/runs/none/1")


def test_a_trainers_own_names_become_paths_in_the_folder(store: Store) -> None:
    folder = folder_of(store, "/runs/names")
    assert folder.path_of("/home/me/out/epoch=0-step=2.ckpt") == "/runs/names/epoch=0-step=2.ckpt"
    assert folder.path_of("/runs/names/@latest") == "/runs/names/@latest"
    assert folder.path_of("ckpt:///elsewhere/one") == "/elsewhere/one"
    assert folder.holds("/runs/names/one") and not folder.holds("/home/me/out") and not folder.holds(None)
