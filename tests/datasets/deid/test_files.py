"""NIfTI files and pictures: no text comes through, voxels and geometry do."""

from __future__ import annotations

import gzip
import zlib

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from ctmr.datasets.deid.files import clean, clean_nifti
from ctmr.datasets.deid.residual import remaining
from ctmr.errors import InputError
from ctmr.imaging.volume import Modality
from ctmr.io import raster


def save_nifti(path, array, affine, tokens, *, kind=nibabel.Nifti1Image, order="<"):
    """Write a NIfTI file with a token in every field that can hold one, and in extensions."""
    image = kind(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    header = image.header
    for field, size in (("descrip", 80), ("aux_file", 24), ("intent_name", 16)):
        header[field] = tokens.name.encode("latin-1")[:size]
    if kind is nibabel.Nifti1Image:
        header["db_name"] = tokens.given.encode("latin-1")[:18]
        header["data_type"] = tokens.name.encode("latin-1")[:10]
    header["cal_max"], header["toffset"] = 19470823, 19470823
    for code, text in ((2, tokens.name), (6, tokens.address), (4, tokens.date)):
        header.extensions.append(nibabel.nifti1.Nifti1Extension(code, text.encode("latin-1")))
    content = image.to_bytes() + tokens.name.encode("latin-1") * 3
    if path.name.endswith(".gz"):
        stream = zlib.compressobj(9, zlib.DEFLATED, 31)
        body = stream.compress(content) + stream.flush()
        # Flag 8: the original file name stands in the gzip header.
        content = body[:3] + b"\x08" + body[4:10] + tokens.name.encode("latin-1") + b"\0" + body[10:]
    path.write_bytes(content)
    return path


@settings(max_examples=10)
@given(
    data=st.data(),
    kind=st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]),
    name=st.sampled_from(["a.nii", "a.nii.gz"]),
    dtype=st.sampled_from([np.int16, np.uint8, np.float32]),
)
def test_a_nifti_file_keeps_voxels_and_no_text(tmp_path_factory, leaks, tokens_of, data, kind, name, dtype):
    tokens = data.draw(tokens_of)
    folder = tmp_path_factory.mktemp("nifti")
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    array = np.random.default_rng(0).integers(0, 200, (5, 6, 7)).astype(dtype)
    affine = np.array([[-1.5, 0, 0, 3.25], [0, 0, 2, -7], [0, 1.25, 0, 11], [0, 0, 0, 1]])
    source = save_nifti(folder / "in" / name, array, affine, tokens, kind=kind)
    (folder / "out" / "a.nii.gz").write_bytes(clean_nifti(source))
    assert leaks(tokens, folder / "in") and leaks(tokens, folder / "out") == []
    after = nibabel.load(folder / "out" / "a.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(after.dataobj), array)
    assert type(after) is kind and not after.header.extensions
    for form in (after.affine, after.get_sform(), after.get_qform()):
        np.testing.assert_allclose(form, affine, atol=1e-6)
    assert after.header["cal_max"] == 0 == after.header["toffset"]
    assert remaining("nifti", [source]) and remaining("nifti", [folder / "out" / "a.nii.gz"]) == ()


def test_scale_factors_and_byte_order_stay(tmp_path):
    image = nibabel.Nifti1Image(np.arange(24, dtype=">i2").reshape(2, 3, 4), np.eye(4))
    header = image.header.as_byteswapped(">")
    header.set_slope_inter(2.0, -1024.0)
    header["vox_offset"] = 352
    raw = header.binaryblock + bytes(4) + np.arange(24, dtype=">i2").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    (tmp_path / "b.nii.gz").write_bytes(clean_nifti(tmp_path / "a.nii"))
    before, after = nibabel.load(tmp_path / "a.nii"), nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(after.get_fdata(), before.get_fdata())
    assert after.get_fdata().max() == 23 * 2 - 1024


@pytest.mark.parametrize("offset", [0, 16, 348])
def test_a_header_that_claims_to_be_voxels_is_not_published(tmp_path, offset):
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header["descrip"] = b"DOE^JANE"
    content = bytearray(image.to_bytes())
    content[108:112] = np.float32(offset).tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    cleaned = clean_nifti(tmp_path / "a.nii")
    assert b"DOE" not in gzip.decompress(cleaned)
    again = nibabel.Nifti1Image.from_bytes(gzip.decompress(cleaned))
    np.testing.assert_array_equal(np.asanyarray(again.dataobj), array)


def test_equal_files_give_equal_bytes(tmp_path, some_tokens):
    made = []
    for name in ("one.nii.gz", "two.nii"):
        source = save_nifti(tmp_path / name, np.ones((3, 3, 3), np.int16), np.eye(4), some_tokens)
        made.append(clean_nifti(source))
    assert made[0] == made[1]
    assert gzip.decompress(made[0])


@pytest.mark.parametrize("content", [b"", b"no image", gzip.compress(b"no image", mtime=0), bytes(400)])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha"])
def test_what_is_no_volume_is_refused_without_its_content(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as"):
        clean_nifti(tmp_path / name)


def test_a_cut_off_nifti_file_is_refused(tmp_path, some_tokens):
    source = save_nifti(tmp_path / "a.nii", np.ones((9, 9, 9), np.int16), np.eye(4), some_tokens)
    source.write_bytes(source.read_bytes()[:900])
    with pytest.raises(InputError, match="cannot be read as NIfTI"):
        clean_nifti(source)


def test_metaimage_becomes_nifti_in_the_same_place(tmp_path):
    import SimpleITK

    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((1.5, 2, 3))
    image.SetOrigin((-10, 20, 5))
    SimpleITK.WriteImage(image, str(tmp_path / "ct.mha"))
    (tmp_path / "ct.nii.gz").write_bytes(clean_nifti(tmp_path / "ct.mha"))
    after = nibabel.load(tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(after.dataobj).transpose(2, 1, 0), array)
    # ITK counts towards left and posterior, NIfTI towards right and anterior.
    np.testing.assert_allclose(after.affine, [[-1.5, 0, 0, 10], [0, -2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])


def save_pictures(folder, tokens):
    """Write pictures of several kinds with tokens in chunks, comments, EXIF and a colour profile."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", tokens.name)
    text.add_text("Comment", tokens.address, zip=True)
    text.add_itxt("XML:com.adobe.xmp", f"<x>{tokens.given}</x>", zip=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Artist], exif[ExifTags.Base.ImageDescription] = tokens.name, tokens.address
    exif[ExifTags.Base.DateTime], exif[ExifTags.Base.Orientation] = tokens.date, 6
    profile = tokens.name.encode("latin-1") * 4
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / "a.png", pnginfo=text, exif=exif, icc_profile=profile)
    Image.fromarray(pixels[..., 0]).save(folder / "b.png", pnginfo=text)
    jpeg = {"exif": exif, "comment": tokens.given.encode("latin-1"), "icc_profile": profile}
    Image.fromarray(pixels).save(folder / "c.jpg", quality=95, **jpeg)
    Image.fromarray(pixels).quantize(16).save(folder / "d.png", pnginfo=text)
    return sorted(folder.iterdir())


@settings(max_examples=5)
@given(data=st.data())
def test_a_picture_keeps_what_ctmr_sees_of_it_and_no_text(tmp_path_factory, leaks, tokens_of, data):
    tokens = data.draw(tokens_of)
    folder = tmp_path_factory.mktemp("pictures")
    for source in save_pictures(folder / "in", tokens):
        target = folder / "out" / f"{source.stem}.png"
        clean("raster", source, target.with_suffix(""))
        before = raster.read(source, modality=Modality.CT).array
        np.testing.assert_array_equal(raster.read(target, modality=Modality.CT).array, before)
        assert remaining("raster", [source]) and remaining("raster", [target]) == ()
        assert Image.open(target).info == {}
    assert leaks(tokens, folder / "in") and leaks(tokens, folder / "out") == []


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be decoded as PNG or JPEG"):
        clean("raster", tmp_path / "a.png", tmp_path / "b")
    assert not (tmp_path / "b.png").exists()
