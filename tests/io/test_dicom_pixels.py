"""Pixel values: every transfer syntax, odd bits, rescale per slice, and a codec's crash that harms nobody."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import enhanced, image, save, stream, streams
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

import ctmr.io.dicom.pixels as pixels_module
from ctmr.errors import InputError
from ctmr.imaging.volume import Modality
from ctmr.io.dicom import read_series

SIGNED = np.random.default_rng(1).integers(-1024, 3071, (6, 7)).astype(np.int16)
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


def values(source: io.BytesIO | Path) -> np.ndarray:
    return read_series([source]).array[0]


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda s: s.name)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8], ids=lambda t: t.__name__)
def test_every_uncompressed_syntax_is_read(syntax: str, dtype: type) -> None:
    truth = (SIGNED & 0xFF).astype(np.uint8) if dtype is np.uint8 else np.abs(SIGNED).astype(dtype)
    dataset = image(truth, Modality="MR")
    if syntax == ExplicitVRBigEndian:
        if dtype is np.uint8:
            dataset["PixelData"].VR = "OW"
        dataset.PixelData = truth.astype(truth.dtype.newbyteorder(">")).tobytes()
        if dtype is np.uint8:  # two bytes make a word, whose order is turned
            padded = np.frombuffer(dataset.PixelData + b"\0" * (truth.size % 2), "<u2")
            dataset.PixelData = padded.astype(">u2").tobytes()
    found = read_series([stream(dataset, syntax)]).array[0]
    np.testing.assert_array_equal(found, truth)
    assert found.dtype == dtype and found.dtype.isnative


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless], ids=lambda s: s.name)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16], ids=lambda t: t.__name__)
def test_compressed_pixels_are_read(syntax: str, dtype: type) -> None:
    truth = np.random.default_rng(2).integers(0, 3000, (40, 33)).astype(dtype)
    dataset = image(truth, RescaleIntercept=-1024)
    dataset.compress(syntax)
    np.testing.assert_array_equal(values(stream(dataset)), truth.astype(int) - 1024)


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE",
        "MR_small_jp2klossless",
        "MR_small_jpeg_ls_lossless",
        "MR_small_bigendian",
        "MR_small_implicit",
        "MR_small_padded",
    ],
)
def test_one_slice_in_many_syntaxes_is_one_image(name: str) -> None:
    truth, found = (read_series([Path(get_testdata_file(f"{n}.dcm"))]) for n in ("MR_small", name))
    np.testing.assert_array_equal(found.array, truth.array)
    np.testing.assert_allclose(found.affine, truth.affine)


def test_a_wrong_sign_in_a_jpeg_2000_stream_is_mended() -> None:
    # The header says signed, the codestream unsigned: without care -2000 becomes 6192.
    found = read_series([Path(get_testdata_file("J2K_pixelrep_mismatch.dcm"))])
    # That is its padding, which no attribute names; the thinnest air is -1047.
    assert found.array.min() == -1047 and found.array[0, 0, 0] == -1024
    assert any("hold -2000 HU, which nothing has: padding" in note for note in found.notes)


def twelve_bits(**attributes: object) -> pydicom.Dataset:
    """Return an image whose pixels are a real lossy JPEG of 12 bits."""
    dataset = pydicom.dcmread(get_testdata_file("JPGExtended.dcm"))
    made = image(np.zeros((1024, 256), np.uint16), Modality="MR", BitsStored=12, HighBit=11)
    made.file_meta, made.PixelData = dataset.file_meta, attributes.pop("PixelData", dataset.PixelData)
    made["PixelData"].is_undefined_length = True
    made.update(attributes)
    return made


def test_a_lossy_jpeg_of_12_bits_is_read() -> None:
    # Against dcmtk: tests/reference.
    found = values(stream(twelve_bits()))
    assert found.shape == (1024, 256) and found.dtype == np.uint16 and found.max() > 255
    # What loss adds above the bits that are stored is cut, and does not wrap to dark.
    assert np.array_equal(values(stream(twelve_bits(BitsStored=9, HighBit=8))), found.clip(max=511))


@pytest.mark.parametrize(
    "wrong",
    [
        {"PixelData": pydicom.encaps.encapsulate([b"\xff\xd8\xff\xe0 no stream"])},
        {"PixelData": twelve_bits().PixelData[:3000] + b"\xfe\xff\xdd\xe0\0\0\0\0"},
        {"Rows": 512},
        {"NumberOfFrames": 1, "BitsStored": 16, "HighBit": 15},
    ],
    ids=["no JPEG", "cut off", "other size", "more bits"],
)
def test_a_jpeg_of_12_bits_that_is_not_whole_is_refused_and_not_made_up(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"has damaged pixel data .*export the series again"):
        values(stream(twelve_bits(**wrong)))


def test_a_value_of_no_known_representation_is_one_sentence(tmp_path: Path) -> None:
    content = stream(image(SIGNED)).getvalue()
    (tmp_path / "a.dcm").write_bytes(content.replace(b"\x28\0\x04\0CS", b"\x28\0\x04\0C\xca"))
    with pytest.raises(InputError, match=r"is a damaged DICOM file \(Unknown Value Representation"):
        read_series([tmp_path / "a.dcm"])


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SeriesInstanceUID", "Modality"])
def test_an_identifier_of_several_values_is_one_sentence(keyword: str, tmp_path: Path) -> None:
    save(tmp_path, [image(SIGNED, **{keyword: ["1.2", "1.3"]})])
    with pytest.raises(InputError, match=rf"is a damaged DICOM file \(several values of {keyword}\)"):
        read_series(tmp_path)


def test_lossy_compression_is_noted() -> None:
    (note,) = read_series([Path(get_testdata_file("693_J2KI.dcm"))]).notes
    assert "compressed lossily" in note


@pytest.mark.parametrize(("dtype", "stored"), [(np.int16, 12), (np.uint16, 12), (np.int16, 15)])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian], ids=["little", "big"])
def test_what_stands_in_unused_bits_is_ignored(dtype: type, stored: int, syntax: str) -> None:
    # PS3.5 8.1.1: only BitsStored bits count; old files keep overlays in the others.
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1)) if dtype is np.int16 else (0, 2**stored)
    rng = np.random.default_rng(stored)
    truth = rng.integers(low, high, (6, 7))
    words = (truth & (2**stored - 1)) | (rng.integers(0, 2 ** (16 - stored), truth.shape) << stored)
    dataset = image(words.astype(np.uint16), Modality="MR", BitsStored=stored, HighBit=stored - 1)
    dataset.PixelRepresentation = int(dtype is np.int16)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = words.astype(">u2").tobytes()
    np.testing.assert_array_equal(values(stream(dataset, syntax)), truth)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=["RLE", "JPEG 2000"])
@pytest.mark.parametrize("signed", [False, True])
def test_an_overlay_in_a_compressed_stream_is_ignored_too(syntax: str, signed: bool) -> None:
    rng = np.random.default_rng(7)
    truth = rng.integers(-2048 if signed else 0, 2048 if signed else 4096, (48, 48))
    words = ((truth & 0xFFF) | (rng.integers(0, 2, truth.shape) << 13)).astype(np.uint16)
    dataset = image(words, Modality="MR", PixelRepresentation=0)
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, int(signed)
    np.testing.assert_array_equal(values(stream(dataset, syntax)), truth)


@settings(max_examples=40, deadline=None)
@given(
    slopes=st.lists(st.sampled_from([1.0, 2.0, 0.5, 0.3, -1.0]), min_size=3, max_size=3),
    intercepts=st.lists(st.sampled_from([0.0, -1024.0, 7.25, -32768.0]), min_size=3, max_size=3),
    dtype=st.sampled_from([np.int16, np.uint16]),
    seed=st.integers(0, 99),
)
def test_each_slice_is_rescaled_by_its_own_numbers(
    slopes: list[float], intercepts: list[float], dtype: type, seed: int
) -> None:
    stored = np.random.default_rng(seed).integers(0, 4096, (3, 4, 5)).astype(dtype)
    slices = [
        image(s, (0, 0, 2.0 * k), RescaleSlope=slopes[k], RescaleIntercept=intercepts[k]) for k, s in enumerate(stored)
    ]
    found = read_series(streams(slices)).array
    truth = stored * np.array(slopes)[:, None, None] + np.array(intercepts)[:, None, None]
    np.testing.assert_allclose(found, truth, rtol=1e-6, atol=0 if found.dtype.kind == "i" else 1e-3)
    whole = all(float(x).is_integer() for x in (*slopes, *intercepts))
    assert found.dtype.kind == "f" or whole
    if whole and truth.min() >= -32768 and truth.max() <= 32767:
        assert found.dtype in (np.int16, np.uint16)


def test_values_beyond_16_bits_are_float32() -> None:
    stored = np.array([[0, 65535], [40000, 1]], np.uint16)
    found = read_series([stream(image(stored, RescaleIntercept=-1024))]).array[0]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, stored.astype(int) - 1024)


@pytest.mark.parametrize(("modality", "background"), [("CT", -1024), ("MR", 0)])
def test_padding_becomes_background(modality: str, background: int) -> None:
    stored = np.array([[-2000, 5], [900, -2000]], np.int16)
    found = read_series([stream(image(stored, Modality=modality, PixelPaddingValue=-2000))])
    np.testing.assert_array_equal(found.array[0], [[background, 5], [900, background]])
    stored[1, 0] = -1900
    ranged = image(stored, Modality=modality, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1900)
    np.testing.assert_array_equal(read_series([stream(ranged)]).array[0], [[background, 5], [background, background]])
    assert found.notes == ()


def test_padding_of_an_mr_with_negative_values_becomes_its_own_background() -> None:
    stored = np.array([[-217, -2000, 600], [-2000, -200, -100]], np.int16)
    found = read_series([stream(image(stored, Modality="MR", PixelPaddingValue=-2000))])
    np.testing.assert_array_equal(found.array[0], [[-217, -217, 600], [-217, -200, -100]])


def test_unsigned_padding_can_become_minus_1024() -> None:
    stored = np.array([[0, 1000], [63536, 1]], np.uint16)
    found = read_series([stream(image(stored, PixelPaddingValue=63536))]).array[0]
    np.testing.assert_array_equal(found, [[0, 1000], [-1024, 1]])


def test_padding_that_looks_like_tissue_is_noted() -> None:
    stored = np.array([[0, 40], [-1000, 1]], np.int16)
    (note,) = read_series([stream(image(stored, PixelPaddingValue=0))]).notes
    assert "PixelPaddingValue means 0 HU, which tissue has too" in note


@pytest.mark.parametrize("value", [-1500, -2000, -3024])
@pytest.mark.parametrize("said", [True, False])
def test_what_lies_outside_the_scanners_circle_becomes_air_whether_the_header_names_it_or_not(
    value: int, said: bool
) -> None:
    slices, truth = circles(value)
    attributes = {"PixelPaddingValue": value + 1024} if said else {}
    found = read_series(
        streams(
            [
                image((s + 1024).astype(np.int16), (0, 0, 2.0 * k), RescaleIntercept=-1024, **attributes)
                for k, s in enumerate(slices)
            ]
        )
    )
    np.testing.assert_array_equal(found.array, truth)
    assert found.array.dtype == np.int16
    (note,) = found.notes or ("",)
    unsaid = f"21% of its voxels hold {value} HU, which nothing has: padding, which became -1024"
    assert note == ("" if said else unsaid)


@pytest.mark.parametrize("how", ["two values", "no corner", "thin air"])
def test_what_is_not_the_padding_of_a_circle_stays_as_it_is(how: str) -> None:
    slices, _ = circles(-3024)
    if how == "two values":
        slices[1, 20, 20] = -1600
    elif how == "no corner":
        slices[0, 0, 0] = -900
    else:
        slices[slices == -3024] = -1499
    found = read_series(streams([image(s, (0, 0, 2.0 * k)) for k, s in enumerate(slices)]))
    np.testing.assert_array_equal(found.array, slices)
    assert found.notes == ()


def circles(outside: int) -> tuple[np.ndarray, np.ndarray]:
    """Two slices of noisy tissue and air in a circle, and the same with -1024 outside of it."""
    slices = np.random.default_rng(0).integers(-1300, 1500, (2, 64, 64)).astype(np.int16)
    y, x = np.mgrid[:64, :64] - 31.5
    beyond = np.broadcast_to(x**2 + y**2 > 32**2, slices.shape)
    return np.where(beyond, outside, slices).astype(np.int16), np.where(beyond, -1024, slices).astype(np.int16)


def test_too_little_pixel_data_is_refused_by_name(tmp_path: Path) -> None:
    paths = save(tmp_path, [image(SIGNED, (0, 0, 2 * k)) for k in range(3)])
    paths[1].write_bytes(paths[1].read_bytes()[:-10])
    with pytest.raises(InputError, match=r"IM_0002\.dcm has damaged pixel data \(the file is cut off\)"):
        read_series(tmp_path)
    short = image(SIGNED)
    short.PixelData = short.PixelData[:-4]
    with pytest.raises(InputError, match=r"damaged pixel data \(80 bytes, 84 are needed\)"):
        read_series([stream(short)])


def test_a_file_without_pixel_data_is_refused() -> None:
    dataset = image(SIGNED)
    del dataset.PixelData
    with pytest.raises(InputError, match="damaged pixel data"):
        read_series([stream(dataset)])


def test_a_codec_that_crashes_harms_only_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    good = image(np.arange(64, dtype=np.uint16).reshape(8, 8))
    good.compress(RLELossless)
    content = stream(good)
    truth = values(content)
    owner = pixels_module._decoder
    assert owner._process is not None
    real = pixels_module._ask

    def crash(process: subprocess.Popen[bytes], request: bytes, size: int) -> np.ndarray | str:
        process.kill()
        process.wait()
        return real(process, request, size)

    monkeypatch.setattr(pixels_module, "_ask", crash)
    with pytest.raises(InputError, match="its compressed stream crashes the codec"):
        values(content)
    monkeypatch.undo()
    np.testing.assert_array_equal(values(content), truth)


def test_a_damaged_jpeg_stream_is_refused() -> None:
    dataset = image(np.zeros((32, 32), np.uint16))
    frame_header_alone = b"\xff\xd8\xff\xc3" + bytes([0, 11, 12, 0, 32, 0, 32, 1, 1, 0x11, 0]) + b"\xff\xd9"
    dataset.PixelData = pydicom.encaps.encapsulate([frame_header_alone])
    dataset["PixelData"].is_undefined_length = True
    with pytest.raises(InputError, match="damaged pixel data"):
        values(stream(dataset, JPEGLosslessSV1))


def test_a_codec_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = image(np.arange(64, dtype=np.uint16).reshape(8, 8))
    dataset.compress(RLELossless)
    content = stream(dataset)
    truth = values(content)
    monkeypatch.setattr(pixels_module, "DECODE_TIMEOUT_S", 0.0)
    with pytest.raises(InputError, match="damaged pixel data"):
        for _ in range(200):
            values(content)
    monkeypatch.undo()
    np.testing.assert_array_equal(values(content), truth)


def test_the_decoder_ends_with_its_owner(tmp_path: Path) -> None:
    dataset = image(np.arange(64, dtype=np.uint16).reshape(8, 8))
    dataset.compress(RLELossless)
    (path,) = save(tmp_path, [dataset])
    code = (
        "import sys; from pathlib import Path; from ctmr.io.dicom import read_series, pixels; "
        "read_series([Path(sys.argv[1])]); print(pixels._decoder._process.pid)"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(answer.stdout), 0)


def test_a_forked_process_gets_a_decoder_of_its_own() -> None:
    dataset = image(np.arange(64, dtype=np.uint16).reshape(8, 8))
    dataset.compress(RLELossless)
    content = stream(dataset)
    truth = values(content)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if np.array_equal(values(content), truth) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(values(content), truth)


def test_compressed_frames_come_in_their_order() -> None:
    frames = np.random.default_rng(4).integers(0, 1000, (3, 8, 9)).astype(np.uint16)
    dataset = enhanced(frames, [(0, 0, 4), (0, 0, 0), (0, 0, 2)])
    dataset.compress(RLELossless)
    found = read_series([stream(dataset)], modality=Modality.MR)
    np.testing.assert_array_equal(found.array, frames[[1, 2, 0]])
