"""A worker in a process of its own, which answers every line of its input with a line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["ALLOCATORS", "Process"]

ROOT = Path(__file__).resolve().parents[2]
ALLOCATORS = {
    "default": {},
    "kept": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
        "MALLOC_TOP_PAD_": str(256 << 20),
    },
}
"""What the C library does with free memory: give it back at once, or keep its pages."""


class Process:
    """A worker of a benchmark; the first thing it says is its :attr:`greeting`.

    Args:
        name: For messages.
        module: What is run, ``python -m``.
        order: Its one argument, as JSON; ``"threads"`` limits its libraries too.
        allocator: One of :data:`ALLOCATORS`.
        environment: More variables.

    Raises:
        RuntimeError: it stopped, with the end of what it wrote.
    """

    def __init__(
        self,
        name: str,
        module: str,
        order: Mapping[str, Any],
        allocator: str = "default",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        threads = {f"{library}_NUM_THREADS": str(order["threads"]) for library in ("OMP", "MKL", "OPENBLAS")}
        self._errors = tempfile.TemporaryFile("w+")  # not a pipe, which would be full at some point
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(order)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=ROOT,
            env={**os.environ, **threads, **(environment or {}), **ALLOCATORS[allocator]},
        )  # fmt: skip
        try:
            self.greeting = self._reply()
        except RuntimeError:
            self.close()
            raise

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"'{self.name}' stopped:\n{self._errors.read()[-2000:]}")
        return json.loads(line)

    def ask(self, line: str) -> dict[str, Any]:
        """Give it a line, and wait for what it says.

        Raises:
            RuntimeError: it stopped.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reply that does not come is reported
        return self._reply()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        try:
            self._process.communicate()
        except BrokenPipeError:
            pass
        self._errors.close()
