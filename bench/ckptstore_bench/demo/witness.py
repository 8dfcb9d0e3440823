"""Runs the trainer unchanged, sees which replica a load opens, and can stop a save half way through its copy.

A copy of some tens of megabytes takes a few milliseconds: too short to be killed in by chance. With `--freeze-in-save N` the copy of
the Nth save of this process writes the first half of the file, reports `half-copied` and waits there for SIGKILL. What follows `--`
goes to the trainer.
"""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Hashable
from typing import Annotated
from unittest import mock

import typer

from ckptstore_bench.demo import trainer
from ckptstore_bench.demo.events import report
from ckptstore_client.local import LocalTransport
from ckptstore_client.replicas import Replica
from ckptstore_client.staging import StagedState, Staging


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
    whole_copy = Staging.copy
    copies = itertools.count(1)

    def copy(staging: Staging, staged: StagedState, segment: memoryview, segment_key: Hashable = None) -> None:
        if next(copies) != number:
            return whole_copy(staging, staged, segment, segment_key)
        scratch = memoryview(bytearray(staged.size_bytes))
        whole_copy(staging, staged, scratch)
        half = staged.size_bytes // 2
        segment[:half] = scratch[:half]
        report("half-copied", copied_bytes=half, size_bytes=staged.size_bytes)
        while True:
            signal.pause()

    mock.patch.object(Staging, "copy", copy).start()


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
