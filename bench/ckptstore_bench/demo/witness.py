"""Runs the trainer unchanged, sees which replica a load opens, and can stop a save half way through its copy.

A copy of some tens of megabytes takes a few milliseconds: too short to be killed in by chance. With `--freeze-in-save N` the copy of
the Nth save of this process writes the first half of the tensors, reports `half-copied` and waits there for SIGKILL. What follows `--`
goes to the trainer.
"""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Container
from typing import Annotated
from unittest import mock

import typer

from ckptstore_bench.demo import trainer
from ckptstore_bench.demo.events import report
from ckptstore_client.local import LocalTransport
from ckptstore_client.replicas import Replica
from ckptstore_client.staging import BoundState


def watch_opened_replicas() -> None:
    opened = LocalTransport.open

    def watched(transport: LocalTransport, object_id: str, tier: str) -> Replica:
        replica = opened(transport, object_id, tier)
        report("opened", tier=tier)
        return replica

    streamed = LocalTransport.stream

    def watched_stream(transport: LocalTransport, object_id: str) -> Replica:
        report("opened", tier="stream")
        return streamed(transport, object_id)

    mock.patch.object(LocalTransport, "open", watched).start()
    mock.patch.object(LocalTransport, "stream", watched_stream).start()


def freeze_in_save(number: int) -> None:
    whole_copy = BoundState.copy
    copies = itertools.count(1)

    def copy(bound: BoundState, leaves: Container[int] | None = None) -> None:
        if next(copies) != number:
            return whole_copy(bound, leaves)
        plan = bound.staged.plan
        stored = [(leaf, entry.size_bytes) for tag in plan.stored for leaf, entry in zip(plan.stored[tag], plan.entries[tag], strict=True)]
        first_half = dict(stored[: len(stored) // 2])
        whole_copy(bound, first_half)
        report("half-copied", copied_bytes=sum(first_half.values()), size_bytes=bound.staged.size_bytes)
        while True:
            signal.pause()

    mock.patch.object(BoundState, "copy", copy).start()


def main(
    arguments: Annotated[list[str], typer.Argument(help="the trainer's own arguments, behind --")],
    freeze: Annotated[int, typer.Option("--freeze-in-save", help="stop half way through the copy of this save; 0: never")] = 0,
) -> None:
    watch_opened_replicas()
    if freeze:
        freeze_in_save(freeze)
    sys.argv = ["trainer", *arguments]
    typer.run(trainer.main)


if __name__ == "__main__":
    typer.run(main)
