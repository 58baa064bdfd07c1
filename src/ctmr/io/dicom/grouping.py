"""Sorting a folder's DICOM files into series, and a series into sets that are one image each."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from ctmr.errors import InputError
from ctmr.io.dicom.frames import LOCALIZER, frames_of, place, told_apart, traits_of
from ctmr.io.dicom.headers import DICOMDIR_CLASS, Header, open_header, printable, short
from ctmr.io.dicom.identity import (
    Copies,
    acquisition,
    by_acquisition,
    by_moment,
    identity_of,
    interleaved,
    side_by_side,
    told_by,
)
from ctmr.io.signature import DICOM_SUFFIXES, is_dicom
from ctmr.system.walk import files_of_images

_ONE_IMAGE = ("EchoTime", "ImageType", "InversionTime", "ConvolutionKernel")
"""Traits that slices of one image have in common."""


class SeriesGroups(dict[str, list[Path]]):
    """Key of a series → files sorted by path.

    The key is the SeriesInstanceUID. A series that holds several images of one place, localizers beside
    cross-sections, or acquisitions that interleave becomes several groups: ``UID/EchoTime=10``, ``UID/localizer``,
    ``UID/AcquisitionNumber=2``, or, where the moment alone tells them apart, ``UID/time 2 of 5``. So does a UID under
    which lie objects of several patients, studies, frames of reference or SOP classes: ``UID/patient 2 of 2``, numbered
    in the order of their files, since names tell who it is. Series of one slice each, in one frame of reference and
    side by side, are one group with the first of their UIDs: ``UID/24 series of one slice``.

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
    moment: tuple[float, float] = (0.0, 0.0)
    shape: tuple[int, int] = (0, 0)


def group_series(folder: Path) -> SeriesGroups:
    """Sort every DICOM file under `folder` by series, reading headers only.

    Files that are not DICOM are skipped, unless their name says that they are; objects without pixels (reports,
    structure sets) are listed in ``without_pixels``, damaged files in ``unreadable``; a DICOMDIR is skipped, and so is
    what is a copy of another file byte for byte.
    """
    with warnings.catch_warnings():
        # As in reading: what is used of a header is checked, what pydicom thinks of the rest is no news.
        warnings.simplefilter("ignore")
        return _group(folder)


def _group(folder: Path) -> SeriesGroups:
    groups = SeriesGroups()
    series: dict[str, list[_Member]] = {}
    copies = Copies()
    for path in files_of_images(folder):
        try:
            if not is_dicom(path):
                if path.name.lower().endswith(DICOM_SUFFIXES):
                    groups.unreadable[path] = f"{path} is not a DICOM file (no DICM prefix); export it again"
                continue
            header = open_header(path)
            if header.dataset.SOPClassUID == DICOMDIR_CLASS or copies.holds(header):
                continue
            if "Rows" in header.dataset:
                member = _member(path, header)
                series.setdefault(header.text("SeriesInstanceUID"), []).append(member)
            else:
                groups.without_pixels.append(path)
        except InputError as error:
            groups.unreadable[path] = str(error)
            continue
        except OSError as error:
            groups.unreadable[path] = f"{path} cannot be opened ({short(error)}); check its rights and its disk"
    for uid, members in _joined(series).items():
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
    moment = tuple(header.number(k) or 0.0 for k in ("AcquisitionTime", "InstanceNumber"))
    plane = frames[0].plane
    return _Member(path, place(plane), traits, frames[0].is_localizer, identity, (moment[0], moment[1]), plane.shape)


def _joined(series: dict[str, list[_Member]]) -> dict[str, list[_Member]]:
    """Return key → files, with series of one slice each that lie side by side under one key."""
    alone: dict[tuple[object, ...], dict[str, _Member]] = {}
    for uid, members in series.items():
        first = members[0]
        # No frame of reference: nothing says that their positions can be compared.
        if len(members) == 1 and first.place and first.identity[-1] and not first.localizer:
            kind = tuple(
                first.traits.get(k, "") for k in ("EchoTime", "ImageType", "InversionTime", "ConvolutionKernel")
            )
            alone.setdefault((first.identity, first.shape, first.place[3:], kind), {})[uid] = first
    found = dict(series)
    for slices in alone.values():
        if side_by_side([m.place for m in slices.values()]):
            for uid in slices:
                del found[uid]
            found[f"{min(slices)}/{len(slices)} series of one slice"] = list(slices.values())
    return found


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
    elif not names and (moments := by_moment([(m.place, m.moment) for m in placed])):
        values = moments
    elif not names:
        return {"": members}
    if len(placed) < len(members):
        return {"": members}
    parts: dict[str, list[_Member]] = {}
    for member, value in zip(placed, values, strict=True):
        parts.setdefault("/" + value, []).append(member)
    return dict(sorted(parts.items()))
