"""Reading and writing DICOM against dcmtk: attributes and stored values of every file, every syntax it can write."""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import image, save
from pydicom.data import get_testdata_file

from ctmr.errors import InputError
from ctmr.imaging.hounsfield import FLOOR_HU
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io.dicom import group_series, is_dicom, read_series, write_series

Run = Callable[..., str]
LPS = np.array([-1.0, -1.0, 1.0])
REAL = ("dicom_ct_head_ge", "dicom_mr_t1_studyforrest")
TRUTH = np.random.default_rng(0).integers(-1024, 3071, (48, 40)).astype(np.int16)


def attributes(dcmtk: Run, path: Path) -> dict[str, str]:
    """Return keyword → value of the top level, as dcmdump prints them."""
    text = dcmtk("dcmdump", "-q", "+L", "--print-all", path)
    found = re.findall(r"^\(\w{4},\w{4}\) \w\w \[?(.*?)\]? +# +\d+, ?\d+ (\w+)$", text, flags=re.MULTILINE)
    return {keyword: value.strip() for value, keyword in found}


def numbers(value: str) -> np.ndarray:
    return np.array([float(x) for x in value.split("\\")])


def stored(dcmtk: Run, path: Path, about: dict[str, str]) -> np.ndarray:
    """Return the pixels that dcmtk finds in an uncompressed little-endian file."""
    with tempfile.TemporaryDirectory() as folder:
        dcmtk("dcmdump", "-q", "+W", folder, path)
        (raw,) = Path(folder).glob("*.raw")
        dtype = "<i2" if about["PixelRepresentation"] == "1" else "<u2"
        words = np.fromfile(raw, dtype)[: int(about["Rows"]) * int(about["Columns"])]
    return words.reshape(int(about["Rows"]), int(about["Columns"]))


