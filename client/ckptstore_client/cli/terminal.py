"""How does something reach the user? Results on stdout, all else on stderr; JSON or text; and nothing that a name contains is obeyed.

Names, metadata and error texts come from other people. They are printed as literal text, never as rich's markup; on a terminal a
character that would move the cursor, start an escape sequence or turn the writing direction is shown as an escape (`\\x1b`). Into a pipe
names go exactly as they are, since a program reads them.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

from pydantic import BaseModel, ByteSize
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

#: Wide enough that nothing is folded or cut where no terminal has a width: a pipe, a file.
UNBOUNDED_WIDTH = 4000
#: Line and paragraph separators, surrogates, control characters.
_OBEYED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
#: Characters that turn the direction of what follows them: a name with one can look like another name.
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """`text` in one line, with every character that a terminal would obey written as its escape."""
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _OBEYED_CATEGORIES or character in _BIDIRECTIONAL
        else character
        for character in text
    )


def size(size_bytes: float) -> str:
    """`1536` → `1.5 KiB`."""
    return ByteSize(int(size_bytes)).human_readable(separator=" ")


def counted(number: int, names: str) -> str:
    """`1, "files"` → `1 file`."""
    return f"{number:,} {names.removesuffix('s') if number == 1 else names}"


def age(seconds: float) -> str:
    """`8040` → `2 h 14 min`: the two largest units, since more would not be read."""
    left = max(0, int(seconds))
    if left < 60:
        return f"{left} s"
    parts: list[str] = []
    for unit, unit_s in (("d", 86400), ("h", 3600), ("min", 60)):
        count, left = divmod(left, unit_s)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 "))


def iso(at_s: float) -> str:
    """Seconds since 1970 → `2026-01-31T12:00:00Z`."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def as_document(value: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """A message as JSON; beside every moment `…at_s` stands the same in ISO 8601, for people who read it."""
    document = value.model_dump(mode="json") if isinstance(value, BaseModel) else dict(value)
    return {name: part for key, given in document.items() for name, part in _with_iso(key, given)}


def _with_iso(key: str, given: Any) -> list[tuple[str, Any]]:
    if isinstance(given, list):
        given = [as_document(item) if isinstance(item, dict) else item for item in given]
    if key == "metadata":  # the user's own; its keys mean what they mean to the user
        return [(key, given)]
    if key.endswith("at_s") and isinstance(given, int | float):
        return [(key, given), (key.removesuffix("_s"), iso(given))]
    return [(key, as_document(given) if isinstance(given, dict) else given)]


class _Screen(Console):
    """rich's console, which takes a broken pipe for a fault of its own; here the command ends quietly for it."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else UNBOUNDED_WIDTH
    return _Screen(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=False, width=width)


class Terminal:
    """Where a command prints. `result` and `line` are the only ways to stdout."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)

    def result(self, value: BaseModel | Mapping[str, Any], shown: RenderableType | None = None) -> None:
        """The one answer of a command: a JSON document, else `shown`."""
        if self.as_json:
            self.document(value)
        elif shown is not None:
            self.show(shown)

    def document(self, value: BaseModel | Mapping[str, Any]) -> None:
        """One line of JSON, flushed: who follows a stream sees each at once."""
        print(json.dumps(as_document(value), ensure_ascii=False), flush=True)

    def show(self, renderable: RenderableType) -> None:
        """Text or a table on stdout. Blanks that only fill a table's last column are left away."""
        if self.out.is_terminal:
            self.out.print(renderable)
            return
        with self.out.capture() as captured:
            self.out.print(renderable)
        for line in captured.get().splitlines():
            print(line.rstrip())

    def note(self, text: str) -> None:
        """A line of diagnostics on stderr."""
        self.err.print(visible(text), soft_wrap=True)

    def name(self, text: str, style: str = "") -> Text:
        """A name from the namespace, as it may be printed on stdout."""
        return Text(visible(text) if self.out.is_terminal else text, style=style, overflow="fold")

    def progress(self, *columns: ProgressColumn) -> Progress:
        """A bar on stderr; nothing where stderr is no terminal."""
        shown = columns or (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
        return Progress(*shown, TimeElapsedColumn(), console=self.err, transient=True, disable=not self.err.is_terminal)


def print_error(why: str, document: Mapping[str, Any], *, as_json: bool) -> None:
    """One line on stderr, and with `--json` a second one that a program can read. A closed stderr is nobody's loss."""
    try:
        print(f"ckptstore: {visible(why)}", file=sys.stderr)
        if as_json:
            print(json.dumps(document), file=sys.stderr)
        sys.stderr.flush()
    except BrokenPipeError:
        return
