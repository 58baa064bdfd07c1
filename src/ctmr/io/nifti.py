"""NIfTI files in (1 and 2) and out (1), in any orientation."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ctmr.errors import InputError
from ctmr.imaging.hounsfield import HU_EVIDENCE
from ctmr.imaging.origin import told_by
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io import FORMATS
from ctmr.io.bounds import require_bounded
from ctmr.io.values import Collector, compact, hounsfield_int16, require_finite, rescaled, without_padding
from ctmr.system.files import write_file

MAXIMUM_VOXELS = 2**31
MAXIMUM_OFFSET = 2**26
"""Bytes before the voxels, extensions with them; beyond, vox_offset is damaged."""
_MM_PER_UNIT = {"meter": 1000.0, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}
_SCANNER = 1
"""NIfTI code of "scanner-based anatomical coordinates"."""
_NIFTI2_HEADER_BYTES = 540
_NO_EXTENSION = bytes(4)
_DEFLATE_RATIO = 1032
"""The most that deflate packs (zlib's documentation)."""
_COMMENT = 6
"""NIfTI code of a header extension of plain text."""
_LONGEST_EXTENSIONS = 2**20
AGREEMENT_MM = 0.1
"""Places of a voxel that lie closer than this are one."""


def read(path: Path, *, modality: Modality, unit: Unit | None = None, subject: str = "") -> Volume:
    """Read one 3-D NIfTI file.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz``, NIfTI-1 or NIfTI-2, any byte order.
    modality, subject
        What the header cannot say.
    unit
        ``None``: HU for a CT that shows air in Hounsfield units (a voxel at `HU_EVIDENCE` or below), arbitrary for any
        other and for MR. So a CT in Cormack units or a rescaled one never passes for HU unless somebody says so.

    Returns
    -------
    Volume
        NIfTI axes (i, j, k) become (k, j, i) = [D, H, W], with the affine's columns to match; scale factors applied;
        integers of 16 bits where that is exact, else float32; of a CT in HU, what a scanner pads with as -1024
        (`ctmr.io.values.without_padding`). The affine is nibabel's: the sform where it has a code,
        else the qform; when both have one and disagree, `notes` says by how much. Without a unit of length, millimetres
        are meant.

    Raises
    ------
    InputError
        A damaged file, more than three axes, colour, NaN, or no orientation (sform and qform codes both 0).
    """
    try:
        image = _open(path)
        shape = _three_axes(path, image)
        scale_mm = _MM_PER_UNIT[image.header.get_xyzt_units()[0]]
        notes = _disagreement(image, shape, scale_mm)
        affine = image.affine[:, [2, 1, 0, 3]].astype(np.float64)
        affine[:3] *= scale_mm
        array = _values(image, shape, str(path))
        synthetic = told_by(texts_in(_beginning(path)))
    except InputError:
        raise
    except Exception as error:
        # nibabel has no common base for what a damaged header or stream makes it raise.
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} cannot be read as NIfTI ({reason}); export it again") from error
    if unit is None:
        unit = Unit.HU if modality is Modality.CT and array.min() <= HU_EVIDENCE else Unit.ARBITRARY
    if unit is Unit.HU:
        array, padded = without_padding(array)
        notes += padded
    try:
        return Volume(array, affine, modality, unit, subject, notes=notes, synthetic=synthetic)
    except InputError as error:
        raise InputError(f"{path} cannot be read as NIfTI: {error}; export it again") from error


