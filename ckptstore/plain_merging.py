"""Which plain leaves are equal on all ranks that have them, and in whose files do the others' lie? From the ranks' documents, all at once.

A tensor that several ranks have may lie in the file of one of them: the others have left it out (`plain_leaves`). So for each content of a
plain tensor there is a rank that stored it, its *home*; if there is none, the attempt has lost bytes and is refused. Pure functions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from ckptstore.boxes import Box
from ckptstore.errors import InvalidInput
from ckptstore.plain_leaves import Content, read_leaves
from ckptstore.shards import Piece, written_boxes


@dataclass
class _Same:
    """A leaf as these ranks have it; a tensor is in the files of those that stored it."""

    content: Content | str
    holders: list[int] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)

    def home(self, key: str) -> int:
        if not self.stored:
            why = f"rank {min(self.holders)} left it to another rank to store, and none did"
            raise InvalidInput(why, operation="publish", subject=repr(key[:200]))
        return sorted(self.stored)[crc32(key.encode("utf-8", "surrogatepass")) % len(self.stored)]


@dataclass
class PlainLeaves:
    """The plain leaves of all ranks. Those of one place are equal if there is one `_Same` of it."""

    places: dict[str, frozenset[str]]  # by digest of the document
    _found: dict[str, dict[Content | str, _Same]]

    @classmethod
    def of(cls, having: Mapping[str, Sequence[int]], documents: Mapping[str, bytes]) -> PlainLeaves:
        """`having`: the ranks of each document, by digest."""
        found: dict[str, dict[Content | str, _Same]] = defaultdict(dict)
        places: dict[str, frozenset[str]] = {}
        for digest, holders in having.items():
            said = read_leaves(documents[digest])
            leaves: dict[str, Content | str] = {**said.texts, **said.tensors}
            for place, content in leaves.items():
                same = found[place].setdefault(content, _Same(content))
                same.holders += holders
                same.stored += () if place in said.left_out else holders
            places[digest] = frozenset(leaves)
        return cls(places, dict(found))

    def __contains__(self, place: str) -> bool:
        return place in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def written_equal(self) -> dict[str, list[Any]]:
        """Tensors that are equal, as `shards.json` has them: in a box of one of their ranks."""
        written = {}
        for key, versions in self._found.items():
            first = next(iter(versions.values()))
            if len(versions) == 1 and isinstance(first.content, Content):
                box = Box.whole(first.content.shape)
                written[key] = [first.content.dtype, list(box.size), written_boxes([Piece(first.home(key), box, key)])]
        return written

    def differing(self) -> dict[str, list[int]]:
        """Leaves that ranks have their own of: place → those ranks."""
        several = ((place, versions.values()) for place, versions in self._found.items() if len(versions) > 1)
        return {place: sorted(rank for same in found for rank in same.holders) for place, found in several}

    def written_copies(self) -> dict[str, list[Any]]:
        """Differing tensors that some ranks have in another's file: key → [[dtype, shape, home, [rank, …]], …]."""
        written: dict[str, list[Any]] = {}
        for key, versions in self._found.items():
            for same in versions.values() if len(versions) > 1 else ():
                others = sorted(set(same.holders).difference(same.stored))
                if others and isinstance(same.content, Content):
                    written.setdefault(key, []).append([same.content.dtype, list(same.content.shape), same.home(key), others])
        return written
