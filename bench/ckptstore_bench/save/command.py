"""`ckptstore bench save`: its options, and from them the contest."""

from __future__ import annotations

from typing import Annotated

import typer

from ckptstore.errors import InvalidInput
from ckptstore_bench.report import Report
from ckptstore_bench.running import FolderOption, JsonFile, PageFile, RoundsOption, Steps, run
from ckptstore_bench.shape_options import AgainstOption, LikeOption, ScaleOption, SizeOption, TensorsOption, chosen_shape
from ckptstore_client.cli.invocation import Invocation


def save(
    invocation: Invocation,
    size: SizeOption = None,
    tensors: TensorsOption = 64,
    like: LikeOption = None,
    scale: ScaleOption = "1",
    against: AgainstOption = "",
    rounds: RoundsOption = 5,
    changed: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Fraction of the state that changes between two saves, with --incremental.")
    ] = 1.0,
    guard: Annotated[bool, typer.Option("--guard", help="Copy while forward and backward run: save(guard=optimizer).")] = False,
    incremental: Annotated[bool, typer.Option("--incremental", help="Write only what changed: save(incremental=True).")] = False,
    folder: FolderOption = None,
    as_json: JsonFile = None,
    report: PageFile = None,
) -> None:
    """What a save costs training, when it is safe in each tier, and the same for the peers, in turns.

    Example: ckptstore bench save --size 1GiB --against dcp-async,torch --report save.html
    """
    shape = chosen_shape(size, tensors, like, scale)
    if changed < 1.0 and not incremental:
        raise InvalidInput("--changed means something only with --incremental", operation="bench save", subject="--changed")

    def measure(steps: Steps) -> Report:
        from ckptstore_bench import machine
        from ckptstore_bench.contenders.catalogue import SAVERS, chosen, packages_of
        from ckptstore_bench.contests import contest
        from ckptstore_bench.save.measure import measure as measure_saves
        from ckptstore_bench.save.report import SNAPSHOT, build
        from ckptstore_bench.scratch import Scratch

        contenders = chosen(SAVERS, against)
        scratch = Scratch(home=invocation.home, folder=folder)
        with contest(contenders, shape, steps, scratch, guard=guard, incremental=incremental) as running:
            settings = {
                "state": shape.what,
                "size_bytes": shape.size_bytes,
                "tensors": len(shape.tensors),
                "against": against,
                "guard": guard,
                "incremental": incremental,
                "changed": changed,
                "tiers": [tier.model_dump(mode="json", exclude_none=True) for tier in scratch.tiers],
                "contenders": {contender.name: contender.what for contender in contenders},
            }
            described = machine.describe(running.workspace.folder, *packages_of(contenders))
            saves = measure_saves(running, rounds, steps, changed=changed)
        places = (SNAPSHOT, *running.tiers)
        return build(saves, size_bytes=shape.size_bytes, rounds=rounds, places=places, settings=settings, machine=described)

    run(invocation, measure, as_json=as_json, page_file=report)
