"""DeepSpeed with `guard`: what is copied while the model computes is what was there at the save, at every stage; what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckptstore.errors import InvalidInput
from tests.trainers.conftest import Place, differences, place_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from place_of(tmp_path_factory.mktemp("deepspeed-guard"), "deepspeed_guard", scripts=Path(__file__).parent)


@pytest.mark.parametrize("kind", ["stage-0", pytest.param("stage-1", marks=pytest.mark.soak), "stage-2", "stage-3", "bf16", "pipeline"])
def test_a_guarded_checkpoint_is_the_state_at_the_save_though_it_is_copied_late(place: Place, kind: str) -> None:
    """The script sees to it that nearly everything is copied late, and that a step would change it meanwhile."""
    for way in ("plain", "guarded"):
        place.run(f"/{kind}/{way}", ranks=2)
    assert place.steps(f"/{kind}/guarded") == [1, 2, 3]
    for step in (1, 2, 3):
        for rank in (0, 1):
            plain, guarded = (place.store.load(f"/{kind}/{way}/global_step{step}", rank=rank) for way in ("plain", "guarded"))
            assert differences(plain["files"], guarded["files"]) == []
            assert plain["files"] or rank == 1, "there is something to compare"


@pytest.mark.parametrize(("zenflow", "super_offload", "name"), [(True, False, "ZenFlow"), (False, True, "SuperOffload")])
def test_ways_that_change_weights_while_the_model_computes_are_refused(
    place: Place, zenflow: bool, super_offload: bool, name: str
) -> None:
    from ckptstore_client.trainers.deepspeed import StoreCheckpoints

    engine: Any = SimpleNamespace(
        zero_nvme_offload_optimizer=lambda: False,
        load_universal_checkpoint=lambda: False,
        zenflow=zenflow,
        super_offload=lambda: super_offload,
    )
    with pytest.raises(InvalidInput, match=name):
        StoreCheckpoints(engine, "/refused", store=place.store, guard=True)
