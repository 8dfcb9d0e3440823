"""A trainer in miniature, in a process of its own: `python -m tests.faults.save_loop HOME RUN ON_BUSY SIZE_BYTES`.

It saves step after step, as a training script does: nothing is caught, so whatever `save` raises ends it with a traceback. One line of
JSON per save goes to stdout. It ends with exit code 0 when its stdin is closed.
"""

from __future__ import annotations

import json
import select
import sys
import time
from pathlib import Path

import ckptstore
from tests.faults.fault_store import state_of

#: A "training step" between two saves, in seconds.
STEP_S = 0.05


def main(home: str, run: str, on_busy: str, size_bytes: str) -> None:
    step = 0
    with ckptstore.connect(home=Path(home), start=False) as store:
        while not select.select([sys.stdin], [], [], STEP_S)[0]:
            begin = time.monotonic()
            pending = store.save(f"{run}/step-{step:04}", state_of(step, size_bytes=int(size_bytes)), step=step, on_busy=on_busy)  # type: ignore[arg-type]
            print(json.dumps({"step": step, "skipped": pending.skipped, "took_s": time.monotonic() - begin}), flush=True)
            step += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
