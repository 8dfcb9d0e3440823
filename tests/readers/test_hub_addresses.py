"""Whatever a URL says, what is parsed from it stays below the models' folder, or is refused by one of our errors."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import CkptStoreError
from ckptstore.paths import check_path, join
from ckptstore_server.hugging_face.addresses import FileAddress, ListAddress, ModelAddress, WhoAmI, parse

NAMES = st.sampled_from(
    ["api", "models", "resolve", "raw", "tree", "revision", "paths-info", "refs", "main", "..", ".", "", "org", "a.b", "@latest", "x--y"]
)
PARTS = st.lists(st.one_of(NAMES, st.text(max_size=12)), max_size=8)


def check_safe(raw: bytes) -> None:
    try:
        address = parse(raw)
    except CkptStoreError:
        return
    if not isinstance(address, FileAddress | ModelAddress):
        assert isinstance(address, ListAddress | WhoAmI)
        return
    folder = join("/models", address.repo)
    for path in (folder, f"{folder}@{address.revision}", *([join(folder, address.name)] if address.name else [])):
        assert check_path(path).startswith("/models/")
    assert address.repo.count("/") <= 1


@given(st.binary(max_size=80))
def test_any_bytes_are_parsed_safely(raw: bytes) -> None:
    check_safe(raw)


@given(PARTS, st.booleans(), st.booleans())
def test_any_names_quoted_or_not_are_parsed_safely(parts: list[str], quoted: bool, slashes: bool) -> None:
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    check_safe(b"/".join(quote(part, safe="/" if slashes else "").encode() if quoted else part for part in encoded))


@pytest.mark.parametrize(
    ("raw", "address"),
    [
        (b"org/name/resolve/main/a/b.txt", FileAddress("org/name", "main", "a/b.txt")),
        (b"gpt2/resolve/main/config.json", FileAddress("gpt2", "main", "config.json")),
        (b"org/name/raw/v1.0/a%20b", FileAddress("org/name", "v1.0", "a b")),
        (b"api/models/org/name", ModelAddress("org/name")),
        (b"api/models/gpt2", ModelAddress("gpt2")),
        (b"api/models/gpt2/tree/main", ModelAddress("gpt2", "tree")),
        (b"api/models/org/tree/tree/main/a/b", ModelAddress("org/tree", "tree", "main", "a/b")),
        (b"api/models/org/name/revision/v1", ModelAddress("org/name", "revision", "v1")),
        (b"api/models/org/name/refs", ModelAddress("org/name", "refs")),
        (b"api/models", ListAddress()),
        (b"api/whoami-v2", WhoAmI()),
    ],
)
def test_what_clients_send_is_understood(raw: bytes, address: object) -> None:
    assert parse(raw) == address
