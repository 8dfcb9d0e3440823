"""Which keys an object tier accepts: relative, exact UTF-8, without names that a server, a proxy or a file system would rewrite."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from ckptstore.errors import InvalidInput

#: S3 allows 1,024 bytes for the key with the tier's own prefix.
MAX_KEY_BYTES = 1024
#: A file system allows 255 bytes a name, and an object must be able to move there.
MAX_NAME_BYTES = 255


def check_key(key: str, *, operation: str, tier: str, named: Callable[[str], str] = str) -> str:
    """`key`, if an object may have that name; else InvalidInput that says which rule it breaks. `named`: how the store spells it."""

    def refused(why: str) -> InvalidInput:
        return InvalidInput(why, operation=operation, subject=repr(key)[:120], tier=tier)

    if not isinstance(key, str):
        raise refused(f"a key is a str, not {type(key).__name__}")
    try:
        size_bytes = len(named(key).encode("utf-8"))
    except UnicodeEncodeError as error:
        raise refused("the key is not valid UTF-8") from error
    if size_bytes > MAX_KEY_BYTES:
        raise refused(f"as the store spells it the key has {size_bytes} bytes; {MAX_KEY_BYTES} are allowed")
    for name in key.split("/"):
        if name in ("", ".", ".."):
            raise refused(f"the key has the name {name!r}; keys are relative and exact")
        if len(name.encode("utf-8")) > MAX_NAME_BYTES:
            raise refused(f"a name in the key has more than {MAX_NAME_BYTES} bytes")
        if any(unicodedata.category(character) == "Cc" for character in name):
            raise refused("the key has a control character")
    return key
