"""Which keys a tier accepts: relative, normalised, and safe as a path below a folder or a prefix.

`ckptstore.paths` rules over what users may call their files; this is the second lock, at the tier's own door, so that no key
made from a hostile document or request leaves the tier's root or touches its unfinished files.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from ckptstore.errors import InvalidInput

#: Where a posix tier keeps unfinished files; no key begins with it, in any tier.
UNFINISHED = "tmp"
#: Where the daemon may keep its copies of other files in a posix tier's root: not the tier's, and not counted as its objects.
COPIES = "cache"
#: A file name has at most 255 bytes, and an unfinished file is called like its object with 13 characters more.
MAX_NAME_BYTES = 240
#: What S3 allows for a whole key.
MAX_OBJECT_KEY_BYTES = 1024


def check_key(key: str, *, operation: str, tier: str) -> str:
    """`key`, if a tier may store under it; else InvalidInput that says why."""
    if not isinstance(key, str) or (why := _fault(key)) is not None:
        why = why if isinstance(key, str) else f"a key is a str, not {type(key).__name__}"
        raise InvalidInput(why or "", operation=operation, subject=repr(key)[:200], tier=tier)
    return key


def check_object_key(key: str, *, operation: str, tier: str, named: Callable[[str], str] = str) -> str:
    """`check_key`, and the key as the object store spells it (`named`: with the tier's own prefix) within S3's limit."""
    check_key(key, operation=operation, tier=tier)
    if (size_bytes := len(named(key).encode("utf-8"))) > MAX_OBJECT_KEY_BYTES:
        why = f"as the store spells it the key has {size_bytes} bytes; {MAX_OBJECT_KEY_BYTES} are allowed"
        raise InvalidInput(why, operation=operation, subject=repr(key)[:120], tier=tier)
    return key


def _fault(key: str) -> str | None:
    names = key.split("/")
    if key == "" or "" in names:
        return "the key is empty, absolute, or has an empty name in it"
    if "." in names or ".." in names:
        return "the key has a relative name in it"
    if names[0] in (UNFINISHED, COPIES):
        return f"{names[0]!r} is where {'unfinished files' if names[0] == UNFINISHED else 'copies of other files'} are"
    try:
        longest = max(len(name.encode("utf-8")) for name in names)
    except UnicodeEncodeError:
        return "the key is not valid UTF-8"
    if longest > MAX_NAME_BYTES:
        return f"a name in the key has {longest} bytes; {MAX_NAME_BYTES} are allowed"
    if any(unicodedata.category(character) == "Cc" for character in key):
        return "the key has a control character"
    return None


def unfinished_owner(key: str) -> str:
    """What `sweep` knows a key's leftovers by: the id behind the last `~`, or else the key's last name."""
    last = key.rpartition("/")[2]
    return last.rpartition("~")[2] if "~" in last else last
