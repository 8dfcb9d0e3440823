"""`ckptstore bench load`: its options, and from them the contest."""

from __future__ import annotations

from typing import Annotated

import typer

from ckptstore_bench.report import Report
from ckptstore_bench.running import FolderOption, JsonFile, PageFile, RoundsOption, Steps, run
from ckptstore_bench.shape_options import AgainstOption, LikeOption, ScaleOption, SizeOption, TensorsOption, chosen_shape
from ckptstore_client.cli.invocation import Invocation


def load(
    invocation: Invocation,
    size: SizeOption = None,
    tensors: TensorsOption = 64,
    like: LikeOption = None,
    scale: ScaleOption = "1",
    source: Annotated[
        str | None, typer.Option("--from", metavar="TIER", help="A configured tier, cold if on a file system, or memory. Else the first.")
    ] = None,
    against: AgainstOption = "",
    rounds: RoundsOption = 5,
    folder: FolderOption = None,
    as_json: JsonFile = None,
    report: PageFile = None,
) -> None:
    """How fast a state comes back from memory or from a tier, cold, and the same for the peers, in turns.

    Example: ckptstore bench load --size 1GiB --against safetensors,runai --report load.html
    """
    shape = chosen_shape(size, tensors, like, scale)

    def measure(steps: Steps) -> Report:
        from ckptstore_bench import machine
        from ckptstore_bench.contenders.catalogue import LOADERS, chosen, packages_of
        from ckptstore_bench.contests import contest
        from ckptstore_bench.load.measure import measure as measure_loads
        from ckptstore_bench.load.report import build
        from ckptstore_bench.load.source import read_source
        from ckptstore_bench.scratch import Scratch

        scratch = Scratch(home=invocation.home, folder=folder)
        found = read_source(source, scratch)
        contenders = [contender for contender in chosen(LOADERS, against) if found.concerns(contender)]
        why_not = {contender.name: why for contender in contenders if (why := found.why_not(contender)) is not None}
        disk = found.name if found.tier is not None and found.tier.path is not None else None
        with contest(contenders, shape, steps, scratch, why_not=why_not, disk=disk) as running:
            described = machine.describe(running.workspace.folder, *packages_of(contenders))
            loads = measure_loads(running, found, rounds, steps)
        settings = {
            "state": shape.what,
            "size_bytes": shape.size_bytes,
            "tensors": len(shape.tensors),
            "from": found.name,
            "against": against,
            "tiers": scratch.described(),
            "contenders": {contender.name: contender.what for contender in contenders},
        }
        return build(loads, source=found, size_bytes=shape.size_bytes, rounds=rounds, settings=settings, machine=described)

    run(invocation, measure, as_json=as_json, page_file=report)
