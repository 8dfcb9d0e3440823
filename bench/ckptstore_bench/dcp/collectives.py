"""How many collectives does a piece of work take? As torch dispatches them: none take no time. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

#: The operators behind `torch.distributed`'s functions, and behind its functional ones.
NAMESPACES = ("c10d", "_c10d_functional")


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    collectives: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.collectives += func.namespace in NAMESPACES
        return func(*args, **(kwargs or {}))


def collectives_in(work: Callable[[], object]) -> int:
    """Collectives that this thread began in `work`, of whatever group."""
    counting = _Counting()  # type: ignore[no-untyped-call]
    with counting:
        work()
    return counting.collectives
