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
from ckptstore.catalog.restore import Outcome, RestoredFile, RestoredReference
from ckptstore.errors import AlreadyExists, AttemptAborted, InvalidInput, NotFound, PathConflict
from ckptstore.paths import ancestors, new_id
from ckptstore.records import Record, read_record, read_tombstone
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
    referred: dict[str, str]  # the same, of objects of earlier versions
    sequence: int
    recorded: set[str] = field(default_factory=set)
    unsaid: bool = False  # it was moved, and every record that lies in a tier says where it was before

    @property
    def needs(self) -> dict[str, str]:
        return self.objects | self.referred

    def durability(self, lies_in: dict[str, set[str]]) -> tuple[str, ...]:
        return tuple(name for name in NAMES if name in self.recorded and lies_in[name] >= set(self.needs))


@dataclass
class Attempt:
    path: str
    ticket: Ticket
    replace: bool
    content: bytes
    referred: dict[str, str] = field(default_factory=dict)


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
        self.lies_in: dict[str, set[str]] = {name: set() for name in NAMES}  # ids of objects, by tier
        self.contents: dict[str, bytes] = {}  # by object id
        self.lost: set[str] = set()  # keys of objects that no rebuilt catalog knows
        self.tickets: dict[str, Attempt] = {}

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
        self.tickets[ticket.attempt_id] = Attempt(path, ticket, replace, new_id().encode())
        return ticket.attempt_id

    @rule(attempt=attempts, count=st.integers(1, 2), further=st.booleans())
    def refer(self, attempt: str, count: int, further: bool) -> None:
        """To objects of the last checkpoints of its folder, and to what those refer to."""
        if attempt not in self.tickets or self.catalog.attempt(attempt).state is not AttemptState.OPEN:
            return
        found = self.tickets[attempt]
        wanted = {file.object_id: file.key for file in self.catalog.bases(found.path, 0, limit=count)}
        for version in self.live.values():
            if further and wanted.keys() & version.objects.keys():
                wanted |= version.referred
        pinned = self.catalog.refer(attempt, 0, dict.fromkeys(wanted, 1), tier="nvme")
        assert pinned == wanted.keys() & self.lies_in["nvme"]
        found.referred |= {item: wanted[item] for item in pinned}

    @rule(attempt=attempts)
    def store(self, attempt: str) -> None:
        if attempt not in self.tickets:
            return
        found = self.tickets[attempt]
        for item in found.ticket.objects:
            self.tiers["nvme"][item.key] = self.contents[item.object_id] = found.content
            self.lies_in["nvme"].add(item.object_id)
            assert self.catalog.object_stored(item.object_id, BlockDigests.of(found.content), tier="nvme")
        self.catalog.rank_stored(attempt, 0)

    @rule(attempt=consumes(attempts))
    def publish(self, attempt: str) -> None:
        if attempt not in self.tickets or self.catalog.attempt(attempt).state is not AttemptState.COMPLETE:
            return
        found = self.tickets.pop(attempt)
        path = found.path
        expected = self._refusal(path, found.replace)
        try:
            published = self.catalog.publish(attempt)
        except (AlreadyExists, PathConflict) as error:
            assert expected is type(error)
            assert self.catalog.attempt(attempt).state is AttemptState.ABORTED
            return
        assert expected is None
        assert published.referred_bytes == len(found.referred)
        objects = {item.object_id: item.key for item in found.ticket.objects}
        version = Version(path, objects, found.referred, published.sequence)
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

    @rule(path=PATHS, replace=st.booleans(), incremental=st.booleans())
    def save(self, path: str, replace: bool, incremental: bool) -> None:
        attempt = self.join(path, replace, 1)
        if incremental:
            self.refer(attempt, 2, True)
        self.store(attempt)
        self.publish(attempt)

    # --- moving ----------------------------------------------------------------------------------------------------------------

    @rule(tier=TIER)
    def drain(self, tier: str) -> None:
        for item in self.catalog.pending_drains(tier, limit=2):
            self.tiers[tier][item.key] = self.contents[item.object_id]
            assert self.catalog.add_replica(item.object_id, tier)
            self.lies_in[tier].add(item.object_id)

    @rule(tier=TIER)
    def write_records(self, tier: str) -> None:
        for publication_id in self.catalog.owed_records(tier, limit=2):
            if publication_id not in self.catalog.owed_records(tier, limit=100):
                continue  # the record that was written before let it go
            version = self.versions[publication_id]
            assert self.lies_in[tier] >= set(version.needs)
            self.tiers[tier][record_key(publication_id)] = self.catalog.record(publication_id, tier=tier)
            self.catalog.record_written(publication_id, tier)
            version.recorded.add(tier)
            version.unsaid = False

    @rule(tier=TIER)
    def evict(self, tier: str) -> None:
        for file in self.catalog.eviction_candidates(tier, limit=1):
            assert not any(file.object_id in attempt.referred for attempt in self.tickets.values()), "it was pinned"
            users = [version for version in self.live.values() if file.object_id in version.needs]
            deeper = [name for name in NAMES[NAMES.index(tier) + 1 :] if file.object_id in self.lies_in[name]]
            assert any(all(name in version.recorded for version in users) for name in deeper)
            assert self.catalog.drop_replica(file.object_id, tier)
            self.lies_in[tier].discard(file.object_id)
            for version in self.versions.values():
                if file.object_id in version.needs:
                    version.recorded.discard(tier)

    # --- another path ----------------------------------------------------------------------------------------------------------

    def _move_refusal(self, source: str, target: str, replace: bool) -> type[Exception] | None:
        below = [path for path in self.live if path == source or path.startswith(source + "/")]
        if target == source or target.startswith(source + "/"):
            return InvalidInput
        if not below:
            return PathConflict if any(above in self.live for above in ancestors(source)) else NotFound
        refusal = self._refusal(target, replace)
        return AlreadyExists if refusal is None and source not in self.live and target in self.live else refusal

    @rule(source=PATHS, to=PATHS, replace=st.booleans())
    def move(self, source: str, to: str, replace: bool) -> None:
        expected = self._move_refusal(source, to, replace)
        try:
            moved = self.catalog.move(source, to, replace=replace)
        except (AlreadyExists, PathConflict, NotFound, InvalidInput) as error:
            assert expected is type(error)
            return
        assert expected is None
        new_path = {path: to + path[len(source) :] for path in self.live if path == source or path.startswith(source + "/")}
        assert moved == sorted(new_path.values())
        live = {new_path[path]: self.live.pop(path) for path in new_path}
        self.live |= live
        for publication_id, version in self.versions.items():
            if publication_id in self.gone or not (version.path == source or version.path.startswith(source + "/")):
                continue
            if not self.catalog.is_live(publication_id):
                self.gone.add(publication_id)  # an older version, deleted: from here on only its tombstone keeps it from coming back
                continue
            version.path = to + version.path[len(source) :]
            version.sequence = self.catalog.publication(publication_id).sequence
            version.recorded.clear()
            version.unsaid = any(record_key(publication_id) in tier for tier in self.tiers.values())

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
            if chore.act is Act.DELETE_OBJECT:
                self.lies_in[tier].discard(chore.object_id or "")
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
        """Only when every removal and every move has reached a tier: before that, nobody but the catalog knows of it."""
        said = {key for tier in self.tiers.values() for key in tier if key.startswith("tombstones/")}
        recorded = {key for tier in self.tiers.values() for key in tier if key.startswith("records/")}
        if any(record_key(item) in recorded and tombstone_key(item) not in said for item in self.gone):
            return
        if any(version.unsaid for publication_id, version in self.versions.items() if publication_id not in self.gone):
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
        return recorded and everywhere.issuperset(version.needs.values())

    def _rebuild(self, store_id: str) -> None:
        self.catalog.begin_restore(store_id, TIERS)
        for name, tier in self.tiers.items():
            for key in [key for key in tier if key.startswith("tombstones/")]:
                self.catalog.restore_tombstone(read_tombstone(tier[key], subject=key), tier=name)
        for tier in self.tiers.values():
            for key in [key for key in tier if key.startswith("records/")]:
                record, where = self._newest_record(key)
                files = [RestoredFile(f, self._where(f.key)) for f in record.files()]
                referred = [RestoredReference(reference, self._where(reference.file.key)) for reference in record.references()]
                known = self.catalog.is_restored(record.header.publication_id)
                if known is None and not all(item.tiers for item in (*files, *referred)):
                    self.catalog.note_seen(record.header)
                elif known in (None, Outcome.DELETED):
                    self.catalog.restore_publication(record.header, files, referred, recorded=where)
        self.catalog.end_restore()
        for name, tier in self.tiers.items():
            ids = {key.rpartition("~")[2]: key for key in tier if key.startswith("objects/")}
            known = self.catalog.known_objects(ids)
            self.lies_in[name] = set(ids)
            self.lost.update(key for object_id, key in ids.items() if object_id not in known)
        for publication_id, version in self.versions.items():
            key = record_key(publication_id)
            there = self._newest_record(key)[1] if any(key in tier for tier in self.tiers.values()) else []
            version.recorded = {name for name in there if self.lies_in[name] >= set(version.needs)}

    def _newest_record(self, key: str) -> tuple[Record, list[str]]:
        """What the tiers say of a publication, and those that say it: after a move some may not have heard of it."""
        said = {name: read_record(tier[key], subject=key) for name, tier in self.tiers.items() if key in tier}
        newest = max(said.values(), key=lambda record: record.header.sequence)
        return newest, [name for name in said if said[name].header.sequence == newest.header.sequence]

    def _where(self, key: str) -> dict[str, int | None]:
        return {name: None for name in NAMES if key in self.tiers[name]}

    @rule()
    def come_to_rest(self) -> None:
        """Everything that is owed is done: what nobody needs is gone then."""
        while self._is_busy():
            for name in NAMES:
                self.drain(name)
                self.write_records(name)
                self.work_off(name, 4)
        needed = {key for version in self.live.values() for key in version.needs.values()}
        for attempt in self.tickets.values():
            needed.update(attempt.referred.values(), (item.key for item in attempt.ticket.objects))
        kept = {key for tier in self.tiers.values() for key in tier if key.startswith("objects/")}
        assert kept - self.lost <= needed
        assert {key for tier in self.tiers.values() for key in tier if key.startswith("tombstones/")} == set()

    def _is_busy(self) -> bool:
        catalog = self.catalog
        return any(
            catalog.pending_drains(n, limit=1) or catalog.owed_records(n, limit=1) or catalog.chores(n, grace_s=0.0, limit=1) for n in NAMES
        )

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
            assert publication.durability == self.live[path].durability(self.lies_in)

    @invariant()
    def every_live_object_has_a_replica_whose_bytes_are_there(self) -> None:
        for version in getattr(self, "live", {}).values():
            for object_id, key in version.needs.items():
                replicas = self.catalog.replicas(object_id)
                assert {replica.tier for replica in replicas} == {n for n, ids in self.lies_in.items() if object_id in ids}
                assert replicas
                assert all(self.tiers[replica.tier].get(key) == self.contents[object_id] for replica in replicas)


CatalogMachine.TestCase.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, phases=_PHASES, suppress_health_check=list(HealthCheck), print_blob=True
)
TestCatalogModel = CatalogMachine.TestCase
