"""PyTorch Distributed Checkpoint, into and out of the store: `Writer` for `dcp.save` and `dcp.async_save`, `Reader` for `dcp.load`.

    dcp.async_save(state_dict, storage_writer=ckptstore_client.torch.Writer("/runs/x/step-100"))
    dcp.load(state_dict, storage_reader=ckptstore_client.torch.Reader("/runs/x/@latest"))

Lazy (PEP 562): importing the package imports torch only when one of the two is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.lazy import lazily

if TYPE_CHECKING:
    from ckptstore_client.torch.reader import Reader as Reader
    from ckptstore_client.torch.writer import Writer as Writer

__all__ = ["Reader", "Writer"]
_PLACES = {"Reader": "reader", "Writer": "writer"}

__getattr__ = lazily(__name__, _PLACES)
