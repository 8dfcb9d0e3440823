"""Which tensors may still be copied while training goes on, and who waits for that?

What an optimizer owns (its parameters and its state) changes only in its `step`. So with `guard=optimizer` these tensors are copied in
the background, while forward and backward run, and the optimizer's next `step` waits for what is left. A leaf of the state is guarded
only if it is exactly a tensor that the optimizer owns: same memory, dtype, shape and strides; all else was copied before `save` returned.

Each optimizer gets its hooks once, at the first save that it guards: a hook that removed itself would change the table that the
optimizer walks through. Loading a state into it waits, too. `Guards` is of one store; any thread.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol

from ckptstore.errors import InvalidInput


class Waitable(Protocol):
    def wait(self) -> object: ...


class _Optimizer(Protocol):
    """What a guard needs of torch.optim.Optimizer."""

    param_groups: list[dict[str, Any]]
    state: dict[Any, Any]

    def register_step_pre_hook(self, hook: Any) -> Any: ...


class _Copies:
    """The copies that one optimizer's step has to wait for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Waitable] = []

    def add(self, copied: Waitable) -> None:
        with self._lock:
            self._open.append(copied)

    def wait(self, *_: object) -> None:
        """The hook. It costs nothing when nothing is being copied."""
        while self._open:
            with self._lock:
                copied = self._open[0] if self._open else None
            if copied is not None:
                copied.wait()
                with self._lock:
                    self._open = [other for other in self._open if other is not copied]


class Guards:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._copies: weakref.WeakKeyDictionary[Any, _Copies] = weakref.WeakKeyDictionary()

    def hold(self, optimizers: Sequence[_Optimizer], copied: Waitable) -> None:
        """From now on the next step of each waits for `copied`."""
        for optimizer in optimizers:
            with self._lock:
                copies = self._copies.get(optimizer)
                if copies is None:
                    copies = self._copies[optimizer] = _Copies()
                    optimizer.register_step_pre_hook(copies.wait)
                    before_load = getattr(optimizer, "register_load_state_dict_pre_hook", None)  # torch 2.2 and later
                    if before_load is not None:
                        before_load(copies.wait)
            copies.add(copied)


def checked_guard(guard: object, path: str) -> list[_Optimizer]:
    """`guard` as a list of optimizers: one, or several."""
    if guard is None:
        return []
    optimizers: list[Any] = list(guard) if isinstance(guard, Iterable) else [guard]
    for optimizer in optimizers:
        if not all(hasattr(optimizer, name) for name in ("param_groups", "state", "register_step_pre_hook")):
            why = f"guard is an optimizer or several, not {type(optimizer)!r:.80}"
            hint = "an optimizer of torch.optim, or one that wraps it and has its hooks"
            raise InvalidInput(why, operation="save", subject=path, hint=hint)
    return optimizers


def owned(optimizers: Iterable[_Optimizer]) -> set[Hashable]:
    """The tensors that only these optimizers change, as `identity` tells them apart."""
    found: set[Hashable] = set()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            found.update(map(identity, group["params"]))
        for state in optimizer.state.values():
            found.update(identity(value) for value in _tensors(state))
    return found


def _tensors(state: Any) -> Iterable[Any]:
    """The tensors of one parameter's state, which is a dict of tensors, numbers and, in some optimizers, lists of these."""
    if hasattr(state, "data_ptr"):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _tensors(value)


def identity(tensor: Any) -> Hashable:
    """Of a DTensor, that of its local tensor: a save copies that."""
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
