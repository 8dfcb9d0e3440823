"""A training loop small enough for any machine, and real: forward, backward and Adam of a multi-layer perceptron, on the CPU.

Its state is what a checkpoint of such a job holds: weights and Adam's two moments, fp32, twelve bytes a parameter. One thread drives it;
torch uses as many cores as it is told, by default all: that is who the daemon gets in the way of.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

LAYERS = 4
STATE_BYTES_PER_PARAM = 12


class Training:
    def __init__(self, size_bytes: int, *, batch: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        width = max(8, math.isqrt(size_bytes // STATE_BYTES_PER_PARAM // LAYERS))
        layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(width, width), nn.GELU())]
        self.model = nn.Sequential(*layers)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self._inputs, self._targets = torch.randn(batch, width), torch.randn(batch, width)
        self.step()  # Adam makes its state at its first step

    @property
    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    @property
    def size_bytes(self) -> int:
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *moments))

    def step(self, before: Callable[[], object] | None = None) -> float:
        """Seconds of one step, with what is to be done before it: what training sees of a save is all in here."""
        began_s = time.perf_counter()
        if before is not None:
            before()
        self.optimizer.zero_grad()
        nn.functional.mse_loss(self.model(self._inputs), self._targets).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return time.perf_counter() - began_s
