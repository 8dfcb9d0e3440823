"""`python -m ckptstore_server.rebuild_command`: what `ckptstore catalog rebuild` becomes.

It takes the home's lock, so that it refuses while a daemon runs, and none starts meanwhile. Tiers are opened without claiming their
roots: the roots say which store this is, not the new catalog. The report goes to stdout, errors to stderr as everywhere.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ckptstore.catalog import Catalog
from ckptstore.config import Settings, read_settings
from ckptstore.errors import CkptStoreError, TierUnavailable
from ckptstore_server.daemon import lock_home, node_identity
from ckptstore_server.rebuild import RebuildReport, rebuild, sweep_unknown
from ckptstore_tiers.codecs import CodecTier
from ckptstore_tiers.open_tiers import open_tier

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False)


@app.command()
def main(
    home: Annotated[Path | None, typer.Option(help="the home folder")] = None,
    allow_missing: Annotated[list[str] | None, typer.Option(help="go on without this tier")] = None,
    allow_stale: Annotated[list[str] | None, typer.Option(help="believe this tier, though it was away at the last rebuild")] = None,
    delete_unknown: Annotated[bool, typer.Option("--delete-unknown", help="delete objects that no record names")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Restore the catalog of this home from the commit records in its tiers."""
    try:
        settings = read_settings(home=home)
        report, swept = _rebuild(settings, frozenset(allow_missing or ()), frozenset(allow_stale or ()), delete_unknown=delete_unknown)
    except CkptStoreError as error:
        print(f"ckptstore: {error}", file=sys.stderr)
        if as_json:
            print(json.dumps(error.to_wire()), file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    document = {name: value for name, value in dataclasses.asdict(report).items() if name != "held_back"}
    document |= {"stale_tiers": sorted(report.stale_tiers), "deleted_unknown": swept}
    print(json.dumps(document) if as_json else "\n".join(_lines(report, swept)))


def _rebuild(
    settings: Settings, allow_missing: frozenset[str], allow_stale: frozenset[str], *, delete_unknown: bool
) -> tuple[RebuildReport, int]:
    # What a save of another daemon may have written by now is too young to be called unknown.
    before_s = time.time() - settings.attempt_timeout_s
    with ExitStack() as stack:
        stack.enter_context(closing(lock_home(settings.home)))
        node_id = node_identity(settings.home)
        tiers = stack.enter_context(_opened(settings, allow_missing))
        catalog = Catalog.open(settings.effective_catalog_url, node=node_id, node_name=socket.gethostname())
        stack.callback(catalog.close)
        with _bar() as progress:
            report = rebuild(settings, tiers, catalog, allow_missing=allow_missing, allow_stale=allow_stale, progress=progress)
        swept = sweep_unknown(tiers, catalog, report, before_s=before_s) if delete_unknown else 0
    return report, swept


@contextmanager
def _bar() -> Iterator[Callable[[str, int], None]]:
    """How far the rebuild is, on stderr; nothing where that is no terminal. How much there is to read, only reading it tells."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TextColumn("{task.completed:,}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("opening the catalog", total=None)
        yield lambda doing, count: bar.update(task, description=doing, completed=count)


@contextmanager
def _opened(settings: Settings, allow_missing: frozenset[str]) -> Iterator[dict[str, CodecTier]]:
    """The tiers that answer, by name. TierUnavailable for one that does not and may not be missing."""
    tiers: dict[str, CodecTier] = {}
    try:
        for tier in settings.effective_tiers:
            try:
                tiers[tier.name] = open_tier(tier, settings.home)
            except TierUnavailable as error:
                if tier.name not in allow_missing:
                    hint = f"bring it back, or --allow-missing {tier.name}: what only it says was deleted may then come back"
                    raise TierUnavailable(error.why, operation="rebuild", subject=error.subject, tier=tier.name, hint=hint) from error
        yield tiers
    finally:
        for opened in tiers.values():
            opened.close()


def _lines(report: RebuildReport, swept: int) -> list[str]:
    """The report for people: what came back, then whatever needs a look."""
    return [
        f"store {report.store_id}: {report.restored} restored, {report.superseded} older versions, {report.deleted} deleted before",
        *(f"without tier {name}" for name in report.missing_tiers),
        *(f"tier {name} was away at the last rebuild" for name in sorted(report.stale_tiers)),
        *(f"not restored: {item.path!r}: {item.why}" for item in report.incomplete),
        *(f"unreadable: {said!r}" for said in report.unreadable),
        *([f"{report.attached} attachments are shown again"] if report.attached else []),
        *(f"not attached: {said!r}" for said in report.not_attached),
        *([f"{report.unknown_objects} objects that no record names ({report.unknown_bytes} bytes)"] if report.unknown_objects else []),
        *([f"{swept} of them deleted"] if swept else []),
    ]


if __name__ == "__main__":
    app()
