"""How is it measured? One model on this node: in the store, hot, and as plain files on the same disk.

`snapshot_download` fills an empty cache of the client, from the endpoint and from a static file server that sends the plain files;
`from_pretrained` makes a model of the folder in the mount, and of the plain one. All run in one other process, which has its libraries
loaded. The two ways of one call take turns, in every other round the other way round; then the two of the other call do, since what one
leaves behind (memory given back, pages to be written) is felt by the next. Each pair's first round is not counted; in it what was loaded
is compared. Before it all files leave the page cache, if this is root: hot means read before in this way, and not written a moment ago.
"""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ckptstore.errors import ChecksumMismatch
from ckptstore_bench.cold import drop_memory, may_drop
from ckptstore_bench.hub.model import write_model
from ckptstore_bench.line_process import LineProcess
from ckptstore_bench.measure import Rounds
from ckptstore_bench.ports import free_port
from ckptstore_bench.running import Steps
from ckptstore_bench.scratch import Network
from ckptstore_bench.workspace import Workspace
from ckptstore_client.mount import mounting
from ckptstore_client.mount.task import MountOptions

ENDPOINT, SERVER = "snapshot_download from the endpoint", "snapshot_download from a static file server"
MOUNT, FOLDER = "from_pretrained through the mount", "from_pretrained from a local folder"
MODEL = "bench/layers"


@dataclass
class Measured:
    rounds: Rounds
    model_bytes: int


def local_network() -> Network:
    """A port of this machine alone that nobody has now, and a token that nobody knows."""
    return Network(f"127.0.0.1:{free_port()}", secrets.token_hex(16))


def measure(size_bytes: int, rounds: int, workspace: Workspace, network: Network, steps: Steps) -> Measured:
    """`workspace` is entered already, and its daemon listens on `network`."""
    with ExitStack() as stack:
        steps.say("making the model")
        folder = workspace.folder / "model"
        model_bytes = write_model(folder, size_bytes)
        store = stack.enter_context(workspace.connect())
        store.put(folder, f"/models/{MODEL}")
        store.warm("/models")
        place = workspace.folder / "mnt"
        place.mkdir()
        mounting.mount(MountOptions(str(place), "/models", str(workspace.home)), log=workspace.folder / "mount.log")
        stack.callback(mounting.umount, place, lazy=True)
        steps.say("starting the server and the reader")
        server = stack.enter_context(LineProcess("ckptstore_bench.hub.static_server", [str(folder), MODEL]))
        environment = dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"), "1")
        environment |= {"HF_HOME": str(workspace.folder / "hf")}
        reader = stack.enter_context(LineProcess("ckptstore_bench.hub.reader", [], environment))
        calls: list[dict[str, dict[str, str | None]]] = [
            {
                ENDPOINT: _snapshot(f"http://{network.listen}/hf", workspace.folder, network.token),
                SERVER: _snapshot(f"http://127.0.0.1:{int(server.answer()['port'])}", workspace.folder, None),
            },
            {MOUNT: {"load": str(place / MODEL)}, FOLDER: {"load": str(folder)}},
        ]
        reader.answer()
        steps.plan(2 * len(calls) * (rounds + 1))
        found = Rounds()
        for ways in calls:
            if may_drop():
                drop_memory()
            _take_turns(reader, ways, rounds, found, steps)
        return Measured(found, model_bytes)


def _snapshot(endpoint: str, folder: Path, token: str | None) -> dict[str, str | None]:
    return {"snapshot": MODEL, "endpoint": endpoint, "cache": str(folder / "client"), "token": token}


def _take_turns(reader: LineProcess, ways: dict[str, dict[str, str | None]], rounds: int, found: Rounds, steps: Steps) -> None:
    names = list(ways)
    loaded = set()
    for turn in range(rounds + 1):
        for name in names if turn % 2 else names[::-1]:
            steps.next(name if turn else "warming up")
            os.sync()
            reader.tell(**ways[name], check=turn == 0)
            answer = reader.answer()
            if turn:
                found.add(name, answer["seconds"])
            else:
                loaded.add(answer["loaded"])
    if len(loaded) > 1:
        raise ChecksumMismatch("what was loaded from the store is not what the plain files hold", operation="bench hub")
