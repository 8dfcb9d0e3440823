"""How long is an answer of the source believed? What the store holds: until a change is told. What is attached, or may change silently:
a moment.

The source tells what changed (`Source.changes`), and while it does, an answer stays true until its path, something above or something
below it is named. Nobody tells of a change in attached storage, of a copy that has become whole, or of anything while the source is away:
such answers are asked again after `believed_s`, those of files that are not whole yet sooner. An answer that was on its way when a change
was told is not kept. While nobody answers, what was known last is shown: when the source is back, everything is asked anew.

Bounded: the oldest answers go. Thread-safe.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable

from ckptstore.errors import NotFound
from ckptstore.paths import LATEST, join, parent_and_name
from ckptstore.tree_messages import TreeInfo
from ckptstore_client.mount.source import Source

KEPT_ANSWERS = 32_768
#: How long a file is taken to be not whole on the node, in seconds: the open that finds it whole reads it at the disk's speed.
NOT_WHOLE_S = 0.1
#: How long the kernel may believe a name of which changes are told: only a second line of defence.
TOLD_S = 60.0


class MustWait(Exception):
    """The answer has to be asked for, which the caller has no time to wait for; `what` is the same for who waits for the same."""

    def __init__(self, what: Hashable = None) -> None:
        super().__init__(what)
        self.what = what


class Believed:
    def __init__(self, source: Source, *, believed_s: float) -> None:
        self._source = source
        self._believed_s = believed_s
        self._lock = threading.Lock()
        self._answers: OrderedDict[str, tuple[TreeInfo | None, float]] = OrderedDict()
        #: changes when anything was told; an answer asked for before is not kept after
        self._told = 0
        self._told_of = self._away = False

    def info(self, path: str, *, may_wait: bool) -> TreeInfo:
        """What is at the path. NotFound, MustWait, and what the source raises."""
        with self._lock:
            answer, until_s = self._answers.get(path, (None, -1.0))
            told = self._told
            is_enough = until_s >= time.monotonic() or (self._away and path in self._answers)
        if not is_enough:
            if not may_wait:
                raise MustWait
            try:
                answer = self._like_before(self._source.info(path))
            except NotFound:
                answer = None
            self._keep(told, [(path, answer)])
        if answer is None:
            raise NotFound("nothing is there", operation="look up", subject=path)
        return answer

    def asked_now(self) -> int:
        """Take it before a listing is asked for, and give it to `note`."""
        return self._told

    def note(self, asked: int, listed: Iterable[TreeInfo]) -> None:
        """Entries of a listing are answers as well."""
        self._keep(asked, [(info.path, self._like_before(info)) for info in listed])

    def _like_before(self, info: TreeInfo) -> TreeInfo:
        """A copy that was found whole counts as whole until an open finds that it is not: not every answer looks so closely."""
        known, _ = self._answers.get(info.path, (None, 0.0))
        if known is None or not known.whole or known.version != info.version or info.whole:
            return info
        return info.model_copy(update={"whole": True})

    def note_whole(self, path: str, version: str, whole: bool) -> None:
        """The source has just said whether its copy of this version is whole."""
        with self._lock:
            answer, until_s = self._answers.get(path, (None, 0.0))
            if answer is not None and answer.version == version and answer.whole != whole:
                self._answers[path] = (answer.model_copy(update={"whole": whole}), until_s)

    def valid_s(self, info: TreeInfo | None) -> float:
        """For how long the kernel may believe this name."""
        if not self._told_of or (info is not None and info.origin is not None):
            return self._believed_s
        return TOLD_S

    def changed(self, paths: tuple[str, ...] | None) -> None:
        """These changed, with all below them, the folders above and their `@latest`; None: anything may have."""
        with self._lock:
            self._told += 1
            if paths is None:
                self._answers.clear()
                return
            for path in paths:
                below = path.rstrip("/") + "/"
                for known in [known for known in self._answers if known == path or known.startswith(below)]:
                    del self._answers[known]
                while path != "/":
                    path, _ = parent_and_name(path)
                    self._answers.pop(path, None)
                    self._answers.pop(join(path, LATEST), None)

    def doubt(self, path: str) -> None:
        """It has turned out that what was known of this path is not so any more."""
        with self._lock:
            self._told += 1
            self._answers.pop(path, None)

    @property
    def is_told_of(self) -> bool:
        """Whether changes of what the store holds, and of what is attached where, are being told at the moment."""
        return self._told_of

    def told_of(self, yes: bool, *, away: bool = False) -> None:
        """Whether changes are being told at the moment; `away`: nobody answers at all, so that what was known has to do."""
        with self._lock:
            self._told_of, self._away = yes, away

    def _keep(self, told: int, answers: list[tuple[str, TreeInfo | None]]) -> None:
        now_s = time.monotonic()
        with self._lock:
            if told != self._told:
                return
            for path, answer in answers:
                is_partial = answer is not None and answer.kind == "file" and not answer.whole
                stays = self._told_of and not is_partial and (answer is None or answer.origin is None)
                valid_s = TOLD_S if stays else min(self._believed_s, NOT_WHOLE_S) if is_partial else self._believed_s
                self._answers[path] = (answer, now_s + valid_s)
                self._answers.move_to_end(path)
            while len(self._answers) > KEPT_ANSWERS:
                self._answers.popitem(last=False)
