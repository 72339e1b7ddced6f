"""The command line that is running, as its user gave it."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["given", "quoted", "running"]

_words: ContextVar[Sequence[str]] = ContextVar("words", default=())


@contextmanager
def running(words: Sequence[str]) -> Iterator[None]:
    """While these words are run, :func:`given` knows them."""
    token = _words.set(words)
    try:
        yield
    finally:
        _words.reset(token)


def given() -> list[str]:
    """The line to type for the same again; none where a command was called as a function."""
    return [quoted(_words.get())] if _words.get() else []


def quoted(words: Sequence[str]) -> str:
    """Words behind the program's name as one line for a shell."""
    return shlex.join(["weightspace", *words])
