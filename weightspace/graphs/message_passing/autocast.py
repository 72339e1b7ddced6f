"""Whether autocast is at work, and how to compute without it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["is_autocast", "without_autocast"]


def is_autocast(device: str) -> bool:
    """Whether autocast is on for a type of device; no on those that know none, as ``meta``."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Turn it off where it is on: backward runs under it too where a training step is written inside."""
    return torch.autocast(device, enabled=False) if is_autocast(device) else nullcontext()
