"""Readers under damaged and odd files: each is read as a second reader reads it, or refused in one sentence.

Run as a script, in a process whose memory and time are measured: KIND COUNT SEED FOLDER. Ends with a line of JSON.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import resource
import shutil
import struct
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import SimpleITK
from dicom_files import enhanced, image, mosaic, stream
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from ctmr.datasets import naming
from ctmr.datasets.deid.dicom import Cleaner, not_an_image, quiet_pydicom
from ctmr.datasets.deid.pseudonyms import Key
from ctmr.datasets.deid.residual import remaining
from ctmr.datasets.dvc import unpack
from ctmr.errors import CtmrError, InputError
from ctmr.imaging.hounsfield import THINNEST_HU
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io import read_image
from ctmr.io.dicom import group_series, read_header
from ctmr.io.dicom.mosaic import is_mosaic

HANGS_S, STUCK_S, MEMORY_MIB = 10.0, 60, 1024
"""The first is of a process's own work; the second of the clock, which a machine that others use and a codec that
crashes and is started again both slow down."""
RNG, KEY = np.random.default_rng(0), Key(b"k" * 32)
WORDS = RNG.integers(0, 4000, (40, 36)).astype(np.int16)
GREY = RNG.integers(0, 255, (40, 36)).astype(np.uint8)

ODD: list[Any] = [
    0,
    1,
    -1,
    2,
    8,
    12,
    15,
    16,
    17,
    32,
    64,
    255,
    65535,
    1e9,
    "",
    "1e400",
    "nan",
    "x",
    "1\\2",
    None,
    [0] * 6,
]
KEYWORDS = (
    "Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation SamplesPerPixel NumberOfFrames RescaleSlope "
    "RescaleIntercept RescaleType PixelSpacing ImagePositionPatient ImageOrientationPatient SliceThickness Modality "
    "PhotometricInterpretation PixelPaddingValue PixelPaddingRangeLimit SOPClassUID SOPInstanceUID SeriesInstanceUID "
    "ImageType PatientID SpecificCharacterSet PlanarConfiguration EchoTime AcquisitionNumber LossyImageCompression"
)
FIELDS = (
    "dim datatype bitpix pixdim scl_slope scl_inter vox_offset qform_code sform_code magic xyzt_units sizeof_hdr srow_x"
)
flips = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), max_size=10)
kept = st.one_of(st.just(1.0), st.floats(0, 1))


class Wrong(Exception):
    """A file that was read otherwise than the second reader reads it, or refused otherwise than in one sentence."""


def damaged(content: bytes, where: list[tuple[float, int]], share: float) -> bytes:
    """Flip bits and cut the end off."""
    changed = bytearray(content)
    for place, bit in where:
        if changed:
            changed[int(place * len(changed))] ^= 1 << bit
    return bytes(changed[: round(share * len(changed))])


# DICOM

DICOM_KINDS = ("plain", "implicit", "deflated", "enhanced", "rle", "j2k", "bare", "jpeg12", "mosaic")


@cache
def _sound(kind: str) -> pydicom.Dataset:
    if kind == "enhanced":
        return enhanced(np.stack([WORDS, WORDS + 1, WORDS + 2]), [(0, 0, 2.0 * k) for k in range(3)])
    made = image(WORDS, RescaleIntercept=-1024)
    if kind in ("rle", "j2k"):
        made.compress(RLELossless if kind == "rle" else JPEG2000Lossless)
    if kind == "jpeg12":
        real = pydicom.dcmread(get_testdata_file("JPGExtended.dcm"))
        made = image(np.zeros((1024, 256), np.uint16), Modality="MR", BitsStored=12, HighBit=11)
        made.file_meta, made.PixelData = real.file_meta, real.PixelData
        made["PixelData"].is_undefined_length = True
    return mosaic(WORDS[:30].reshape(5, 6, 36)) if kind == "mosaic" else made


@st.composite
def dicom_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file with odd values in its header, and now and then flipped bits."""
    kind = draw(st.sampled_from(DICOM_KINDS))
    dataset = deepcopy(_sound(kind))
    for keyword, value in draw(
        st.lists(st.tuples(st.sampled_from(KEYWORDS.split()), st.sampled_from(ODD)), max_size=3)
    ):
        target = dataset
        if kind == "enhanced" and keyword in ("PixelSpacing", "ImageOrientationPatient"):
            target = dataset.SharedFunctionalGroupsSequence[0]
        try:
            if value is None:
                delattr(target, keyword)
            else:
                vr = pydicom.datadict.dictionary_VR(keyword)
                element = pydicom.DataElement(keyword, "SS" if vr == "US or SS" else vr, value, validation_mode=0)
                target[keyword] = element
        except Exception:
            continue
    syntax = {"implicit": ImplicitVRLittleEndian, "deflated": DeflatedExplicitVRLittleEndian}.get(kind)
    try:
        content = stream(dataset, syntax, preamble=kind != "bare").getvalue()
    except Exception:
        # pydicom does not write what cannot stand in a file; the sound one is damaged instead.
        content = stream(deepcopy(_sound(kind)), syntax, preamble=kind != "bare").getvalue()
    harm = draw(st.booleans())
    return "a.dcm", damaged(content, draw(flips), draw(kept)) if harm else content


