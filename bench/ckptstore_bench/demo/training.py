"""What is the whole state of this training run, and what is one step? Everything that decides the next parameter is in `Training.state()`.

Model and optimizer; the random states of torch (dropout), numpy (where the sequences begin) and Python (how far the reader moves on); the
position in the text; the step. Deterministic: one thread, deterministic kernels. Two runs from the same state give the same bits.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch

from ckptstore_bench.demo.model import GPT, Shape
from ckptstore_bench.demo.text import read_corpus

BATCH = 4
WINDOW = 4096
LEARNING_RATE = 1e-3


class Training:
    def __init__(self, seed: int = 1234) -> None:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        self.corpus = read_corpus()
        self.shape = Shape(vocabulary=len(self.corpus.alphabet))
        self.model = GPT(self.shape)
        self.optim = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)
        self.step = 0
        self.position = 0

    def advance(self) -> float:
        """One step; its loss."""
        loss = self.model.loss(self._next_batch())
        self.optim.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optim.step()
        self.step += 1
        return float(loss.item())

    def _next_batch(self) -> torch.Tensor:
        length = self.shape.context + 1
        starts = self.position + np.random.randint(0, WINDOW, size=BATCH)
        self.position = (self.position + random.randrange(WINDOW)) % (len(self.corpus) - WINDOW - length)
        return torch.stack([self.corpus.codes[start : start + length] for start in starts])

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optim": self.optim.state_dict(),
            "rng": {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()},
            "position": self.position,
            "step": self.step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optim.load_state_dict(state["optim"])
        torch.set_rng_state(state["rng"]["torch"])
        np.random.set_state(state["rng"]["numpy"])
        random.setstate(state["rng"]["python"])
        self.position, self.step = state["position"], state["step"]

    def fingerprint(self) -> str:
        """SHA-256 over the name and the bytes of every parameter."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()
