"""A contender's process: makes it, then does what the pipe says, one turn at a time, until the pipe says stop or is closed.

A peer may print, log and warn: both streams go to a file beside its folder, and nothing reaches the operator's terminal. Ctrl-C in that
terminal is for the parent, which tells us. If the parent dies, so do its fork server and, by PR_SET_PDEATHSIG, we.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import time
import traceback
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ckptstore_bench import costs
from ckptstore_bench.contenders.catalogue import Contender
from ckptstore_bench.contenders.interface import CannotRun, Loader, Setup

_PR_SET_PDEATHSIG = 1
LOG = "log.txt"


def serve(pipe: Connection, contender: Contender, setup: Setup) -> None:
    """The body of the process. Answers are ("done", (value, CPU seconds of this process and its children)) or ("failed", why)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _redirect(setup.folder / LOG)
    made: Any = None
    try:
        module, _, name = contender.factory.partition(":")
        made = getattr(import_module(module), name)(setup)
        pipe.send(("done", (None, 0.0)))
        while (asked := pipe.recv()) is not None:
            method, arguments = asked
            if method == "save":
                _step(setup)
            pipe.send(("done", _turn(made, method, arguments)))
        made.close()
    except EOFError:  # the parent has ended
        pass
    except BaseException as error:  # noqa: BLE001 — the top of this process: whatever a peer raises is its reason in the report
        traceback.print_exc()
        pipe.send(("failed", _reason(contender, error)))


def _step(setup: Setup) -> None:
    """What a training step does before each save: it uses the state. Memory that lay idle a hypervisor may have taken away."""
    from ckptstore_bench.shared_state import flat, open_state, touch

    touch(flat(open_state(setup.state, setup.shape)))


def _turn(made: Any, method: str, arguments: tuple[Any, ...]) -> tuple[Any, float]:
    # Garbage of the last turn is not this one's cost.
    gc.collect()
    before_s = costs.cpu_s(costs.tree(os.getpid()))
    value = _timed_load(made, *arguments) if method == "timed_load" else getattr(made, method)(*arguments)
    return value, max(0.0, costs.cpu_s(costs.tree(os.getpid())) - before_s)


def _timed_load(loader: Loader, files: list[Path], cold: bool, compare_with: tuple[Path, Any] | None) -> dict[str, float]:
    """Seconds of one load, files dropped from the page cache before it, and free memory the machine's own.

    With `compare_with` what came is compared with the state.
    """
    from ckptstore.errors import ChecksumMismatch
    from ckptstore_bench.cold import make_cold, own_memory
    from ckptstore_bench.shared_state import flat, open_state, same_bits, touch

    if cold and files:
        make_cold(files)
    own_memory(2 * sum(file.stat().st_size for file in files))  # for the tensors, and for who reads through the page cache
    cpu_s = time.process_time()
    began_s = time.perf_counter()
    loaded = loader.load()
    returned_s = time.perf_counter()
    touch(loaded)
    times = {"load": time.perf_counter() - began_s, "returned": returned_s - began_s, "cpu": time.process_time() - cpu_s}
    if compare_with is not None and loaded and not same_bits(loaded, flat(open_state(*compare_with))):
        raise ChecksumMismatch("what was loaded is not what was saved", operation="bench")
    return times


def _reason(contender: Contender, error: BaseException) -> str:
    """One line for the report."""
    if isinstance(error, CannotRun):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"the module {error.name} is not installed: pip install 'ckptstore[peers]'"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]:.300}" if lines else type(error).__name__


def _redirect(log: Path) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(fd, stream)
    os.close(fd)
