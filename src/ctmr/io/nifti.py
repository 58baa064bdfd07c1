"""NIfTI-1 files in and out, in any orientation."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np

from ctmr.errors import InputError
from ctmr.io.atomic import write_file
from ctmr.io.values import compact, hounsfield_int16, require_finite
from ctmr.volume import Modality, Unit, Volume

SUFFIXES = (".nii", ".nii.gz")
MAXIMUM_VOXELS = 2**31
_MM_PER_UNIT = {"meter": 1000.0, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}
_SCANNER = 1
"""NIfTI code of "scanner-based anatomical coordinates"."""


def read(path: Path, *, modality: Modality, unit: Unit, subject: str = "", sequence: str | None = None) -> Volume:
    """Read one 3-D NIfTI file.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz``.
    modality, unit, subject, sequence
        What the header cannot say.

    Returns
    -------
    Volume
        NIfTI axes (i, j, k) become (k, j, i) = [D, H, W], with the affine's columns to match; scale factors applied;
        integers of 16 bits where that is exact, else float32.

    Raises
    ------
    InputError
        A damaged file, more than three axes, colour, NaN, or no orientation (sform and qform codes both 0).
    """
    try:
        image = nibabel.Nifti1Image.from_filename(path)
        shape = _three_axes(path, image)
        array = np.asanyarray(image.dataobj).reshape(shape)
        affine = image.affine[:, [2, 1, 0, 3]].astype(np.float64)
        affine[:3] *= _MM_PER_UNIT[image.header.get_xyzt_units()[0]]
    except InputError:
        raise
    except Exception as error:
        # nibabel has no common base for what a damaged header or stream makes it raise.
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} cannot be read as NIfTI ({reason}); export it again") from error
    require_finite(array, str(path))
    return Volume(
        array=compact(np.ascontiguousarray(array.transpose(2, 1, 0))),
        affine=affine,
        modality=modality,
        unit=unit,
        subject=subject,
        sequence=sequence,
    )


def write(path: Path, volume: Volume, *, description: str = "") -> Path:
    """Write a volume as NIfTI-1; equal input gives equal bytes.

    Parameters
    ----------
    path
        New; ``.nii`` or ``.nii.gz``.
    volume
        HU is rounded to int16; other units keep int16, uint16, uint8 or float32.
    description
        Header field ``descrip``, at most 79 characters, e.g. "synthetic CT".

    Raises
    ------
    InputError
        No geometry, values that are not finite, another suffix, or a path that exists.
    """
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{path} ends in {''.join(path.suffixes)!r}; a NIfTI file ends in {' or '.join(SUFFIXES)}")
    require_finite(volume.array, f"the volume for {path}")
    array = hounsfield_int16(volume.array, str(path)) if volume.unit is Unit.HU else compact(volume.array)
    affine = volume.require_affine()[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(array.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    image.set_sform(affine, code=_SCANNER)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    straight = float(np.abs(directions.T @ directions - np.eye(3)).max()) < 1e-4
    # A qform is a rotation; for a sheared affine only the sform tells the truth.
    image.set_qform(affine, code=_SCANNER if straight else 0)
    content = image.to_bytes()
    write_file(path, gzip.compress(content, 6, mtime=0) if path.name.endswith(".gz") else content)
    return path


def _three_axes(path: Path, image: nibabel.Nifti1Image) -> tuple[int, ...]:
    """Return the shape without trailing ones; InputError unless that is a readable 3-D image with an orientation."""
    shape: tuple[int, ...] = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise InputError(f"{path} has shape {image.shape}; one 3-D image is needed, so split it first")
    if np.prod([float(n) for n in shape]) > MAXIMUM_VOXELS:
        raise InputError(f"{path} claims shape {image.shape}; at most {MAXIMUM_VOXELS} voxels are read")
    if image.get_data_dtype().kind not in "iufb":
        raise InputError(f"{path} holds voxels of type {image.get_data_dtype()}; real numbers are needed")
    if int(image.header["sform_code"]) == 0 and int(image.header["qform_code"]) == 0:
        raise InputError(
            f"{path} has no orientation (sform and qform codes are 0); left and right would be guessed, "
            "so set one first"
        )
    return shape
