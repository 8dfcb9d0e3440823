"""A daemon whose checkpoints lie in an S3 bucket behind a proxy and nowhere else: what is loaded has to be recalled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ckptstore_bench.services.seaweedfs import SeaweedS3
from ckptstore_client import Store
from tests.faults.fault_store import FaultStore, objects_below, posix_tier
from tests.faults.outage import BUCKET
from tests.services.s3_fault_proxy import S3FaultProxy


@contextmanager
def far_store(
    folder: Path,
    seaweed: SeaweedS3,
    proxy: S3FaultProxy,
    save: Callable[[Store], None],
    *,
    compression: str = "none",
    rigging: Callable[[ExitStack], None] | None = None,
) -> Iterator[FaultStore]:
    """`save` fills the store and waits for the bucket. The proxy has seen nothing yet when the block begins."""
    options = {"endpoint_url": proxy.endpoint_url, "read_timeout_s": 60.0, "retry_for_s": 2.0}
    bucket = {"name": "object", "kind": "object", "url": f"s3://{BUCKET}/{folder.name}", "options": options, "compression": compression}
    environment = {key: value for key, value in seaweed.environment().items() if key != "AWS_ENDPOINT_URL"}
    with FaultStore(folder / "home", [posix_tier("nvme", folder / "nvme"), bucket], environment=environment, rigging=rigging) as place:
        place.start()
        save(place.connect())
        place.daemon.kill()
        for path in objects_below(folder / "nvme"):
            path.unlink()
        place.start()
        proxy.clear()
        yield place
