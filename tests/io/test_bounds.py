"""What a file unpacks to is bounded before memory is taken: small files that claim, or are, gigabytes."""

from __future__ import annotations

import gzip
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import image, stream
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from ctmr.datasets.deid.files import clean_nifti
from ctmr.errors import InputError
from ctmr.imaging.volume import Modality
from ctmr.io import read_image
from ctmr.io.bounds import ALWAYS_BYTES, INFLATED_BYTES, MAXIMUM_BYTES, MAXIMUM_RATIO, require_bounded

SPENT = """
import resource, sys
from pathlib import Path
from ctmr.errors import InputError
from ctmr.io import read_image
from ctmr.imaging.volume import Modality
path = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_image(path, modality=None if path.suffix == ".dcm" else Modality.CT)
except InputError as error:
    print(str(error).replace(chr(10), "|"))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def refused(path: Path) -> tuple[str, int]:
    """Return what reading a file ends with, and how many MiB it took, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", SPENT, str(path)], capture_output=True, text=True, check=True)
    *said, spent = done.stdout.splitlines()
    return "".join(said), int(spent)


def test_a_deflated_dicom_bomb_is_refused_in_little_memory(tmp_path: Path) -> None:
    content = stream(image(np.zeros((4, 4), np.int16)), DeflatedExplicitVRLittleEndian).getvalue()
    # The meta information ends where its group length (PS3.10 7.1) says.
    end = 144 + int.from_bytes(content[140:144], "little")
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = engine.compress(b"\x09\x00\x10\x00OB\0\0" + (2**30).to_bytes(4, "little"))
    packed += b"".join(engine.compress(bytes(2**20)) for _ in range(1024)) + engine.flush()
    (tmp_path / "bomb.dcm").write_bytes(content[:end] + packed)
    said, spent = refused(tmp_path / "bomb.dcm")
    assert f"unpacks to more than {INFLATED_BYTES} bytes" in said and "bomb.dcm" in said
    assert spent < 512


def test_a_nifti_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    header = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.float64), np.eye(4)).header
    header["dim"][1:4] = (1024, 1024, 128)
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    engine = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = engine.compress(header.binaryblock + bytes(4))
    packed += b"".join(engine.compress(bytes(2**20)) for _ in range(1024)) + engine.flush()
    (tmp_path / "bomb.nii.gz").write_bytes(packed)
    said, spent = refused(tmp_path / "bomb.nii.gz")
    assert "claims 1.07e+09 bytes of voxels" in said and "bomb.nii.gz" in said
    assert spent < 256
    with pytest.raises(InputError, match=r"cannot be read as NIfTI \(it claims 1.07e\+09 bytes"):
        clean_nifti(tmp_path / "bomb.nii.gz")


@pytest.mark.parametrize("size", [0, 2**31 - 16], ids=["until the end", "two gigabytes"])
def test_a_nifti_extension_that_claims_more_than_lies_before_the_voxels_takes_no_memory(
    tmp_path: Path, size: int
) -> None:
    head = bytearray(nibabel.Nifti1Image(np.full((4, 4, 4), 7, np.int16), np.eye(4)).to_bytes()[:348])
    head[108:112] = np.array([384], "<f4").tobytes()
    engine = zlib.compressobj(9, zlib.DEFLATED, 31)
    begin = head + b"\1\0\0\0" + np.array([size, 6], "<i4").tobytes() + bytes(24)
    packed = engine.compress(begin + np.full(64, 7, "<i2").tobytes())
    packed += b"".join(engine.compress(bytes(2**20)) for _ in range(1024)) + engine.flush()
    (tmp_path / "bomb.nii.gz").write_bytes(packed)
    said, spent = refused(tmp_path / "bomb.nii.gz")
    assert said == "" and spent < 256
    assert (read_image(tmp_path / "bomb.nii.gz", modality=Modality.MR).array == 7).all()


@pytest.mark.parametrize("field", ["dim", "vox_offset"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_nifti_header_that_claims_more_than_the_file_has_is_refused(tmp_path: Path, field: str, suffix: str) -> None:
    file = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    header = bytearray(file.to_bytes())
    if field == "dim":
        header[42:48] = np.array([2000, 2000, 2000], "<i2").tobytes()
    else:
        header[108:112] = np.array([1e30], "<f4").tobytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(bytes(header)) if suffix == ".nii.gz" else bytes(header))
    words = "which its .* bytes cannot hold" if field == "dim" else "vox_offset is 1e\\+30; at most"
    with pytest.raises(InputError, match=words):
        read_image(path, modality=Modality.CT)
    with pytest.raises(InputError, match=words):
        clean_nifti(path)


def test_a_compressed_dicom_that_claims_gigabytes_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    dataset = image(np.zeros((64, 64), np.uint16), RescaleIntercept=-1024)
    dataset.compress(JPEG2000Lossless)
    dataset.Rows, dataset.Columns = 8000, 8000
    (tmp_path / "claims.dcm").write_bytes(stream(dataset).getvalue())
    said, spent = refused(tmp_path / "claims.dcm")
    assert "claims.dcm" in said and spent < 512


@pytest.mark.parametrize(
    ("size", "packed", "fits"),
    [
        (ALWAYS_BYTES, 1, True),
        (ALWAYS_BYTES + 1, 1, False),
        (MAXIMUM_RATIO * 2**24, 2**24, True),
        (MAXIMUM_RATIO * 2**24 + 1, 2**24, False),
        (MAXIMUM_BYTES + 1, MAXIMUM_BYTES, False),
    ],
)
def test_a_files_own_size_says_how_much_it_may_hold(size: int, packed: int, fits: bool) -> None:
    if fits:
        require_bounded(size, packed, "it")
    else:
        with pytest.raises(InputError, match="it claims"):
            require_bounded(size, packed, "it")
