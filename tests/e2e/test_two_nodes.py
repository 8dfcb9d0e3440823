"""One store over two nodes: a shared PostgreSQL catalog and a shared parallel file system, and an NVMe on each node."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import ckptstore
from ckptstore.catalog import Catalog
from ckptstore.errors import AttemptAborted, CkptStoreError, NotFound, Unauthorized, WaitTimeout
from ckptstore_bench.ports import free_port
from tests.e2e.two_nodes import (
    PATIENCE_S,
    TOKEN,
    WORLD_SIZE,
    Cluster,
    InBackground,
    Node,
    assert_part,
    part,
    trained,
)
from tests.faults.fault_store import published
from tests.services.postgres import Postgres
from tests.until import until

GROUPS = (f"incarnation {number}" for number in itertools.count())


@pytest.fixture(scope="module")
def cluster(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """For tests that leave both daemons as they were."""
    with Cluster(tmp_path_factory.mktemp("nodes"), postgres.database()) as both:
        yield both


@pytest.fixture
def fresh(postgres: Postgres, tmp_path: Path) -> Iterator[Cluster]:
    """For tests that end a daemon: not started yet."""
    both = Cluster(tmp_path, postgres.database())
    yield both
    both.__exit__()


def save_all(cluster: Cluster, path: str, value: int, tier: str) -> None:
    with cluster.ranks(next(GROUPS)) as ranks:
        pendings = [store.save(path, part(rank, value), rank=rank, world_size=WORLD_SIZE) for rank, store in enumerate(ranks)]
        for pending in pendings:
            pending.wait(tier, timeout_s=PATIENCE_S)


# --- one checkpoint ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [0, 3])
def test_a_checkpoint_is_visible_on_both_nodes_only_when_the_last_rank_has_arrived(cluster: Cluster, last: int) -> None:
    path = f"/two/last-{last}"
    order = [rank for rank in range(WORLD_SIZE) if rank != last] + [last]
    with cluster.ranks(next(GROUPS)) as ranks:
        pendings = {}
        for rank in order:
            for store in ranks:
                assert not published(store, path)
                assert f"last-{last}" not in [entry.name for entry in store.ls("/two" if published(store, "/two") else "/")]
            pendings[rank] = ranks[rank].save(path, part(rank, 1), rank=rank, world_size=WORLD_SIZE)
        for rank in order:
            pendings[rank].wait("nvme", timeout_s=PATIENCE_S)
        for store in ranks:
            entry = store.stat(path)
            assert (entry.world_size, bool(entry.durability)) == (WORLD_SIZE, True)  # the shared tier, deeper, may have it first
        until("both nodes' NVMe have it", lambda: all("nvme" in store.stat(path).durability for store in ranks))


def test_each_rank_loads_its_own_part_on_its_node_and_the_parts_of_the_other(cluster: Cluster) -> None:
    save_all(cluster, "/two/parts", 2, "pfs")
    with cluster.a.connect() as on_a, cluster.b.connect() as on_b:
        for store in (on_a, on_b):
            for rank in range(WORLD_SIZE):
                assert_part(store.load("/two/parts", rank=rank), rank, 2)
            assert_part(store.load("/two/@latest", rank=3), 3, 2)


def test_a_part_that_only_the_other_node_holds_is_said_to_be_out_of_reach_and_not_damaged(fresh: Cluster) -> None:
    """Before the drain into the shared tier, a node's parts are on that node alone."""
    shutil.rmtree(fresh.shared, ignore_errors=True)
    fresh.shared.write_text("a file where the shared folder was: the tier is down")
    with fresh:
        save_all(fresh, "/two/apart", 3, "nvme")
        with fresh.a.connect() as on_a, fresh.b.connect() as on_b:
            assert_part(on_a.load("/two/apart", rank=0), 0, 3)
            assert_part(on_b.load("/two/apart", rank=3), 3, 3)
            with pytest.raises(CkptStoreError, match="node") as refusal:
                on_b.load("/two/apart", rank=0)
            assert refusal.value.code == "tier_unavailable"
            with pytest.raises(NotFound, match="within reach"):
                on_b.load("/two/@latest", rank=3)
            fresh.shared.unlink()
            on_a.wait("/two/apart", "pfs", timeout_s=PATIENCE_S)
            assert_part(on_b.load("/two/apart", rank=0), 0, 3)


