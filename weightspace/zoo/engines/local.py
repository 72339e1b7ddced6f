"""Tasks on the cores of this machine: spawned worker processes with one thread each, replaced when they die.

(``concurrent.futures.ProcessPoolExecutor`` gives up all tasks when one worker is killed.)
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

import torch

from weightspace.errors import PerformanceWarning, WeightspaceError
from weightspace.zoo.engines.base import AbstractExecutor, Outcome, Work

__all__ = ["LocalExecutor"]

_log = logging.getLogger(__name__)


class LocalExecutor(AbstractExecutor):
    """A process per core.

    Args:
        make_work: Called once in every worker; gives the function that runs a task. Travels to the workers, so it must
            be importable there (a function or class of a module, or ``functools.partial`` of one).
        workers: Number of processes, > 0; they start at once.
        retries: How often a task is given to a new worker after its worker died.

    Notes:
        Workers leave as soon as this process ends, however it ends, and ignore Ctrl-C, which is for this process.
    """

    def __init__(self, make_work: Callable[[], Work], workers: int, *, retries: int = 2) -> None:
        self._make_work, self._retries = make_work, retries
        self._queue: deque[Any] = deque()
        self._deaths: Counter[Any] = Counter()
        self._idle: list[Connection] = []
        self._busy: dict[Connection, Any] = {}
        self._processes: dict[Connection, BaseProcess] = {}
        for _ in range(workers):
            self._start_worker()

    def submit(self, task: Any) -> None:
        """Queue a task (hashable)."""
        self._queue.append(task)

    def as_completed(self) -> Iterator[Outcome]:
        """Outcomes in the order in which tasks end."""
        while self._queue or self._busy:
            while self._queue and self._idle:
                self._hand_out(self._idle.pop(), self._queue.popleft())
            for ready in wait(list(self._busy)):
                if (outcome := self._collect(cast(Connection, ready))) is not None:
                    yield outcome

    def cancel(self) -> None:
        """Stop all workers: idle ones leave, busy ones are terminated."""
        self._queue.clear()
        for connection, process in self._processes.items():
            if connection in self._busy:
                process.terminate()
            connection.close()  # a worker that waits for a task sees the end of its pipe, and returns
        for process in self._processes.values():
            process.join()
        self._idle.clear()
        self._busy.clear()
        self._processes.clear()

    def _start_worker(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._make_work), daemon=True)
        process.start()
        theirs.close()  # so that reading ours ends when the worker does
        self._processes[ours] = process
        self._idle.append(ours)

    def _hand_out(self, connection: Connection, task: Any) -> None:
        self._busy[connection] = task
        try:
            connection.send(task)
        except OSError:  # it died while idle; reading from it will tell
            _log.debug("a worker died before it was given %s", task)

    def _collect(self, connection: Connection) -> Outcome | None:
        """The outcome of the task of a worker that has something to say, or whose pipe has closed."""
        task = self._busy.pop(connection)
        try:
            value, error = connection.recv()
        except (EOFError, OSError):
            return self._replace_worker(connection, task)
        self._idle.append(connection)
        return Outcome(task, value, error)

    def _replace_worker(self, connection: Connection, task: Any) -> Outcome | None:
        process = self._processes.pop(connection)
        process.join()
        connection.close()
        self._start_worker()
        self._deaths[task] += 1
        if self._deaths[task] <= self._retries:
            _log.warning("A worker died (exit code %s); %s is done again.", process.exitcode, task)
            self._queue.appendleft(task)
            return None
        error = WeightspaceError(
            f"The worker of {task} died {self._deaths[task]} times (last exit code {process.exitcode}). If memory ran "
            "out, use fewer workers; in a script, call this under `if __name__ == '__main__':`."
        )
        return Outcome(task, error=error)


def _serve(connection: Connection, make_work: Callable[[], Work]) -> None:
    """Body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", PerformanceWarning)  # the parent has said it once
    work: Work | None = None
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):  # the parent closed its end, or was killed
            return
        try:
            work = work or make_work()
            reply = work(task), None
        except Exception as error:  # travels to the parent, which decides
            reply = None, _portable(error)
        try:
            connection.send(reply)
        except OSError:  # cancelled meanwhile
            return


def _leave_with_parent() -> None:
    """End this process when the parent ends, even by ``kill -9``: an orphan must not go on writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note; its text alone where its class may not survive the pipe."""
    if isinstance(error, WeightspaceError):
        return error
    portable = error if type(error).__module__ == "builtins" else WeightspaceError(f"{type(error).__name__}: {error}")
    portable.add_note("In a worker process:\n" + "".join(traceback.format_exception(error)))
    return portable