def read_dicom(path: Path) -> Volume:
    """Read as ctmr does; sorting, telling what it is and cleaning must not fail either."""
    for key, (file, *_) in group_series(path.parent).items():
        with quiet_pydicom():
            header = read_header(file)
            naming.subject_of_series(header)
            not_an_image(header, key)
        remaining("dicom", [file])
        with contextlib.suppress(InputError):
            Cleaner(KEY, "p", key, "").clean(file, 1)
    return read_image(path)


def agree_dicom(path: Path, found: Volume) -> bool:
    """Compare with pydicom and numpy; False when pydicom cannot read it."""
    try:
        dataset = pydicom.dcmread(path, force=True)
        dataset.file_meta = getattr(dataset, "file_meta", None) or pydicom.dataset.FileMetaDataset()
        dataset.file_meta.setdefault("TransferSyntaxUID", pydicom.uid.ExplicitVRLittleEndian)
        stored = dataset.pixel_array.astype(np.int64)
        width = int(dataset.BitsAllocated)
        unused = width - int(dataset.get("BitsStored") or width)
        groups = dataset.get("SharedFunctionalGroupsSequence")
        scale = groups[0].PixelValueTransformationSequence[0] if groups else dataset
        slope, intercept = (float(scale.get(f"Rescale{k}", d)) for k, d in (("Slope", 1), ("Intercept", 0)))
        padding = dataset.get("PixelPaddingValue")
    except Exception:
        return False
    if any("resampled" in note for note in found.notes) or is_mosaic(dataset):
        return False
    stored &= (1 << (width - unused)) - 1
    if dataset.PixelRepresentation == 1:
        stored = np.where(stored >> (width - unused - 1) & 1, stored - (1 << (width - unused)), stored)
    truth = stored.astype(np.float64) * slope + intercept
    keep = np.ones(truth.shape, bool)
    if padding is not None:
        keep = found.array.reshape(truth.shape) == truth if truth.ndim == 2 else np.zeros(truth.shape, bool)
        if not keep.any():
            return False
    if found.unit is Unit.HU:
        keep &= truth > THINNEST_HU
    values = found.array.reshape(truth.shape)
    if truth.ndim == 3 and not np.array_equal(values[0], truth[0]):
        values = values[::-1]
    if not np.allclose(values[keep], truth[keep], rtol=1e-6, atol=1e-3):
        raise Wrong(f"{path.name} differs from pydicom by {np.abs(values[keep] - truth[keep]).max()}")
    return True


# NIfTI


@st.composite
def nifti_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file with odd header fields, and now and then flipped bits."""
    kind = draw(st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]))
    dtype = draw(st.sampled_from([np.int16, np.uint8, np.float32, np.float64, np.int32, np.uint16]))
    made = kind(np.stack([WORDS, WORDS + 1, WORDS + 2]).astype(dtype), np.diag([1.0, 2, 3, 1]))
    if draw(st.booleans()):
        made.header.set_slope_inter(0.5, 7)
    content = bytearray(made.to_bytes())
    layout = made.header.template_dtype.fields
    for field, value in draw(
        st.lists(st.tuples(st.sampled_from(FIELDS.split()), st.integers(-(2**15), 2**15 - 1)), max_size=2)
    ):
        kind_of, at = layout[field][:2]
        base, count = (kind_of.base, int(np.prod(kind_of.shape))) if kind_of.shape else (kind_of, 1)
        if base.kind == "S":
            content[at : at + 2] = struct.pack("<h", value)
            continue
        position = draw(st.integers(0, count - 1))
        small = draw(st.sampled_from([value, 0, 1, 2, 3, 16, 348, 352, 540]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            word = np.array(small).astype(base.newbyteorder("<")).tobytes()
        content[at + position * base.itemsize : at + (position + 1) * base.itemsize] = word
    out = bytes(content)
    zipped = draw(st.booleans())
    harm = draw(st.integers(0, 3)) == 0
    if zipped:
        out = gzip.compress(out, 1, mtime=0)
    return ("a.nii.gz" if zipped else "a.nii"), damaged(out, draw(flips), draw(kept)) if harm else out


def read_nifti(path: Path) -> Volume:
    """Read as ctmr does, in arbitrary units, so that nothing is taken for padding."""
    return read_image(path, modality=Modality.MR, unit=Unit.ARBITRARY)


def agree_nifti(path: Path, found: Volume) -> bool:
    """Compare with nibabel, or with the last bytes of the file where its header's offset lies inside the header."""
    try:
        loaded = nibabel.load(path)
        truth = np.asarray(loaded.dataobj, dtype=np.float64)
        offset = int(loaded.dataobj.offset)
    except Exception:
        return False
    if offset < loaded.header.template_dtype.itemsize + 4:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        dtype = loaded.header.get_data_dtype()
        tail = np.frombuffer(raw[-truth.size * dtype.itemsize :], dtype).astype(np.float64)
        truth = (tail * loaded.dataobj.slope + loaded.dataobj.inter).reshape(truth.shape, order="F")
    truth = truth.reshape(found.array.shape[::-1], order="F").transpose(2, 1, 0)
    if not np.allclose(found.array, truth, rtol=1e-5, atol=1e-3):
        raise Wrong(f"{path.name} differs from nibabel by {np.abs(found.array - truth).max()}")
    scale = {"meter": 1000.0, "micron": 1e-3}.get(loaded.header.get_xyzt_units()[0], 1.0)
    affine = loaded.affine[:, [2, 1, 0, 3]].copy()
    affine[:3] *= scale
    if not np.allclose(found.require_affine(), affine, rtol=1e-6, atol=1e-6):
        raise Wrong(f"{path.name} lies elsewhere than nibabel says")
    return True


