"""The catalog: the transactional database that alone says what exists and where.

`Catalog` is loaded when it is first asked for (PEP 562), so that `ckptstore.catalog.model` costs no SQLAlchemy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.lazy import lazily

if TYPE_CHECKING:
    from ckptstore.catalog.catalog import Catalog

__all__ = ["Catalog"]

__getattr__ = lazily(__name__, {"Catalog": "catalog"})
