"""The catalog on SQLite keeps the contract, and what is SQLite's own: locks, full disks, network mounts, versions, query plans."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from ckptstore import mounts
from ckptstore.catalog import Catalog, engine, migrations, reserve, schema
from ckptstore.catalog.model import Attachment, AttemptState
from ckptstore.errors import CatalogUnavailable, ConfigInvalid
from ckptstore.paths import new_id
from tests.contract.attachments_contract import AttachmentsContract
from tests.contract.catalog_contract import TIERS, CatalogContract, Saver
from tests.contract.changes_contract import ChangesContract
from tests.contract.fingerprints_contract import FingerprintsContract
from tests.contract.leaving_contract import LeavingContract
from tests.contract.moving_contract import MovingContract
from tests.contract.namespace_contract import NamespaceContract
from tests.contract.older_schemas import take_back
from tests.contract.references_contract import ReferencesContract
from tests.contract.replicas_contract import ReplicasContract
from tests.contract.retention_contract import RetentionContract
from tests.contract.snapshots_contract import SnapshotsContract
from tests.contract.storing_contract import StoringContract
from tests.contract.tagging_contract import TaggingContract

#: Tables that do not grow with what is stored. The documents are those of saves under way.
SMALL_TABLES = {
    "tiers", "nodes", "counters", "store", "attachments", "shallower_tier", "rank_documents", "shard_documents", "snapshot_requests"
}  # fmt: skip


class TestSqliteCatalog(
    CatalogContract, NamespaceContract, ReplicasContract, ReferencesContract, MovingContract, AttachmentsContract, ChangesContract,
    RetentionContract, LeavingContract, FingerprintsContract, SnapshotsContract, StoringContract, TaggingContract,
):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path / 'catalog.sqlite3'}"


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    catalog = Catalog.open(f"sqlite:///{tmp_path / 'catalog.sqlite3'}", node="node-a", patience_s=0.3)
    catalog.register_tiers(TIERS)
    yield Saver(catalog)
    catalog.close()


# --- locks ---------------------------------------------------------------------------------------------------------------------


def test_a_locked_catalog_is_unavailable_says_so_and_recovers(saver: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT_S", 0.1)
    saver.catalog.close()  # connections made from here on wait for the shorter time
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CatalogUnavailable, match="locked by another process") as refusal:
            saver.join("/run/1")
        assert refusal.value.hint is not None
        assert refusal.value.retryable
        assert saver.catalog.list_folder("/") == []  # reading goes on beside a writer
        other.execute("ROLLBACK")
    assert saver.save("/run/1").live


def test_a_file_that_is_no_database_is_refused_with_a_hint(tmp_path: Path) -> None:
    place = tmp_path / "catalog.sqlite3"
    place.write_bytes(b"this is no database" * 100)
    with pytest.raises(CatalogUnavailable, match="catalog rebuild"):
        Catalog.open(f"sqlite:///{place}", node="node-a")
    assert place.read_bytes().startswith(b"this is no database")


@pytest.mark.parametrize("url", ["sqlite:///relative.db", "sqlite://", "mysql://host/db", "no url at all"])
def test_an_unusable_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigInvalid):
        Catalog.open(url, node="node-a")


def test_a_commit_is_durable_and_the_journal_is_a_wal(saver: Saver) -> None:
    with saver.catalog._db._engine.connect() as connection:
        pragmas = {name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous", "foreign_keys")}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


# --- a full disk ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk() -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="ckptstore-full-")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "none", folder], check=True, timeout=30)
    try:
        yield Path(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True, timeout=30)
        Path(folder).rmdir()


def _fill(disk: Path) -> None:
    with (disk / "filler").open("ab", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))


def test_the_catalog_commits_on_a_full_disk_and_lays_its_reserve_aside_again(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve, "RESTORE_PAUSE_S", 0.0)
    held = small_disk / "catalog.sqlite3.reserve"
    with closing(Catalog.open(f"sqlite:///{small_disk / 'catalog.sqlite3'}", node="node-a", patience_s=0.5)) as catalog:
        catalog.register_tiers(TIERS)
        saver = Saver(catalog)
        assert held.stat().st_size == reserve.RESERVE_BYTES
        _fill(small_disk)
        for number in range(40):
            saver.save(f"/run/{number}")
        assert not held.exists()
        assert len(catalog.remove("/run", recursive=True)) == 40
        _fill(small_disk)
        with pytest.raises(CatalogUnavailable, match="free space there"):
            for number in range(3000):
                saver.save(f"/more/{number}")
        (small_disk / "filler").unlink()
        assert saver.save("/run/after").live
        assert held.stat().st_size == reserve.RESERVE_BYTES


# --- network file systems ------------------------------------------------------------------------------------------------------

MOUNTS = r"""
24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 24 0:40 / /home rw shared:2 - nfs4 server:/home rw,vers=4.2
31 30 8:2 / /home/local\040disk rw shared:3 - xfs /dev/sdb rw
32 24 0:41 / /mnt/s3 rw shared:4 - fuse.s3fs s3fs rw
33 24 0:42 / /mnt/over rw - ext4 /dev/sdc rw
34 24 0:43 / /mnt/over rw - lustre mgs@tcp:/fs rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/x", "ext4"), ("/home/user/.ckptstore", "nfs4"), ("/home/local disk/x", "xfs"), ("/home2/x", "ext4"),
        ("/mnt/s3/x", "fuse.s3fs"), ("/mnt/over/x", "lustre"),
    ],
)  # fmt: skip
def test_the_file_system_of_a_path_is_that_of_the_deepest_and_latest_mount(path: str, kind: str) -> None:
    assert mounts.filesystem_type(Path(path), MOUNTS.strip()) == kind


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "ceph", "lustre", "fuse.sshfs", "fuse"])
def test_sqlite_on_a_network_file_system_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    listing = tmp_path / "mountinfo"
    listing.write_text(f"24 1 8:1 / / rw - ext4 /dev/sda1 rw\n25 24 0:9 / {tmp_path} rw - {kind} server:/x rw\n")
    monkeypatch.setattr(mounts, "MOUNTINFO", listing)
    with pytest.raises(ConfigInvalid, match=kind):
        Catalog.open(f"sqlite:///{tmp_path / 'home' / 'catalog.sqlite3'}", node="node-a")
    assert not (tmp_path / "home" / "catalog.sqlite3").exists()


