"""A run of `bench interference`: room and memory checked, the scratch store, the training loop, its phases."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from ckptstore.errors import InvalidInput
from ckptstore_bench.interference.interference_report import interference_report
from ckptstore_bench.interference.phases import PHASES, Interference, Phase
from ckptstore_bench.interference.training import Training
from ckptstore_bench.report import Report
from ckptstore_bench.running import Steps
from ckptstore_bench.scratch import Scratch
from ckptstore_bench.shared_state import check_memory
from ckptstore_bench.workspace import Workspace

#: Two slots of the saving client, and one that is being released.
SEGMENTS = 3
HEADER_BYTES = 64 << 20
#: State, gradients, and activations that are small beside them.
TRAINING_COPIES = 2


@dataclass(frozen=True)
class Request:
    """What the command was asked for."""

    size_bytes: int
    steps: int
    every: int
    batch: int
    threads: int | None
    rounds: int
    #: None: all that the tiers have
    phases: tuple[Phase, ...] | None
    home: Path | None
    folder: Path | None


def measure(progress: Steps, request: Request) -> Report:
    import torch

    scratch = Scratch(home=request.home, folder=request.folder, two_tiers=True)
    # A phase's saves lie there until its end.
    saves = 1 + -(-request.steps // request.every)
    durable = [tier.name for tier in scratch.tiers if tier.durable]
    phases = request.phases or (PHASES if len(durable) > 1 else tuple(phase for phase in PHASES if phase != "draining"))
    if "draining" in phases and len(durable) < 2:
        hint = "name a folder with --folder, where there are two; or leave `draining` out of --phases"
        raise InvalidInput("there is one durable tier, and nothing drains from it", operation="bench", subject="--phases", hint=hint)
    scratch.check_room((saves + 1) * request.size_bytes)
    check_memory((TRAINING_COPIES + SEGMENTS) * request.size_bytes)
    with Workspace(scratch, memory_limit_bytes=SEGMENTS * (request.size_bytes + HEADER_BYTES)) as workspace:
        progress.say("making the model")
        threads_before = torch.get_num_threads()
        torch.set_num_threads(request.threads or threads_before)
        try:
            training = Training(request.size_bytes, batch=request.batch)
            with workspace.connect() as store:
                interference = Interference(
                    training, store, steps=request.steps, every=request.every, first=durable[0], deepest=durable[-1]
                )
                rounds = interference.measure(request.rounds, phases, progress)
            settings = {name: value for name, value in asdict(request).items() if name not in ("home", "folder")} | {
                "phases": phases,
                "state_bytes": training.size_bytes,
                "threads": torch.get_num_threads(),
                "tiers": scratch.described(),
            }
        finally:
            torch.set_num_threads(threads_before)
        return interference_report(rounds, settings=settings, folder=scratch.home)
