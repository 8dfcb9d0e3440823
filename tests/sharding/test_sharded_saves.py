"""What a job may hold and how it may change: experts, pipeline stages, own leaves, ties, frozen and meta tensors; and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from ckptstore.errors import AttemptAborted, InvalidInput, NotFound, NotStorable
from ckptstore_client import Part, Slice
from ckptstore_client.replicas import OpenFile
from ckptstore_client.saving import guarded_leaves
from ckptstore_client.sharding import spreading
from ckptstore_client.sharding.slices import ShardRequest
from ckptstore_client.staging import Staging
from ckptstore_tiers.checksums import BLOCK_BYTES
from tests.daemon_process import DaemonProcess, write_config
from tests.e2e.shell import Shell
from tests.sharding.simulated import Ranks, as_rank, dtensor, full, mesh_of, needed_blocks, states_of

WHOLE = torch.randn(16, 6)


def sharded(rank: int, count: int, *, empty: bool = False, **more: Any) -> dict[str, Any]:
    return {"w": dtensor(WHOLE, mesh_of((count,)), [Shard(0)], empty=empty), **more}


def refused(ranks: Ranks, path: str, states: list[Any], **options: Any) -> str:
    """Why no rank's wait succeeds; the checkpoint is not there."""
    pending = ranks.save(path, states, wait=None, **options)
    reasons = set()
    for one in pending:
        with pytest.raises(AttemptAborted) as caught:
            one.wait("nvme", timeout_s=60)
        reasons.add(caught.value.why)
    with pytest.raises(NotFound):
        ranks[0].stat(path)
    assert len(reasons) == 1
    return reasons.pop()


# --- experts and stages ----------------------------------------------------------------------------------------------


