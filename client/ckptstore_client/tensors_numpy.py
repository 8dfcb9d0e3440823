"""How do numpy arrays and numpy scalars go into a file and come back? Exact dtypes, C order, copied into views.

What is kept: dtype, shape, values bit for bit. What is not: strides (an array in Fortran order comes back in C order). Refused by
place: subclasses (masked arrays, matrices, memmaps), big-endian, structured, object, text and date dtypes, complex128:
safetensors has no name for them.

Arrays of a MiB or more are copied by a few threads (`piece_copies`), others by `numpy.copyto`; both let other threads run. Stateless, any
thread.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptstore.errors import InvalidInput, NotStorable
from ckptstore.part import ARRAY
from ckptstore.safetensors_format import TensorEntry
from ckptstore_client.frameworks import TensorSpec
from ckptstore_client.piece_copies import copy_stretches

#: Below this, an array is copied before another thread could begin with it.
THREADED_BYTES = 1 << 20
#: As many as torch takes: OMP_NUM_THREADS, or one a core of this process.
THREADS = int(text) if (text := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(text) else len(os.sched_getaffinity(0))

ARRAY_TYPES: tuple[type, ...] = (np.ndarray,)

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
}
_BY_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


def add_dtypes(more: Mapping[str, Any]) -> None:
    """Dtypes that numpy has from another package, by what safetensors calls them."""
    for name, dtype in more.items():
        DTYPES[name] = np.dtype(dtype)
        _BY_DTYPE[DTYPES[name]] = name


def dtype_name(dtype: np.dtype[Any], place: str) -> str:
    """As safetensors names it; NotStorable if it does not."""
    name = _BY_DTYPE.get(np.dtype(dtype))
    if name is None:
        raise NotStorable(f"safetensors has no dtype {dtype}", operation="save", subject=place)
    return name


def _spec(place: str, value: np.ndarray[Any, Any]) -> TensorSpec:
    name = _BY_DTYPE.get(value.dtype)
    if name is None:
        hint = "convert it with .astype(…)" if value.dtype.kind in "iufcb" else "save its parts as plain arrays"
        raise NotStorable(f"{type(value)!r}: safetensors has no dtype {value.dtype.str}", operation="save", subject=place, hint=hint)
    return TensorSpec(name, value.shape, value.nbytes, (value.dtype, value.shape))


def _dtype(entry: TensorEntry) -> np.dtype[Any]:
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise InvalidInput(f"numpy has no {entry.dtype}", operation="load", subject=entry.key)
    return dtype


def _copy(destinations: Sequence[np.ndarray[Any, Any]], sources: Sequence[np.ndarray[Any, Any]]) -> None:
    stretches = []
    for destination, source in zip(destinations, sources, strict=True):
        if source.nbytes >= THREADED_BYTES and _is_plain(destination, source):
            stretches.append((_address(destination), _address(source), source.nbytes))
        else:
            np.copyto(destination, source, casting="no")
    copy_stretches(stretches, THREADS)


def _is_plain(destination: np.ndarray[Any, Any], source: np.ndarray[Any, Any]) -> bool:
    """Whether the bytes can be taken as they are."""
    alike = source.dtype == destination.dtype and source.shape == destination.shape
    return alike and source.flags.c_contiguous and destination.flags.c_contiguous and destination.flags.writeable


def _address(array: np.ndarray[Any, Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


@dataclass(frozen=True)
class NumpyPlaces:
    views: list[np.ndarray[Any, Any]]

    def copy(self, sources: Sequence[np.ndarray[Any, Any]]) -> None:
        _copy(self.views, sources)


class NumpyArrays:
    tag = ARRAY

    def specs(self, places: Sequence[str], values: Sequence[np.ndarray[Any, Any]]) -> list[TensorSpec]:
        return [_spec(place, value) for place, value in zip(places, values, strict=True)]

    def unchanged(self, values: Sequence[np.ndarray[Any, Any]], specs: Sequence[TensorSpec]) -> bool:
        return all((value.dtype, value.shape) == spec.native for value, spec in zip(values, specs, strict=True))

    def ties(self, values: Sequence[np.ndarray[Any, Any]]) -> dict[int, int]:
        first: dict[Hashable, int] = {}
        found = {}
        for index, value in enumerate(values):
            known = first.setdefault(self.same_tensor(value), index)
            if known != index:
                found[index] = known
        return found

    def same_tensor(self, value: np.ndarray[Any, Any]) -> Hashable:
        if value.size == 0:
            return id(value)
        return (_address(value), value.dtype, value.shape, value.strides)

    def views(self, buffer: memoryview, entries: Sequence[TensorEntry], data_start: int) -> list[np.ndarray[Any, Any]]:
        whole = np.frombuffer(buffer, np.uint8)
        return [
            whole[data_start + entry.start : data_start + entry.end].view(DTYPES[entry.dtype]).reshape(entry.shape) for entry in entries
        ]

    def places(self, buffer: memoryview, entries: Sequence[TensorEntry], data_start: int) -> NumpyPlaces:
        return NumpyPlaces(self.views(buffer, entries, data_start))

    def over(self, memory: memoryview, entries: Sequence[TensorEntry], base: int) -> list[np.ndarray[Any, Any]]:
        made = []
        for entry in entries:
            count = entry.size_bytes // _dtype(entry).itemsize
            made.append(np.frombuffer(memory, _dtype(entry), count, entry.start - base).reshape(entry.shape))
        return made

    def copy(self, destinations: Sequence[np.ndarray[Any, Any]], sources: Sequence[np.ndarray[Any, Any]], moment: object = None) -> None:
        _copy(destinations, sources)

    def strided(self, buffer: memoryview, start: int, dtype: str, size: Sequence[int], strides: Sequence[int]) -> np.ndarray[Any, Any]:
        native = DTYPES[dtype]
        return np.ndarray(tuple(size), native, buffer, start, [stride * native.itemsize for stride in strides])

    def empty(self, entry: TensorEntry) -> np.ndarray[Any, Any]:
        try:
            return np.empty(entry.shape, _dtype(entry))
        except (ValueError, MemoryError) as error:
            why = f"no array of shape {entry.shape} and {entry.dtype} can be made: {str(error)[:200]}"
            raise InvalidInput(why, operation="load", subject=entry.key) from error

    def check_destination(self, value: np.ndarray[Any, Any], entry: TensorEntry, place: str) -> None:
        if value.dtype != DTYPES.get(entry.dtype):
            raise _mismatch(f"it is {value.dtype.str}, stored is {entry.dtype}", place)
        if value.shape != entry.shape:
            raise _mismatch(f"its shape is {value.shape}, stored is {entry.shape}", place)
        if not value.flags.writeable:
            raise _mismatch("it is read-only", place)
        if any(stride == 0 and size > 1 for stride, size in zip(value.strides, value.shape, strict=True)):
            raise _mismatch("it is broadcast: several of its elements are one place in memory", place)

    def address(self, value: np.ndarray[Any, Any]) -> int | None:
        return int(value.__array_interface__["data"][0]) if value.flags.c_contiguous else None

    def touched(self, values: Sequence[np.ndarray[Any, Any]]) -> None:
        """numpy counts no versions."""


def _mismatch(why: str, place: str) -> InvalidInput:
    return InvalidInput(why, operation="load into", subject=place)


# --- numpy scalars ----------------------------------------------------------------------------------------------------

_SCALAR_TYPES: tuple[type[np.generic], ...] = (
    np.bool_,
    np.int8,
    np.int16,
    np.int32,
    np.int64,
    np.uint8,
    np.uint16,
    np.uint32,
    np.uint64,
    np.float16,
    np.float32,
    np.float64,
    np.complex64,
    np.complex128,
)
_SCALARS = {kind.__name__: np.dtype(kind) for kind in _SCALAR_TYPES} | {"bool": np.dtype(np.bool_)}


def _encode_scalar(value: Any, place: str) -> dict[str, list[str]]:
    return {"$scalar": [value.dtype.name, base64.b64encode(value.tobytes()).decode("ascii")]}


def decode_scalar(payload: Any, place: str) -> Any:
    try:
        name, text = payload
        dtype, raw = _SCALARS[name], base64.b64decode(text, validate=True)
        if len(raw) != dtype.itemsize:
            raise ValueError(f"{len(raw)} bytes for a {name}")
        return np.frombuffer(raw, dtype)[0]
    except (TypeError, ValueError, KeyError, binascii.Error) as error:
        raise InvalidInput(f"{str(payload)[:80]!r} is no numpy scalar", operation="read part", subject=place) from error


SCALAR_ENCODERS: dict[type, Callable[[Any, str], Any]] = dict.fromkeys(_SCALAR_TYPES, _encode_scalar)
