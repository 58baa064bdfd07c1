"""Scan of a source folder: DICOM series, NIfTI files and pictures, archives opened for the time of the scan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ctmr.datasets.deid.dicom import not_an_image, quiet_pydicom
from ctmr.datasets.dvc import refuse_link, unpack
from ctmr.errors import EnvironmentFault
from ctmr.io import FORMATS, Holds, format_named
from ctmr.system.files import scratch_folder
from ctmr.system.walk import entries_below, files_of_images


@dataclass(frozen=True)
class Item:
    """A series or file of the source.

    Attributes
    ----------
    relative
        Path in the source, of a series its first file; archives count as folders.
    kind
        Its format, a key of `ctmr.io.FORMATS`.
    header
        First header of a DICOM series, without pixels.
    uid
        SeriesInstanceUID.
    """

    relative: PurePosixPath
    kind: str
    files: tuple[Path, ...]
    header: Any = None
    uid: str = ""

    @property
    def holds(self) -> Holds:
        """Kind of image: a series, a volume or a picture."""
        return FORMATS[self.kind].holds


@dataclass
class Scan:
    """Everything that was found.

    Attributes
    ----------
    unreadable
        DICOM files that are damaged.
    left_out
        Reason → number of DICOM objects without pixels, such as reports.
    """

    items: list[Item] = field(default_factory=list)
    unreadable: list[PurePosixPath] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


@contextmanager
def scanned(source: Path, private: Path) -> Iterator[Scan]:
    """Yield what lies below a folder.

    Parameters
    ----------
    source
        Folder of images; zip archives in it are unpacked, and removed again at the end.
    private
        Folder beside which archives are unpacked, mode 0700: they are not de-identified yet.

    Raises
    ------
    InputError
        Links to folders or out of the source, as `refuse_link` refuses them, or a damaged archive.
    """
    with scratch_folder(private) as scratch:
        try:
            for entry in entries_below(source):
                refuse_link(source, entry)
            scan = _scan(source, scratch)
        except OSError as error:
            raise EnvironmentFault(f"{source} cannot be read: {error.strerror} ({error.filename})") from None
        yield scan


def _scan(source: Path, scratch: Path) -> Scan:
    roots = [source]
    archives = [p for p in files_of_images(source) if p.suffix.lower() == ".zip"]
    if archives:
        roots.append(scratch)
    for archive in archives:
        unpack(archive, scratch / archive.relative_to(source).with_suffix(""))
    scan = Scan()
    for root in roots:
        _scan_root(root, scan)
    scan.items.sort(key=lambda i: (i.relative, i.uid))
    return scan


def _scan_root(root: Path, scan: Scan) -> None:
    from ctmr.io import dicom

    for file in files_of_images(root):
        kind = format_named(file.name, imported=True)
        if kind is not None and FORMATS[kind].holds is not Holds.SERIES:
            scan.items.append(Item(PurePosixPath(file.relative_to(root)), kind, (file,)))
    with quiet_pydicom():
        groups = dicom.group_series(root)
        for uid, files in sorted(groups.items()):
            relative = PurePosixPath(files[0].relative_to(root))
            scan.items.append(Item(relative, "dicom", tuple(files), dicom.read_header(files[0]), uid))
        for file in groups.without_pixels:
            scan.left_out[not_an_image(dicom.read_header(file)) or "no pixels"] += 1
    scan.unreadable += [PurePosixPath(f.relative_to(root)) for f in sorted(groups.unreadable)]
