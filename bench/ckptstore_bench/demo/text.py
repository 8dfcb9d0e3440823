"""What does the demo's model learn? English that lies on every machine with Python: the topics of `help()`, half a megabyte of prose.

Character level: the vocabulary is the set of characters of the text, sorted. Nothing is downloaded. The text differs between versions of
Python, and is the same for all processes of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pydoc_data import topics

import numpy as np
import torch


@dataclass(frozen=True)
class Corpus:
    """The text as indices into its alphabet."""

    alphabet: str
    codes: torch.Tensor  # int64, one element a character

    def __len__(self) -> int:
        return int(self.codes.numel())

    def decode(self, codes: list[int]) -> str:
        return "".join(self.alphabet[code] for code in codes)


def read_corpus() -> Corpus:
    texts: dict[str, str] = topics.topics
    prose = "\n".join(texts[name] for name in sorted(texts))
    alphabet = "".join(sorted(set(prose)))
    code_of = {character: code for code, character in enumerate(alphabet)}
    return Corpus(alphabet, torch.from_numpy(np.fromiter((code_of[c] for c in prose), np.int64, len(prose))))
