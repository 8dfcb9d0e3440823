"""`python -m ckptstore_bench.demo`: tells the story, and exits with 1 if anything is not as claimed."""

from __future__ import annotations

import signal
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ckptstore.errors import CkptStoreError
from ckptstore_bench.demo.cluster import Cluster
from ckptstore_bench.demo.life import NotAsClaimed
from ckptstore_bench.demo.record import Record
from ckptstore_bench.demo.report import claims_list, saves_table, say, timeline
from ckptstore_bench.demo.story import Plan, Story
from ckptstore_bench.demo.watcher import Watcher

WIDTH = 120


def main(
    keep: Annotated[Path | None, typer.Option(help="work in this folder, and leave it")] = None,
    save_every: Annotated[int, typer.Option(min=1, help="steps between two of the twelve saves")] = 6,
) -> None:
    """Train, kill, resume from memory, from NVMe and from S3; compare with an uninterrupted run."""
    console = Console(width=WIDTH)
    # `kill` and `timeout` end the demo as Ctrl-C does: every server is stopped first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    record = Record(lambda moment: say(console, moment))
    began_s = time.monotonic()
    try:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            _tell(Plan(save_every), keep.resolve(), record, console)
        else:
            with tempfile.TemporaryDirectory(prefix="ckptstore-demo-") as folder:
                _tell(Plan(save_every), Path(folder), record, console)
    except (NotAsClaimed, CkptStoreError) as error:
        console.print(f"✗ {error}", style="bold red", markup=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print("interrupted; all servers were stopped", style="bold")
        raise typer.Exit(130) from None
    console.print(f"All of it held, in {time.monotonic() - began_s:.0f} s.", style="bold green")


def _tell(plan: Plan, folder: Path, record: Record, console: Console) -> None:
    record.note("demo", f"starting SeaweedFS (S3) and a home under {folder}")
    with Cluster(folder) as cluster, Watcher(cluster, record) as watcher:
        story = Story(plan, cluster, record, watcher)
        try:
            story.tell()
        finally:
            console.print(timeline(record))
            console.print(saves_table(record))
            console.print(claims_list(story.claims))


if __name__ == "__main__":
    typer.run(main)
