"""When did training's last steps end? The daemon learns from it whether its drains slow training down (see its `step_times`).

torch calls a hook after each `step()` of any optimizer; it notes the time, a microsecond's work, and nothing else is asked of the user.
The hook is set at the first save of a process that has imported torch's optimizers, for good. Threads may save at once: a deque takes it.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from functools import cache

#: Steps that are told with one save; of more, the last. Enough for a median, and few enough not to be felt in the request.
TOLD_STEPS = 256

_ended_s: deque[float] = deque(maxlen=TOLD_STEPS)


def steps_since_last_asked() -> list[float]:
    """When steps ended (CLOCK_MONOTONIC, seconds), the last one before the previous call first. Empty without torch."""
    if "torch.optim.optimizer" in sys.modules:
        _listen()
    told = list(_ended_s)
    for _ in told[:-1]:
        _ended_s.popleft()
    return told


@cache
def _listen() -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(lambda optimizer, args, kwargs: _ended_s.append(time.monotonic()))
