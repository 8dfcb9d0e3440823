"""What will be read next? From where a file was read so far, the blocks to have on their way before anybody asks for them.

Several readers may read one file at once, each in its own place: up to RUNS runs are told apart. A read that begins about where a run ended
continues it, and each block that a run gets further doubles its window, up to the limit; a read anywhere else begins a run without a
window, so that random reads fetch what they touch and nothing else. The second read of a run from a file's beginning has a window at once;
the first has none, so that nothing comes beside the block that somebody waits for.

A file that a loader reads (`eager`, safetensors) is wanted whole: its header is read first and its tensors then, in whatever order the
model names them. There each read keeps the next blocks on their way that are not there yet, in the file's order, from the read on and
around; who reads only the header has fetched one window.

What is foreseen comes in runs of neighbours, by one request each (`runs`), where an origin gives that: a request costs as much as 4 MiB do.

Pure: it knows block numbers, not files. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby, islice, takewhile

from ckptstore_tiers.checksums import BLOCK_BYTES

RUNS = 8
#: How far a read may begin beside a run's end and still continue it: kernels send the requests of one reader out of order.
SLACK_BYTES = BLOCK_BYTES
#: Blocks that one request brings at most.
RUN_BLOCKS = 4


@dataclass
class _Run:
    end: int
    is_first: bool  # from the beginning of the file
    window: int = 0  # blocks


class ReadAhead:
    def __init__(self, window_blocks: int, *, eager: bool = False) -> None:
        self._limit = window_blocks
        self._eager = eager
        self._runs: list[_Run] = []  # the one that was continued last is the last
        #: whether the read before continued a run
        self.reads_on = False

    def after(self, start: int, stop: int, missing_from: Callable[[int], Iterable[int]]) -> list[int]:
        """Bytes `start` to `stop` are being read: the blocks that should follow. `missing_from` tells which are not there yet."""
        window = self._advance(start, stop)
        self.reads_on = window > 0
        first = -(-stop // BLOCK_BYTES)
        if self._eager:
            return list(islice(chain(missing_from(first), takewhile(lambda block: block < first, missing_from(0))), self._limit))
        return list(takewhile(lambda block: block < first + window, missing_from(first)))

    def _advance(self, start: int, stop: int) -> int:
        """The window, in blocks, of the run that this read belongs to."""
        run = next((run for run in reversed(self._runs) if abs(start - run.end) <= SLACK_BYTES), None)
        if run is None:
            run = _Run(stop, is_first=start == 0)
            self._runs = [*self._runs, run][-RUNS:]
            return run.window
        self._runs.remove(run)
        self._runs.append(run)
        steps = stop // BLOCK_BYTES - run.end // BLOCK_BYTES
        if run.is_first:
            run.window = min(max(1, run.window), self._limit)
        for _ in range(min(steps, self._limit)):
            run.window = min(max(1, 2 * run.window), self._limit)
        run.end = max(run.end, stop)
        return run.window


def runs(blocks: Iterable[int]) -> Iterator[list[int]]:
    """Neighbours among `blocks`, those of one aligned group of RUN_BLOCKS at a time."""
    for _, found in groupby(enumerate(blocks), key=lambda place: (place[1] - place[0], place[1] // RUN_BLOCKS)):
        yield [block for _, block in found]
