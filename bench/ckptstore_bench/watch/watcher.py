"""The process that watches: `python -m ckptstore_bench.watch.watcher HOME FOLDER STATE BYTES TENSORS`.

For each line that it reads it times a copy and says so, then waits for the next checkpoint in the folder, loads it, and says when.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

import ckptstore
from ckptstore.errors import ChecksumMismatch
from ckptstore_bench.shape import equal_tensors
from ckptstore_bench.shared_state import empty_like, flat, open_state, same_bits
from ckptstore_bench.watch.measuring import COPY, LOAD, LOADED, TOLD


def main(home: str, folder: str, shared: str, size_bytes: int, tensors: int) -> None:
    shape = equal_tensors(size_bytes, tensors)
    source, into = open_state(Path(shared), shape), empty_like(shape)
    with ckptstore.connect(home=home, start=False) as store:
        published = (event for event in store.watch(folder, since=0) if event.event == "published")
        _say(ready=1.0)
        for line in sys.stdin:
            _copied_s(source, into)  # memory that lay idle is slow at its first touch
            _say(**{COPY: _copied_s(source, into)})
            event = next(published)
            told_s = time.time()
            store.load(event.path, into=into)
            loaded_s = time.time()
            if json.loads(line)["compare"] and not same_bits(flat(into), flat(source)):
                raise ChecksumMismatch("what was loaded is not what was saved", operation="bench watch")
            began_s = time.perf_counter()
            store.load(event.path, into=into)
            alone_s = time.perf_counter() - began_s
            published_s = store.stat(event.path).published_at_s or 0.0
            _say(**{TOLD: told_s - published_s, LOADED: loaded_s - published_s, LOAD: alone_s})


def _copied_s(source: dict[str, Any], into: dict[str, Any]) -> float:
    began_s = time.perf_counter()
    torch._foreach_copy_(list(flat(into).values()), list(flat(source).values()))
    return time.perf_counter() - began_s


def _say(**what: float) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
