"""torchtitan on the store: the example killed and resumed, on as many ranks and on others; other ways to load; what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.errors import InvalidInput
from tests.trainers.conftest import Place, differences, place_of

#: torchtitan's container of optimizers is one itself, so each of its steps counts twice.
KILLED_AT = 2 * 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of(tmp_path_factory.mktemp("torchtitan"), "torchtitan")


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of(tmp_path_factory.mktemp("moving"), "torchtitan_moving", scripts=Path(__file__).parent)


def test_killed_in_the_middle_and_started_again_it_ends_as_if_nothing_had_happened(place: Place) -> None:
    whole, resumed, left = place.whole_and_resumed("two", killed_at=KILLED_AT, ranks=2)
    assert left and left[-1] < 8, "the kill left nothing to resume from"
    assert differences(whole, resumed) == []
    assert whole[0]["0.weight"].shape == (16, 9) and whole[0]["train_state"] == {"step": 12}


def test_what_torchtitans_own_manager_wrote_through_its_urls_is_gone_on_with(place: Place, moving: Place) -> None:
    place.run("/reference", ranks=2)
    moving.run("/moved", killed_at=KILLED_AT, ranks=2)
    assert {entry.kind for entry in moving.store.ls("/moved")} == {"folder"}, "torchtitan's own, in DCP's files"
    moving.run("/moved", ranks=2)
    assert moving.steps("/moved") == [8, 10, 12], "it began anew"
    assert differences(place.store.load("/reference/step-12"), moving.store.load("/moved/step-12")) == []


@pytest.mark.parametrize("refused", [{"folder": "checkpoint"}, {"folder": "ckpt:///a", "async_mode": "async_with_pinned_mem"}])
def test_what_makes_no_sense_is_refused(refused: dict[str, str]) -> None:
    from ckptstore_client.trainers.torchtitan import StoreCheckpointManager

    with pytest.raises(InvalidInput):
        StoreCheckpointManager.Config(enable=True, **refused)
