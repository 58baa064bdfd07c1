"""Siemens mosaics: slices of one volume as tiles of one image, parted by what the scanner's private header tells."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from ctmr.errors import InputError
from ctmr.io.dicom.geometry import SHEAR_TOLERANCE, SlicePlane, Vector
from ctmr.io.dicom.headers import number_of, private_number, terms_of

MOSAIC_TYPES = frozenset({"MOSAIC", "VFRAME"})
"""Values of ImageType, of Siemens and UIH."""


def is_mosaic(dataset: pydicom.Dataset) -> bool:
    """True for the tiles of a volume in one image; an enhanced file has frames in their place."""
    if "PerFrameFunctionalGroupsSequence" in dataset:
        return False
    counted = private_number(dataset, 0x0019, "SIEMENS MR HEADER", 0x0A) or 0
    return counted > 1 or bool(MOSAIC_TYPES.intersection(terms_of(dataset, "ImageType")))


def tile_planes(dataset: pydicom.Dataset, whole: SlicePlane) -> list[SlicePlane]:
    """Return the plane of each tile, in the order in which they are stored: row by row, empty ones left out.

    Parameters
    ----------
    dataset
        A mosaic's attributes.
    whole
        Plane of the image that holds the tiles, as its header says.

    Raises
    ------
    InputError
        Without a private header that says how many tiles there are and which way they follow each other, without the
        distance of slices, or where the tiles do not fill the image.

    Notes
    -----
    ImagePositionPatient of a mosaic is the corner of an image as large as all tiles together about the centre of the
    first slice, so a tile's own corner lies half of the difference further in. The sign of the slices' order is that of
    the private SliceNormalVector.
    """
    count, normal = _from_private_header(dataset, whole.name)
    a_side = math.ceil(math.sqrt(count))
    if not 0 < a_side <= min(whole.shape) or any(n % a_side for n in whole.shape):
        raise _refused(whole.name, f"{count} tiles do not part {whole.shape[0]}×{whole.shape[1]} pixels")
    along = float(normal @ whole.normal)
    if not abs(abs(along) - 1) <= SHEAR_TOLERANCE:
        raise _refused(whole.name, "the slice normal of its private header is not that of its orientation")
    distance = number_of(dataset, "SpacingBetweenSlices")
    if count > 1 and not (distance and distance > 0 and math.isfinite(distance)):
        raise _refused(whole.name, "it has no SpacingBetweenSlices")
    rows, columns = (n // a_side for n in whole.shape)
    inward = [(n - own) / 2 * mm for n, own, mm in zip(whole.shape, (rows, columns), whole.spacing, strict=True)]
    corner = whole.position + inward[0] * whole.down + inward[1] * whole.across
    step = math.copysign(distance or 0.0, along) * whole.normal
    return [
        replace(whole, name=f"{whole.name} tile {k + 1}", position=corner + k * step, shape=(rows, columns))
        for k in range(count)
    ]


def tiles(image: NDArray[Any], shape: tuple[int, int], count: int) -> Iterator[NDArray[Any]]:
    """Yield the first `count` tiles of a mosaic, row by row."""
    rows, columns = shape
    a_row = image.shape[1] // columns
    for k in range(count):
        down, across = (k // a_row) * rows, (k % a_row) * columns
        yield image[down : down + rows, across : across + columns]


def _from_private_header(dataset: pydicom.Dataset, name: str) -> tuple[int, Vector]:
    """Return the number of tiles and the direction in which slices follow each other (LPS)."""
    from nibabel.nicom import csareader

    try:
        private = csareader.get_csa_header(dataset)
        count = int(csareader.get_n_mosaic(private))
        normal = np.array(csareader.get_slice_normal(private), dtype=np.float64)
    except Exception as error:
        # A header that is missing, cut off or of another writer makes its reader fail anywhere.
        raise _refused(name, "no private header of Siemens (0029,1010) says how its tiles lie") from error
    if count < 1 or normal.shape != (3,):
        raise _refused(name, "no private header of Siemens (0029,1010) says how its tiles lie")
    return count, normal


def _refused(name: str, why: str) -> InputError:
    return InputError(
        f"{name} is a mosaic, the slices of a volume as tiles of one image, and {why}; export it as single slices"
    )
