"""`ckptstore bench s3`: its options. Imports nothing heavy before it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from ckptstore.config import TierSettings, read_settings
from ckptstore.errors import InvalidInput
from ckptstore_bench.report import Report
from ckptstore_bench.running import JsonFile, PageFile, RoundsOption, Steps, positive_size, run
from ckptstore_client.cli.invocation import Invocation

BLOCK_BYTES = 4 << 20
LIBRARIES = "obstore,s3torchconnector,boto3-crt,boto3,s3fs"


def s3(
    invocation: Invocation,
    tier: Annotated[str | None, typer.Option(metavar="TIER", help="A configured S3 tier; the first one unless said.")] = None,
    url: Annotated[str | None, typer.Option(metavar="s3://BUCKET/PREFIX", help="Another place than a configured tier's.")] = None,
    endpoint: Annotated[str | None, typer.Option(metavar="URL", help="With --url: the server.")] = None,
    against: Annotated[str, typer.Option(metavar="NAMES", help="Libraries that take part.")] = LIBRARIES,
    size: Annotated[str, typer.Option(help="Bytes of the object.")] = "512MiB",
    part: Annotated[str, typer.Option(help="Bytes of a part or range.")] = "16MiB",
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Parts and ranges at once.")] = 8,
    rounds: RoundsOption = 5,
    as_json: JsonFile = None,
    report: PageFile = None,
) -> None:
    """How fast this machine's clients of S3 move an object, and for how many CPU seconds: the store's, and the libraries', in turns.

    Works below a prefix of its own in the tier's place, and removes it.

    Example: ckptstore bench s3 --url s3://scratch/bench --endpoint http://127.0.0.1:8333 --rounds 5
    """
    size_bytes, part_bytes = positive_size(size), positive_size(part, "--part")
    if part_bytes % BLOCK_BYTES or part_bytes < 2 * BLOCK_BYTES:
        raise InvalidInput("a part is a multiple of 4 MiB, 8 MiB or more", operation="bench s3", subject=f"--part {part}")
    settings = _settings(invocation, tier, url, endpoint)

    def measure(steps: Steps) -> Report:
        import tempfile
        from pathlib import Path

        from ckptstore_bench import machine
        from ckptstore_bench.s3.clients import CLIENTS, LIMIT, STORE
        from ckptstore_bench.s3.measuring import measure as measure_clients
        from ckptstore_bench.s3.s3_report import build

        libraries = [name.strip() for name in against.split(",") if name.strip()]
        for name in libraries:
            if name not in CLIENTS:
                raise InvalidInput(f"{name!r} is none of {', '.join(CLIENTS)}", operation="bench s3", subject="--against")
        clients = list(dict.fromkeys([STORE, LIMIT, *libraries]))
        packages = [package for name in clients for package in CLIENTS[name][1]]
        with tempfile.TemporaryDirectory(prefix="ckptstore-bench-", dir="/var/tmp") as folder:
            described = machine.describe(Path(folder), *packages)
            results = measure_clients(settings, clients, Path(folder), size_bytes, part_bytes, parallel, rounds, steps)
        told = {"url": settings.url, "size_bytes": size_bytes, "part_bytes": part_bytes, "parallel": parallel, "clients": clients}
        return build(results, rounds=rounds, settings=told, machine=described)

    run(invocation, measure, as_json=as_json, page_file=report)


def _settings(invocation: Invocation, name: str | None, url: str | None, endpoint: str | None) -> TierSettings:
    if url is not None:
        if name is not None or not url.startswith("s3://"):
            raise InvalidInput("--url is an s3:// URL, and goes without --tier", operation="bench s3", subject=url)
        return TierSettings(name="object", kind="object", url=url, options={} if endpoint is None else {"endpoint_url": endpoint})
    tiers = read_settings(home=invocation.home).effective_tiers
    found = [tier for tier in tiers if (tier.url or "").startswith("s3://") and name in (None, tier.name)]
    if not found or endpoint is not None:
        why = "--endpoint goes with --url" if endpoint is not None else "no such S3 tier is configured"
        raise InvalidInput(why, operation="bench s3", subject=name, hint="name a place with --url and --endpoint")
    return found[0]
