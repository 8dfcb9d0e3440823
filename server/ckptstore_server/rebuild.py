"""How is a lost catalog restored from the tiers?

Every durable tier holds a commit record for each checkpoint in it, and tombstones of what was deleted until all tiers have acknowledged
that. A rebuild reads the tombstones of all tiers, then the records; a publication comes back when every one of its files, and every
object that it refers to, is found with its size in some tier. Incomplete ones are left where they are, and reported. What was attached
(`attachments_record`) is shown again, as the tier that heard of it last has it. Nothing is written into a tier, and nothing is deleted:
what the deletions still owe is queued, for the daemon to do. The catalog takes no daemon until the rebuild has ended, and a rebuild that
was interrupted is run again from the start.

`sweep_unknown` deletes objects that no record names. It is for an operator who asks for it, and refuses where anything was unreadable:
an unread record might name them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice

from ckptstore.attachments_record import ATTACHMENTS_KEY, LIMIT_BYTES, AttachmentsRecord, read_attachments
from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Reference, StoredFile, TierRow, record_key
from ckptstore.catalog.restore import Outcome, RestoredFile, RestoredReference
from ckptstore.config import Settings
from ckptstore.errors import AlreadyExists, ChecksumMismatch, InvalidInput, NotFound, PathConflict, TierUnavailable, WrongStore
from ckptstore.failpoints import declare, failpoint
from ckptstore.paths import is_id
from ckptstore.records import RecordHeader, read_record, read_tombstone
from ckptstore_server.generations import stale_tiers
from ckptstore_server.identity import check_root, is_empty_root, root_store
from ckptstore_tiers.checksums import BlockDigests
from ckptstore_tiers.codecs import CodecTier
from ckptstore_tiers.interface import ObjectStat

#: `stat` calls at once: they wait for an object store most of the time.
STAT_THREADS = 16
_PAGE = 500
_SAMPLES = 100
BEGUN = declare("rebuild.begun")
BETWEEN_PUBLICATIONS = declare("rebuild.between_publications")
BEFORE_END = declare("rebuild.before_end")
ENDED = declare("rebuild.ended")


@dataclass(frozen=True)
class Incomplete:
    """A publication that was not restored, though nothing says that it was deleted."""

    publication_id: str
    path: str
    sequence: int
    why: str


@dataclass
class RebuildReport:
    store_id: str
    restored: int = 0
    superseded: int = 0
    deleted: int = 0
    incomplete: list[Incomplete] = field(default_factory=list)
    #: Records and tombstones that could not be read, as "tier: key: why".
    unreadable: list[str] = field(default_factory=list)
    missing_tiers: list[str] = field(default_factory=list)
    #: This node's tiers that were away at the last rebuild: what they alone tell may have been removed since.
    stale_tiers: set[str] = field(default_factory=set)
    #: Attachments that are shown again; and those that are not, with the reason.
    attached: int = 0
    not_attached: list[str] = field(default_factory=list)
    unknown_objects: int = 0
    unknown_bytes: int = 0
    #: The first of the unknown objects, as "tier: key".
    unknown_samples: list[str] = field(default_factory=list)
    #: Ids of the objects of incomplete publications: they are not unknown.
    held_back: set[str] = field(default_factory=set, repr=False)

    def count_versions(self, live: int) -> None:
        """Records are read in no order: what was live when it was read may have turned out to be an older version since."""
        self.superseded += self.restored - live
        self.restored = live


@dataclass
class _Found:
    """One publication, put together from the records of all tiers."""

    header: RecordHeader
    files: dict[str, StoredFile]
    references: dict[str, Reference]
    recorded: list[str]  # the tiers whose record says where it is now


def rebuild(
    settings: Settings,
    tiers: Mapping[str, CodecTier],
    catalog: Catalog,
    *,
    allow_missing: Collection[str] = frozenset(),
    allow_stale: Collection[str] = frozenset(),
    progress: Callable[[str, int], None] = lambda doing, count: None,
) -> RebuildReport:
    """Restore `catalog`, which is empty, from the open `tiers` of this node.

    Raises WrongStore if the roots belong to different stores, or one to none though it is not empty, or the catalog is not empty;
    TierUnavailable for a configured tier that is not open or does not answer, unless it is in `allow_missing`. What only a tier tells
    that was away at the last rebuild is left where it is, and reported, unless the tier is in `allow_stale`. `progress` is told what is
    being done, and how many documents or objects have been looked at for that.
    """
    usable, store_id = _usable_tiers(settings, tiers, allow_missing)
    rows = [TierRow(tier.name, position, tier.is_shared, tier.durable) for position, tier in enumerate(settings.effective_tiers)]
    catalog.begin_restore(store_id, rows)
    failpoint(BEGUN)
    stale, generation = stale_tiers(usable, {row.name: row.shared for row in rows})
    report = RebuildReport(store_id, missing_tiers=[row.name for row in rows if row.name not in usable], stale_tiers=stale - {*allow_stale})
    for name, tier in usable.items():
        _restore_tombstones(name, tier, catalog, report)
    with ThreadPoolExecutor(STAT_THREADS, "rebuild") as pool:
        for name, tier in usable.items():
            for number, key in enumerate(_names(tier, "records/", ".jsonl"), start=1):
                progress(f"reading the records of {name}", number)
                _restore_one(key, name, usable, catalog, report, pool)
                failpoint(BETWEEN_PUBLICATIONS)
    _restore_attachments(usable, catalog, report)
    failpoint(BEFORE_END)
    catalog.end_restore(generation)
    failpoint(ENDED)
    report.count_versions(catalog.count()["publications"])
    for name, stat in unknown_objects(usable, catalog, report):
        progress("looking for objects that no record names", report.unknown_objects)
        report.unknown_objects += 1
        report.unknown_bytes += stat.size_bytes
        if len(report.unknown_samples) < _SAMPLES:
            report.unknown_samples.append(f"{name}: {stat.key}")
    return report


def unknown_objects(tiers: Mapping[str, CodecTier], catalog: Catalog, report: RebuildReport) -> Iterator[tuple[str, ObjectStat]]:
    """Objects that neither the catalog nor the record of an incomplete publication names."""
    for name, tier in tiers.items():
        listed = tier.list("objects/")
        while page := list(islice(listed, _PAGE)):
            known = catalog.known_objects(_object_id(stat.key) for stat in page) | report.held_back
            yield from ((name, stat) for stat in page if is_id(_object_id(stat.key)) and _object_id(stat.key) not in known)


def sweep_unknown(tiers: Mapping[str, CodecTier], catalog: Catalog, report: RebuildReport, *, before_s: float) -> int:
    """Delete the unknown objects that were written before `before_s`; how many. The operator asked for it (`--delete-unknown`).

    Refused (InvalidInput) when a tier was missing or a record unreadable in the rebuild, for it might name them; and a root that is
    not this store's is refused (WrongStore). Younger objects may belong to a save that another daemon has under way.
    """
    if report.missing_tiers or report.unreadable:
        raise InvalidInput(
            "not all records were read: what seems unknown may be named by one of them",
            operation="delete unknown objects",
            hint="bring back the missing tiers and repair or remove the unreadable records, then rebuild again",
        )
    for tier in tiers.values():
        check_root(tier, catalog.store_id)
    deleted = 0
    for name, stat in unknown_objects(tiers, catalog, report):
        if stat.modified_s < before_s:
            tiers[name].delete(stat.key)
            deleted += 1
    return deleted


# --- which tiers ---------------------------------------------------------------------------------------------------------------


def _usable_tiers(settings: Settings, tiers: Mapping[str, CodecTier], allow_missing: Collection[str]) -> tuple[dict[str, CodecTier], str]:
    """The tiers that answer, in order, and the store that they all belong to."""
    usable: dict[str, CodecTier] = {}
    stores: dict[str, str] = {}
    for name in (tier.name for tier in settings.effective_tiers):
        try:
            if name not in tiers:
                raise TierUnavailable("the tier is not open", operation="rebuild", tier=name)
            found = root_store(tiers[name])
        except TierUnavailable as error:
            if name in allow_missing:
                continue
            raise TierUnavailable(
                error.why,
                operation="rebuild",
                tier=name,
                hint=f"bring it back, or go on without it (--allow-missing {name}): what only it says was deleted may then come back",
            ) from error
        if found is not None:
            stores[name] = found
            usable[name] = tiers[name]
        elif not is_empty_root(tiers[name]):
            raise WrongStore("its root is not empty and says of no store that it is its own", operation="rebuild", tier=name)
        else:
            usable[name] = tiers[name]
    if not stores:
        raise NotFound("no tier's root carries a store's identity: there is nothing to rebuild from", operation="rebuild")
    if len(set(stores.values())) > 1:
        said = ", ".join(f"{name} is of store {store}" for name, store in stores.items())
        raise WrongStore(f"the tiers belong to different stores: {said}", operation="rebuild", hint="correct the configuration's roots")
    return usable, next(iter(stores.values()))


def _restore_attachments(tiers: Mapping[str, CodecTier], catalog: Catalog, report: RebuildReport) -> None:
    """What was attached last, as far as a tier knows that was not away at the last rebuild."""
    newest: AttachmentsRecord | None = None
    for name, tier in tiers.items():
        try:
            found = read_attachments(tier.get_document(ATTACHMENTS_KEY, limit_bytes=LIMIT_BYTES), subject=ATTACHMENTS_KEY)
            _refuse_foreign(found.store, report.store_id, ATTACHMENTS_KEY)
        except NotFound:
            continue
        except InvalidInput as error:
            report.not_attached.append(f"{name}: {ATTACHMENTS_KEY}: {error.why}")
            continue
        if name not in report.stale_tiers and (newest is None or found.sequence > newest.sequence):
            newest = found
    if newest is None:
        return
    for attachment in newest.attachments:
        try:
            catalog.restore_attachment(attachment, newest.sequence)
            report.attached += 1
        except (AlreadyExists, PathConflict, InvalidInput) as error:
            report.not_attached.append(f"{attachment.url} at {attachment.path}: {error.why}")


# --- what they say -------------------------------------------------------------------------------------------------------------


def _restore_tombstones(name: str, tier: CodecTier, catalog: Catalog, report: RebuildReport) -> None:
    for key in _names(tier, "tombstones/", ".json"):
        try:
            tombstone = read_tombstone(tier.get_document(key), subject=key)
            _refuse_foreign(tombstone.store, report.store_id, key)
        except (InvalidInput, NotFound) as error:
            report.unreadable.append(f"{name}: {key}: {error.why}")
            continue
        if catalog.is_restored(tombstone.publication_id) is None:
            report.deleted += 1
        catalog.restore_tombstone(tombstone, tier=name)


def _restore_one(
    key: str, name: str, tiers: Mapping[str, CodecTier], catalog: Catalog, report: RebuildReport, pool: ThreadPoolExecutor
) -> None:
    """Restore the publication of one record, unless an earlier tier's record has done that."""
    publication_id = key.removeprefix("records/").removesuffix(".jsonl")
    known = catalog.is_restored(publication_id)
    if known in (Outcome.LIVE, Outcome.SUPERSEDED) or any(item.publication_id == publication_id for item in report.incomplete):
        return
    found = _gather(publication_id, tiers, catalog, report, first=name)
    if found is None:
        return
    files = list(pool.map(lambda file: RestoredFile(file, _where(file, tiers)), found.files.values()))
    referred = list(pool.map(lambda item: RestoredReference(item, _where(item.file, tiers)), found.references.values()))
    if known is Outcome.DELETED:
        catalog.restore_publication(found.header, files, referred, recorded=found.recorded)
        return
    lost = [item.file.name or found.header.path for item in files if not item.tiers]
    lost += [item.reference.file.key for item in referred if not item.tiers]
    unlisted = found.header.file_count - len(files)
    if lost or unlisted or report.stale_tiers.issuperset(found.recorded):
        why = f"only {found.recorded[0]} knows it, which was away at the last rebuild: it may have been removed since"
        if lost or unlisted:
            why = f"{len(lost)} of its files are in no tier ({lost[0]!r})" if lost else f"no record lists {unlisted} of its files"
        report.incomplete.append(Incomplete(publication_id, found.header.path, found.header.sequence, why))
        report.held_back.update(found.files, found.references)
        catalog.note_seen(found.header)
        return
    outcome = catalog.restore_publication(found.header, files, referred, recorded=found.recorded)
    report.restored += outcome is Outcome.LIVE
    report.superseded += outcome is Outcome.SUPERSEDED
    report.deleted += outcome is Outcome.DELETED


