"""What a figure was measured on: versions, threads, settings of the allocator, load."""

from __future__ import annotations

import os
import platform
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

__all__ = ["environment", "lines"]

_SETTINGS = ("THP_MEM_ALLOC_ENABLE", "LD_PRELOAD", "GLIBC_TUNABLES", "OMP_NUM_THREADS")


def environment(threads: int) -> dict[str, Any]:
    """Everything that is stored beside the figures.

    Args:
        threads: Of every process that is measured.
    """
    processor = [x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    settings = {k: v for k, v in os.environ.items() if k in _SETTINGS or k.startswith("MALLOC_")}
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor[0] if processor else platform.machine(),
        "cores": os.cpu_count(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "huge_pages": pages.read_text().strip() if pages.exists() else "unknown",
        "settings": settings,
        "load": round(os.getloadavg()[0], 1),
        "measured": datetime.now().isoformat(timespec="minutes"),
    }


def lines(found: dict[str, Any]) -> str:
    """The environment as text."""
    return "\n".join(f"{name:12}{value}" for name, value in found.items())
