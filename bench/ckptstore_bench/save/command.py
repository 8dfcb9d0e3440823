"""`ckptstore bench save`: its options, and from them the contest."""

from __future__ import annotations

from typing import Annotated

import typer

from ckptstore.errors import InvalidInput
from ckptstore_bench.report import Report
from ckptstore_bench.running import FolderOption, JsonFile, PageFile, RoundsOption, Steps, run
from ckptstore_bench.shape_options import AgainstOption, LikeOption, ScaleOption, SizeOption, TensorsOption, chosen_shape
from ckptstore_client.cli.invocation import Invocation

GUARDED = "ckptstore guard"
CHANGED = 0.1


def save(
    invocation: Invocation,
    size: SizeOption = None,
    tensors: TensorsOption = 64,
    like: LikeOption = None,
    scale: ScaleOption = "1",
    against: AgainstOption = "",
    rounds: RoundsOption = 5,
    guard: Annotated[bool, typer.Option("--guard", help="Also save(guard=optimizer), in a loop that computes.")] = False,
    reserve: Annotated[bool, typer.Option("--reserve", help="Call reserve(state) before the first save.")] = False,
    incremental: Annotated[bool, typer.Option("--incremental", help="save(incremental=True): write only what changed.")] = False,
    changed: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="With --incremental: the fraction that changes between two saves, 0.1 unless said."),
    ] = None,
    folder: FolderOption = None,
    as_json: JsonFile = None,
    report: PageFile = None,
) -> None:
    """What a save costs training, when it is safe in each tier, and the same for the peers, in turns.

    Example: ckptstore bench save --size 1GiB --against dcp-async,torch --report save.html
    """
    shape = chosen_shape(size, tensors, like, scale)
    if changed is not None and not incremental:
        raise InvalidInput("it goes with --incremental", operation="bench save", subject="--changed")
    fraction = 0.0 if not incremental else CHANGED if changed is None else changed

    def measure(steps: Steps) -> Report:
        from ckptstore_bench import machine
        from ckptstore_bench.contenders.catalogue import SAVERS, chosen, packages_of
        from ckptstore_bench.contests import contest
        from ckptstore_bench.save.measure import measure as measure_saves
        from ckptstore_bench.save.report import SNAPSHOT, build
        from ckptstore_bench.scratch import Scratch

        contenders = [one for one in chosen(SAVERS, against) if guard or one.name != GUARDED]
        scratch = Scratch(home=invocation.home, folder=folder)
        with contest(contenders, shape, steps, scratch, reserve=reserve, incremental=incremental) as running:
            settings = {
                "state": shape.what,
                "size_bytes": shape.size_bytes,
                "tensors": len(shape.tensors),
                "against": against,
                "guard": guard,
                "reserve": reserve,
                "incremental": incremental,
                "changed": fraction,
                "tiers": scratch.described(),
                "contenders": {contender.name: contender.what for contender in contenders},
            }
            described = machine.describe(running.workspace.folder, *packages_of(contenders))
            saves = measure_saves(running, rounds, steps, changed=fraction)
        places = (SNAPSHOT, *running.tiers)
        return build(saves, size_bytes=shape.size_bytes, rounds=rounds, places=places, settings=settings, machine=described)

    run(invocation, measure, as_json=as_json, page_file=report)
