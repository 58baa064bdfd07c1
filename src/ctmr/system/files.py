"""Atomic writes: a file or folder appears complete under its name, or not at all; leftovers of the killed are swept."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ctmr.errors import EnvironmentFault, InputError

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2
LIBC = ctypes.CDLL(None, use_errno=True)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors that only a write has; whatever is being read meanwhile cannot be what failed."""
_ROOM = 1 << 16
"""Bytes that a task may need before it says anything."""
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.\d+-[0-9a-f]{8}\.partial", re.DOTALL)


def require_temporary() -> None:
    """Raise EnvironmentFault unless the folder of temporary files takes one.

    Python takes another folder where it can; the shell that starts a task does not, and says what nobody understands.
    """
    folder = os.environ.get("TMPDIR") or tempfile.gettempdir()
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(bytes(_ROOM))
            file.flush()
    except OSError as error:
        raise EnvironmentFault(
            f"no temporary file can be written into {folder} ({error.strerror}); make room there, or name another "
            "folder in TMPDIR"
        ) from None


def write_file(path: Path, content: bytes, *, replace: bool = False, mode: int = 0o666) -> None:
    """Write a file, on disk when it returns.

    Parameters
    ----------
    replace
        Take the place of what stands there; else nothing is overwritten.
    mode
        Rights from the first byte on, less the umask.

    Raises
    ------
    InputError
        When something of that name exists and shall not be replaced.
    EnvironmentFault
        When the disk is full or cannot be written.
    """
    if not replace and path.exists():
        raise InputError(_EXISTS.format(path=path, what=""))
    with _partial(path, lambda p: os.close(os.open(p, os.O_CREAT | os.O_EXCL, mode))) as temporary, written(path):
        temporary.write_bytes(content)
        _flush(temporary)
        if replace or not _rename(temporary, path, _NOREPLACE):
            temporary.replace(path)
        _flush(path.parent)


def owners_secret(path: Path) -> str:
    """Return the secret that a file holds which its owner alone can read; it is made when it is asked for first.

    Raises
    ------
    EnvironmentFault
        The disk cannot be written, or others can read the file.
    """
    if not path.exists():
        with contextlib.suppress(InputError), written(path):  # Another process made it first.
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, secrets.token_hex(32).encode(), mode=0o600)
    if path.stat().st_mode & 0o077:
        raise EnvironmentFault(f"others can read the secret in {path}; delete it, and stop and start what uses it")
    return path.read_text()


@contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its name, on disk, when the block ends without an error.

    Parameters
    ----------
    replace
        Take the place of the folder that stands there: at every instant the old or the new one does. Else only an
        empty folder is replaced.

    Raises
    ------
    InputError
        When something of that name exists and shall not be replaced.
    EnvironmentFault
        When the disk is full or cannot be written.
    """
    if not replace and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(_EXISTS.format(path=folder, what=" and is not an empty folder"))
    with _partial(folder, Path.mkdir) as temporary:
        yield temporary
        with written(folder):
            for entry in temporary.rglob("*"):
                if not entry.is_symlink():
                    _flush(entry)
            _flush(temporary)
            if replace and folder.exists():
                exchange(temporary, folder)
            else:
                temporary.rename(folder)
            _flush(folder.parent)


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """Yield an empty folder of this user alone beside a path, and remove it at the end."""
    with _partial(beside, lambda p: p.mkdir(mode=0o700)) as temporary:
        yield temporary


def append_line(path: Path, line: str, *, mode: int = 0o666) -> None:
    """Append a line to a file, made when missing; on disk when it returns.

    Raises
    ------
    EnvironmentFault
        When the disk is full or cannot be written.
    """
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, mode)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                # A line that a power cut tore must not swallow this one.
                line = "\n" + line
            os.write(descriptor, line.encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def identity(path: Path) -> list[int]:
    """Return what tells a file or folder from a copy of it, and does not change when it is moved on its disk."""
    found = path.stat()
    return [found.st_dev, found.st_ino]


def exchange(a: Path, b: Path) -> None:
    """Swap two folders in one step (Linux renameat2); two renames where the file system cannot."""
    if not _rename(a, b, _EXCHANGE):
        aside = _unlike_any(b)
        b.rename(aside)
        a.rename(b)
        aside.rename(a)


def sweep(folder: Path, name: str = "") -> None:
    """Remove what killed writers left half-written in a folder; what any living process is writing stays.

    Every write does it for its own name.

    Parameters
    ----------
    name
        Only leftovers of the file or folder of that name.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            found = _LEFTOVER.fullmatch(entry.name)
            if found and name in ("", found["name"]):
                _sweep_one(Path(entry.path))


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn an error of the system into a sentence that says that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"{path} cannot be written: {error.strerror or error}; free space or fix its permissions, then try again"
        ) from error


_EXISTS = "{path} exists already{what}; choose another name or remove it first"


@contextmanager
def _partial(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Yield what `make` makes beside `path`; it is removed at the end, if it still stands there."""
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        temporary, descriptor = _claimed(path, make)
    try:
        yield temporary
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        with written(path):
            raise
    finally:
        _remove(temporary)
        os.close(descriptor)


def _claimed(path: Path, make: Callable[[Path], None]) -> tuple[Path, int]:
    """Make something with a lock on it, which ends with this process: that tells `sweep` that it is in work.

    A process id would not: it is given away again, and means nothing to another container that has the disk too.
    """
    while True:
        temporary = _unlike_any(path)
        make(temporary)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(temporary, os.O_RDONLY)
            with contextlib.suppress(FileNotFoundError):
                if _lock(descriptor) is not False and os.path.samestat(temporary.stat(), os.fstat(descriptor)):
                    return temporary, descriptor
            # Between the two steps another process took it for a leftover.
            os.close(descriptor)


def _unlike_any(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def _lock(descriptor: int) -> bool | None:
    """Return whether a lock was free and is now held; None where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sweep_one(left: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(left, os.O_RDONLY)
        try:
            if _lock(descriptor):
                _remove(left)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _rename(a: Path, b: Path, flag: int) -> bool:
    """Rename with a flag of renameat2(2); False where the file system does not know it."""
    if LIBC.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):
        return False
    if number == errno.EEXIST:
        raise InputError(_EXISTS.format(path=b, what=""))
    raise OSError(number, os.strerror(number), str(b))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
