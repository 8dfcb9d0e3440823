"""A long run costs the daemon no more at its end than at its beginning, and gives everything back when it is removed."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy
from sqlalchemy import event

import ckptstore
from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Join, Kind, TierRow
from ckptstore.catalog.schema import metadata
from ckptstore_client.store import Store
from ckptstore_tiers.checksums import BlockDigests
from tests.daemon_process import DaemonProcess, write_config
from tests.files import files_below
from tests.until import until

PATIENCE_S = 120.0
SAVES = int(os.environ.get("CKPTSTORE_TEST_SAVES", "250"))
WARM_UP = 60
#: Pools start their threads, each with a connection or a pipe perhaps, when they first have so much to do at once: on a busy machine late.
LAZILY_STARTED = {"threads": 16, "descriptors": 16}
#: The NVMe holds some forty checkpoints, a fraction of the run, beside the commit records of all of them, of a kilobyte each.
NVME_CAPACITY_BYTES = 1_500_000
#: What a save under way says of its shards is gone when it ends.
STEADY = ("counters", "store", "nodes", "tiers", "rank_documents", "shard_documents")


# --- the catalog: statements, and what they touch --------------------------------------------------------------------------------------


class Statements:
    """What a catalog sends to its database: how many statements, how many rows they change, and which plans SQLite makes for them."""

    def __init__(self, engine: sqlalchemy.Engine) -> None:
        self.sent: dict[str, Any] = {}
        self.count = 0
        self.changed_rows = 0
        event.listen(engine, "after_cursor_execute", self._note)

    def _note(self, connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        self.count += 1
        self.sent.setdefault(statement, parameters[0] if many else parameters)
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            self.changed_rows += max(0, cursor.rowcount)

    def taken(self) -> tuple[int, int]:
        found = self.count, self.changed_rows
        self.count = self.changed_rows = 0
        return found


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    """In memory where there is a file system of memory: what is counted is statements, not how long a disk takes for them."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        opened = Catalog.open(f"sqlite:///{folder}/catalog.sqlite3", node="node-a")
        opened.register_tiers([TierRow("nvme", 0, False, True), TierRow("pfs", 1, True, True)])
        yield opened
        opened.close()


def save_drain_and_look(catalog: Catalog, number: int) -> str:
    """All that the catalog does for one checkpoint, from its opening to its last commit record, and the questions users ask of it."""
    join = Join(f"/run/{number:06}", "token-of-one-job", 0, 0, 1, Kind.CHECKPOINT, "node-a", "session", False)
    ticket = catalog.join(join, ["rank-0.safetensors"])
    catalog.snapshot_taken(ticket.attempt_id, 0)
    digests = BlockDigests.of(number.to_bytes(8, "big"))
    assert catalog.object_stored(ticket.objects[0].object_id, digests, tier="nvme")
    catalog.rank_stored(ticket.attempt_id, 0)
    published = catalog.publish(ticket.attempt_id)
    for tier in ("nvme", "pfs"):
        for drain in catalog.pending_drains(tier, limit=8):
            assert catalog.add_replica(drain.object_id, tier)
        for owed in catalog.owed_records(tier, limit=8):
            catalog.record(owed, tier=tier)
            catalog.record_written(owed, tier)
    assert catalog.resolve("/run/@latest").publication_id == published.publication_id
    assert catalog.entry(join.path).publication is not None
    (file,) = catalog.files(published.publication_id)
    assert {replica.tier for replica in catalog.replicas(file.object_id)} == {"nvme", "pfs"}
    catalog.list_folder("/run", after=f"{number - 1:06}", limit=10)
    catalog.backlog()
    catalog.expire(600.0)
    catalog.chores("nvme", grace_s=0, limit=8)
    return ticket.attempt_id


def test_a_save_costs_the_catalog_as_many_statements_and_rows_at_the_end_of_a_long_run(catalog: Catalog) -> None:
    statements = Statements(catalog._db._engine)
    costs = []
    for number in range(SAVES):
        save_drain_and_look(catalog, number)
        costs.append(statements.taken())
    assert min(costs[0]) > 0
    assert set(costs[1:]) == {costs[1]}, "one save costs more than another"


