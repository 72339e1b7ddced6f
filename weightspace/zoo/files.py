"""The one door between the zoo and the file system: publish a file whole or not at all, list, sweep.

A file is written under a temporary name in its own folder, forced to disk, renamed over its final name, and the folder
is forced to disk; a reader therefore sees the old file or the new one, never a part. Temporary names carry the host
and process that write them, so that what a killed process left behind can be told from what a live one is writing.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from weightspace.errors import ZooWriteError

__all__ = ["publish", "published", "read", "stale_temporaries", "sweep"]

_SUFFIX = ".tmp"
_TEMPORARY = re.compile(rf"\..+\.(?P<host>[^.]+)\.(?P<process>\d+)\.[0-9a-f]{{8}}{re.escape(_SUFFIX)}")
_DAY = 86400.0  # seconds after which a temporary file of another host counts as left behind


def publish(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write ``chunks`` back to back to ``path`` so that the file appears whole or not at all.

    Raises:
        ZooWriteError: the system refused (disk full, no permission); the temporary file is removed again.
    """
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}{_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise ZooWriteError(
            f"'{path}' could not be written ({error.strerror or error}). Nothing half-written was left and everything "
            "published before is intact; make room or fix the permissions, then run the same command again."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # after a success, and where not even the folder could be made
            temporary.unlink()


def read(path: Path) -> bytes:
    """Contents of a small file."""
    return path.read_bytes()


def published(folder: Path, suffix: str) -> list[str]:
    """Sorted names, without ``suffix``, of the finished files of a folder; empty where there is no such folder."""
    try:
        entries = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(name[: -len(suffix)] for name in entries if name.endswith(suffix) and not name.startswith("."))


def stale_temporaries(*folders: Path) -> list[Path]:
    """Temporary files of :func:`publish` that lie in these folders, not below them, and whose writer is gone."""
    return sorted(path for folder in folders for path in folder.glob(f".*{_SUFFIX}") if _is_stale(path))


def sweep(*folders: Path) -> list[Path]:
    """Delete these :func:`stale_temporaries`; return what was deleted."""
    stale = stale_temporaries(*folders)
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # other systems cannot open a folder, and order renames themselves
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_stale(path: Path) -> bool:
    """The writer is a dead process of this host, or the file has not changed for a day."""
    written = _TEMPORARY.fullmatch(path.name)
    if written is None:
        return False
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:  # published or swept by another process meanwhile
        return False
    if written["host"] != _host() or os.name != "posix":
        return age > _DAY
    try:
        os.kill(int(written["process"]), 0)  # signal 0 asks whether the process exists, and sends nothing
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return age > _DAY
