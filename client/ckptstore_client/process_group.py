"""Which ranks save together, and under which name? Rank, world size, and the token that all ranks of one incarnation of a job share.

An attempt is (path, token, n-th save of that path). The token is random: a launcher's restart count may repeat, and ranks of two
incarnations must never mix. With torch.distributed initialised, rank 0 draws it and broadcasts it, once per process group, at the
first save: that one call is collective. Without, `group=` (or CKPTSTORE_GROUP) is a random string that the launcher gives to all
ranks of this incarnation. A process that is alone draws its own.

`ProcessGroup` counts saves per path under a lock; skipped and failed saves count too, or ranks would drift apart. torch is never
imported here.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ckptstore.errors import CkptStoreError, InvalidInput

Value = TypeVar("Value")


@dataclass(frozen=True)
class Membership:
    """This rank's part in one attempt."""

    rank: int
    world_size: int
    token: str
    ordinal: int


@dataclass
class ProcessGroup:
    """`group` is what the user gave to `connect`, or CKPTSTORE_GROUP."""

    group: str | None
    _own_token: str = field(default_factory=lambda: secrets.token_hex(16))
    _agreed: tuple[Any, str] | None = None
    _saves: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next_save(self, path: str, rank: int | None, world_size: int | None) -> Membership:
        """Count one more save of `path`. InvalidInput if it is not known who the other ranks are."""
        return self._count(path, *self._identify(rank, world_size, path))

    def next_put(self, path: str) -> Membership:
        """Count one more put to `path`, which concerns this process alone, whatever group it is in."""
        return self._count(path, 0, 1, self._own_token)

    def member(self, folder: str, rank: int | None, world_size: int | None) -> Membership:
        """This process's part in all that is saved in a folder. InvalidInput as `next_save`; collective where its first call is."""
        return Membership(*self._identify(rank, world_size, folder), ordinal=0)

    def _count(self, path: str, rank: int, world_size: int, token: str) -> Membership:
        with self._lock:
            ordinal = self._saves[path, token]
            self._saves[path, token] += 1
        return Membership(rank, world_size, token, ordinal)

    def _identify(self, rank: int | None, world_size: int | None, path: str) -> tuple[int, int, str]:
        distributed = initialised()
        if distributed is not None and world_size in (None, distributed.get_world_size()) and rank in (None, distributed.get_rank()):
            token = self._own_token if distributed.get_world_size() == 1 else self._agree(distributed)
            return distributed.get_rank(), distributed.get_world_size(), token
        world_size = 1 if world_size is None else world_size
        if type(world_size) is not int or world_size < 1 or (rank is None and world_size > 1):
            raise InvalidInput("rank and world_size belong together, and are 0 or more and 1 or more", operation="save", subject=path)
        rank = 0 if rank is None else rank
        if type(rank) is not int or not 0 <= rank < world_size:
            raise InvalidInput(f"rank {rank} is outside a world of {world_size}", operation="save", subject=path)
        if self.group is not None:
            return rank, world_size, "group-" + hashlib.sha256(self.group.encode()).hexdigest()[:32]
        if world_size > 1:
            raise InvalidInput(
                "several ranks save together, and nothing says which processes they are",
                operation="save",
                subject=path,
                hint="initialise torch.distributed, or give all ranks of this run one random string: connect(group=…)",
            )
        return rank, world_size, self._own_token

    def _agree(self, distributed: Any) -> str:
        """The token of the default process group. Collective, the first time; a group that was made anew agrees anew."""
        world = distributed.group.WORLD
        if self._agreed is None or self._agreed[0] is not world:
            box = [secrets.token_hex(16)]
            distributed.broadcast_object_list(box, src=0)
            self._agreed = (world, box[0])
        return self._agreed[1]


def initialised() -> Any:
    """torch.distributed, if this program uses it; else None."""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed is not None and distributed.is_available() and distributed.is_initialized() else None


def rank_to_load(path: str, world_size: int, rank: int | None) -> int:
    """Which of so many saved parts this process loads: the one it asks for, or its own. InvalidInput if there is none."""
    distributed = initialised()
    if rank is None:
        rank = distributed.get_rank() if distributed is not None and world_size > 1 else 0
    if type(rank) is not int or not 0 <= rank < world_size:
        why = f"rank {rank} is outside the {world_size} ranks that saved it"
        raise InvalidInput(why, operation="load", subject=path, hint="pass rank=k to load another rank's part")
    return rank


def shared_on_this_node(parts: int, rank: int) -> bool:
    """Whether other processes here most likely load the same part of a checkpoint of so many: a launcher (torchrun, and others as it does)
    started several on this node, and this one does not load a part of its own."""
    several = os.environ.get("LOCAL_WORLD_SIZE", "1") not in ("", "0", "1")
    return several and (parts == 1 or str(rank) != os.environ.get("RANK"))


def resolved_together(find: Callable[[], Value]) -> Value:
    """What `find` gives rank 0, on every rank, or its error on every rank. Collective where there are several ranks; else just `find()`."""
    distributed = initialised()
    if distributed is None or distributed.get_world_size() == 1:
        return find()
    box: list[Any] = [None]
    if distributed.get_rank() == 0:
        try:
            box = [find()]
        except CkptStoreError as error:
            box = [error]
    distributed.broadcast_object_list(box, src=0)
    if isinstance(box[0], CkptStoreError):
        raise box[0]
    found: Value = box[0]
    return found
