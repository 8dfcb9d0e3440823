"""`tag`: what is said about a checkpoint, and saying more."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ckptstore.errors import InvalidInput
from ckptstore_client.cli.invocation import CommandGroup, Invocation
from ckptstore_client.cli.namespace_commands import PathArgument
from ckptstore_client.cli.terminal import visible


def register(root: CommandGroup) -> None:
    root.command("tag")(tag)


def tag(
    invocation: Invocation,
    path: PathArgument,
    values: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="What to set; none: show what is there.")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", metavar="KEY", help="Take it away. May be given several times.")] = None,
) -> None:
    """Say something about what is published: a metric, a verdict. `ls --sort`, policies and watchers see it.

    A value that is JSON (a number, true, a quoted text) is that; any other is text. PATH may end with /@latest.

    Example: ckptstore tag /runs/gpt/step-000500 loss=0.31 good=true --remove draft
    """
    wanted = dict(_pair(given, path) for given in values or [])
    with invocation.store() as store:
        entry = store.stat(path)
        metadata = store.tag(entry.path, wanted, remove=remove or []) if wanted or remove else entry.metadata
    invocation.terminal.result({"path": entry.path, "metadata": metadata}, _shown(metadata))


def _pair(given: str, path: str) -> tuple[str, Any]:
    key, sign, text = given.partition("=")
    if not sign or not key:
        raise InvalidInput(f"{given!r} is no KEY=VALUE", operation="tag", subject=path, hint="such as loss=0.31")
    try:
        return key, json.loads(text, parse_constant=lambda name: name)
    except ValueError:
        return key, text


def _shown(metadata: dict[str, Any]) -> Table | Text:
    if not metadata:
        return Text("nothing is said about it")
    table = Table.grid(padding=(0, 2, 0, 0))
    for key, value in sorted(metadata.items()):
        told = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        table.add_row(Text(visible(key), style="bold"), Text(visible(told)))
    return table
