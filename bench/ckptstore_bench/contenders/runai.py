"""Run:ai Model Streamer: threads read a safetensors file into one host buffer, tensors are views of it.

16 threads are its default for file systems; the buffer is unlimited (RUNAI_STREAMER_MEMORY_LIMIT=-1), so that no tensor's memory is used
twice and all may be kept, as a loader into new CPU tensors must.
"""

from __future__ import annotations

import os
from typing import Any

from runai_model_streamer import SafetensorsStreamer

from ckptstore_bench.contenders.interface import Setup
from ckptstore_bench.contenders.safetensors_file import SafetensorsLoader


class RunaiLoader(SafetensorsLoader):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        os.environ.setdefault("RUNAI_STREAMER_MEMORY_LIMIT", "-1")
        os.environ.setdefault("RUNAI_STREAMER_CONCURRENCY", "16")

    def load(self) -> dict[str, Any]:
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(str(self._file))
            return dict(streamer.get_tensors())
