"""Which segments of host memory exist, whose they are, and who may have one now.

Invariants. A slot never passes from one owner to another: the memory of a gone owner is closed, not reused. A slot is reused only
when nobody reads from it (pins) and the daemon has let go of it. The sum of all capacities stays under the limit, and a new slot is
made only when the host and every cgroup above this process have room for it and for all that was promised before and has no page yet.

Any thread. One condition guards all tables; what takes time (closing, pre-faulting) runs after it is released. Pre-faulting runs in
threads of the pool's own, behind the acquire that asked for it; who lends the segment may wait for it. When an owner hands its first
slot over, a second one of that size is made and pre-faulted, so that the next save meets warm memory, and this one was not held up.

Nothing here is durable. The caller keeps an object as a replica only when the object needs no protection: a replica goes whenever its
slot is needed. Who must yield, and in which order, says `memory_order`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from ckptstore.errors import Busy, InvalidInput, NotFound, TierFull
from ckptstore_tiers.job_cgroup import JobCgroup, in_job_cgroup
from ckptstore_tiers.memory_limits import HostMemory
from ckptstore_tiers.memory_order import RECALL_OWNER, evictable, reuse_order
from ckptstore_tiers.memory_segment import PinnedReplica, Segment, SegmentState, Slot, round_up

__all__ = ["RECALL_OWNER", "JobCgroup", "PinnedReplica", "Segment", "SegmentPool", "SegmentState", "in_job_cgroup"]

#: Room for a header that grows a little between saves.
SLACK_BYTES = 1 << 20
#: How often a waiting acquire looks at MemAvailable and the cgroups, which tell nobody when they change.
_LOOK_AGAIN_S = 1.0
#: A late acquire of an owner that has just gone is refused; this many gone owners are remembered.
_REMEMBERED_OWNERS = 65_536


class SegmentPool:
    """All segments of this daemon. `limit_bytes` None: half of the memory that is free now."""

    def __init__(
        self,
        limit_bytes: int | None,
        slots_per_owner: int,
        huge_pages: bool = True,
        *,
        host: HostMemory | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host or HostMemory()
        self._limit_bytes = self._host.room().size_bytes // 2 if limit_bytes is None else limit_bytes
        self._slots_per_owner = slots_per_owner
        self._huge_pages = huge_pages
        self._clock = clock
        #: the process behind an owner, where it is one of this node
        self.process_of: Callable[[str], int | None] = lambda owner: None
        self._changed = threading.Condition()
        self._slots: dict[str, Slot] = {}
        self._replicas: dict[str, Slot] = {}  # by object id
        self._dropped: list[Slot] = []  # out of the tables, to be closed once the lock is free
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._closed = False
        threads = max(1, min(4, (os.cpu_count() or 1) // 4))
        self._prefaulter = ThreadPoolExecutor(threads, thread_name_prefix="ckptstore-prefault")
        # Of its own, so that no owner's first slot waits behind another's spare.
        self._spare_maker = ThreadPoolExecutor(1, thread_name_prefix="ckptstore-spare")

    @property
    def limit_bytes(self) -> int:
        return self._limit_bytes

    # --- lending -------------------------------------------------------------------------------------------------------------

    def acquire(self, owner: str, size_bytes: int, *, timeout_s: float) -> Segment:
        """A slot of `owner` that holds `size_bytes`, LENT, of a new generation.

        Waits for one up to `timeout_s`, then Busy, whose hint says what was missing. TierFull at once for what can never fit,
        NotFound for an owner that is gone.
        """
        self._refuse_impossible(size_bytes)
        deadline = time.monotonic() + timeout_s
        with self._tables():
            while True:
                self._refuse_gone(owner)
                found = self._take_slot(owner, size_bytes)
                if isinstance(found, Slot):
                    break
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    why = f"no segment of {size_bytes} bytes within {timeout_s:g} s: {found[0]}"
                    raise Busy(why, operation="acquire a segment", tier="memory", hint=found[1])
                self._changed.wait(min(remaining_s, _LOOK_AGAIN_S))
            fresh = found.generation == 0
            found.generation += 1
            found.state = SegmentState.LENT
            found.used_at_s = self._clock()
            segment = Segment.of(found)
        if fresh:
            self._prefault_behind(found)
        return segment

    def lent(self, segment_id: str, owner: str) -> Segment:
        """The segment, if it is lent to this owner; else NotFound, whether it is another's or nobody's."""
        with self._changed:
            slot = self._slots.get(segment_id)
            if slot is None or slot.owner != owner or slot.state is not SegmentState.LENT:
                raise self._unknown("lend", segment_id)
            return Segment.of(slot)

    def hold(self, segment_id: str, generation: int, *, owner: str | None = None) -> Segment:
        """Take a LENT segment over from its owner. NotFound: no such segment (of this owner); InvalidInput: not lent in this use."""
        with self._changed:
            slot = self._slots.get(segment_id)
            if slot is None or (owner is not None and slot.owner != owner):
                raise self._unknown("hand over", segment_id)
            if slot.generation != generation or slot.state is not SegmentState.LENT:
                raise InvalidInput(
                    f"the segment is {slot.state.value} in generation {slot.generation}, not lent in generation {generation}",
                    operation="hand over",
                    subject=segment_id,
                    tier="memory",
                )
            slot.state = SegmentState.HELD
            slot.used_at_s = self._clock()
            segment = Segment.of(slot)
        self._make_spare_behind(slot)
        return segment

    def release(self, segment: Segment) -> None:
        """There is nothing in it any more: its owner may have it again. Does nothing for a use that has ended already."""
        with self._tables():
            if segment.state in (SegmentState.LENT, SegmentState.HELD):
                self._vacate(segment.slot)

    def give_up(self, segment_id: str, generation: int, *, owner: str) -> None:
        """The owner wants nothing with this use of a lent slot any more. Does nothing if it has ended already."""
        with self._tables():
            slot = self._slots.get(segment_id)
            if slot is not None and slot.owner == owner and slot.generation == generation and slot.state is SegmentState.LENT:
                self._vacate(slot)

    # --- replicas ------------------------------------------------------------------------------------------------------------

    def keep_as_replica(self, segment: Segment, object_id: str, size_bytes: int) -> None:
        """A HELD segment holds this whole object from now on, until its slot is needed."""
        with self._tables():
            slot = segment.slot
            if segment.state is not SegmentState.HELD or not 0 <= size_bytes <= slot.capacity_bytes:
                raise InvalidInput(
                    f"a segment that is {segment.state.value}, of {slot.capacity_bytes} bytes, cannot hold {size_bytes} bytes",
                    operation="keep as replica",
                    subject=segment.segment_id,
                    tier="memory",
                )
            self._forget(object_id)  # an older copy of the same object
            slot.state, slot.object_id, slot.size_bytes = SegmentState.REPLICA, object_id, size_bytes
            slot.used_at_s = slot.kept_at_s = self._clock()
            self._replicas[object_id] = slot

    def find(self, object_id: str) -> Segment | None:
        """The segment that holds the object. Its generation tells later whether it still does."""
        with self._changed:
            slot = self._replicas.get(object_id)
            if slot is None:
                return None
            slot.used_at_s = self._clock()
            return Segment.of(slot)

    def reader(self, object_id: str) -> PinnedReplica:
        """The object, open: its slot is not reused until the reader is closed. NotFound if no segment holds it."""
        with self._changed:
            slot = self._replicas.get(object_id)
            if slot is None:
                raise NotFound("no segment holds this object", operation="open", subject=object_id, tier="memory")
            slot.pins += 1
            slot.used_at_s = self._clock()
            return PinnedReplica(Segment.of(slot), object_id, self._unpin)

    def forget(self, object_id: str) -> None:
        """The object is deleted. Who has it open reads on. Does nothing if no segment holds it."""
        with self._tables():
            self._forget(object_id)

    # --- the end of things ---------------------------------------------------------------------------------------------------

    def owner_gone(self, owner: str) -> None:
        """LENT and FREE slots are closed; HELD ones stay until released, replicas until somebody needs the memory."""
        with self._tables():
            self._gone[owner] = None
            while len(self._gone) > _REMEMBERED_OWNERS:
                self._gone.popitem(last=False)
            for slot in self._slots_of(owner):
                slot.owner_gone = True
                if slot.state in (SegmentState.LENT, SegmentState.FREE):
                    slot.doomed = True  # FREE may still be read from: by who opened its object before it was forgotten
                    self._drop_unread(slot)

    def give_back(self, idle_s: float) -> int:
        """Close what nobody has used for so long; the number of bytes given back."""
        with self._tables():
            latest = self._clock() - idle_s
            idle = [slot for slot in self._slots.values() if slot.idle and slot.used_at_s <= latest]
            for slot in idle:
                self._drop(slot)
            return sum(slot.capacity_bytes for slot in idle)

    def usage(self) -> dict[str, int]:
        """For `status`: the number of segments, and bytes by state. `resident_bytes` is what has pages."""
        with self._changed:
            slots = list(self._slots.values())
            states = {state: [slot for slot in slots if slot.state is state] for state in SegmentState}
            counted = {f"{state.value}_bytes": sum(slot.capacity_bytes for slot in states[state]) for state in SegmentState}
        total = sum(slot.capacity_bytes for slot in slots)
        resident = total - sum(slot.unbacked_bytes() for slot in slots)
        return {"segments": len(slots), **counted, "resident_bytes": resident, "limit_bytes": self._limit_bytes}

    def close(self) -> None:
        """Close every segment, whatever its state. Waiting acquires end with Busy."""
        with self._tables():
            self._closed = True
            for slot in list(self._slots.values()):
                self._drop(slot)
        for threads in (self._prefaulter, self._spare_maker):
            threads.shutdown(wait=True, cancel_futures=True)

    # --- under the lock ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _tables(self) -> Iterator[None]:
        """The lock; at its end waiters look again, and what was dropped is closed with the lock free."""
        dropped: list[Slot] = []
        try:
            with self._changed:
                try:
                    yield
                finally:
                    dropped, self._dropped = self._dropped, []
                    self._changed.notify_all()
        finally:
            for slot in dropped:
                slot.close()

    def _slots_of(self, owner: str) -> list[Slot]:
        return [slot for slot in self._slots.values() if slot.owner == owner]

    def _take_slot(self, owner: str, size_bytes: int) -> Slot | tuple[str, str]:
        """A free slot of the owner, or a new one; otherwise what is missing and the hint for it."""
        own = self._slots_of(owner)
        idle = sorted((slot for slot in own if slot.idle), key=reuse_order)
        fitting = [slot for slot in idle if slot.capacity_bytes >= size_bytes]
        if fitting and owner != RECALL_OWNER:
            self._empty(fitting[0])
            return fitting[0]
        counted = owner != RECALL_OWNER and len(own) >= self._slots_per_owner
        if counted and not idle:
            return (
                f"all {self._slots_per_owner} slots of this client are in use",
                "an earlier save is still being drained: save less often, or raise memory.slots",
            )
        bound = self._make_room(owner, self._capacity_for(size_bytes), too_small=idle[0] if counted else None)
        if bound is not None:
            return bound
        return self._make_slot(owner, self._capacity_for(size_bytes))

    def _make_slot(self, owner: str, capacity_bytes: int) -> Slot:
        slot = Slot(owner, capacity_bytes, huge_pages=self._huge_pages, pid=self.process_of(owner))
        slot.used_at_s = self._clock()
        self._slots[slot.segment_id] = slot
        return slot

    def _make_room(self, owner: str, capacity_bytes: int, *, too_small: Slot | None) -> tuple[str, str] | None:
        """Drop as many slots as it takes, or none and say which bound is in the way. `too_small` goes in any case."""
        limit_room, host_room, bound = self._rooms()
        victims: list[Slot] = []
        candidates = [slot for slot in evictable(self._slots.values(), owner) if slot is not too_small]
        for slot in [too_small, *candidates] if too_small else candidates:
            if min(limit_room, host_room) >= capacity_bytes and slot is not too_small:
                break
            victims.append(slot)
            limit_room += slot.capacity_bytes
            host_room += slot.capacity_bytes  # its pages come back, and its promise for the rest ends
        if limit_room < capacity_bytes:
            return f"the memory limit of {self._limit_bytes} bytes is used up", "wait for drains, or raise memory.limit"
        if host_room < capacity_bytes:
            return f"{bound} leaves {max(0, host_room)} bytes", "free memory on this node, or raise that limit"
        for slot in victims:
            self._drop(slot)
        return None

    def _rooms(self) -> tuple[int, int, str]:
        """What the limit leaves, what the host and the cgroups leave beside all promises, and the name of the bound on the latter."""
        unbacked_bytes = sum(slot.unbacked_bytes() for slot in [*self._slots.values(), *self._dropped])
        host = self._host.room()  # after the line above: pages made in between are counted twice, never not at all
        limit_room = self._limit_bytes - sum(slot.capacity_bytes for slot in self._slots.values())
        return limit_room, host.size_bytes - unbacked_bytes, host.bound

    def _capacity_for(self, size_bytes: int) -> int:
        roomy = round_up(size_bytes + SLACK_BYTES)
        return roomy if roomy <= self._limit_bytes else round_up(size_bytes)

    def _vacate(self, slot: Slot) -> None:
        """Nothing is in the slot now: free for its owner, or closed if it has none."""
        self._empty(slot)
        if slot.owner_gone or slot.owner == RECALL_OWNER:
            slot.doomed = True
            self._drop_unread(slot)

    def _empty(self, slot: Slot) -> None:
        if slot.object_id is not None and self._replicas.get(slot.object_id) is slot:
            del self._replicas[slot.object_id]
        slot.state, slot.object_id, slot.size_bytes = SegmentState.FREE, None, 0
        slot.used_at_s = self._clock()

    def _forget(self, object_id: str) -> None:
        slot = self._replicas.get(object_id)
        if slot is not None:
            self._vacate(slot)

    def _drop(self, slot: Slot) -> None:
        """Out of the tables; `_tables` closes it."""
        self._empty(slot)
        if self._slots.pop(slot.segment_id, None) is not None:
            slot.generation += 1  # what refers to this use learns that it has ended
            self._dropped.append(slot)

    def _drop_unread(self, slot: Slot) -> None:
        if slot.doomed and slot.pins == 0:
            self._drop(slot)

    def _unpin(self, slot: Slot) -> None:
        with self._tables():
            slot.pins -= 1
            self._drop_unread(slot)

    # --- refusals ------------------------------------------------------------------------------------------------------------

    def _refuse_impossible(self, size_bytes: int) -> None:
        if size_bytes < 0:
            raise InvalidInput(f"a segment cannot have {size_bytes} bytes", operation="acquire a segment", tier="memory")
        if round_up(size_bytes) > self._limit_bytes:
            raise TierFull(
                f"{size_bytes} bytes can never fit the memory limit of {self._limit_bytes} bytes",
                operation="acquire a segment",
                tier="memory",
                hint="raise memory.limit, or save from more ranks",
            )

    def _refuse_gone(self, owner: str) -> None:
        if self._closed:
            raise Busy("the daemon is stopping", operation="acquire a segment", tier="memory")
        if owner in self._gone:
            raise NotFound("this session has ended", operation="acquire a segment", subject=owner, tier="memory")

    @staticmethod
    def _unknown(operation: str, segment_id: str) -> NotFound:
        return NotFound("this session has no such segment", operation=operation, subject=segment_id, tier="memory")

    # --- ahead of need -------------------------------------------------------------------------------------------------------

    def _prefault_behind(self, slot: Slot) -> None:
        try:
            self._prefaulter.submit(slot.prefault)
        except RuntimeError:
            slot.prefaulted.set()  # the pool was closed meanwhile, and the slot with it

    def _make_spare_behind(self, slot: Slot) -> None:
        """A second slot of the same size for the owner's next save, if it has only this one."""
        if slot.generation > 1 or slot.owner == RECALL_OWNER:
            return
        with contextlib.suppress(RuntimeError):  # the pool was closed meanwhile
            self._spare_maker.submit(self._make_spare, slot.owner, slot.capacity_bytes)

    def _make_spare(self, owner: str, capacity_bytes: int) -> None:
        with self._tables():
            own = self._slots_of(owner)
            has_one = any(slot.capacity_bytes >= capacity_bytes and slot.idle for slot in own)
            if self._closed or owner in self._gone or has_one or not 0 < len(own) < self._slots_per_owner:
                return  # without any slot now: what this was to stand beside has been given back meanwhile
            if min(self._rooms()[:2]) < capacity_bytes:
                return  # nobody yields for a spare
            try:
                spare = self._make_slot(owner, capacity_bytes)
            except TierFull:
                return  # only a spare: the acquire that needs it will say so
        if not spare.prefault():
            with self._tables():
                if spare.idle and spare.state is SegmentState.FREE and spare.segment_id in self._slots:
                    self._drop(spare)  # memory ran out while it was made
