"""Where may a measurement write, so that it meets the operator's own devices and nothing of the operator's?

Every configured tier gets a place of its own below its root (`bench-<id>` in a posix tier's folder, `…/bench-<id>` behind an object tier's
URL), and so does the home. With `folder` there is one posix tier in that folder, which must be new or empty; with `two_tiers` a second one
that is shared, for what drains. All settings but the places, the catalog, the network port and the grace time are the configuration's.

Nothing is written before every check has passed. What was made is removed when the `with` block ends, by an error or a signal too (signals
that come during the removal wait for its end); parents that had to be made go as well. One thread owns an instance.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import tomlkit

from ckptstore.config import MemorySettings, Settings, TierSettings, read_settings
from ckptstore.errors import AlreadyExists, CkptStoreError, InvalidInput, TierFull, TierUnavailable
from ckptstore_bench.interruption import uninterrupted
from ckptstore_tiers.open_tiers import open_tier

#: Left on a device beside what a run needs: its owner goes on working.
SPARE_BYTES = 64 << 20
#: The tier's root in its place, and its neighbour for other files, since a root must be empty when its store begins.
TIER, BESIDE = "tier", "beside"


@dataclass(frozen=True)
class Network:
    """Where the scratch daemon serves its network API (host:port), and the token that it asks for."""

    listen: str
    token: str


class Scratch:
    def __init__(
        self, *, home: Path | None = None, folder: Path | None = None, name: str | None = None, two_tiers: bool = False
    ) -> None:
        """Reads the configuration; writes nothing. `name` replaces the random `bench-<id>`: AlreadyExists if it is in use."""
        self.name = name or f"bench-{secrets.token_hex(4)}"
        if folder is not None:
            folder = folder.expanduser().absolute()
            _refuse_used(folder)
            # Read before CKPTSTORE_… leaves the environment, and without the file: only `folder` decides.
            self._configured = Settings(home=folder)
            self.home = folder / "home"
            self.tiers: tuple[TierSettings, ...] = (TierSettings(name="nvme", kind="posix", path=folder / "nvme" / TIER),)
            if two_tiers:
                self.tiers += (TierSettings(name="pfs", kind="posix", path=folder / "pfs" / TIER, shared=True),)
            self._places = [folder]
        else:
            self._configured = read_settings(home=home)
            self.home = self._configured.home / self.name
            self.tiers = tuple(self._moved(tier) for tier in self._configured.effective_tiers)
            self._places = [self.home, *(tier.path.parent for tier in self.tiers if tier.path is not None)]
            for place in self._places:
                _refuse_used(place)
        self._environment: dict[str, str] = {}
        self._made: list[Path] = []

    def _moved(self, tier: TierSettings) -> TierSettings:
        if tier.path is not None:
            return tier.model_copy(update={"path": tier.path / self.name / TIER})
        return tier.model_copy(update={"url": f"{(tier.url or '').rstrip('/')}/{self.name}"})

    def described(self) -> list[dict[str, Any]]:
        """The tiers' settings, for a report; where URL and options go to fsspec, they may hold secrets, and only the scheme is told."""
        described = []
        for tier in self.tiers:
            said = tier.model_dump(mode="json", exclude_none=True)
            if tier.url is not None and not tier.url.startswith("s3://"):
                said |= {"url": f"{tier.url.partition('://')[0]}://…", "options": {}}
            described.append(said)
        return described

    def beside(self, tier: str | None = None) -> tuple[str, Path]:
        """(tier, a folder beside its root): where a peer writes, so that it meets the same device. The first posix tier unless said."""
        for known in self.tiers:
            if known.path is not None and tier in (None, known.name):
                return known.name, known.path.parent / BESIDE
        why = "no posix tier is configured, and peers write to a file system"
        raise InvalidInput(why, operation="bench", hint="name a folder with --folder")

    def check_room(self, need_bytes: int, *, beside_bytes: int = 0) -> None:
        """TierFull if there is no room for so many bytes in each posix tier, and for what peers write beside the first of them.

        Tiers on one device share its room.
        """
        by_device: dict[int, list[TierSettings]] = {}
        for tier in self.tiers:
            if tier.capacity is not None and tier.capacity < need_bytes:
                raise _no_room(tier.name, tier.capacity, need_bytes)
            if tier.path is not None:
                by_device.setdefault(_existing(tier.path).stat().st_dev, []).append(tier)
        for number, tiers in enumerate(by_device.values()):
            assert tiers[0].path is not None
            room_bytes = shutil.disk_usage(_existing(tiers[0].path)).free - SPARE_BYTES
            wanted_bytes = need_bytes * len(tiers) + (beside_bytes if number == 0 else 0)
            if room_bytes < wanted_bytes:
                raise _no_room(", ".join(tier.name for tier in tiers), room_bytes, wanted_bytes)

    def write_configuration(self, *, memory_limit_bytes: int | None, network: Network | None = None) -> Settings:
        """`config.toml` in the scratch home; without a configured limit of memory, `memory_limit_bytes`."""
        memory = self._configured.memory
        limit = memory.limit if memory.limit is not None else memory_limit_bytes
        settings = self._configured.model_copy(
            update={
                "home": self.home,
                "tiers": self.tiers,
                "memory": MemorySettings(**{**memory.model_dump(), "limit": limit}),
                "catalog_url": None,
                "listen": network.listen if network is not None else None,
                "token": None,
                "grace_s": 0.0,
                # Its end is this process's to say; if this is killed, the daemon ends by itself.
                "idle_exit_s": 60.0,
            }
        )
        document = settings.model_dump(mode="json", exclude_none=True, exclude={"home"})
        if network is not None:
            document["token"] = network.token  # a secret is not dumped with the rest
        (self.home / "config.toml").write_text(tomlkit.dumps(document), "utf-8")
        return settings

    def __enter__(self) -> Scratch:
        self._environment = {name: value for name, value in os.environ.items() if name.startswith("CKPTSTORE_")}
        for name in self._environment:
            del os.environ[name]
        self._made = [_topmost_missing(place) for place in self._places]
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            for tier in self.tiers:
                if tier.path is not None:
                    tier.path.mkdir(parents=True, exist_ok=True)
                    (tier.path.parent / BESIDE).mkdir(exist_ok=True)
        except OSError as error:
            self._remove()
            raise TierUnavailable(f"it cannot be written: {error.strerror}", operation="bench", subject=str(error.filename)) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with uninterrupted():
            self._remove()

    def _remove(self) -> None:
        os.environ.update(self._environment)
        for tier in self.tiers:
            if tier.kind == "object":
                remove_objects(tier, self.home)
        for place in (*self._places, *self._made):
            shutil.rmtree(place, ignore_errors=True)


