"""`serve`, `stop`, `status`, `version`: the daemon's life, and how it is.

`serve` becomes the daemon (exec) or starts one that outlives the terminal. `status` and `stop` never start one. `stop` returns when the
daemon's process has let go of the home: a `serve` right after it does not meet the old one.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import stamina
import typer
from rich.live import Live

from ckptstore import __version__
from ckptstore.config import Settings, read_settings
from ckptstore.errors import AlreadyRunning, DaemonUnavailable, InvalidInput, TierFull, TierUnavailable, WaitTimeout
from ckptstore.wire import API_VERSION, Hello, Message, Status
from ckptstore_client.api import Api
from ckptstore_client.cli.invocation import CommandGroup, Invocation
from ckptstore_client.cli.status_view import render_status
from ckptstore_client.launch import start_daemon

#: How long one look at a daemon may take, in seconds.
ANSWER_TIMEOUT_S = 10.0
#: What a detached daemon is given to open its tiers and answer, in seconds.
START_TIMEOUT_S = 60.0
WATCH_INTERVAL_S = 2.0


class _Stopping(Message):
    """What POST /v1/stop answers."""

    state: str


def register(root: CommandGroup) -> None:
    root.command("serve")(serve)
    root.command("stop")(stop)
    root.command("status")(status)
    root.command("version")(version)


def serve(
    invocation: Invocation,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="The configuration file; else config.toml in the home.")] = None,
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Serve the network API too. Needs $CKPTSTORE_TOKEN.")] = None,
    catalog_url: Annotated[str | None, typer.Option(metavar="URL", help="sqlite:////path or postgresql://…")] = None,
    detach: Annotated[bool, typer.Option("--detach/--foreground", help="Return once the daemon answers, and leave it running.")] = False,
) -> None:
    """Run this node's daemon.

    Example: ckptstore serve --home /var/lib/ckptstore --detach
    """
    settings = read_settings(config, home=invocation.home, listen=listen, catalog_url=catalog_url, token=invocation.token)
    if invocation.token is not None:
        os.environ["CKPTSTORE_TOKEN"] = invocation.token  # never an argument of a long-lived process: `ps` shows those
    given = {"--config": config and config.absolute(), "--listen": listen, "--catalog-url": catalog_url}
    arguments = ["--home", str(settings.home), *(part for name, value in given.items() if value is not None for part in (name, str(value)))]
    if not detach:
        os.execv(sys.executable, [sys.executable, "-m", "ckptstore_server", *arguments])
    api = _api(settings)
    if (running := _hello(api)) is not None:
        raise AlreadyRunning(f"another daemon (pid {running.pid}) serves this home", operation="serve", subject=str(settings.home))
    start_daemon(settings.home, lambda: _hello(api) is not None, timeout_s=START_TIMEOUT_S, arguments=arguments)
    hello = api.call("GET", "hello", Hello)
    document = {"home": str(settings.home), "log": str(settings.home / "daemon.log")} | hello.model_dump()
    invocation.terminal.result(document, f"serving {settings.home} (pid {hello.pid})")


def stop(
    invocation: Invocation,
    timeout: Annotated[float, typer.Option(min=0.0, metavar="SECONDS", help="How long to wait until it is gone.")] = 150.0,
) -> None:
    """Stop this node's daemon, and wait until it is gone.

    It takes no new saves, stores what it was handed, and ends. What still waits to be drained goes on with the next daemon.

    Example: ckptstore stop --timeout 30
    """
    if invocation.url is not None:
        why = "a daemon is stopped from its own node"
        raise InvalidInput(why, operation="stop", subject=invocation.url, hint="run `ckptstore stop` there")
    settings = read_settings(home=invocation.home)
    hello = _running(settings, "stop")
    _api(settings).call("POST", "stop", _Stopping)
    with invocation.terminal.progress() as progress:
        progress.add_task(f"waiting for the daemon (pid {hello.pid}) to finish", total=None)
        _until_home_is_free(settings.home, timeout)
    invocation.terminal.result({"stopped": True, "pid": hello.pid, "home": str(settings.home)}, f"stopped (pid {hello.pid})")


def status(
    invocation: Invocation,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every two seconds, until Ctrl-C.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 10 if a tier is down, 9 if one is full, 12 if one is late: for monitoring.")
    ] = False,
) -> None:
    """Show the daemon, its tiers, and what went wrong last.

    It says what is safe where, what waits to be drained, what is full. It starts no daemon: exit 13 if none runs.

    Example: ckptstore status --check --json
    """
    with invocation.store(start=False) as store:
        if watch and not invocation.terminal.as_json and invocation.terminal.out.is_terminal:
            with Live(render_status(store.status()), console=invocation.terminal.out, auto_refresh=False, screen=True) as live:
                while True:
                    time.sleep(WATCH_INTERVAL_S)
                    live.update(render_status(store.status()), refresh=True)
        answer = store.status()
        invocation.terminal.result(answer, render_status(answer))
        while watch:
            time.sleep(WATCH_INTERVAL_S)
            answer = store.status()
            invocation.terminal.result(answer, render_status(answer))
    if check:
        raise_for_tiers(answer)


def version(invocation: Invocation) -> None:
    """Show the version of this command line.

    Example: ckptstore version --json
    """
    invocation.terminal.result({"version": __version__, "api": API_VERSION}, f"ckptstore {__version__} (API {API_VERSION})")


def raise_for_tiers(answer: Status) -> None:
    """The error that the worst tier amounts to: down before full, and full before late."""
    for state, error in (("down", TierUnavailable), ("full", TierFull)):
        for tier in answer.tiers:
            if tier.state == state:
                raise error(tier.last_error or f"the tier is {state}", operation="status", subject=answer.home, tier=tier.name)
    for tier in answer.tiers:
        if tier.alarm is not None:
            raise WaitTimeout(tier.alarm.what, operation="status", subject=answer.home, tier=tier.name)


def _api(settings: Settings) -> Api:
    return Api.over_socket(str(settings.api_socket), timeout_s=ANSWER_TIMEOUT_S)


def _hello(api: Api) -> Hello | None:
    try:
        return api.call("GET", "hello", Hello)
    except (DaemonUnavailable, WaitTimeout):
        return None


def _running(settings: Settings, operation: str) -> Hello:
    hello = _hello(_api(settings))
    if hello is None:
        hint = "`ckptstore serve` starts one"
        raise DaemonUnavailable("no daemon runs there", operation=operation, subject=str(settings.home), hint=hint)
    return hello


def _until_home_is_free(home: Path, timeout_s: float) -> None:
    """The daemon holds the home's lock for as long as its process lives, so the lock says when it is gone, in any PID namespace."""
    stamina.instrumentation.set_on_retry_hooks([])  # waiting is no failure that a user should read of
    try:
        for attempt in stamina.retry_context(on=BlockingIOError, attempts=None, timeout=timeout_s, wait_initial=0.05, wait_max=0.5):
            with attempt, open(home / "daemon.lock", encoding="ascii") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return
    except BlockingIOError as error:
        why = f"it still runs after {timeout_s:g} s, and goes on stopping"
        raise WaitTimeout(why, operation="stop", subject=str(home), hint="see `ckptstore status`, and daemon.log in the home") from error
