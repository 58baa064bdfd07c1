"""The image planes of a DICOM file, single-frame or enhanced multi-frame, and what tells planes at one place apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from ctmr.errors import InputError
from ctmr.io.dicom.geometry import SlicePlane
from ctmr.io.dicom.headers import number_of, printable, short
from ctmr.io.dicom.mosaic import is_mosaic, tile_planes

LOCALIZER = "LOCALIZER"
MAXIMUM_PIXELS = 64 * 2**20
"""More than a plane of any scanner has; beyond it a header is damaged."""
MAXIMUM_VOXELS = 2**31

TRAITS: dict[str, tuple[str, str]] = {
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "ImageType": ("", "FrameType"),
    "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue"),
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "InversionTime": ("MRModifierSequence", "InversionTimes"),
    "FlipAngle": ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    "TriggerTime": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "StackID": ("FrameContentSequence", "StackID"),
    "KVP": ("CTXRayDetailsSequence", "KVP"),
    "ConvolutionKernel": ("CTReconstructionSequence", "ConvolutionKernel"),
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "AcquisitionTime": ("FrameContentSequence", "FrameAcquisitionDateTime"),
}
"""Attributes that tell apart images of one place, in the order in which they are tried: keyword in a single-frame
file → functional group and keyword in an enhanced one (PS3.3 C.7.6.16). No functional group: the frame type."""

_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence")


@dataclass(frozen=True)
class Frame:
    """One plane of pixels.

    Attributes
    ----------
    plane
        Where it lies.
    index
        Position among the file's frames, or a mosaic's tiles, from 0.
    slope, intercept, rescale_type
        What makes physical values of the stored ones (PS3.3 C.11.1, C.7.6.16.2.9); ``None`` when absent.
    is_localizer
        True for a scout: a projection or a coarse overview that other series are planned on.
    """

    plane: SlicePlane
    index: int
    slope: float | None
    intercept: float | None
    rescale_type: str
    is_localizer: bool


class FunctionalGroups:
    """Attributes of one frame of an enhanced file: its own functional groups first, then the shared ones."""

    def __init__(self, dataset: pydicom.Dataset, index: int) -> None:
        own = dataset.PerFrameFunctionalGroupsSequence[index]
        self._places = [own, *dataset.get("SharedFunctionalGroupsSequence", [])[:1]]

    def group(self, sequence: str) -> pydicom.Dataset:
        """Return the item of a functional group; an empty data set when the file has none."""
        for place in self._places:
            items = place.get(sequence)
            if items:
                return items[0]
        return pydicom.Dataset()


def is_enhanced(dataset: pydicom.Dataset) -> bool:
    """True when every frame has attributes of its own (PS3.3 C.7.6.16)."""
    return "PerFrameFunctionalGroupsSequence" in dataset


def frames_of(dataset: pydicom.Dataset, name: str) -> list[Frame]:
    """Return the planes of a file, in the order in which its pixels are stored.

    Parameters
    ----------
    dataset
        Its attributes.
    name
        What messages call it.

    Raises
    ------
    InputError
        Without rows and columns, without a usable position, orientation or spacing, or several frames that have no
        functional groups.
    """
    try:
        return _enhanced(dataset, name) if is_enhanced(dataset) else _single(dataset, name)
    except InputError:
        raise
    except Exception as error:
        # Nested sequences fail as variously as whole files do.
        raise InputError(f"{name} is a damaged DICOM file ({short(error)}); export it again") from error


def traits_of(dataset: pydicom.Dataset, index: int) -> dict[str, str]:
    """Return those of `TRAITS` that a frame has; a damaged one tells nothing apart."""
    try:
        return _traits(dataset, index)
    except Exception:
        # As in `frames_of`: pydicom converts values when they are asked for.
        return {}


def _traits(dataset: pydicom.Dataset, index: int) -> dict[str, str]:
    if not is_enhanced(dataset):
        return {name: _words(dataset[name].value) for name in TRAITS if name in dataset}
    groups = FunctionalGroups(dataset, index)
    found = {}
    for name, (sequence, keyword) in TRAITS.items():
        for place_of in (sequence,) if sequence else _FRAME_TYPES:
            value = groups.group(place_of).get(keyword)
            if value is not None:
                found[name] = _words(value)
    return found


def place(plane: SlicePlane) -> tuple[float, ...]:
    """Return what planes at one place have in common, to a hundredth of a millimetre and a thousandth of a cosine."""
    cosines = (*plane.across.tolist(), *plane.down.tolist())
    return (*(round(x, 2) for x in plane.position.tolist()), *(round(x, 3) for x in cosines))


def told_apart(places: Sequence[Hashable], traits: Sequence[Mapping[str, str]]) -> tuple[tuple[str, ...], list[str]]:
    """Return which traits sort images into sets that have each place once, and each image's values of them.

    Two empty collections when every place occurs once, or when no trait or pair of traits does it.
    """
    most = max(Counter(places).values(), default=0)
    if most < 2:
        return (), []
    for count in (1, 2):
        for names in combinations(TRAITS, count):
            values = [", ".join(f"{n}={t.get(n, '')}" for n in names) for t in traits]
            if len(set(values)) == most and len(set(zip(values, places, strict=True))) == len(places):
                return names, values
    return (), []


def _single(dataset: pydicom.Dataset, name: str) -> list[Frame]:
    count = number_of(dataset, "NumberOfFrames") or 1
    if count > 1:
        raise InputError(
            f"{name} holds {count:g} frames without functional groups, so their positions are unknown; give "
            "single-frame or enhanced CT or MR images"
        )
    whole = _plane(name, _shape(dataset, name), dataset, dataset, dataset)
    return [
        Frame(
            plane=plane,
            index=index,
            slope=number_of(dataset, "RescaleSlope"),
            intercept=number_of(dataset, "RescaleIntercept"),
            rescale_type=str(dataset.get("RescaleType") or "").strip(),
            is_localizer=LOCALIZER in _words(dataset.get("ImageType")).upper(),
        )
        for index, plane in enumerate(tile_planes(dataset, whole) if is_mosaic(dataset) else [whole])
    ]


def _enhanced(dataset: pydicom.Dataset, name: str) -> list[Frame]:
    count = len(dataset.PerFrameFunctionalGroupsSequence)
    claimed = number_of(dataset, "NumberOfFrames") or 0
    if count != claimed or count == 0:
        raise InputError(
            f"{name} is a damaged DICOM file ({claimed:g} frames, but functional groups of {count}); export it again"
        )
    shape = _shape(dataset, name)
    if count * shape[0] * shape[1] > MAXIMUM_VOXELS:
        raise InputError(f"{name} claims {count} frames of {shape[0]}×{shape[1]}; at most {MAXIMUM_VOXELS} are read")
    frames = []
    for index in range(count):
        groups = FunctionalGroups(dataset, index)
        values = groups.group("PixelValueTransformationSequence")
        frame = Frame(
            plane=_plane(
                f"{name} frame {index + 1}" if count > 1 else name,
                shape,
                groups.group("PlanePositionSequence"),
                groups.group("PlaneOrientationSequence"),
                groups.group("PixelMeasuresSequence"),
            ),
            index=index,
            slope=number_of(values, "RescaleSlope"),
            intercept=number_of(values, "RescaleIntercept"),
            rescale_type=str(values.get("RescaleType") or "").strip(),
            is_localizer=any(LOCALIZER in _words(groups.group(s).get("FrameType")).upper() for s in _FRAME_TYPES),
        )
        frames.append(frame)
    return frames


def _shape(dataset: pydicom.Dataset, name: str) -> tuple[int, int]:
    rows, columns = (int(number_of(dataset, keyword) or 0) for keyword in ("Rows", "Columns"))
    if rows * columns == 0:
        raise InputError(f"{name} has no pixels (Rows {rows}, Columns {columns}); give CT or MR images")
    if rows * columns > MAXIMUM_PIXELS:
        raise InputError(f"{name} claims {rows}×{columns} pixels; at most {MAXIMUM_PIXELS} a plane are read")
    return rows, columns


def _plane(
    name: str,
    shape: tuple[int, int],
    position: pydicom.Dataset,
    orientation: pydicom.Dataset,
    measures: pydicom.Dataset,
) -> SlicePlane:
    cosines = _numbers(name, orientation, "ImageOrientationPatient", 6)
    spacing = _numbers(name, measures, "PixelSpacing", 2)
    return SlicePlane(
        name=name,
        position=_numbers(name, position, "ImagePositionPatient", 3),
        across=cosines[:3],
        down=cosines[3:],
        spacing=(float(spacing[0]), float(spacing[1])),
        shape=shape,
    )


def _numbers(name: str, dataset: pydicom.Dataset, keyword: str, count: int) -> NDArray[np.float64]:
    value = dataset.get(keyword)
    try:
        numbers = np.array([float(x) for x in value], dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.size != count:
        raise InputError(
            f"{name} has no usable {keyword} ({printable(_words(value), 60) or 'absent'}), {count} numbers are needed; "
            "give an original cross-sectional CT or MR series"
        )
    return numbers


def _words(value: Any) -> str:
    """Return an attribute's value as text without trailing zeros, its parts joined as DICOM joins them."""
    if value is None:
        return ""
    if isinstance(value, str | bytes):
        return str(value).strip()
    if isinstance(value, pydicom.multival.MultiValue | list | tuple):
        return "\\".join(_words(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
