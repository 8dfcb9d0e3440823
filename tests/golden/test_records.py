"""Commit records and tombstones: versions 1, 2 and 3 stay byte for byte as they are, and what is not as it was written is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import xxhash

from ckptstore.errors import ChecksumMismatch, CkptStoreError, InvalidInput
from ckptstore.records import read_record, read_tombstone, write_record
from tests.golden.make_records import (
    PUBLICATION,
    files_v1,
    header_v1,
    header_v2,
    header_v3,
    record_v1,
    record_v2,
    record_v3,
    references_v2,
    tombstone_v1,
)

HERE = Path(__file__).parent


def _sealed(lines: list[bytes]) -> bytes:
    """The lines with a last line that fits them: what somebody would write who knows the format and not its rules."""
    body = b"".join(line + b"\n" for line in lines)
    end = {"end": len(lines) - 1, "digest": xxhash.xxh3_128_hexdigest(body)}
    return body + json.dumps(end).encode() + b"\n"


def _lines() -> list[bytes]:
    return record_v1().split(b"\n")[:-2]


def test_version_1_is_written_as_it_always_was() -> None:
    assert record_v1() == (HERE / "record-v1.jsonl").read_bytes()
    assert tombstone_v1() == (HERE / "tombstone-v1.json").read_bytes()


def test_version_1_is_read_as_it_was_meant() -> None:
    record = read_record((HERE / "record-v1.jsonl").read_bytes(), subject="golden")
    assert record.header == header_v1()
    assert list(record.files()) == files_v1()
    tombstone = read_tombstone((HERE / "tombstone-v1.json").read_bytes(), subject="golden")
    assert (tombstone.publication_id, tombstone.sequence) == (PUBLICATION, 42)


def test_version_2_is_written_and_read_as_it_always_was() -> None:
    assert record_v2() == (HERE / "record-v2.jsonl").read_bytes()
    record = read_record((HERE / "record-v2.jsonl").read_bytes(), subject="golden")
    assert record.header == header_v2()
    assert (list(record.files()), list(record.references())) == (files_v1(), references_v2())


def test_version_3_is_written_and_read_as_it_always_was() -> None:
    assert record_v3() == (HERE / "record-v3.jsonl").read_bytes()
    record = read_record((HERE / "record-v3.jsonl").read_bytes(), subject="golden")
    assert record.header == header_v3()
    assert (list(record.files()), list(record.references())) == (files_v1(), references_v2())


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b'"version":3', b'"version":2', "version 3, and no other"),
        (b'"stored_as":"/runs/', b'"stored_as":"/../', r"'\.\.'"),
        (b'"stored_as":"/runs/', b'"stored_as":"/walks/', "not that of its file"),
    ],
)
def test_a_moved_record_that_breaks_a_rule_is_refused_by_name(old: bytes, new: bytes, why: str) -> None:
    lines = record_v3().split(b"\n")[:-2]
    assert old in lines[0]
    lines[0] = lines[0].replace(old, new, 1)
    with pytest.raises(InvalidInput, match=why):
        list(read_record(_sealed(lines), subject="crafted").files())


@pytest.mark.parametrize(
    ("line", "old", "new", "why"),
    [
        (0, b'"version":2', b'"version":1', "3 of 3|3 files"),
        (3, b'"publication_id":"0199', b'"publication_id":"xx99', "publication_id"),
        (3, b'"path":"/runs/', b'"path":"/../', r"'\.\.'"),
        (3, b'"path":"/runs/', b'"path":"/walks/', "not that of its file"),
        (3, b'"size":5000', b'"size":-1', "size"),
    ],
)
def test_a_reference_that_breaks_a_rule_is_refused_by_name(line: int, old: bytes, new: bytes, why: str) -> None:
    lines = record_v2().split(b"\n")[:-2]
    assert old in lines[line]
    lines[line] = lines[line].replace(old, new, 1)
    with pytest.raises(InvalidInput, match=why):
        list(read_record(_sealed(lines), subject="crafted").references())


@pytest.mark.parametrize("length", [0, 1, 100, 500, -1, -2, -40])
def test_a_record_that_was_cut_off_anywhere_is_refused(length: int) -> None:
    with pytest.raises(ChecksumMismatch):
        read_record(record_v1()[:length], subject="golden")


def test_a_record_with_any_byte_flipped_is_refused() -> None:
    good = record_v1()
    for place in range(0, len(good), 7):
        bad = bytearray(good)
        bad[place] ^= 0x04
        with pytest.raises(CkptStoreError) as refusal:
            list(read_record(bytes(bad), subject="golden").files())
        assert isinstance(refusal.value, ChecksumMismatch | InvalidInput)


@pytest.mark.parametrize(
    ("line", "old", "new", "why"),
    [
        (0, b'"version":1', b'"version":4', "version 4"),
        (0, b'"format":"ckptstore-record"', b'"format":"other"', "no ckptstore-record"),
        (0, b'"path":"/runs/', b'"path":"/../', r"'\.\.'"),
        (0, b'"sequence":42', b'"sequence":"42"', "sequence"),
        (0, b'"world_size":2', b'"world_size":2,"surprise":1', "surprise"),
        (0, b'"complete":false', b'"complete":true', "2 of 3"),
        (1, b'"key":"objects/runs', b'"key":"objects/../../etc', "not that of its file"),
        (1, b'"name":"checkpoint.json"', b'"name":"../x"', r"'\.\.'"),
        (1, b'"size":2', b'"size":-2', "size"),
        (1, b'"blocks":"', b'"blocks":"?', "base64"),
        (1, b'"rank":0', b'"rank":null', "rank"),
        (2, b'"name":"rank-00000', b'"name":"a-00000', "not that of its file"),
    ],
)
def test_a_record_that_breaks_a_rule_is_refused_by_name(line: int, old: bytes, new: bytes, why: str) -> None:
    lines = _lines()
    assert old in lines[line]
    lines[line] = lines[line].replace(old, new, 1)
    with pytest.raises(InvalidInput, match=why):
        list(read_record(_sealed(lines), subject="crafted").files())


def test_files_out_of_order_or_twice_are_refused() -> None:
    head, first, second = _lines()
    for lines in ([head, second, first], [head, first, first]):
        with pytest.raises(InvalidInput, match="not in order"):
            list(read_record(_sealed(lines), subject="crafted").files())


def test_more_files_than_the_publication_has_are_refused() -> None:
    header = header_v1().model_copy(update={"file_count": 1, "complete": True})
    with pytest.raises(InvalidInput, match="2 of 1 files"):
        read_record(b"".join(write_record(header, files_v1())), subject="crafted")


@pytest.mark.parametrize("document", [b"", b"[]", b"{}", b"\xff", tombstone_v1()[:-10], tombstone_v1().replace(b":42", b":-1")])
def test_a_tombstone_of_another_form_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_tombstone(document, subject="crafted")