def _gather(publication_id: str, tiers: Mapping[str, CodecTier], catalog: Catalog, report: RebuildReport, *, first: str) -> _Found | None:
    """The publication as the records of all tiers tell it. None if no record of it can be read."""
    found: _Found | None = None
    key = record_key(publication_id)
    for name, tier in tiers.items():
        try:
            record = read_record(tier.get_document(key), subject=key, tier=name)
            _refuse_foreign(record.header.store, report.store_id, key)
            if record.header.publication_id != publication_id:
                raise InvalidInput("it is the record of another publication", operation="read record", subject=key)
            files = {file.object_id: _own(file, record.header, catalog.node) for file in record.files()}
            references = {item.file.object_id: _own_reference(item, record.header, catalog.node) for item in record.references()}
            _check_digests([*files.values(), *(item.file for item in references.values())], key)
        except NotFound:
            continue
        except (InvalidInput, ChecksumMismatch) as error:
            said = f"{name}: {key}: {error.why}"
            if said not in report.unreadable:
                report.unreadable.append(said)
            continue
        if found is None:
            found = _Found(record.header, {}, {}, [])
        if record.header.sequence > found.header.sequence:  # it was moved, and the tiers before have not heard of that yet
            found.header, found.recorded = record.header, []
        found.files.update(files | {i: file for i, file in found.files.items() if file.node == catalog.node})
        found.references.update(references | {i: item for i, item in found.references.items() if item.file.node == catalog.node})
        if record.header.sequence == found.header.sequence:
            found.recorded.append(name)
    return found


