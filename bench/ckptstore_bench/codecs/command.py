"""`ckptstore bench codecs`: its options, and from them the table. Imports nothing heavy before it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ckptstore_bench.report import Report
from ckptstore_bench.running import JsonFile, PageFile, RoundsOption, Steps, positive_size, run
from ckptstore_client.cli.invocation import Invocation


def codecs(
    invocation: Invocation,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Your own checkpoints, else weights as they are.", show_default=False)
    ] = None,
    size: Annotated[str, typer.Option(metavar="BYTES", help="At most so much of each file, from its beginning.")] = "64MiB",
    rounds: RoundsOption = 5,
    as_json: JsonFile = None,
    report: PageFile = None,
) -> None:
    """What `compression` of a tier makes of weights: size, and speed on one core, in and out.

    Example: ckptstore bench codecs model-00001-of-00004.safetensors
    """
    size_bytes = positive_size(size)

    def measure(steps: Steps) -> Report:
        from ckptstore_bench import machine
        from ckptstore_bench.codecs.measure import measure as measure_codecs
        from ckptstore_bench.codecs.report import build
        from ckptstore_bench.codecs.weights import chosen_weights

        steps.say("reading weights")
        weights = chosen_weights(files or [], size_bytes)
        results = measure_codecs(weights, rounds, steps)
        described = machine.describe(Path.cwd(), "zstandard")
        settings = {"size_bytes": size_bytes, "weights": {one.name: one.what for one in weights}}
        return build(results, rounds=rounds, settings=settings, machine=described)

    run(invocation, measure, as_json=as_json, page_file=report)
