"""The store as a training script sees it: save, load, put, get, and questions to the namespace.

One class for a daemon on this node and for one over the network; what differs is in the transport. Each method checks its
arguments, asks the daemon, and lets one module do the work: `saving`, `loading`, `files`. Errors are the leaves of
`ckptstore.errors`, whichever side found them.

Thread-safe. In a forked child the store opens a session of its own at the next call. What is durable when, is what
`PendingCheckpoint.wait` says.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ckptstore.bundle import in_parts
from ckptstore.durability import is_as_safe_as
from ckptstore.errors import InvalidInput, NotFound
from ckptstore.manifest import part_file_name
from ckptstore.paths import INDEX_NAME, LATEST, SHARDS_NAME, check_folder, check_path
from ckptstore.wire import (
    LONG_POLL_S,
    FileInfo,
    Hello,
    Message,
    PublicationInfo,
)
from ckptstore_client import files as local_files
from ckptstore_client.api import Api
from ckptstore_client.connection import Connection
from ckptstore_client.loading import load_state
from ckptstore_client.namespace import Namespace
from ckptstore_client.pending import PendingCheckpoint
from ckptstore_client.preemption import Preemption
from ckptstore_client.process_group import ProcessGroup, rank_to_load, resolved_together, shared_on_this_node
from ckptstore_client.putting import put_files
from ckptstore_client.reading import VerifiedObject
from ckptstore_client.saving import OnBusy, Save, Saver, SaveRequest, checked_metadata, checked_step, checked_timeout
from ckptstore_client.sharding.loading import PerRanks, ShardedCheckpoint, Share
from ckptstore_client.sharding.opening import Indexes, holds_dtensors, is_sharded, share_of
from ckptstore_client.sharding.slices import Extent
from ckptstore_client.small_files import write_bundle
from ckptstore_client.staging import Staging
from ckptstore_client.transport import Transport
from ckptstore_client.tree_files import write_tree
from ckptstore_client.waiting import SNAPSHOT, checked_stage, not_yet
from ckptstore_client.whole_copy import write_whole
from ckptstore_client.whole_file import NOT_IN_MEMORY, whole_file

if TYPE_CHECKING:
    from ckptstore_client.inspecting.comparing import Comparison

Answer = TypeVar("Answer", bound=Message)


def _refuse_files(found: PublicationInfo, operation: str, path: str) -> None:
    if found.kind != "checkpoint":
        why = f"it is a {found.kind} of files that were put, not a checkpoint that was saved"
        hint = f"fetch it with get, or read it as what it is, at ckpt://{found.path}"
        raise InvalidInput(why, operation=operation, subject=path, hint=hint)


def _call(method: str, route: str, answer: type[Answer], api: Api, **params: Any) -> Answer:
    """`api.call` with the connection last, as `Connection.run` gives it."""
    return api.call(method, route, answer, **params)


class Store(Namespace):
    """What `ckptstore.connect` gives. A context manager."""

    def __init__(self, open_transport: Callable[[], Transport], *, group: str | None) -> None:
        """Connects at the first use; `connect` makes one use at once, so that it fails where the user called it."""
        super().__init__(Connection(open_transport))
        self._open_transport = open_transport
        self._group_name = group
        self._staging = Staging()
        self._indexes = Indexes()
        self._saver = Saver(self._connection, self._staging, ProcessGroup(group))
        self._hello: Hello | None = None
        self._newest: PendingCheckpoint | None = None  # of this store's own saves
        self._connection.on_loss = self._forget_daemon
        self._connection.on_new_process = self._start_anew

    def _forget_daemon(self) -> None:
        """Its segments are gone, and its tiers may be others when it is back."""
        self._staging.forget()
        self._hello = None

    def _start_anew(self) -> None:
        """In a forked child: it is another client, which must not save under its parent's token."""
        self._staging = Staging()
        self._saver = Saver(self._connection, self._staging, ProcessGroup(self._group_name))

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def sibling(self, group: str) -> Store:
        """Another client of the same daemon: one more rank of `group` within this process."""
        return Store(self._open_transport, group=group)

    def close(self) -> None:
        """End the session. Saves that were copied are handed over (over the network: sent) first, and go on."""
        self._saver.close()
        self._connection.close()

    # --- saving ------------------------------------------------------------------------------------------------------------------

    def save(
        self,
        path: str,
        state: Any,
        *,
        step: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        on_busy: OnBusy = "wait",
        replace: bool = False,
        metadata: dict[str, Any] | None = None,
        guard: Any = None,
        incremental: bool = False,
        shards: Mapping[str, Extent] | None = None,
        expect: Sequence[str] = (),
        behind: bool = False,
    ) -> PendingCheckpoint:
        """Save this rank's part of a checkpoint; the tensors may change when this returns.

        `state` is any nesting of dicts, lists and tuples of tensors, arrays and plain values; NotStorable names the place of
        anything else. `rank` and `world_size` come from torch.distributed where it is initialised. When no slot of memory is
        free, `on_busy` says whether to wait, to skip this save (the result's `skipped` is True) or to raise Busy; either of these
        ends the attempt for all ranks. AlreadyExists unless `replace`.

        `guard`, an optimizer or several: what they own (their parameters and their state) is copied while forward and backward run,
        and their next `step` waits for what is left; everything else is copied before this returns. Whoever changes guarded
        tensors by other means does it inside `with pending.before_mutation():`. Errors of opening the attempt, such as
        AlreadyExists, are raised by `pending.wait` then, if not by this call. So it is with `behind`, too: this returns after the copy,
        and opening and handing over go on.

        With `incremental`, tensors whose bytes are those of the last incremental checkpoint in the same folder are not written
        again: this one refers to where they lie. Any of them may be removed, in any order. The first such save is written in full.

        DTensors in `state` are parts of whole tensors: each rank writes what it holds, what several hold once, and the checkpoint can be
        loaded at any number of ranks. `shards` says the same of other tensors, by place or pattern: `Slice` or `Part`. `expect` names
        places, or patterns, that some rank must have. A checkpoint with a hole, or with a box that two ranks wrote, is never published:
        `wait` raises AttemptAborted, which names it. No collective beyond the first save's.
        """
        check_path(path, operation="save")
        if on_busy not in ("wait", "skip", "fail"):
            raise InvalidInput(f"on_busy is 'wait', 'skip' or 'fail', not {on_busy!r:.80}", operation="save", subject=path)
        metadata = checked_metadata(metadata, operation="save", path=path)
        wanted = (expect,) if isinstance(expect, str) else tuple(expect)
        request = SaveRequest(path, checked_step(step, path), bool(replace), metadata, on_busy, bool(incremental), shards, wanted, behind)
        self._newest = self._pending(path, self._saver.save(request, state, rank, world_size, guard))
        return self._newest

    def preemption(
        self,
        folder: str,
        *,
        signals: Sequence[int] = (signal.SIGTERM,),
        grace_s: float = 25.0,
        until: str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> Preemption:
        """For a training loop that saves in `folder`: a context manager, whose `wanted(step)` says when to save because somebody asks.

        A signal asks for the last snapshot, which all ranks take at the same step. The end of the `with` then waits, `grace_s` from the
        notice at most, until the tier `until` holds it (None: the nearest that survives the node), and tells in `kept` how far that got.
        """
        check_folder(folder, operation="heed preemption")
        checked_timeout(grace_s, "heed preemption")
        member = self._saver.group.member(folder, rank, world_size)
        return Preemption(self._connection, folder, member, lambda: self._newest, signals=signals, grace_s=grace_s, until=until)

    def reserve(self, state: Any) -> Future[int]:
        """Have memory made for saves of this shape, in the background, so that the first one is as fast as the hundredth.

        Nothing of `state` is saved. The result's `result()` is the number of slots that are ready; over the network there are none.
        """
        return self._saver.reserve(state)

    def put(
        self,
        local: str | Path,
        path: str,
        *,
        replace: bool = False,
        metadata: dict[str, Any] | None = None,
        timeout_s: float | None = None,
        progress: local_files.Progress | None = None,
    ) -> PendingCheckpoint:
        """Put a file, or a folder atomically; returns once it is published, and so in a durable tier. Links are followed.

        `progress` hears, from any thread, how many bytes are stored, and how many there are.
        """
        check_path(path, operation="put")
        checked_timeout(timeout_s, "put")
        about = checked_metadata(metadata, operation="put", path=path)
        group = self._saver.group
        opened = put_files(self._connection, group, Path(local), path, replace=bool(replace), metadata=about, progress=progress)
        pending = self._pending(path, Save.finished(opened))
        pending.wait_published(timeout_s)
        return pending

    def _pending(self, path: str, save: Save) -> PendingCheckpoint:
        return PendingCheckpoint(path, save, self._ask, self._tiers)

    def _tiers(self) -> list[str]:
        """Those that can be waited for."""
        if self._hello is None:
            self._hello = self.hello()
        return self._hello.durable_tiers

    # --- loading -----------------------------------------------------------------------------------------------------------------

    def load(
        self,
        path: str,
        *,
        into: Any = None,
        only: str | Sequence[str] | None = None,
        rank: int | None = None,
        mmap: bool = False,
        shared: bool | None = None,
        shards: Mapping[str, Extent] | None = None,
        per_rank: PerRanks = None,
    ) -> Any:
        """This rank's part of a checkpoint (`rank=k`: another's), every byte verified; `…/@latest` is the newest of a folder.

        With `into`, tensors are filled in place and scalars updated in their containers; structure, shapes and dtypes must match,
        which is checked before the first byte is read; if the reading itself fails, `into` is partly filled. With `only`
        ("model/*"), just the matching leaves are read: other dict entries are left out, other elements of lists and tuples are
        None. With torch.distributed, `@latest` is resolved once for all ranks: a collective call.

        With `mmap`, new tensors are the bytes of a local file, read when they are first touched and verified when they were stored, not
        now; writing to them changes this process's copy alone, and they outlive the checkpoint. `shared` says that other processes of
        this node load the same part now: the disk is read once for all of them. None: so it is if a launcher started several here, and
        this one loads a part that is not its own alone.

        A state that was saved with DTensors or `shards=` comes whole; with `into`, each tensor there takes its share of the whole,
        which a DTensor or `shards` (as in `save`) describes, and only that is read. `into` may then hold less than was saved. Leaves
        that ranks had their own of come from this rank, if there are as many ranks as then; else `per_rank` says what to do: the
        number of a saved rank, a function of place and ranks that gives one, "keep" for what `into` has, or a dict of patterns to these.
        """
        check_path(path, operation="load", latest_allowed=True)
        if mmap and into is not None:
            raise InvalidInput("mmap makes new tensors; into fills existing ones", operation="load", subject=path, hint="leave one out")
        publication = self._resolve_for_all(path) if path.endswith(f"/{LATEST}") else self._resolve(path)
        _refuse_files(publication, "load", path)
        if is_sharded(publication) or (publication.world_size == 1 and (shards is not None or holds_dtensors(into))):
            share = share_of(publication, rank, shards, per_rank)
            with self._open_sharded(publication, share, shared) as checkpoint:
                return checkpoint.load(into, only, share)
        if shards is not None or per_rank is not None:
            why = "its state is not spread over ranks: shards= and per_rank= mean nothing"
            raise InvalidInput(why, operation="load", subject=path, hint="leave them out")
        rank = rank_to_load(publication.path, publication.world_size, rank)
        shared = shared_on_this_node(publication.world_size, rank) if shared is None else shared
        file = self._file(publication, part_file_name(rank, publication.world_size))
        if file.whole is not None and not mmap:
            with contextlib.suppress(*NOT_IN_MEMORY), whole_file(file, self._connection.transport(), publication.path) as reader:
                return load_state(reader, into, only)
        open_file = partial(self._open, path=publication.path, operation="load", shared=shared)
        with open_file(file, in_part=only is not None) as reader:
            return load_state(
                reader,
                into,
                only,
                lambda object_id: open_file(self._object(object_id), in_part=True),
                mapped=mmap,
            )

    def open_sharded(self, path: str, *, rank: int | None = None, per_rank: PerRanks = None) -> tuple[ShardedCheckpoint, Share]:
        """A checkpoint to read boxes of its tensors from, and this process's share of it; the caller closes it."""
        check_path(path, operation="load", latest_allowed=True)
        publication = self._resolve_for_all(path) if path.endswith(f"/{LATEST}") else self._resolve(path)
        share = share_of(publication, rank, None, per_rank)
        return self._open_sharded(publication, share, None), share

    def open_tensors(self, path: str, *, rank: int | None = None) -> ShardedCheckpoint:
        """A checkpoint to look at its tensors, whole ones by name; the caller closes it. `rank`: where each saved a state of its own."""
        publication = self._resolve(check_path(path, operation="look into checkpoint", latest_allowed=True))
        _refuse_files(publication, "look into checkpoint", path)
        rank = None if rank is None else rank_to_load(publication.path, publication.world_size, rank)
        open_file = partial(self._open, path=publication.path, operation="look into checkpoint", in_part=True)
        find = partial(self._file, publication)
        return self._indexes.open(publication, find, open_file, lambda i: open_file(self._object(i)), part_of=rank)

    def diff(self, before: str, after: str, *, only: str | Sequence[str] | None = None, rank: int | None = None) -> Comparison:
        """Which tensors differ between two checkpoints, and by how much; equal ones are mostly known to be so without reading them."""
        from ckptstore_client.inspecting.comparing import compare

        return compare(self, before, after, only, rank=rank)

    def _open_sharded(self, publication: PublicationInfo, share: Share, shared: bool | None) -> ShardedCheckpoint:
        """Other ranks' files are read as other processes of this node may read them, too; its own is not."""
        several = shared_on_this_node(1, 0) if shared is None else shared
        open_file = partial(self._open, path=publication.path, operation="load", shared=several, in_part=True)
        own = None if share.rank is None else part_file_name(share.rank, publication.world_size)

        def open_part(file: FileInfo) -> VerifiedObject:
            return open_file(file, shared=bool(shared) if file.name == own else several)

        return self._indexes.open(publication, partial(self._file, publication), open_part, lambda i: open_file(self._object(i)))

    def get(self, path: str, local: str | Path, *, replace: bool = False, progress: local_files.Progress | None = None) -> Path:
        """Copy what is published at `path` (a file, a folder, a checkpoint, or one file of these) to `local`, verified, all or nothing.

        `progress` hears, from any thread, how many bytes are written, and how many there are.
        """
        check_path(path, operation="get", latest_allowed=True)
        target = Path(local).absolute()
        try:
            publication, inner = self._find(path)
        except NotFound:
            if (top := self.tree.look(path)).origin is None:
                raise
            with local_files.arriving(target, folder=top.kind == "folder", replace=replace) as temporary:
                write_tree(self.tree, top, temporary, local_files.Tally(0, progress))
            return target
        if inner is not None or publication.kind == "file":
            file = self._file(publication, inner or "")
            with (
                local_files.arriving(target, folder=False, replace=replace) as temporary,
                self._open(file, publication.path, "get") as reader,
            ):
                self._write(publication, reader, temporary, local_files.Tally(file.size_bytes, progress))
            return target
        tally = local_files.Tally(publication.size_bytes + publication.referred_bytes, progress)
        with local_files.arriving(target, folder=True, replace=replace) as temporary:
            for bundle in in_parts(self._files(publication), lambda file: file.size_bytes):
                several = not publication.referred_bytes  # else even a small file may refer to others
                for file in self._ask(partial(write_bundle, files=bundle, folder=temporary, tally=tally)) if several else bundle:
                    with self._open(file, publication.path, "get") as reader:
                        self._write(publication, reader, temporary / local_files.local_name(file), tally)
        return target

    def _write(self, publication: PublicationInfo, reader: VerifiedObject, target: Path, tally: local_files.Tally) -> None:
        """A file of a publication; one that refers to others is written whole."""
        if not publication.referred_bytes or reader.file.name in (INDEX_NAME, SHARDS_NAME):
            return local_files.write_file(reader, target, tally)
        return write_whole(reader, lambda object_id: self._open(self._object(object_id), publication.path, "get"), target, tally)

    def _open(self, file: FileInfo, path: str, operation: str, *, shared: bool = False, in_part: bool = False) -> VerifiedObject:
        return VerifiedObject(file, self._connection.transport(), operation=operation, path=path, shared=shared, in_part=in_part)

    def _resolve_for_all(self, path: str) -> PublicationInfo:
        found = resolved_together(lambda: self._resolve(path).publication_id)
        return self._ask(lambda api: api.call("GET", f"publications/{found}", PublicationInfo))

    # --- waiting ---------------------------------------------------------------------------------------------------------------------

    def wait(self, path: str, tier: str, timeout_s: float | None = None) -> PublicationInfo:
        """Return when `tier` holds all of what is published at `path`. WaitTimeout, InvalidInput as for `PendingCheckpoint.wait`."""
        checked_timeout(timeout_s, "wait")
        known = checked_stage(tier, self._tiers, path)
        found = self._resolve(check_path(path, operation="wait", latest_allowed=True))
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = LONG_POLL_S if deadline is None else max(0.0, min(LONG_POLL_S, deadline - time.monotonic()))
            route = f"publications/{found.publication_id}"
            found = self._ask(partial(_call, "GET", route, PublicationInfo, wait=tier, timeout_s=left_s))
            if tier == SNAPSHOT or is_as_safe_as(tier, found.durability, known):
                return found
            if deadline is not None and time.monotonic() >= deadline:
                where = ", ".join(found.durability) or "no durable tier holds all of it"
                raise not_yet(self._ask, path, tier, timeout_s, where)