def test_no_statement_of_a_save_reads_a_table_from_end_to_end(catalog: Catalog) -> None:
    """What SQLite would scan grows with the store, whatever the number of statements; the small tables of tiers and nodes aside."""
    for number in range(WARM_UP):
        save_drain_and_look(catalog, number)
    engine = catalog._db._engine
    with engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE")
    engine.dispose()  # a connection reads the statistics when it opens the database
    statements = Statements(engine)
    save_drain_and_look(catalog, WARM_UP)
    sent = dict(statements.sent)
    large = [table.name for table in metadata.sorted_tables if table.name not in STEADY]
    scans = []
    with engine.connect() as connection:
        for statement, parameters in sent.items():
            if not re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)", statement, re.IGNORECASE):
                continue
            for line in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters):
                if (scan := re.match(r"SCAN (\w+)(?! USING (COVERING )?INDEX)", str(line.detail))) and scan[1] in large:
                    scans.append(f"{line.detail}: {statement}")
    assert scans == []
    assert len(sent) > 20


# --- the daemon: what it holds -----------------------------------------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    home = tmp_path / "home"
    tiers = [
        {"name": "nvme", "kind": "posix", "path": tmp_path / "nvme", "capacity": NVME_CAPACITY_BYTES, "high_water": 0.7, "low_water": 0.4},
        {"name": "pfs", "kind": "posix", "path": tmp_path / "pfs", "shared": True},
    ]
    write_config(home, tiers=tiers, grace_s=0, memory={"limit": "64MiB", "huge_pages": False})
    with DaemonProcess(home) as process:
        yield process


def holdings(daemon: DaemonProcess, store: Store) -> dict[str, int]:
    """What a leak would make grow. Memory maps: every segment is one."""
    process = Path(f"/proc/{daemon.pid}")
    memory = [line for line in (process / "maps").read_text().splitlines() if "memfd:" in line]
    status = store.status()
    return {
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
        "mapped segments": len(memory),
        "segments": status.memory.segments,
        "sessions": status.sessions,
    }


def sizes_of_tables(home: Path) -> dict[str, int]:
    engine = sqlalchemy.create_engine(f"sqlite:///{home / 'catalog.sqlite3'}")
    with engine.connect() as connection:
        tables = [table for table in metadata.sorted_tables if table.name not in STEADY]
        count = sqlalchemy.select(sqlalchemy.func.count())
        found = {table.name: connection.execute(count.select_from(table)).scalar_one() for table in tables}
    engine.dispose()
    return found


def names_below(folder: Path) -> list[str]:
    return [str(file.relative_to(folder)) for file in files_below(folder) if file.name != "store.json"]


def test_a_long_run_leaves_the_daemon_as_it_was_and_removing_it_gives_everything_back(daemon: DaemonProcess, tmp_path: Path) -> None:
    """With an NVMe that holds a fraction of it, with reads in between, and clients that come and go."""
    tensor = np.arange(4096, dtype=np.float32)
    with ckptstore.connect(home=daemon.home, start=False) as store:

        def save(numbers: range) -> None:
            pendings = []
            for number in numbers:
                pending = store.save(f"/run/{number:04}", {"t": tensor + number})
                pendings.append(pending)
                if number % 10 == 0:
                    pending.wait("nvme", timeout_s=PATIENCE_S)
                    earlier = max(0, number - 30)  # one that was waited for, too
                    assert np.array_equal(store.load(f"/run/{earlier:04}")["t"], tensor + earlier)
                if number % 50 == 0:
                    with ckptstore.connect(home=daemon.home, start=False) as other:
                        assert np.array_equal(other.load("/run/0000")["t"], tensor)
            pending.wait("pfs", timeout_s=PATIENCE_S)

        save(range(WARM_UP))
        before = holdings(daemon, store)
        save(range(WARM_UP, SAVES))
        until("the end of the drains", lambda: not any(tier.waiting_objects for tier in store.status().tiers))
        until(
            f"as few as before: {before}",
            lambda: all(now <= before[name] + LAZILY_STARTED.get(name, 4) for name, now in holdings(daemon, store).items()),
        )
        nvme, _ = store.status().tiers
        assert nvme.used_bytes <= NVME_CAPACITY_BYTES
        stored = sum(file.stat().st_size for file in (tmp_path / "pfs" / "objects").rglob("*") if file.is_file())
        assert stored > 2 * NVME_CAPACITY_BYTES, "the run was too short to make the NVMe evict"
        assert [error for error in store.status().errors if "evict" in error.where] == []
        assert len(list(store.ls("/run"))) == SAVES

        assert len(store.rm("/run", recursive=True)) == SAVES
        until("the end of every file", lambda: not names_below(tmp_path / "nvme") and not names_below(tmp_path / "pfs"))
        until("the end of every row", lambda: not any(sizes_of_tables(daemon.home).values()))
        assert list(store.ls("/")) == []
        assert next(iter(store.status().tiers)).used_bytes < 4096
