"""`ckptstore bench watch`: its options. Imports nothing heavy before it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from ckptstore_bench.report import Report
from ckptstore_bench.running import FolderOption, JsonFile, PageFile, RoundsOption, Steps, positive_size, run
from ckptstore_bench.shape_options import DEFAULT_SIZE, TensorsOption
from ckptstore_client.cli.invocation import Invocation


def watch(
    invocation: Invocation,
    size: Annotated[str, typer.Option(help="Bytes of the weights.")] = DEFAULT_SIZE,
    tensors: TensorsOption = 64,
    rounds: RoundsOption = 5,
    folder: FolderOption = None,
    as_json: JsonFile = None,
    report: PageFile = None,
) -> None:
    """How soon does a process on the same node that watches a folder hold what was just published there, beside a plain copy of it?

    Example: ckptstore bench watch --size 1GiB --folder /mnt/nvme/bench
    """
    size_bytes = positive_size(size)

    def measure(steps: Steps) -> Report:
        from ckptstore_bench import machine
        from ckptstore_bench.scratch import Scratch
        from ckptstore_bench.shape import equal_tensors
        from ckptstore_bench.watch.measuring import SLOTS
        from ckptstore_bench.watch.measuring import measure as measure_watching
        from ckptstore_bench.watch.watch_report import build
        from ckptstore_bench.workspace import Workspace

        shape = equal_tensors(size_bytes, tensors)
        scratch = Scratch(home=invocation.home, folder=folder)
        scratch.check_room((rounds + 2) * size_bytes)
        with Workspace(scratch, memory_limit_bytes=SLOTS * (size_bytes + (64 << 20))) as workspace:
            described = machine.describe(workspace.folder, "torch")
            taken = measure_watching(shape, rounds, workspace, steps)
        return build(taken, shape, rounds=rounds, tiers=scratch.described(), machine=described)

    run(invocation, measure, as_json=as_json, page_file=report)
