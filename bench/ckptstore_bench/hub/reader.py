"""The program that loads models: `python -m ckptstore_bench.hub.reader`. Nothing of ours is in it but this loop.

Each line names one thing to do, and is answered with its seconds: `{"snapshot": MODEL, "endpoint": URL, "cache": FOLDER}` downloads a
model into an empty cache of the client, `{"load": FOLDER}` makes a model of a folder. What was loaded is summed up once (`check`).
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import huggingface_hub
import torch
import transformers


def snapshot(model: str, endpoint: str, cache: Path, token: str | None) -> dict[str, float]:
    """Seconds, and the bytes that arrived."""
    began_s = time.perf_counter()
    place = huggingface_hub.snapshot_download(model, endpoint=endpoint, cache_dir=cache, token=token or False)
    seconds = time.perf_counter() - began_s
    size_bytes = sum(file.stat().st_size for file in Path(place).iterdir())
    shutil.rmtree(cache)
    return {"seconds": seconds, "loaded": float(size_bytes)}


def load(folder: str, *, check: bool) -> dict[str, float]:
    """Seconds until the model is there with every weight in memory: what is mapped is touched."""
    began_s = time.perf_counter()
    model = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        touched = sum(float(one.view(-1)[:: 4096 // one.element_size()].sum()) for one in model.parameters())
        seconds = time.perf_counter() - began_s
        total = sum(float(one.double().sum()) for one in model.parameters()) if check else touched
    return {"seconds": seconds, "loaded": total}


def main() -> None:
    print(json.dumps({"ready": 1.0}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "snapshot" in order:
            answer = snapshot(order["snapshot"], order["endpoint"], Path(order["cache"]), order.get("token"))
        else:
            answer = load(order["load"], check=order["check"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
