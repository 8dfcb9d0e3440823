"""A daemon with an NVMe tier, a parallel file system and a real S3 server behind a proxy; and looks past both, into the bucket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptstore_bench.services.seaweedfs import SeaweedS3
from ckptstore_client import Store
from tests.faults import everything_on
from tests.faults.fault_store import FaultStore, objects_below, posix_tier
from tests.services.s3_fault_proxy import S3FaultProxy

BUCKET = "checkpoints"
#: Short patience per request: the daemon's own back-off is what is tested here.
QUICK = {"retry_for_s": 0.5, "read_timeout_s": 2.0, "connect_timeout_s": 2.0}


@dataclass
class Outage:
    """A daemon with three tiers, the last one behind a proxy, and a way to the bucket that goes past both."""

    place: FaultStore
    proxy: S3FaultProxy
    seaweed: SeaweedS3
    prefix: str

    @property
    def nvme(self) -> Path:
        return self.place.root("nvme")

    def bucket(self, kind: str, run: str = "") -> dict[str, bytes]:
        """Key → bytes of what the bucket itself holds: `objects` below a folder of the namespace, or all `records`."""
        client, prefix = self.seaweed.client(), f"{self.prefix}/"
        listed = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}{kind}{run}/").get("Contents", [])
        return {one["Key"].removeprefix(prefix): client.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read() for one in listed}

    def missing(self, path: str) -> list[str]:
        """What the bucket lacks of a checkpoint that the NVMe tier holds, or holds otherwise."""
        mine = {str(file.relative_to(self.nvme)): file for file in objects_below(self.nvme) if f"{path}/" in str(file)}
        assert len(mine) == 2, f"a rank's file and the index were expected on NVMe, not {sorted(mine)}"
        there = self.bucket("objects", path)
        return [f"{key} ({len(there.get(key, b''))} bytes there)" for key, file in mine.items() if there.get(key) != file.read_bytes()]

    @property
    def unfinished_uploads(self) -> list[str]:
        """The keys of uploads that were begun and neither completed nor aborted."""
        found = self.seaweed.client().list_multipart_uploads(Bucket=BUCKET, Prefix=f"{self.prefix}/").get("Uploads", [])
        return [upload["Key"] for upload in found]

    def has_record(self, publication_id: str | None) -> bool:
        return any(str(publication_id) in key for key in self.bucket("records"))

    def save(self, store: Store, run: str, steps: range) -> None:
        """With everything on."""
        for step in steps:
            everything_on.save(store, f"{run}/step-{step}", step).wait("pfs", timeout_s=60)

    def assert_all_arrived(self, store: Store, run: str, steps: range) -> None:
        """Every file is in the bucket, byte for byte and once, with its commit record."""
        for step in steps:
            store.wait(f"{run}/step-{step}", "object", timeout_s=90)
            assert self.missing(f"{run}/step-{step}") == []
            assert self.has_record(store.stat(f"{run}/step-{step}").publication_id)
            everything_on.assert_saved(store.load(f"{run}/step-{step}"), step)
        assert len(self.bucket("objects", run)) == 2 * len(steps)


@contextmanager
def outage(seaweed: SeaweedS3, folder: Path, patience: dict[str, Any] = QUICK) -> Iterator[Outage]:
    prefix = folder.name
    with S3FaultProxy(seaweed.endpoint_url) as proxy:
        options = {"endpoint_url": proxy.endpoint_url, **patience}
        tiers = [
            posix_tier("nvme", folder / "nvme"),
            posix_tier("pfs", folder / "pfs", shared=True),
            {"name": "object", "kind": "object", "url": f"s3://{BUCKET}/{prefix}", "options": options},
        ]
        environment = {key: value for key, value in seaweed.environment().items() if key != "AWS_ENDPOINT_URL"}
        with FaultStore(folder / "home", tiers, environment=environment) as place:
            yield Outage(place, proxy, seaweed, prefix)
