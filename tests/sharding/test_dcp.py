"""DCP as users call it, through our writer, stager and reader: real gloo jobs for the whole way, simulated ranks for the planner's ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from ckptstore.errors import InvalidInput, NotFound, NotStorable
from ckptstore_client import Store
from ckptstore_client.torch import Reader, Writer
from tests.daemon_process import DaemonProcess
from tests.e2e.job import Job
from tests.sharding.dcp_program import digest
from tests.sharding.simulated import Ranks, dtensor, full, mesh_of, states_of
from tests.until import until

PROGRAM = Path(__file__).with_name("dcp_program.py")
W, V = torch.randn(12, 5), torch.randn(7)


class DcpJob(Job):
    program = PROGRAM


# --- real jobs -------------------------------------------------------------------------------------------------------


def test_a_job_saves_with_dcp_in_every_way_and_one_of_another_size_loads_the_same_bits(
    daemon: DaemonProcess, ranks: Ranks, folder: str
) -> None:
    with DcpJob(daemon.home, folder, "save", [[]] * 4) as job:
        saved = job.expect("saved", range(4))
        staged_then_trained = job.expect("async", range(4))
        assert all(said["same"] for said in job.expect("planner", range(4)))
    digests = {said["digest"] for said in (*saved, *staged_then_trained)}
    assert len(digests) == 1 and saved[0]["published"] == 4
    for said in staged_then_trained:
        told = (said["where"], said["step"], said["metadata"], said["durability"])
        assert told == (f"{folder}/async", 13, {"loss": 0.5}, ["nvme"])
    with DcpJob(daemon.home, folder, "load", [[]] * 3) as job:
        loaded = job.expect("loaded", range(3))
    assert {said["save"] for said in loaded} == {said["async"] for said in loaded} == digests
    for name in ("save", "async"):
        whole = ranks[0].load(f"{folder}/{name}")
        assert digest(whole) == saved[0]["digest"] and whole["step"] == 12
        assert torch.equal(whole["model"]["head.weight"], whole["model"]["embedding.weight"])


def test_trainers_that_die_after_staging_lose_nothing(daemon: DaemonProcess, ranks: Ranks, folder: str) -> None:
    with DcpJob(daemon.home, folder, "die", [[]] * 2) as job:
        (said, _) = job.expect("staged", range(2))
    until("the daemon publishes what it was handed", lambda: is_published(ranks[0], f"{folder}/die"))
    assert digest(ranks[0].load(f"{folder}/die")) == said["digest"]


def is_published(store: Store, path: str) -> bool:
    try:
        return bool(store.stat(path))
    except NotFound:
        return False


# --- simulated ranks -------------------------------------------------------------------------------------------------


def staged(ranks: Ranks, path: str, states: list[Any], **options: Any) -> None:
    writers = []
    for rank, state in enumerate(states):
        writers.append(Writer(path, store=ranks[rank], rank=rank, world_size=len(states), **options))
        writers[-1].stage(state)
    for writer in writers:
        assert writer.pending is not None
        writer.pending.wait("nvme", timeout_s=60)


def load(ranks: Ranks, path: str, state: Any, **options: Any) -> None:
    """`dcp.load` as one rank of a job does it, but for the exchange of plans, which changes nothing."""
    reader, planner = Reader(path, store=ranks[0], **options), DefaultLoadPlanner()
    planner.set_up_planner(state, reader.read_metadata())
    reader.read_data(planner.finish_plan(reader.prepare_local_plan(planner.create_local_plan())), planner).wait()


@pytest.mark.parametrize("count", [1, 3, 6])
def test_what_eight_ranks_staged_loads_on_other_ranks(ranks: Ranks, folder: str, count: int) -> None:
    def state(shape: tuple[int, ...], how: list[Any], empty: bool) -> Any:
        mesh = mesh_of(shape)
        model = {"w": dtensor(W, mesh, how, empty=empty), "v": dtensor(V, mesh, [Shard(0)] * len(shape), empty=empty)}
        optim = {"state": {0: {"step": torch.tensor(0.0 if empty else 4.0)}}, "groups": [{"lr": 0.1, "params": [0]}]}
        return {"model": model, "optim": optim}

    staged(ranks, f"{folder}/x", states_of(8, lambda _: state((2, 4), [Replicate(), Shard(0)], False)))
    for into in states_of(count, lambda _: state((count,), [Shard(1)], True)):
        load(ranks, f"{folder}/x", into)
        assert torch.equal(into["model"]["w"].to_local(), full(into["model"]["w"], W))
        assert torch.equal(into["model"]["v"].to_local(), full(into["model"]["v"], V))
        assert into["optim"]["state"][0]["step"].item() == 4.0 and into["optim"]["groups"] == [{"lr": 0.1, "params": [0]}]


FSDP_AFTER_TENSOR_PARALLELISM = [_StridedShard(0, split_factor=2), Shard(0)]


class OwnSavePlanner(DefaultSavePlanner):
    pass


class OwnLoadPlanner(DefaultLoadPlanner):
    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        return super().resolve_tensor(read_item)


def test_rows_that_torchs_planner_knows_nothing_of_are_loaded_and_no_memory_of_others_is_written(ranks: Ranks, folder: str) -> None:
    """9 rows over 4 × 2 ranks: the last rank has row 8, and torch says none."""
    whole, mesh_shape = torch.randn(9, 4), (4, 2)

    def state(empty: bool) -> Any:
        return {"w": dtensor(whole, mesh_of(mesh_shape), FSDP_AFTER_TENSOR_PARALLELISM, empty=empty)}

    staged(ranks, f"{folder}/x", states_of(8, lambda _: state(False)))
    for into in (states := states_of(8, lambda _: state(True))):
        load(ranks, f"{folder}/x", into)
        assert torch.equal(into["w"].to_local(), full(into["w"], whole))
    assert len(states[7]["w"].to_local()) == 1
    value = states[7]["w"]
    small = DTensor.from_local(torch.zeros(0, 4), value.device_mesh, value.placements, run_check=False, shape=whole.shape, stride=(4, 1))
    with pytest.raises(InvalidInput, match=r"load into w: its local tensor is \(0, 4\), its placements say \(1, 4\)"):
        load(ranks, f"{folder}/x", {"w": small})


def test_rows_that_torchs_planner_mistakes_are_loaded_as_they_lie_or_refused(ranks: Ranks, folder: str) -> None:
    """13 rows over 3 × 2 ranks: FSDP's last two ranks have rows 6 and 11 to 12, and torch says 6 to 7 and 12."""
    whole = torch.randn(13, 4)

    def state(empty: bool) -> Any:
        return {"w": dtensor(whole, mesh_of((3, 2)), FSDP_AFTER_TENSOR_PARALLELISM, empty=empty)}

    saved = states_of(6, lambda _: state(False))
    staged(ranks, f"{folder}/x", saved)
    for into in states_of(6, lambda _: state(True)):
        load(ranks, f"{folder}/x", into)
        assert torch.equal(into["w"].to_local(), full(into["w"], whole))
    planner, reader = OwnLoadPlanner(), Reader(f"{folder}/x", store=ranks[0])
    planner.set_up_planner(saved[5], reader.read_metadata())
    with pytest.raises(InvalidInput, match=r"load into w: a planner of your own"):
        reader.read_data(planner.create_local_plan(), planner)
    with pytest.raises(CheckpointException, match=r"save w: its local tensor is \(2, 4\), the planner says \(1, 4\)"):
        dcp.save(saved[5], storage_writer=Writer(f"{folder}/y", store=ranks[0]), planner=OwnSavePlanner(), no_dist=True)