# --- versions ------------------------------------------------------------------------------------------------------------------


def _schema_version(place: Path) -> str:
    with closing(sqlite3.connect(place)) as connection:
        return str(connection.execute("SELECT value FROM store WHERE key = 'schema_version'").fetchone()[0])


def test_a_newer_schema_is_refused_by_name_and_left_as_it_is(saver: Saver, tmp_path: Path) -> None:
    place = tmp_path / "catalog.sqlite3"
    with closing(sqlite3.connect(place)) as connection:
        connection.execute("UPDATE store SET value = '99' WHERE key = 'schema_version'")
        connection.commit()
    with pytest.raises(ConfigInvalid, match="schema version 99"):
        Catalog.open(f"sqlite:///{place}", node="node-a")
    assert _schema_version(place) == "99"


def test_a_migration_keeps_the_data_and_one_that_fails_changes_nothing(
    saver: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "catalog.sqlite3"
    saver.save("/run/1")

    def add_colour(tx: Connection) -> None:
        tx.execute(text("ALTER TABLE publications ADD COLUMN colour TEXT DEFAULT 'grey'"))

    def fail(tx: Connection) -> None:
        tx.execute(text("CREATE TABLE half_way (x INTEGER)"))
        raise RuntimeError("power cut")

    now = schema.SCHEMA_VERSION
    monkeypatch.setattr(migrations, "SCHEMA_VERSION", now + 2)
    monkeypatch.setattr(migrations, "STEPS", {now: add_colour, now + 1: fail})
    with pytest.raises(RuntimeError, match="power cut"):
        Catalog.open(f"sqlite:///{place}", node="node-a")
    assert _schema_version(place) == str(now)
    monkeypatch.setattr(migrations, "STEPS", {now: add_colour, now + 1: lambda tx: None})
    with closing(Catalog.open(f"sqlite:///{place}", node="node-a")) as migrated:
        assert migrated.resolve("/run/1").path == "/run/1"
    assert _schema_version(place) == str(now + 2)


def test_a_catalog_from_before_compressed_replicas_were_counted_is_taken_up(saver: Saver, tmp_path: Path) -> None:
    place = tmp_path / "catalog.sqlite3"
    published = saver.save("/run/1")
    saver.catalog.close()
    with closing(sqlite3.connect(place)) as connection:
        take_back(connection.execute, 2)
        connection.commit()
    with closing(Catalog.open(f"sqlite:///{place}", node="node-a")) as migrated:
        (file,) = migrated.files(published.publication_id)
        assert [replica.stored_bytes for replica in migrated.replicas(file.object_id)] == [None]
        assert migrated.stored_bytes(published.publication_id) == {}
    assert _schema_version(place) == str(schema.SCHEMA_VERSION)


def test_a_catalog_of_version_1_is_used_as_it_was(saver: Saver, tmp_path: Path) -> None:
    """Before references, and before replicas knew what they take: the same tables without them."""
    saver.save("/run/1")
    saver.catalog.close()
    place = tmp_path / "catalog.sqlite3"
    with closing(sqlite3.connect(place)) as connection:
        made_anew = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
        take_back(connection.execute, 1)
        connection.commit()
    with closing(Catalog.open(f"sqlite:///{place}", node="node-a")) as migrated:
        migrated.register_tiers(TIERS)
        again = Saver(migrated)
        assert migrated.attach(Attachment("/models", "s3://bucket", 2.5, credentials=None)).refresh_s == 2.5
        assert again.save_referring("/run/2", migrated.resolve("/run/1")).referred_bytes == 7
        again.settle_all()
        assert migrated.resolve("/run/2").durability == ("nvme", "pfs", "object")
    with closing(sqlite3.connect(place)) as connection:
        assert [name for name, _ in made_anew] == [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master ORDER BY name")
        ]


def test_a_copy_of_the_database_is_a_backup(saver: Saver, tmp_path: Path) -> None:
    saver.save("/run/1")
    saver.catalog.close()
    shutil.copytree(tmp_path, tmp_path / "backup", ignore=shutil.ignore_patterns("backup", "*.reserve"))
    with closing(Catalog.open(f"sqlite:///{tmp_path / 'backup/catalog.sqlite3'}", node="node-a")) as copy:
        assert copy.resolve("/run/1").path == "/run/1"


# --- scale ---------------------------------------------------------------------------------------------------------------------


def _plans(catalog: Catalog, call: Callable[[], Any]) -> list[str]:
    """How SQLite reads the tables in each statement that `call` executes."""
    database = catalog._db._engine
    plans: list[str] = []
    busy = False

    def explain(connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        nonlocal busy
        if busy or not re.match(r"\s*(SELECT|UPDATE|DELETE|INSERT)", statement):
            return
        busy = True
        first = parameters[0] if many else parameters
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", first).all()
        plans.extend(f"{row[3]}   <- {statement[:200]}" for row in rows)
        busy = False

    event.listen(database, "before_cursor_execute", explain)
    try:
        call()
    finally:
        event.remove(database, "before_cursor_execute", explain)
    assert plans
    return plans


def _scans(plans: list[str]) -> list[str]:
    """Those that read a growing table from end to end, or all that is live anywhere."""
    found = [plan for plan in plans if "publications_by_state (state=?)   <-" in plan]
    for plan in plans:
        match = re.match(r"SCAN (?:TABLE )?(\S+)", plan)
        if match and match.group(1) not in SMALL_TABLES and not re.match(r"SCAN (\(subquery|anon|\d* ?CONSTANT)", plan):
            found.append(plan)
    return found


def _steps(catalog: Catalog, call: Callable[[], Any]) -> int:
    """How many hundreds of steps SQLite's machine takes for it: what it reads, sorts and compares. The second call counts."""
    call()
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    with closing(catalog._db._engine.raw_connection()) as pooled:  # the one that the next call gets
        pooled.driver_connection.set_progress_handler(count, 100)  # type: ignore[union-attr]
    call()
    with closing(catalog._db._engine.raw_connection()) as pooled:
        pooled.driver_connection.set_progress_handler(None, 0)  # type: ignore[union-attr]
    return counted


def test_what_is_asked_of_a_folder_costs_as_much_with_hundreds_of_checkpoints_as_with_thirty(saver: Saver) -> None:
    """An index that is read from end to end shows in no plan: `@latest` read all names of its folder, to find folders among them."""
    catalog = saver.catalog
    calls: dict[str, Callable[[], Any]] = {
        "latest": lambda: catalog.resolve("/run/@latest"),
        "resolve": lambda: catalog.resolve("/run/7"),
        "list_folder": lambda: catalog.list_folder("/run", after="7", limit=5),
        "entry": lambda: catalog.entry("/run/7"),
        "files": lambda: catalog.files(catalog.resolve("/run/7").publication_id),
        "pending_drains": lambda: catalog.pending_drains("pfs", limit=8),
        "eviction_candidates": lambda: catalog.eviction_candidates("nvme", limit=8),
        "save": lambda: saver.save(f"/other/{new_id()}"),
    }
    for number in range(30):
        saver.save(f"/run/{number}")
    saver.settle_all()
    few = {name: _steps(catalog, call) for name, call in calls.items()}
    for number in range(30, 400):
        saver.save(f"/run/{number}")
    saver.settle_all()
    many = {name: _steps(catalog, call) for name, call in calls.items()}
    assert {name: (few[name], many[name]) for name in calls if many[name] > 1.5 * few[name] + 5} == {}


def test_no_operation_reads_a_growing_table_from_end_to_end(saver: Saver) -> None:
    catalog = saver.catalog
    for number in range(4):
        saver.save(f"/run/{number}", names=["a", "b/c"])
    saver.settle_all()
    saver.save("/run/3", names=["a"], replace=True)
    (file, *_) = catalog.files(catalog.resolve("/run/1").publication_id)
    catalog.remove("/run/0")
    open_attempt = saver.join("/run/open")
    saver.save_referring("/run/4", catalog.resolve("/run/1"))
    referring = saver.join("/run/5", token=new_id())
    base = saver.object_of(catalog.resolve("/run/1"))
    calls: dict[str, Callable[[], Any]] = {
        "list_folder": lambda: catalog.list_folder("/run", after="1", limit=2),
        "list inside": lambda: catalog.list_folder("/run/1/b"),
        "entry": lambda: catalog.entry("/run/1/b/c"),
        "latest": lambda: catalog.resolve("/run/@latest"),
        "files": lambda: catalog.files(catalog.resolve("/run/1").publication_id, rank=0, after="a"),
        "file": lambda: catalog.file("/run/1/a"),
        "stored_bytes": lambda: catalog.stored_bytes(catalog.resolve("/run/1").publication_id),
        "usage": lambda: catalog.usage("/run"),
        "path_of": lambda: catalog.path_of(base),
        "published_since": lambda: catalog.published_since(3, "/run"),
        "trash": catalog.trashed,
        "empty_trash": catalog.empty_trash,
        "checkpoints": lambda: list(catalog.checkpoints("/run")),
        "leave_tier": lambda: catalog.leave_tier(
            catalog.resolve("/run/1").publication_id, "nvme", wanted_in=[], because_of=(catalog.resolve("/run/2").publication_id, "nvme")
        ),
        "is_wanted_in": lambda: catalog.is_wanted_in(file.object_id, "nvme"),
        "unkept": lambda: catalog.unkept([catalog.resolve("/run/1").publication_id]),
        "return_to_tier": lambda: catalog.return_to_tier(catalog.resolve("/run/1").publication_id, "nvme"),
        "attach": lambda: catalog.attach(Attachment("/models", "s3://bucket", 1.0)),
        "attached_over": lambda: catalog.attached_over("/models/a/b"),
        "pending_drains": lambda: catalog.pending_drains("pfs", limit=5),
        "drain_failed": lambda: catalog.drain_failed(file.object_id, "pfs", "no", 0.0),
        "backlog": catalog.backlog,
        "owed_records": lambda: catalog.owed_records("pfs", limit=5),
        "chores": lambda: catalog.chores("nvme", grace_s=0.0, limit=5),
        "work off": saver.work_off,
        "eviction_candidates": lambda: catalog.eviction_candidates("nvme", limit=5),
        "tier_objects": lambda: catalog.tier_objects("nvme", limit=5),
        "touch": lambda: catalog.touch([file.object_id], "nvme"),
        "mark_damaged": lambda: catalog.mark_damaged(file.object_id, "pfs"),
        "add_replica": lambda: catalog.add_replica(file.object_id, "pfs"),
        "drop_replica": lambda: catalog.drop_replica(file.object_id, "nvme"),
        "request_drain": lambda: catalog.request_drain(file.object_id, "nvme"),
        "attempts": lambda: catalog.attempts([AttemptState.OPEN], node="node-a"),
        "save": lambda: saver.save("/run/9"),
        "replace": lambda: saver.save("/run/9", replace=True),
        "settle": lambda: saver.settle("nvme"),
        "bases": lambda: catalog.bases("/run/5", 0, limit=4),
        "refer": lambda: catalog.refer(referring.attempt_id, 0, {base: 1}, tier="nvme"),
        "references": lambda: catalog.references(catalog.resolve("/run/4").publication_id),
        "drop what is referred to": lambda: catalog.drop_replica(base, "nvme"),
        "abort what refers": lambda: catalog.abort(referring.attempt_id, "enough"),
        "abort": lambda: catalog.abort(open_attempt.attempt_id, "enough"),
        "session_lost": lambda: catalog.session_lost("nobody", "gone"),
        "expire": lambda: catalog.expire(3600.0),
        "abandon": lambda: catalog.abandon("node-a", "restarted"),
        "tag": lambda: catalog.tag("/run/1", {"loss": 1}, []),
        "ask": lambda: catalog.ask_for_snapshot("/run", "", token="token-of-a-job", for_s=60.0),
        "asked": catalog.open_snapshot_requests,
        "hold": lambda: catalog.hold_rank(catalog.open_snapshot_requests()[0].request_id, "token-of-a-job", 0, 1, 1),
        "drain_first": lambda: catalog.drain_first(catalog.resolve("/run/4").publication_id),
        "move": lambda: catalog.move("/run", "/moved/run"),
        "remove": lambda: catalog.remove("/moved", recursive=True),
    }
    scans = {name: found for name, call in calls.items() if (found := _scans(_plans(catalog, call)))}
    assert scans == {}
