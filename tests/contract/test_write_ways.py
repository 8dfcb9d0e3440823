"""The posix tier writes as its settings say: so many bytes in one call, so many calls at once; and stores the same bytes either way."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from ckptstore.config import TierSettings
from ckptstore_tiers.disk_calls import witnessed_by
from ckptstore_tiers.open_tiers import open_tier
from ckptstore_tiers.posix_write import WRITE
from ckptstore_tiers.sources import MemorySource

SIZE_BYTES = (9 << 20) + 5


class Writes:
    """The lengths of all writes, and the threads that made them."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.threads: set[int] = set()

    def before(self, label: str, call: str, arguments: tuple[Any, ...]) -> None:
        if label == WRITE:
            self.lengths.append(arguments[1])
            self.threads.add(threading.get_ident())

    def after(self, label: str, call: str, arguments: tuple[Any, ...], result: Any) -> None:
        return None


@pytest.mark.parametrize("direct_io", ["auto", "never"])
@pytest.mark.parametrize(("threads", "size"), [(1, 64 << 10), (2, 1 << 20), (3, 4 << 20)])
def test_no_write_is_longer_and_no_more_threads_write_than_configured(tmp_path: Path, direct_io: Any, threads: int, size: int) -> None:
    settings = TierSettings(name="t", kind="posix", path=tmp_path / "t", direct_io=direct_io, write_threads=threads, write_size=size)
    tier, seen, data = open_tier(settings, tmp_path), Writes(), os.urandom(SIZE_BYTES)
    try:
        with witnessed_by(seen):
            tier.put("objects/x~1", MemorySource(data))
    finally:
        tier.close()
    assert max(seen.lengths) <= size
    assert len(seen.threads) <= threads
    assert (tmp_path / "t/objects/x~1").read_bytes() == data


@pytest.mark.parametrize("size", [4096, 100_000, (64 << 10) + 4096, 8 << 20])
def test_a_write_size_that_is_no_multiple_of_64_kib_or_above_a_block_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match="write_size"):
        TierSettings(name="t", kind="posix", path=tmp_path, write_size=size)
