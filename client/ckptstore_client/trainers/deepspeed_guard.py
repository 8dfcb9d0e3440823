"""Which tensors of a DeepSpeed engine's checkpoint change only in its optimizer's step, and how does that step wait for their copy?

DeepSpeed's optimizers are no torch optimizers: each wraps one, has weights in full precision beside the model's own, and changes all of
them, and the inner optimizer's state, in its own `step`, which the engine calls at the end of `engine.step` or `train_batch`. So it is
that method of this engine's optimizer that waits. What may be copied until then is told by memory: everything that DeepSpeed gives to be
written (parameters, views of flat partitions, state) and that lies in the storage of a parameter, of a weight that the inner optimizer
steps, or of its state. All else, buffers above all, is copied before a save returns.

ZenFlow and SuperOffload step in processes of their own while the model computes, and are refused. The trainer's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch

from ckptstore.errors import InvalidInput


class EngineGuard:
    """Stands for the optimizer of an engine, as `store.save(guard=…)` takes one."""

    def __init__(self, engine: Any, checkpoints: str) -> None:
        ways = {"ZenFlow": getattr(engine, "zenflow", False), "SuperOffload": engine.super_offload()}
        for name, used in ways.items():
            if used:
                why = f"{name} changes weights and optimizer state at any time, not in the engine's step alone"
                raise InvalidInput(why, operation="make checkpoints", subject=checkpoints, hint="leave guard out")
        self._engine = engine
        self.state: dict[Any, Any] = {}
        self.param_groups: list[dict[str, Any]] = []

    def look_through(self, given: Any) -> None:
        """`given` is what is saved next. Its tensors are kept hold of, so that their memory stays what it is until the next save."""
        memory = {_memory_of(tensor) for tensor in self._changed_by_step()} - {0}
        self.param_groups = [{"params": [tensor.detach() for tensor in _tensors_in(given) if _memory_of(tensor) in memory]}]

    def _changed_by_step(self) -> Iterator[torch.Tensor]:
        yield from self._engine.module.parameters()
        optimizer = self._engine.optimizer
        inner = getattr(optimizer, "optimizer", optimizer)
        for group in inner.param_groups:
            yield from group["params"]
        for weight, state in inner.state.items():  # at stage 3 the weights are in the groups only while they are stepped
            yield from _tensors_in([weight, state])

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> None:
        optimizer = self._engine.optimizer
        if isinstance(optimizer, torch.optim.Optimizer):
            optimizer.register_step_pre_hook(hook)
            return
        step = optimizer.step

        @wraps(step)
        def after_the_copy(*args: Any, **kwargs: Any) -> Any:
            hook(optimizer, args, kwargs)
            return step(*args, **kwargs)

        optimizer.step = after_the_copy


def _memory_of(tensor: torch.Tensor) -> int:
    """Where its storage begins; 0 for one that has none."""
    return tensor.untyped_storage().data_ptr()


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for child in value.values():
            yield from _tensors_in(child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _tensors_in(child)
