"""`checkpoint.json`: what is built is read back, and what is crafted is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptstore.catalog.model import AttemptState, AttemptView, Kind, StoredFile
from ckptstore.errors import InvalidInput
from ckptstore.manifest import build_index, part_file_name, read_index

ATTEMPT_ID = "0" * 32


def _attempt(world_size: int = 2, metadata: str = '{"note": "é"}') -> AttemptView:
    return AttemptView(
        attempt_id=ATTEMPT_ID,
        path="/runs/a",
        kind=Kind.CHECKPOINT,
        state=AttemptState.COMPLETE,
        reason=None,
        world_size=world_size,
        step=7,
        metadata=metadata,
        replace=False,
        joined=world_size,
        snapshots=world_size,
        stored=world_size,
        publication_id=None,
        opened_at_s=1.5,
        idle_s=0.0,
    )


def _stored(rank: int, world_size: int = 2) -> StoredFile:
    name = part_file_name(rank, world_size)
    return StoredFile(f"{rank:032x}", name, rank, f"objects/runs/a/{name}", "node", 10 + rank, f"{rank:032x}", b"")


def test_an_index_that_was_built_is_read_back() -> None:
    index = read_index(build_index(_attempt(), (_stored(rank) for rank in (1, 0))))
    assert (index.path, index.world_size, index.step, index.metadata) == ("/runs/a", 2, 7, {"note": "é"})
    assert [(part.rank, part.size_bytes) for part in index.parts] == [(0, 10), (1, 11)]


def test_a_publish_that_is_repeated_builds_the_same_bytes() -> None:
    assert build_index(_attempt(), [_stored(0), _stored(1)]) == build_index(_attempt(), [_stored(1), _stored(0)])


def test_the_names_of_parts_sort_by_rank() -> None:
    names = [part_file_name(rank, 10_000) for rank in range(0, 10_000, 37)]
    assert names == sorted(names)


def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(build_index(_attempt(), [_stored(0), _stored(1)]))
    return document


CRAFTED: dict[str, Any] = {
    "another format": {"format": "ckptstore/2"},
    "a path that leads out": {"path": "/a/../../etc"},
    "a relative path": {"path": "a"},
    "an id that leads out": {"attempt": "../../etc"},
    "no ranks": {"world_size": 0, "parts": []},
    "a world of a million millions": {"world_size": 10**12},
    "a rank too few": {"parts": []},
    "a field too many": {"extra": 1},
    "a step that is a text": {"step": "7"},
    "parts that are none": {"parts": [1, 2]},
}


@pytest.mark.parametrize("what", CRAFTED)
def test_a_crafted_index_is_refused_by_name(what: str) -> None:
    with pytest.raises(InvalidInput, match=r"checkpoint\.json"):
        read_index(json.dumps(_document() | CRAFTED[what]).encode())


@pytest.mark.parametrize(
    "change", [{"rank": 1}, {"file": "../../etc/passwd"}, {"object": "x"}, {"size_bytes": -1}, {"digest": "short"}, {"size_bytes": "1"}]
)
def test_a_crafted_part_of_an_index_is_refused_by_name(change: dict[str, Any]) -> None:
    document = _document()
    document["parts"][0] |= change
    with pytest.raises(InvalidInput, match=r"checkpoint\.json"):
        read_index(json.dumps(document).encode())


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_index_reader_fail_otherwise(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_index(data)
