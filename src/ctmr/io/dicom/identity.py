"""Identity of a series: what the standard holds constant in it, and acquisitions that interleave."""

from __future__ import annotations

import filecmp
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)

from ctmr.io.dicom.headers import Header

CONSTANT = {
    "SOPClassUID": "class",
    "PatientID": "patient",
    "StudyInstanceUID": "study",
    "FrameOfReferenceUID": "frame of reference",
}
"""What all images of a series have in common (PS3.3 A.1.2.3, C.7.3.1, C.7.4.1): keyword → what messages call it."""

_A_STACK = 3
_BESIDE_MM = 1.0

IMAGE_CLASSES = frozenset(
    {
        CTImageStorage,
        EnhancedCTImageStorage,
        LegacyConvertedEnhancedCTImageStorage,
        MRImageStorage,
        EnhancedMRImageStorage,
        LegacyConvertedEnhancedMRImageStorage,
    }
)
"""SOP classes of CT and MR images."""


def canonical(text: str) -> str:
    """Return an identifier as two writers of it agree: one Unicode form, no padding blanks, no case.

    PS3.5 6.2 calls leading and trailing blanks of LO padding; scanners and archives differ in case and composition.

    Examples
    --------
    >>> canonical(" P01 ") == canonical("p01")
    True
    """
    return " ".join(unicodedata.normalize("NFC", text.replace("\0", " ")).casefold().split())


def identity_of(header: Header) -> tuple[str, ...]:
    """Return a file's values of `CONSTANT`, each in its `canonical` form; classic and enhanced images are one class."""
    kind, *who = (canonical(header.text(keyword)) for keyword in CONSTANT)
    return ("" if kind in IMAGE_CLASSES else kind, *who)


def told_by(identities: Sequence[tuple[str, ...]]) -> list[str]:
    """Return what messages call the attributes in which identities differ."""
    return [words for k, words in enumerate(CONSTANT.values()) if len({i[k] for i in identities}) > 1]


def images_of(headers: Sequence[Header]) -> list[Header]:
    """Return the CT and MR images among a series' objects; all of them where none is of such a class.

    A scanner puts raw data, private objects and reports into the series of their images.
    """
    images = [h for h in headers if h.text("SOPClassUID").strip() in IMAGE_CLASSES]
    return images or list(headers)


class Copies:
    """Files that are another one byte for byte: exports hold one twice, and archives send it again."""

    def __init__(self) -> None:
        self._known: dict[str, list[Path]] = {}

    def holds(self, header: Header) -> bool:
        """Return whether a file is a copy of one that was asked for before."""
        if not isinstance(header.source, Path):
            return False
        known = self._known.setdefault(header.text("SOPInstanceUID"), [])
        if any(filecmp.cmp(header.source, other, shallow=False) for other in known):
            return True
        known.append(header.source)
        return False


def acquisition(traits: Mapping[str, str]) -> str:
    """Return the acquisition of a slice as keys and messages show it."""
    return f"AcquisitionNumber={traits.get('AcquisitionNumber', '')}"


def by_acquisition(slices: Sequence[tuple[tuple[float, ...], Mapping[str, str]]]) -> dict[str, list[tuple[float, ...]]]:
    """Return acquisition → places of its slices."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for where, traits in slices:
        found.setdefault(acquisition(traits), []).append(where)
    return found


def by_moment(slices: Sequence[tuple[tuple[float, ...], tuple[float, float]]]) -> list[str]:
    """Return which time point each slice of a time series is, as keys show it; empty for what is none.

    A time series has every place equally often, each time at another AcquisitionTime and InstanceNumber; a copy that
    was sent twice has the same ones.

    Parameters
    ----------
    slices
        Place of each, and its AcquisitionTime and InstanceNumber.
    """
    moments: dict[tuple[float, ...], list[tuple[float, float]]] = {}
    for where, moment in slices:
        moments.setdefault(where, []).append(moment)
    counts = {len(m) for m in moments.values()}
    told = all(len({t for t, _ in m}) == len(m) == len({n for _, n in m}) for m in moments.values())
    if len(counts) != 1 or counts == {1} or not told:
        return []
    (count,) = counts
    return [f"time {sorted(moments[where]).index(moment) + 1} of {count}" for where, moment in slices]


def side_by_side(places: Sequence[tuple[float, ...]]) -> bool:
    """True when slices of one orientation lie one behind the other: three at least, each at a place of its own.

    How far apart they lie is left to reading, which names each gap.

    Parameters
    ----------
    places
        Position and the two direction cosines of each slice, as `ctmr.io.dicom.frames.place`.
    """
    if len(places) < _A_STACK or len(set(places)) < len(places):
        return False
    positions = np.array([p[:3] for p in places])
    normal = np.cross(places[0][3:6], places[0][6:9])
    beside = positions - np.outer(positions @ normal, normal)
    return bool(np.ptp(beside, axis=0).max() < _BESIDE_MM)


def interleaved(places: Mapping[str, Sequence[tuple[float, ...]]]) -> bool:
    """True when the slices of several acquisitions lie among each other: two passes over one region.

    One pass that a scanner numbered slab by slab, or slice by slice, does not interleave.

    Parameters
    ----------
    places
        AcquisitionNumber → position and the two direction cosines of each slice, as `ctmr.io.dicom.frames.place`.
    """
    if len(places) < 2:
        return False
    first = next(iter(places.values()))[0]
    normal = np.cross(first[3:6], first[6:9])
    extents = sorted(
        (min(along), max(along), len(along))
        for along in ([float(np.dot(normal, p[:3])) for p in group] for group in places.values())
    )
    passes = [e for e in extents if e[2] > 1]
    return any(b[0] < a[1] for a, b in pairwise(passes))
