"""Volumes and pictures written anew: voxels and geometry stay, every text and every name goes."""

from __future__ import annotations

import gzip
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ctmr.errors import InputError
from ctmr.imaging.origin import NO_TRUTH, Synthetic, told_by
from ctmr.imaging.volume import Modality, Unit
from ctmr.io import FORMATS, Holds
from ctmr.io.bounds import require_bounded

_GEOMETRY = (
    "dim",
    "datatype",
    "bitpix",
    "pixdim",
    "scl_slope",
    "scl_inter",
    "xyzt_units",
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
)
"""Fields of a NIfTI header that say where voxels lie and what they mean; all others become empty."""
_NO_EXTENSION = bytes(4)
_LARGEST_VOXEL_BYTES = 8
_ITK_TEXTS = ("descrip", "ITK_FileNotes", "Comment")
"""Keys under which a MetaImage that was converted from another format keeps its texts."""
_SPATIAL_AXES = 4
"""pixdim[0..3]: handedness and voxel size; the rest may hold anything."""


def clean(kind: str, source: Path, target: Path) -> None:
    """Write a volume as ``.nii.gz`` or a picture as 8-bit grey PNG, exactly as ctmr reads it and without text.

    Parameters
    ----------
    kind
        The source's format, a key of `ctmr.io.FORMATS`. A NIfTI file keeps its version and the type of its voxels.
    target
        Path of the new file, without suffix.

    Raises
    ------
    InputError
        What is no such file; without its name.
    """
    form = FORMATS[kind]
    writer = FORMATS["raster" if form.holds is Holds.PICTURE else "nifti"]
    target = target.with_name(target.name + writer.written)
    if kind == "nifti":
        target.write_bytes(clean_nifti(source))
        return
    unit = Unit.GREY8 if form.holds is Holds.PICTURE else Unit.ARBITRARY
    try:
        volume = form.reader.read(source, modality=Modality.MR, unit=unit)
    except InputError:
        raise InputError(f"cannot be decoded as {form.title}; export it again") from None
    _refuse_synthetic(volume.synthetic)
    writer.reader.write(target, volume)


def _refuse_synthetic(synthetic: Synthetic | None) -> None:
    if synthetic is not None:
        raise InputError(f"is synthetic ({synthetic.words}); {NO_TRUTH}")


def clean_nifti(source: Path) -> bytes:
    """Return a NIfTI file as gzip, in its own version, with the voxels and geometry of `source` and nothing else.

    Parameters
    ----------
    source
        ``.nii``, ``.nii.gz``, or ``.mha`` (SynthRAD2025), which is converted.

    Raises
    ------
    InputError
        What is no such file; without its name.
    """
    if source.name.lower().endswith(".mha"):
        return _clean_metaimage(source)
    from ctmr.io.nifti import content_of, first_voxel, texts_in

    try:
        with gzip.open(source) if source.name.lower().endswith(".gz") else source.open("rb") as stream:
            header, raw = content_of(source, stream)
        synthetic = told_by(texts_in(raw))
        if not bytes(header["magic"]).startswith(b"n+"):
            raise ValueError("no single NIfTI file")
        count = int(np.prod([int(n) for n in header.get_data_shape()]))
        size = count * header.get_data_dtype().itemsize
        offset = first_voxel(header, raw)
        voxels = raw[offset : offset + size]
        if len(voxels) != size:
            raise ValueError(f"{len(voxels)} of {size} bytes")
        clean = type(header)(endianness=header.endianness, check=False)
        for field in _GEOMETRY:
            clean[field] = header[field]
        clean["pixdim"][_SPATIAL_AXES:] = 0
        clean["vox_offset"] = len(clean.binaryblock) + len(_NO_EXTENSION)
    except Exception as error:
        # nibabel, gzip and struct have no common base; each means that this is no usable file.
        reason = str(error) if isinstance(error, InputError) else type(error).__name__
        raise InputError(f"cannot be read as NIfTI ({reason}); export it again") from None
    _refuse_synthetic(synthetic)
    # gzip gets no file name and no time.
    return gzip.compress(clean.binaryblock + _NO_EXTENSION + voxels, 6, mtime=0)


def _clean_metaimage(source: Path) -> bytes:
    import SimpleITK

    try:
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(source))
        reader.ReadImageInformation()
        voxels = math.prod(float(n) for n in (*reader.GetSize(), reader.GetNumberOfComponents()))
        require_bounded(voxels * _LARGEST_VOXEL_BYTES, source.stat().st_size, "it")
        image: Any = reader.Execute()
        _refuse_synthetic(told_by({k: image.GetMetaData(k) for k in _ITK_TEXTS if image.HasMetaDataKey(k)}))
        with tempfile.TemporaryDirectory() as folder:
            converted = Path(folder) / "image.nii"
            SimpleITK.WriteImage(image, str(converted))
            return clean_nifti(converted)
    except RuntimeError:
        raise InputError("cannot be read as MetaImage; export it again") from None
    except InputError as error:
        raise InputError(f"cannot be read as MetaImage ({error}); export it again") from None
