"""A daemon that is meant to die, perhaps while it starts."""

from __future__ import annotations

from tests.daemon_process import DaemonProcess, run_rebuild
from tests.forking import Rigging

__all__ = ["TURN_S", "ForkedDaemon", "Rigging", "run_rebuild"]

TURN_S = 0.1


class ForkedDaemon(DaemonProcess):
    """Its death at any moment is an answer, not a failure: `start` and `wait_ready` return when it answers or is dead.

    Its upkeep hurries, so that a story ends soon. At rest that costs a tenth of a core: not for daemons that live long.
    """

    turn_s = TURN_S

    def start(self, *, wait: bool = True) -> ForkedDaemon:
        super().start(wait=False)
        if wait:
            self.wait_ready()
        return self

    def start_unready(self) -> ForkedDaemon:
        return self.start(wait=False)

    def wait_ready(self) -> bool:
        return self.answers_or_dies()
