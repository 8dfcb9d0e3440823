"""How do files through the mount compare with the same files on the disk, and in other programs' mounts? All take turns in each round.

The file is in a bucket of a real S3 server of this run's own. The store shows the bucket as attached storage and keeps its copy on the
disk; the others do the same in their ways. `hot`: everything is in the page cache; `dropped`: in nobody's memory, but on the disk; `cold`:
only in the bucket. What has to be dropped is dropped right before it is read. The first round is not counted.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import ckptstore
from ckptstore.errors import TierUnavailable
from ckptstore_bench.cold import drop_for, drop_memory
from ckptstore_bench.measure import Rounds
from ckptstore_bench.mount import reads
from ckptstore_bench.mount.downloads import Download, downloads
from ckptstore_bench.mount.programs import PROGRAMS, Bucket, CannotRun, Program
from ckptstore_bench.running import Steps
from ckptstore_bench.services.seaweedfs import SeaweedS3
from ckptstore_bench.workspace import Workspace
from ckptstore_client.mount import mounting
from ckptstore_client.mount.task import MountOptions

DISK, STORE = "disk", "ckptstore"
DOWNLOAD = "cold download"
BUCKET, FILE = "bench", "model.bin"
BLOCK_BYTES = 4 << 20
FIRST_BYTES_A_ROUND = 5
READERS = 16
#: A file that is read cold comes into the page cache as the server's, as the copy on the disk and as what the mount shows.
CACHES = 3


@dataclass(frozen=True)
class Wanted:
    size_bytes: int
    files: int
    entries: int
    rounds: int
    against: Sequence[str]
    dropped: bool
    cold: bool


@dataclass
class Results:
    """Seconds, by measure ("hot sequential", "stat", …); a GET of one block from the server is called `get`."""

    size_bytes: int
    seconds: dict[str, Rounds] = field(default_factory=dict)
    why_not: dict[str, str] = field(default_factory=dict)
    #: bytes that the server sent while many read one cold file at once, to the file's, by round
    sent: list[float] = field(default_factory=list)

    def add(self, measure: str, contender: str, seconds: float) -> None:
        self.seconds.setdefault(measure, Rounds()).add(contender, seconds)


@dataclass
class _Contender:
    """`root` has the file; `forget` leaves it in the bucket only, after `settle` all of it is on the disk."""

    name: str
    root: Path
    forget: Callable[[], None] | None = None
    settle: Callable[[], object] = lambda: None


def measure(wanted: Wanted, workspace: Workspace, steps: Steps) -> Results:
    """`workspace` is entered already."""
    results = Results(wanted.size_bytes)
    with ExitStack() as stack:
        steps.say("making the files")
        disk = workspace.folder / "disk"
        disk.mkdir()
        (disk / FILE).write_bytes(np.random.default_rng(0).integers(0, 256, wanted.size_bytes, dtype=np.uint8).data)
        server = stack.enter_context(SeaweedS3(workspace.folder / "s3"))
        bucket = _filled(server, disk / FILE)
        stack.enter_context(server.in_environment())  # the daemon that `connect` starts finds its credentials there
        store = stack.enter_context(workspace.connect())
        mounted = stack.enter_context(_store(workspace, store, server, wanted, disk))
        contenders = [_Contender(DISK, disk), _Contender(STORE, mounted / "models", lambda: _evict(store), lambda: store.warm("/models"))]
        for name in wanted.against:
            steps.say(f"starting {name}")
            program = Program(name, workspace.folder / name, bucket, PROGRAMS[name])
            stack.callback(program.stop)
            try:
                program.start([disk / FILE])
                reads.sequential(program.root / FILE)
            except (CannotRun, OSError) as error:
                results.why_not[name] = str(error)
                continue
            contenders.append(_Contender(name, program.root, program.forget))
        clients, why_no_client = downloads(bucket, FILE, workspace.folder, stack) if wanted.cold else ({}, {})
        results.why_not |= why_no_client
        steps.plan((wanted.rounds + 1) * len(contenders))
        for number in range(wanted.rounds + 1):
            for contender in contenders[number % len(contenders) :] + contenders[: number % len(contenders)]:
                steps.next(contender.name)
                _turn(contender, wanted, results, counted=number > 0)
            if number > 0 and wanted.cold:
                _download(clients, workspace.folder / "downloaded", wanted, results)
                _first_bytes(contenders, server, results)
                _read_together(contenders[1], server, results)
            if number > 0:
                _look(mounted, disk, results)
    return results


def _turn(contender: _Contender, wanted: Wanted, results: Results, *, counted: bool) -> None:
    """One contender's turn; a program that fails on the way takes no more."""
    if contender.name in results.why_not:
        return
    file = contender.root / FILE
    try:
        measured: dict[str, float] = {}
        if wanted.cold and contender.forget is not None:
            contender.forget()
            drop_for(CACHES * wanted.size_bytes)
            measured["cold sequential"] = reads.sequential(file)
        contender.settle()
        for name, read in reads.READS.items():
            read(file)
            measured[f"hot {name}"] = read(file)
            if wanted.dropped:
                drop_for(wanted.size_bytes)
                measured[f"dropped {name}"] = read(file)
    except (CannotRun, OSError) as error:
        results.why_not[contender.name] = str(error)
        return
    for name, seconds in measured.items() if counted else ():
        results.add(name, contender.name, seconds)


