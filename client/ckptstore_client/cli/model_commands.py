"""`export`, `import`: between checkpoints and plain Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ckptstore_client.cli.invocation import CommandGroup, Invocation
from ckptstore_client.cli.namespace_commands import PathArgument
from ckptstore_client.cli.terminal import size, visible


def register(root: CommandGroup) -> None:
    root.command("export")(export)
    root.command("import")(import_)


def export(
    invocation: Invocation,
    path: PathArgument,
    local: Annotated[Path, typer.Argument(metavar="LOCAL", help="The folder to write.")],
    part: Annotated[str | None, typer.Option(metavar="PLACE", help="The model's place in the state. Else `model`, or all of it.")] = None,
    files_from: Annotated[
        str | None, typer.Option(metavar="PATH", help="A checkpoint that an import made: its config and tokenizer are carried along.")
    ] = None,
    files: Annotated[Path | None, typer.Option(metavar="DIR", help="A local folder to take config and tokenizer from.")] = None,
    shard_gb: Annotated[float, typer.Option(min=0.001, metavar="GB", help="The largest weight file, in 10^9 bytes.")] = 5.0,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of what is there.")] = False,
) -> None:
    """Write the model in a checkpoint as a Hugging Face folder.

    However many ranks saved it, the tensors are whole; LOCAL is complete or not there at all.

    Example: ckptstore export /runs/gpt/@latest ./gpt --files-from /models/base
    """
    from ckptstore_client.model_folders.exporting import export_model

    terminal = invocation.terminal
    with invocation.store() as store, terminal.progress() as progress:
        progress.add_task(f"exporting {visible(path)}", total=None)
        source = files if files is not None else files_from
        made = export_model(store, path, local, part=part, files_from=source, shard_bytes=int(shard_gb * 1e9), replace=replace)
    document = {
        "path": path,
        "local": str(made.folder),
        "tensors": made.tensors,
        "size_bytes": made.size_bytes,
        "files": made.files,
        "left_out": made.left_out,
    }
    told = f" ({made.tensors:,} tensors, {size(made.size_bytes)}, {len(made.files):,} files)"
    terminal.result(document, Text("exported ") + terminal.name(path) + Text(told))


def import_(
    invocation: Invocation,
    local: Annotated[Path, typer.Argument(metavar="LOCAL", help="A folder with model*.safetensors and its config.")],
    path: PathArgument,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of what is there, atomically.")] = False,
) -> None:
    """Make a checkpoint of a Hugging Face folder, which any number of ranks can load.

    Its weights become the state's `model`; config and tokenizer are kept beside them, for `export`. Pickled weights are refused.

    Example: ckptstore import ./MiniLM /models/minilm
    """
    from ckptstore_client.model_folders.importing import import_model

    terminal = invocation.terminal
    with invocation.store() as store, terminal.progress() as progress:
        task = progress.add_task(f"importing {visible(local.name)}", total=None)
        entry = import_model(
            store, local, path, replace=replace, progress=lambda done, total: progress.update(task, completed=done, total=total)
        )
    terminal.result(entry, Text("imported ") + terminal.name(entry.path) + Text(f" ({size(entry.size_bytes)})"))
