"""`store.watch(path)`: what is published there, and when it becomes safer, as it happens: for evaluators, rollout workers, servers.

    for event in store.watch("/runs/gpt"):
        if event.event == "published":
            model.load_state_dict(store.load(event.path, only="model/*")["model"])

The iterator ends when the caller leaves it, or closes the store (DaemonUnavailable). A connection that is lost, or a daemon that is
started again, is asked to go on a little before the last event; what was told already is not told twice, and nothing that is still
there is missed.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator

import httpx
import httpx_sse
from pydantic import ValidationError

from ckptstore.errors import CkptStoreError, DaemonUnavailable, WaitTimeout
from ckptstore.watch_messages import WatchEvent
from ckptstore_client.connection import Connection, is_loss

#: Between two tries to reach a daemon that is away, in seconds; one that is not back after `PATIENCE_S` is an error.
PAUSE_S, PATIENCE_S = 0.2, 60.0
#: Publications whose events are remembered: as many as the daemon follows, and some more.
REMEMBERED = 512


class _Told:
    """What the caller has heard: publication → its number and path, and the tiers that were named."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[int, str, set[str]]] = OrderedDict()

    def resume_at(self, since: int | None) -> int | None:
        """The number to go on after: what is remembered comes once more, since it may have become safer meanwhile."""
        return min(sequence for sequence, *_ in self._known.values()) - 1 if self._known else since

    def new(self, event: WatchEvent) -> Iterator[WatchEvent]:
        """What of an event was not told yet."""
        sequence, path, tiers = self._known.get(event.publication_id, (-1, "", set()))
        if sequence != event.sequence:
            if event.event == "published" and path == event.path:  # not new, nor moved: tagged while nobody listened
                event = event.model_copy(update={"event": "tagged"})
            elif event.event == "published" or sequence < 0:
                tiers = set() if event.event == "durable" else set(event.durability)
            self._known[event.publication_id] = event.sequence, event.path, tiers
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            if event.event != "durable":
                yield event
        for tier in event.durability:
            if tier not in tiers:
                tiers.add(tier)
                yield event.model_copy(update={"event": "durable", "tier": tier})


def watch(connection: Connection, path: str, since: int | None) -> Iterator[WatchEvent]:
    """Events at or below `path`, after the number `since` or from now on."""
    told, last_s = _Told(), time.monotonic()
    while True:
        transport = None
        try:
            transport = connection.transport()
            with transport.api.stream("GET", "watch", path=path, since=told.resume_at(since)) as response:
                for event in _events(response):
                    last_s = time.monotonic()
                    if event.event == "watching":
                        since = event.sequence if since is None else since
                    else:
                        yield from told.new(event)
        except WaitTimeout:
            last_s = time.monotonic()  # not even a sign of life: it may be the network
        except CkptStoreError as error:
            if not is_loss(error) or connection.closed or time.monotonic() - last_s > PATIENCE_S:
                raise
        if transport is not None and not transport.alive:
            connection.lost(transport)
        time.sleep(PAUSE_S)


def _events(response: httpx.Response) -> Iterator[WatchEvent]:
    for event in httpx_sse.EventSource(response).iter_sse():
        try:
            yield WatchEvent.model_validate_json(event.data)
        except ValidationError as error:
            why = "an event of the daemon cannot be read"
            raise DaemonUnavailable(why, operation="watch", hint="client and daemon may be of different versions") from error
