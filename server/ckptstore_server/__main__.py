"""`python -m ckptstore_server`: what `ckptstore serve` and the auto-start run."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from ckptstore.config import read_settings
from ckptstore.errors import CkptStoreError

#: An auto-started daemon that nobody uses ends after this, unless it was configured otherwise; its drains are finished first.
AUTO_STARTED_IDLE_EXIT_S = 600.0

#: How long a thread that computes keeps the interpreter while another waits for it, in seconds. Python's own, 5 ms, is what a whole save
#: holds training up, and a request answered by three threads may wait for it three times.
SWITCH_INTERVAL_S = 0.001

app = typer.Typer(add_completion=False, no_args_is_help=False)


@app.command()
def serve(
    home: Annotated[Path | None, typer.Option(help="the home folder")] = None,
    config: Annotated[Path | None, typer.Option(help="the configuration file")] = None,
    listen: Annotated[str | None, typer.Option(help="host:port of the network API")] = None,
    catalog_url: Annotated[str | None, typer.Option(help="sqlite:////path or postgresql://…")] = None,
    idle_exit_s: Annotated[float | None, typer.Option(help="exit when nobody has used the daemon for so long")] = None,
    auto_started: Annotated[bool, typer.Option("--auto-started", help="started by a client: exit when idle")] = False,
) -> None:
    """Serve this node until told to stop."""
    from ckptstore_server.daemon import Daemon

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        settings = read_settings(config, home=home, listen=listen, catalog_url=catalog_url, idle_exit_s=idle_exit_s)
        if auto_started and settings.idle_exit_s is None:
            settings = settings.model_copy(update={"idle_exit_s": AUTO_STARTED_IDLE_EXIT_S})
        logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        asyncio.run(Daemon(settings).run())
    except CkptStoreError as error:
        print(f"ckptstore: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    app()
