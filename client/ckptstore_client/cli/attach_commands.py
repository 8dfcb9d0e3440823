"""`attach`, `detach`, `attachments`: storage of others under the namespace, without copying anything."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from ckptstore.durations import parse_duration
from ckptstore.errors import InvalidInput
from ckptstore_client.cli.invocation import CommandGroup, Invocation
from ckptstore_client.cli.namespace_commands import PathArgument
from ckptstore_client.cli.status_view import table
from ckptstore_client.cli.terminal import visible


def register(root: CommandGroup) -> None:
    root.command("attach")(attach)
    root.command("detach")(detach)
    root.command("attachments")(attachments)


def attach(
    invocation: Invocation,
    url: Annotated[str, typer.Argument(metavar="URL", help="s3://bucket/prefix, an absolute path, or any fsspec URL.")],
    path: PathArgument,
    read_only: Annotated[bool, typer.Option("--read-only", help="Never write there. It is so in any case.")] = True,
    refresh: Annotated[str, typer.Option(metavar="TIME", help="How old what is shown may be: 30s, 5m, 0s.")] = "30s",
    credentials: Annotated[str | None, typer.Option(metavar="PROFILE", help="A profile of ~/.aws, on each node.")] = None,
    option: Annotated[list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="endpoint_url=…, say; repeatable.")] = None,
) -> None:
    """Show what lies in a bucket, a folder or at any fsspec URL below a path.

    Nothing is copied: files appear at once, are read when somebody reads them, and the node keeps what was read. On the daemon's own node.

    Example: ckptstore attach s3://bucket/models /models/public --credentials readers --refresh 1m
    """
    with invocation.store() as store:
        made = store.attach(
            url, path, read_only=read_only, refresh_s=_seconds(refresh), credentials=credentials, options=_options(option or [])
        )
        is_empty = next(store.ls(made.path), None) is None
    if is_empty:
        invocation.terminal.note(f"nothing lies at {made.url} yet: is the URL right?")
    shown = Text("attached ") + invocation.terminal.name(made.url) + Text(" at ") + invocation.terminal.name(made.path)
    invocation.terminal.result(made, shown)


def detach(invocation: Invocation, path: PathArgument) -> None:
    """Show attached storage no longer. Nothing of it is changed, and who has a file open reads on.

    Example: ckptstore detach /models/public
    """
    with invocation.store() as store:
        gone = store.detach(path)
    terminal = invocation.terminal
    terminal.result(gone, Text("detached ") + terminal.name(gone.url) + Text(" from ") + terminal.name(gone.path))


def attachments(invocation: Invocation) -> None:
    """Show which storage is attached where, and whether it answers.

    Example: ckptstore attachments
    """
    terminal = invocation.terminal
    with invocation.store() as store:
        found = store.attachments()
    shown = table("PATH", "URL", "REFRESH", "CREDENTIALS", "STATE", right=("REFRESH",), fold=("PATH", "URL", "STATE"))
    for one in found:
        state = Text("ok", style="green") if one.down is None else Text(visible(one.down), style="bold red")
        profile = Text(visible(one.credentials or "-"))
        shown.add_row(terminal.name(one.path), terminal.name(one.url), f"{one.refresh_s:g} s", profile, state)
    terminal.result({"attachments": [one.model_dump(mode="json") for one in found]}, shown if found else Text("nothing is attached"))


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise InvalidInput(str(error), operation="attach", subject="--refresh") from error


def _options(given: list[str]) -> dict[str, str]:
    """NAME=VALUE, each once."""
    options: dict[str, str] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name or name in options:
            raise InvalidInput("an option is NAME=VALUE, each name once", operation="attach", subject=name or text)
        options[name] = value
    return options
