"""A run with contenders: the state, the scratch store, one process each; made together, ended together.

Refuses before it writes: too little memory, a tier too small, a folder in use. Leaving the block ends every process and removes
everything, whatever ended it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from ckptstore.errors import CkptStoreError
from ckptstore_bench.contenders.catalogue import Contender
from ckptstore_bench.contenders.interface import Setup
from ckptstore_bench.contenders.process import ContenderProcess
from ckptstore_bench.running import Steps
from ckptstore_bench.scratch import Scratch
from ckptstore_bench.shape import StateShape
from ckptstore_bench.shared_state import SharedState, check_memory
from ckptstore_bench.workspace import Workspace

#: Segments that a daemon makes for a client that saves: its two slots.
SLOTS = 2
#: What a peer may hold beside the shared state: its staged copy, and one more while it writes. The store and the limits hold one at most.
COPIES = 2
HEADER_BYTES = 64 << 20


@dataclass
class Contest:
    state: SharedState
    workspace: Workspace
    runners: list[ContenderProcess]

    @property
    def tiers(self) -> tuple[str, ...]:
        return tuple(tier.name for tier in self.workspace.scratch.tiers)

    def named(self, name: str) -> ContenderProcess:
        return next(runner for runner in self.runners if runner.contender.name == name)

    def require(self, name: str) -> ContenderProcess:
        """The store itself and the limits of memory are no guests: if one of them cannot run, there is no report."""
        runner = self.named(name)
        if runner.why is not None:
            raise CkptStoreError(f"{name} failed: {runner.why}", operation="bench")
        return runner


@contextmanager
def contest(
    contenders: Sequence[Contender],
    shape: StateShape,
    steps: Steps,
    scratch: Scratch,
    *,
    disk: str | None = None,
    why_not: Mapping[str, str] | None = None,
    reserve: bool = False,
    incremental: bool = False,
) -> Iterator[Contest]:
    """Everything made and every contender started, but those of whom `why_not` knows why they cannot take part.

    `disk` names the posix tier on whose device peers have their files: the first, unless said.
    """
    # Files of all contenders lie there at once, and the store's last checkpoint until its bytes are removed.
    stores = sum(contender.role == "store" for contender in contenders)
    scratch.check_room((stores + 2) * shape.size_bytes, beside_bytes=(len(contenders) - stores) * shape.size_bytes)
    # Each client of the store has its slots; one segment more is what is being released, or what the run itself saves.
    segments = SLOTS * stores + 1
    held = sum(COPIES if contender.role == "peer" else 1 for contender in contenders)
    check_memory((1 + segments + held) * shape.size_bytes)
    limit_bytes = segments * (shape.size_bytes + HEADER_BYTES)
    steps.say(f"making {shape.what}")
    with ExitStack() as stack:
        workspace = stack.enter_context(Workspace(scratch, memory_limit_bytes=limit_bytes))
        state = stack.enter_context(SharedState(shape))
        told = replace(_setup(scratch, shape, state, disk), reserve=reserve, incremental=incremental)
        runners = []
        for contender in contenders:
            setup = replace(told, folder=told.folder / contender.name.replace(" ", "-"))
            runner = stack.enter_context(ContenderProcess(contender, setup, why=(why_not or {}).get(contender.name)))
            runner.launch()
            runners.append(runner)
        for runner in runners:
            steps.say(f"starting {runner.contender.name}")
            runner.wait_ready()
        yield Contest(state, workspace, runners)


def _setup(scratch: Scratch, shape: StateShape, state: SharedState, disk: str | None) -> Setup:
    name, folder = scratch.beside(disk)
    objects = next((tier for tier in scratch.tiers if tier.url is not None), None)
    return Setup(
        shape=shape,
        state=state.path,
        home=scratch.home,
        folder=folder,
        disk=name,
        tiers=tuple(tier.name for tier in scratch.tiers),
        object_tier=objects.name if objects is not None else None,
        object_url=objects.url if objects is not None else None,
        object_options=dict(objects.options) if objects is not None else {},
    )
