"""The S3 connector for PyTorch: torch.save into, and torch.load from, a stream of its client (the AWS CRT). Needs an object tier.

Its objects lie below the run's own prefix, and go with it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from s3torchconnector import S3Checkpoint, S3ClientConfig

from ckptstore_bench.contenders.interface import CannotRun, Saved, Setup
from ckptstore_bench.shared_state import flat, open_state


def _checkpoint(setup: Setup) -> tuple[S3Checkpoint, str]:
    if setup.object_url is None or not setup.object_url.startswith("s3://"):
        raise CannotRun("no S3 tier is configured")
    options = setup.object_options
    endpoint = options.get("endpoint_url") or os.environ.get("AWS_ENDPOINT_URL")
    region = options.get("region") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    config = S3ClientConfig(
        force_path_style=endpoint is not None and options.get("addressing") != "virtual", profile=options.get("profile")
    )
    return S3Checkpoint(region, endpoint=endpoint, s3client_config=config), f"{setup.object_url}/s3torchconnector/state.pt"


class S3Saver:
    def __init__(self, setup: Setup) -> None:
        self._checkpoint, self._url = _checkpoint(setup)
        self._state, self._tier = open_state(setup.state, setup.shape), setup.object_tier or "object"

    def save(self, number: int) -> Saved:
        began_s = time.perf_counter()
        with self._checkpoint.writer(self._url) as writer:
            torch.save(self._state, writer)
        stall_s = time.perf_counter() - began_s
        return Saved(stall_s, {self._tier: stall_s})

    def close(self) -> None:
        """The run removes its prefix."""


class S3Loader:
    def __init__(self, setup: Setup) -> None:
        self._checkpoint, self._url = _checkpoint(setup)
        self._setup = setup

    def prepare(self) -> list[Path]:
        with self._checkpoint.writer(self._url) as writer:
            torch.save(open_state(self._setup.state, self._setup.shape), writer)
        return []

    def load(self) -> dict[str, Any]:
        with self._checkpoint.reader(self._url) as reader:
            return flat(torch.load(reader, weights_only=True, map_location="cpu"))

    def close(self) -> None:
        """The run removes its prefix."""
