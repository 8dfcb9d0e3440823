"""The catalog and its tiers against a plain dictionary: whatever is done in whatever order, both say the same.

The tiers are dictionaries, too: the machine asks what the catalog orders to be written and deleted, not how. Every rule is one step that
a daemon takes, so that a reopen or the loss of the catalog falls between any two of them.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Act, AttemptState, Join, Kind, Publication, Ticket, TierRow, record_key, tombstone_key
from ckptstore.catalog.restore import Outcome, RestoredFile
from ckptstore.errors import AlreadyExists, AttemptAborted, NotFound, PathConflict
from ckptstore.paths import ancestors, new_id
from ckptstore.records import read_record, read_tombstone
from ckptstore_tiers.checksums import BlockDigests

TIERS = (TierRow("nvme", 0, False, True), TierRow("pfs", 1, True, True), TierRow("object", 2, True, True))
NAMES = tuple(tier.name for tier in TIERS)
PATHS = st.sampled_from(["/a", "/a/x", "/a/y", "/b", "/b/c/x", "/b/c"])
TIER = st.sampled_from(NAMES)
#: Without Phase.explain, whose line tracing makes every step ten times slower on Python 3.11.
_PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)


@dataclass
class Version:
    """What the model knows of one publication."""

    path: str
    objects: dict[str, str]  # id → key
    content: bytes
    sequence: int
    lies_in: dict[str, set[str]] = field(default_factory=dict)  # tier → ids
    recorded: set[str] = field(default_factory=set)

    def durability(self) -> tuple[str, ...]:
        return tuple(name for name in NAMES if name in self.recorded and self.lies_in.get(name) == set(self.objects))


class CatalogMachine(RuleBasedStateMachine):
    attempts = Bundle("attempts")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ckptstore-model-", dir="/dev/shm"))
        self.catalog = self._open()
        self.catalog.register_tiers(TIERS)
        self.live: dict[str, Version] = {}
        self.versions: dict[str, Version] = {}  # by publication id, all that were ever published
        self.gone: set[str] = set()  # publications that were removed, or whose deletion was seen
        self.tiers: dict[str, dict[str, bytes]] = {name: {} for name in NAMES}
        self.tickets: dict[str, tuple[str, Ticket, bool, bytes]] = {}

    def _open(self) -> Catalog:
        return Catalog.open(f"sqlite:///{self.folder / 'catalog.sqlite3'}", node="node-a")

    def teardown(self) -> None:
        if hasattr(self, "catalog"):
            self.catalog.close()
            shutil.rmtree(self.folder)

    # --- saving ----------------------------------------------------------------------------------------------------------------

    def _refusal(self, path: str, replace: bool) -> type[Exception] | None:
        """What the model says to saving at a path."""
        if any(above in self.live for above in ancestors(path)) or any(other.startswith(path + "/") for other in self.live):
            return PathConflict
        return AlreadyExists if path in self.live and not replace else None

    @rule(target=attempts, path=PATHS, replace=st.booleans(), count=st.integers(1, 2))
    def join(self, path: str, replace: bool, count: int) -> str:
        join = Join(path, new_id(), 0, 0, 1, Kind.CHECKPOINT, "node-a", "session", replace)
        expected = self._refusal(path, replace)
        try:
            ticket = self.catalog.join(join, [f"f{i}" for i in range(count)])
        except (AlreadyExists, PathConflict) as error:
            assert expected is type(error)
            return ""
        assert expected is None
        self.tickets[ticket.attempt_id] = (path, ticket, replace, new_id().encode())
        return ticket.attempt_id

    @rule(attempt=attempts)
    def store(self, attempt: str) -> None:
        if attempt not in self.tickets:
            return
        _, ticket, _, content = self.tickets[attempt]
        for item in ticket.objects:
            self.tiers["nvme"][item.key] = content
            assert self.catalog.object_stored(item.object_id, BlockDigests.of(content), tier="nvme")
        self.catalog.rank_stored(attempt, 0)

    @rule(attempt=consumes(attempts))
    def publish(self, attempt: str) -> None:
        if attempt not in self.tickets or self.catalog.attempt(attempt).state is not AttemptState.COMPLETE:
            return
        path, ticket, replace, content = self.tickets.pop(attempt)
        expected = self._refusal(path, replace)
        try:
            published = self.catalog.publish(attempt)
        except (AlreadyExists, PathConflict) as error:
            assert expected is type(error)
            assert self.catalog.attempt(attempt).state is AttemptState.ABORTED
            return
        assert expected is None
        objects = {item.object_id: item.key for item in ticket.objects}
        version = Version(path, objects, content, published.sequence, {"nvme": set(objects)})
        self.live[path] = self.versions[published.publication_id] = version

    @rule(attempt=consumes(attempts))
    def abort(self, attempt: str) -> None:
        if attempt in self.tickets:
            del self.tickets[attempt]
            assert self.catalog.abort(attempt, "enough").state is AttemptState.ABORTED
            try:
                self.catalog.rank_stored(attempt, 0)
            except AttemptAborted as error:
                assert error.why == "enough"
            else:
                raise AssertionError("an aborted attempt went on")

    @rule(path=PATHS, replace=st.booleans())
    def save(self, path: str, replace: bool) -> None:
        attempt = self.join(path, replace, 1)
        self.store(attempt)
        self.publish(attempt)

    # --- moving ----------------------------------------------------------------------------------------------------------------

    @rule(tier=TIER)
    def drain(self, tier: str) -> None:
        for item in self.catalog.pending_drains(tier, limit=2):
            version = self.versions[item.publication_id]
            self.tiers[tier][item.key] = version.content
            assert self.catalog.add_replica(item.object_id, tier)
            version.lies_in.setdefault(tier, set()).add(item.object_id)

    @rule(tier=TIER)
    def write_records(self, tier: str) -> None:
        for publication_id in self.catalog.owed_records(tier, limit=2):
            version = self.versions[publication_id]
            assert version.lies_in[tier] == set(version.objects)
            self.tiers[tier][record_key(publication_id)] = self.catalog.record(publication_id, tier=tier)
            self.catalog.record_written(publication_id, tier)
            version.recorded.add(tier)

    @rule(tier=TIER)
    def evict(self, tier: str) -> None:
        for file in self.catalog.eviction_candidates(tier, limit=1):
            version = next(v for v in self.versions.values() if file.object_id in v.objects)
            deeper = NAMES[NAMES.index(tier) + 1 :]
            assert any(name in version.recorded and file.object_id in version.lies_in.get(name, ()) for name in deeper)
            assert self.catalog.drop_replica(file.object_id, tier)
            version.lies_in[tier].discard(file.object_id)
            version.recorded.discard(tier)

    # --- deleting --------------------------------------------------------------------------------------------------------------

    @rule(path=PATHS)
    def remove(self, path: str) -> None:
        below = {other for other in self.live if other == path or other.startswith(path + "/")}
        try:
            removed = self.catalog.remove(path, recursive=True)
        except (NotFound, PathConflict) as error:
            assert below == set()
            assert isinstance(error, PathConflict) == any(above in self.live for above in ancestors(path))
            return
        assert below
        assert {item.path for item in removed} == below
        for item in removed:
            self.gone.add(item.publication_id)
        for other in below:
            del self.live[other]

    @rule(tier=TIER, count=st.integers(1, 4))
    def work_off(self, tier: str, count: int) -> None:
        for chore in self.catalog.chores(tier, grace_s=0.0, limit=count):
            if chore.act is Act.WRITE_TOMBSTONE:
                self.tiers[tier][chore.key] = chore.document
            else:
                self.tiers[tier].pop(chore.key, None)
            self.catalog.chore_done(chore)

    # --- losing ----------------------------------------------------------------------------------------------------------------

    @rule()
    def reopen(self) -> None:
        self.catalog.close()
        self.catalog = self._open()
        self.catalog.abandon("node-a", "restarted")
        self.tickets = {key: t for key, t in self.tickets.items() if self.catalog.attempt(key).state is AttemptState.COMPLETE}

    @rule()
    def lose_the_catalog(self) -> None:
        """Only when every removal has reached a tier: before that, nobody but the catalog knows of it."""
        said = {key for tier in self.tiers.values() for key in tier if key.startswith("tombstones/")}
        recorded = {key for tier in self.tiers.values() for key in tier if key.startswith("records/")}
        if any(record_key(item) in recorded and tombstone_key(item) not in said for item in self.gone):
            return
        store_id = self.catalog.store_id
        self.catalog.close()
        for file in self.folder.iterdir():
            file.unlink()
        self.catalog = self._open()
        self._rebuild(store_id)
        self.tickets.clear()
        # What had no record anywhere is lost with the catalog: no tier had acknowledged it. The version it replaced is back, if whole.
        self.live = {}
        for publication_id, version in sorted(self.versions.items(), key=lambda item: item[1].sequence):
            if publication_id not in self.gone and self._is_found(publication_id, version):
                self.live[version.path] = version

    def _is_found(self, publication_id: str, version: Version) -> bool:
        """A record and all objects lie somewhere, and no tombstone."""
        everywhere = {key for tier in self.tiers.values() for key in tier}
        recorded = record_key(publication_id) in everywhere and tombstone_key(publication_id) not in everywhere
        return recorded and everywhere.issuperset(version.objects.values())

    def _rebuild(self, store_id: str) -> None:
        self.catalog.begin_restore(store_id, TIERS)
        for name, tier in self.tiers.items():
            for key in [key for key in tier if key.startswith("tombstones/")]:
                self.catalog.restore_tombstone(read_tombstone(tier[key], subject=key), tier=name)
        for tier in self.tiers.values():
            for key in [key for key in tier if key.startswith("records/")]:
                record = read_record(tier[key], subject=key)
                files = [RestoredFile(f, tuple(n for n in NAMES if f.key in self.tiers[n])) for f in record.files()]
                known = self.catalog.is_restored(record.header.publication_id)
                if known is None and not all(item.tiers for item in files):
                    self.catalog.note_seen(record.header)
                elif known in (None, Outcome.DELETED):
                    where = [name for name in NAMES if key in self.tiers[name]]
                    self.catalog.restore_publication(record.header, files, recorded=where)
        self.catalog.end_restore()
        for publication_id, version in self.versions.items():
            version.lies_in = {name: {i for i, key in version.objects.items() if key in self.tiers[name]} for name in NAMES}
            there = {name for name in NAMES if record_key(publication_id) in self.tiers[name]}
            version.recorded = {name for name in there if version.lies_in[name] == set(version.objects)}

    # --- what always holds -----------------------------------------------------------------------------------------------------

    def _visible(self, folder: str = "/") -> dict[str, Publication]:
        found: dict[str, Publication] = {}
        for entry in self.catalog.list_folder(folder):
            if entry.publication is not None:
                found[entry.path] = entry.publication
            else:
                below = self._visible(entry.path)
                assert below, f"the folder {entry.path} is empty"
                found |= below
        return found

    @invariant()
    def both_see_the_same_and_nothing_deleted(self) -> None:
        if not hasattr(self, "catalog"):
            return
        visible = self._visible()
        assert set(visible) == set(self.live)
        for path, publication in visible.items():
            assert publication.publication_id not in self.gone
            assert self.versions[publication.publication_id] is self.live[path]
            assert publication.durability == self.live[path].durability()

    @invariant()
    def every_live_object_has_a_replica_whose_bytes_are_there(self) -> None:
        for version in getattr(self, "live", {}).values():
            for object_id, key in version.objects.items():
                replicas = self.catalog.replicas(object_id)
                assert {replica.tier for replica in replicas} == {n for n, ids in version.lies_in.items() if object_id in ids}
                assert replicas
                assert all(self.tiers[replica.tier].get(key) == version.content for replica in replicas)


CatalogMachine.TestCase.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, phases=_PHASES, suppress_health_check=list(HealthCheck), print_blob=True
)
TestCatalogModel = CatalogMachine.TestCase
