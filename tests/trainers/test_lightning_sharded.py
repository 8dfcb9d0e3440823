"""Lightning's sharded strategies on the store: killed and resumed, on as many ranks and on others; what is let go; what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ckptstore.errors import InvalidInput
from tests.trainers.conftest import Place, differences, place_of


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of(tmp_path_factory.mktemp("fsdp2"), "lightning_sharded")


@pytest.fixture(scope="module")
def fsdp1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of(tmp_path_factory.mktemp("fsdp1"), "lightning_fsdp")


def test_killed_in_the_middle_and_started_again_it_ends_as_if_nothing_had_happened(fsdp2: Place) -> None:
    whole, resumed, left = fsdp2.whole_and_resumed("two", killed_at=8, ranks=2)
    assert left and left[-1] < 8, "the kill left nothing to resume from"
    assert differences(whole, resumed) == []
    assert whole[0]["state_dict"]["layers.0.weight"].shape == (16, 9), "the model's own names, and whole tensors"


def test_what_two_ranks_saved_goes_on_with_three(fsdp2: Place) -> None:
    fsdp2.run("/spread", killed_at=8, ranks=2)
    assert fsdp2.steps("/spread"), "the kill left nothing to resume from"
    left = {entry.publication_id for entry in fsdp2.store.ls("/spread")}
    fsdp2.run("/spread", ranks=3)
    assert fsdp2.steps("/spread") == [2, 4, 6, 8, 10, 12]
    assert left < {entry.publication_id for entry in fsdp2.store.ls("/spread")}, "it began anew"
    assert fsdp2.store.stat("/spread/@latest").world_size == 3


def test_fsdp1_killed_in_the_middle_and_started_again_ends_as_if_nothing_had_happened(fsdp1: Place) -> None:
    whole, resumed, left = fsdp1.whole_and_resumed("one", killed_at=8, ranks=2)
    assert left and left[-1] < 8, "the kill left nothing to resume from"
    assert differences(whole, resumed) == []


def test_checkpoints_that_lightning_lets_go_are_removed_and_the_newest_stays(fsdp1: Place) -> None:
    fsdp1.run("/top/newest", ranks=2)
    assert fsdp1.steps("/top/newest") == [12]


def test_storage_options_are_refused(fsdp2: Place) -> None:
    from ckptstore_client.trainers.lightning_sharded import StoreModelParallelStrategy

    with pytest.raises(InvalidInput, match="storage_options"):
        StoreModelParallelStrategy(checkpoints="/refused", store=fsdp2.store).save_checkpoint({}, "one.ckpt", storage_options={"a": 1})
