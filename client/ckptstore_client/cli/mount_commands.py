"""`mount`, `umount`, `pull`: the tree as files of this machine, for programs that know nothing of the store."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ckptstore.config import read_settings
from ckptstore.errors import InvalidInput, NotFound
from ckptstore.paths import check_tree_path
from ckptstore_client.cli.invocation import CommandGroup, Invocation
from ckptstore_client.cli.namespace_commands import PathArgument
from ckptstore_client.cli.terminal import size, visible
from ckptstore_client.cli.transfer_commands import TRANSFER_COLUMNS, bar, told_by_option

if TYPE_CHECKING:
    from ckptstore_client.pull import Owner

MountPoint = Annotated[Path, typer.Argument(metavar="MOUNTPOINT", help="An empty folder of this machine.")]


def register(root: CommandGroup) -> None:
    root.command("mount")(mount)
    root.command("umount")(umount)
    root.command("pull")(pull)


def mount(
    invocation: Invocation,
    mountpoint: MountPoint,
    path: Annotated[str, typer.Option("--path", metavar="PATH", help="The folder that is shown; nothing outside it can be reached.")] = "/",
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay until it is unmounted: for systemd and containers.")] = False,
    allow_other: Annotated[bool, typer.Option("--allow-other", help="Let other users of this machine read it, too.")] = False,
    passthrough: Annotated[
        bool, typer.Option("--passthrough/--no-passthrough", help="Let the kernel read whole files by itself, where it can.")
    ] = True,
) -> None:
    """Show the tree as a folder of this machine, read-only.

    It returns once files can be read there. `ckptstore umount` takes it away.

    Example: ckptstore mount /mnt/models --path /models --allow-other
    """
    from ckptstore_client.mount import mounting
    from ckptstore_client.mount.task import MountOptions

    if invocation.url is not None:
        why = "a mount reads through its own node's daemon"
        raise InvalidInput(why, operation="mount", subject=invocation.url, hint="run one here: `ckptstore serve`")
    path = check_tree_path(path, operation="mount")
    with invocation.store() as store:
        if store.tree.look(path).kind != "folder":
            raise NotFound("a folder is mounted, not a file", operation="mount", subject=path)
    home = read_settings(home=invocation.home).home
    place = Path(os.path.realpath(mountpoint))
    options = MountOptions(str(place), path, str(home), passthrough=passthrough, allow_other=allow_other)
    if foreground:
        raise typer.Exit(mounting.serve_in_foreground(options))
    pid = mounting.mount(options, log=home / "mount.log")
    document = asdict(options) | {"pid": pid, "log": str(home / "mount.log")}
    invocation.terminal.result(document, f"{visible(path)} is mounted at {visible(str(place))} (pid {pid})")


def umount(
    invocation: Invocation,
    mountpoint: MountPoint,
    lazy: Annotated[bool, typer.Option("--lazy", help="At once, also if files are open: those are read to their end.")] = False,
) -> None:
    """Take a mount away.

    Example: ckptstore umount /mnt/models
    """
    from ckptstore_client.mount import mounting

    mounting.umount(mountpoint.absolute(), lazy=lazy)
    invocation.terminal.result({"mountpoint": str(mountpoint), "mounted": False}, f"{visible(str(mountpoint))} is unmounted")


def pull(
    invocation: Invocation,
    path: PathArgument,
    local: Annotated[Path, typer.Argument(metavar="DIR", help="Where the files are to be.")],
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of what is there, unless it is the same.")] = False,
    owner: Annotated[str | None, typer.Option("--owner", metavar="UID[:GID]", help="Whose the files are to be. Needs root.")] = None,
    target: Annotated[str | None, typer.Option("--target", metavar="DIR", help="Where a container is to see them, for `bind`.")] = None,
) -> None:
    """Make plain local files of what is at a path, for a container without FUSE.

    Files are cloned from the node's copies where the disk can do that, else copied; they appear all at once. The answer has a `bind` that
    `docker run --mount` takes.

    Example: ckptstore pull /models/minilm /srv/models/minilm --replace --owner 1000 --target /models
    """
    terminal = invocation.terminal
    local = local.absolute()
    whose = _owner(owner)
    with invocation.store() as store, terminal.progress(*TRANSFER_COLUMNS) as progress, told_by_option("pull"):
        pulled = store.tree.pull(path, local, replace=replace, owner=whose, progress=bar(progress, f"pulling {visible(path)}"))
    bind = f"type=bind,source={local},target={target or path},readonly"
    document = asdict(pulled) | {"local": str(local), "bind": bind}
    how = "already there" if pulled.current else f"{size(pulled.cloned_bytes)} of it cloned"
    told = f" ({pulled.files:,} files, {size(pulled.size_bytes)}, {how})\n--mount {bind}"
    terminal.result(document, Text("pulled ") + terminal.name(pulled.path) + Text(told))


def _owner(text: str | None) -> Owner | None:
    if text is None:
        return None
    uid, _, gid = text.partition(":")
    if not uid.isdigit() or not (gid or uid).isdigit():
        raise InvalidInput("an owner is UID or UID:GID, in numbers", operation="pull", subject=text)
    from ckptstore_client.pull import Owner

    return Owner(int(uid), int(gid or uid))