def test_parts_of_the_other_node_are_recalled_into_ones_own_nvme_where_the_shared_tier_cannot_be_opened(
    postgres: Postgres, tmp_path: Path
) -> None:
    """A compressing tier has no descriptor to hand out: what lies there is recalled, once, and then opened locally."""
    with Cluster(tmp_path, postgres.database(), pfs={"compression": "zstd"}) as packed:
        save_all(packed, "/two/recalled", 4, "pfs")
        assert not any("rank-00000" in file.name for file in packed.b.objects("/two/recalled"))
        with packed.b.connect() as on_b:
            for rank in range(WORLD_SIZE):
                assert_part(on_b.load("/two/recalled", rank=rank), rank, 4)
            assert len(packed.b.objects("/two/recalled")) >= WORLD_SIZE
            *lines, last = on_b.verify("/two")
            assert [line for line in lines if line.problem] == []
            assert last.elsewhere == len(packed.a.objects("/two")), "what is in the other node's NVMe is said not to be read"
            on_b.rm("/two/recalled")
        until("the deletion of recalled replicas", lambda: not packed.b.objects("/two") and not packed.a.objects("/two"))


def test_wait_for_nvme_speaks_of_all_ranks_on_both_nodes(fresh: Cluster) -> None:
    """Node A dies between its commit record and its note in the catalog: all is published, but nobody may say `nvme` yet."""
    fresh.a.daemon.failpoints = "publish.record_written=kill"
    with fresh, fresh.ranks(next(GROUPS)) as ranks:
        pendings = [store.save("/two/whole", part(rank, 5), rank=rank, world_size=WORLD_SIZE) for rank, store in enumerate(ranks)]
        pendings[3].wait_published(timeout_s=PATIENCE_S)
        assert fresh.a.daemon.wait_exit() == -9
        until("the record in B's NVMe", lambda: any((fresh.b.nvme / "records").iterdir()))
        with pytest.raises(WaitTimeout):
            pendings[2].wait("nvme", timeout_s=0.5)
        assert "nvme" not in ranks[3].stat("/two/whole").durability
        fresh.a.daemon.failpoints = ""
        fresh.a.daemon.start()
        for pending in pendings:
            pending.wait("nvme", timeout_s=PATIENCE_S)
        for rank, store in enumerate(ranks):
            assert_part(store.load("/two/whole", rank=rank), rank, 5)


def test_what_wait_acknowledged_on_one_node_is_seen_at_once_on_the_other(cluster: Cluster) -> None:
    with cluster.a.connect() as on_a, cluster.b.connect() as on_b:
        for number in range(10):
            writer, reader = (on_a, on_b) if number % 2 else (on_b, on_a)
            path, tier = f"/fresh/{number}", "pfs" if number < 6 else "nvme"
            writer.save(path, part(0, number)).wait(tier, timeout_s=PATIENCE_S)
            assert set(reader.stat(path).durability) & {tier, "pfs"}
            assert path in [entry.path for entry in reader.ls("/fresh")]
            if tier == "pfs":
                assert_part(reader.load(path), 0, number)
                assert_part(reader.load("/fresh/@latest"), 0, number)
            writer.save(path, part(0, number + 100), replace=True).wait(tier, timeout_s=PATIENCE_S)
            if tier == "pfs":
                assert_part(reader.load(path), 0, number + 100)
            writer.rm(path)
            assert not published(reader, path)


# --- a node dies -------------------------------------------------------------------------------------------------------------------


