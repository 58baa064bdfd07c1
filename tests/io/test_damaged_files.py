"""Any damage to a file ends in a read image or in one sentence that names the file; never in another error."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import enhanced, image, stream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from ctmr.errors import InputError
from ctmr.imaging.volume import Modality
from ctmr.io import read_image
from ctmr.io.dicom import group_series

KINDS = (
    "explicit.dcm",
    "implicit.dcm",
    "big.dcm",
    "bare.dcm",
    "enhanced.dcm",
    "rle.dcm",
    "j2k.dcm",
    "a.nii",
    "scaled.nii",
    "a.nii.gz",
    "grey.png",
    "wide.png",
    "colour.png",
    "a.jpg",
)


@cache
def sound(name: str) -> bytes:
    """Return a whole file of each kind."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (40, 36)).astype(np.uint8)
    words = rng.integers(0, 4000, (40, 36)).astype(np.int16)
    out = io.BytesIO()
    match name:
        case "explicit.dcm":
            return stream(image(words)).getvalue()
        case "implicit.dcm":
            return stream(image(words), ImplicitVRLittleEndian).getvalue()
        case "big.dcm":
            return stream(image(words.astype(">i2")), ExplicitVRBigEndian).getvalue()
        case "bare.dcm":
            return stream(image(words), preamble=False).getvalue()
        case "enhanced.dcm":
            return stream(enhanced(np.stack([words] * 3), [(0, 0, k) for k in range(3)])).getvalue()
        case "rle.dcm" | "j2k.dcm":
            dataset = image(words)
            dataset.compress(RLELossless if name == "rle.dcm" else JPEG2000Lossless)
            return stream(dataset).getvalue()
        case "a.nii" | "scaled.nii" | "a.nii.gz":
            nifti = nibabel.Nifti1Image(words[None] - 1024, np.diag([1.0, 2, 3, 1]))
            if name == "scaled.nii":
                nifti.header.set_slope_inter(0.5, 7)
            content = nifti.to_bytes()
            return content if name.endswith(".nii") else __import__("gzip").compress(content, mtime=0)
        case "grey.png" | "wide.png":
            Image.fromarray(grey if name == "grey.png" else grey.astype(np.uint16) * 257).save(out, "PNG")
        case "colour.png":
            exif = Image.Exif()
            exif[0x0112] = 6
            Image.fromarray(np.stack([grey] * 4, axis=-1)).save(out, "PNG", exif=exif)
        case "a.jpg":
            Image.fromarray(grey).save(out, "JPEG")
    return out.getvalue()


damage = st.tuples(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), max_size=12),
    st.one_of(st.just(1.0), st.floats(0, 1)),
)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=damage)
def test_flipped_bits_and_truncation_are_read_or_refused_by_name(
    tmp_path: Path, name: str, damage: tuple[list[tuple[float, int]], float]
) -> None:
    flips, kept = damage
    content = bytearray(sound(name))
    for where, bit in flips:
        content[int(where * len(content))] ^= 1 << bit
    path = tmp_path / name
    path.write_bytes(content[: round(kept * len(content))])
    try:
        # The modality is what the file says, or, where bits of that flipped, something that is refused.
        found = read_image(path, modality=None if name.endswith(".dcm") else Modality.CT)
    except InputError as error:
        assert name in str(error) and "\n" not in str(error) and len(str(error)) < 800
    else:
        assert np.isfinite(found.array).all()
    if name.endswith(".dcm"):
        group_series(tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_the_files_are_sound_before_they_are_damaged(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(sound(name))
    found = read_image(tmp_path / name, modality=None if name.endswith(".dcm") else Modality.CT)
    assert sorted(found.array.shape)[-2:] == [36, 40]
