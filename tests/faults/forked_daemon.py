"""A daemon that is meant to die, perhaps while it starts."""

from __future__ import annotations

from tests.daemon_process import DaemonProcess, run_rebuild
from tests.forking import TURN_S, Rigging

__all__ = ["TURN_S", "ForkedDaemon", "Rigging", "run_rebuild"]


class ForkedDaemon(DaemonProcess):
    """Its death at any moment is an answer, not a failure: `start` and `wait_ready` return when it answers or is dead."""

    def start(self, *, wait: bool = True) -> ForkedDaemon:
        super().start(wait=False)
        if wait:
            self.wait_ready()
        return self

    def start_unready(self) -> ForkedDaemon:
        return self.start(wait=False)

    def wait_ready(self) -> bool:
        return self.answers_or_dies()