def save_until_a_dies(cluster: Cluster, ranks: list[ckptstore.Store], path: str) -> list[InBackground]:
    """All ranks save; A's daemon dies with its ranks' bytes in its memory. B's waiters, in the background."""
    pendings = []
    for rank in (2, 3, 0, 1):
        try:
            pendings.append(ranks[rank].save(path, part(rank, 6), rank=rank, world_size=WORLD_SIZE))
        except CkptStoreError:
            assert rank < 2  # a client of the daemon that dies may notice it in the middle of its save
    waiters = [InBackground(lambda p=pending: p.wait("nvme", timeout_s=PATIENCE_S)) for pending in pendings[:2]]
    assert cluster.a.daemon.wait_exit() == -9
    assert not published(ranks[3], path)
    return waiters


def assert_aborted_and_the_next_works(cluster: Cluster, waiters: list[InBackground], path: str) -> None:
    for waiter in waiters:
        assert isinstance(waiter.result(), AttemptAborted), waiter.outcome
    save_all(cluster, path, 7, "pfs")
    with cluster.b.connect() as on_b:
        for rank in range(WORLD_SIZE):
            assert_part(on_b.load(path, rank=rank), rank, 7)
        assert on_b.status().counts["attempts"] == 0
    until("only the second attempt's objects", lambda: len(cluster.a.objects(path) + cluster.b.objects(path)) == WORLD_SIZE + 1)


def test_a_node_that_dies_before_it_stored_its_ranks_aborts_the_attempt_for_all_when_it_is_back(fresh: Cluster) -> None:
    fresh.a.daemon.failpoints = "ingest.before_catalog=kill"
    with fresh, fresh.ranks(next(GROUPS)) as ranks:
        waiters = save_until_a_dies(fresh, ranks, "/two/died")
        fresh.a.daemon.failpoints = ""
        fresh.a.daemon.start()
        assert_aborted_and_the_next_works(fresh, waiters, "/two/died")


def test_a_node_that_dies_and_stays_away_aborts_the_attempt_for_all_by_expiry(fresh: Cluster) -> None:
    fresh.settings["attempt_timeout_s"] = 4
    for name in ("a", "b"):
        fresh.configure(name, fresh.url)
    fresh.a.daemon.failpoints = "ingest.before_catalog=kill"
    with fresh, fresh.ranks(next(GROUPS)) as ranks:
        waiters = save_until_a_dies(fresh, ranks, "/two/away")
        for waiter in waiters:
            assert isinstance(waiter.result(), AttemptAborted), waiter.outcome
            assert "no progress" in str(waiter.outcome)
        until("the space of the aborted attempt on B", lambda: not fresh.b.objects("/two/away"))
        fresh.a.daemon.failpoints = ""
        fresh.a.daemon.start()
        until("the space of the aborted attempt on A", lambda: not fresh.a.objects("/two/away"))
        assert not published(ranks[3], "/two/away")


# --- removing ----------------------------------------------------------------------------------------------------------------------


def is_gone(node: Node, path: str) -> bool:
    return not node.objects(path) and not any((node.nvme / "records").iterdir())


def test_ranks_on_both_nodes_save_at_one_step_whichever_node_is_asked(cluster: Cluster) -> None:
    leave, steps = threading.Event(), [[] for _ in range(WORLD_SIZE)]  # type: ignore[var-annotated]
    with cluster.ranks(next(GROUPS)) as ranks, cluster.b.connect() as other:
        loops = [InBackground(partial(trained, store, rank, steps[rank], leave)) for rank, store in enumerate(ranks)]
        asked = other.snapshot("/asked", wait=True, timeout_s=PATIENCE_S)
        leave.set()
        kept = [loop.result() for loop in loops]
        last = steps[0][-1]
        assert steps == [[asked.step, last]] * WORLD_SIZE
        assert [(one.path, one.reached, one.until) for one in kept] == [(f"/asked/{last}", True, "pfs")] * WORLD_SIZE
        for rank, store in enumerate(ranks):
            assert_part(store.load(f"/asked/{last}", rank=rank), rank, last)


