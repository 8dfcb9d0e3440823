"""Whatever happens in an attached folder, readers see what a model of it says: one version of each file, and nothing from outside."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from ckptstore.catalog.model import Attachment
from ckptstore.errors import InvalidInput, NotFound, StaleVersion
from ckptstore.tree_messages import TreeInfo
from ckptstore_server.readers.origin import FileVersion
from ckptstore_server.readers.origins.answers import Answers
from ckptstore_server.readers.origins.bounded import BoundedStorage
from ckptstore_server.readers.origins.folder import FolderStorage
from ckptstore_server.readers.shown import Shown

FOLDERS = ("", "a", "a/b")
NAMES = st.builds(lambda folder, leaf: f"{folder}/{leaf}" if folder else leaf, st.sampled_from(FOLDERS), st.sampled_from("xyz"))
CONTENTS = st.integers(0, 3).flatmap(lambda byte: st.sampled_from((b"", bytes([byte]), bytes([byte]) * 70_000)))


class AttachedFolder(RuleBasedStateMachine):
    opened = Bundle("opened")

    @initialize()
    def begin(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="ckptstore-attached-"))
        self.root = self.top / "root"
        (self.root / "a" / "b").mkdir(parents=True)
        (self.top / "outside").mkdir()
        (self.top / "outside" / "x").write_bytes(b"secret")
        self.answers = Answers(BoundedStorage(FolderStorage(self.root, young_s=0.03)), refresh_s=0)
        self.attachment = Attachment("/m", str(self.root), 0.0)
        self.files: dict[str, tuple[int, bytes]] = {}  # name → how often it was changed, content
        self.links: dict[str, str | None] = {}  # name → what it leads to inside; None: it leads out, or to a folder
        self.changes = 0
        self.runner = asyncio.Runner()

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.close()
            self.answers.close()
            shutil.rmtree(self.top)

    def shown(self, name: str) -> Shown:
        return Shown(self.attachment, self.answers, name)

    def now(self, name: str) -> tuple[int, bytes] | None:
        """What a reader finds under a name, links inside followed."""
        for _ in range(len(self.links) + 1):
            if name in self.files:
                return self.files[name]
            name = self.links.get(name) or ""
        return None

    def is_same(self, file: FileVersion, changed: int) -> bool:
        found = self.now(file.name)
        return found is not None and found[0] == changed

    def _clear(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)
        self.files.pop(name, None)
        self.links.pop(name, None)

    # --- upstream ----------------------------------------------------------------------------------------------------------------------

    @rule(name=NAMES, content=CONTENTS, in_place=st.booleans())
    def write(self, name: str, content: bytes, in_place: bool) -> None:
        place = self.root / name
        if not in_place or name in self.links:
            self._clear(name)
            new = self.top / "new"
            new.write_bytes(content)
            new.rename(place)
        else:
            place.write_bytes(content)
        self.changes += 1
        self.files[name] = (self.changes, content)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        self._clear(name)

    @rule(name=NAMES, target_name=NAMES, absolute=st.booleans())
    def link_inside(self, name: str, target_name: str, absolute: bool) -> None:
        self._clear(name)
        target = self.root / target_name
        (self.root / name).symlink_to(target if absolute else os.path.relpath(target, (self.root / name).parent))
        self.links[name] = None if absolute else target_name

    @rule(name=NAMES, way=st.sampled_from(("../outside/x", "../../outside/x", "../../../outside/x", "/etc/passwd", "nowhere", ".")))
    def link_out(self, name: str, way: str) -> None:
        self._clear(name)
        (self.root / name).symlink_to(way)
        self.links[name] = None

    # --- readers -----------------------------------------------------------------------------------------------------------------------

    @rule(target=opened, name=NAMES)
    def open(self, name: str) -> tuple[FileVersion, int, bytes] | None:
        try:
            file = self.runner.run(self.shown(name).open(""))
        except (NotFound, InvalidInput):
            assert self.now(name) is None
            return None
        changed, content = self.now(name) or (0, b"")
        assert file.size_bytes == len(content)
        return file, changed, content

    @rule(one=opened)
    def read(self, one: tuple[FileVersion, int, bytes] | None) -> None:
        if one is None:
            return
        file, changed, content = one
        data = bytearray(file.size_bytes)
        is_same = self.is_same(file, changed)
        try:
            self.answers.read_into(file, 0, memoryview(data))
        except StaleVersion:
            assert not is_same
        else:
            assert bytes(data) == content

    @rule(one=consumes(opened))
    def open_the_version_again(self, one: tuple[FileVersion, int, bytes] | None) -> None:
        if one is None:
            return
        file, changed, _ = one
        is_same = self.is_same(file, changed)
        try:
            again = self.runner.run(self.shown(file.name).open(file.version))
        except (StaleVersion, NotFound):
            assert not is_same
        else:
            assert again == file

    @rule(folder=st.sampled_from(FOLDERS), limit=st.integers(1, 4))
    def list(self, folder: str, limit: int) -> None:
        found: dict[str, TreeInfo] = {}
        after: str | None = ""
        while after is not None:
            page = self.runner.run(self.shown(folder).list(after, limit))
            assert len(page.entries) <= limit
            found |= {info.path.removeprefix("/m/"): info for info in page.entries}
            after = page.after
        here = [name for name in (*self.files, *self.links) if name.rpartition("/")[0] == folder]
        expected = {name: len(content) for name in here if (content := (self.now(name) or (0, None))[1]) is not None}
        assert {name: info.size_bytes for name, info in found.items() if info.kind == "file"} == expected
        inner = {"": {"a"}, "a": {"a/b"}, "a/b": set()}[folder]
        assert {name for name, info in found.items() if info.kind == "folder"} == inner
        assert [*found] == sorted(found)

    @invariant()
    def nothing_from_outside_is_shown(self) -> None:
        for name in [name for name, target in getattr(self, "links", {}).items() if target is None]:
            try:
                info = self.runner.run(self.shown(name).look())
            except NotFound:
                continue
            assert info.kind == "folder"  # `.` is a folder inside


AttachedFolder.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
)
TestAttachedFolder = AttachedFolder.TestCase
