"""Waiting for a tier means: that tier, or a deeper one."""

from __future__ import annotations

import pytest

from ckptstore.durability import is_as_safe_as

ORDER = ["nvme", "pfs", "object"]


@pytest.mark.parametrize(
    ("wanted", "durability", "safe"),
    [
        ("nvme", ["nvme"], True),
        ("nvme", ["pfs"], True),
        ("pfs", ["nvme"], False),
        ("pfs", ["nvme", "object"], True),
        ("object", ["nvme", "pfs"], False),
        ("nvme", [], False),
    ],
)
def test_a_deeper_tier_is_as_safe_and_a_faster_one_is_not(wanted: str, durability: list[str], safe: bool) -> None:
    assert is_as_safe_as(wanted, durability, ORDER) is safe
