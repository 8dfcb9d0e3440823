"""What does a job save, and what does it read back? Bytes, by checkpoint, node and rank, and how often it fails.

Every rank saves the same share. When it reads, the ranks of a tensor-parallel group want the same bytes: those of the group. Who reads for
itself fetches them once for each rank; a node that keeps what it has fetched reads them once.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckptstore.errors import InvalidInput

#: fp16 or bf16 weights (2) and fp32 master weights, first and second moment of Adam (12): what MLPerf Storage's workloads save.
BYTES_PER_PARAM = 14.0
#: Llama 3 405B lost 419 times its run to something unexpected, in 54 days on 16,384 GPUs ("The Llama 3 Herd of Models", 2024, 3.3.4).
RANK_HOURS_PER_FAILURE = 54 * 24 * 16_384 / 419
#: In the same table 78 % of these were confirmed hardware faults: the node is replaced, and its memory and disk with it.
NODE_LOSSES = 0.78


@dataclass(frozen=True)
class Job:
    checkpoint_bytes: float
    nodes: int
    ranks_per_node: int = 8
    interval_s: float = 300.0
    mtbf_s: float = 4 * 3600.0
    #: what share of the failures takes a node's memory and disk with it
    node_losses: float = NODE_LOSSES
    #: from the failure until all processes run again, reading aside
    relaunch_s: float = 120.0
    #: ranks that want the same bytes when they read
    tensor_parallel: int = 1
    #: forward and backward of one step, which a guarded copy hides behind; None: long enough for all of it
    overlap_s: float | None = None
    #: copies of the state that memory holds: one is drained while the next is staged
    slots: int = 2

    def __post_init__(self) -> None:
        for name in ("checkpoint_bytes", "nodes", "ranks_per_node", "interval_s", "mtbf_s", "tensor_parallel", "slots"):
            if not getattr(self, name) > 0:
                raise InvalidInput(f"{name} must be above 0", operation="plan")
        if not 0 <= self.node_losses <= 1 or self.relaunch_s < 0 or (self.overlap_s is not None and self.overlap_s < 0):
            raise InvalidInput("node losses are a share from 0 to 1, times are not negative", operation="plan")
        if self.ranks % self.tensor_parallel:
            raise InvalidInput(f"{self.ranks} ranks are no whole number of groups of {self.tensor_parallel}", operation="plan")
        if max(self.tensor_parallel, self.ranks_per_node) % min(self.tensor_parallel, self.ranks_per_node):
            why = f"groups of {self.tensor_parallel} ranks lie across nodes of {self.ranks_per_node} unevenly"
            raise InvalidInput(why, operation="plan", hint="let one divide the other")

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def node_bytes(self) -> float:
        """What one node saves."""
        return self.checkpoint_bytes / self.nodes

    @property
    def read_once_bytes(self) -> float:
        """What one node fetches when it keeps what it fetched: its own groups' bytes, or a group's if that is larger than a node."""
        return self.node_bytes * max(1.0, self.tensor_parallel / self.ranks_per_node)

    @property
    def read_each_bytes(self) -> float:
        """What one node fetches when each rank reads for itself."""
        return self.node_bytes * self.tensor_parallel

    @property
    def memory_bytes(self) -> float:
        """What the memory tier of a node holds."""
        return self.slots * self.node_bytes


def mtbf_of(ranks: int) -> float:
    """Seconds between failures of a job of so many ranks, if it fails as often as Llama 3's did."""
    return RANK_HOURS_PER_FAILURE * 3600 / ranks
