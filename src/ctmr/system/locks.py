"""Locks between processes: held on a file, and released when their holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ctmr.errors import EnvironmentFault


@contextmanager
def locked(path: Path, *, busy: str = "", mode: int = 0o666) -> Iterator[None]:
    """Hold the lock of a file against all other processes, and threads, that ask for it.

    Parameters
    ----------
    path
        Made when missing, in a folder that is there, and left.
    busy
        What to say when another one holds it; without it, wait.
    mode
        Rights of the file, less the umask.

    Raises
    ------
    EnvironmentFault
        Another one holds the lock (`busy`), or the file cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, mode)
    except OSError as error:
        raise EnvironmentFault(f"the lock {path} cannot be opened: {error.strerror}; fix its permissions") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise EnvironmentFault(busy) from None
        try:
            yield
        finally:
            # Closing is not enough: a process that was forked meanwhile has the file open too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """True when another process, or thread, holds the lock of a file; a file that is not there holds none."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
