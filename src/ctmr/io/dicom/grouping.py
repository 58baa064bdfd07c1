"""Sorting a folder's DICOM files into series, and a series into sets that are one image each."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from ctmr.errors import InputError
from ctmr.io.dicom.frames import LOCALIZER, frames_of, place, told_apart, traits_of
from ctmr.io.dicom.headers import DICOMDIR_CLASS, Header, open_header, printable, short
from ctmr.io.dicom.identity import acquisition, by_acquisition, identity_of, interleaved, told_by
from ctmr.io.signature import DICOM_SUFFIXES, is_dicom


class SeriesGroups(dict[str, list[Path]]):
    """Key of a series → files sorted by path.

    The key is the SeriesInstanceUID. A series that holds several images of one place, localizers beside
    cross-sections, or acquisitions that interleave becomes several groups: ``UID/EchoTime=10``, ``UID/localizer``,
    ``UID/AcquisitionNumber=2``. So does a UID under which lie objects of several patients, studies, frames of
    reference or SOP classes: ``UID/patient 2 of 2``, numbered in the order of their files, since names tell who it is.

    Attributes
    ----------
    unreadable
        DICOM files that could not be read → why.
    without_pixels
        Objects that hold no image, sorted: reports, structure sets, presentation states.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unreadable: dict[Path, str] = {}
        self.without_pixels: list[Path] = []

    def __missing__(self, key: str) -> list[Path]:
        known = printable(", ".join(sorted(self)), 500) or "none"
        raise InputError(f"there is no series {key!r} here; there is {known}")


@dataclass(frozen=True)
class _Member:
    """Part of a file that sorting needs; headers themselves would fill the memory."""

    path: Path
    place: tuple[float, ...]
    traits: dict[str, str]
    localizer: bool
    identity: tuple[str, ...]


def group_series(folder: Path) -> SeriesGroups:
    """Sort every DICOM file under `folder` by series, reading headers only.

    Files that are not DICOM are skipped, unless their name says that they are; objects without pixels (reports,
    structure sets) are listed in ``without_pixels``, damaged files in ``unreadable``; a DICOMDIR is skipped.
    """
    with warnings.catch_warnings():
        # As in reading: what is used of a header is checked, what pydicom thinks of the rest is no news.
        warnings.simplefilter("ignore")
        return _group(folder)


def _group(folder: Path) -> SeriesGroups:
    groups = SeriesGroups()
    series: dict[str, list[_Member]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            if not is_dicom(path):
                if path.name.lower().endswith(DICOM_SUFFIXES):
                    groups.unreadable[path] = f"{path} is not a DICOM file (no DICM prefix); export it again"
                continue
            header = open_header(path)
            if header.dataset.SOPClassUID == DICOMDIR_CLASS:
                continue
            if "Rows" in header.dataset:
                series.setdefault(header.text("SeriesInstanceUID"), []).append(_member(path, header))
            else:
                groups.without_pixels.append(path)
        except InputError as error:
            groups.unreadable[path] = str(error)
            continue
        except OSError as error:
            groups.unreadable[path] = f"{path} cannot be opened ({short(error)}); check its rights and its disk"
    for uid, members in series.items():
        for other, same in _identities(members).items():
            for suffix, part in _parts(same).items():
                groups[uid + other + suffix] = [m.path for m in part]
    return groups


def _identities(members: list[_Member]) -> dict[str, list[_Member]]:
    """Return suffix of the key → files of one patient, study, frame of reference and class."""
    found: dict[tuple[str, ...], list[_Member]] = {}
    for member in members:
        found.setdefault(member.identity, []).append(member)
    if len(found) == 1:
        return {"": members}
    words = ", ".join(told_by(list(found)))
    return {f"/{words} {k} of {len(found)}": part for k, part in enumerate(found.values(), start=1)}


def _member(path: Path, header: Header) -> _Member:
    identity = identity_of(header)
    try:
        frames = frames_of(header.dataset, header.name)
    except InputError:
        # Reading the series names the fault; here the file only has no place of its own.
        return _Member(path, (), {}, False, identity)
    if len({place(f.plane) for f in frames}) < len(frames):
        # Several images in one file: reading says so, sorting files cannot part them.
        return _Member(path, (), {}, frames[0].is_localizer, identity)
    traits = traits_of(header.dataset, 0)
    for frame in frames[1:]:
        traits = dict(traits.items() & traits_of(header.dataset, frame.index).items())
    return _Member(path, place(frames[0].plane), traits, frames[0].is_localizer, identity)


def _parts(members: list[_Member]) -> dict[str, list[_Member]]:
    """Return suffix of the key → files: one part with an empty suffix unless the series is several images."""
    images = [m for m in members if not m.localizer]
    localizers = [m for m in members if m.localizer]
    if localizers and images:
        return {**_parts(images), f"/{LOCALIZER.lower()}": localizers}
    placed = [m for m in members if m.place]
    names, values = told_apart([m.place for m in placed], [m.traits for m in placed])
    if not names and interleaved(by_acquisition([(m.place, m.traits) for m in placed])):
        values = [acquisition(m.traits) for m in placed]
    elif not names:
        return {"": members}
    if len(placed) < len(members):
        return {"": members}
    parts: dict[str, list[_Member]] = {}
    for member, value in zip(placed, values, strict=True):
        parts.setdefault("/" + value, []).append(member)
    return dict(sorted(parts.items()))