def _own(file: StoredFile, header: RecordHeader, node: str) -> StoredFile:
    """A record in this node's own tier speaks of this node, whatever its id was when it was written: a new home has a new one."""
    return replace(file, node=node) if header.node else file


def _own_reference(reference: Reference, header: RecordHeader, node: str) -> Reference:
    return replace(reference, file=_own(reference.file, header, node))


def _check_digests(files: Collection[StoredFile], key: str) -> None:
    for file in files:
        if BlockDigests(file.size_bytes, file.blocks).root != file.root:
            raise InvalidInput(f"the digests of {file.name!r} do not agree", operation="read record", subject=key)


def _refuse_foreign(store: str, store_id: str, key: str) -> None:
    if store != store_id:
        raise InvalidInput(f"it was written by store {store}", operation="read record", subject=key)


def _where(file: StoredFile, tiers: Mapping[str, CodecTier]) -> dict[str, int | None]:
    """The tiers that hold the file's object with the right size, and what it takes there where it is compressed."""
    there = {}
    for name, tier in tiers.items():
        with suppress(NotFound, ChecksumMismatch):
            found = tier.stat(file.key, size_bytes=file.size_bytes)
            if found.size_bytes == file.size_bytes:
                there[name] = found.stored_bytes
    return there


def _names(tier: CodecTier, prefix: str, ending: str) -> Iterator[str]:
    """The keys of the documents below `prefix` that are named as ours are."""
    for stat in tier.list(prefix):
        if stat.key.endswith(ending) and is_id(stat.key.removeprefix(prefix).removesuffix(ending)):
            yield stat.key


def _object_id(key: str) -> str:
    return key.rpartition("~")[2]
