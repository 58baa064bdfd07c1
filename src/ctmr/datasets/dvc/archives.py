"""Zip archives of plain files: packed alike every time, unpacked without trust."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ctmr.errors import InputError

MAX_ARCHIVE_BYTES = 64 * 1024**3
MAX_ARCHIVE_RATIO = 200
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

    Refused: absolute paths, ``..``, links, more than `MAX_ARCHIVE_BYTES`, a ratio above `MAX_ARCHIVE_RATIO`.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if not m.is_dir()]
            total = sum(m.file_size for m in members)
            packed = max(1, archive.stat().st_size)
            if total > MAX_ARCHIVE_BYTES or total / packed > MAX_ARCHIVE_RATIO:
                raise InputError(
                    f"archive {archive.name} unpacks to {total} bytes from {packed}; at most {MAX_ARCHIVE_BYTES} bytes "
                    f"and {MAX_ARCHIVE_RATIO} times its size are allowed"
                )
            for member in members:
                parts = PurePosixPath(member.filename).parts
                if PurePosixPath(member.filename).is_absolute() or ".." in parts or "\\" in member.filename:
                    raise InputError(f"archive {archive.name} holds {member.filename!r}, which leaves its folder")
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise InputError(
                        f"archive {archive.name} holds the link {member.filename!r}; only plain files may be in it"
                    )
            names = [PurePosixPath(m.filename) for m in members]
            files = set(names)
            clash = next((n for n in names if files.intersection(n.parents)), None)
            if clash is None and len(files) < len(names):
                clash = next(n for k, n in enumerate(names) if n in names[:k])
            if clash is not None:
                raise InputError(f"archive {archive.name} holds {str(clash)!r} twice, or below a file; pack it again")
            for member in members:
                destination = target.joinpath(*PurePosixPath(member.filename).parts)
                destination.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as stream, destination.open("wb") as out:
                    shutil.copyfileobj(stream, out)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise InputError(f"archive {archive.name} is damaged ({error}); fetch it again") from None
    except (RuntimeError, NotImplementedError) as error:
        # zipfile says so of encrypted members and of methods it does not know.
        raise InputError(f"archive {archive.name} cannot be unpacked ({error}); pack it as a plain zip") from None
