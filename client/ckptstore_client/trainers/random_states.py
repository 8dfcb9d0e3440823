"""The states of this process's random number generators: Python's, NumPy's, torch's on the CPU and on every accelerator here.

Tensors, tuples of numbers and one array: nothing that would have to be pickled. They are this process's own; each rank saves its own.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    states: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    name, device = _accelerator()
    if device is not None:
        states["accelerator"] = {"kind": name, "states": list(device.get_rng_state_all())}
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Those of accelerators only where there are as many of the same kind as when they were saved."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    saved = states.get("accelerator")
    name, device = _accelerator()
    if saved is not None and device is not None and saved["kind"] == name and len(saved["states"]) == device.device_count():
        device.set_rng_state_all(saved["states"])


def _accelerator() -> tuple[str, Any]:
    """The kind of accelerator that this torch can use, and torch's module for it; None for both if there is none."""
    accelerator = getattr(torch, "accelerator", None)  # torch 2.6 and later
    found = accelerator.current_accelerator() if accelerator is not None and accelerator.is_available() else None
    device = None if found is None else torch.get_device_module(found)
    return ("", None) if found is None or not hasattr(device, "get_rng_state_all") else (found.type, device)
