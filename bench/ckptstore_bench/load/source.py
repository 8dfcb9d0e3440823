"""From where is a state loaded? The one replica that the measurement is about: what lies nearer is out of the way before every load.

`memory` is the daemon's segment; the peers then read files that the page cache holds. For a tier the daemon was restarted, so that its
segments are gone, and replicas in nearer tiers are deleted. The daemon finds a deleted replica missing and goes to the next, as it does
after a disk was lost. A tier on a file system is read cold: its files are dropped from the page cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckptstore.config import TierSettings
from ckptstore.errors import CkptStoreError, InvalidInput
from ckptstore_bench.contenders.catalogue import Contender
from ckptstore_bench.contenders.store import LOADED, WAIT_S
from ckptstore_bench.contests import Contest
from ckptstore_bench.scratch import Scratch
from ckptstore_bench.shared_state import open_state

MEMORY = "memory"
#: Peers whose bytes come from an object store.
FROM_OBJECTS = ("s3torchconnector",)


@dataclass(frozen=True)
class Source:
    """`tier` is None for memory; `above` are the tiers that are nearer."""

    name: str
    tier: TierSettings | None
    above: tuple[TierSettings, ...]

    @property
    def is_cold(self) -> bool:
        """Whether files are dropped from the page cache before each load. What an object store's server keeps is not ours to drop."""
        return self.tier is not None and self.tier.path is not None

    @property
    def title(self) -> str:
        if self.tier is None:
            return self.name
        return f"{self.name}, {'cold' if self.is_cold else 'with whatever its server keeps in memory'}"

    def concerns(self, contender: Contender) -> bool:
        """A limit is measured only where it is one: fio's of a device."""
        return contender.name != "fio" or (self.tier is not None and self.tier.path is not None)

    def why_not(self, contender: Contender) -> str | None:
        """Why this contender has nothing to read there; None if it has."""
        reads_objects = contender.name in FROM_OBJECTS
        is_object = self.tier is not None and self.tier.kind == "object"
        if contender.role == "store" or contender.name == "memory copy" or reads_objects == is_object:
            return None
        return f"it reads {'objects' if reads_objects else 'files'}, and --from is {self.name}"


def read_source(name: str | None, scratch: Scratch) -> Source:
    """The first posix tier unless said. InvalidInput for a tier that is not configured."""
    if name == MEMORY:
        return Source(MEMORY, None, ())
    names = [tier.name for tier in scratch.tiers]
    wanted = name or next((tier.name for tier in scratch.tiers if tier.kind == "posix"), names[0])
    if wanted not in names:
        hint = f"there are {', '.join([MEMORY, *names])}"
        raise InvalidInput(f"there is no tier {wanted!r}", operation="bench load", subject="--from", hint=hint)
    place = names.index(wanted)
    return Source(wanted, scratch.tiers[place], scratch.tiers[:place])


def put_there(contest: Contest, source: Source) -> None:
    """Save what will be loaded, and wait until the source has it; then only the source, or what `clear_above` leaves, has it."""
    workspace = contest.workspace
    with workspace.connect() as store:
        pending = store.save(LOADED, open_state(contest.state.path, contest.state.shape))
        pending.wait(contest.tiers[0] if source.tier is None else source.name, timeout_s=WAIT_S)
    if source.tier is not None:
        workspace.stop_daemon()
        with workspace.connect():  # started again: no segment of the last one is left
            nearest, _ = workspace.nearest_replica(LOADED)
            expected = contest.tiers[0] if source.above else source.name
    else:
        nearest, _ = workspace.nearest_replica(LOADED)
        expected = MEMORY
    if nearest != expected:
        raise CkptStoreError(f"the nearest replica is in {nearest}, and {source.name} was to be measured", operation="bench load")


def clear_above(contest: Contest, source: Source) -> list[Path]:
    """Delete the replicas in nearer tiers; the source's own files, to be made cold."""
    _, object_id = contest.workspace.nearest_replica(LOADED)
    for tier in source.above:
        for file in _files(tier, object_id):
            file.unlink()
    return [] if source.tier is None else _files(source.tier, object_id)


def _files(tier: TierSettings, object_id: str) -> list[Path]:
    return [] if tier.path is None else [file for file in tier.path.rglob("*") if file.is_file() and object_id in file.name]
