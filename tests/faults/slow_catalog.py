"""A daemon whose catalog takes its time, for as long as a test wants: what goes on meanwhile, and what waits?"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptstore.errors import CatalogUnavailable
from tests.until import until


@dataclass
class SlowCatalog:
    """Rigging for a daemon whose catalog does not do one thing, a method of `Attempts`, while a file `slow` lies in its home.

    A file `asked` there has a byte for each time that it was to be done meanwhile. With `refuses` it says CatalogUnavailable meanwhile.
    """

    home: Path
    method: str
    refuses: bool = False

    def __call__(self, stack: ExitStack) -> None:
        from ckptstore.catalog.attempts import Attempts

        does, slow = getattr(Attempts, self.method), self.home / "slow"

        def late(catalog: Attempts, *arguments: Any) -> Any:
            if slow.exists():
                with (self.home / "asked").open("ab") as asked:
                    asked.write(b".")
                if self.refuses:
                    raise CatalogUnavailable("the database is locked", operation=self.method)
                until("the catalog is quick again", lambda: not slow.exists())
            return does(catalog, *arguments)

        setattr(Attempts, self.method, late)
