"""Where an object's bytes are, nearest first; opening, checking and repairing replicas.

Nearest: this node's memory, then the tiers in their configured order. What is in memory is known to this daemon alone; everything else
is the catalog's word. A replica that turns out damaged or missing is marked in the catalog, never silently passed over twice, and is
replaced from a good one. Blocking: executors' threads call these methods.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager

from ckptstore.catalog import Catalog
from ckptstore.catalog.model import Replica, StoredFile
from ckptstore.errors import AlreadyExists, ChecksumMismatch, CkptStoreError, NotFound, TierUnavailable
from ckptstore.failpoints import declare, failpoint
from ckptstore_server.arriving import Arrivals
from ckptstore_server.node import Node
from ckptstore_server.tier_handle import TierHandle
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests, block_length
from ckptstore_tiers.followed import FollowedSource, Follower
from ckptstore_tiers.interface import BlockSource, ObjectReader, Tier
from ckptstore_tiers.key_locks import KeyLocks
from ckptstore_tiers.paced import PacedSource
from ckptstore_tiers.read_ahead import blocks_of

MEMORY = "memory"
COPIED = declare("copy.before_catalog")
#: Objects that are marked at a time when a tier was emptied.
OBJECTS_PER_PAGE = 1000


def digests_of(file: StoredFile) -> BlockDigests:
    return BlockDigests(file.size_bytes, file.blocks)


def put_anew(target: Tier, key: str, source: BlockSource, digests: BlockDigests) -> None:
    """Put an object that the catalog says is not there. What a crash left under the key with other bytes is nobody's: it goes."""
    try:
        target.put(key, source, expected=digests)
    except AlreadyExists:
        target.delete(key)
        target.put(key, source, expected=digests)


def _is_there(tier: Tier, key: str) -> bool:
    try:
        tier.stat(key)
    except NotFound:
        return False
    return True


def mark_lost(catalog: Catalog, tier: str) -> int:
    """Mark every replica that the catalog knows in an emptied tier; each is copied there again from a deeper one. How many there were."""
    after, count = "", 0
    while page := catalog.tier_objects(tier, after=after, limit=OBJECTS_PER_PAGE):
        for file in page:
            catalog.mark_damaged(file.object_id, tier)
        after, count = page[-1].object_id, count + len(page)
    return count


