"""Which model, version and file does a URL of the hub name? Parsed strictly: what comes out is safe to make a path of.

The path is taken as it was sent, since a revision is quoted (`refs%2Fpr%2F1`) and a file's name is not. A model's id is one or two names
by the hub's own rules; a file's name obeys those of the namespace, so that neither leads out of the models' folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from ckptstore.errors import InvalidInput
from ckptstore.paths import check_relative
from ckptstore_server.hugging_face.faults import EntryNotFound, RepoNotFound, RevisionNotFound

_NAME = re.compile(r"^[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?$")
_REVISION = re.compile(r"^[A-Za-z0-9_](?:[A-Za-z0-9._+-]{0,94}[A-Za-z0-9_])?$")
#: What may follow a model's id under /api/models.
ACTS = frozenset({"revision", "tree", "paths-info", "refs", "commits"})


@dataclass(frozen=True)
class FileAddress:
    """`/{repo}/resolve/{revision}/{name}`"""

    repo: str
    revision: str
    name: str


@dataclass(frozen=True)
class ModelAddress:
    """`/api/models/{repo}[/{act}/{revision}[/{name}]]`; `act` is "" for the model itself."""

    repo: str
    act: str = ""
    revision: str = "main"
    name: str = ""


@dataclass(frozen=True)
class ListAddress:
    """`/api/models`"""


@dataclass(frozen=True)
class WhoAmI:
    """`/api/whoami-v2`"""


Address = FileAddress | ModelAddress | ListAddress | WhoAmI


def parse(raw_path: bytes) -> Address:
    """The address behind the endpoint's prefix. NotFound, as one of the hub's kinds, or InvalidInput for what names nothing."""
    names = [_decoded(part) for part in raw_path.strip(b"/").split(b"/")]
    if names == ["api", "whoami-v2"]:
        return WhoAmI()
    if names[:2] == ["api", "models"]:
        return _model(names[2:])
    for place in (1, 2):
        if names[place : place + 1] in (["resolve"], ["raw"]) and len(names) > place + 2:
            return FileAddress(_repo(names[:place]), _revision(names[place + 1]), _file("/".join(names[place + 2 :])))
    raise RepoNotFound("no such route; models are served here, and no data sets or spaces", operation="read", subject="/".join(names)[:200])


def _model(names: list[str]) -> Address:
    if not names or names == [""]:
        return ListAddress()
    single = len(names) == 1 or (names[1] in ACTS and not (len(names) > 2 and names[2] in ACTS))
    repo, rest = _repo(names[: 1 if single else 2]), names[1 if single else 2 :]
    if not rest:
        return ModelAddress(repo)
    act, rest = rest[0], rest[1:]
    if act not in ACTS or (not rest and act != "refs"):
        raise EntryNotFound("no such route", operation="read", subject="/".join(names)[:200])
    name = "/".join(rest[1:])
    return ModelAddress(repo, act, _revision(rest[0]) if rest else "main", _file(name) if name else "")


def _decoded(part: bytes) -> str:
    try:
        return unquote_to_bytes(part).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput("the URL is not UTF-8", operation="read", subject=repr(part[:80])) from error


def _repo(names: list[str]) -> str:
    repo = "/".join(names)
    if any(not _NAME.match(name) or "--" in name or ".." in name for name in names) or len(repo) > 96 or repo.endswith(".git"):
        raise RepoNotFound("this is no id of a model", operation="read", subject=repr(repo[:200]))
    return repo


def _revision(text: str) -> str:
    if not _REVISION.match(text) or ".." in text:
        raise RevisionNotFound("there is no such revision", operation="read", subject=repr(text[:200]))
    return text


def _file(name: str) -> str:
    """InvalidInput unless it may name a file of the namespace."""
    return check_relative(name, operation="read")
