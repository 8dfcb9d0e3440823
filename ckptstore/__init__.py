"""ckptstore: one store for the whole life of a model's bytes.

    import ckptstore
    store = ckptstore.connect()
    pending = store.save("/runs/gpt/step-000100", state)
    state = store.load("/runs/gpt/@latest")

This façade is lazy (PEP 562): importing it imports neither torch nor numpy nor a network library. What the names stand for lives in
`ckptstore_client`, the one place where the model package looks upwards, and only when a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore import errors as errors

if TYPE_CHECKING:
    from ckptstore_client import Part as Part
    from ckptstore_client import PendingCheckpoint as PendingCheckpoint
    from ckptstore_client import Slice as Slice
    from ckptstore_client import Store as Store
    from ckptstore_client import connect as connect
    from ckptstore_client import load as load
    from ckptstore_client import save as save

    __version__: str

_FROM_CLIENT = frozenset({"connect", "save", "load", "Store", "PendingCheckpoint", "Part", "Slice"})

__all__ = ["Part", "PendingCheckpoint", "Slice", "Store", "__version__", "connect", "errors", "load", "save"]


def __getattr__(name: str) -> Any:
    if name in _FROM_CLIENT:
        import ckptstore_client

        value = getattr(ckptstore_client, name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("ckptstore")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
