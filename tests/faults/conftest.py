"""What tests of the object tier's faults share: a real S3 server with a bucket, and a proxy before it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ckptstore_bench.services.seaweedfs import SeaweedS3
from tests.faults.outage import BUCKET
from tests.services.s3_fault_proxy import S3FaultProxy


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedS3]:
    with SeaweedS3(tmp_path_factory.mktemp("seaweed")) as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture
def proxy(seaweed: SeaweedS3) -> Iterator[S3FaultProxy]:
    with S3FaultProxy(seaweed.endpoint_url) as proxy:
        yield proxy