class Replicas:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._places = KeyLocks()
        self._claims_lock = threading.Lock()
        self._claims: Counter[tuple[str, str]] = Counter()
        self.arrivals = Arrivals()

    def place(self, object_id: str, tier: str) -> AbstractContextManager[None]:
        """Held while one object is written to or deleted from one tier: a late deletion must not meet a new copy."""
        return self._places.held(f"{tier}/{object_id}")

    @contextmanager
    def claimed(self, object_id: str, tier: str) -> Iterator[None]:
        """Around a copy that is made at once though it is in the tier's queue, too: who finds it there leaves it alone meanwhile."""
        claim = (object_id, tier)
        with self._claims_lock:
            self._claims[claim] += 1
        try:
            yield
        finally:
            with self._claims_lock:
                self._claims[claim] -= 1
                if not self._claims[claim]:
                    del self._claims[claim]

    def is_claimed(self, object_id: str, tier: str) -> bool:
        with self._claims_lock:
            return (object_id, tier) in self._claims

    def recorded(self, object_id: str) -> list[tuple[TierHandle, Replica]]:
        """The catalog's undamaged replicas that this node can reach, nearest first."""
        mine = (self._node.node_id, "")
        known = {r.tier: r for r in self._node.catalog.replicas(object_id) if not r.damaged and r.node in mine}
        return [(handle, known[handle.name]) for handle in self._node.handles if handle.name in known]

    @contextmanager
    def reader(self, file: StoredFile, tier: str) -> Iterator[ObjectReader]:
        """One replica, open. NotFound if it is not there (any more), TierUnavailable if the tier does not answer."""
        if tier == MEMORY:
            with self._node.pool.reader(file.object_id) as reader:
                yield reader
            return
        with self._node.handle(tier).watched() as opened, closing(opened.open(file.key, size_bytes=file.size_bytes)) as reader:
            yield reader

    def sources(self, file: StoredFile, *, excluding: str = "") -> Iterator[str]:
        """Names of the places to read from, nearest first; at last those called damaged, for want of a better one.

        A block that is read is verified in any case, and what was seen damaged may have been damaged on the way: a lying proxy between
        here and the only copy must not lose it for good.
        """
        if self._node.pool.find(file.object_id) is not None:
            yield MEMORY
        good = {handle.name for handle, _ in self.recorded(file.object_id)}
        doubtful = {r.tier for r in self._node.catalog.replicas(file.object_id) if r.node in (self._node.node_id, "")} - good
        for names in (good, doubtful):
            yield from (handle.name for handle in self._node.handles if handle.name in names and handle.name != excluding)

    # --- checking --------------------------------------------------------------------------------------------------------------

    def check(self, file: StoredFile, tier: str) -> str | None:
        """Read a replica whole against its checksums; what is wrong with it, or None. TierUnavailable if that cannot be told."""
        digests = digests_of(file)
        try:
            with self.reader(file, tier) as reader, self._node.scratch.borrow() as buffer:
                if reader.size_bytes != file.size_bytes and tier != MEMORY:
                    return f"it has {reader.size_bytes} bytes, {file.size_bytes} were saved"
                for index in range(digests.count):
                    view = buffer[: block_length(index, file.size_bytes)]
                    reader.read_into(index * BLOCK_BYTES, view)
                    digests.check(index, view, operation="verify", subject=file.key, tier=tier)
        except NotFound:
            return "it is missing"
        except ChecksumMismatch as error:
            return error.why
        return None

    def check_block(self, file: StoredFile, tier: str, index: int) -> bool:
        """Whether one block of a replica is what was saved."""
        digests = digests_of(file)
        if index >= digests.count:
            raise NotFound(f"the object has {digests.count} blocks", operation="check block", subject=file.key, tier=tier)
        try:
            with self.reader(file, tier) as reader, self._node.scratch.borrow() as buffer:
                view = buffer[: block_length(index, file.size_bytes)]
                reader.read_into(index * BLOCK_BYTES, view)
                digests.check(index, view, operation="check block", subject=file.key, tier=tier)
        except (NotFound, ChecksumMismatch):
            return False
        return True

    # --- repairing -------------------------------------------------------------------------------------------------------------

    def damaged(self, file: StoredFile, tier: str, why: str) -> None:
        """Take a replica out of use."""
        if tier == MEMORY:
            self._node.pool.forget(file.object_id)
        else:
            self._node.catalog.mark_damaged(file.object_id, tier)
            self._node.remark(
                f"replica in {tier}",
                ChecksumMismatch(why, operation="read", subject=file.key, tier=tier, hint="it is replaced from a good one"),
            )

    def missing(self, file: StoredFile, tier: str) -> None:
        """A replica that is recorded is not there; unless a recall has brought it back since somebody looked, or is about to."""
        if not self._comes_back(file, tier):
            self.damaged(file, tier, "it is missing")

    def _comes_back(self, file: StoredFile, tier: str) -> bool:
        if all(handle.name != tier for handle in self._node.node_local):
            return False
        if self.arrivals.brings(file.object_id, tier):
            return True
        try:
            with self._node.handle(tier).watched() as opened:
                return opened.stat(file.key).size_bytes == file.size_bytes
        except CkptStoreError:
            return False

    def copy(self, file: StoredFile, into: TierHandle, *, quietly: bool = False, follower: Follower | None = None) -> None:
        """Put the object into a tier from its nearest good replica, and record it. The one way in which bytes move between tiers.

        `follower` is told what can be read of it meanwhile, by tiers that tell.
        `quietly`: out of training's way, for nobody waits for it; a replica that was lost is replaced without delay all the same.
        CalledOff when it is not wanted any more; then nothing is left of it.
        A source that turns out damaged is marked and the next one taken; one that does not answer is passed over. ChecksumMismatch when
        none is left, TierUnavailable if one of them may be good. If the object was deleted meanwhile, what was written is removed again;
        if somebody else has brought it meanwhile, nothing is read.
        """
        digests = digests_of(file)
        away: TierUnavailable | None = None
        if self._is_whole_after_all(file, into):
            return
        for tier in self._copy_sources(file, into):
            try:
                with ExitStack() as stack:
                    stack.enter_context(self.place(file.object_id, into.name))
                    recorded = self._recorded_in(file.object_id, into)
                    if recorded is not None and not recorded.damaged and not self._node.catalog.is_queued(file.object_id, into.name):
                        return
                    source = stack.enter_context(blocks_of(stack.enter_context(self.reader(file, tier))))
                    repairs = recorded is not None and recorded.damaged
                    if repairs and not self._make_way(file, into, tier):
                        continue
                    target = stack.enter_context(into.watched(writes=True))
                    # A repair that rested would keep the place locked, and `verify` or a reader's report waiting for its own repair.
                    movement = stack.enter_context(into.lane.moving(file.object_id, file.size_bytes, quietly=quietly and not repairs))
                    paced = PacedSource(source, movement)
                    put_anew(target, file.key, paced if follower is None else FollowedSource(paced, follower), digests)
                    into.written.add(file.size_bytes)
                    failpoint(COPIED)
                    stored_bytes = target.stored_bytes(file.key, file.size_bytes)
                    if not self._node.catalog.add_replica(file.object_id, into.name, stored_bytes=stored_bytes):
                        target.delete(file.key)
                return
            except TierUnavailable as error:
                if error.tier != tier:
                    raise  # it is not the source that does not answer
                away = error
            except NotFound:
                self.missing(file, tier)
            except ChecksumMismatch:
                problem = self.check(file, tier)
                if problem is None:
                    raise  # the source is good: it is the target that stored something else
                self.damaged(file, tier, problem)
        if away is not None:
            raise away
        raise ChecksumMismatch("no good replica is left to copy from", operation="copy", subject=file.key, tier=into.name)

    def _is_whole_after_all(self, file: StoredFile, into: TierHandle) -> bool:
        """Whether what was called damaged in a tier was damaged on the way alone, not where it lies; then it is believed again."""
        with self.place(file.object_id, into.name):
            recorded = self._recorded_in(file.object_id, into)
            if recorded is None or not recorded.damaged or self.check(file, into.name) is not None:
                return False
            return self._node.catalog.add_replica(file.object_id, into.name, stored_bytes=recorded.stored_bytes)

    def _make_way(self, file: StoredFile, into: TierHandle, source: str) -> bool:
        """Remove wrong bytes from where better ones are to lie: an object that is there is never written over.

        Where every replica is damaged, each is left to whoever can save a part of it: False, if the source is no better.
        """
        with into.watched() as old:
            if _is_there(old, file.key) and (problem := self.check(file, source)):
                self.damaged(file, source, problem)
                return False
            old.delete(file.key)
        return True

    def _copy_sources(self, file: StoredFile, into: TierHandle) -> list[str]:
        """Where to copy from: this node's own tiers before its memory, since reading a segment keeps its slot from the next save, and a
        slow store would hold up training; then the rest, nearest first."""
        local = {handle.name for handle, _ in self.recorded(file.object_id)} & {handle.name for handle in self._node.node_local}
        return sorted(self.sources(file, excluding=into.name), key=lambda tier: tier not in local)

    def _recorded_in(self, object_id: str, handle: TierHandle) -> Replica | None:
        """What the catalog says of the object in a tier of this node's."""
        places = (self._node.node_id, "")
        known = (replica for replica in self._node.catalog.replicas(object_id) if replica.tier == handle.name)
        return next((replica for replica in known if replica.node in places), None)

    def repair(self, file: StoredFile, tier: str) -> bool:
        """Replace a damaged replica from a good one; False when no good one can be had now, or nobody wants it in that tier any more."""
        handle = self._node.handle(tier)
        if not self._node.catalog.is_wanted_in(file.object_id, tier) or not any(True for _ in self.sources(file, excluding=tier)):
            return False
        try:
            with self.claimed(file.object_id, tier):
                self._node.catalog.request_drain(file.object_id, tier)  # first: a crash in the middle leaves work for the next daemon
                self.copy(file, handle)
        except (TierUnavailable, ChecksumMismatch) as error:
            self._node.remark(f"repair in {tier}", error)
            return False
        return True
