"""`ckptstore bench dcp`: its options. Imports nothing heavy before it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from ckptstore_bench.report import Report
from ckptstore_bench.running import FolderOption, JsonFile, PageFile, RoundsOption, Steps, positive_size, run
from ckptstore_client.cli.invocation import Invocation


def dcp(
    invocation: Invocation,
    size: Annotated[str, typer.Option(help="Bytes of the whole state, over all ranks.")] = "2GiB",
    ranks: Annotated[int, typer.Option(min=1, max=64, help="Processes that save.")] = 4,
    others: Annotated[int, typer.Option(min=1, max=64, help="Processes of the other job that loads; no more than save.")] = 2,
    tensors: Annotated[int, typer.Option(min=1, help="Tensors of the state.")] = 64,
    planned: Annotated[int, typer.Option(min=0, help="Tensors whose plan is timed, on one of 64 simulated ranks; 0: none.")] = 100_000,
    rounds: RoundsOption = 3,
    folder: FolderOption = None,
    as_json: JsonFile = None,
    report: PageFile = None,
) -> None:
    """PyTorch Distributed Checkpoint through the store, beside DCP's own file system writer and reader: as called, and at its best.

    Example: ckptstore bench dcp --size 2GiB --ranks 4 --folder /mnt/nvme/bench
    """
    size_bytes = positive_size(size)

    def measure(steps: Steps) -> Report:
        from ckptstore_bench import machine
        from ckptstore_bench.dcp.dcp_report import build
        from ckptstore_bench.dcp.measuring import Wanted
        from ckptstore_bench.dcp.measuring import measure as measure_dcp
        from ckptstore_bench.dcp.ways import WAYS
        from ckptstore_bench.scratch import Scratch
        from ckptstore_bench.workspace import Workspace

        wanted = Wanted(size_bytes, ranks, min(others, ranks), tensors, planned, rounds)
        scratch = Scratch(home=invocation.home, folder=folder)
        scratch.check_room(3 * size_bytes, beside_bytes=2 * (len(WAYS) - 1) * size_bytes)
        with Workspace(scratch, memory_limit_bytes=3 * size_bytes + (256 << 20)) as workspace:
            described = machine.describe(workspace.folder, "torch")
            results = measure_dcp(wanted, workspace, steps)
        return build(results, wanted, tiers=scratch.described(), machine=described)

    run(invocation, measure, as_json=as_json, page_file=report)
