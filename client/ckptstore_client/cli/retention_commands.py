"""`keep`, `hold`, `release`, `trash`, `undo`, `gc`: which checkpoints stay, and what can be had back."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from ckptstore.errors import InvalidInput
from ckptstore.retention_messages import TRASH_S, HoldInfo, RetentionInfo, RetentionPlan, TrashedInfo
from ckptstore_client.cli.invocation import CommandGroup, Invocation
from ckptstore_client.cli.namespace_commands import PathArgument
from ckptstore_client.cli.status_view import table
from ckptstore_client.cli.terminal import age, size, visible

#: What a plan shows of a checkpoint in a tier, where it does not stay for a reason.
_FATES = {"stays": "", "goes": "goes", "absent": "-"}


def register(root: CommandGroup) -> None:
    root.command("keep")(keep)
    root.command("hold")(hold)
    root.command("release")(release)
    root.command("trash")(trash)
    root.command("undo")(undo)
    root.command("gc")(gc)


def keep(
    invocation: Invocation,
    path: Annotated[str, typer.Argument(metavar="[FOLDER]", help="A folder of checkpoints; none: list what is kept everywhere.")] = "",
    policies: Annotated[list[str] | None, typer.Argument(metavar="[POLICY]...", help="What to keep, such as latest:3.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Keep everything there from now on.")] = False,
    tier: Annotated[str, typer.Option("--tier", help="What to keep in this tier; the others go by the folder's own policies.")] = "",
    safe_in: Annotated[str, typer.Option("--safe-in", metavar="TIER", help="Which must hold a newer checkpoint first.")] = "",
    trash_s: Annotated[float, typer.Option("--trash", metavar="SECONDS", help="How long what goes can be had back.")] = TRASH_S,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing: show what would go.")] = False,
) -> None:
    """Say which of a folder's checkpoints stay, or stay in one tier. What no policy wants goes once something newer is safe.

    Policies: latest:N, every-steps:N, every-seconds:N, within:1h, best:N:METRIC:min|max, steps:N,N,…; several are added up.

    Example: ckptstore keep /runs/gpt latest:3 every-steps:1000 best:1:loss:min --dry-run

    Example: ckptstore keep /runs/gpt within:1h --tier nvme
    """
    if not path and (policies or everything):
        raise InvalidInput("no folder was given", operation="keep")
    if everything and policies:
        raise InvalidInput("--all keeps everything: no policy goes with it", operation="keep", subject=path)
    terminal = invocation.terminal
    with invocation.store() as store:
        if not path:
            folders = store.retention.folders()
            terminal.result({"folders": [folder.model_dump(mode="json") for folder in folders]}, _folders(folders))
        elif everything:
            was = store.retention.keep_all(path, tier=tier or None)
            where = f"in {tier} what the folder's own policies want" if tier else "everything"
            until_now = "; ".join(f"{_words(one)}{f' in {one.tier}' if one.tier else ''}" for one in was)
            shown = Text(f"{where} of {visible(path)} is kept from now on; until now: {visible(until_now)}")
            terminal.result({"folders": [one.model_dump(mode="json") for one in was]}, shown)
        else:
            plan = store.retention.keep(path, *(policies or []), tier=tier, safe_in=safe_in, trash_s=trash_s, dry_run=dry_run)
            terminal.result(plan, _plan(plan, dry_run))


def hold(
    invocation: Invocation,
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="What nobody may remove; none: list what is held.")] = "",
    why: Annotated[str, typer.Option("--why", help="Shown to whoever tries.")] = "",
) -> None:
    """Let nobody remove or replace what is at a path, by hand or by policy.

    Example: ckptstore hold /runs/gpt/step-000500 --why "the paper's"
    """
    with invocation.store() as store:
        if path:
            held = store.retention.hold(path, why)
            invocation.terminal.result(held, Text(f"held: {visible(held.path)}"))
        else:
            holds = store.retention.holds()
            invocation.terminal.result({"holds": [found.model_dump() for found in holds]}, _holds(holds))


def release(invocation: Invocation, path: PathArgument) -> None:
    """Let what is held be removed again.

    Example: ckptstore release /runs/gpt/step-000500
    """
    with invocation.store() as store:
        released = store.retention.release(path)
    invocation.terminal.result(released, Text(f"released: {visible(released.path)}"))


def trash(invocation: Invocation) -> None:
    """List what policies have let go, and until when it can be had back.

    Example: ckptstore trash
    """
    with invocation.store() as store:
        lying = store.retention.trash()
    invocation.terminal.result({"trashed": [found.model_dump() for found in lying]}, _trash(lying))


def undo(invocation: Invocation, path: PathArgument) -> None:
    """Put back what was last thrown away from a path, and hold it.

    Example: ckptstore undo /runs/gpt/step-000700
    """
    with invocation.store() as store:
        back = store.retention.undo(path)
    invocation.terminal.result({"path": back}, Text(f"back, and held: {visible(back)}"))


def gc(
    invocation: Invocation,
    everything: Annotated[bool, typer.Option("--all", help="Also what could still be had back.")] = False,
) -> None:
    """Free what has waited long enough in the trash. The daemon does so by itself; this does it now.

    Example: ckptstore gc --all
    """
    with invocation.store() as store:
        removed = store.retention.gc(everything=everything)
    invocation.terminal.result({"removed": removed}, Text(f"{len(removed)} removed for good"))


def _words(folder: RetentionInfo) -> str:
    return " ".join(map(str, folder.policies))


def _folders(folders: list[RetentionInfo]) -> RenderableType:
    if not folders:
        return Text("everything is kept everywhere")
    shown = table("folder", "tier", "keeps", "once newer is in", "trash")
    for folder in folders:
        safe_in = folder.safe_in or folder.tier or "the deepest tier"
        shown.add_row(visible(folder.path), folder.tier or "all others", _words(folder), safe_in, age(folder.trash_s))
    return shown


def _plan(plan: RetentionPlan, dry_run: bool) -> RenderableType:
    going = [judged for judged in plan.checkpoints if judged.goes]
    tiers = [place.tier for place in plan.checkpoints[0].tiers] if plan.checkpoints else []
    shown = table("checkpoint", "step", "size", "goes" if not dry_run else "would go", *(tiers or ["why"]))
    for judged in plan.checkpoints:
        step = "" if judged.step is None else str(judged.step)
        whys = [_FATES[place.fate] or place.why for place in judged.tiers] or [judged.why]
        shown.add_row(visible(judged.path), step, size(judged.size_bytes), "yes" if judged.goes else "", *map(visible, whys))
    shown.caption = f"{len(going)} of {len(plan.checkpoints)}, {size(sum(judged.size_bytes for judged in going))}"
    return shown


def _holds(holds: list[HoldInfo]) -> RenderableType:
    if not holds:
        return Text("nothing is held")
    shown = table("held", "why", "since")
    for found in holds:
        shown.add_row(visible(found.path), visible(found.why), age(time.time() - found.held_at_s))
    return shown


def _trash(lying: list[TrashedInfo]) -> RenderableType:
    if not lying:
        return Text("the trash is empty")
    shown = table("was at", "step", "size", "goes in")
    for found in lying:
        step = "" if found.step is None else str(found.step)
        shown.add_row(visible(found.path), step, size(found.size_bytes), age(max(0.0, found.until_s - time.time())))
    return shown
