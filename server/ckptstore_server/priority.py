"""How do the threads that drain yield to everybody else's? nice and the idle I/O class, set by each thread for itself.

Linux keeps both per thread, and threads that are started by such a thread inherit them. Raising nice needs no privilege, taking it back
does, so only threads that do nothing but drain are changed. Two limits, which is why a pace comes on top (`quiet.py`):
- With autogroups (`/proc/self/autogroup`; machines without a job scheduler), nice counts only within one session, and training runs in
  another. A session's own nice would slow ingest as well, so it is left alone.
- I/O classes are heeded by the schedulers bfq and mq-deadline only; NVMe disks mostly have none.

A thread that holds Python's lock while it waits for its turn holds up the daemon's other threads: hence a moderate nice by default.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from pathlib import Path

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30}.get(platform.machine())
_WHO_THREAD, _CLASS_IDLE = 1, 3 << 13
_libc = ctypes.CDLL(None, use_errno=True)


def yield_to_others(nice: int) -> None:
    """Lower the calling thread's priority for good. What the kernel refuses is left as it is: the pace does without."""
    thread = threading.get_native_id()
    try:
        os.setpriority(os.PRIO_PROCESS, thread, max(nice, os.getpriority(os.PRIO_PROCESS, thread)))
    except OSError:
        return
    if nice and _IOPRIO_SET is not None:
        _libc.syscall(_IOPRIO_SET, _WHO_THREAD, 0, _CLASS_IDLE)


def nice_counts(proc: Path = Path("/proc")) -> bool:
    """Whether nice means anything to processes of other sessions."""
    try:
        enabled = (proc / "sys/kernel/sched_autogroup_enabled").read_text("ascii").strip() == "1"
        return not (enabled and (proc / "self/autogroup").read_text("ascii").startswith("/autogroup-"))
    except OSError:
        return True
