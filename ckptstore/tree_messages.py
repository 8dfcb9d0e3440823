"""What readers of the one tree ask the daemon: mount, fsspec, the Hugging Face endpoint, `pull`, the command line.

The tree is everything at once: published checkpoints and files, the folders above them, `@latest` as a link, and attached storage. Whoever
reads it needs to know neither objects nor replicas nor origins.

    GET /v1/tree/info?path=P[&resolve=true]     TreeInfo       NotFound; with `resolve`, a path may go through `@latest`
    GET /v1/tree/list?path=P[&after=N&limit=K]  FileListing    names in byte order
    GET /v1/tree/content?path=P&version=V       the bytes; Range gives 206; ETag is the version. StaleVersion if P is another version now
                                                and the bytes of V cannot be had any more
    GET /v1/tree/changes?seen=N&timeout_s=S     TreeChanges    when something changed after N, or after S seconds; with `follower=F` it says
                                                also that F has acted on N: whoever changes something here waits for that, a moment

and over the descriptor socket, for readers on the node:

    FdLook     → FdLooked              what is at a path: what `tree/info` says, for a tenth of its cost
    FdOpenFile → FdFile + descriptor   of the node's own copy, read-only; `whole`: every byte of it is there and verified
    FdNeed     → FdReady               when these bytes of a copy that is not whole can be read from its descriptor

One open is one version: what a descriptor, or a `version`, stands for never changes.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ckptstore.wire import Count, Message, Text

#: How old what is told of attached storage may be, unless one says otherwise.
REFRESH_S = 30.0


class TreeInfo(Message):
    """What is at a path of the tree."""

    path: str
    kind: Literal["file", "folder", "link"]
    size_bytes: Count = 0
    #: Names these bytes and no others: an object id, or for attached storage a digest of where it lives and its version there.
    version: str = ""
    modified_s: float = 0.0
    #: of a link: the path that it stands for
    target: str | None = None
    #: of the whole content, where it is known (fixed at publish); attached storage may not have one
    sha256: str | None = None
    #: where attached storage keeps it ("s3://bucket/key"); None for what was saved or put here
    origin: str | None = None
    #: the version can not be told from a changed one for certain (a backend without ETag, or one younger than two seconds)
    best_effort: bool = False
    #: every byte lies on this node, in a file that can be opened
    whole: bool = False
    #: the tiers that hold all of it, in order; empty for attached storage
    durability: tuple[str, ...] = ()


class FileListing(Message):
    entries: list[TreeInfo]
    #: give it as `after` to go on (no name, where storage is attached); None: that was all
    after: str | None = None
    #: what attached storage has here under names that no path can have, or as links that lead out of it
    skipped: Count = 0
    #: of attached storage: for so many seconds the same would be said again; None: what changes is told (`tree/changes`)
    good_for_s: float | None = None


class AttachStorage(Message):
    """POST /v1/attachments, on the daemon's own node: show what lies at `url` below `path`."""

    path: str
    url: str
    read_only: bool = True
    #: how old an answer about what is there may be
    refresh_s: float = Field(REFRESH_S, ge=0, le=86_400)
    #: the profile that has the credentials; never a secret itself
    credentials: Text | None = None
    options: dict[str, str] = Field(default_factory=dict)


class AttachmentInfo(AttachStorage):
    attached_at_s: float = 0.0
    #: why it does not answer now; None while it does, or was not asked yet
    down: str | None = None


class AttachmentList(Message):
    attachments: list[AttachmentInfo]


class TreeChanges(Message):
    """What changed in the tree, attached storage aside, up to the change with the number `seen`."""

    seen: int
    #: what was published, each path with all below it; None: it is not known what, so anything may have changed
    paths: list[str] | None = None


class FdLook(Message):
    """Ask what is at a path."""

    op: Literal["look"] = "look"
    path: str


class FdLooked(Message):
    """The answer to FdLook: either of them."""

    info: TreeInfo | None = None
    error: dict[str, Any] | None = None


class FdOpenFile(Message):
    """Ask for the node's copy of a file; with `version`, of that one (StaleVersion if it cannot be had any more).

    Without a path, `version` is an object of the store, wherever that is published.
    """

    op: Literal["open_file"] = "open_file"
    path: str
    version: str = ""


class FdFile(Message):
    """The answer to FdOpenFile; or `error`, and no descriptor.

    With `whole`, the file behind the descriptor will never be written, truncated or punched again. Without, a read of bytes that were not
    asked for by FdNeed gives zeros. No descriptor and `streamed`: the node has no room for a copy; read by GET /v1/tree/content.
    """

    version: str = ""
    #: names the file behind the descriptor, for FdNeed: of one version there may be another one later
    copy_id: str = ""
    size_bytes: Count = 0
    whole: bool = False
    streamed: bool = False
    error: dict[str, Any] | None = None


class FdNeed(Message):
    """Answered by FdReady once `size_bytes` from `offset_bytes` on can be read from the descriptor that came with `copy_id`.

    The error NotFound: that copy is kept no longer (it gave way to others, or a block of it was damaged); open the file again, with its
    version, and read from the new descriptor. TierFull: the node cannot keep these bytes; read them by GET /v1/tree/content.
    """

    op: Literal["need"] = "need"
    version: str
    copy_id: str
    offset_bytes: Count
    size_bytes: Count
    #: nothing beside these is wanted: what else lies in the file is not fetched ahead
    exact: bool = False
