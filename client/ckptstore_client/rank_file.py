"""Where do the tensors of a rank's file lie? In the file itself; after an incremental save, some in objects of earlier checkpoints.

The header, verified like everything else, says both. Nothing of the data is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ckptstore.errors import InvalidInput
from ckptstore.layout import read_layout, with_all_tensors
from ckptstore.safetensors_format import PREFIX_BYTES, Header, TensorEntry, header_size_bytes, parse_header
from ckptstore_client.reading import Piece, VerifiedObject
from ckptstore_tiers.private_memory import private_memory
from ckptstore_tiers.sources import address_of

#: An object of an earlier checkpoint, by id, to be opened as a context manager.
OpenObject = Callable[[str], VerifiedObject]


def nothing_else(object_id: str) -> VerifiedObject:
    raise InvalidInput("its tensors lie in other objects, too", operation="load", subject=object_id)


@dataclass(frozen=True)
class RankFile:
    """A rank's file, and the way to what lies elsewhere. `header` has all tensors; those `elsewhere` count from their object's begin."""

    reader: VerifiedObject
    header: Header
    elsewhere: Mapping[str, str]  # tensor → object id
    open_object: OpenObject
    digests: Mapping[str, str]  # of the tensors, after an incremental save; else none

    @classmethod
    def of(cls, reader: VerifiedObject, open_object: OpenObject) -> RankFile:
        header = read_header(reader)
        layout = read_layout(header)
        if layout is None:
            return cls(reader, header, {}, open_object, {})
        elsewhere = {key: found.object_id for key, found in layout.elsewhere.items()}
        digests = {**layout.own, **{key: found.digest for key, found in layout.elsewhere.items()}}
        return cls(reader, with_all_tensors(header, layout), elsewhere, open_object, digests)

    def homes(self, keys: Iterable[str]) -> Iterator[tuple[VerifiedObject, int, list[TensorEntry]]]:
        """For each object that holds some of these tensors: it, open, where its data starts, and the tensors in its order."""
        by_object: dict[str, list[TensorEntry]] = {}
        for key in keys:
            by_object.setdefault(self.elsewhere.get(key, ""), []).append(self.header.tensors[key])
        for object_id, entries in by_object.items():
            entries.sort(key=lambda entry: entry.start)
            if not object_id:
                yield self.reader, self.header.data_start, entries
                continue
            with self.open_object(object_id) as other:
                yield other, 0, entries


def read_header(reader: VerifiedObject) -> Header:
    """The header of a safetensors file; reads only the blocks that hold it, and the first of them once for all."""
    size_bytes = reader.file.size_bytes
    prefix = reader.first_block()
    wanted_bytes = header_size_bytes(prefix[:PREFIX_BYTES], size_bytes)
    if wanted_bytes > len(prefix):
        prefix = private_memory(wanted_bytes)
        reader.fill([Piece(0, wanted_bytes, address_of(prefix))])
    return parse_header(prefix, size_bytes)