def test_experts_that_are_no_dtensors_are_slices_of_one_tensor(ranks: Ranks, folder: str) -> None:
    """Four ranks have two of eight experts each, on two replicas; loaded on two ranks with four each."""
    experts = torch.randn(8, 3, 5)
    states = [{"moe/w": experts[2 * (rank % 4) : 2 * (rank % 4) + 2].clone()} for rank in range(8)]
    parts = [{"moe%2Fw": Part(0, rank % 4, 4, replica=(rank // 4, 2))} for rank in range(8)]
    ranks.save(f"{folder}/x", states, shards=parts)
    assert torch.equal(ranks[0].load(f"{folder}/x")["moe/w"], experts)
    for rank in range(2):
        into = {"moe/w": torch.zeros(4, 3, 5)}
        ranks[0].load(f"{folder}/x", into=into, shards={"moe*": Slice((4 * rank, 0, 0), (8, 3, 5))})
        assert torch.equal(into["moe/w"], experts[4 * rank : 4 * rank + 4])


def test_a_missing_expert_is_named_and_nothing_is_published(ranks: Ranks, folder: str) -> None:
    states = [{"experts": {str(rank): torch.ones(3)}} for rank in range(3)]
    why = refused(ranks, f"{folder}/x", states, expect=tuple(f"experts/{i}" for i in range(4)))
    assert "'experts/3'" in why and "no rank has it" in why


def test_a_hole_and_an_overlap_of_slices_are_named(ranks: Ranks, folder: str) -> None:
    states = [{"e": torch.ones(2, 3)} for _ in range(2)]
    why = refused(ranks, f"{folder}/hole", states, shards=[{"e": Slice((0, 0), (6, 3))}, {"e": Slice((4, 0), (6, 3))}])
    assert "'e'" in why and "no rank has [2:4, 0:3]" in why
    why = refused(ranks, f"{folder}/twice", states, shards=[{"e": Part(0, 0, 2)}, {"e": Slice((1, 0), (4, 3))}])
    assert "'e'" in why and "ranks 0 and 1 both have [1:2, 0:3]" in why


def test_pipeline_stages_are_one_state_and_each_stage_loads_its_own(ranks: Ranks, folder: str) -> None:
    layers = {f"layer{i}": torch.randn(6, 4) for i in range(6)}

    def stage(rank: int, names: list[str], *, empty: bool = False) -> Any:
        mesh = DeviceMesh("cpu", [rank])
        return {"model": {name: dtensor(layers[name], mesh, [Replicate()], empty=empty) for name in names}, "step": 0 if empty else 7}

    names = list(layers)
    ranks.save(f"{folder}/x", states_of(3, lambda rank: stage(rank, names[2 * rank : 2 * rank + 2])))
    whole = ranks[0].load(f"{folder}/x")
    assert whole["step"] == 7 and all(torch.equal(whole["model"][name], layers[name]) for name in names)
    (into,) = states_of(1, lambda rank: stage(rank, names[1:4], empty=True))
    ranks[0].load(f"{folder}/x", into=into)
    assert into["step"] == 7 and all(torch.equal(into["model"][name].to_local(), layers[name]) for name in names[1:4])


def test_what_was_saved_by_one_process_loads_into_a_sharded_state(ranks: Ranks, folder: str) -> None:
    ranks[0].save(f"{folder}/pretrained", {"w": WHOLE}).wait("nvme", timeout_s=60)
    for state in states_of(3, lambda rank: sharded(rank, 3, empty=True)):
        ranks[0].load(f"{folder}/pretrained", into=state)
        assert torch.equal(state["w"].to_local(), full(state["w"], WHOLE))


# --- plain leaves ----------------------------------------------------------------------------------------------------


def test_leaves_that_ranks_had_their_own_of_are_refused_elsewhere_unless_per_rank_says(ranks: Ranks, folder: str) -> None:
    path = f"{folder}/x"
    states = states_of(4, lambda rank: sharded(rank, 4, rng={"seed": 100 + rank, "state": torch.tensor([rank])}, lr=0.5))
    ranks.save(path, states)

    def into(count: int) -> dict[str, Any]:
        return states_of(count, lambda rank: sharded(rank, count, empty=True, rng={"seed": 0, "state": torch.tensor([9])}, lr=0.0))[0]

    with pytest.raises(InvalidInput, match="rng/seed: ranks had their own of it"):
        ranks[0].load(path, into=into(2))
    own = into(4)
    ranks[0].load(path, into=own, rank=3)
    assert own["rng"]["seed"] == 103 and own["rng"]["state"].item() == 3 and own["lr"] == 0.5
    taken = into(2)
    ranks[0].load(path, into=taken, per_rank={"rng/seed": 2, "rng/*": lambda place, holders: holders[-1]})
    assert taken["rng"]["seed"] == 102 and taken["rng"]["state"].item() == 3
    kept = into(2)
    ranks[0].load(path, into=kept, per_rank="keep")
    assert kept["rng"] == {"seed": 0, "state": torch.tensor([9])} and kept["lr"] == 0.5
    without = {"w": into(2)["w"], "lr": 0.0}
    ranks[0].load(path, into=without)
    assert without["lr"] == 0.5


def test_a_plain_leaf_on_one_rank_that_is_a_shard_on_another_is_refused(ranks: Ranks, folder: str) -> None:
    why = refused(ranks, f"{folder}/x", [{"e": torch.ones(2)}, {"e": torch.ones(2)}], shards=[{"e": Slice((0,), (2,))}, {}])
    assert "'e'" in why and "plain leaf" in why


def test_a_rank_that_says_nothing_is_told_what_to_say(ranks: Ranks, folder: str) -> None:
    why = refused(ranks, f"{folder}/x", [{"e": torch.ones(2)}, {"f": 1}], shards=[{"e": Slice((0,), (2,))}, None])
    assert "rank 1 saved nothing of the whole" in why and "shards={}" in why


# --- tensors ---------------------------------------------------------------------------------------------------------


def test_what_several_ranks_hold_is_stored_once_and_balanced(ranks: Ranks, folder: str, daemon: DaemonProcess) -> None:
    whole = torch.randn(1024, 1024)
    states = states_of(4, lambda _: {"w": dtensor(whole, mesh_of((2, 2)), [Replicate(), Shard(0)])})
    ranks.save(f"{folder}/x", states)
    sizes = [file.stat().st_size for file in (daemon.home / "nvme/objects" / folder[1:] / "x").glob("rank-*")]
    assert sum(sizes) < whole.nbytes + 4 * 8192 and max(sizes) < whole.nbytes / 4 + 8192
    assert torch.equal(ranks[0].load(f"{folder}/x")["w"], whole)


def test_tied_and_frozen_parameters_come_back(ranks: Ranks, folder: str, daemon: DaemonProcess) -> None:
    def state(rank: int) -> Any:
        embedding = dtensor(WHOLE, mesh_of((2,)), [Shard(0)])
        return {"embedding": embedding, "head": embedding, "bias": dtensor(WHOLE, mesh_of((2,)), [Shard(1)]).requires_grad_()}

    ranks.save(f"{folder}/x", states_of(2, state))
    sizes = [file.stat().st_size for file in (daemon.home / "nvme/objects" / folder[1:] / "x").glob("rank-*")]
    assert sum(sizes) < 2 * WHOLE.nbytes + 2 * 4096 + 100, "the tied parameter is stored once"
    whole = ranks[0].load(f"{folder}/x")
    assert all(torch.equal(whole[name], WHOLE) for name in ("embedding", "head", "bias"))
    (into, _) = states_of(2, state)
    with torch.no_grad():
        for value in into.values():
            value.to_local().zero_()
    ranks[0].load(f"{folder}/x", into=into)
    assert torch.equal(into["head"].to_local(), WHOLE[:8]) and torch.equal(into["bias"].to_local(), WHOLE[:, :3])


def test_what_an_optimizer_owns_is_guarded_in_its_local_tensors() -> None:
    """With `guard=`, a DTensor parameter is copied while training goes on, and a buffer is not."""
    with as_rank(1, 2):
        parameter = torch.nn.Parameter(dtensor(WHOLE, mesh_of((2,)), [Shard(0)]))
        state = {"parameter": parameter, "buffer": dtensor(WHOLE, mesh_of((2,)), [Shard(0)])}
    staged = Staging().plan(state, ShardRequest(1, 2))
    leaves = guarded_leaves(staged, [torch.optim.SGD([parameter])])
    assert [staged.plan.leaf_keys[leaf] for leaf in leaves] == ["parameter"]


def test_ties_of_tensors_that_are_empty_on_some_rank_are_no_disagreement(ranks: Ranks, folder: str) -> None:
    one_row = torch.randn(1, 4)

    def state(rank: int) -> Any:
        value = dtensor(one_row, mesh_of((3,)), [Shard(0)])
        other = DTensor.from_local(value.to_local(), value.device_mesh, value.placements, shape=value.shape, stride=(4, 1))
        return {"a": value, "b": other}

    ranks.save(f"{folder}/x", states_of(3, state))
    whole = ranks[0].load(f"{folder}/x")
    assert torch.equal(whole["a"], one_row) and torch.equal(whole["b"], one_row)


def test_a_meta_tensor_is_refused_by_its_place(ranks: Ranks, folder: str) -> None:
    def state(rank: int) -> Any:
        return {"deep": {"w": DTensor.from_local(torch.empty(4, 2, device="meta"), mesh_of((2,)), [Shard(0)], run_check=False)}}

    with pytest.raises(NotStorable, match=r"deep/w.*meta"):
        ranks[0].save(f"{folder}/x", states_of(2, state)[0], rank=0, world_size=2)


def test_a_structure_that_changes_between_saves_is_saved_as_it_is_now(ranks: Ranks, folder: str) -> None:
    """A tensor more, another placement, another shape, back again: nothing of an earlier plan stays."""
    small, large = torch.randn(6, 4), torch.randn(12, 4)
    variants = [
        {"a": (small, Shard(0))},
        {"a": (small, Shard(0)), "b": (large, Shard(0))},
        {"a": (small, Shard(1)), "b": (large, Shard(0))},
        {"a": (large, Shard(0)), "b": (large, Replicate())},
        {"a": (small, Shard(0))},
    ]
    for step, variant in enumerate(variants):
        states = states_of(2, lambda _, v=variant: {key: dtensor(whole, mesh_of((2,)), [how]) for key, (whole, how) in v.items()})
        ranks.save(f"{folder}/{step}", states)
        loaded = ranks[0].load(f"{folder}/{step}")
        assert loaded.keys() == variant.keys() and all(torch.equal(loaded[key], whole) for key, (whole, _) in variant.items())


@pytest.mark.parametrize("knows_specs", [True, False], ids=["specs", "public"])
def test_states_of_one_structure_are_planned_once(knows_specs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with new tensors, as each `state_dict()` makes them, and on a torch whose DTensors have no `_spec`."""
    if not knows_specs:

        def unknown(dtensors: Any) -> Any:
            raise AttributeError("_spec")

        monkeypatch.setattr(spreading, "attrgetter", lambda name: unknown)
    made, make = [], spreading._Maker.make
    monkeypatch.setattr(spreading._Maker, "make", lambda maker: made.append(maker) or make(maker))
    staging, request = Staging(), ShardRequest(0, 2, {})
    with as_rank(0, 2):
        mesh = mesh_of((2,))

        def plan(step: int, placement: Any) -> Any:
            state = {"w": dtensor(torch.randn(6, 4), mesh, [placement]), "step": step, "lr": torch.tensor(0.1 / (step + 1))}
            return staging.plan(state, request)

        first, *others = [plan(step, Shard(0)) for step in range(3)]
        assert len(made) == 1
        assert all(other.plan is first.plan for other in others)
        plan(3, Shard(1))
    assert len(made) == 2


def test_numpy_arrays_are_sharded_as_tensors_are(ranks: Ranks, folder: str) -> None:
    whole = np.arange(24, dtype=np.int32).reshape(6, 4)
    ranks.save(f"{folder}/x", [{"a": whole[:, :2].copy()}, {"a": whole[:, 2:].copy()}], shards=[{"a": Part(1, i, 2)} for i in range(2)])
    assert np.array_equal(ranks[0].load(f"{folder}/x")["a"], whole)
    into = {"a": np.zeros((2, 4), np.int32)}
    ranks[0].load(f"{folder}/x", into=into, shards={"a": Part(0, 1, 3)})
    assert np.array_equal(into["a"], whole[2:4])


def test_an_incremental_sharded_save_writes_what_changed_and_loads_whole(ranks: Ranks, folder: str, tmp_path: Path) -> None:
    frozen, moving = torch.randn(64, 64), torch.randn(64, 64)
    for step in range(2):
        both = {"f": frozen, "m": moving}
        states = states_of(2, lambda _, both=both: {name: dtensor(whole, mesh_of((2,)), [Shard(0)]) for name, whole in both.items()})
        ranks.save(f"{folder}/{step}", states, incremental=True)
        assert torch.equal(ranks[0].load(f"{folder}/{step}")["m"], moving)
        moving = moving + 1
    assert ranks[0].stat(f"{folder}/1").referred_bytes == frozen.nbytes
    ranks[0].get(f"{folder}/1", tmp_path / "got")
    assert load_file(tmp_path / "got/rank-00001-of-00002.safetensors")["f"].equal(frozen[32:])
    for state in states_of(3, lambda _: {"f": dtensor(frozen, mesh_of((3,)), [Shard(1)], empty=True)}):
        ranks[0].load(f"{folder}/1", into=state)
        assert torch.equal(state["f"].to_local(), full(state["f"], frozen))


@pytest.mark.parametrize(
    ("shards", "told"),
    [
        ({"mispelt": Part(0, 0, 1)}, "mispelt"),
        ({"e": Part(0, 3, 2)}, "does not fit"),
        ({"e": Slice((5, 0), (6, 3))}, "does not lie"),
        ({"e": "rows"}, "takes Slice and Part"),
    ],
)
def test_what_shards_says_wrongly_is_refused_before_anything_is_saved(ranks: Ranks, folder: str, shards: Any, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        ranks[0].save(f"{folder}/x", {"e": torch.ones(2, 3)}, shards=shards)


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.fixture
def blocks_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Each read of a tier's file: which, and how many bytes."""
    seen: list[tuple[int, int]] = []
    read = OpenFile.read

    def counted(self: OpenFile, offset: int, views: Any, *, again: bool) -> None:
        seen.append((offset, sum(map(len, views))))
        read(self, offset, views, again=again)

    monkeypatch.setattr(OpenFile, "read", counted)
    yield seen


@pytest.mark.parametrize("how", [Shard(0), Shard(1)], ids=["rows", "columns"])
def test_a_load_reads_hardly_more_than_the_blocks_it_needs(
    tmp_path: Path, blocks_read: list[tuple[int, int]], how: Any
) -> None:
    """48 MiB on four ranks, of which one of three ranks wants its share; counted where the tier's files are read."""
    write_config(tmp_path, tiers=[{"name": "nvme", "kind": "posix", "path": tmp_path / "nvme"}], memory={"limit": "512MiB", "slots": 1})
    wholes = {"w": torch.randn(3 << 10, 2 << 10), "v": torch.randn(6 << 20)}
    with DaemonProcess(tmp_path) as process, Ranks(tmp_path) as ranks:
        ranks.save("/x", states_of(4, lambda _: {name: dtensor(whole, mesh_of((4,)), [Shard(0)]) for name, whole in wholes.items()}))
        process.stop()
        process.start()  # so that nothing is left in memory
        placements = {"w": [how], "v": [Shard(0)]}
        (_, state, _) = states_of(
            3, lambda _: {name: dtensor(whole, mesh_of((3,)), placements[name], empty=True) for name, whole in wholes.items()}
        )
        ranks[0].load("/x", into=state)
        assert all(torch.equal(state[name].to_local(), full(state[name], whole)) for name, whole in wholes.items())
        read = sum(size for _, size in blocks_read)
        needed = len(needed_blocks(ranks[0], "/x", state))
    assert read <= 1.05 * needed * BLOCK_BYTES


def test_what_no_other_rank_wants_is_read_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a node with several ranks: from replicated tensors they all read the same, from sharded ones each its own."""
    cached: list[bool] = []
    read = OpenFile.read

    def noted(self: OpenFile, offset: int, views: Any, *, again: bool) -> None:
        if offset:  # the first block has the header, which all want
            cached.append(not self.bounces)
        read(self, offset, views, again=again)

    write_config(tmp_path, tiers=[{"name": "nvme", "kind": "posix", "path": tmp_path / "nvme"}], memory={"limit": "256MiB"})
    whole = torch.randn(3 << 10, 2 << 10)
    with DaemonProcess(tmp_path) as process, Ranks(tmp_path) as ranks:
        ranks.save("/x", states_of(2, lambda _: {"w": dtensor(whole, mesh_of((2,)), [Shard(0)])}))
        process.stop()
        process.start()  # so that nothing is left in memory
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
        monkeypatch.setattr(OpenFile, "read", noted)
        for how, shared in (Shard(0), False), (Replicate(), True):
            (_, state, _) = states_of(3, lambda _, how=how: {"w": dtensor(whole, mesh_of((3,)), [how], empty=True)})
            cached.clear()
            ranks[0].load("/x", into=state)
            assert torch.equal(state["w"].to_local(), full(state["w"], whole))
            assert cached and set(cached) == {shared}


def test_a_sharded_checkpoint_is_whole_again_after_a_rebuild_of_the_catalog(tmp_path: Path) -> None:
    write_config(tmp_path, tiers=[{"name": "nvme", "kind": "posix", "path": tmp_path / "nvme"}], memory={"limit": "256MiB"})
    with DaemonProcess(tmp_path) as process, Ranks(tmp_path) as ranks:
        ranks.save("/run/x", states_of(3, lambda rank: sharded(rank, 3, seed=rank)))
        process.stop()
        for file in tmp_path.glob("catalog.sqlite3*"):
            file.unlink()
        Shell(tmp_path).ok("catalog", "rebuild", "--yes")
        process.start()
        assert torch.equal(ranks[0].load("/run/x", only="w")["w"], WHOLE)
        for state in states_of(2, lambda rank: sharded(rank, 2, empty=True)):
            ranks[0].load("/run/x", into=state)
            assert torch.equal(state["w"].to_local(), full(state["w"], WHOLE))
