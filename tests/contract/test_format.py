"""The file of a rank: what is written is ordinary safetensors, and what is no safetensors is refused by name, never believed."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import deserialize

from ckptstore.errors import InvalidInput
from ckptstore.part import PART_FORMAT, PART_KEY
from ckptstore.part_reading import Selection, TensorRef, parse_part
from ckptstore.safetensors_format import (
    DATA_ALIGNMENT_BYTES,
    DTYPE_BITS,
    MAX_HEADER_BYTES,
    Header,
    TensorEntry,
    assemble_header,
    build_header,
    build_tensor_table,
    header_size_bytes,
    parse_header,
    tensor_size_bytes,
)


def _file(document: Any, data: bytes = b"") -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(text)) + text + data


def _tensor(start: int, end: int, dtype: str = "U8", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


#: Several suites share few cores: how fast examples come says nothing about the code.
PATIENT = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])


# --- what we write -----------------------------------------------------------------------------------------------------------------


def test_a_header_that_was_built_is_parsed_to_the_same_tensors() -> None:
    entries = [TensorEntry("a/é", "F32", (2, 3), 0, 24), TensorEntry("b", "F4", (4,), 24, 26), TensorEntry("none", "I64", (0, 5), 26, 26)]
    header = build_header(entries, {"x": "y"})
    parsed = parse_header(header, len(header) + 26)
    assert parsed.tensors == {entry.key: entry for entry in entries}
    assert parsed.metadata == {"x": "y"}
    assert parsed.data_start == len(header)


def test_the_data_starts_on_a_page_and_stays_there_when_the_metadata_grows_a_little() -> None:
    table = build_tensor_table([TensorEntry("a", "U8", (1,), 0, 1)])
    first = assemble_header(table, {"step": "9"})
    second = assemble_header(table, {"step": "1" * 400}, size_bytes=len(first))
    assert len(first) % DATA_ALIGNMENT_BYTES == 0
    assert len(second) == len(first)


def test_a_header_that_outgrows_its_room_gets_more_and_still_ends_on_a_page() -> None:
    grown = assemble_header(b"", {"x": "y" * 10_000}, size_bytes=DATA_ALIGNMENT_BYTES)
    assert len(grown) > 10_000
    assert len(grown) % DATA_ALIGNMENT_BYTES == 0


def test_the_safetensors_library_reads_what_we_write() -> None:
    header = build_header([TensorEntry("a", "I16", (2,), 0, 4), TensorEntry("b", "BOOL", (), 4, 5)], {"k": "v"})
    found = dict(deserialize(header + bytes([1, 0, 2, 0, 1])))
    assert bytes(found["a"]["data"]) == bytes([1, 0, 2, 0])
    assert found["b"]["shape"] == []


def test_a_header_that_no_reader_would_accept_is_not_written() -> None:
    with pytest.raises(InvalidInput, match="100000000"):
        assemble_header(b"", {"x": "y" * MAX_HEADER_BYTES})


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_every_dtype_has_its_size(dtype: str) -> None:
    assert tensor_size_bytes(dtype, (4, 2)) == DTYPE_BITS[dtype]


# --- what we refuse ----------------------------------------------------------------------------------------------------------------

CRAFTED = {
    "an empty file": b"",
    "a length without a header": struct.pack("<Q", 2),
    "a length beyond the file": struct.pack("<Q", 1 << 20) + b"{}",
    "a negative length": struct.pack("<q", -1) + b"{}",
    "a length over the limit": struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}",
    "no JSON": _file(b"{nonsense"),
    "bad UTF-8": _file(b'{"\xff": 1}'),
    "a list": _file(b"[]"),
    "leading spaces": _file(b"  {}"),
    "deep nesting": _file(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "a huge number": _file(b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', b"x"),
    "a NaN": _file(b'{"a":NaN}'),
    "a name twice": _file(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"
    ),
    "metadata that is no object": _file({"__metadata__": [1]}),
    "metadata that is no text": _file({"__metadata__": {"a": 1}}),
    "a tensor that is no object": _file({"a": 1}),
    "a tensor with a field too many": _file({"a": _tensor(0, 1) | {"x": 1}}, b"x"),
    "a tensor without a dtype": _file({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"x"),
    "an unknown dtype": _file({"a": _tensor(0, 1, "Q8")}, b"x"),
    "a dtype that is a list": _file({"a": _tensor(0, 1) | {"dtype": ["U8"]}}, b"x"),
    "a wrong size": _file({"a": _tensor(0, 3, "F32", [1])}, b"xxx"),
    "a negative size": _file({"a": _tensor(0, 1, "U8", [-1])}, b"x"),
    "a size that is true": _file({"a": _tensor(0, 1, "U8", [True])}, b"x"),
    "a size with a fraction": _file({"a": _tensor(0, 1, "U8", [1.0])}, b"x"),
    "too many dimensions": _file({"a": _tensor(0, 1, "U8", [1] * 65)}, b"x"),
    "an empty tensor of an impossible shape": _file({"a": _tensor(0, 0, "U8", [0, 1 << 62, 1 << 62])}),
    "half a byte": _file({"a": _tensor(0, 1, "F4", [1])}, b"x"),
    "offsets before the data": _file({"a": {"dtype": "U8", "shape": [2], "data_offsets": [-1, 1]}}, b"x"),
    "offsets that go back": _file({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 0]}}, b"x"),
    "three offsets": _file({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}}, b"x"),
    "offsets beyond the file": _file({"a": _tensor(0, 2)}, b"x"),
    "tensors that overlap": _file({"a": _tensor(0, 2), "b": _tensor(1, 3)}, b"xxx"),
    "a hole between tensors": _file({"a": _tensor(0, 1), "b": _tensor(2, 3)}, b"xxx"),
    "a hole before the first": _file({"a": _tensor(1, 2)}, b"xx"),
    "bytes left over": _file({"a": _tensor(0, 1)}, b"xx"),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_a_crafted_header_is_refused_by_name(what: str) -> None:
    data = CRAFTED[what]
    with pytest.raises(InvalidInput, match="read safetensors header"):
        parse_header(data, len(data))


def test_a_header_of_a_hundred_megabytes_is_refused_before_it_is_read() -> None:
    with pytest.raises(InvalidInput, match="claims"):
        header_size_bytes(struct.pack("<Q", 200_000_000), 1 << 40)


@PATIENT
@given(st.binary(max_size=300), st.integers(0, 400))
def test_no_bytes_make_the_header_parser_fail_otherwise(data: bytes, size_bytes: int) -> None:
    for candidate in (data, _file(data)):
        try:
            parse_header(candidate, size_bytes)
        except InvalidInput:
            continue


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab$/é", max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text("ab$/é", max_size=8), children, max_size=3),
    max_leaves=10,
)
_sizes = st.lists(st.integers(-1, 4) | st.just(1 << 63) | _json, max_size=3)
_entry = st.fixed_dictionaries({"dtype": st.sampled_from(["U8", "F32", "F4", "X"]) | _json, "shape": _sizes, "data_offsets": _sizes})


@PATIENT
@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), _entry | _json, max_size=3), st.integers(0, 16))
def test_a_header_that_is_nearly_right_is_whole_or_refused(document: dict[str, Any], data_size_bytes: int) -> None:
    data = _file(document)
    try:
        header = parse_header(data, len(data) + data_size_bytes)
    except InvalidInput:
        return
    assert sum(entry.size_bytes for entry in header.tensors.values()) == data_size_bytes


# --- the part document -------------------------------------------------------------------------------------------------------------

HEADER = Header({"w": TensorEntry("w", "F32", (1,), 0, 4)}, {}, DATA_ALIGNMENT_BYTES)


def _part(state: Any, **others: Any) -> Header:
    text = json.dumps({"format": PART_FORMAT, "state": state} | others)
    return Header(HEADER.tensors, {PART_KEY: text}, HEADER.data_start)


def _parsed(header: Header) -> Any:
    return parse_part(header, Selection(None), {})


def test_an_outline_names_its_tensors() -> None:
    assert _parsed(_part({"a": {"$torch": "w"}, "b": [{"$tuple": [1]}]})) == {"a": TensorRef("$torch", "w"), "b": [(1,)]}


def _nested(depth: int) -> Any:
    state: Any = 0
    for _ in range(depth):
        state = [state]
    return state


BROKEN_STATES = {
    "a tensor that the header lacks": {"$torch": "v"},
    "a tensor without a key": {"$torch": None},
    "an unknown tag": {"$eval": "1"},
    "a tag beside a name": {"$torch": "w", "a": 1},
    "a tuple that is none": {"$tuple": 3},
    "pairs that are none": {"$dict": [[1]]},
    "the same key twice": {"$dict": [[1, 2], [1, 3]]},
    "keys that are equal": {"$dict": [[1, 2], [True, 3]]},
    "a key that is a list": {"$dict": [[[1], 2]]},
    "a key that is not a number": {"$dict": [[{"$float": "7ff8000000000000"}, 2]]},
    "an int that is none": {"$int": "zz"},
    "an int that is a list": {"$int": [1]},
    "a float that is too short": {"$float": "7ff8"},
    "a complex number that is half": {"$complex": "7ff8000000000000"},
    "bytes that are no base64": {"$bytes": "é"},
    "bytes that are a number": {"$bytes": 3},
    "deep nesting": _nested(150),
}


@pytest.mark.parametrize("what", BROKEN_STATES)
def test_a_broken_part_document_is_refused_by_name(what: str) -> None:
    with pytest.raises(InvalidInput):
        _parsed(_part({"inside": BROKEN_STATES[what]}))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format":"other","state":1}', "[" * 100_000, '{"format":NaN}', "9" * 5000])
def test_a_text_that_is_no_part_document_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        _parsed(Header({}, {PART_KEY: text}, 4096))


def test_a_safetensors_file_of_somebody_else_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="did not write it"):
        _parsed(HEADER)


_tags = st.sampled_from(
    ["$torch", "$array", "$dict", "$ordered", "$tuple", "$int", "$float", "$complex", "$bytes", "$size", "$scalar", "$x"]
)
_documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab$/é", max_size=6) | st.sampled_from(["w", "0x1f", "3ff0000000000000"]),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.text("ab$/é", max_size=3), children, max_size=3)
        | st.dictionaries(_tags, children, max_size=2)
    ),
    max_leaves=12,
)


@PATIENT
@given(_documents)
def test_no_document_makes_the_part_parser_fail_otherwise(document: Any) -> None:
    from ckptstore_client.frameworks import leaf_decoders

    try:
        parse_part(_part(document), Selection(["a*", "*/b"]), leaf_decoders())
    except InvalidInput:
        return
