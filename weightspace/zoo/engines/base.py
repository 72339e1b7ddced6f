"""What a builder asks of an engine: submit tasks, take results as they come, cancel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

__all__ = ["AbstractExecutor", "Outcome", "Work"]

Work = Callable[[Any], Any]


@dataclass(frozen=True)
class Outcome:
    """A finished task: ``value``, or the ``error`` that it ended with."""

    task: Any
    value: Any = None
    error: BaseException | None = None


class AbstractExecutor(ABC):
    """Runs independent tasks somewhere. Large results do not travel: tasks write files and return a summary.

    A task that raises is reported, not repeated. A task whose worker died may run again, so tasks must be idempotent.
    Use as a context manager: leaving it cancels what still runs.
    """

    @abstractmethod
    def submit(self, task: Any) -> None:
        """Queue a task."""

    @abstractmethod
    def as_completed(self) -> Iterator[Outcome]:
        """Outcomes in the order in which tasks end; stops when all submitted tasks have ended."""

    @abstractmethod
    def cancel(self) -> None:
        """Forget queued tasks and stop running ones at once. May be called twice."""

    def __enter__(self) -> AbstractExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()
