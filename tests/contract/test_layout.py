"""The layout of an incremental file: what is written is read back, and what is crafted is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptstore.errors import CkptStoreError, InvalidInput
from ckptstore.layout import LAYOUT_KEY, Elsewhere, Layout, read_layout, with_all_tensors, write_layout
from ckptstore.safetensors_format import Header, TensorEntry

A, B = "0199a1b2c3d4" + "0" * 20, "0199a1b2c3d5" + "0" * 20
DIGEST = "0123456789abcdef" * 2


def entry(key: str, start: int, count: int = 2) -> TensorEntry:
    return TensorEntry(key, "F32", (count,), start, start + 4 * count)


def layout() -> Layout:
    return Layout(
        {"own": DIGEST},
        {"é": Elsewhere(entry("é", 4096), DIGEST, A), "x/y": Elsewhere(entry("x/y", 4104), DIGEST[::-1], A),
         "z": Elsewhere(entry("z", 0), DIGEST, B)},
    )  # fmt: skip


def header(text: str | None) -> Header:
    return Header({"own": entry("own", 0)}, {} if text is None else {LAYOUT_KEY: text}, 4096)


def test_what_was_written_is_read_back_and_a_file_without_one_has_none() -> None:
    assert read_layout(header(write_layout(layout()))) == layout()
    assert read_layout(header(None)) is None
    assert set(with_all_tensors(header(None), layout()).tensors) == {"own", "é", "x/y", "z"}


@given(
    st.dictionaries(st.text(min_size=1).filter(lambda key: key != "own"), st.tuples(st.integers(0, 1 << 40), st.sampled_from([A, B])))
)
def test_any_layout_whose_tensors_do_not_overlap_comes_back(places: dict[str, tuple[int, str]]) -> None:
    apart = {key: (position * 1_000_000 + start % 999_000, item) for position, (key, (start, item)) in enumerate(places.items())}
    elsewhere = {key: Elsewhere(entry(key, start), DIGEST, item) for key, (start, item) in apart.items()}
    made = Layout({"own": DIGEST}, elsewhere)
    assert read_layout(header(write_layout(made))) == made


def changed(path: list[Any], value: Any) -> str:
    document: Any = json.loads(write_layout(layout()))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "no JSON"),
        ("[]", "exactly format"),
        (changed(["format"], "ckptstore-layout/2"), "not of format"),
        (changed(["objects", 0], "../etc/passwd"), "list of ids"),
        (changed(["digests"], {}), "digest of each tensor"),
        (changed(["digests", "own"], "xyz"), "digest of each tensor"),
        (changed(["elsewhere", "own"], ["F32", [1], DIGEST, 0, 0]), "both in the file and elsewhere"),
        (changed(["elsewhere", "z"], ["F32", [1], DIGEST, 0]), "list of five"),
        (changed(["elsewhere", "z", 0], "F33"), "unknown"),
        (changed(["elsewhere", "z", 1], [-1]), "dtype and shape"),
        (changed(["elsewhere", "z", 1], [1] * 65), "dtype and shape"),
        (changed(["elsewhere", "z", 1], [1 << 62]), "larger than any file"),
        (changed(["elsewhere", "z", 2], None), "digest, object or start"),
        (changed(["elsewhere", "z", 3], 2), "digest, object or start"),
        (changed(["elsewhere", "z", 3], -1), "digest, object or start"),
        (changed(["elsewhere", "z", 4], -1), "digest, object or start"),
        (changed(["elsewhere", "z", 4], True), "digest, object or start"),
        (changed(["elsewhere", "x/y", 4], 4100), "in one place"),
    ],
)  # fmt: skip
def test_a_layout_that_breaks_a_rule_is_refused_by_name(text: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        read_layout(header(text))


@given(st.binary(max_size=3), st.integers(0, 400))
@settings(max_examples=200)
def test_a_layout_with_any_bytes_changed_is_read_or_refused_and_nothing_else(noise: bytes, place: int) -> None:
    text = write_layout(layout()).encode()
    mutated = text[:place] + noise + text[place + len(noise) :]
    try:
        found = read_layout(header(mutated.decode("utf-8", "replace")))
    except CkptStoreError:
        return
    assert found is not None
    assert set(found.own) == {"own"}
