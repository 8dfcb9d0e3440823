"""`catalog rebuild`: the catalog, made again from the commit records in the tiers.

The work is the server package's, which this one never imports: the command becomes `python -m ckptstore_server.rebuild_command`.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ckptstore.config import read_settings
from ckptstore_client.cli.invocation import CommandGroup, Invocation

group = CommandGroup("Repair the catalog.")


@group.command("rebuild")
def rebuild(
    invocation: Invocation,
    allow_missing: Annotated[
        list[str] | None, typer.Option(metavar="TIER", help="Go on without this tier, though it does not answer. May be repeated.")
    ] = None,
    allow_stale: Annotated[
        list[str] | None,
        typer.Option(metavar="TIER", help="Believe this tier, though its node was away at the last rebuild. May be repeated."),
    ] = None,
    delete_unknown: Annotated[
        bool, typer.Option("--delete-unknown", help="Also delete objects that no record names: what half a save left behind.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Restore a lost catalog from the commit records in the tiers.

    The catalog must be empty (move its database away), and no daemon may run. Nothing that was deleted comes back.

    Example: ckptstore catalog rebuild --yes
    """
    settings = read_settings(home=invocation.home)
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Rebuild the catalog of {settings.home} from its tiers?", abort=True, err=True)
    arguments = ["--home", str(settings.home), *(part for tier in allow_missing or [] for part in ("--allow-missing", tier))]
    arguments += [part for tier in allow_stale or [] for part in ("--allow-stale", tier)]
    if delete_unknown:
        arguments.append("--delete-unknown")
    if invocation.terminal.as_json:
        arguments.append("--json")
    os.execv(sys.executable, [sys.executable, "-m", "ckptstore_server.rebuild_command", *arguments])
