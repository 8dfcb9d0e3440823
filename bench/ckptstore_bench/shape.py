"""What does the state look like that is saved and loaded? So many bytes in so many equal tensors, or a real model's tensors, scaled.

A model's state is what mixed-precision training with Adam saves: its weights in bf16, and for each of them a master copy and two moments in
fp32, 14 bytes a parameter. `scale` shortens each tensor along its first dimension and leaves the number of tensors as it is: what is
measured per tensor stays true.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import prod

from ckptstore.errors import InvalidInput

ITEM_BYTES = {"float32": 4, "bfloat16": 2}
#: As Adam with a master copy keeps them.
OPTIMIZER_PARTS = ("master", "exp_avg", "exp_avg_sq")
VOCABULARY = 128_256
#: Each tensor starts on a cache line of the shared memory.
ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class TensorShape:
    """`group/name` is its place in the state."""

    group: str
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class StateShape:
    what: str
    tensors: tuple[TensorShape, ...]

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    def offsets(self) -> tuple[list[int], int]:
        """Where each tensor lies in one piece of memory, and how long that is."""
        offsets, end = [], 0
        for tensor in self.tensors:
            offsets.append(end)
            end += -(-tensor.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return offsets, end


@dataclass(frozen=True)
class Decoder:
    """The dimensions that decide the tensors of a Llama-like decoder (the published configurations of MLPerf Storage's models)."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        kv = self.hidden // self.heads * self.kv_heads
        yield "embed.weight", (VOCABULARY, self.hidden)
        for number in range(self.layers):
            layer = f"layers.{number}"
            yield f"{layer}.attention_norm.weight", (self.hidden,)
            yield f"{layer}.wq.weight", (self.hidden, self.hidden)
            yield f"{layer}.wk.weight", (kv, self.hidden)
            yield f"{layer}.wv.weight", (kv, self.hidden)
            yield f"{layer}.wo.weight", (self.hidden, self.hidden)
            yield f"{layer}.ffn_norm.weight", (self.hidden,)
            yield f"{layer}.w1.weight", (self.feed_forward, self.hidden)
            yield f"{layer}.w2.weight", (self.hidden, self.feed_forward)
            yield f"{layer}.w3.weight", (self.feed_forward, self.hidden)
        yield "norm.weight", (self.hidden,)
        yield "output.weight", (VOCABULARY, self.hidden)


MODELS = {
    "llama3-8b": Decoder(layers=32, hidden=4096, feed_forward=14336, heads=32, kv_heads=8),
    "llama3-70b": Decoder(layers=80, hidden=8192, feed_forward=28672, heads=128, kv_heads=8),
    "llama3-405b": Decoder(layers=126, hidden=16384, feed_forward=53248, heads=128, kv_heads=8),
    "llama3-1t": Decoder(layers=128, hidden=25872, feed_forward=98304, heads=192, kv_heads=32),
}


def equal_tensors(size_bytes: int, count: int) -> StateShape:
    """`count` float32 tensors of equal size; what does not divide goes to the last. InvalidInput if there is less than an element each."""
    elements = size_bytes // ITEM_BYTES["float32"]
    if count < 1 or elements < count:
        why = f"{size_bytes:,} bytes are no {count:,} tensors of float32"
        raise InvalidInput(why, operation="bench", subject="--size, --tensors", hint="at least four bytes each")
    each, rest = divmod(elements, count)
    tensors = [TensorShape("model", f"tensor{i:06d}", "float32", (each + (rest if i == count - 1 else 0),)) for i in range(count)]
    return StateShape(f"{count:,} tensors of float32", tuple(tensors))


def like_model(name: str, scale: Fraction) -> StateShape:
    """The training state of a known model, scaled. InvalidInput for an unknown name or a scale that is not above 0 and at most 1."""
    if name not in MODELS:
        raise InvalidInput(f"there is no model {name!r}", operation="bench", subject="--like", hint=f"known are {', '.join(MODELS)}")
    if not 0 < scale <= 1:
        raise InvalidInput(f"a scale is above 0 and at most 1, not {scale}", operation="bench", subject="--scale", hint="for example 1/64")
    weights = [(weight, (max(1, round(shape[0] * scale)), *shape[1:])) for weight, shape in MODELS[name].weights()]
    tensors = [TensorShape("model", weight, "bfloat16", shape) for weight, shape in weights]
    tensors += [TensorShape("optimizer", f"{weight}.{part}", "float32", shape) for weight, shape in weights for part in OPTIMIZER_PARTS]
    return StateShape(f"the training state of {name}, scaled by {scale}", tuple(tensors))


def read_scale(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise InvalidInput(f"{text!r} is no scale", operation="bench", subject="--scale", hint="for example 1/64 or 0.01") from error
