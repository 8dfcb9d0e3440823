"""A model of any size, of real layers: those of all-MiniLM-L6-v2, as often as it takes.

They are the installed model's (`installed_model.py`); without one, layers of the same shapes with made-up numbers. What is written is a
folder as on the hub: `config.json`, tokenizer files, `model.safetensors`.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

from ckptstore.safetensors_format import Header, TensorEntry, build_header, header_size_bytes, parse_header
from ckptstore_bench.installed_model import WEIGHTS, installed_model

CONFIG = "config.json"
_LAYER = re.compile(r"^encoder\.layer\.(\d+)\.(.+)$")


def write_model(folder: Path, size_bytes: int) -> int:
    """Its bytes: at least `size_bytes`, and less than a layer more. `folder` is made; torch and transformers are needed."""
    folder.mkdir(parents=True)
    source = installed_model()
    if source is None:
        source = folder.with_name(f"{folder.name}-layers")
        _make_up(source)
    for file in source.iterdir():
        if file.is_file() and file.name not in (WEIGHTS, CONFIG):
            shutil.copyfile(file, folder / file.name)
    layers = _write_weights(source / WEIGHTS, folder / WEIGHTS, size_bytes)
    config = json.loads((source / CONFIG).read_text("utf-8"))
    (folder / CONFIG).write_text(json.dumps(config | {"num_hidden_layers": layers}, indent=2), "utf-8")
    return sum(file.stat().st_size for file in folder.iterdir())


def _make_up(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
    BertModel(BertConfig(**shape)).save_pretrained(folder)


def _write_weights(source: Path, target: Path, size_bytes: int) -> int:
    """How many layers it has now: each a copy of one of the source's, in turn."""
    data = source.read_bytes()
    header = parse_header(data[: header_size_bytes(data[:8], len(data))], len(data))
    layers: dict[int, list[tuple[str, TensorEntry]]] = {}
    rest = []
    for key, entry in header.tensors.items():
        if (match := _LAYER.match(key)) is not None:
            layers.setdefault(int(match[1]), []).append((match[2], entry))
        else:
            rest.append(entry)
    rest_bytes = sum(entry.size_bytes for entry in rest)
    layer_bytes = sum(entry.size_bytes for _, entry in layers[0])
    count = max(1, -(-(size_bytes - rest_bytes) // layer_bytes))
    chosen = [(entry, entry.key) for entry in rest]
    for number in range(count):
        chosen += [(entry, f"encoder.layer.{number}.{name}") for name, entry in layers[number % len(layers)]]
    _write(target, data, header, chosen)
    return count


def _write(target: Path, data: bytes, header: Header, chosen: list[tuple[TensorEntry, str]]) -> None:
    entries, end = [], 0
    for entry, key in chosen:
        entries.append(replace(entry, key=key, start=end, end=end + entry.size_bytes))
        end += entry.size_bytes
    view = memoryview(data)
    with target.open("wb") as opened:
        opened.write(build_header(entries, {"format": "pt"}))
        for entry, _ in chosen:
            opened.write(view[header.data_start + entry.start : header.data_start + entry.end])
