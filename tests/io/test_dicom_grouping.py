"""Sorting folders into series: splits by echo or phase, localizers, files without preamble, what is no DICOM."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from dicom_files import SERIES, image, save, stream
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ctmr.errors import InputError
from ctmr.io.dicom import group_series, is_dicom, read_series

PIXELS = np.arange(20, dtype=np.uint16).reshape(4, 5)


def test_echoes_of_one_series_become_images_of_their_own(tmp_path: Path) -> None:
    slices = [
        image(PIXELS + k + echo, (0, 0, 3.0 * k), Modality="MR", EchoTime=echo, InstanceNumber=99 - k)
        for k in range(4)
        for echo in (10, 80)
    ]
    save(tmp_path, slices)
    groups = group_series(tmp_path)
    assert list(groups) == [f"{SERIES}/EchoTime=10", f"{SERIES}/EchoTime=80"]
    for echo, files in zip((10, 80), groups.values(), strict=True):
        np.testing.assert_array_equal(read_series(files).array, [PIXELS + k + echo for k in range(4)])
    with pytest.raises(InputError, match=r"multi-echo: 2 images of each place \(EchoTime=10; EchoTime=80\)"):
        read_series(tmp_path)


def test_magnitude_and_phase_of_two_echoes_are_four_images(tmp_path: Path) -> None:
    slices = [
        image(PIXELS, (0, 0, k), Modality="MR", EchoTime=echo, ImageType=["ORIGINAL", "PRIMARY", kind])
        for k in range(3)
        for echo in (5, 9)
        for kind in "MP"
    ]
    save(tmp_path, slices)
    groups = group_series(tmp_path)
    assert len(groups) == 4 and all(len(files) == 3 for files in groups.values())
    assert f"{SERIES}/EchoTime=5, ImageType=ORIGINAL\\PRIMARY\\M" in groups


def test_an_attribute_that_changes_from_slice_to_slice_splits_nothing(tmp_path: Path) -> None:
    save(tmp_path, [image(PIXELS, (0, 0, k), AcquisitionNumber=k, AcquisitionTime=f"12000{k}") for k in range(4)])
    assert list(group_series(tmp_path)) == [SERIES]
    assert read_series(tmp_path).array.shape == (4, 4, 5)
    save(tmp_path, [image(PIXELS, (0, 0, k), AcquisitionNumber=9 + k) for k in range(4)], prefix="again")
    assert list(group_series(tmp_path)) == [SERIES]
    with pytest.raises(InputError, match=r"duplicates: IM_0001\.dcm and again0001\.dcm lie at one position \(4 such"):
        read_series(tmp_path)


def test_localizers_are_parted_from_the_cross_sections_of_their_series(tmp_path: Path) -> None:
    scout = image(PIXELS, (0, 0, 50), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    save(tmp_path, [scout, *(image(PIXELS, (0, 0, k)) for k in range(3))])
    groups = group_series(tmp_path)
    assert {key: len(files) for key, files in groups.items()} == {SERIES: 3, f"{SERIES}/localizer": 1}
    assert read_series(groups[SERIES]).array.shape == (3, 4, 5)
    with pytest.raises(InputError, match=r"IM_0001\.dcm is a localizer, not a cross-section"):
        read_series(groups[f"{SERIES}/localizer"])


def test_a_series_may_lie_in_several_folders(tmp_path: Path) -> None:
    save(tmp_path / "DIR000", [image(PIXELS, (0, 0, k)) for k in range(3)])
    save(tmp_path / "DIR001", [image(PIXELS, (0, 0, k)) for k in range(3, 5)])
    (files,) = group_series(tmp_path).values()
    assert read_series(files).array.shape == (5, 4, 5)


def test_a_group_that_is_not_there_is_named(tmp_path: Path) -> None:
    save(tmp_path, [image(PIXELS)])
    with pytest.raises(InputError, match=f"there is no series '1.2' here; there is {SERIES}"):
        group_series(tmp_path)["1.2"]


def test_objects_without_pixels_are_no_images(tmp_path: Path) -> None:
    report = image(PIXELS, Modality="SR", SeriesInstanceUID="1.2.3", Rows=None, Columns=None, PixelData=None)
    save(tmp_path, [report])
    groups = group_series(tmp_path)
    assert not groups and not groups.unreadable


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda s: s.name
)
def test_files_without_preamble_are_read(tmp_path: Path, syntax: str) -> None:
    for k in range(3):
        dataset = image(PIXELS + k, (0, 0, k), Modality="MR")
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = (PIXELS + k).astype(">u2").tobytes()
        path = tmp_path / f"{k}"
        path.write_bytes(stream(dataset, syntax, preamble=False).getvalue())
        assert path.read_bytes()[128:132] != b"DICM" and is_dicom(path)
    (tmp_path / "notes.txt").write_text("no image")
    np.testing.assert_array_equal(read_series(tmp_path).array, [PIXELS, PIXELS + 1, PIXELS + 2])
    (files,) = group_series(tmp_path).values()
    assert len(files) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        b"\x08\x00",
        bytes(1000),
        b"\x08\x00\x05\x00",
        b"\x08\x00" * 300,
        b"\x02\x00\x00\x00UL\x04\x00",
        b"\x08\x00\x05\x00CS\x02\x00AB\x08\x00\x05\x00",
        b"\x08\x00\x05\x00CS\x03\x00ABC\x08\x00\x08\x00",
        b"\x08\x00\x00\x00\xff\xff\xff\xff" + bytes(600),
        "größer".encode() * 100,
        b"\x89PNG\r\n\x1a\n" + bytes(600),
    ],
)
def test_other_files_are_not_taken_for_dicom(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert not is_dicom(tmp_path / "a")
    groups = group_series(tmp_path)
    assert not groups and not groups.unreadable


def test_the_signature_finds_real_files_with_and_without_preamble() -> None:
    for name in (
        "CT_small.dcm",
        "MR_small_implicit.dcm",
        "rtstruct.dcm",
        "ExplVR_BigEndNoMeta.dcm",
        "ExplVR_LitEndNoMeta.dcm",
    ):
        assert is_dicom(Path(get_testdata_file(name)))
    for name in ("zipMR.gz", "rtplan.dump", "README.txt"):
        assert not is_dicom(Path(get_testdata_file(name)))


def test_a_file_that_only_claims_to_be_dicom_is_named(tmp_path: Path) -> None:
    save(tmp_path, [image(PIXELS, (0, 0, k)) for k in range(3)])
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "text.IMA").write_text("hello")
    groups = group_series(tmp_path)
    assert list(groups) == [SERIES]
    assert sorted(p.name for p in groups.unreadable) == ["empty.dcm", "text.IMA"]
    with pytest.raises(InputError, match=r"empty\.dcm is not a DICOM file"):
        read_series(tmp_path)


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    save(tmp_path, [image(PIXELS)])
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "dangling.dcm").symlink_to(tmp_path / "absent")
    assert list(group_series(tmp_path)) == [SERIES]
    assert read_series(tmp_path).array.shape == (1, 4, 5)


def test_a_time_series_that_only_the_moment_tells_apart_is_parted(tmp_path: Path) -> None:
    slices = [
        image(
            PIXELS + 10 * point,
            (0, 0, 3.0 * k),
            Modality="MR",
            AcquisitionTime=f"1200{point}{k}",
            InstanceNumber=point * 9 + k,
        )
        for point in range(3)
        for k in range(4)
    ]
    save(tmp_path, slices)
    groups = group_series(tmp_path)
    assert list(groups) == [f"{SERIES}/time {k} of 3" for k in (1, 2, 3)]
    for point, files in enumerate(groups.values()):
        assert (read_series(files).array == PIXELS + 10 * point).all()


def test_a_series_that_was_sent_twice_is_no_time_series(tmp_path: Path) -> None:
    for prefix in ("IM_", "again"):
        slices = [image(PIXELS, (0, 0, k), AcquisitionTime="120000", InstanceNumber=k) for k in range(4)]
        save(tmp_path, slices, prefix=prefix)
    assert list(group_series(tmp_path)) == [SERIES]


def one_slice_a_series(folder: Path, count: int = 5, **odd: object) -> None:
    for k in range(count):
        more = odd if k == count - 1 else {}
        attributes = {"SeriesInstanceUID": f"1.2.{k}", "FrameOfReferenceUID": "1.9"} | more
        save(folder / str(k), [image(PIXELS + k, (0, 0, 3.0 * k), Modality="MR", **attributes)])


def test_series_of_one_slice_each_side_by_side_are_one_image(tmp_path: Path) -> None:
    one_slice_a_series(tmp_path)
    (key,) = group_series(tmp_path)
    assert key == "1.2.0/5 series of one slice"
    volume = read_series(group_series(tmp_path)[key])
    np.testing.assert_array_equal(volume.array, [PIXELS + k for k in range(5)])
    assert "5 series of one slice each, side by side in one frame of reference, were joined" in volume.notes


@pytest.mark.parametrize(
    "odd",
    [
        {"FrameOfReferenceUID": "1.8"},
        {"PatientID": "B"},
        {"StudyInstanceUID": "1.7"},
        {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
        {"EchoTime": 7},
    ],
)
def test_a_slice_of_something_else_is_not_joined(tmp_path: Path, odd: dict[str, object]) -> None:
    one_slice_a_series(tmp_path, **odd)
    assert sorted(map(len, group_series(tmp_path).values())) == [1, 4]


def test_slices_that_were_joined_are_refused_where_one_is_missing(tmp_path: Path) -> None:
    one_slice_a_series(tmp_path, ImagePositionPatient=[0, 0, 15])
    (files,) = group_series(tmp_path).values()
    with pytest.raises(InputError, match="missing slices: 1"):
        read_series(files)


def test_slices_without_frame_of_reference_are_not_joined(tmp_path: Path) -> None:
    for k in range(4):
        save(tmp_path / "b" / str(k), [image(PIXELS, (0, 0, k), SeriesInstanceUID=f"1.3.{k}")])
    assert len(group_series(tmp_path / "b")) == 4


def test_a_file_that_is_there_twice_is_read_once(tmp_path: Path) -> None:
    slices = [
        image(PIXELS + k + echo, (0, 0, 3.0 * k), Modality="MR", EchoTime=echo) for k in range(4) for echo in (10, 80)
    ]
    files = save(tmp_path / "a", slices)
    (tmp_path / "b").mkdir()
    for source, copy in ((files[2], "a/IM_0003 (1).dcm"), (files[5], "b/IM_0006.dcm"), (files[5], "b/again.dcm")):
        (tmp_path / copy).write_bytes(source.read_bytes())
    groups = group_series(tmp_path)
    assert [len(g) for g in groups.values()] == [4, 4]
    whole = save(tmp_path / "c", slices[::2])
    (tmp_path / "c" / "copy.dcm").write_bytes(whole[1].read_bytes())
    found = read_series(tmp_path / "c")
    np.testing.assert_array_equal(found.array, [PIXELS + k + 10 for k in range(4)])
    assert found.notes == ("1 of its files were copies of others, byte for byte",)
    # One image with other bytes is no copy: nobody knows which one is meant.
    other = image(PIXELS, (0, 0, 3.0), Modality="MR", EchoTime=10, SOPInstanceUID=slices[2].SOPInstanceUID)
    save(tmp_path / "c", [other], prefix="other")
    with pytest.raises(InputError, match=r"duplicates: .* are one image"):
        read_series(tmp_path / "c")
