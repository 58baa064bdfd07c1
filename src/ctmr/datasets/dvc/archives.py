"""Zip archives of plain files: packed alike every time, unpacked without trust."""

from __future__ import annotations

import errno
import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from ctmr.errors import InputError
from ctmr.io.dicom.headers import short
from ctmr.system.walk import MAXIMUM_DEPTH, is_companion

MAX_ARCHIVE_BYTES = 64 * 1024**3
MAX_ARCHIVE_RATIO = 200
MAX_NAME_BYTES = 255
"""Of one folder or file; what Linux's file systems take."""
MAX_PATH_BYTES = 4095
_SHOWN = 80
_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack(archive: Path, members: Sequence[tuple[str, Path]]) -> None:
    """Write files into a new zip archive; equal members give equal bytes with one zlib.

    Parameters
    ----------
    archive
        New file.
    members
        Name in the archive and file; written in this order, without dates or owners.

    Notes
    -----
    Members are deflated, unless that would make them look like a bomb to `unpack`: then they are stored.
    """
    total = sum(file.stat().st_size for _, file in members)
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        with zipfile.ZipFile(archive, "w", method, compresslevel=6) as opened:
            for name, file in members:
                info = zipfile.ZipInfo(name, _EPOCH)
                info.create_system, info.compress_type, info.file_size = 3, method, file.stat().st_size
                info.external_attr = 0o644 << 16
                with file.open("rb") as stream, opened.open(info, "w") as out:
                    shutil.copyfileobj(stream, out, 1 << 20)
        if total <= MAX_ARCHIVE_RATIO / 2 * archive.stat().st_size:
            return


def unpack(archive: Path, target: Path) -> None:
    """Unpack a zip archive of plain files, or raise InputError when it would leave its folder or explode.

    What macOS adds (``__MACOSX/``) is left out. Refused: absolute paths, ``..``, links, names that no disk takes, more
    than `MAX_ARCHIVE_BYTES`, a ratio above `MAX_ARCHIVE_RATIO`.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = opened.infolist()
            total = sum(m.file_size for m in infos)
            packed = max(1, archive.stat().st_size)
            if total > MAX_ARCHIVE_BYTES or total / packed > MAX_ARCHIVE_RATIO:
                raise InputError(
                    f"archive {archive.name} unpacks to {total} bytes from {packed}; at most {MAX_ARCHIVE_BYTES} bytes "
                    f"and {MAX_ARCHIVE_RATIO} times its size are allowed"
                )
            members = [(path, m) for m in infos if (path := _path_of(archive, m, target)) is not None]
            names = [path for path, _ in members]
            files = set(names)
            clash = next((n for n in names if files.intersection(n.parents)), None)
            if clash is None and len(files) < len(names):
                clash = next(n for n, times in Counter(names).items() if times > 1)
            if clash is not None:
                raise InputError(f"archive {archive.name} holds {str(clash)!r} twice, or below a file; pack it again")
            for path, member in members:
                destination = target / path
                destination.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as stream, destination.open("wb") as out:
                    shutil.copyfileobj(stream, out)
    except OSError as error:
        # bzip2 says of a damaged stream that it is a fault of the system, without a number.
        if error.errno not in (errno.EINVAL, None):
            raise
        reason = "an offset is impossible" if error.errno else short(error)
        raise InputError(f"archive {archive.name} is damaged ({reason}); fetch it again") from None
    except (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, ValueError, struct.error, IndexError) as error:
        raise InputError(f"archive {archive.name} is damaged ({short(error)}); fetch it again") from None
    except (RuntimeError, NotImplementedError) as error:
        # zipfile says so of encrypted members and of methods it does not know.
        reason = short(error)
        raise InputError(f"archive {archive.name} cannot be unpacked ({reason}); pack it as a plain zip") from None


def _path_of(archive: Path, member: zipfile.ZipInfo, target: Path) -> PurePosixPath | None:
    """Return where a member belongs below the target; None for a folder, and for what macOS adds.

    Some archivers of Windows write backslashes between folders, against the format (APPNOTE 4.4.17.1).
    """
    name = member.filename.replace("\\", "/")
    path = PurePosixPath(name)
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise InputError(f"archive {archive.name} holds {_shown(name)}, which leaves its folder; pack it again")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise InputError(f"archive {archive.name} holds the link {_shown(name)}; only plain files may be in it")
    longest = max((len(part.encode()) for part in path.parts), default=0)
    if (
        longest > MAX_NAME_BYTES
        or len(path.parts) > MAXIMUM_DEPTH
        or len(str(target.absolute() / path).encode()) > MAX_PATH_BYTES
    ):
        raise InputError(
            f"archive {archive.name} holds {_shown(name)}, which no folder can hold; at most {MAX_NAME_BYTES} bytes a "
            f"name, {MAXIMUM_DEPTH} folders in each other and {MAX_PATH_BYTES} bytes in all are allowed"
        )
    return None if name.endswith("/") or not path.parts or is_companion(path) else path


def _shown(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else name[:_SHOWN] + "…")
