"""torchtitan's own trainer, killed and resumed: FSDP over two ranks, and with tensor parallelism beside it over four."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainers.conftest import Place, differences, place_of

#: The optimizers' container is an optimizer itself, so each of its steps counts twice.
KILLED_AT = 2 * 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of(tmp_path_factory.mktemp("titan"), "titan_trainer", scripts=Path(__file__).parent)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_its_own_loop_killed_in_the_middle_and_started_again_ends_as_if_nothing_had_happened(place: Place, ranks: int) -> None:
    whole, resumed, left = place.whole_and_resumed(f"of-{ranks}", killed_at=KILLED_AT, ranks=ranks)
    assert left and left[-1] < 6, "the kill left nothing to resume from"
    assert differences(whole, resumed) == []
    assert whole[0]["train_state"]["step"] == 8
    assert whole[0]["tok_embeddings.weight"].shape == (2048, 256)
