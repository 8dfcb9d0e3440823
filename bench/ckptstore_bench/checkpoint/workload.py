"""Which files does each rank of MLPerf Storage's checkpointing workload write, and of how many bytes?

Sources: mlcommons/storage, Submission_guidelines.md and configurations at caa90c9 (the models and their parallelism); DLIO, the program
that runs it, `checkpointing/base_checkpointing.py` at e1919d7 (sizes, names). fp16 weights, fp32 optimizer, files as DeepSpeed names them.

- The optimizer of a rank is three times [its share of all parameters, 5 × hidden], in fp32.
- ZeRO stage 3 (no pipeline): every rank writes its share of the weights, one file.
- ZeRO stage 1: the data-parallel rank 0 writes the weights, one file for each layer of its pipeline stage. Layer 0 is the embedding,
  layer L + 1 the output head, L + 2 the last norm.

Sizes are computed, not looked up: the 18 TB published for llama3-1t do not follow from its dimensions (15.4 TiB do).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from ckptstore.errors import InvalidInput
from ckptstore_bench.shape import MODELS, VOCABULARY, Decoder

WEIGHT_BYTES, OPTIMIZER_BYTES = 2, 4
#: What MLPerf's rules fix of a run.
WRITES, READS, INTERVAL_S = 10, 10, 5.0
#: In subset mode one host takes part, with so many processes.
SUBSET_PROCESSES = 8


@dataclass(frozen=True)
class Parallelism:
    tensor: int
    pipeline: int
    data: int
    zero: int

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline * self.data


PARALLELISM = {
    "llama3-8b": Parallelism(1, 1, 8, zero=3),
    "llama3-70b": Parallelism(8, 1, 8, zero=3),
    "llama3-405b": Parallelism(8, 32, 2, zero=1),
    "llama3-1t": Parallelism(8, 64, 2, zero=1),
}


@dataclass(frozen=True)
class Tensor:
    """One-dimensional, as DLIO's are."""

    name: str
    elements: int
    item_bytes: int

    @property
    def size_bytes(self) -> int:
        return self.elements * self.item_bytes


@dataclass(frozen=True)
class StateFile:
    """`name` as in a folder `global_epoch…_step…`."""

    name: str
    tensors: tuple[Tensor, ...]

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)


