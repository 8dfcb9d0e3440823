"""`ckptstore bench plan`: options into a job and the speeds of its tiers, and the plan out. Imports nothing heavy before it is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckptstore.config import parse_size
from ckptstore.durations import parse_duration
from ckptstore.errors import InvalidInput
from ckptstore_bench.plan.job import BYTES_PER_PARAM, NODE_LOSSES, Job, mtbf_of
from ckptstore_bench.plan.quantities import parse_count
from ckptstore_bench.report import Report
from ckptstore_bench.running import JsonFile, PageFile, Steps, run
from ckptstore_client.cli.invocation import Invocation

if TYPE_CHECKING:
    from ckptstore_bench.plan.speeds import TierSpeed

MeasuredFile = Annotated[Path | None, typer.Option("--measured", metavar="FILE.json", help="Speeds as `bench tiers --json` wrote them.")]
NodeSpeeds = Annotated[
    list[str] | None, typer.Option("--tier", metavar="NAME=WRITE[,READ]", help="What one node gets: nvme=6GB/s,3.4GB/s. May be repeated.")
]
SharedSpeeds = Annotated[
    list[str] | None,
    typer.Option("--shared-tier", metavar="NAME=WRITE[,READ]", help="What all nodes get together: pfs=200GB/s. May be repeated."),
]


def plan(
    invocation: Invocation,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the job.")],
    params: Annotated[str | None, typer.Option(help="Parameters of the model: 1T, 405B.")] = None,
    size: Annotated[str | None, typer.Option(help="Bytes of a checkpoint instead: 20TB.")] = None,
    bytes_per_param: Annotated[float, typer.Option(help="14: two of weights, twelve of Adam in fp32.")] = BYTES_PER_PARAM,
    ranks_per_node: Annotated[int, typer.Option(min=1)] = 8,
    interval: Annotated[str, typer.Option(help="Time between saves.")] = "5m",
    mtbf: Annotated[str | None, typer.Option(help="Mean time between failures of the whole job; else as Llama 3's, by its ranks.")] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="Ranks that want the same bytes when they read.")] = 1,
    memory: Annotated[str | None, typer.Option(metavar="WRITE[,READ]", help="Memory copy of one node: --tier memory=…")] = None,
    tier: NodeSpeeds = None,
    shared_tier: SharedSpeeds = None,
    measured: MeasuredFile = None,
    overlap: Annotated[str | None, typer.Option(help="Forward and backward of a step, for guarded saves; else long enough.")] = None,
    node_losses: Annotated[float, typer.Option(min=0, max=1, help="Share of failures that take a node with them.")] = NODE_LOSSES,
    relaunch: Annotated[str, typer.Option(help="From a failure until all processes run again.")] = "2m",
    slots: Annotated[int, typer.Option(min=1, help="Snapshots of a rank that memory holds.")] = 2,
    as_json: JsonFile = None,
    report: PageFile = None,
) -> None:
    """What saving a model that often needs of each tier, what the tiers allow, and which interval loses least. Runs nothing.

    Example: ckptstore bench plan --size 20TB --nodes 1024 --tensor-parallel 8 --memory 15GB/s --tier nvme=6GB/s --shared-tier pfs=200GB/s
    """
    ranks = nodes * ranks_per_node
    job = Job(
        checkpoint_bytes=_checkpoint_bytes(params, size, bytes_per_param),
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        interval_s=_seconds(interval, "--interval"),
        mtbf_s=_seconds(mtbf, "--mtbf") if mtbf is not None else mtbf_of(ranks),
        node_losses=node_losses,
        relaunch_s=_seconds(relaunch, "--relaunch", zero=True),
        tensor_parallel=tensor_parallel,
        overlap_s=None if overlap is None else _seconds(overlap, "--overlap", zero=True),
        slots=slots,
    )

    def measure(steps: Steps) -> Report:
        from ckptstore_bench.plan.answer import make_plan
        from ckptstore_bench.plan.plan_report import plan_report

        steps.say("planning")
        tiers = _speeds(measured, [f"memory={memory}"] if memory else [], tier or [], shared_tier or [])
        settings = {
            "job": vars(job),
            "mtbf": "given" if mtbf is not None else "as often per rank as Llama 3 405B failed",
            "speeds": {
                found.name: {"node": vars(found.node), "in_all": None if found.in_all is None else vars(found.in_all)} for found in tiers
            },
        }
        source = f"measured ({measured})" if measured is not None else "as given" if tiers else "none were given"
        return plan_report(make_plan(job, tiers), settings=settings, source=source)

    run(invocation, measure, as_json=as_json, page_file=report)


def _speeds(measured: Path | None, memory: list[str], tier: list[str], shared: list[str]) -> tuple[TierSpeed, ...]:
    from ckptstore_bench.plan.speeds import parse_tiers, read_measured

    return parse_tiers([*memory, *tier], shared, read_measured(measured) if measured is not None else ())


def _checkpoint_bytes(params: str | None, size: str | None, bytes_per_param: float) -> float:
    if (params is None) == (size is None):
        raise InvalidInput("say how large a checkpoint is", operation="plan", hint="with --params 1T or with --size 20TB, one of them")
    if params is not None:
        return parse_count(params) * bytes_per_param
    try:
        return parse_size(size)
    except ValueError as error:
        raise InvalidInput(str(error), operation="plan", subject="--size") from error


def _seconds(text: str, option: str, *, zero: bool = False) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise InvalidInput(str(error), operation="plan", subject=option) from error
    if seconds <= 0 and not zero:
        raise InvalidInput("it must be above 0", operation="plan", subject=f"{option} {text}")
    return seconds
