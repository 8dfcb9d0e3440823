"""`ckptstore`: the entry point. Parses, runs one command, and turns every outcome into an exit code.

Exit codes: 0 done; 2 wrong usage or input; 130 Ctrl-C; 141 the reader of stdout went away; every other is `exit_code` of the error in
`ckptstore.errors` that ended the command. An error is one line on stderr (`ckptstore: what, where, why; hint`), with `--json` followed by a
line of JSON. An exception that is none of ours is a bug, and shows its traceback.

Packages above this one add groups of their own (`bench`): an entry point of the group `ckptstore.commands`, whose name is the command's and
whose object is a `CommandGroup`. It is loaded at every call, so it must import little.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

import typer

from ckptstore.errors import CkptStoreError, ConfigInvalid, InvalidInput
from ckptstore_client.cli import (
    attach_commands,
    cache_commands,
    catalog_commands,
    config_commands,
    daemon_commands,
    diff_commands,
    model_commands,
    mount_commands,
    namespace_commands,
    retention_commands,
    snapshot_commands,
    tag_commands,
    tensor_commands,
    transfer_commands,
)
from ckptstore_client.cli.invocation import CommandGroup, Invocation, with_global_options
from ckptstore_client.cli.terminal import print_error

INTERRUPTED_EXIT = 130
PLUG_INS = "ckptstore.commands"


def build() -> CommandGroup:
    """The whole command line."""
    root = CommandGroup("One store for the whole life of a model's bytes: save, drain, resume, serve.")
    daemon_commands.register(root)
    namespace_commands.register(root)
    transfer_commands.register(root)
    attach_commands.register(root)
    cache_commands.register(root)
    retention_commands.register(root)
    snapshot_commands.register(root)
    tag_commands.register(root)
    tensor_commands.register(root)
    diff_commands.register(root)
    mount_commands.register(root)
    model_commands.register(root)
    root.add("config", config_commands.group)
    root.add("catalog", catalog_commands.group)
    for found in sorted(entry_points(group=PLUG_INS), key=lambda entry: entry.name):
        root.add(found.name, _loaded(found))
    return root


def _loaded(found: EntryPoint) -> CommandGroup:
    """The group that a package adds; where it cannot be imported, one that says so to whoever calls it, and disturbs nobody else."""
    try:
        group: CommandGroup = found.load()
    except ImportError as error:
        group = _missing(found, str(error))
    return group


def _missing(found: EntryPoint, why: str) -> CommandGroup:
    def explain(invocation: Invocation) -> None:
        raise ConfigInvalid(why, operation=found.name, hint=f"pip install 'ckptstore[{found.name}]'")

    group = CommandGroup(f"Not installed: {why}")
    group.typer.callback(invoke_without_command=True)(with_global_options(explain))
    return group


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code."""
    as_json = "--json" in arguments
    try:
        code = build().typer(args=list(arguments), prog_name="ckptstore", standalone_mode=False)
    except CkptStoreError as error:
        print_error(str(error), error.to_wire(), as_json=as_json)
        return error.exit_code
    except typer.TyperException as error:
        usage = InvalidInput(error.format_message().rstrip("."), hint="see `ckptstore --help`")
        print_error(str(usage), usage.to_wire(), as_json=as_json)
        return error.exit_code
    except typer.Abort:  # the answer to a question was no
        code = INTERRUPTED_EXIT
    if code == INTERRUPTED_EXIT:  # what Typer makes of KeyboardInterrupt
        print_error("interrupted", CkptStoreError("interrupted").to_wire(), as_json=as_json)
    return code if isinstance(code, int) else 0


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
