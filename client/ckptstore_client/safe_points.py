"""At which step do all ranks of a job save, when somebody asks for it and no rank may make a collective call? One rank's part of it.

A safe point is a call of the training loop, with its step. When a rank hears of a request it says how far it goes without knowing more:
some steps ahead, as many as it makes in `LEAD_S`. There its loop waits, should the others not have spoken by then. The greatest step that
any of them said is the one (`ckptstore.snapshot_messages`). So no rank is past it when it is agreed, whatever the ranks' pace and however
late they hear of it, and a rank that dies, or does not take part, costs the others short waits, ever farther apart.

What is promised needs the ranks to come by the same steps: each saves at its first safe point whose step is at least the one agreed on.

One thread is the loop's (`reach`), another tells what is asked and agreed (`take_up`, `heard`). No daemon is asked here but by `say`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ckptstore.errors import CkptStoreError
from ckptstore.snapshot_messages import SnapshotAgreement, SnapshotRequest

_log = logging.getLogger("ckptstore")

#: How far ahead a rank says that it goes, in seconds at its present pace: longer than the others need to hear and to speak.
LEAD_S = 1.0
#: How long a loop waits for the others each time before it says that it goes on, in seconds.
PATIENCE_S = 2.0
#: More safe points ahead than this would only delay the snapshot, where the pace was misjudged.
MOST_AHEAD = 100
#: How much the last step counts in the pace.
_LAST_COUNTS = 0.3

#: Tell the daemon how far this rank goes; gives what all have said. Errors of ckptstore.errors.
Say = Callable[[SnapshotRequest, int], SnapshotAgreement]


@dataclass
class _Asked:
    request: SnapshotRequest
    #: safe points until `holds_at`
    ahead: int
    #: the loop goes no further than here while `at_step` is not known
    holds_at: int
    at_step: int | None = None


class SafePoints:
    def __init__(self, say: Say) -> None:
        self._say = say
        self._changed = threading.Condition()
        self._asked: dict[str, _Asked] = {}
        self._step: int | None = None
        self._stride = 1
        self._pace_s: float | None = None
        self._left_s: float | None = None
        self._over = False

    # --- the loop's --------------------------------------------------------------------------------------------------------------

    def reach(self, step: int) -> list[SnapshotRequest]:
        """The loop is at a safe point: the requests for which all ranks save now. Waits if this rank may not go on without knowing more."""
        self._note(step)
        while (asked := self._wait_for_the_others(step)) is not None:
            self._go_further(asked, step)
        with self._changed:
            due = [asked.request for asked in self._asked.values() if asked.at_step is not None and step >= asked.at_step]
            for request in due:
                del self._asked[request.request_id]
            self._left_s = time.monotonic()
        return due

    def _note(self, step: int) -> None:
        with self._changed:
            if self._step is None:
                self._changed.notify_all()
            elif step > self._step:
                self._stride = step - self._step
            self._step = step
            if self._left_s is not None:
                took_s = time.monotonic() - self._left_s
                self._pace_s = took_s if self._pace_s is None else self._pace_s + _LAST_COUNTS * (took_s - self._pace_s)

    def _wait_for_the_others(self, step: int) -> _Asked | None:
        """None when the loop may go on; else what has not been agreed on although this rank has waited."""

        def held() -> _Asked | None:
            return next((asked for asked in self._asked.values() if asked.at_step is None and step >= asked.holds_at), None)

        with self._changed:
            self._changed.wait_for(lambda: held() is None, PATIENCE_S)
            return held()

    def _go_further(self, asked: _Asked, step: int) -> None:
        """The others take long: say that this rank goes twice as far as it said before, unless they have spoken by now."""
        asked.ahead *= 2
        further = step + asked.ahead * self._stride
        try:
            agreement = self._say(asked.request, further)
        except CkptStoreError as error:
            _log.warning("no snapshot is taken at a request (%s): %s", asked.request.why or "no reason given", error)
            agreement = SnapshotAgreement(ranks=0, at_step=None, closed=True)
        with self._changed:
            asked.holds_at = further
        self.heard(asked.request, agreement)

    # --- who follows the daemon --------------------------------------------------------------------------------------------------

    def take_up(self, request: SnapshotRequest) -> SnapshotAgreement:
        """Say how far this rank goes, which holds from before it is said. Waits until the loop has been at its first safe point."""
        with self._changed:
            self._changed.wait_for(lambda: self._step is not None or self._over)
            asked = self._asked.get(request.request_id)
            if asked is None:
                ahead = 1 if not self._pace_s else max(1, min(MOST_AHEAD, math.ceil(LEAD_S / self._pace_s)))
                asked = _Asked(request, ahead, (self._step or 0) + ahead * self._stride)
                self._asked[request.request_id] = asked
        agreement = self._say(request, asked.holds_at)
        self.heard(request, agreement)
        return agreement

    def heard(self, request: SnapshotRequest, agreement: SnapshotAgreement) -> None:
        """What all ranks have said by now."""
        with self._changed:
            asked = self._asked.get(request.request_id)
            if asked is not None and agreement.at_step is not None:
                asked.at_step = agreement.at_step
            elif asked is not None and agreement.closed:
                del self._asked[request.request_id]
            self._changed.notify_all()

    def end(self) -> None:
        """The loop comes to no safe point any more."""
        with self._changed:
            self._over = True
            self._asked.clear()
            self._changed.notify_all()
