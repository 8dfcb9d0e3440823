"""How do torch tensors go into a file and come back? Exact dtypes, by bulk copies that torch runs with its own threads and without the GIL.

What is kept: dtype, shape, values bit for bit. What is not: strides, device, requires_grad, and whether a tensor was a Parameter.
Sparse, quantized, nested and meta tensors, tensor subclasses, complex128 and complex32 are refused by place: safetensors has no
name for them.

How lists of tensors are copied is `torch_copies`, and many small ones, where it matters, `torch_places`. The module imports torch:
`frameworks` imports it only when that is right. Stateless, any thread.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from operator import attrgetter, eq
from typing import Any

import torch

from ckptstore.errors import InvalidInput, NotStorable
from ckptstore.part import TORCH, LeafDecoder, LeafEncoder
from ckptstore.safetensors_format import TensorEntry
from ckptstore_client.cuda import Moment, copy_from_cuda
from ckptstore_client.frameworks import TensorSpec
from ckptstore_client.torch_copies import copy_on_cpu
from ckptstore_client.torch_places import TorchPlaces

TENSOR_TYPES: tuple[type, ...] = (torch.Tensor, torch.nn.Parameter)

_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
#: safetensors name → dtype, as far as this torch has it
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, attribute) for name, attribute in _NAMES.items() if hasattr(torch, attribute)}
_BY_DTYPE = {dtype: name for name, dtype in DTYPES.items()}
#: two elements in a byte: the header counts elements, torch counts bytes; torch cannot copy it, so it is copied as bytes
_F4 = DTYPES.get("F4")
_is_cpu = attrgetter("is_cpu")
_data_ptr = torch.Tensor.data_ptr
#: what a plan depends on
_traits = attrgetter("dtype", "shape", "layout", "is_cpu")
_native = attrgetter("native")


def _refusal(value: torch.Tensor, why: str, place: str, hint: str | None = None) -> NotStorable:
    return NotStorable(f"{type(value)!r}: {why}", operation="save", subject=place, hint=hint)


def _spec(place: str, value: torch.Tensor) -> TensorSpec:
    if value.layout is not torch.strided or value.is_nested:
        raise _refusal(value, f"a tensor of layout {value.layout} cannot be stored", place, "save its parts as dense tensors")
    if value.is_meta:
        raise _refusal(value, "a meta tensor has no bytes", place)
    name = _BY_DTYPE.get(value.dtype)
    if name is None:
        raise _refusal(value, f"safetensors has no {value.dtype}", place, "convert it, for example with torch.view_as_real")
    shape = tuple(value.shape)
    if name == "F4":
        if not shape:
            raise _refusal(value, "a 0-dim float4 tensor has no shape in safetensors", place)
        shape = (*shape[:-1], shape[-1] * 2)
    return TensorSpec(name, shape, value.numel() * value.element_size(), _traits(value))


def dtype_name(dtype: torch.dtype, place: str) -> str:
    """As safetensors names it; NotStorable if it does not."""
    name = _BY_DTYPE.get(dtype)
    if name is None:
        raise NotStorable(f"safetensors has no {dtype}", operation="save", subject=place)
    return name


def _native_shape(entry: TensorEntry) -> tuple[int, ...]:
    if entry.dtype != "F4":
        return entry.shape
    return (*entry.shape[:-1], entry.shape[-1] // 2)


def _dtype(entry: TensorEntry) -> torch.dtype:
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise InvalidInput(f"this torch has no {entry.dtype}", operation="load", subject=entry.key)
    return dtype


class TorchTensors:
    tag = TORCH

    def specs(self, places: Sequence[str], values: Sequence[torch.Tensor]) -> list[TensorSpec]:
        return [_spec(place, value) for place, value in zip(places, values, strict=True)]

    def unchanged(self, values: Sequence[torch.Tensor], specs: Sequence[TensorSpec]) -> bool:
        # Without a loop of Python, which would take three times as long, and without a list, whose 20,000 items would wake the garbage
        # collector.
        try:
            return len(values) == len(specs) and all(map(eq, map(_traits, values), map(_native, specs)))
        except RuntimeError:  # a nested tensor has no shape; `specs` says so by place
            return False

    def ties(self, values: Sequence[torch.Tensor]) -> dict[int, int]:
        pointers = list(map(_data_ptr, values))
        if len(set(pointers)) == len(pointers):
            return {}
        counts: dict[int, int] = {}
        for pointer in pointers:
            counts[pointer] = counts.get(pointer, 0) + 1
        first: dict[Hashable, int] = {}
        found = {}
        for index, pointer in enumerate(pointers):
            if counts[pointer] > 1:
                known = first.setdefault(self.same_tensor(values[index]), index)
                if known != index:
                    found[index] = known
        return found

    def same_tensor(self, value: torch.Tensor) -> Hashable:
        if value.numel() == 0:
            return id(value)  # no memory to share: the same tensor is the same object
        return (value.data_ptr(), value.dtype, value.shape, value.stride(), value.device, value.is_conj(), value.is_neg())

    @torch.inference_mode(False)
    def views(self, buffer: memoryview, entries: Sequence[TensorEntry], data_start: int) -> list[torch.Tensor]:
        # Ordinary tensors even if the caller is in inference mode: they are kept, and an inference tensor could not be written later.
        whole = torch.frombuffer(buffer, dtype=torch.uint8)
        made = []
        for entry in entries:
            if entry.start == entry.end:
                made.append(torch.empty(_native_shape(entry), dtype=DTYPES[entry.dtype], device="cpu"))
                continue
            piece = whole[data_start + entry.start : data_start + entry.end]
            made.append(piece.view(DTYPES[entry.dtype]).view(_native_shape(entry)))
        return made

    def places(self, buffer: memoryview, entries: Sequence[TensorEntry], data_start: int) -> TorchPlaces:
        return TorchPlaces(self.views(buffer, entries, data_start), torch.frombuffer(buffer, dtype=torch.uint8), entries, data_start)

    @torch.inference_mode(False)
    def over(self, memory: memoryview, entries: Sequence[TensorEntry], base: int) -> list[torch.Tensor]:
        made = []
        for entry in entries:
            if entry.start == entry.end:
                made.append(self.empty(entry))
                continue
            dtype = _dtype(entry)
            flat = torch.frombuffer(memory, dtype=torch.uint8, count=entry.size_bytes, offset=entry.start - base)
            # A tensor of its own on that storage; a view would share the version counter of `flat`, and say that it is one.
            made.append(torch.empty(0, dtype=dtype).set_(flat.untyped_storage()).resize_(_native_shape(entry)))
        return made

    @torch.no_grad()
    def copy(self, destinations: Sequence[torch.Tensor], sources: Sequence[torch.Tensor], moment: Moment | None = None) -> None:
        if not sources:
            return
        if _F4 is not None and any(source.dtype is _F4 for source in sources):
            destinations = [d.view(torch.uint8) if d.dtype is _F4 else d for d in destinations]
            sources = [s.view(torch.uint8) if s.dtype is _F4 else s for s in sources]
        if not all(map(_is_cpu, sources)) and any(source.is_cuda for source in sources):
            pairs = list(zip(destinations, sources, strict=True))
            copy_from_cuda([pair for pair in pairs if pair[1].is_cuda], moment)
            pairs = [pair for pair in pairs if not pair[1].is_cuda]
            destinations, sources = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        copy_on_cpu(destinations, sources)

    def strided(self, buffer: memoryview, start: int, dtype: str, size: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
        native = DTYPES[dtype]
        span = 1 + sum((length - 1) * stride for length, stride in zip(size, strides, strict=True))
        return torch.frombuffer(buffer, dtype=native, count=span, offset=start).as_strided(tuple(size), tuple(strides))

    def empty(self, entry: TensorEntry) -> torch.Tensor:
        dtype = _dtype(entry)
        try:
            return torch.empty(_native_shape(entry), dtype=dtype, device="cpu")
        except (RuntimeError, MemoryError) as error:
            why = f"no tensor of shape {entry.shape} and {entry.dtype} can be made: {str(error)[:200]}"
            raise InvalidInput(why, operation="load", subject=entry.key) from error

    def check_destination(self, value: torch.Tensor, entry: TensorEntry, place: str) -> None:
        if value.layout is not torch.strided or value.is_meta or value.is_nested:
            raise _mismatch(f"a tensor of layout {value.layout} on {value.device} cannot be filled", place)
        if value.dtype is not DTYPES.get(entry.dtype):
            raise _mismatch(f"it is {value.dtype}, stored is {DTYPES.get(entry.dtype, entry.dtype)}", place)
        if tuple(value.shape) != _native_shape(entry):
            raise _mismatch(f"its shape is {tuple(value.shape)}, stored is {_native_shape(entry)}", place)
        if value.is_inference() and not torch.is_inference_mode_enabled():
            raise _mismatch("it is an inference tensor: load inside torch.inference_mode()", place)
        if any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True)):
            raise _mismatch("it is expanded: several of its elements are one place in memory", place)

    def address(self, value: torch.Tensor) -> int | None:
        plain = value.is_cpu and value.is_contiguous() and not value.is_conj() and not value.is_neg()
        return value.data_ptr() if plain else None

    def touched(self, values: Sequence[torch.Tensor]) -> None:
        for value in values:
            if not value.is_inference():
                torch.autograd.graph.increment_version(value)

    def __repr__(self) -> str:
        return "TorchTensors()"


def _mismatch(why: str, place: str) -> InvalidInput:
    return InvalidInput(why, operation="load into", subject=place)


# --- leaves that are torch's own, and no tensors --------------------------------------------------------------------------------


def _encode_device(value: torch.device, place: str) -> dict[str, str]:
    return {"$device": str(value)}


def _encode_dtype(value: torch.dtype, place: str) -> dict[str, str]:
    return {"$dtype": str(value).removeprefix("torch.")}


def _encode_size(value: torch.Size, place: str) -> dict[str, list[int]]:
    return {"$size": [int(size) for size in value]}


def _decode_dtype(payload: Any, place: str) -> torch.dtype:
    dtype = getattr(torch, payload, None) if isinstance(payload, str) and payload.isidentifier() else None
    if not isinstance(dtype, torch.dtype):
        raise InvalidInput(f"torch has no dtype {str(payload)[:80]!r}", operation="read part", subject=place)
    return dtype


def _decode_device(payload: Any, place: str) -> torch.device:
    try:
        return torch.device(payload if isinstance(payload, str) else "")
    except RuntimeError as error:
        raise InvalidInput(f"torch has no device {str(payload)[:80]!r}", operation="read part", subject=place) from error


def _decode_size(payload: Any, place: str) -> torch.Size:
    if not isinstance(payload, list) or not all(type(size) is int and abs(size) < 1 << 62 for size in payload):
        raise InvalidInput(f"{str(payload)[:80]!r} is no size", operation="read part", subject=place)
    return torch.Size(payload)


LEAF_ENCODERS: dict[type, LeafEncoder] = {torch.Size: _encode_size, torch.dtype: _encode_dtype, torch.device: _encode_device}
LEAF_DECODERS: dict[str, LeafDecoder] = {"$size": _decode_size, "$dtype": _decode_dtype, "$device": _decode_device}