def test_what_was_removed_while_a_node_was_away_goes_from_its_nvme_when_it_is_back(fresh: Cluster) -> None:
    with fresh:
        save_all(fresh, "/two/removed", 8, "pfs")
        assert fresh.b.daemon.stop() == 0
        with fresh.a.connect() as on_a:
            on_a.rm("/two/removed")
            until("the deletion on A and in the shared tier", lambda: is_gone(fresh.a, "/two/removed") and not fresh.pfs_files("objects"))
            assert fresh.b.objects("/two/removed")
            assert fresh.pfs_files("tombstones"), "a tombstone goes only when every node has acknowledged it"
        fresh.b.daemon.start()
        until("the deletion on B", lambda: is_gone(fresh.b, "/two/removed"))
        until("the end of the tombstones", lambda: not fresh.pfs_files("tombstones") and not any((fresh.b.nvme / "tombstones").iterdir()))
        with fresh.b.connect() as on_b:
            assert not published(on_b, "/two/removed")


def new_catalog(cluster: Cluster, postgres: Postgres) -> None:
    """The old one is lost."""
    cluster.url = postgres.database()
    for name in ("a", "b"):
        cluster.configure(name, cluster.url)


def test_a_rebuild_while_a_node_is_away_does_not_bring_back_what_was_removed(fresh: Cluster, postgres: Postgres) -> None:
    with fresh:
        save_all(fresh, "/two/removed", 9, "pfs")
        with fresh.b.connect() as on_b:  # of this one B's NVMe alone has every file
            on_b.save("/two/of-b", part(0, 9)).wait("pfs", timeout_s=PATIENCE_S)
        save_all(fresh, "/two/kept", 10, "pfs")
        fresh.b.daemon.stop()
        with fresh.a.connect() as on_a:
            on_a.rm("/two/removed")
            on_a.rm("/two/of-b")
            until("the tombstones", lambda: len(fresh.pfs_files("tombstones")) == 2 and len(fresh.pfs_files("records")) == 1)
        fresh.a.daemon.stop()
        new_catalog(fresh, postgres)
        report = fresh.a.rebuild()
        assert (report["restored"], report["deleted"]) == (1, 2)
        fresh.start()
        with fresh.a.connect() as on_a, fresh.b.connect() as on_b:
            for store in (on_a, on_b):
                assert [entry.name for entry in store.ls("/two")] == ["kept"]
                for rank in range(WORLD_SIZE):
                    assert_part(store.load("/two/kept", rank=rank), rank, 10)


def test_what_was_removed_while_a_node_was_away_is_not_brought_back_by_its_own_rebuild(fresh: Cluster, postgres: Postgres) -> None:
    """B's NVMe holds records whose tombstones went with the catalog that knew of them: they are neither believed nor deleted unasked."""
    with fresh:
        with fresh.b.connect() as on_b:
            removed = on_b.save("/two/removed", part(0, 9))
            removed.wait("pfs", timeout_s=PATIENCE_S)
            publication_id = str(removed.status().publication_id)
            on_b.save("/two/kept", part(0, 10)).wait("pfs", timeout_s=PATIENCE_S)
        fresh.b.daemon.stop()
        with fresh.a.connect() as on_a:
            on_a.rm("/two/removed")
            until("the tombstone", lambda: len(fresh.pfs_files("tombstones")) == 1 and len(fresh.pfs_files("records")) == 1)
        fresh.a.daemon.stop()
        new_catalog(fresh, postgres)
        assert fresh.a.rebuild()["restored"] == 1
        with contextlib.closing(Catalog.open(fresh.url, node="onlooker")) as catalog:
            assert catalog.is_live(publication_id) is False
            fresh.a.daemon.start()
            # Its row goes last, a moment after the tombstones; until then the catalog knows it as deleted, and so would B delete it.
            until("the end of its row", lambda: catalog.is_live(publication_id) is None)
        assert not fresh.pfs_files("tombstones")

        fresh.b.daemon.start()
        with fresh.b.connect() as on_b:
            (told,) = until("it is told", lambda: [error.what for error in on_b.status().errors if error.where == "catch up nvme"])
            assert "1 checkpoints lie here that the catalog does not know ('/two/removed')" in told
            assert [entry.name for entry in on_b.ls("/two")] == ["kept"]
        assert fresh.b.objects("/two/removed"), "who knows whether anybody else has it?"
        for node in (fresh.a, fresh.b):
            node.daemon.stop()

        new_catalog(fresh, postgres)
        report = fresh.b.rebuild()
        assert (report["restored"], report["stale_tiers"]) == (1, ["nvme"])
        ((path, why),) = ((item["path"], item["why"]) for item in report["incomplete"])
        assert path == "/two/removed"
        assert "away at the last rebuild" in why
        fresh.b.daemon.start()
        with fresh.b.connect() as on_b:
            assert [entry.name for entry in on_b.ls("/two")] == ["kept"]
        fresh.b.daemon.stop()

        new_catalog(fresh, postgres)  # and when the operator says so, it does
        assert fresh.b.rebuild("--allow-stale", "nvme")["restored"] == 2


