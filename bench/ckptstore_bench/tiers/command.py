"""`ckptstore bench tiers`: its options. Imports nothing heavy before it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from ckptstore.errors import InvalidInput
from ckptstore_bench.report import Report
from ckptstore_bench.running import FolderOption, JsonFile, PageFile, RoundsOption, Steps, positive_size, run
from ckptstore_client.cli.invocation import Invocation

#: A page, which O_DIRECT transfers; and what a thread's buffer may take.
MIN_BLOCK_BYTES, MAX_BLOCK_BYTES, MAX_THREADS = 4096, 1 << 30, 64


def tiers(
    invocation: Invocation,
    only: Annotated[list[str] | None, typer.Option(metavar="TIER", help="memory, or a configured tier's name. May be repeated.")] = None,
    size: Annotated[str, typer.Option(help="Bytes that are written and read at each setting.")] = "256MiB",
    rounds: RoundsOption = 5,
    blocks: Annotated[str, typer.Option(help="Sizes of a single call, and of S3's parts.")] = "1MiB,4MiB,16MiB",
    threads: Annotated[str, typer.Option(help="Calls at once.")] = "1,4,8",
    reads: Annotated[int, typer.Option(min=1, help="Random reads of 4 KiB; a twentieth of it from object tiers.")] = 2000,
    small_writes: Annotated[int, typer.Option(min=1, help="Small durable writes; a fifth of it to object tiers.")] = 50,
    warm: Annotated[bool, typer.Option("--warm", help="Let buffered reads come out of the page cache, as on tmpfs they must.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Write the best settings to the configuration.")] = False,
    folder: FolderOption = None,
    as_json: JsonFile = None,
    report: PageFile = None,
) -> None:
    """How fast each configured tier is, how fast its device is without ckptstore, and which setting is best.

    Works in scratch places beside what the store keeps, and removes them.

    Example: ckptstore bench tiers --only nvme --size 1GiB --report tiers.html
    """
    if apply and folder is not None:
        raise InvalidInput("a folder has no configuration", operation="bench", subject="--apply --folder", hint="leave one of them out")
    size_bytes = positive_size(size)
    block_bytes = [_bounded(positive_size(part, "--blocks"), MIN_BLOCK_BYTES, MAX_BLOCK_BYTES, "--blocks") for part in blocks.split(",")]
    if any(block % MIN_BLOCK_BYTES for block in block_bytes):
        raise InvalidInput("a block is a whole number of pages of 4 KiB", operation="bench", subject=f"--blocks {blocks}")
    counts = [_bounded(_number(part), 1, MAX_THREADS, "--threads") for part in threads.split(",")]

    def measure(steps: Steps) -> Report:
        from ckptstore_bench.tiers.measuring import Request
        from ckptstore_bench.tiers.measuring import measure as measure_tiers
        from ckptstore_bench.tiers.places import Extent

        extent = Extent(sorted(set(block_bytes)), sorted(set(counts)), reads, small_writes, warm)
        request = Request(size_bytes, rounds, extent, tuple(only or ()), invocation.home, folder, apply)
        return measure_tiers(steps, request)

    run(invocation, measure, as_json=as_json, page_file=report)


def _number(text: str) -> int:
    if not text.strip().isdigit():
        raise InvalidInput(f"{text!r} is no number", operation="bench", subject="--threads", hint="for example 1,4,8")
    return int(text)


def _bounded(value: int, least: int, most: int, option: str) -> int:
    if not least <= value <= most:
        raise InvalidInput(f"{value} is not from {least} to {most}", operation="bench", subject=option)
    return value
