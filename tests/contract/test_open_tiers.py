"""A `[[tiers]]` table becomes the tier that it describes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from ckptstore.config import TierSettings
from ckptstore.errors import TierUnavailable
from ckptstore_tiers.open_tiers import open_tier
from ckptstore_tiers.sources import MemorySource
from tests.contract.tier_contract import new_key, stored


def test_a_posix_table_opens_a_posix_tier_with_all_that_it_says(tmp_path: Path) -> None:
    settings = TierSettings(name="pfs", kind="posix", path=tmp_path / "root", shared=True, durable=False, capacity="10MB")
    tier = open_tier(settings, tmp_path)
    assert (tier.facts.name, tier.facts.kind, tier.facts.shared, tier.facts.durable) == ("pfs", "posix", True, False)
    assert tier.facts.location == str(tmp_path / "root")
    assert tier.usage().limit_bytes == 10_000_000
    tier.close()


@pytest.mark.parametrize("compression", ["zstd", "float"])
def test_compression_spools_in_the_home_and_is_told_by_the_tier(tmp_path: Path, compression: Literal["zstd", "float"]) -> None:
    settings = TierSettings(name="cold", kind="posix", path=tmp_path / "root", compression=compression)
    tier, key, data = open_tier(settings, tmp_path / "home"), new_key(), b"text " * 1_000_000
    tier.put(key, MemorySource(data))
    assert stored(tier, key) == data
    assert (tmp_path / "root" / key).stat().st_size < len(data)
    assert list((tmp_path / "home").iterdir()) == [tmp_path / "home/spool"]
    assert tier.facts.details["compression"].startswith(compression)
    tier.close()


def test_an_object_table_with_a_memory_url_opens_through_fsspec(tmp_path: Path) -> None:
    tier, key = open_tier(TierSettings(name="object", kind="object", url="memory://open-tiers"), tmp_path), new_key()
    tier.put(key, MemorySource(b"x"))
    assert stored(tier, key) == b"x"
    assert tier.facts.shared
    tier.close()


def test_a_root_that_cannot_be_made_is_unavailable_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    settings = TierSettings(name="nvme", kind="posix", path=tmp_path / "file/root")
    with pytest.raises(TierUnavailable) as caught:
        open_tier(settings, tmp_path)
    assert caught.value.tier == "nvme"
    assert caught.value.subject == str(tmp_path / "file/root")
