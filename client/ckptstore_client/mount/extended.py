"""What do extended attributes tell about a file? Where it is, what it is called inside, its checksum, and how durable it is.

`getfattr -d -m user.ckptstore FILE` shows them. They speak of the version that the file stands for; of one that was replaced or removed
since, only what never changes is told.
"""

from __future__ import annotations

from ckptstore.tree_messages import TreeInfo
from ckptstore_client.mount.nodes import Node

PREFIX = "user.ckptstore."


def extended_attributes(node: Node, info: TreeInfo | None) -> dict[str, bytes]:
    """`info`: what is at the node's path now."""
    told: dict[str, str | None] = {"path": node.path}
    if node.kind == "file":
        told["version"] = node.version
        current = info is not None and info.version == node.version
        told["current"] = "yes" if current else "no"
        if current and info is not None:
            told["object"] = info.version if info.origin is None else None
            told["sha256"] = info.sha256
            told["origin"] = info.origin
            told["durability"] = ",".join(info.durability) or None
            told["tier"] = "local" if info.whole else "remote"
            told["best_effort"] = "yes" if info.best_effort else None
    return {PREFIX + name: value.encode() for name, value in told.items() if value is not None}