def write(path: Path, volume: Volume, *, text: Mapping[str, str] | None = None) -> Path:
    """Write a volume as NIfTI-1; equal input gives equal bytes.

    Parameters
    ----------
    path
        New; ``.nii`` or ``.nii.gz``.
    volume
        HU is rounded to int16; other units keep int16, uint16, uint8 or float32.
    text
        ``Description`` becomes the header field ``descrip``, at most 79 characters of it. All of them stand, as JSON,
        in a header extension of plain text.

    Raises
    ------
    InputError
        No geometry, values that are not finite, another suffix, or a path that exists.
    """
    suffixes = FORMATS["nifti"].suffixes
    if not path.name.endswith(suffixes):
        raise InputError(f"{path} ends in {''.join(path.suffixes)!r}; a NIfTI file ends in {' or '.join(suffixes)}")
    require_finite(volume.array, f"the volume for {path}")
    array = hounsfield_int16(volume.array, str(path)) if volume.unit is Unit.HU else compact(volume.array)
    affine = volume.require_affine()[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(array.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = (text or {}).get("Description", "").encode("ascii", "replace")[:79]
    if text:
        comment = json.dumps(dict(text), sort_keys=True).encode("ascii")
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", comment))
    image.set_sform(affine, code=_SCANNER)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    straight = float(np.abs(directions.T @ directions - np.eye(3)).max()) < 1e-4
    # A qform is a rotation; for a sheared affine only the sform tells the truth.
    image.set_qform(affine, code=_SCANNER if straight else 0)
    content = image.to_bytes()
    write_file(path, gzip.compress(content, 6, mtime=0) if path.name.endswith(".gz") else content)
    return path


def header_of(start: bytes) -> Any:
    """Return nibabel's header of a file's first bytes, version 1 or 2, without looking at its extensions.

    nibabel fails on an extension whose text is not UTF-8.
    """
    size = _NIFTI2_HEADER_BYTES.to_bytes(4, "little")
    kind = nibabel.Nifti2Header if size in (start[:4], start[3::-1]) else nibabel.Nifti1Header
    return kind(start[: kind.template_dtype.itemsize], check=False)


def texts_in(start: bytes) -> dict[str, str]:
    """Return the texts of a header, keyword → text: ``descrip``, and what the extensions of plain text say.

    An extension that `write` made is keywords and texts; of any other the whole is one text.
    """
    header = header_of(start)
    texts = {"Description": bytes(header["descrip"]).rstrip(b"\0 ").decode("utf-8", "replace")}
    at, end = header.template_dtype.itemsize, min(int(header["vox_offset"]), len(start))
    more, at = start[at : at + 1] not in (b"", b"\0"), at + len(_NO_EXTENSION)
    while more and at + 8 <= end:
        size, code = struct.unpack(f"{header.endianness}2i", start[at : at + 8])
        if code == _COMMENT:
            said = start[at + 8 : min(at + max(size, 8), end)].rstrip(b"\0 ").decode("utf-8", "replace")
            try:
                tree = json.loads(said)
            except (ValueError, RecursionError):
                tree = None
            texts |= {str(k): str(v) for k, v in tree.items()} if isinstance(tree, dict) else {"Comment": said}
        at += max(size, 8)
    return texts


def first_voxel(header: Any, content: bytes) -> int:
    """Return where the voxels of a single file begin.

    Some writers leave vox_offset at 0 or at a byte inside the header; read as it stands, the header's own bytes (a
    name among them) become voxels. What the file's length leaves for header and extension flag tells where they are.

    Raises
    ------
    InputError
        An impossible offset, and a length that does not tell either.
    """
    claimed, whole = int(header["vox_offset"]), int(header.template_dtype.itemsize) + len(_NO_EXTENSION)
    if claimed >= whole:
        return claimed
    voxels = int(np.prod([float(n) for n in header.get_data_shape()])) * int(header.get_data_dtype().itemsize)
    left = len(content) - voxels
    if left not in (whole, whole - len(_NO_EXTENSION)):
        raise InputError(f"vox_offset is {claimed}, at least {whole} is allowed, and the file's length tells no other")
    return left


def voxel_bytes(header: Any, path: Path) -> int:
    """Return how many bytes a header claims for its voxels.

    Raises
    ------
    InputError
        More than the file can hold, or more than is read (`ctmr.io.bounds`).
    """
    packed, zipped = path.stat().st_size, path.name.lower().endswith(".gz")
    size = float(np.prod([float(n) for n in header.get_data_shape()])) * header.get_data_dtype().itemsize
    if not 0 <= size <= packed * (_DEFLATE_RATIO if zipped else 1):
        shape = tuple(header.get_data_shape())
        raise InputError(f"it claims shape {shape}, {size:.3g} bytes of voxels, which its {packed} bytes cannot hold")
    require_bounded(size, packed, "it")
    if not 0 <= float(header["vox_offset"]) <= MAXIMUM_OFFSET:
        raise InputError(f"vox_offset is {float(header['vox_offset']):g}; at most {MAXIMUM_OFFSET} is read")
    return int(size)


def content_of(path: Path, stream: Any) -> tuple[Any, bytes]:
    """Return the header and, inflated, the bytes of a NIfTI file as far as its header needs them; InputError as above.

    Parameters
    ----------
    stream
        The file, inflated, at its beginning.
    """
    start = stream.read(_NIFTI2_HEADER_BYTES)
    header = header_of(start)
    whole = header.template_dtype.itemsize + len(_NO_EXTENSION)
    # One byte more than there should be tells a file that is longer from one whose voxels begin early.
    limit = voxel_bytes(header, path) + max(whole, int(header["vox_offset"])) + 1
    return header, start + stream.read(max(0, limit - len(start)))


def _beginning(path: Path) -> bytes:
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as stream:
        return stream.read(_LONGEST_EXTENSIONS)


def _open(path: Path) -> Any:
    """Return nibabel's image of the file's version; one whose voxels do not begin where it says is put right first."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as stream:
        header = header_of(stream.read(_NIFTI2_HEADER_BYTES))
        kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
        whole = header.template_dtype.itemsize + len(_NO_EXTENSION)
        try:
            voxel_bytes(header, path)
        except InputError as error:
            raise InputError(f"{path} cannot be read as NIfTI: {error}; export it again") from None
        if int(header["vox_offset"]) >= whole or not bytes(header["magic"]).startswith(b"n+"):
            # Not kind.from_filename: nibabel reads extensions, whose size may be anything, before the voxels.
            checked = kind.header_class(header.binaryblock, check=True)
            return kind(kind.ImageArrayProxy(str(path), checked, mmap=False), checked.get_best_affine(), checked)
        stream.seek(0)
        _, content = content_of(path, stream)
    try:
        at = first_voxel(header, content)
    except InputError as error:
        raise InputError(f"{path} cannot be read as NIfTI ({error}); export it again") from None
    header["vox_offset"] = whole
    return kind.from_bytes(header.binaryblock + _NO_EXTENSION + content[at:])


def _values(image: nibabel.Nifti1Image, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    """Return the scaled values as [D, H, W], slice by slice, so that no copy in float64 is made."""
    stored = image.dataobj.get_unscaled().reshape(shape, order="F").transpose(2, 1, 0)
    slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
    require_finite(stored, name)
    if (slope, inter) == (1.0, 0.0):
        with np.errstate(over="ignore"):
            values = compact(np.ascontiguousarray(stored))
        # A number of 64 bits may be finite and no longer be so in 32.
        require_finite(values, name)
        return values
    scaled = Collector((stored.shape[0], stored.shape[1], stored.shape[2]))
    for d, values in enumerate(stored):
        scaled.put(d, rescaled(values, slope, inter))
    return scaled.array(name)


def _disagreement(image: nibabel.Nifti1Image, shape: tuple[int, ...], scale_mm: float) -> tuple[str, ...]:
    """Return a note when qform and sform both claim to be right and place a corner of the image differently."""
    qform = _qform(image)
    if qform is None or int(image.header["sform_code"]) == 0:
        return ()
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*(n - 1 for n in shape), 1]
    apart = float(np.linalg.norm((corners @ (image.get_sform() - qform).T)[:, :3], axis=1).max()) * scale_mm
    if apart <= AGREEMENT_MM:
        return ()
    return (f"its qform and sform place voxels up to {apart:.1f} mm apart; the sform was used",)


def _qform(image: nibabel.Nifti1Image) -> NDArray[np.float64] | None:
    try:
        qform: NDArray[np.float64] | None = image.get_qform(coded=True)[0]
    except (ValueError, HeaderDataError):
        return None
    return qform


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
