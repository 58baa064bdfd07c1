"""Reading one row of an inventory: the same path for fetch, preprocess and evaluate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctmr.data.manifest import Column
from ctmr.errors import InputError
from ctmr.imaging.origin import SyntheticImage
from ctmr.imaging.volume import Modality, Unit, Volume

SCOUT_SLICES = 5
MM_3D = 2.0

if TYPE_CHECKING:
    import pandas as pd

    from ctmr.io.dicom import SeriesGroups


def read(raw: Path, row: Mapping[str, Any]) -> Volume:
    """Return the volume of an inventory row: its path, format, modality and subject say how to read it.

    Raises
    ------
    SyntheticImage
        A model made it.
    InputError
        It cannot be read.
    """
    volume = _read(raw, row)
    if volume.synthetic is not None:
        raise SyntheticImage(str(row[Column.IMAGE]), volume.synthetic)
    return volume


def _read(raw: Path, row: Mapping[str, Any]) -> Volume:
    from ctmr.io import FORMATS, Holds, dicom

    path, form = str(row[Column.PATH]), FORMATS[row[Column.FORMAT]]
    if form.holds is Holds.SERIES:
        folder, mark, series = path.rpartition("#")
        files = _series_in(raw / folder, raw.stat().st_ino, raw.stat().st_mtime_ns)[series] if mark else raw / path
        return dicom.read_series(files, uneven_limit=float(row[Column.UNEVEN_LIMIT]))
    volume = form.reader.read(raw / path, modality=Modality(row[Column.MODALITY]), subject=str(row[Column.SUBJECT]))
    return volume if form.holds is Holds.PICTURE else replace(volume, sequence=row[Column.SEQUENCE] or None)


def read_mask(raw: Path, row: Mapping[str, Any], like: Volume) -> NDArray[np.bool_] | None:
    """Return the mask that came with an inventory row's image, on the voxels of an image of the same subject.

    Parameters
    ----------
    like
        With geometry; a mask on another grid is sampled at the nearest voxel.

    Returns
    -------
    numpy.ndarray or None
        ``[D, H, W]`` of `like`; ``None`` when no mask came along.

    Raises
    ------
    InputError
        A mask that cannot be read, or is empty there.
    """
    from ctmr.imaging.resample import resample_to
    from ctmr.io import read_image

    path = row[Column.MASK]
    if not isinstance(path, str) or not path:
        return None
    mask = read_image(raw / path, modality=Modality.MR, unit=Unit.ARBITRARY)
    inside = mask.with_array((mask.array > 0).astype(np.uint8))
    found: NDArray[np.bool_] = resample_to(inside, like.require_affine(), like.array.shape, order=0, outside=0) > 0
    if not found.any():
        raise InputError(f"the mask {path} marks no voxel of {row[Column.IMAGE]}; mend it, or remove it")
    return found


@lru_cache(maxsize=8)
def _series_in(folder: Path, raw: int, changed_ns: int) -> SeriesGroups:
    """Return the series of a folder; of a folder with many they are asked for one by one, and sorting reads them all.

    Fetch exchanges ``raw/`` as a whole, so its inode and time say whether it is still the same.
    """
    from ctmr.io import dicom

    return dicom.group_series(folder)


def best_first(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what rows of one subject and sequence are sorted by, so that the best image comes first.

    A stack of `SCOUT_SLICES` slices or fewer, as scouts are, comes last; then 3-D images (no side of a voxel longer
    than `MM_3D`) come before 2-D ones, smaller voxels before larger ones, more slices before fewer, and names decide.
    """
    spacing = [float(row.get(c) or math.nan) for c in (Column.SPACING_D_MM, Column.SPACING_H_MM, Column.SPACING_W_MM)]
    depth = int(row.get(Column.DEPTH) or 0)
    known = all(map(math.isfinite, spacing))
    size = round(math.prod(spacing), 3) if known else math.inf
    return depth <= SCOUT_SLICES, not known or max(spacing) > MM_3D, size, -depth, str(row[Column.IMAGE])


def rows(table: pd.DataFrame) -> list[Mapping[str, Any]]:
    """Return a manifest's rows as mappings."""
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]
