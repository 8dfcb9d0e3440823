from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.trainers.conftest import Place, differences, place_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of(tmp_path_factory.mktemp("lightning"), "lightning")


def test_killed_in_the_middle_and_started_again_it_ends_as_if_nothing_had_happened(place: Place) -> None:
    whole, resumed, left = place.whole_and_resumed("lightning", killed_at=8)
    assert left and left[-1] < 8, "the kill left nothing to resume from"
    assert differences(whole, resumed) == []