def test_a_node_that_comes_back_deletes_what_the_rebuilt_catalog_knows_as_deleted(fresh: Cluster, postgres: Postgres) -> None:
    with fresh:
        with fresh.b.connect() as on_b:
            on_b.save("/two/removed", part(0, 9)).wait("pfs", timeout_s=PATIENCE_S)
        fresh.b.daemon.stop()
        with fresh.a.connect() as on_a:
            on_a.rm("/two/removed")
            until("the tombstone", lambda: len(fresh.pfs_files("tombstones")) == 1 and not fresh.pfs_files("records"))
        fresh.a.daemon.stop()
        new_catalog(fresh, postgres)
        assert fresh.a.rebuild()["deleted"] == 1
        fresh.b.daemon.start()  # before A has worked off the tombstone
        until("the deletion on B", lambda: not fresh.b.objects("/two/removed") and not any((fresh.b.nvme / "records").iterdir()))
        with fresh.b.connect() as on_b:
            assert not [error for error in on_b.status().errors if error.where == "catch up nvme"]


# --- over the network --------------------------------------------------------------------------------------------------------------


def test_a_client_without_a_home_has_the_same_store_over_the_network(fresh: Cluster, tmp_path: Path) -> None:
    port = free_port()
    fresh.configure("a", fresh.url, listen=f"127.0.0.1:{port}", token=TOKEN)
    url = f"http://127.0.0.1:{port}"
    with fresh:
        with pytest.raises(Unauthorized):
            ckptstore.connect(url, token="another token")
        group = next(GROUPS)
        with ckptstore.connect(url, token=TOKEN, group=group) as far, fresh.b.connect(group) as near:
            pendings = [far.save("/net/x", part(0, 1), rank=0, world_size=2), near.save("/net/x", part(1, 1), rank=1, world_size=2)]
            for pending in pendings:
                pending.wait("pfs", timeout_s=PATIENCE_S)
            for store in (far, near):
                for rank in (0, 1):
                    assert_part(store.load("/net/x", rank=rank), rank, 1)
            (tmp_path / "f").write_bytes(b"some bytes")
            far.put(tmp_path / "f", "/net/f", timeout_s=PATIENCE_S)
            far.wait("/net/f", "pfs", timeout_s=PATIENCE_S)
            near.get("/net/f", tmp_path / "near")
            assert (tmp_path / "near").read_bytes() == b"some bytes"
            assert [entry.path for entry in far.ls("/net")] == [entry.path for entry in near.ls("/net")] == ["/net/f", "/net/x"]
            assert far.stat("/net/x") == near.stat("/net/x")
            near.rm("/net/x")
            with pytest.raises(NotFound):
                far.load("/net/x")
