"""What does the client ask of a tensor library? One small interface; `tensors_torch` and `tensors_numpy` answer it.

A framework turns its tensors into specs (what the file's header says of them), gives typed views of a buffer, and copies between
tensors and such views, in bulk, since a state may hold 20,000 tiny ones. torch is imported only if the program has imported it
already, or if what is loaded holds torch tensors; numpy is a dependency of the package.

Stateless and thread-safe. Copies are synchronous: when `copy` returns, the sources may change.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol

from ckptstore.errors import InvalidInput
from ckptstore.part import ARRAY, TORCH, LeafDecoder, LeafEncoder
from ckptstore.safetensors_format import TensorEntry
from ckptstore_client.cuda import Moment

#: Tensors up to this size lie beside others of their kind in the file, and may be copied together; a larger one's bytes cost more than
#: a call for it alone, which may use several threads.
SMALL_TENSOR_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a header says of a tensor, and what the framework compares at the next save to see that nothing changed."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    native: Hashable


class Places(Protocol):
    """Where a state's tensors lie in a buffer, one view for each; for copies that are made again and again."""

    @property
    def views(self) -> Sequence[Any]: ...

    def copy(self, sources: Sequence[Any]) -> None:
        """Copy all of them: as `TensorFramework.copy`, for tensors in the memory of this machine."""
        ...


class TensorFramework(Protocol):
    @property
    def tag(self) -> str: ...

    def specs(self, places: Sequence[str], values: Sequence[Any]) -> list[TensorSpec]:
        """NotStorable, by place, for a tensor that the file cannot hold bit for bit."""
        ...

    def unchanged(self, values: Sequence[Any], specs: Sequence[TensorSpec]) -> bool:
        """Whether `specs(values)` would give `specs`; much cheaper."""
        ...

    def ties(self, values: Sequence[Any]) -> dict[int, int]:
        """index → the first index that is the same tensor: same memory, shape, strides and dtype."""
        ...

    def views(self, buffer: memoryview, entries: Sequence[TensorEntry], data_start: int) -> list[Any]:
        """A typed view of `buffer` for each entry; it keeps the buffer alive."""
        ...

    def places(self, buffer: memoryview, entries: Sequence[TensorEntry], data_start: int) -> Places:
        """The same views, and whatever makes copying to all of them quick."""
        ...

    def over(self, memory: memoryview, entries: Sequence[TensorEntry], base: int) -> list[Any]:
        """A new tensor for each entry, which has its bytes in `memory` from `entry.start - base` on, keeps that alive, and shares a
        storage with no other. InvalidInput as `empty`."""
        ...

    def copy(self, destinations: Sequence[Any], sources: Sequence[Any], moment: Moment | None = None) -> None:
        """Copy each source into its destination; same dtypes and shapes, any strides, any device. CUDA tensors as of the moment."""
        ...

    def strided(self, buffer: memoryview, start: int, dtype: str, size: Sequence[int], strides: Sequence[int]) -> Any:
        """A view of elements of `buffer`, which lie from byte `start` on; the strides count elements."""
        ...

    def empty(self, entry: TensorEntry) -> Any:
        """A new tensor on the CPU, its memory untouched. InvalidInput if there can be none."""
        ...

    def check_destination(self, value: Any, entry: TensorEntry, place: str) -> None:
        """InvalidInput, by place, unless `value` can take exactly the tensor that `entry` describes."""
        ...

    def address(self, value: Any) -> int | None:
        """Where the tensor's bytes lie, if they lie there in the file's order and may be written directly."""
        ...

    def touched(self, values: Sequence[Any]) -> None:
        """The bytes of these tensors were written behind the framework's back."""
        ...

    def same_tensor(self, value: Any) -> Hashable:
        """Equal for two leaves that `ties` would tie."""
        ...


@cache
def framework(tag: str) -> TensorFramework:
    """The framework of a tag of the part document; InvalidInput if it is not installed."""
    if tag == ARRAY:
        from ckptstore_client.tensors_numpy import NumpyArrays

        return NumpyArrays()
    try:
        from ckptstore_client.tensors_torch import TorchTensors
    except ImportError as error:
        raise InvalidInput(
            f"the checkpoint holds torch tensors, and torch cannot be imported: {error}",
            operation="load",
            hint="install ckptstore[torch], or select other leaves with only=",
        ) from error
    return TorchTensors()


def tensor_tags() -> Mapping[type, str]:
    """Exact type → tag, for what the program can hold at this moment."""
    from ckptstore_client.tensors_numpy import ARRAY_TYPES

    tags = dict.fromkeys(ARRAY_TYPES, ARRAY)
    if "torch" in sys.modules:
        from ckptstore_client.tensors_torch import TENSOR_TYPES

        tags |= dict.fromkeys(TENSOR_TYPES, TORCH)
    return tags


def leaf_encoders() -> Mapping[type, LeafEncoder]:
    from ckptstore_client.tensors_numpy import SCALAR_ENCODERS

    encoders: dict[type, LeafEncoder] = dict(SCALAR_ENCODERS)
    if "torch" in sys.modules:
        from ckptstore_client.tensors_torch import LEAF_ENCODERS

        encoders |= LEAF_ENCODERS
    return encoders


def leaf_decoders() -> Mapping[str, LeafDecoder]:
    from ckptstore_client.tensors_numpy import decode_scalar

    return {"$scalar": decode_scalar} | {tag: partial(_torch_leaf, tag) for tag in ("$size", "$dtype", "$device")}


def _torch_leaf(tag: str, payload: Any, place: str) -> Any:
    """torch is imported when the first of its leaves is met, and not for a state that has none."""
    try:
        from ckptstore_client.tensors_torch import LEAF_DECODERS
    except ImportError as error:
        why = f"{str(payload)[:80]!r} needs torch, which cannot be imported: {error}"
        raise InvalidInput(why, operation="load", subject=place, hint="install ckptstore[torch]") from error
    return LEAF_DECODERS[tag](payload, place)