def assert_agrees(dcmtk: Run, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Assert that dcmtk places every corner where the reader does and finds the same values; return origin, pixels."""
    about, volume = attributes(dcmtk, path), read_series([path])
    origin, cosines = numbers(about["ImagePositionPatient"]), numbers(about["ImageOrientationPatient"])
    spacing = numbers(about["PixelSpacing"])
    _, rows, columns = volume.array.shape
    for row, column in ((0, 0), (rows - 1, 0), (0, columns - 1), (rows - 1, columns - 1)):
        lps = origin + column * spacing[1] * cosines[:3] + row * spacing[0] * cosines[3:]
        np.testing.assert_allclose((volume.affine @ [0, row, column, 1])[:3], lps * LPS, atol=1e-3)
    pixels = stored(dcmtk, path, about)
    truth = pixels * float(about.get("RescaleSlope", 1)) + float(about.get("RescaleIntercept", 0))
    if "PixelPaddingValue" in about:
        truth = np.where(pixels == int(about["PixelPaddingValue"]), FLOOR_HU, truth)
    np.testing.assert_array_equal(volume.array[0], truth)
    assert (volume.modality, volume.subject) == (about["Modality"], about["PatientID"])
    return origin, pixels


@pytest.mark.shared_data
@pytest.mark.parametrize("folder", REAL)
def test_every_real_file_is_read_as_dcmtk_reads_it(dcmtk: Run, shared_data: Path, folder: str) -> None:
    files = sorted((shared_data / folder).glob("*.dcm"))
    assert len(files) >= 24
    for path in files:
        assert_agrees(dcmtk, path)


@pytest.mark.parametrize("modality", list(Modality))
def test_every_written_file_is_read_by_dcmtk_as_it_was_meant(dcmtk: Run, tmp_path: Path, modality: Modality) -> None:
    rng = np.random.default_rng(7)
    affine = np.array([[0.1, -0.3, 1.2, 40], [0.2, 1.5, 0.2, -60], [-3.0, 0.1, 0.1, 12], [0, 0, 0, 1.0]])
    affine[:3, :3] = np.linalg.qr(affine[:3, :3])[0] * [3.0, 1.5, 1.2]
    array = rng.integers(0, 3000, (4, 9, 8)).astype(np.int16)
    unit = Unit.HU if modality is Modality.CT else Unit.ARBITRARY
    volume = Volume(array, affine, modality, unit, subject="S1")
    for path in write_series(tmp_path / "s", volume):
        origin, pixels = assert_agrees(dcmtk, path)
        (d,) = np.flatnonzero((array == pixels).all(axis=(1, 2)))
        np.testing.assert_allclose(origin * LPS, affine[:3, :3] @ [d, 0, 0] + affine[:3, 3], atol=1e-3)


ENCODERS = {
    "JPEG lossless SV1": ("dcmcjpeg", "+e1"),
    "JPEG lossless": ("dcmcjpeg", "+el"),
    "JPEG-LS": ("dcmcjpls", "+el"),
    "RLE": ("dcmcrle",),
    "deflated": ("dcmconv", "+td"),
    "big endian": ("dcmconv", "+tb"),
    "implicit": ("dcmconv", "+ti"),
    "without meta information": ("dcmconv", "-F", "+te"),
    "implicit without meta information": ("dcmconv", "-F", "+ti"),
    "sequences of explicit length, padded": ("dcmconv", "+te", "+e", "+p", "512", "16"),
}


@pytest.mark.parametrize("name", sorted(ENCODERS))
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_what_dcmtk_encodes_is_decoded_exactly(dcmtk: Run, tmp_path: Path, name: str, signed: bool) -> None:
    tool, *options = ENCODERS[name]
    pixels = TRUTH if signed else (TRUTH.astype(int) + 1024).astype(np.uint16)
    (tmp_path / "out").mkdir()
    slices = [image(pixels + k, (0, 0, 2 * k), RescaleIntercept=0 if signed else -1024) for k in range(3)]
    for path in save(tmp_path / "in", slices):
        dcmtk(tool, *options, path, tmp_path / "out" / path.name)
        assert is_dicom(tmp_path / "out" / path.name)
    volume = read_series(tmp_path / "out")
    np.testing.assert_array_equal(volume.array, [TRUTH + k for k in range(3)])
    assert volume.spacing_mm == (2.0, 1.5, 1.25) and volume.notes == ()
    (files,) = group_series(tmp_path / "out").values()
    assert len(files) == 3


@pytest.mark.parametrize("bits", [12, 14])
def test_signed_values_of_fewer_bits_survive_compression(dcmtk: Run, tmp_path: Path, bits: int) -> None:
    pixels = np.clip(TRUTH, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int16)
    (path,) = save(tmp_path, [image(pixels, BitsStored=bits, HighBit=bits - 1)])
    for name in ("JPEG lossless SV1", "JPEG-LS", "RLE"):
        tool, *options = ENCODERS[name]
        dcmtk(tool, *options, path, tmp_path / "out.dcm")
        np.testing.assert_array_equal(read_series([tmp_path / "out.dcm"]).array[0], pixels)


@pytest.mark.parametrize(("name", "rounds"), [("JPEG lossless SV1", 250), ("JPEG-LS", 100)])
def test_damaged_streams_are_read_or_refused_whatever_the_codec_does(
    dcmtk: Run, tmp_path: Path, name: str, rounds: int
) -> None:
    # Some of these flips make the codec write outside its memory; the process that reads must live on.
    (path,) = save(tmp_path, [image(TRUTH)])
    tool, *options = ENCODERS[name]
    dcmtk(tool, *options, path, tmp_path / "out.dcm")
    sound, refused = (tmp_path / "out.dcm").read_bytes(), 0
    begin = sound.index(b"\xff\xd8\xff")
    for seed in range(rounds):
        chance, content = random.Random(seed), bytearray(sound)
        for _ in range(chance.choice([1, 2, 5])):
            content[chance.randrange(begin, len(content))] ^= 1 << chance.randrange(8)
        (tmp_path / "bad.dcm").write_bytes(content)
        try:
            assert read_series([tmp_path / "bad.dcm"]).array.shape == (1, 48, 40)
        except InputError as error:
            refused += 1
            assert "bad.dcm" in str(error)
    assert refused > 0
    np.testing.assert_array_equal(read_series([tmp_path / "out.dcm"]).array[0], TRUTH)


@pytest.mark.parametrize("quality", [100, 60])
def test_lossy_jpegs_of_12_bits_hold_the_values_of_dcmtk(dcmtk: Run, tmp_path: Path, quality: int) -> None:
    down, across = np.mgrid[:64, :90]
    smooth = np.rint(2048 + 1900 * np.sin(across / 9) * np.cos(down / 7)).astype(np.uint16)
    # The encoder of dcmtk moves values by the lowest one.
    smooth[0, 0], smooth[0, 1] = 0, 4095
    (plain,) = save(tmp_path / "plain", [image(smooth, Modality="MR", BitsStored=12, HighBit=11)])
    lossy, decoded = tmp_path / "lossy.dcm", tmp_path / "decoded.dcm"
    dcmtk("dcmcjpeg", "+ee", "+q", str(quality), "+bt", plain, lossy)
    dcmtk("dcmdjpeg", lossy, decoded)
    found = read_series([lossy]).array[0]
    np.testing.assert_array_equal(found, stored(dcmtk, decoded, attributes(dcmtk, decoded)))
    assert np.abs(found.astype(int) - smooth)[8:].max() < 40


def test_a_scanners_jpeg_of_12_bits_holds_the_values_of_dcmtk(dcmtk: Run, tmp_path: Path) -> None:
    real = pydicom.dcmread(get_testdata_file("JPGExtended.dcm"))
    made = image(np.zeros((1024, 256), np.uint16), Modality="MR", BitsStored=12, HighBit=11)
    made.file_meta, made.PixelData = real.file_meta, real.PixelData
    made["PixelData"].is_undefined_length = True
    (lossy,) = save(tmp_path, [made])
    dcmtk("dcmdjpeg", lossy, tmp_path / "decoded")
    truth = stored(dcmtk, tmp_path / "decoded", attributes(dcmtk, tmp_path / "decoded"))
    np.testing.assert_array_equal(read_series([lossy]).array[0], truth)
