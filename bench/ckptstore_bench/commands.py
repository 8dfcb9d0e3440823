"""`ckptstore bench …`: the command line of the measurements. Loaded at every call of `ckptstore`, so nothing heavy is imported here:
each command imports the module that measures when it is called, inside `run`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from ckptstore_bench.cache.command import cache
from ckptstore_bench.checkpoint.command import checkpoint
from ckptstore_bench.codecs.command import codecs
from ckptstore_bench.dcp.command import dcp
from ckptstore_bench.hub.command import hub
from ckptstore_bench.interference.command import interference
from ckptstore_bench.load.command import load
from ckptstore_bench.mount.command import mount
from ckptstore_bench.plan.command import plan
from ckptstore_bench.report import Report
from ckptstore_bench.running import FolderOption, JsonFile, PageFile, RoundsOption, Steps, positive_size, run
from ckptstore_bench.s3.command import s3
from ckptstore_bench.save.command import save
from ckptstore_bench.tiers.command import tiers
from ckptstore_bench.watch.command import watch
from ckptstore_client.cli.invocation import CommandGroup, Invocation

group = CommandGroup("Measure this machine, the store and its peers.")
group.command("save")(save)
group.command("load")(load)
Names = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="save, first, small, incremental, load, memory, s3, codecs, interference, rest or many. May be repeated."
    ),
]


@group.command("figures")
def figures(
    invocation: Invocation,
    only: Names = None,
    size: Annotated[str, typer.Option(help="Bytes of the state.")] = "1GiB",
    rounds: RoundsOption = 5,
    checkpoints: Annotated[int, typer.Option(min=200, help="How many small checkpoints `many` saves.")] = 10_000,
    folder: FolderOption = None,
    as_json: JsonFile = None,
    report: PageFile = None,
) -> None:
    """The store's figures, each a ratio to what it is compared with in the same run.

    Example: ckptstore bench figures --only save --rounds 9
    """
    size_bytes = positive_size(size)

    def measure(steps: Steps) -> Report:
        from ckptstore_bench.figures import families

        return families.measure(steps, only or [], size_bytes, rounds, checkpoints, folder)

    run(invocation, measure, as_json=as_json, page_file=report)


group.command("cache")(cache)
group.command("plan")(plan)
group.command("tiers")(tiers)
group.command("checkpoint")(checkpoint)
group.command("dcp")(dcp)
group.command("watch")(watch)
group.command("codecs")(codecs)
group.command("interference")(interference)
group.command("s3")(s3)
group.command("mount")(mount)
group.command("hub")(hub)
