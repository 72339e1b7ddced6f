"""One writer per run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from weightspace.errors import CheckpointError

__all__ = ["only_writer"]

_NAME = ".lock"


@contextmanager
def only_writer(run_dir: Path) -> Iterator[None]:
    """Hold the folder of a run, which is made where it is missing, against other processes that would train in it.

    The system lets go of it when the process ends, however it ends; the empty file ``.lock`` stays. Some network file
    systems have no locks, and nothing is held there.

    Raises:
        CheckpointError: another process holds the folder.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(run_dir / _NAME, timeout=0))
        except Timeout:
            raise CheckpointError(
                f"Another process is training in '{run_dir}'. Wait until it has ended, or give another folder."
            ) from None
        except NotImplementedError:
            pass  # a file system without locks: training there is better than refusing to
        yield
