"""How small, and how fast on one core? Each codec over the same blocks, in turns, by the store's own encoders and decoders.

Time is the CPU time of the one thread that works: what else runs on the machine takes turns with it, and does not count. A put also
decodes every frame once, to see that it can be, and reads and writes files: neither is in these numbers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ckptstore_bench.codecs.weights import Weights
from ckptstore_bench.running import Steps
from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.codecs_format import FileFormat, FrameEncoder
from ckptstore_tiers.codecs_reader import FLOAT, ZSTD
from ckptstore_tiers.float_file import FloatEncoder
from ckptstore_tiers.float_regions import read_regions
from ckptstore_tiers.private_copy import copy_bytes
from ckptstore_tiers.scratch import ScratchPool
from ckptstore_tiers.zstd_seekable import ZstdEncoder

COPY = "none"


@dataclass
class CodecResult:
    """One codec over one content. Bytes are those of the content that was read."""

    codec: str
    weights: Weights
    stored_bytes: int = 0
    in_bytes_per_s: list[float] = field(default_factory=list)
    out_bytes_per_s: list[float] = field(default_factory=list)

    @property
    def size_ratio(self) -> float:
        return self.stored_bytes / len(self.weights.data)


def measure(weights: Sequence[Weights], rounds: int, steps: Steps) -> list[CodecResult]:
    """A result for each content and codec; without compression, what a copy of the bytes costs."""
    scratch = ScratchPool()
    codecs = {(one.name, codec): pair for one in weights for codec, pair in _codecs_for(one, scratch).items()}
    results = {key: CodecResult(key[1], one) for one in weights for key in codecs if key[0] == one.name}
    steps.plan(rounds * len(codecs))
    for number in range(rounds):
        for key, pair in codecs.items():
            steps.say(f"round {number + 1}: {key[0]}, {key[1]}")
            _turn(results[key], pair)
            steps.next()
    scratch.close()
    return list(results.values())


def _codecs_for(weights: Weights, scratch: ScratchPool) -> dict[str, tuple[FileFormat, FrameEncoder] | None]:
    """The codecs by their settings' names. For a file without numbers `float` is `zstd`, as in a tier."""
    regions = read_regions(weights.data[:BLOCK_BYTES], weights.file_bytes)
    if regions is not None:
        regions = replace(regions, size_bytes=len(weights.data))
    floats = (FLOAT, FloatEncoder(regions, scratch)) if regions is not None else (ZSTD, ZstdEncoder())
    return {COPY: None, "zstd": (ZSTD, ZstdEncoder()), "float": floats}


def _turn(result: CodecResult, codec: tuple[FileFormat, FrameEncoder] | None) -> None:
    """Once over the content. A frame is decoded as soon as it is there, and let go: memory is used again, as in a tier."""
    data, target = result.weights.data, memoryview(bytearray(BLOCK_BYTES))
    frame_sizes, in_s, out_s = [], 0.0, 0.0
    for index, start in enumerate(range(0, len(data), BLOCK_BYTES)):
        block = data[start : start + BLOCK_BYTES]
        began_s = time.thread_time()
        if codec is None:
            copy_bytes(block, target[: len(block)])
            in_s += time.thread_time() - began_s
            continue
        format, encoder = codec
        frame = memoryview(encoder.frame(index, block))
        encoded_s = time.thread_time()
        format.decode(frame, target[: len(block)])
        in_s, out_s = in_s + encoded_s - began_s, out_s + time.thread_time() - encoded_s
        frame_sizes.append(len(frame))
    result.in_bytes_per_s.append(len(data) / in_s)
    result.out_bytes_per_s.append(len(data) / (out_s or in_s))
    result.stored_bytes = len(data)
    if codec is not None:
        result.stored_bytes = sum(frame_sizes) + len(encoder.head) + len(encoder.table(frame_sizes, len(data)))