def remove_objects(tier: TierSettings, home: Path) -> None:
    """Everything below an object tier's URL, with uploads that never ended, which cost money and are listed nowhere.

    What cannot be removed stays: the error that ended the run says more than this one.
    """
    with contextlib.suppress(CkptStoreError):
        opened = open_tier(tier.model_copy(update={"compression": "none"}), home)
        try:
            opened.sweep(None)
            for found in list(opened.list("")):
                opened.delete(found.key)
        finally:
            opened.close()


def _no_room(tiers: str, room_bytes: int, need_bytes: int) -> TierFull:
    why = f"there is room for {max(0, room_bytes):,} bytes, and this needs {need_bytes:,}"
    return TierFull(why, operation="bench", tier=tiers, hint="a smaller --size, or another --folder")


def _refuse_used(place: Path) -> None:
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise AlreadyExists("it is in use: the bench works in a folder that is new or empty", operation="bench", subject=str(place))


def _existing(place: Path) -> Path:
    return next(parent for parent in (place, *place.parents) if parent.exists())


def _topmost_missing(place: Path) -> Path:
    """The first folder that `mkdir(parents=True)` makes on the way to `place`."""
    missing = [parent for parent in (place, *place.parents) if not parent.exists()]
    return missing[-1] if missing else place
