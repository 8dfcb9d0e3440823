"""What a successor reads out of the journal is what its predecessor knew, whatever was done, and wherever it was cut off."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ckptstore.errors import DaemonUnavailable
from ckptstore.tree_messages import TreeInfo
from ckptstore_client.mount import daemon_source, journal
from ckptstore_client.mount.believed import Believed
from ckptstore_client.mount.daemon_source import DaemonSource
from ckptstore_client.mount.handles import OpenFiles
from ckptstore_client.mount.journal import Journal
from ckptstore_client.mount.local_folder import LocalFolder
from ckptstore_client.mount.nodes import Node, Nodes
from ckptstore_client.mount.protocol import ROOT_ID, UNIQUE_RESEND
from ckptstore_client.mount.serving import recall


class NoDevice:
    """Backing ids are the kernel's; here only that they are given back."""

    def __init__(self) -> None:
        self.closed: list[int] = []

    def close_backing(self, backing_id: int) -> None:
        self.closed.append(backing_id)


class NoKeeper:
    def keep(self, name: str, fd: int) -> None: ...

    def let_go(self, name: str) -> None: ...


def tables(files: tuple[int, int]) -> tuple[Nodes, OpenFiles]:
    """As a serving process makes them at its start."""
    written = Journal(files)
    nodes = Nodes(written, "/")
    opened = OpenFiles(written, NoDevice(), NoKeeper())  # type: ignore[arg-type]
    recall(written, nodes, opened)
    written.state = lambda: [*nodes.lines(), *opened.lines()]
    return nodes, opened


def known(nodes: Nodes, opened: OpenFiles) -> tuple[object, ...]:
    return (
        {line[1]: line for line in nodes.lines() if line[0] == "node"},
        {file.node.id: (file.opens, file.backing_id) for file in opened if file.opens > 0},
    )


class Succession(RuleBasedStateMachine):
    """Looks, opens, releases and forgets, with kills between them. The journal is written anew all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.files = Journal.new_files()
        self.nodes, self.opened = tables(self.files)
        self.unique = 2
        self.last: tuple[str, int, int] | None = None
        self.open_ids: list[int] = []

    def teardown(self) -> None:
        for file in self.files:
            os.close(file)

    def _next(self) -> int:
        self.unique += 2
        return self.unique

    def _ids(self) -> list[Node]:
        return [node for number in range(ROOT_ID + 1, 400) if (node := self.nodes.get(number)) is not None]

    @rule(name=st.sampled_from("abc"), version=st.sampled_from(["1", "2"]), hot=st.booleans())
    def look(self, name: str, version: str, hot: bool) -> None:
        unique = self._next()
        (node,) = self.nodes.look(unique, [(TreeInfo(path=f"/{name}", kind="file", size_bytes=5, version=version), hot)])
        self.last = ("look", unique, node.id)

    @precondition(lambda self: self._ids())
    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(self._ids()))
        unique = self._next()
        file = self.opened.of(node)
        file.backing_id = file.backing_id or (unique if node.hot else None)
        self.opened.count(unique, file)
        self.open_ids.append(node.id)

    @precondition(lambda self: self.open_ids)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(self.open_ids))
        self.open_ids.remove(id)
        unique = self._next()
        self.opened.release(unique, id)
        self.last = ("release", unique, id)

    @precondition(lambda self: [node for node in self._ids() if node.id not in self.open_ids])
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from([node for node in self._ids() if node.id not in self.open_ids]))
        if self.nodes.forget(node.id, node.lookups):
            self.opened.forgotten(node.id)
        self.last = None

    @rule(cut=st.booleans())
    def die(self, cut: bool) -> None:
        """Killed, perhaps in the middle of a line that nobody had been answered for."""
        if cut:
            newest = Journal(self.files)
            os.pwrite(newest._current, b'["look",', newest._size)
        before = known(self.nodes, self.opened)
        self.nodes, self.opened = tables(self.files)
        assert known(self.nodes, self.opened) == before
        self.opened.settle()

    @precondition(lambda self: self.last is not None)
    @rule()
    def ask_again(self) -> None:
        """The successor is asked what its predecessor had counted, and not answered."""
        assert self.last is not None
        what, unique, id = self.last
        self.die(False)
        before = known(self.nodes, self.opened)
        node = self.nodes.get(id)
        if what == "release":
            self.opened.release(unique | UNIQUE_RESEND, id)
        elif node is not None:
            info = TreeInfo(path=node.path, kind="file", size_bytes=5, version=node.version)
            self.nodes.look(unique | UNIQUE_RESEND, [(info, node.hot)])
        assert known(self.nodes, self.opened) == before

    @invariant()
    def what_is_open_is_known(self) -> None:
        assert all(self.nodes.get(id) is not None for id in self.open_ids)


@pytest.fixture(autouse=True)
def rewritten_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SMALL_BYTES", 100)
    monkeypatch.setattr(journal, "GROWTH", 1)


class TestSuccession(Succession.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_source_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_source, "PATIENCE_S", 0.2)
    source = DaemonSource.of_home(tmp_path)
    for question in (lambda: source.info("/a"), lambda: source.open("/a", "1"), lambda: source.changes(-1)):
        with pytest.raises(DaemonUnavailable):
            question()


def test_what_was_known_is_shown_while_nobody_answers_and_asked_anew_afterwards(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    believed = Believed(LocalFolder(tmp_path), believed_s=0.0)
    first = believed.info("/file", may_wait=True)
    (tmp_path / "file").write_text("longer")
    believed.told_of(False, away=True)
    assert believed.info("/file", may_wait=False) == first
    believed.told_of(True)
    believed.changed(None)
    assert believed.info("/file", may_wait=True).size_bytes == 6
