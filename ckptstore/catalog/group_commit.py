"""How do writers that wait for one another share a commit?

SQLite has one writer at a time, and each commit waits for the disk. What was waiting while a transaction was under way is done in the
next one, all together: each piece of work behind a savepoint of its own, in the order of arrival, then one commit for all. A writer that
nobody waits beside has a transaction to itself, as before.

A piece of work that raises an error of its own loses what it wrote, and nobody else does. If the database fails in the middle, nothing of
the transaction is left, and each piece is done again, alone, so that the fault finds whose it is; if the database was locked, all of
them are told so. Whoever comes first to the mutex works for the others, in its own thread. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, exc

from ckptstore.catalog.faults import Race, Transient

T = TypeVar("T")

#: More in one transaction would have the first wait long for the last.
MOST_AT_ONCE = 32


class _Piece(Generic[T]):
    """One writer's work, and what came of it."""

    def __init__(self, work: Callable[[Connection], T]) -> None:
        self._work = work
        self._result: T | None = None
        self.error: BaseException | None = None
        self.done = False

    def run(self, connection: Connection) -> None:
        self._result = self._work(connection)

    def taken(self) -> Any:
        if self.error is not None:
            raise self.error
        return self._result


class GroupCommit:
    def __init__(self, begin: Callable[[], AbstractContextManager[Connection]], patience_s: float) -> None:
        """`begin`: a transaction that writes, and that has the faults of the database as Transient, Race or CkptStoreError."""
        self._begin = begin
        self._patience_s = patience_s
        self._mutex = threading.Lock()
        self._waiting: deque[_Piece[Any]] = deque()

    @property
    def waiting(self) -> int:
        """Pieces of work that have not been begun."""
        return len(self._waiting)

    def run(self, work: Callable[[Connection], T]) -> T:
        """What `work` gives, once that is durable. Transient: its turn did not come in time, or the database is locked."""
        piece = _Piece(work)
        self._waiting.append(piece)
        if not self._mutex.acquire(timeout=self._patience_s) and not self._joins_late(piece):
            # Most likely the one at the head of the queue waits for another process's lock; this one only knows that it waits.
            raise Transient(
                "the database is locked: an earlier transaction of this daemon has not come through",
                "another process may hold it (a backup, a shell), or the disk of the catalog is very slow",
            )
        try:
            while not piece.done:
                self._next_group()
        finally:
            self._mutex.release()
        result: T = piece.taken()
        return result

    def _joins_late(self, piece: _Piece[Any]) -> bool:
        """Patience is over. A piece that was not begun is taken back; one that somebody works at has its end waited for, with the mutex."""
        try:
            self._waiting.remove(piece)
        except ValueError:
            return self._mutex.acquire()
        return False

    def _next_group(self) -> None:
        """Under the mutex."""
        group = [self._waiting.popleft() for _ in range(min(MOST_AT_ONCE, len(self._waiting)))]
        try:
            if len(group) == 1 or not self._together(group):
                for piece in group:
                    self._alone(piece)
        except BaseException as error:
            for piece in group:
                piece.error = error
            raise
        finally:
            for piece in group:
                piece.done = True

    def _together(self, group: Sequence[_Piece[Any]]) -> bool:
        """Whether it is known what came of each; else nothing has."""
        try:
            with self._begin() as connection:
                for piece in group:
                    self._behind_savepoint(piece, connection)
        except Transient as error:
            if isinstance(error, Race):
                return False
            for piece in group:
                piece.error = Transient(str(error), error.hint)
            return True
        except Exception:  # noqa: BLE001 - whose it is shows when each is alone
            return False
        return True

    def _behind_savepoint(self, piece: _Piece[Any], connection: Connection) -> None:
        piece.error = None
        try:
            with connection.begin_nested():
                piece.run(connection)
        except exc.SQLAlchemyError:  # the database's: what the others wrote may be gone, too
            raise
        except Exception as error:  # noqa: BLE001 - its own, and told to whoever waits for it
            piece.error = error

    def _alone(self, piece: _Piece[Any]) -> None:
        piece.error = None
        try:
            with self._begin() as connection:
                piece.run(connection)
        except BaseException as error:  # noqa: BLE001 - told to whoever waits for it
            piece.error = error
