"""`ckptstore bench hub`: its options. Imports nothing heavy before it is called."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from ckptstore.errors import InvalidInput
from ckptstore_bench.report import Report
from ckptstore_bench.running import FolderOption, JsonFile, PageFile, RoundsOption, Steps, positive_size, run
from ckptstore_client.cli.invocation import Invocation

NEEDED = ("aiohttp", "huggingface_hub", "torch", "transformers")
#: The plain files, the store's, and those in the client's cache.
COPIES = 3


def hub(
    invocation: Invocation,
    size: Annotated[str, typer.Option(help="Bytes of the model.")] = "2GiB",
    rounds: RoundsOption = 5,
    folder: FolderOption = None,
    as_json: JsonFile = None,
    report: PageFile = None,
) -> None:
    """How fast does a hot model load: snapshot_download beside a static file server, from_pretrained beside a local folder?

    Example: ckptstore bench hub --size 4GiB --folder /mnt/nvme/bench
    """
    size_bytes = positive_size(size)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        why = f"{missing[0]} is not installed"
        raise InvalidInput(why, operation="bench hub", subject="bench", hint="pip install huggingface_hub transformers torch aiohttp")

    def measure(steps: Steps) -> Report:
        from ckptstore_bench import machine
        from ckptstore_bench.hub.hub_report import build
        from ckptstore_bench.hub.measuring import local_network
        from ckptstore_bench.hub.measuring import measure as measure_hub
        from ckptstore_bench.scratch import Scratch
        from ckptstore_bench.workspace import Workspace

        scratch = Scratch(home=invocation.home, folder=folder)
        scratch.check_room(COPIES * size_bytes)
        network = local_network()
        with Workspace(scratch, memory_limit_bytes=64 << 20, network=network) as workspace:
            described = machine.describe(workspace.folder, "huggingface_hub", "transformers", "torch", "aiohttp")
            measured = measure_hub(size_bytes, rounds, workspace, network, steps)
        return build(measured, rounds=rounds, tiers=scratch.described(), machine=described)

    run(invocation, measure, as_json=as_json, page_file=report)
