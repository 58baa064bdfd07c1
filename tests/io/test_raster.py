"""Pictures: every pixel mode becomes the same 8-bit grey; damage and bombs are refused by name."""

from __future__ import annotations

import csv
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ctmr.errors import InputError
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io import raster

GREY = np.arange(0, 252, dtype=np.uint8).reshape(14, 18)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def picture(array: np.ndarray) -> Volume:
    return Volume(array[None], None, Modality.MR, Unit.GREY8)


def read(path: Path) -> np.ndarray:
    volume = raster.read(path, modality=Modality.MR, subject="p")
    assert (volume.unit, volume.affine, volume.subject, volume.array.dtype) == (Unit.GREY8, None, "p", np.uint8)
    return volume.array[0]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_grey_survives_in_every_mode(tmp_path: Path, mode: str) -> None:
    Image.fromarray(GREY).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), GREY)


def test_a_bilevel_picture_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GREY > 100).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.where(GREY > 100, 255, 0))


def test_16_bits_are_scaled_by_their_full_range(tmp_path: Path) -> None:
    wide = np.array([[0, 257, 65535], [32896, 128, 129]], dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), [[0, 1, 255], [128, 0, 1]])


def test_16_bit_values_that_8_bits_would_lose_are_refused(tmp_path: Path) -> None:
    # Scanner values of 12 bits in a 16-bit file: 255/65535 would leave 16 grey levels of them.
    Image.fromarray(np.array([[0, 1024], [3071, 40]], dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png holds 16-bit values up to 3071 of 65535.* 13 grey levels"):
        raster.read(tmp_path / "a.png", modality=Modality.CT)
    Image.fromarray(np.zeros((2, 2), dtype=np.uint16)).save(tmp_path / "black.png")
    np.testing.assert_array_equal(read(tmp_path / "black.png"), np.zeros((2, 2)))


def slice_of_hu() -> np.ndarray:
    """A slice in Hounsfield units, noise included."""
    y, x = np.mgrid[:96, :96]
    r = np.hypot(y - 48, x - 48)
    hu = np.select([r < 12, r < 34, r < 40], [5, 35, 900], -1000)
    return (hu + np.random.default_rng(1).normal(0, 12, r.shape)).round().astype(np.int32)


@pytest.mark.parametrize("edge", [None, 0, 65535])
def test_hounsfield_units_with_an_offset_are_recognised_and_refused(tmp_path: Path, edge: int | None) -> None:
    stored = slice_of_hu() + 32768
    if edge is not None:
        stored[:, :20] = edge if edge == 0 else stored[:, :20]
        stored[0, :10] = edge
    Image.fromarray(stored.astype(np.uint16)).save(tmp_path / "lesion.png")
    words = r"lesion\.png holds \d+ 16-bit values .* keep \d+ grey levels; they look like HU \+ 32768.*; give the DICOM"
    with pytest.raises(InputError, match=words):
        raster.read(tmp_path / "lesion.png", modality=Modality.CT)


def test_12_bits_that_reach_a_little_further_are_refused_too(tmp_path: Path) -> None:
    stored = slice_of_hu() + 1100
    stored[5, 5] = 5000
    Image.fromarray(stored.astype(np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png holds .* 8 bits would keep \d+ grey levels; give"):
        raster.read(tmp_path / "a.png", modality=Modality.CT)


def test_16_bits_that_fill_their_range_are_read_however_dark(tmp_path: Path) -> None:
    wide = (slice_of_hu() + 1100) * 30
    Image.fromarray(wide.astype(np.uint16)).save(tmp_path / "full.png")
    assert read(tmp_path / "full.png").max() > 200
    dark = np.random.default_rng(2).integers(0, 1500, (96, 96))
    dark[40:50, 40:60] = np.random.default_rng(3).integers(0, 65535, (10, 20))
    Image.fromarray(dark.astype(np.uint16)).save(tmp_path / "dark.png")
    assert read(tmp_path / "dark.png").max() > 200


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colour_is_read_by_its_upper_byte(tmp_path: Path, channels: int) -> None:
    # Pillow writes none, so the PNG is put together here: colour types 4 (grey, alpha), 2 (RGB), 6 (RGBA).
    grey = np.array([[0x1234, 0xABCD], [0xFFFF, 0x0080]], dtype=">u2")
    samples = np.stack([grey] * (3 if channels > 2 else 1) + [np.full_like(grey, 0xFFFF)] * (channels % 2 == 0), -1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", 2, 2, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), grey >> 8)


def test_colour_becomes_luminance(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)).save(tmp_path / "a.png")
    # ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B.
    np.testing.assert_array_equal(read(tmp_path / "a.png"), [[76, 150, 29]])


def test_a_cmyk_jpeg_is_read(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 0, 0, 128)).save(tmp_path / "a.jpg")
    assert np.abs(read(tmp_path / "a.jpg").astype(int) - 127).max() <= 2


def test_transparent_areas_are_black(tmp_path: Path) -> None:
    pixels = np.full((2, 2, 4), 200, dtype=np.uint8)
    pixels[..., 3] = [[255, 0], [128, 255]]
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read(tmp_path / "rgba.png"), [[200, 0], [100, 200]])
    Image.fromarray(GREY).save(tmp_path / "key.png", transparency=7)
    np.testing.assert_array_equal(read(tmp_path / "key.png"), np.where(GREY == 7, 0, GREY))
    wide = np.array([[1000, 65535]], dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png", transparency=65535)
    np.testing.assert_array_equal(read(tmp_path / "wide.png"), [[4, 0]])


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated; a viewer turns it 90° clockwise
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.rot90(GREY, -1))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_crash(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png"):
        raster.read(path, modality=Modality.CT)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_picture_is_refused_by_name(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"cut{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=f"cut{suffix}"):
        raster.read(path, modality=Modality.CT)


@pytest.mark.parametrize("side", [9000, 60000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    with pytest.raises(InputError, match=r"bomb\.png claims"):
        raster.read(tmp_path / "bomb.png", modality=Modality.CT)


def test_other_formats_are_refused_even_under_a_pngs_name(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(InputError, match="not a PNG or JPEG"):
        raster.read(tmp_path / "a.png", modality=Modality.CT)


def test_a_picture_comes_back_with_its_text(tmp_path: Path) -> None:
    path = raster.write(tmp_path / "a.png", picture(GREY), text={"Comment": "Synthetic CT", "Origin": "größer→"})
    np.testing.assert_array_equal(read(path), GREY)
    with Image.open(path) as image:
        assert image.text == {"Comment": "Synthetic CT", "Origin": "größer→"}


def test_floats_are_rounded_and_clipped(tmp_path: Path) -> None:
    path = raster.write(tmp_path / "a.png", picture(np.array([[-3.0, 4.6, 300.0]])))
    np.testing.assert_array_equal(read(path), [[0, 5, 255]])


def test_only_one_grey_slice_is_written_and_nothing_overwritten(tmp_path: Path) -> None:
    path = raster.write(tmp_path / "a.png", picture(GREY))
    with pytest.raises(InputError, match="exists already"):
        raster.write(path, picture(GREY))
    with pytest.raises(InputError, match="JPEG loses"):
        raster.write(tmp_path / "a.jpg", picture(GREY))
    for volume in (
        Volume(np.zeros((2, 4, 4), np.uint8), None, Modality.MR, Unit.GREY8),
        Volume(np.zeros((1, 4, 4), np.int16), np.eye(4), Modality.CT, Unit.HU),
    ):
        with pytest.raises(InputError, match="write it as DICOM or NIfTI"):
            raster.write(tmp_path / "b.png", volume)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.shared_data
def test_of_the_real_defects_exactly_the_unreadable_ones_are_refused(shared_data: Path) -> None:
    refused = set()
    with (shared_data / "defects" / "defects.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        try:
            raster.read(shared_data / "defects" / row["path"], modality=Modality.MR)
        except InputError:
            refused.add(row["path"])
    assert refused == {row["path"] for row in rows if row["defect"] == "unreadable"}
