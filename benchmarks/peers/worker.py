"""One model in a process of its own: builds it, then runs it once per line of standard input and says what it took.

python -m benchmarks.peers.worker '{"case": "A", "maker": "ours", "options": {"name": "mlp"}, ...}'
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.case import CASES, Case, Mixed, ResNet50, parts_of, weights_of

MIB = 1 << 20


def resident() -> int:
    """Bytes this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def addressed() -> int:
    """Bytes of addresses this process has, used or not."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def forget_peak() -> None:
    """Let the kernel's record of the largest resident set start again."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Largest resident set since then, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10


def timed(action: Callable[[], None]) -> dict[str, float]:
    """CPU and wall seconds of one call, and by how much it raised the resident set at most, in MiB."""
    forget_peak()
    before = resident()
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    taken = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    return taken | {"mib": (peak() - before) / MIB}


def outgrown(error: Exception) -> bool:
    """Whether memory was missing."""
    return isinstance(error, MemoryError) or any(word in str(error) for word in ("allocate memory", "Out of memory"))


def batch_of(case: Case | Mixed | ResNet50, networks: int) -> list[Any]:
    """What a subject loads."""
    return [(case, weights_of(case, networks))] if isinstance(case, ResNet50) else parts_of(case, networks)


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the model prints is no reply
    row = json.loads(sys.argv[1])
    torch.set_num_threads(row["threads"])
    torch.manual_seed(0)
    folder = row["peers"] and Path(row["peers"])
    if folder:  # packages the public code needs beside those installed here
        sys.path += [str(path) for path in folder.glob("venv/lib/python*/site-packages")]
    case = CASES[row["case"]]
    subject = importlib.import_module(f"benchmarks.peers.{row['maker']}").build(case, row["options"], folder)
    if row.get("compiled"):
        subject.compile()
    if subject.warms_up:
        subject.load(batch_of(case, 2))
        subject.forward()
        subject.step()
    subject.load(batch_of(case, row["networks"]))
    ctypes.CDLL(None).malloc_trim(0)  # free memory of the set-up would hide what the first call takes
    resource.setrlimit(resource.RLIMIT_AS, (addressed() + row["limit"], resource.RLIM_INFINITY))
    replies.write(json.dumps({"parameters": subject.parameters}) + "\n")
    for line in sys.stdin:
        if line.strip() in ("products", "parts"):
            replies.write(json.dumps(getattr(subject, line.strip())()) + "\n")
            continue
        try:
            taken: dict[str, Any] = timed(getattr(subject, line.strip()))
        except (RuntimeError, MemoryError) as error:
            if not outgrown(error):
                raise
            taken = {"outgrown": row["limit"]}
        replies.write(json.dumps(taken) + "\n")


if __name__ == "__main__":
    main()