# Pictures


@st.composite
def pictures(draw: st.DrawFn) -> tuple[str, bytes]:
    """A PNG or JPEG with odd numbers in its header, and now and then flipped bits."""
    kind = draw(st.sampled_from(["grey.png", "wide.png", "rgb.png", "alpha.png", "a.jpg"]))
    out = io.BytesIO()
    if kind == "wide.png":
        Image.fromarray(GREY.astype(np.uint16) * 257).save(out, "PNG")
    else:
        array = {"rgb.png": np.stack([GREY] * 3, -1), "alpha.png": np.stack([GREY] * 4, -1)}.get(kind, GREY)
        Image.fromarray(array).save(out, "JPEG" if kind == "a.jpg" else "PNG")
    content = bytearray(out.getvalue())
    if kind.endswith(".png") and draw(st.integers(0, 2)) == 0:
        # Width, height, depth, colour, with the checksum that a writer would give.
        at, value = (
            draw(st.sampled_from([(16, 4), (20, 4), (24, 1), (25, 1), (28, 1)])),
            draw(st.integers(0, 2**32 - 1)),
        )
        small = draw(st.sampled_from([value, 0, 1, 2, 3, 8, 16, 255, 4096, 70000]))
        content[at[0] : at[0] + at[1]] = (small % 256 ** at[1]).to_bytes(at[1], "big")
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return kind, damaged(bytes(content), draw(flips), draw(kept)) if draw(st.integers(0, 3)) == 0 else bytes(content)


def read_picture(path: Path) -> Volume:
    """Read as ctmr does."""
    return read_image(path, modality=Modality.CT)


def agree_picture(path: Path, found: Volume) -> bool:
    """Compare a grey PNG with SimpleITK, and others with Pillow's own luminance."""
    if found.array.dtype != np.uint8:
        raise Wrong(f"{path.name} is {found.array.dtype}")
    try:
        opened = Image.open(path)
        if opened.format == "PNG" and opened.mode in ("L", "I;16", "I"):
            SimpleITK.ProcessObject.GlobalWarningDisplayOff()
            truth = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
            if truth.ndim != 2:
                return False
            truth = np.rint(truth * (255 / 65535)) if truth.dtype == np.uint16 else truth
        else:
            if opened.has_transparency_data or opened.getexif().get(0x0112, 1) != 1:
                return False
            truth = np.asarray(opened.convert("RGB").convert("L"))
    except Exception:
        return False
    if found.array[0].shape != truth.shape or np.abs(found.array[0].astype(int) - truth).max() > 1:
        raise Wrong(f"{path.name} differs from the second reader")
    return True


# Archives

NAMES = ["a", "b/c", "b\\d", "../x", "/x", "C:\\x", "n" * 300, "__MACOSX/._a", "e/", ".", "..", "", "\u00fc", "a/b"]
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)


