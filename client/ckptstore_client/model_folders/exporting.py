"""How does a checkpoint become a folder that `from_pretrained` reads? Whole tensors, in files of bounded size, with an index.

The tensors of one part of the state ("model") are read from whichever ranks' files hold them, straight into the pages of the new files; so
memory is bounded by the page cache, whatever the model's size. Their names are the keys on the way to them, joined with dots. Config and
tokenizer files are those that an import put beside the weights, of this checkpoint or of another one, or of a local folder.

The folder is made under a temporary name, fsynced, and renamed: it is there whole, or not at all. Leaves that are no tensors are left
out, and named in the result.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any

from ckptstore.boxes import Box
from ckptstore.errors import CkptStoreError, InvalidInput, TierFull
from ckptstore.part_reading import Selection, TensorRef
from ckptstore.safetensors_format import Header, TensorEntry, build_header
from ckptstore_client.files import arriving
from ckptstore_client.frameworks import framework
from ckptstore_client.model_folders import FILES_KEY, INDEX_NAME
from ckptstore_client.sharding.filling_boxes import Want, fill_boxes
from ckptstore_client.sharding.loading import ShardedCheckpoint, refuse
from ckptstore_client.staging import alignment
from ckptstore_client.store import Store

#: What the Hub's own tools write, in bytes.
SHARD_BYTES = 5_000_000_000
DEFAULT_PART = "model"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", INDEX_NAME)


@dataclass
class Exported:
    """What was written where. `left_out` are leaves of the part that are no tensors."""

    folder: Path
    tensors: int = 0
    size_bytes: int = 0
    files: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def export_model(
    store: Store,
    path: str,
    folder: str | Path,
    *,
    part: str | None = None,
    files_from: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    replace: bool = False,
) -> Exported:
    """Write the model in a checkpoint as a Hugging Face folder.

    `part`: the place of the model's state; None: "model" if there is one, else all of it. `files_from`: where config and tokenizer come
    from, a checkpoint's path (a str) or a local folder (a Path); None: from this checkpoint, if an import put them there.
    """
    if shard_bytes < 1:
        raise InvalidInput(f"shard_bytes is 1 or more, not {shard_bytes}", operation="export", subject=path)
    made = Exported(Path(folder).absolute())
    checkpoint, share = store.open_sharded(path)
    with checkpoint, arriving(made.folder, folder=True, replace=replace) as temporary:
        outline, header = checkpoint.outline(Selection(None), share)
        named = _named(outline, part, path, made)
        shards = _shards([(name, header.tensors[ref.key]) for name, ref in named.items()], shard_bytes)
        for file, entries in shards.items():
            _write_shard(temporary / file, entries, named, checkpoint, header)
        if len(shards) > 1:
            _write_index(temporary / INDEX_NAME, shards)
        if isinstance(files_from, Path):
            _copy_files(files_from, temporary)
        elif files_from is None:
            _write_files(checkpoint, outline, header, temporary)
        else:
            other, other_share = store.open_sharded(files_from)
            with other:
                _write_files(other, *other.outline(Selection(f"{FILES_KEY}/*"), other_share), temporary)
        made.tensors, made.size_bytes = len(named), sum(entry.size_bytes for entries in shards.values() for entry in entries)
        made.files = sorted(file.name for file in temporary.iterdir())
    return made


# --- which tensors ------------------------------------------------------------------------------------------------------


def _named(outline: Any, part: str | None, path: str, made: Exported) -> dict[str, TensorRef]:
    """name in the folder → tensor."""
    if part is None:
        part = DEFAULT_PART if isinstance(outline, dict) and isinstance(outline.get(DEFAULT_PART), dict) else ""
    for key in filter(None, part.split("/")):
        if not isinstance(outline, dict) or key not in outline:
            hint = f"at its top are: {_keys(outline)}"
            raise InvalidInput(f"the state has no part {part!r}", operation="export", subject=path, hint=hint)
        outline = outline[key]
    named: dict[str, TensorRef] = {}
    for name, leaf in _leaves(outline, ""):
        refuse(leaf)
        if type(leaf) is not TensorRef:
            made.left_out.append(name)
        elif named.setdefault(name, leaf) is not leaf:
            raise InvalidInput("two tensors would have this name", operation="export", subject=name)
    if not named:
        raise InvalidInput("there is no tensor in it", operation="export", subject=f"{path} {part}".strip())
    return named


def _keys(outline: Any) -> str:
    return ", ".join(map(str, list(outline)[:8])) if isinstance(outline, dict) else "no names"


def _leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    children: Iterable[tuple[Any, Any]] | None = None
    if isinstance(node, dict):
        children = ((key, child) for key, child in node.items() if name or key != FILES_KEY)
    elif type(node) in (list, tuple):
        children = enumerate(node)
    if children is None:
        yield name, node
        return
    for key, child in children:
        yield from _leaves(child, f"{name}.{key}" if name else str(key))


def _shards(tensors: Sequence[tuple[str, TensorEntry]], shard_bytes: int) -> dict[str, list[TensorEntry]]:
    """file → its tensors, placed; in order, and no file larger than asked for unless one tensor is."""
    groups: list[list[tuple[str, TensorEntry]]] = [[]]
    held_bytes = 0
    for name, whole in tensors:
        if groups[-1] and held_bytes + whole.size_bytes > shard_bytes:
            groups.append([])
            held_bytes = 0
        groups[-1].append((name, whole))
        held_bytes += whole.size_bytes
    if len(groups) == 1:
        return {"model.safetensors": _placed(groups[0])}
    return {f"model-{number:05d}-of-{len(groups):05d}.safetensors": _placed(group) for number, group in enumerate(groups, 1)}


def _placed(tensors: Iterable[tuple[str, TensorEntry]]) -> list[TensorEntry]:
    """Large powers of two first: then each lies aligned to its dtype, without the padding that safetensors forbids."""
    placed: list[TensorEntry] = []
    for name, whole in sorted(tensors, key=lambda one: -alignment(one[1].size_bytes)):
        start = placed[-1].end if placed else 0
        placed.append(TensorEntry(name, whole.dtype, whole.shape, start, start + whole.size_bytes))
    return placed


# --- writing ------------------------------------------------------------------------------------------------------------


def _write_shard(
    file: Path, entries: Sequence[TensorEntry], named: dict[str, TensorRef], checkpoint: ShardedCheckpoint, header: Header
) -> None:
    head = build_header(entries, {"format": "pt"})
    with _mapped(file, len(head) + entries[-1].end) as memory:
        memory[: len(head)] = head
        wants = []
        for entry in entries:
            ref = named[entry.key]
            target = framework(ref.tag)
            (view,) = target.views(memory, [entry], len(head))
            wants.append(Want(checkpoint.spread(ref.key, header), Box.whole(entry.shape), target, view))
        fill_boxes(wants, checkpoint.part)


@contextmanager
def _mapped(file: Path, size_bytes: int) -> Iterator[memoryview]:
    """A new file as memory; what was written there is durable afterwards. TierFull before a byte is written, if there is no room."""
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.posix_fallocate(fd, 0, size_bytes)
        memory = mmap.mmap(fd, size_bytes)
        yield memoryview(memory)
        memory.flush()
        os.fsync(fd)
    except OSError as error:
        leaf = TierFull if error.errno in (ENOSPC, EDQUOT) else CkptStoreError
        raise leaf(f"it cannot be written: {error.strerror}", operation="export", subject=str(file)) from error
    finally:
        os.close(fd)


def _write_index(file: Path, shards: dict[str, list[TensorEntry]]) -> None:
    total_bytes = sum(entry.size_bytes for entries in shards.values() for entry in entries)
    weight_map = {entry.key: name for name, entries in shards.items() for entry in entries}
    file.write_text(json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": weight_map}, indent=2) + "\n", "utf-8")


def _write_files(checkpoint: ShardedCheckpoint, outline: Any, header: Header, folder: Path) -> None:
    """What an import put beside the weights."""
    files = outline.get(FILES_KEY, {}) if isinstance(outline, dict) else {}
    for name, ref in files.items():
        if Path(name).name != name or name.endswith(_WEIGHTS):
            raise InvalidInput("this is no name of a file beside weights", operation="export", subject=name)
        content = framework(ref.tag).empty(header.tensors[ref.key])
        fill_boxes([Want(checkpoint.spread(ref.key, header), Box.whole(content.shape), framework(ref.tag), content)], checkpoint.part)
        (folder / name).write_bytes(content.tobytes())


def _copy_files(source: Path, folder: Path) -> None:
    try:
        for file in sorted(source.iterdir()):
            if file.is_file() and not file.name.endswith(_WEIGHTS) and not file.name.startswith("."):
                shutil.copyfile(file, folder / file.name)
    except OSError as error:
        raise InvalidInput(f"it cannot be copied: {error}", operation="export", subject=str(source)) from error
