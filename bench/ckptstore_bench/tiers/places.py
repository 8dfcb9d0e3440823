"""Which tiers are measured, where, and over which settings? Every configured tier in its scratch place, and host memory.

Nothing here touches what a store keeps: posix tiers work in a folder of their own below the root, object tiers below a prefix of their own,
memory in segments of a pool of this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ckptstore.config import TierSettings
from ckptstore.errors import TierFull
from ckptstore_bench.tiers.contender import Setting
from ckptstore_bench.tiers.device_files import FileDevice, takes_direct_io
from ckptstore_bench.tiers.device_memory import MemoryDevice, SegmentContender
from ckptstore_bench.tiers.sweep import Place
from ckptstore_bench.tiers.through_tier import TierContender
from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.interface import Tier
from ckptstore_tiers.memory_limits import HostMemory
from ckptstore_tiers.open_tiers import open_tier
from ckptstore_tiers.posix_space import walk_size_bytes
from ckptstore_tiers.s3_options import SCHEMES, read_s3_settings

#: A part of S3 has at least this much.
MIN_PART_BYTES = 2 * BLOCK_BYTES
#: Data, a plain copy, a segment and where reads go.
MEMORY_COPIES = 4


@dataclass(frozen=True)
class Extent:
    """How much is measured: what the options say."""

    blocks: Sequence[int]
    threads: Sequence[int]
    reads: int
    small_writes: int
    warm: bool


def memory_place(sink: memoryview, extent: Extent, *, huge_pages: bool) -> Place:
    grid = [Setting(block, threads) for block in extent.blocks for threads in extent.threads if block <= len(sink)]
    return Place(
        "memory",
        "memory",
        shared=False,
        store=SegmentContender(sink, huge_pages=huge_pages),
        device=MemoryDevice(sink),
        grid=grid,
        present=grid[0],
        random_reads=extent.reads,
        random_threads=_few(extent.threads),
        small_writes=0,
    )


def posix_place(tier: TierSettings, home: Path, extent: Extent) -> Place:
    assert tier.path is not None
    takes_direct = takes_direct_io(tier.path)  # also where it is configured away: it may be better
    present = Setting(tier.write_size, tier.write_threads, takes_direct and tier.direct_io != "never")
    ways = [True, False] if takes_direct else [False]
    grid = {Setting(block, threads, direct) for block in extent.blocks for threads in extent.threads for direct in ways}

    def opened(setting: Setting | None) -> Tier:
        asked = _plain(tier)
        if setting is not None:
            # A reader takes any block and any number of threads; only what is written is bound to the tier's own.
            size_bytes = min(max(setting.block_bytes // (64 << 10) * (64 << 10), 64 << 10), BLOCK_BYTES)
            direct_io = "auto" if setting.direct else "never"
            asked = asked.model_copy(update={"direct_io": direct_io, "write_threads": setting.threads, "write_size": size_bytes})
        return open_tier(asked, home)

    def can(setting: Setting) -> bool:
        return setting.block_bytes <= BLOCK_BYTES and setting.block_bytes % (64 << 10) == 0 and setting.threads <= 64

    notes = ["a shared tier reads back what it wrote before a put returns; its device alone does not"] if tier.is_shared else []
    return Place(
        tier.name,
        "posix",
        shared=tier.is_shared,
        store=TierContender(opened, can, root=tier.path, warm=extent.warm),
        device=FileDevice(tier.path / "device", tier.name, warm=extent.warm),
        grid=sorted(grid | {present}),
        present=present,
        random_reads=extent.reads,
        random_threads=_few(extent.threads),
        small_writes=extent.small_writes,
        notes=(*notes, *_codec_note(tier)),
    )


def object_place(tier: TierSettings, home: Path, extent: Extent) -> Place:
    from ckptstore_bench.tiers.device_bucket import object_device  # botocore: only who has such a tier pays for it

    is_s3 = urlsplit(tier.url or "").scheme in SCHEMES
    if is_s3:
        _, options = read_s3_settings(tier)
        present = Setting(options.part_size, options.parallel)
        blocks = [block for block in extent.blocks if block >= MIN_PART_BYTES and block % BLOCK_BYTES == 0]
    else:
        present, blocks = Setting(BLOCK_BYTES, 1), [BLOCK_BYTES]
    grid = {Setting(block, threads) for block in blocks for threads in extent.threads if threads <= 64}

    def opened(setting: Setting | None) -> Tier:
        asked = _plain(tier)
        if setting is not None and is_s3 and setting != present and setting.block_bytes >= MIN_PART_BYTES:
            asked = asked.model_copy(update={"options": {**tier.options, **_fixed(setting)}})
        return open_tier(asked, home)

    return Place(
        tier.name,
        "object",
        shared=tier.is_shared,
        store=TierContender(opened, lambda setting: True),
        device=object_device(tier),
        grid=sorted(grid | {present}),
        present=present,
        # A request costs a millisecond, not a few microseconds.
        random_reads=max(1, extent.reads // 20),
        random_threads=_few(extent.threads),
        small_writes=max(1, extent.small_writes // 5),
        notes=_codec_note(tier),
    )


def _fixed(setting: Setting) -> dict[str, int]:
    """Options of S3 that leave it no choice; the present setting is measured as it is, finding its own way."""
    parts = dict.fromkeys(("part_size", "part_size_most"), setting.block_bytes)
    return parts | dict.fromkeys(("parallel", "parallel_start", "parallel_least"), setting.threads)


def check_room(tier: TierSettings, root: Path | None, need_bytes: int) -> None:
    """TierFull if a configured capacity has no room for so many bytes beside what is used. `root` is the tier's own folder."""
    if tier.capacity is None:
        return
    if root is not None:
        used_bytes = walk_size_bytes(root) if root.exists() else 0
    else:
        opened = open_tier(_plain(tier, capacity=tier.capacity), Path("/nonexistent"))
        try:
            used_bytes = opened.usage().used_bytes
        finally:
            opened.close()
    if tier.capacity - used_bytes < need_bytes:
        why = f"its capacity has room for {max(0, tier.capacity - used_bytes):,} bytes, and this needs {need_bytes:,}"
        raise TierFull(why, operation="bench", tier=tier.name, hint="a smaller --size, or leave it out with --only")


def check_memory(size_bytes: int) -> None:
    """TierFull if memory has no room for what is copied to and fro."""
    room, need_bytes = HostMemory().room(), MEMORY_COPIES * size_bytes
    if room.size_bytes < need_bytes:
        why = f"{room.bound} leaves {room.size_bytes:,} bytes, and this needs {need_bytes:,}"
        raise TierFull(why, operation="bench", tier="memory", hint="a smaller --size")


def _plain(tier: TierSettings, capacity: int | None = None) -> TierSettings:
    """The tier itself, without its codec; its capacity was looked at before."""
    return tier.model_copy(update={"compression": "none", "capacity": capacity})


def _codec_note(tier: TierSettings) -> tuple[str, ...]:
    return (f"measured without its compression ({tier.compression})",) if tier.compression != "none" else ()


def _few(threads: Sequence[int]) -> list[int]:
    """Random reads by one thread, and by the most."""
    return sorted({1, max(threads)})
