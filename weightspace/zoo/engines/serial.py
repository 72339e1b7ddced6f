"""Tasks one after the other in this process: for one core, notebooks and debuggers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from weightspace.zoo.engines.base import AbstractExecutor, Outcome, Work

__all__ = ["SerialExecutor"]


class SerialExecutor(AbstractExecutor):
    """Runs tasks when their outcome is asked for.

    Args:
        make_work: Called once; gives the function that runs a task.
    """

    def __init__(self, make_work: Callable[[], Work]) -> None:
        self._work = make_work()
        self._queue: deque[Any] = deque()

    def submit(self, task: Any) -> None:
        """Queue a task."""
        self._queue.append(task)

    def as_completed(self) -> Iterator[Outcome]:
        """Outcomes in the order of submission."""
        while self._queue:
            task = self._queue.popleft()
            try:
                outcome = Outcome(task, value=self._work(task))
            except Exception as error:  # reported to the caller, as the interface says
                outcome = Outcome(task, error=error)
            yield outcome

    def cancel(self) -> None:
        """Forget queued tasks."""
        self._queue.clear()