@st.composite
def archives(draw: st.DrawFn) -> tuple[str, bytes]:
    """An archive with odd names, methods and attributes, and now and then flipped bits."""
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore")
        for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4)):
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.external_attr = draw(st.sampled_from([0, 0, 0o644 << 16, 0o120777 << 16]))
            info.compress_type = draw(st.sampled_from(METHODS))
            archive.writestr(info, bytes([len(name) % 256]) * draw(st.sampled_from([0, 5, 300])))
    content = out.getvalue()
    return "a.zip", damaged(content, draw(flips), draw(kept)) if draw(st.integers(0, 3)) == 0 else content


def read_archive(path: Path) -> dict[str, bytes]:
    """Unpack; nothing may appear outside."""
    target = path.parent / "in" / "target"
    before = set(path.parent.iterdir()) | {target.parent}
    unpack(path, target)
    if set(path.parent.iterdir()) - before or set(target.parent.iterdir() if target.parent.exists() else ()) - {target}:
        raise Wrong("something was written beside the target")
    return {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()}


def agree_archive(path: Path, found: dict[str, bytes]) -> bool:
    """Compare with what zipfile says of each member."""
    with zipfile.ZipFile(path) as archive:
        members = {Path(i.filename.replace("\\", "/")).as_posix(): i for i in archive.infolist() if i.filename}
        for name, content in found.items():
            if archive.read(members[name]) != content:
                raise Wrong(f"member {name!r} differs")
    return True


KINDS: dict[str, tuple[Any, Callable[[Path], Any], Callable[[Path, Any], bool]]] = {
    "dicom": (dicom_files(), read_dicom, agree_dicom),
    "nifti": (nifti_files(), read_nifti, agree_nifti),
    "pictures": (pictures(), read_picture, agree_picture),
    "archives": (archives(), read_archive, agree_archive),
}


def told(path: Path, read: Callable[[Path], Any], agree: Callable[[Path, Any], bool]) -> str:
    """Return whether a file was ``refused``, ``read``, or read and ``compared`` with a second reader; or raise."""
    try:
        found = read(path)
    except CtmrError as error:
        said = str(error)
        if "\n" in said or len(said) > 800 or error.exit_code != 2:
            raise Wrong(f"refused in more than a sentence: {said!r}") from None
        return "refused"
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return "compared" if agree(path, found) else "read"


def sound_files(kind: str) -> list[bytes]:
    """Return whole files of a kind, for bytes to be changed in."""
    if kind == "dicom":
        syntaxes = {"implicit": ImplicitVRLittleEndian, "deflated": DeflatedExplicitVRLittleEndian}
        return [stream(deepcopy(_sound(k)), syntaxes.get(k), preamble=k != "bare").getvalue() for k in DICOM_KINDS]
    if kind.startswith("nifti"):
        made = nibabel.Nifti1Image(np.stack([WORDS, WORDS + 1, WORDS + 2]), np.diag([1.0, 2, 3, 1])).to_bytes()
        return [gzip.compress(made, 1, mtime=0) if kind.endswith("gz") else made]
    if kind == "pictures":
        out = [io.BytesIO() for _ in range(4)]
        for stored, array in zip(out, (GREY, GREY.astype(np.uint16) * 257, np.stack([GREY] * 3, -1)), strict=False):
            Image.fromarray(array).save(stored, "PNG")
        Image.fromarray(GREY).save(out[-1], "JPEG")
        return [stored.getvalue() for stored in out]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, method in zip(("a", "b/c", "b/d", "e"), METHODS, strict=True):
            archive.writestr(name, bytes(300), method)
    return [packed.getvalue()]


def spent_mib() -> float:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(kind: str, count: int, number: int, root: Path) -> dict[str, Any]:
    """Try so many files; the first that is read wrongly raises, shrunk by hypothesis."""
    files, read, agree = KINDS[kind]
    tally = {"tried": 0, "read": 0, "compared": 0, "refused": 0}
    slowest = 0.0
    base = spent_mib()

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(files)
    def one(file: tuple[str, bytes]) -> None:
        nonlocal slowest
        name, content = file
        folder = root / str(tally["tried"])
        folder.mkdir()
        tally["tried"] += 1
        (folder / name).write_bytes(content)
        begun, begun_work = time.monotonic(), time.process_time()
        before = spent_mib()
        outcome = told(folder / name, read, agree)
        tally["read"] += outcome != "refused"
        tally["refused" if outcome == "refused" else "compared"] += outcome != "read"
        took, work = time.monotonic() - begun, time.process_time() - begun_work
        slowest = max(slowest, took)
        if work > HANGS_S or took > STUCK_S:
            raise Wrong(f"took {work:.0f} s of work in {took:.0f} s")
        if spent_mib() - before > MEMORY_MIB:
            raise Wrong(f"took {spent_mib() - before:.0f} MiB")
        shutil.rmtree(folder)

    one()
    return tally | {"slowest_s": round(slowest, 2), "mib": round(spent_mib() - base)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))))
