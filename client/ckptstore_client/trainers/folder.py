"""One run's folder of checkpoints in the store, as a trainer uses it: save under a name, load, the newest, remove.

A save returns when its bytes are copied; it goes on in the daemon. A save that failed later is told with the next one, as a warning in
the log, since training goes on and newer checkpoints follow; `finish` raises it, if it was the last. Checkpoints are removed only when
every save that was under way when that was asked for has been published, so that a trainer which deletes the old one first never has
none; a trainer that dies before that leaves the old one.

Used by one thread, the trainer's. The store is connected to at the first use.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypedDict

from ckptstore.errors import CkptStoreError, NotFound
from ckptstore.paths import LATEST, check_path
from ckptstore_client.connecting import connect
from ckptstore_client.pending import PendingCheckpoint
from ckptstore_client.preemption import Preemption
from ckptstore_client.process_group import resolved_together
from ckptstore_client.saving import OnBusy
from ckptstore_client.store import Store
from ckptstore_client.trainers.leaves import Word, restored, stored

_log = logging.getLogger(__name__)
_SCHEME = "ckpt://"


class FolderOptions(TypedDict, total=False):
    """What every trainer's integration takes beside its folder. Each may be left out: see `RunFolder` for what holds then."""

    #: what `ckptstore.connect` gave; None: this node's daemon
    store: Store | None
    #: whether leaves that are neither tensors nor plain values (objects among hyperparameters) are pickled; else they are refused, by place
    pickle: bool
    #: when memory is short: "wait", "skip" or "fail"
    on_busy: OnBusy
    #: whether tensors that did not change are referred to, and not written again
    incremental: bool


def folder_options(arguments: dict[str, Any]) -> FolderOptions:
    """Take these out of the keyword arguments of a class that has a trainer's own among its bases, for which the others are."""
    taken: Any = {name: arguments.pop(name) for name in FolderOptions.__annotations__ if name in arguments}
    options: FolderOptions = taken
    return options


class RunFolder:
    def __init__(
        self,
        folder: str,
        *,
        store: Store | None = None,
        pickle: bool = False,
        on_busy: OnBusy = "wait",
        incremental: bool = False,
        words: Sequence[Word] = (),
    ) -> None:
        """As `FolderOptions`. `words`: for types of leaves that only this trainer has."""
        self.path = check_path(folder, operation="use folder")
        self._given = store
        self._pickle = pickle
        self._on_busy: OnBusy = on_busy
        self._incremental = incremental
        self._words = words
        self._pending: list[PendingCheckpoint] = []
        self._last: PendingCheckpoint | None = None
        self._removals: list[_Removal] = []

    @cached_property
    def store(self) -> Store:
        return self._given or connect()

    def preemption(self, **options: Any) -> Preemption:
        """As `Store.preemption`, of this folder."""
        return self.store.preemption(self.path, **options)

    def holds(self, name: object) -> bool:
        """Whether this is a path of the store: one in the folder, or one with the scheme."""
        return isinstance(name, str) and (name.startswith((f"{self.path}/", _SCHEME)) or name == self.path)

    def path_of(self, name: str) -> str:
        """Where a checkpoint lies: its path if it is one, else the last part of a trainer's own name for it, in this folder."""
        if name.startswith(_SCHEME):
            return "/" + name.removeprefix(_SCHEME).lstrip("/")
        return name if name.startswith(f"{self.path}/") else f"{self.path}/{name.rstrip('/').rsplit('/', 1)[-1]}"

    def newest(self) -> str | None:
        """The newest checkpoint's own path, the same on all ranks; None if there is none yet. Collective where there are several ranks."""
        try:
            return resolved_together(lambda: self.store.stat(f"{self.path}/{LATEST}").path)
        except NotFound:
            return None

    def save(self, path: str, state: Any, *, guard: Any = None, alone: bool = False, **about: Any) -> PendingCheckpoint:
        """Save over whatever is there, as trainers do. `alone`: this rank's state is all of it; else every rank saves its own."""
        self._last = None
        self._settle()
        self._removals = [removal for removal in self._removals if removal.path != path]
        ranks: dict[str, Any] = {"rank": 0, "world_size": 1} if alone else {}
        pending = self.store.save(
            path,
            stored(state, with_pickle=self._pickle, words=self._words),
            replace=True,
            on_busy=self._on_busy,
            incremental=self._incremental,
            guard=guard,
            **ranks,
            **about,
        )
        self._pending.append(pending)
        self._last = pending
        return pending

    def load(self, path: str, *, only: str | Sequence[str] | None = None, rank: int = 0) -> Any:
        """What a rank saved, or a part of it ("model/*"). New tensors on the CPU."""
        self.copied()
        loaded = self.store.load(path, only=only, rank=rank)
        return restored(loaded, with_pickle=self._pickle, place=path, words=self._words)

    def copied(self) -> None:
        """Wait until nothing reads the trainer's tensors: before they are changed by other means than a guarding optimizer's step."""
        for pending in self._pending:
            with pending.before_mutation():
                pass

    def remove(self, path: str) -> None:
        """Remove it when all that is being saved now is published. It stays if one of these fails, or if it is held."""
        self._settle()
        self._removals.append(_Removal(path, list(self._pending)))
        self._settle()

    def finish(self) -> None:
        """Wait until every save is over, and remove what may go then. Raises why the last save failed, if it did."""
        failure: CkptStoreError | None = None
        for pending in self._pending:
            try:
                pending.wait_published()
            except CkptStoreError as error:
                if _outcome(pending) == "under way":
                    raise
                failure = error
        self._settle()
        if self._pending and failure is not None:  # the last one, which failed
            self._pending = []
            raise failure

    def _settle(self) -> None:
        """Forget saves that are over, telling of those that failed but the last, and remove what now may go."""
        outcomes = [(pending, _outcome(pending)) for pending in self._pending]
        self._pending = [p for p, outcome in outcomes if outcome == "under way" or (p is self._last and outcome.startswith("failed"))]
        for pending, outcome in outcomes:
            if outcome.startswith("failed") and pending is not self._last:
                _log.warning("the save of %s %s", pending.path, outcome)
        ready = []
        for removal in list(self._removals):
            told = {outcome for pending, outcome in outcomes if pending in removal.after}
            if told - {"under way", "published"}:
                self._removals.remove(removal)  # nothing newer came of it: the old one stays
            elif "under way" not in told:
                self._removals.remove(removal)
                ready.append(removal.path)
        for path in ready:
            self._remove_now(path)

    def _remove_now(self, path: str) -> None:
        try:
            self.store.rm(path)
        except NotFound:
            pass  # a policy was faster
        except CkptStoreError as error:  # held, most likely: that is no reason to end a training
            _log.warning("%s stays: %s", path, error)


@dataclass(eq=False)
class _Removal:
    path: str
    after: list[PendingCheckpoint]


def _outcome(pending: PendingCheckpoint) -> str:
    """"published", "skipped", "under way", or "failed: …"."""
    try:
        if pending.skipped:
            return "skipped"
    except CkptStoreError as error:  # it was never opened
        return f"failed: {error}"
    try:
        status = pending.status()
    except CkptStoreError as error:  # such as a daemon that is being started again
        return "under way" if error.retryable else f"failed: {error}"
    if status.state == "aborted":
        return f"failed: {status.reason}"
    return "published" if status.state == "published" else "under way"
