"""What lies below a folder, while somebody else removes it."""

from __future__ import annotations

import os
from pathlib import Path


def files_below(folder: Path) -> list[Path]:
    """Every file, in order; none where there is no folder. `os.walk` passes over one that goes while it looks, which `rglob` does not."""
    return sorted(Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