@dataclass(frozen=True)
class Workload:
    """What `processes` ranks write: the whole model, or (subset) what the first so many of its official ranks do."""

    model: str
    decoder: Decoder
    parallelism: Parallelism
    processes: int
    scale: Fraction

    @property
    def parameters(self) -> int:
        model, kv = self.decoder, self.decoder.hidden // self.decoder.heads * self.decoder.kv_heads
        layer = 2 * model.hidden + model.hidden * (model.hidden + 2 * kv) + model.hidden**2 + 3 * model.hidden * model.feed_forward
        return 2 * VOCABULARY * model.hidden + model.layers * layer + model.hidden

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for rank in range(self.processes) for file in self.files(rank))

    @property
    def largest_rank_bytes(self) -> int:
        return max(sum(file.size_bytes for file in self.files(rank)) for rank in range(self.processes))

    @property
    def file_count(self) -> int:
        return sum(1 for rank in range(self.processes) for _ in self.files(rank))

    def files(self, rank: int) -> list[StateFile]:
        tensor, pipeline, zero = self.parallelism.tensor, self.parallelism.pipeline, self.parallelism.zero
        model_rank, data_rank = rank % (tensor * pipeline), rank // (tensor * pipeline)
        names = f"zero_pp_rank_{data_rank}_mp_rank_{model_rank}"
        files = [StateFile(f"{names}_optim_states.pt", tuple(self._optimizer()))]
        layers = self._layers(rank // tensor % pipeline)
        if zero == 3:
            weights = [weight for layer in layers for weight in self._layer(layer)]
            files.append(StateFile(f"{names}_model_states.pt", tuple(weights)))
        elif data_rank == 0:
            files += [StateFile(f"layer_{layer}-model_{model_rank}_model_states.pt", tuple(self._layer(layer))) for layer in layers]
        return files

    def _optimizer(self) -> Iterator[Tensor]:
        for part in ("master", "exp_avg", "exp_avg_sq"):
            yield self._tensor(f"{part}.parameters", self.parameters // self.parallelism.ranks, OPTIMIZER_BYTES)
            yield self._tensor(f"{part}.norms", 5 * self.decoder.hidden, OPTIMIZER_BYTES)

    def _layers(self, stage: int) -> list[int]:
        """The layers of a pipeline stage; the first stages have one more where they do not divide."""
        each, rest = divmod(self.decoder.layers, self.parallelism.pipeline)
        first = 1 + stage * each + min(stage, rest)
        layers = list(range(first, first + each + (1 if stage < rest else 0)))
        if stage == 0:
            layers.insert(0, 0)
        if stage == self.parallelism.pipeline - 1:
            layers += [self.decoder.layers + 1, self.decoder.layers + 2]
        return layers

    def _layer(self, layer: int) -> Iterator[Tensor]:
        model, split = self.decoder, self.parallelism.tensor
        kv = model.hidden // model.heads * model.kv_heads
        shared = self.parallelism.data if self.parallelism.zero == 3 else 1
        if layer in (0, model.layers + 1):
            parts = {"embedding" if layer == 0 else "output": VOCABULARY * model.hidden // split}
        elif layer == model.layers + 2:
            parts = {"norm": model.hidden}
        else:
            parts = {
                "input_norm": model.hidden,
                "attention_qkv": model.hidden * (model.hidden + 2 * kv) // split,
                "attention_dense": model.hidden**2 // split,
                "attention_norm": model.hidden,
                "mlp_in": 2 * model.hidden * model.feed_forward // split,
                "mlp_out": model.hidden * model.feed_forward // split,
            }
        for name, elements in parts.items():
            yield self._tensor(f"layer_{layer}.{name}", elements // shared, WEIGHT_BYTES)

    def _tensor(self, name: str, elements: int, item_bytes: int) -> Tensor:
        return Tensor(name, max(1, round(elements * self.scale)), item_bytes)


def workload(model: str, *, mode: str, processes: int | None, scale: Fraction) -> Workload:
    """InvalidInput for an unknown model, or a number of processes that it cannot have."""
    if model not in PARALLELISM:
        raise InvalidInput(f"there is no model {model!r}", operation="bench", subject="--model", hint=f"known are {', '.join(PARALLELISM)}")
    if not 0 < scale <= 1:
        raise InvalidInput(f"a scale is above 0 and at most 1, not {scale}", operation="bench", subject="--scale", hint="for example 1/64")
    official = PARALLELISM[model]
    if mode == "subset":
        count = processes or min(SUBSET_PROCESSES, official.ranks)
        if not 1 <= count <= official.ranks:
            why = f"{model} has {official.ranks} ranks, of which {count} cannot take part"
            raise InvalidInput(why, operation="bench", subject="--procs")
        return Workload(model, MODELS[model], official, count, scale)
    count, group = processes or official.ranks, official.tensor * official.pipeline
    if count < group or count % group:
        why = f"{model} runs on a multiple of {group} processes, not {count}"
        raise InvalidInput(why, operation="bench", subject="--procs", hint="or take part of it with --mode subset")
    return Workload(model, MODELS[model], Parallelism(official.tensor, official.pipeline, count // group, official.zero), count, scale)


def why_not_comparable(load: Workload, *, mode: str, writes: int, reads: int, interval_s: float) -> list[str]:
    """What keeps a run from being compared with published ones; empty for a run by the rules."""
    official = PARALLELISM[load.model]
    found = []
    if load.scale != 1:
        found.append(f"scaled by {load.scale}")
    if mode == "default" and load.processes != official.ranks:
        found.append(f"{load.processes} processes, not {official.ranks} (OPEN allows that, CLOSED does not)")
    if mode == "subset" and load.processes != min(SUBSET_PROCESSES, official.ranks):
        found.append(f"a subset of {load.processes} processes, not of {SUBSET_PROCESSES}")
    if (writes, reads) != (WRITES, READS):
        found.append(f"{writes} writes and {reads} reads, not {WRITES} and {READS}")
    if interval_s != INTERVAL_S:
        found.append(f"{interval_s:g} s between checkpoints, not {INTERVAL_S:g}")
    return found
