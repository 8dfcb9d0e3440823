"""One rank is asked for a checkpoint, and told to end: all ranks save at one step, with every kind of trainer, and go on from there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainers.conftest import Place, differences, place_of

#: Accelerate counts its saves; Lightning counts an epoch as begun once more when it goes on at the end of one.
COUNTERS = ("/iteration", "/epoch_progress/")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of(tmp_path_factory.mktemp("asked"), "asked", scripts=Path(__file__).parent)


@pytest.mark.parametrize(
    ("trainer", "ranks"),
    [
        ("plain", 3),
        ("accelerate", 2),
        ("transformers", 2),
        ("lightning_ddp", 2),
        ("model_parallel", 2),
        pytest.param("fsdp", 2, marks=pytest.mark.soak),
    ],
)
def test_what_one_rank_is_asked_for_all_save_at_one_step_and_go_on_from_there(place: Place, trainer: str, ranks: int) -> None:
    asked = f"/{trainer}/asked"
    place.run(asked, ranks=ranks)
    told = [json.loads((place.home / f"{trainer}-{rank}.json").read_text()) for rank in range(ranks)]
    (left_at,) = {line["left_at"] for line in told}
    steps = place.steps(asked)
    assert len(steps) == 2, "one for the request, after which it went on, and one before the end"
    assert steps[-1] == left_at
    assert told[0]["kept"]["reached"]
    assert place.store.stat(told[0]["kept"]["path"]).step == left_at

    place.run(asked, ranks=ranks)
    last = place.store.stat(f"{asked}/@latest")
    assert last.step == left_at + 10
    place.run(whole := f"/{trainer}/whole-{last.step}", ranks=ranks)
    for rank in range(last.world_size or 1):
        resumed, undisturbed = (place.store.load(f"{folder}/@latest", rank=rank) for folder in (asked, whole))
        assert [found for found in differences(resumed, undisturbed) if not any(counter in found for counter in COUNTERS)] == []
