"""`snapshot`: ask a running job for a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from ckptstore.snapshot_messages import SnapshotInfo
from ckptstore_client.cli.invocation import CommandGroup, Invocation
from ckptstore_client.cli.terminal import Terminal, visible


def register(root: CommandGroup) -> None:
    root.command("snapshot")(snapshot)


def snapshot(
    invocation: Invocation,
    path: Annotated[str, typer.Argument(metavar="FOLDER", help="The folder that the job saves in, such as /runs/gpt.")],
    wait: Annotated[bool, typer.Option("--wait", help="Return when the checkpoint is there, and say where.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0.0, metavar="SECONDS", help="With --wait: give up after so long (exit 12).")] = None,
    why: Annotated[str, typer.Option("--why", help="Kept with the request.")] = "",
) -> None:
    """Ask the job that saves in a folder for a checkpoint at its next safe point.

    The job's loop heeds it with `store.preemption(folder)`. The request waits for an hour, also for a job that is being started.

    Example: ckptstore snapshot /runs/gpt --wait
    """
    terminal = invocation.terminal
    with invocation.store() as store, terminal.progress() as progress:
        if wait:
            progress.add_task(f"waiting for a checkpoint in {visible(path)}", total=None)
        info = store.snapshot(path, why=why, wait=wait, timeout_s=timeout)
    terminal.result(info, _told(terminal, info))


def _told(terminal: Terminal, info: SnapshotInfo) -> Text:
    if info.state == "answered":
        where = Text("removed since") if info.checkpoint is None else terminal.name(info.checkpoint)
        return where + Text(f"  in {visible(', '.join(info.durability)) or 'no durable tier yet'}")
    asked = Text("asked ") + terminal.name(info.path)
    if info.ranks == 0:
        return asked + Text("; no job has heard of it yet")
    at_step = "" if info.at_step is None else f", it is taken at step {info.at_step} or the first safe point after it"
    return asked + Text(f"; heard by {info.ranks} of {info.world_size} ranks{at_step}")
