"""Which paths the namespace accepts.

A path is exact UTF-8, absolute, not normalised, without control characters; a segment has at most 200 bytes and a path 800, since
S3 allows a key 1,024 bytes with our prefix and id, and a file system 255 bytes a name with `~<id>` behind it. Names that begin with
`@` are reserved: `@latest` is answered by the store.
"""

from __future__ import annotations

import math
import os
import time
import unicodedata

from ckptstore.errors import InvalidInput

MAX_SEGMENT_BYTES = 200
MAX_PATH_BYTES = 800
LATEST = "@latest"
#: Where removed checkpoints wait until they go for good: `/@trash/<second since 1970>/<where it was>`.
TRASH = "@trash"
INDEX_NAME = "checkpoint.json"
#: The one file more of a checkpoint whose tensors are spread over its ranks: see `shards`.
SHARDS_NAME = "shards.json"


def _refuse(path: str, why: str, operation: str) -> InvalidInput:
    shown = path if len(path) <= 120 else path[:117] + "..."
    return InvalidInput(why, operation=operation, subject=repr(shown))


def check_segment(segment: str, *, whole: str, operation: str = "use path", reserved_allowed: bool = False) -> str:
    """`segment`, if it may be one name in a path; `whole` is what the error quotes."""
    if segment == "":
        raise _refuse(whole, "the path has an empty name (two slashes, or one at its end)", operation)
    if segment in (".", ".."):
        raise _refuse(whole, f"the path has the name {segment!r}; paths are exact, not relative", operation)
    if segment.startswith("@") and not reserved_allowed:
        raise _refuse(whole, f"the name {segment!r} is reserved: it begins with '@'", operation)
    try:
        size_bytes = len(segment.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise _refuse(whole, "the path is not valid UTF-8", operation) from error
    if size_bytes > MAX_SEGMENT_BYTES:
        raise _refuse(whole, f"a name in the path has {size_bytes} bytes; {MAX_SEGMENT_BYTES} are allowed", operation)
    if any(unicodedata.category(character) == "Cc" for character in segment):
        raise _refuse(whole, "the path has a control character", operation)
    return segment


def check_path(path: object, *, operation: str = "use path", latest_allowed: bool = False) -> str:
    """`path`, if it is a valid absolute path other than the root; else InvalidInput that says which rule it breaks."""
    if not isinstance(path, str):
        raise InvalidInput(f"a path is a str, not {type(path).__name__}", operation=operation, subject=repr(path)[:120])
    if not path.startswith("/"):
        raise _refuse(path, "the path is relative; it must begin with '/'", operation)
    if path == "/":
        raise _refuse(path, "the root itself cannot be used here", operation)
    segments = path[1:].split("/")
    for position, segment in enumerate(segments):
        last = position == len(segments) - 1
        check_segment(segment, whole=path, operation=operation, reserved_allowed=latest_allowed and last and segment == LATEST)
    if (size_bytes := len(path.encode("utf-8"))) > MAX_PATH_BYTES:
        raise _refuse(path, f"the path has {size_bytes} bytes; {MAX_PATH_BYTES} are allowed", operation)
    return path


def check_tree_path(path: object, *, operation: str = "look") -> str:
    """Like `check_folder`, for readers: any name in it may be `@latest`."""
    if not isinstance(path, str):
        return check_folder(path, operation=operation)
    check_folder("/".join("latest" if name == LATEST else name for name in path.split("/")), operation=operation)
    return path.removesuffix("/") or "/"


def trash_path(path: str, until_s: float) -> str:
    """Where what was at `path` waits until that second. InvalidInput if such a path would be too long."""
    trashed = f"/{TRASH}/{math.ceil(until_s):012d}{path}"
    if (size_bytes := len(trashed.encode("utf-8"))) > MAX_PATH_BYTES:
        raise _refuse(path, f"its path in the trash would have {size_bytes} bytes; {MAX_PATH_BYTES} are allowed", "move to trash")
    return trashed


def from_trash(path: str) -> tuple[str, float] | None:
    """Where what lies in the trash at `path` was, and until when it waits; None for any other path."""
    _, first, until, *rest = (path + "///").split("/", 3)
    if first != TRASH or not until.isdecimal() or not (where := "".join(rest).rstrip("/")):
        return None
    return f"/{where}", float(until)


def check_stored_path(path: str, *, operation: str = "use path") -> str:
    """Like `check_path`, for what may also lie in the trash."""
    trashed = from_trash(path)
    if trashed is None:
        return check_path(path, operation=operation)
    check_path(trashed[0], operation=operation)
    return trash_path(*trashed)


def check_folder(path: object, *, operation: str = "list") -> str:
    """Like `check_path`, but `/` is allowed and one slash at the end is forgiven: a folder is what is meant."""
    if path == "/":
        return "/"
    if isinstance(path, str) and path.endswith("/"):
        path = path[:-1]
    return check_path(path, operation=operation)


def check_relative(name: object, *, operation: str = "put") -> str:
    """`name`, if it may name a file inside a published folder (`a/b.txt`)."""
    if not isinstance(name, str) or name == "":
        raise InvalidInput("a file's name is a non-empty str", operation=operation, subject=repr(name)[:120])
    for segment in name.split("/"):
        check_segment(segment, whole=name, operation=operation)
    return name


def parent_and_name(path: str) -> tuple[str, str]:
    """`/a/b` → (`/a`, `b`); `/a` → (`/`, `a`)."""
    parent, _, name = path.rpartition("/")
    return parent or "/", name


def ancestors(path: str) -> list[str]:
    """The folders above `path`, outermost first, without the root: `/a/b/c` → [`/a`, `/a/b`]."""
    segments = path[1:].split("/")[:-1]
    return ["/" + "/".join(segments[: i + 1]) for i in range(len(segments))]


def is_below(path: str, folder: str) -> bool:
    return path.startswith("/" if folder == "/" else folder + "/")


def join(folder: str, name: str) -> str:
    """`/a` and `b/c` → `/a/b/c`."""
    return f"/{name}" if folder == "/" else f"{folder}/{name}"


def new_id() -> str:
    """32 hexadecimal digits: 12 of the time in milliseconds, so that ids sort by age in an index, and 20 random."""
    return f"{time.time_ns() // 1_000_000:012x}"[-12:] + os.urandom(10).hex()


def is_id(text: object) -> bool:
    """Whether `text` has the form of an id (which is also safe as a file name)."""
    return isinstance(text, str) and len(text) == 32 and all(c in "0123456789abcdef" for c in text)


def object_key(path: str, object_id: str) -> str:
    """The readable key under which every tier stores an object: `objects/<path>~<id>`."""
    return f"objects{path}~{object_id}"
