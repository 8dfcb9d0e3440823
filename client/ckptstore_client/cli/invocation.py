"""What every command is given: where the daemon is, how results are to be printed, and the global options that say so.

`--home`, `--url`, `--token` and `--json` may stand before or after the command's name. Typer gives a parameter to one command only, so
`with_global_options` adds the four to a command's signature and takes them off its arguments again; what stood further to the right wins.
A command is a function whose first parameter is the `Invocation`. Where it declares a parameter of a global option's name itself (`bench`
writes its JSON to a file), that one is its own.

Nothing here opens a connection before a command asks for one, so `--help` and `config` never touch a daemon.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from ckptstore.config import default_home
from ckptstore_client.cli.terminal import Terminal

if TYPE_CHECKING:
    from ckptstore_client.store import Store

P = ParamSpec("P")
PANEL = "Global options (before or after the command)"
#: What a shell reports for a program that died of SIGPIPE, which Python turns into an exception.
BROKEN_PIPE_EXIT = 141

HomeOption = Annotated[
    Path | None, typer.Option("--home", metavar="DIR", help="The daemon's home. Also $CKPTSTORE_HOME.", rich_help_panel=PANEL)
]
UrlOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="A daemon on another node. Also $CKPTSTORE_URL.", rich_help_panel=PANEL)
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", metavar="TOKEN", help="The token for --url. Better in $CKPTSTORE_TOKEN: `ps` shows it.", rich_help_panel=PANEL),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.", rich_help_panel=PANEL)]

#: parameter → its default, and the option
GLOBAL_OPTIONS: dict[str, tuple[Any, Any]] = {
    "home": (None, HomeOption),
    "url": (None, UrlOption),
    "token": (None, TokenOption),
    "as_json": (False, JsonOption),
}


@dataclass(frozen=True)
class Invocation:
    """One run of the command line."""

    terminal: Terminal
    home: Path | None = None
    url: str | None = None
    token: str | None = None

    @property
    def home_or_default(self) -> Path:
        return (self.home or default_home()).expanduser().absolute()

    @contextmanager
    def store(self, *, start: bool = True) -> Iterator[Store]:
        """The daemon that the options name, else this node's. DaemonUnavailable if none answers and none was (or may be) started."""
        from ckptstore_client import connect

        url = self.url or os.environ.get("CKPTSTORE_URL") or None
        store = connect(url, token=self.token or os.environ.get("CKPTSTORE_TOKEN") or None, home=self.home, start=start)
        try:
            yield store
        finally:
            store.close()


def with_global_options(function: Callable[Concatenate[Invocation, P], None]) -> Callable[..., None]:
    """`function` as Typer is to see it: without its first parameter, and with the global options."""

    own = inspect.signature(function, eval_str=True)
    added = {name: default for name, (default, _) in GLOBAL_OPTIONS.items() if name not in own.parameters}

    @functools.wraps(function)
    def command(ctx: typer.Context, **given: Any) -> None:
        told = {name: given.pop(name, default) for name, default in added.items()}
        outer = ctx.find_object(Invocation) or Invocation(Terminal())
        terminal = Terminal(as_json=True) if told.pop("as_json", False) else outer.terminal
        ctx.obj = replace(outer, terminal=terminal, **{name: value for name, value in told.items() if value})
        try:
            function(ctx.obj, **given)  # type: ignore[call-arg]
            sys.stdout.flush()
        except BrokenPipeError as error:
            # The reader (`head`, say) has seen enough. What is left in the buffer must not fail once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE_EXIT) from error

    keyword = inspect.Parameter.KEYWORD_ONLY
    named = [
        inspect.Parameter("ctx", keyword, annotation=typer.Context),
        *(p.replace(kind=keyword) for p in list(own.parameters.values())[1:]),
        *(inspect.Parameter(name, keyword, default=default, annotation=GLOBAL_OPTIONS[name][1]) for name, default in added.items()),
    ]
    command.__signature__ = own.replace(parameters=named)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in named} | {"return": None}
    return command


class CommandGroup:
    """A Typer application in which every command, and the group itself, takes the global options."""

    def __init__(self, help_text: str) -> None:
        self.typer = typer.Typer(
            help=help_text, add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
        )
        self.typer.callback()(with_global_options(_only_options))

    def command(self, name: str) -> Callable[[Callable[Concatenate[Invocation, P], None]], Callable[Concatenate[Invocation, P], None]]:
        def register(function: Callable[Concatenate[Invocation, P], None]) -> Callable[Concatenate[Invocation, P], None]:
            self.typer.command(name)(with_global_options(function))
            return function

        return register

    def add(self, name: str, group: CommandGroup) -> None:
        self.typer.add_typer(group.typer, name=name)


def _only_options(invocation: Invocation) -> None:
    """The group itself: its options are kept for the command."""
