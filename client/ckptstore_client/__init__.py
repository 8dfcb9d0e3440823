"""What a training script or a container imports: a store to save into and load from.

Lazy (PEP 562), like the façade `ckptstore`: importing the package opens nothing and starts no thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.lazy import lazily

if TYPE_CHECKING:
    from ckptstore_client.connecting import connect as connect
    from ckptstore_client.connecting import load as load
    from ckptstore_client.connecting import save as save
    from ckptstore_client.pending import PendingCheckpoint as PendingCheckpoint
    from ckptstore_client.sharding.slices import Part as Part
    from ckptstore_client.sharding.slices import Slice as Slice
    from ckptstore_client.store import Store as Store

__all__ = ["Part", "PendingCheckpoint", "Slice", "Store", "connect", "load", "save"]

_PLACES = {
    "connect": "connecting",
    "save": "connecting",
    "load": "connecting",
    "Part": "sharding.slices",
    "PendingCheckpoint": "pending",
    "Slice": "sharding.slices",
    "Store": "store",
}

__getattr__ = lazily(__name__, _PLACES)
