"""What tests of the object tier's faults share: a real S3 server with a bucket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ckptstore_bench.services.seaweedfs import SeaweedS3
from tests.faults.outage import BUCKET


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedS3]:
    with SeaweedS3(tmp_path_factory.mktemp("seaweed")) as server:
        server.create_bucket(BUCKET)
        yield server