def _download(clients: dict[str, Download], place: Path, wanted: Wanted, results: Results) -> None:
    """What parallel clients take to have the file on the disk."""
    for name, download in clients.items():
        if name in results.why_not:
            continue
        drop_for(CACHES * wanted.size_bytes)
        began_s = time.perf_counter()
        try:
            download(place)
        except CannotRun as error:
            results.why_not[name] = str(error)
            continue
        results.add(DOWNLOAD, name, time.perf_counter() - began_s)
        place.unlink()


def _first_bytes(contenders: Sequence[_Contender], server: SeaweedS3, results: Results) -> None:
    """Of the store as often as of a GET, in turns, since a few ms are compared; of the others, which need far longer, once."""
    for turn in range(FIRST_BYTES_A_ROUND):
        for contender in contenders:
            if contender.forget is None or contender.name in results.why_not or (turn > 0 and contender.name != STORE):
                continue
            try:
                contender.forget()
                drop_memory()
                results.add("cold first byte", contender.name, reads.first_byte(contender.root / FILE))
            except (CannotRun, OSError) as error:
                results.why_not[contender.name] = str(error)
        results.add("cold first byte", "get", _get_block(server))


def _read_together(contender: _Contender, server: SeaweedS3, results: Results) -> None:
    assert contender.name == STORE and contender.forget is not None
    contender.forget()
    drop_memory()
    before_bytes = server.sent_bytes()
    readers = [subprocess.Popen(["cat", contender.root / FILE], stdout=subprocess.DEVNULL) for _ in range(READERS)]
    try:
        if any(reader.wait() for reader in readers):
            raise TierUnavailable("a reader failed", operation="bench", subject=str(contender.root / FILE))
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    results.sent.append((server.sent_bytes() - before_bytes) / results.size_bytes)


def _look(mounted: Path, disk: Path, results: Results) -> None:
    """Statuses, listings and opens: of the store's mount and the disk."""
    for name, root in ((DISK, disk), (STORE, mounted / "own")):
        for what, folder in (("stat", root / "files"), ("ls", root / "entries")):
            reads.LOOKS[what](folder)
            results.add(what, name, reads.LOOKS[what](folder))
        results.add("open+close", name, reads.open_and_close(root / "files/0"))


def _filled(server: SeaweedS3, file: Path) -> Bucket:
    for name in (BUCKET, f"{BUCKET}-juicefs"):
        server.create_bucket(name)
    with file.open("rb") as opened:
        server.client().put_object(Bucket=BUCKET, Key=FILE, Body=opened)
    return Bucket(server, BUCKET)


def _get_block(server: SeaweedS3) -> float:
    client = server.client()
    client.head_object(Bucket=BUCKET, Key=FILE)  # the connection is there
    drop_memory()  # the server's copy of the file with it, as for the contenders
    began_s = time.perf_counter()
    client.get_object(Bucket=BUCKET, Key=FILE, Range=f"bytes=0-{BLOCK_BYTES - 1}")["Body"].read()
    return time.perf_counter() - began_s


@contextmanager
def _store(workspace: Workspace, store: ckptstore.Store, server: SeaweedS3, wanted: Wanted, disk: Path) -> Iterator[Path]:
    """The mount of a store that shows the bucket at /models, and has many small files of its own at /own."""
    store.attach(f"s3://{BUCKET}", "/models", options={"endpoint_url": server.endpoint_url})
    for name, count in (("files", wanted.files), ("entries", wanted.entries)):
        (disk / name).mkdir()
        for number in range(count):
            (disk / name / str(number)).write_bytes(b"x")
        store.put(disk / name, f"/own/{name}")
    store.warm("/models")
    place = workspace.folder / "mnt"
    place.mkdir()
    mounting.mount(MountOptions(str(place), "/", str(workspace.home)), log=workspace.folder / "mount.log")
    try:
        yield place
    finally:
        mounting.umount(place, lazy=True)


def _evict(store: ckptstore.Store) -> None:
    store.cache.evict("/models")
