"""Atomic writes: a file or folder appears complete under its name, or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ctmr.errors import InputError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to a new file: temporary name beside it, fsync, rename.

    Raises
    ------
    InputError
        When something of that name exists; nothing is overwritten silently.
    """
    if path.exists():
        raise InputError(f"{path} exists already; choose another name or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files that only their owner can read; a result has the rights of any new file.
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` that takes its name when the block ends without an error.

    Raises
    ------
    InputError
        When `folder` exists and is not an empty folder.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} exists already and is not an empty folder; choose another name or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
        temporary.chmod(0o777 & ~_umask())
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def put_in_place(temporary: Path, out: Path) -> None:
    """Flush a finished folder to disk and give it its name; at every instant the old or the new one stands there."""
    for entry in temporary.rglob("*"):
        if entry.is_file():
            _fsync(entry)
    if out.exists():
        exchange(temporary, out)
    else:
        temporary.rename(out)
    _fsync(out.parent)
    shutil.rmtree(temporary, ignore_errors=True)


def exchange(a: Path, b: Path) -> None:
    """Swap two folders in one step (Linux renameat2); two renames where the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), str(b))
    aside = a.with_name(a.name + ".old")
    b.rename(aside)
    a.rename(b)
    aside.rename(a)


def sweep_partial(out: Path) -> None:
    """Remove what killed runs of this stage left beside its output; a run that lives keeps its folder."""
    for left in out.parent.glob(f".{out.name}.*.partial*"):
        pid = left.name.removeprefix(f".{out.name}.").partition(".")[0]
        if not (pid.isdigit() and pid != str(os.getpid()) and Path(f"/proc/{pid}").exists()):
            shutil.rmtree(left, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
