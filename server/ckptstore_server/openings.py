"""What came of the attempts that clients have had opened with the slots that they copy into?

A client on the node asks for a slot and names the attempt that it is for in one message; the attempt is joined while the client copies,
and the answer is kept here until it asks for it. A client that never asks loses nothing: it may open the attempt by a request of its own,
which joins what is joined already. Lives on the event loop.
"""

from __future__ import annotations

import asyncio

from ckptstore.errors import NotFound, WaitTimeout
from ckptstore.wire import AttemptOpened, OpenAttempt, SegmentGrant
from ckptstore_server.attempts import AttemptService

#: How long one question waits for its answer, in seconds. A connection carries one question: the client's other saves are behind it.
PATIENCE_S = 0.1


class Openings:
    def __init__(self, attempts: AttemptService) -> None:
        self._attempts = attempts
        self._begun: dict[tuple[str, str], tuple[int, asyncio.Task[AttemptOpened]]] = {}  # by session and segment: of which use of it

    def begin(self, request: OpenAttempt, grant: SegmentGrant, session: str) -> None:
        opening = self._attempts.open(request.model_copy(update={"segment": grant}), session=session)
        task = asyncio.create_task(opening, name=f"open {request.path}")
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # an error is for who asks, and for nobody if nobody does
        self._begun[session, grant.segment_id] = grant.generation, task

    async def answer(self, segment_id: str, generation: int, session: str) -> AttemptOpened:
        """What opening gave, or its error. WaitTimeout: it is not known yet. NotFound: nothing was begun with this slot, or it was told."""
        begun, task = self._begun.get((session, segment_id), (-1, None))
        if task is None or begun != generation:
            raise NotFound("no attempt was begun with this slot", operation="save", subject=segment_id)
        done, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
        if not done:  # it may be by now, but who asked is not told: the answer stays
            raise WaitTimeout("the attempt is not opened yet", operation="save", subject=segment_id)
        self._begun.pop((session, segment_id), None)
        return task.result()

    def session_lost(self, session: str) -> None:
        for key in [key for key in self._begun if key[0] == session]:
            del self._begun[key]
