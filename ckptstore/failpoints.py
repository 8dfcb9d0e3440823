"""Where may a test make this process fail? At named points, each declared once, each off unless somebody arms it.

A failpoint stands between two effects that a crash may separate. `CKPTSTORE_FAILPOINTS` arms some for a whole process, so
that a test can start a child and have it die or fail at exactly one of them:

    CKPTSTORE_FAILPOINTS="posix.put.rename=kill; drain.before_catalog=eio@3; posix.put.write=enospc@*"

`name=kill` sends SIGKILL to the process itself; `name=<errno>` (`eio`, `enospc`, `erofs`, …) raises that OSError. It happens
at the first hit, at hit number N with `@N`, at every hit with `@*`. Within a process `armed(...)` does the same for a while.

Invariant: with nothing armed and nobody listening, `failpoint` is one comparison. Names are declared at import, with
`declare`, so that a test can loop over `names()`. Any thread may hit a failpoint; arming is for the main thread of a test.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ckptstore.errors import ConfigInvalid

VARIABLE = "CKPTSTORE_FAILPOINTS"

_declared: dict[str, None] = {}
_lock = threading.Lock()


@dataclass
class _Arming:
    action: str  # "kill", or the name of an errno in lower case
    at_hit: int | None  # None: at every hit
    hits: int = 0


_armings: dict[str, _Arming] = {}
_listener: Callable[[str], None] | None = None
_active = False


def declare(name: str) -> str:
    """Make `name` known; gives it back, so that a module can write `RENAME = declare("posix.put.rename")`."""
    _declared[name] = None
    return name


def names(prefix: str = "") -> list[str]:
    """Every failpoint that the modules imported so far have declared, in the order of declaration."""
    return [name for name in _declared if name.startswith(prefix)]


def failpoint(name: str) -> None:
    """Die or raise OSError here, if a test armed `name`."""
    if _active:
        _hit(name)


def _hit(name: str) -> None:
    if name not in _declared:
        raise ConfigInvalid(
            f"no failpoint {name!r} is declared", operation="hit failpoint", subject=name, hint="declare() it at import"
        )
    if _listener is not None:
        _listener(name)
    with _lock:
        arming = _armings.get(name)
        if arming is None:
            return
        arming.hits += 1
        if arming.at_hit is not None and arming.hits != arming.at_hit:
            return
    if arming.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    number = getattr(errno, arming.action.upper())
    raise OSError(number, f"{os.strerror(number)} (failpoint {name})")


def parse(text: str) -> dict[str, _Arming]:
    """`"a=kill; b=eio@3"` as armings. Raises ConfigInvalid that quotes the part that is none."""
    found = {}
    for part in filter(None, (part.strip() for part in text.replace(",", ";").split(";"))):
        name, equals, what = part.partition("=")
        action, at, hit = what.partition("@")
        known = action == "kill" or (action.upper().startswith("E") and hasattr(errno, action.upper()))
        if not equals or not name or not known or (at and hit != "*" and not (hit.isdigit() and int(hit) > 0)):
            raise ConfigInvalid(
                f"{part!r} is no failpoint; write name=kill or name=eio, with @3 or @* behind it",
                operation="read environment",
                subject=VARIABLE,
            )
        found[name] = _Arming(action, None if hit == "*" else int(hit or 1))
    return found


@contextmanager
def armed(text: str) -> Iterator[None]:
    """Arm failpoints of this process for a `with` block, instead of what was armed before."""
    before = dict(_armings)
    _set(parse(text), _listener)
    try:
        yield
    finally:
        _set(before, _listener)


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Call `listener(name)` at every hit during a `with` block, before what is armed there happens."""
    before = _listener
    _set(dict(_armings), listener)
    try:
        yield
    finally:
        _set(dict(_armings), before)


def _set(armings: dict[str, _Arming], listener: Callable[[str], None] | None) -> None:
    global _active, _listener
    with _lock:
        _armings.clear()
        _armings.update(armings)
        _listener = listener
        _active = bool(_armings) or _listener is not None


_set(parse(os.environ.get(VARIABLE, "")), None)
