"""One try at saving a checkpoint by all its ranks, from its opening until it is published or aborted.

The catalog decides every transition; this service moves bytes and tells waiters. It lives on the event loop. What this daemon holds
for an attempt (slots, running ingests) is in memory only: if the daemon dies, the attempts whose bytes were not yet in a durable tier
are aborted by `abandon` at the next start, and the rest goes on from the catalog.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from ckptstore.catalog.model import AttemptState, AttemptView, Backlog, Join, Kind, NewObject, Ticket
from ckptstore.errors import AttemptAborted, Busy, CatalogUnavailable, CkptStoreError, InvalidInput, NotFound, WaitTimeout
from ckptstore.manifest import part_file_name
from ckptstore.paths import check_path, check_relative, new_id
from ckptstore.wire import AttemptOpened, AttemptStatus, FileStored, HandOver, OpenAttempt
from ckptstore_server.grants import Grant, Grants
from ckptstore_server.ingest import Ingest
from ckptstore_server.judging import refuse_never
from ckptstore_server.node import CATALOG_PAUSE_S, Node
from ckptstore_server.publish import Publisher
from ckptstore_server.sessions import Sessions
from ckptstore_tiers.interface import BlockSource

T = TypeVar("T")

CLIENT_GONE = "the client that was saving it is gone"
#: How long one request waits for a slot before the client repeats it: short, so that a client that dies is noticed.
SLOT_WAIT_S = 10.0
#: How long an attempt that does not wait for a slot waits for the catalog to open it, in seconds: training is held up meanwhile.
CATALOG_PATIENCE_S = 3.0
#: A wait for a slot so short that the attempt can hardly have been aborted meanwhile, in seconds.
SHORT_WAIT_S = 0.1
#: How old the sum of what waits to be drained may be when a save is held against its bound, in seconds.
QUEUE_LOOK_S = 1.0
#: The longest that bytes which were handed over wait for other ranks' copies, in seconds: with `guard`, a copy goes on for a whole step.
LONGEST_COPY_S = 2.0
#: How often a body that is still coming in counts as progress, in seconds.
PROGRESS_S = 5.0


class AttemptService:
    def __init__(self, node: Node, sessions: Sessions, ingest: Ingest, publisher: Publisher) -> None:
        self._sessions = sessions
        self._queue: list[Backlog] = []
        self._queue_seen_s = float("-inf")
        self._requests: set[asyncio.Future[Any]] = set()
        self._node = node
        self._ingest = ingest
        self._publisher = publisher
        self._grants = Grants(node)
        self._files: dict[tuple[str, str], NewObject] = {}  # (attempt, name) of puts that are under way
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening: dict[tuple[str, str, str, int, int], tuple[OpenAttempt, asyncio.Task[AttemptOpened]]] = {}
        self._noting: dict[asyncio.Future[AttemptView], str] = {}  # what was handed over and the catalog does not know yet: its session
        self.accepting = True

    @property
    def busy(self) -> bool:
        """Whether some bytes have been handed over that are in no durable tier yet."""
        return bool(self._tasks)

    # --- opening ---------------------------------------------------------------------------------------------------------------

    async def open(self, request: OpenAttempt, *, session: str) -> AttemptOpened:
        """Join the attempt; for a checkpoint, with a slot to write into.

        Raises AlreadyExists, PathConflict, AttemptAborted, InvalidInput; Busy when no slot is free (with `on_busy="wait"` the rank
        stays joined, and asking again goes on waiting; with "fail" the attempt is aborted).
        """
        if not self.accepting:
            raise Busy("the daemon is stopping", operation="save", subject=request.path, hint="try again when it is back")
        rank = (session, request.path, request.token, request.ordinal, request.rank)
        begun, task = self._opening.get(rank, (None, None))
        if task is None or begun != request:
            # Asked again while it is under way, it is not done again: the later of two might find its slot handed over by then.
            task = self._begun(self._open(request, session))
            self._opening[rank] = request, task
            task.add_done_callback(lambda done: self._opening.pop(rank) if self._opening[rank][1] is done else None)
        if request.on_busy != "wait" and not (await asyncio.wait({task}, timeout=CATALOG_PATIENCE_S))[0]:
            return self._not_waited_for(request, task)
        return await asyncio.shield(task)

    def _not_waited_for(self, request: OpenAttempt, task: asyncio.Task[AttemptOpened]) -> AttemptOpened:
        """The catalog hangs, and training does not wait for it: whatever comes of the opening is ended, for all ranks."""
        why = f"the catalog has not opened the attempt within {CATALOG_PATIENCE_S:g} s"

        async def end_it() -> None:
            with suppress(CkptStoreError):
                if not (opened := await task).skipped:
                    await self.abort(opened.attempt_id, f"rank {request.rank} did not wait: {why}")

        self._begun(end_it())
        if request.on_busy == "fail":
            hint = "see `ckptstore status`, or save with on_busy='wait'"
            raise CatalogUnavailable(why, operation="save", subject=request.path, hint=hint)
        # The id is nobody's. Waiting for it says that there will be no checkpoint, as for any skip.
        return AttemptOpened(attempt_id=new_id(), skipped=True)

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Do all of `work` also when the client hangs up, for which the server cancels the request: half of it would leave a slot
        or an attempt that nobody owns."""
        return await asyncio.shield(self._begun(work))

    def _begun(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)
        return task

    async def _open(self, request: OpenAttempt, session: str) -> AttemptOpened:
        check_path(request.path, operation="save")
        kind = Kind(request.kind)
        if kind is not Kind.CHECKPOINT and request.world_size != 1:
            raise InvalidInput("files are put by one process: world_size must be 1", operation="put", subject=request.path)
        names = self._names(request, kind)
        if kind is not Kind.CHECKPOINT:
            await self._check_queue(request.path)  # nothing is joined yet: whoever puts asks again
        ticket = await self._node.query(self._node.catalog.join, self._join(request, kind, session), names)
        self._node.timings.open(ticket.attempt_id)
        try:
            return await self._enter(ticket, request, names, session)
        except CkptStoreError as error:
            asked_again = request.on_busy == "wait" and isinstance(error, (Busy, CatalogUnavailable))
            if not (asked_again or isinstance(error, AttemptAborted)):
                with suppress(CatalogUnavailable):  # it is ended later then
                    await self.abort(ticket.attempt_id, f"rank {request.rank} failed: {error.why}")
            raise
        finally:
            if not self._sessions.is_open(session):
                # Its client died while it joined. What `session_lost` saw was before the join: end the attempt here.
                await self._abort_quietly(ticket.attempt_id, CLIENT_GONE)

    async def _enter(self, ticket: Ticket, request: OpenAttempt, names: tuple[str, ...], session: str) -> AttemptOpened:
        if Kind(request.kind) is not Kind.CHECKPOINT:
            for new_object in ticket.objects:
                self._files[ticket.attempt_id, new_object.name] = new_object
            return AttemptOpened(attempt_id=ticket.attempt_id)
        try:
            await self._check_queue(request.path)
            grant = await self._slot(ticket, request, session)
        except Busy as error:
            if request.on_busy != "skip":
                raise
            await self.abort(ticket.attempt_id, f"rank {request.rank} skipped this save: {error.why}")
            return AttemptOpened(attempt_id=ticket.attempt_id, skipped=True)
        return AttemptOpened(attempt_id=ticket.attempt_id, file_name=names[0], segment=grant.to_wire())

    @staticmethod
    def _names(request: OpenAttempt, kind: Kind) -> tuple[str, ...]:
        if kind is Kind.CHECKPOINT:
            if request.rank >= request.world_size:
                why = f"rank {request.rank} is outside a world of {request.world_size}"
                raise InvalidInput(why, operation="save", subject=request.path)
            return (part_file_name(request.rank, request.world_size),)
        return ("",) if kind is Kind.FILE else ()

    def _join(self, request: OpenAttempt, kind: Kind, session: str) -> Join:
        return Join(
            path=request.path,
            token=request.token,
            ordinal=request.ordinal,
            rank=request.rank,
            world_size=request.world_size,
            kind=kind,
            node=self._node.node_id,
            session=session,
            replace=request.replace,
            step=request.step,
            metadata=json.dumps(request.metadata, ensure_ascii=False, separators=(",", ":")),
        )

    async def _check_queue(self, path: str) -> None:
        """Slow down whoever saves or puts when more waits to be drained than the configured bound."""
        if time.monotonic() - self._queue_seen_s > QUEUE_LOOK_S:
            self._queue = await self._node.query(self._node.catalog.backlog)
            self._queue_seen_s = time.monotonic()
        for backlog in self._queue:
            if backlog.size_bytes > self._node.settings.queue_limit:
                raise Busy(
                    f"{backlog.size_bytes} bytes wait to be drained, the bound is {self._node.settings.queue_limit}",
                    operation="save",
                    subject=path,
                    tier=backlog.tier,
                    hint="raise queue_limit, or find out with `ckptstore status` why the tier is slow",
                )

    async def _slot(self, ticket: Ticket, request: OpenAttempt, session: str) -> Grant:
        timeout_s = SLOT_WAIT_S if request.on_busy == "wait" else 0.0
        began_s = time.monotonic()
        grant = await self._grants.make(ticket.attempt_id, request, ticket.objects[0], session, timeout_s=timeout_s)
        if time.monotonic() - began_s < SHORT_WAIT_S:
            return grant  # handing over asks the catalog anyway: one round trip less where nobody waited
        view = await self._node.query(self._node.catalog.attempt, ticket.attempt_id)
        if view.state is AttemptState.ABORTED:  # while this rank waited for its slot: its client has not been told of it yet
            self._grants.give_up(view.attempt_id, session)
            raise _aborted(view)
        return grant

    # --- handing over ----------------------------------------------------------------------------------------------------------

    async def hand_over(self, attempt_id: str, rank: int, message: HandOver, *, session: str) -> AttemptStatus:
        """From here on the bytes are the daemon's: the trainer may die. AttemptAborted if nobody wants them any more."""
        noted = await self.take(attempt_id, rank, message, session=session)
        return self._status(await asyncio.shield(noted), [])

    async def take(self, attempt_id: str, rank: int, message: HandOver, *, session: str) -> asyncio.Future[AttemptView]:
        """The same, as soon as the bytes are the daemon's; the future is done when the catalog knows it, too."""
        grant = await self._grant(attempt_id, rank, session)
        grant.check_is(message)
        self._grants.end(grant)
        segment = self._node.pool.hold(message.segment_id, message.generation, owner=session)
        noted: asyncio.Future[AttemptView] = asyncio.get_running_loop().create_future()
        noted.add_done_callback(asyncio.Future.exception)  # an error is for who waits, and for nobody if nobody does
        self._noting[noted] = session
        noted.add_done_callback(self._noting.pop)
        store = partial(self._ingest.segment, attempt_id, rank, grant.new_object, segment, message.size_bytes, lineage=grant.lineage)
        note, finish = self._note(attempt_id, rank, noted), self._finish(noted, store, attempt_id, rank, grant.lent_s)
        for task in (asyncio.create_task(finish, name=f"ingest {attempt_id} rank {rank}"), asyncio.create_task(note)):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if (found := self._node.steps.heard(session, message.steps_ended_s)) is not None:
            self._node.quiet.aim(found.used_cpus, found.slowdown)
        return noted

    async def _note(self, attempt_id: str, rank: int, noted: asyncio.Future[AttemptView]) -> None:
        """Have the catalog know of the snapshot; however long it is locked. `noted` tells what came of it."""
        try:
            view = await self._node.insist(self._node.catalog.snapshot_taken, attempt_id, rank)
        except BaseException as error:  # noqa: BLE001 - told to whoever waits for it
            noted.set_exception(error)
            return
        if view.snapshots == view.world_size:
            self._node.timings.reach(attempt_id, "snapshot")
        noted.set_result(view)
        self._node.board.tell()

    async def _grant(self, attempt_id: str, rank: int, session: str) -> Grant:
        grant = self._grants.of(attempt_id, rank, session)
        if grant is None:
            await self._raise_if_aborted(attempt_id)
            raise NotFound("this session holds no slot for that rank", operation="hand over", subject=f"{attempt_id} rank {rank}")
        return grant

    async def store_file(self, attempt_id: str, name: str, source: BlockSource) -> FileStored:
        """One file of a put, into the first durable tier that takes it. Blocks the caller until it is there."""
        new_object = await self.expect_file(attempt_id, name)
        digests = await self._ingest.file(attempt_id, new_object, source)
        return FileStored(object_id=new_object.object_id, size_bytes=digests.size_bytes, digest=digests.root)

    async def expect_file(self, attempt_id: str, name: str) -> NewObject:
        """The object that a file of the attempt becomes; refused before a byte of it is received if the attempt does not take it."""
        new_object = self._files.get((attempt_id, name))
        if new_object is None:
            view = await self._raise_if_aborted(attempt_id)
            if view.kind is not Kind.FOLDER:
                raise InvalidInput(f"an attempt of kind {view.kind} takes no file {name!r}", operation="put", subject=view.path)
            check_relative(name)
            (new_object,) = await self._node.query(self._node.catalog.add_objects, attempt_id, 0, [name])
            self._files[attempt_id, name] = new_object
        return new_object

    async def receive(self, attempt_id: str, rank: int, size_bytes: int, body: AsyncIterator[bytes], *, session: str) -> AttemptStatus:
        """A save over TCP: the body goes into the slot that `open` granted, and is handed over when it is whole."""
        grant = await self._grant(attempt_id, rank, session)
        grant.check_size(size_bytes, "save")
        received_bytes, heard_s = 0, time.monotonic()
        async for chunk in body:
            if received_bytes + len(chunk) > size_bytes:
                raise InvalidInput(f"the body is longer than the {size_bytes} bytes announced", operation="save", subject=attempt_id)
            grant.segment.view[received_bytes : received_bytes + len(chunk)] = chunk
            received_bytes += len(chunk)
            if time.monotonic() - heard_s > PROGRESS_S:
                heard_s = time.monotonic()
                await self._node.query(self._node.catalog.progress, attempt_id)
        if received_bytes != size_bytes:
            raise InvalidInput(f"the body ended after {received_bytes} of {size_bytes} bytes", operation="save", subject=attempt_id)
        message = HandOver(segment_id=grant.segment.segment_id, generation=grant.segment.generation, size_bytes=size_bytes)
        return await self.hand_over(attempt_id, rank, message, session=session)

    async def commit(self, attempt_id: str) -> AttemptStatus:
        """All files of a put are stored: publish."""
        return await self._to_its_end(self._commit(attempt_id))

    async def _commit(self, attempt_id: str) -> AttemptStatus:
        # In one transition: a commit that is refused leaves an attempt that still dies with its client.
        await self._publisher.arrive(attempt_id, 0)
        self._node.timings.reach(attempt_id, "snapshot")
        self._forget_files(attempt_id)
        return await self.status(attempt_id)

    async def _let_others_copy(self, attempt_id: str, patience_s: float) -> None:
        """Wait until no other rank on this node copies any more: that holds up training, and nobody waits for the disk yet.

        Ranks copy about as much and about at the same time, so a wait as long as this rank's own copy took is enough.
        """
        deadline = time.monotonic() + min(patience_s, LONGEST_COPY_S)
        while (left_s := deadline - time.monotonic()) > 0:
            ticket = self._node.board.attempts_ticket()
            if not self._grants.any_of(attempt_id):
                return
            await self._node.board.heard(ticket, left_s)

    async def _finish(
        self, noted: asyncio.Future[AttemptView], store: Callable[[], Awaitable[object]], attempt_id: str, rank: int, lent_s: float
    ) -> None:
        """The top of an ingest task: what goes wrong aborts the attempt, for all its ranks. The bytes go to the disk while the catalog
        notes that they are here; it decides in the end whether anybody wants them."""
        try:
            with self._node.steps.saving(since_s=lent_s):
                await self._let_others_copy(attempt_id, time.monotonic() - lent_s)
                await store()
            await noted
            await self._arrive(attempt_id, rank)
        except CkptStoreError as error:
            if not isinstance(error, AttemptAborted):
                self._node.remark(f"save, rank {rank}", error)
            reason = f"rank {rank}: {error}"
        except Exception as error:  # noqa: BLE001 - the top of a task: an unknown fault ends this attempt, not the daemon
            self._node.remark(f"save, rank {rank}", error)
            reason = f"rank {rank}: a fault in the daemon ({type(error).__name__}: {error})"
        else:
            return
        await asyncio.wait([noted])  # whoever handed it over is told that it was taken; what became of it, whoever asks for that
        await self._abort_quietly(attempt_id, reason)

    async def _arrive(self, attempt_id: str, rank: int) -> None:
        """What is stored is published however long the catalog takes: an attempt that is complete is so for the next try, too."""
        while True:
            try:
                return await self._publisher.arrive(attempt_id, rank)
            except CatalogUnavailable as error:
                self._node.remark("publish", error)
                await asyncio.sleep(CATALOG_PAUSE_S)

    async def _abort_quietly(self, attempt_id: str, reason: str) -> None:
        try:
            self.ended([await self._node.insist(self._node.catalog.abort, attempt_id, reason)])
        except CkptStoreError as error:
            self._node.remark("abort", error)

    # --- ending ----------------------------------------------------------------------------------------------------------------

    async def abort(self, attempt_id: str, reason: str, *, session: str | None = None) -> AttemptStatus:
        """End the attempt for all its ranks. A client that aborts its own save gives its slot back by it (`session`).

        CatalogUnavailable: it ends as soon as the catalog can be written.
        """
        try:
            view = await self._node.query(self._node.catalog.abort, attempt_id, reason)
        except CatalogUnavailable:
            self._begun(self._abort_quietly(attempt_id, reason))
            raise
        if session is not None:
            self._grants.give_up(attempt_id, session)
        self.ended([view])
        return self._status(view, [])

    def ended(self, views: list[AttemptView]) -> None:
        """Attempts that are over: tell whoever waits.

        A slot that is lent stays lent until its client comes back (to hand over, or to abort) or is gone: it may be copying into it
        right now, and another save of the same client must not get the slot meanwhile, or the two would mix unseen.
        """
        for view in views:
            self._forget_files(view.attempt_id)
        if views:
            self._node.board.announce()

    async def slot_given_up(self, segment_id: str, generation: int, session: str, why: str) -> None:
        """A client gave back a slot of which it may not have heard what attempt it was granted for: nobody else would end that."""
        if (grant := self._grants.with_slot(segment_id, generation, session)) is not None:
            self._grants.end(grant)
            said = f"failed: {why}" if why else "gave its slot back"
            self._begun(self._abort_quietly(grant.attempt_id, f"rank {grant.rank} {said}"))

    async def session_lost(self, session: str) -> None:
        """A client is gone: its slots are freed, and what it had not handed over is aborted."""
        self._grants.session_lost(session)
        if noting := [noted for noted, owner in self._noting.items() if owner == session]:
            await asyncio.wait(noting)  # what it had handed over is not aborted, although the catalog may not know of it yet
        self.ended(await self._node.insist(self._node.catalog.session_lost, session, CLIENT_GONE))

    def _forget_files(self, attempt_id: str) -> None:
        for key in [key for key in self._files if key[0] == attempt_id]:
            del self._files[key]

    # --- waiting ---------------------------------------------------------------------------------------------------------------

    async def status(self, attempt_id: str, *, wait: str | None = None, timeout_s: float = 0.0) -> AttemptStatus:
        """Where the attempt is; with `wait` ("snapshot", "published" or a tier), once it reached that or was aborted, at the latest
        after `timeout_s`. InvalidInput if the tier will never hold it, because of policies."""
        if wait not in (None, "snapshot", "published"):
            self._node.handle(str(wait))

        def is_settled(status: AttemptStatus) -> bool:
            if wait is None or status.state == "aborted":
                return True
            if wait == "published":
                return status.state == "published"
            return status.snapshot if wait == "snapshot" else self._node.is_as_safe_as(wait, status.durability)

        return await self._node.settled(lambda: self._look(attempt_id, wait), is_settled, timeout_s)

    async def _look(self, attempt_id: str, wait: str | None) -> AttemptStatus:
        view = await self._node.query(self._node.catalog.attempt, attempt_id)
        durability: list[str] = []
        if view.publication_id is not None:
            publication = await self._node.query(self._node.catalog.publication, view.publication_id)
            durability = list(publication.durability)
            for tier in durability:
                self._node.timings.reach(attempt_id, tier)
            await refuse_never(self._node, publication, wait or "")
        return self._status(view, durability)

    def _status(self, view: AttemptView, durability: list[str]) -> AttemptStatus:
        return AttemptStatus(
            attempt_id=view.attempt_id,
            path=view.path,
            state=view.state.value,
            reason=view.reason,
            snapshot=view.snapshots == view.world_size and view.state is not AttemptState.ABORTED,
            durability=durability,
            publication_id=view.publication_id,
            timings_s=self._node.timings.of(view.attempt_id),
        )

    async def _raise_if_aborted(self, attempt_id: str) -> AttemptView:
        view = await self._node.query(self._node.catalog.attempt, attempt_id)
        if view.state is AttemptState.ABORTED:
            raise _aborted(view)
        return view

    async def drain_ingests(self, timeout_s: float) -> None:
        """Wait until everything that was handed over is stored, for a graceful stop."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            if late:
                why = f"{len(late)} snapshots were not stored in {timeout_s:.0f} s"
                self._node.remark("stop", WaitTimeout(why, operation="stop"))


def _aborted(view: AttemptView) -> AttemptAborted:
    return AttemptAborted(view.reason or "the attempt was aborted", operation="save", subject=view.path)