def test_one_process_saves_and_loads_without_a_process_group(ranks: Ranks, folder: str) -> None:
    state = {"w": W.clone(), "nested": {"list": [V.clone(), 3], "tuple": (V.clone(), "x"), "none": None}, "size": torch.Size([2, 3])}
    dcp.save(state, storage_writer=Writer(f"ckpt://{folder}/x", store=ranks[0]), no_dist=True)
    into = {"w": torch.zeros_like(W), "nested": {"list": [torch.zeros_like(V), 0], "tuple": (), "none": 1}, "size": None}
    dcp.load(into, storage_reader=Reader(f"{folder}/@latest", store=ranks[0]), no_dist=True)
    assert torch.equal(into["w"], W) and torch.equal(into["nested"]["list"][0], V) and into["nested"]["list"][1] == 3
    assert torch.equal(into["nested"]["tuple"][0], V) and into["nested"]["tuple"][1] == "x" and into["nested"]["none"] is None
    assert into["size"] == torch.Size([2, 3])


def test_a_torch_that_gives_no_stagers_future_back_saves_asynchronously(
    ranks: Ranks, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There `stage` gives what is left of the state itself, and `async_save` the one future of the upload."""
    monkeypatch.setattr("ckptstore_client.torch.writer._TAKES_FUTURES", False)
    taken = Writer(f"{folder}/x", store=ranks[0])
    state = {"w": W.clone()}
    assert taken.stage(state) == {}
    state["w"].zero_()  # the copy was made
    taken.pending.wait_published(timeout_s=60)
    assert torch.equal(ranks[0].load(f"{folder}/x")["w"], W)


def test_a_part_of_what_was_saved_can_be_loaded_and_a_wrong_shape_is_refused(ranks: Ranks, folder: str) -> None:
    dcp.save({"w": W, "v": V}, storage_writer=Writer(f"{folder}/x", store=ranks[0]), no_dist=True)
    into = {"v": torch.zeros_like(V)}
    dcp.load(into, storage_reader=Reader(f"{folder}/x", store=ranks[0]), no_dist=True)
    assert torch.equal(into["v"], V)
    with pytest.raises(CheckpointException, match="Size mismatch"):
        dcp.load({"v": torch.zeros(3)}, storage_reader=Reader(f"{folder}/x", store=ranks[0]), no_dist=True)


class Opaque:
    def __init__(self, value: int) -> None:
        self.value = value


def test_objects_that_json_cannot_hold_need_consent_on_both_sides(ranks: Ranks, folder: str) -> None:
    with pytest.raises(NotStorable, match="thing"):
        Writer(f"{folder}/x", store=ranks[0]).stage({"w": W, "thing": Opaque(3)})
    dcp.save({"w": W, "thing": Opaque(3)}, storage_writer=Writer(f"{folder}/y", store=ranks[0], pickle=True), no_dist=True)
    with pytest.raises(CheckpointException, match="stored as pickle"):
        dcp.load({"thing": None}, storage_reader=Reader(f"{folder}/y", store=ranks[0]), no_dist=True)
    into: dict[str, Any] = {"thing": None}
    dcp.load(into, storage_reader=Reader(f"{folder}/y", store=ranks[0], pickle=True), no_dist=True)
    assert into["thing"].value == 3


def test_the_files_are_safetensors_without_pickle(ranks: Ranks, folder: str, daemon: DaemonProcess) -> None:
    import pickletools

    from safetensors import safe_open

    staged(ranks, f"{folder}/x", states_of(2, lambda _: {"w": dtensor(W, mesh_of((2,)), [Shard(0)]), "step": 3}))
    files = sorted((daemon.home / "nvme/objects" / folder[1:] / "x").iterdir())
    assert len(files) == 4  # two ranks, checkpoint.json, shards.json
    for file in files:
        data = file.read_bytes()
        with pytest.raises(ValueError):
            list(pickletools.genops(data))
        if file.name.startswith("rank-"):
            with safe_open(str(file), "pt") as opened:
                assert opened.get_tensor("w").shape == (6, 5)


def test_with_async_save_a_planner_of_the_users_is_refused_since_it_comes_too_late(ranks: Ranks, folder: str) -> None:
    class Own(DefaultSavePlanner):
        pass

    with pytest.raises(CheckpointException, match="staged before the planner saw it"):
        future = dcp.async_save({"w": W}, storage_writer=Writer(f"{folder}/x", store=ranks[0]), planner=Own(), no_dist=True)
        getattr(future, "upload_completion", future).result()


def test_a_checkpoint_id_that_comes_after_staging_must_be_the_writers_own(ranks: Ranks, folder: str) -> None:
    writer = Writer(f"{folder}/x", store=ranks[0])
    writer.stage({"w": W})
    with pytest.raises(InvalidInput, match="staged for"):
        writer.reset(f"{folder}/other")


def test_leaves_that_ranks_had_their_own_of_are_refused_by_the_reader_as_by_load(ranks: Ranks, folder: str) -> None:
    staged(ranks, f"{folder}/x", states_of(2, lambda rank: {"w": dtensor(W, mesh_of((2,)), [Shard(0)]), "seed": rank}))
    with pytest.raises(InvalidInput, match="seed: ranks had their own"):
        load(ranks, f"{folder}/x", {"w": torch.zeros_like(W), "seed": 9})
    into = {"w": torch.zeros_like(W), "seed": 9}
    load(ranks, f"{folder}/x", into, per_rank=1)
    assert into["seed"] == 1 and torch.equal(into["w"], W) and not isinstance(into["w"], DTensor)
