"""Options that `bench save` and `bench load` share: which state (`--size --tensors` or `--like --scale`), against whom (`--against`)."""

from __future__ import annotations

from typing import Annotated

import typer

from ckptstore.errors import InvalidInput
from ckptstore_bench.running import positive_size
from ckptstore_bench.shape import StateShape, equal_tensors, like_model, read_scale

DEFAULT_SIZE = "1GiB"
SizeOption = Annotated[str | None, typer.Option(metavar="BYTES", help="Bytes of the state, 1GiB unless said.")]
TensorsOption = Annotated[int, typer.Option(help="How many tensors of equal size these are.")]
LikeOption = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Instead of --size: the training state of llama3-8b, -70b, -405b or -1t.")
]
ScaleOption = Annotated[str, typer.Option(metavar="FRACTION", help="With --like: each tensor shortened to this, for example 1/64.")]
AgainstOption = Annotated[str, typer.Option(metavar="NAMES", help="Peers to measure in turns, separated by commas, or all.")]


def chosen_shape(size: str | None, tensors: int, like: str | None, scale: str) -> StateShape:
    """InvalidInput for what contradicts itself or cannot be measured."""
    if like is not None and size is not None:
        raise InvalidInput("either --size or --like", operation="bench", subject="--size, --like")
    if like is not None:
        return like_model(like, read_scale(scale))
    if scale != "1":
        raise InvalidInput("--scale goes with --like", operation="bench", subject="--scale")
    return equal_tensors(positive_size(size or DEFAULT_SIZE), tensors)
