"""Reading DICOM series: geometry against the standard's own equation, values, and every refusal."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import MPEG2MPML, ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from ctmr.errors import InputError
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io.dicom import group_series, guess_sequence, read_series, write_series

Edit = Callable[[pydicom.Dataset, int], None]


@pytest.fixture
def axial(tmp_path: Path) -> Path:
    """Seven axial CT slices, 2.5 mm apart, of random values."""
    rng = np.random.default_rng(3)
    affine = np.array([[0, 0, -0.5, 60.0], [0, -0.5, 0, 70.0], [2.5, 0, 0, -10.0], [0, 0, 0, 1]])
    array = rng.integers(-1024, 2000, (7, 6, 5)).astype(np.int16)
    write_series(tmp_path / "axial", Volume(array, affine, Modality.CT, Unit.HU, subject="P7"), uid_seed="axial")
    return tmp_path / "axial"


def edit(folder: Path, change: Edit) -> None:
    for k, path in enumerate(sorted(folder.glob("*.dcm"))):
        dataset = pydicom.dcmread(path)
        change(dataset, k)
        dataset.save_as(path)


def refusal(folder: Path, **options: Modality) -> str:
    with pytest.raises(InputError) as caught:
        read_series(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_affine_follows_the_standards_equation(axial: Path) -> None:
    # PS3.3 C.7.6.2.1.1: P = IPP + column index · spacing · row cosines + row index · spacing · column cosines, in LPS.
    volume = read_series(axial)
    for d, path in enumerate(sorted(axial.glob("*.dcm"))):
        h = pydicom.dcmread(path)
        x, y = np.array(h.ImageOrientationPatient[:3], float), np.array(h.ImageOrientationPatient[3:], float)
        for row, column in ((0, 0), (5, 1), (2, 4)):
            lps = np.array(h.ImagePositionPatient, float) + x * h.PixelSpacing[1] * column + y * h.PixelSpacing[0] * row
            np.testing.assert_allclose(volume.affine @ [d, row, column, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-6)
            assert volume.array[d, row, column] == h.pixel_array[row, column]
    assert (volume.modality, volume.unit, volume.subject) == (Modality.CT, Unit.HU, "P7")
    assert volume.uid == h.SeriesInstanceUID


def test_slices_are_ordered_by_position_not_by_file_name(axial: Path) -> None:
    before = read_series(axial)
    for k, path in enumerate(sorted(axial.glob("*.dcm"))):
        path.rename(axial / f"{(k * 5) % 7}.bin")
    after = read_series(axial)
    np.testing.assert_array_equal(after.array, before.array)
    np.testing.assert_allclose(after.affine, before.affine)


def test_instance_numbers_count_for_nothing(axial: Path) -> None:
    before = read_series(axial)
    edit(axial, lambda d, k: setattr(d, "InstanceNumber", [5, 5, 1, 7, 2, 0, 3][k]))
    np.testing.assert_array_equal(read_series(axial).array, before.array)


def test_files_and_open_streams_can_be_given_instead_of_a_folder(axial: Path) -> None:
    files = sorted(axial.glob("*.dcm"))
    truth = read_series(axial).array
    np.testing.assert_array_equal(read_series(files[::-1]).array, truth)
    np.testing.assert_array_equal(read_series([io.BytesIO(f.read_bytes()) for f in files]).array, truth)


def test_files_that_are_not_dicom_are_ignored_in_a_folder(axial: Path) -> None:
    (axial / "notes.txt").write_text("x" * 500)
    assert read_series(axial).array.shape == (7, 6, 5)


def test_a_lone_slice_takes_its_extent_from_the_header(axial: Path) -> None:
    assert read_series([axial / "IM_0003.dcm"]).spacing_mm == pytest.approx((2.5, 0.5, 0.5))


def test_rescale_gives_hounsfield_units(axial: Path) -> None:
    truth = read_series(axial).array

    def to_unsigned(d: pydicom.Dataset, _: int) -> None:
        d.PixelData = (d.pixel_array.astype(np.int32) + 1024).astype(np.uint16).tobytes()
        d.PixelRepresentation, d.RescaleIntercept = 0, -1024

    edit(axial, to_unsigned)
    found = read_series(axial).array
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, truth)


def test_a_fractional_slope_is_kept_in_float(axial: Path) -> None:
    truth = read_series(axial).array
    edit(axial, lambda d, _: setattr(d, "RescaleSlope", 0.3))
    found = read_series(axial).array
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, truth * 0.3, rtol=1e-6)


@pytest.mark.parametrize("as_written", [-2000, 63536])
def test_padding_becomes_minus_1024_even_when_its_sign_was_lost(axial: Path, as_written: int) -> None:
    def pad(d: pydicom.Dataset, _: int) -> None:
        pixels = d.pixel_array.copy()
        pixels[0, 0] = -2000
        d.PixelData = pixels.tobytes()
        d.add_new("PixelPaddingValue", "SS" if as_written < 0 else "US", as_written)

    edit(axial, pad)
    found = read_series(axial).array
    assert (found[:, 0, 0] == -1024).all()
    assert found.min() >= -1024


def test_mr_values_are_the_stored_ones(tmp_path: Path, random_volume: Callable[..., Volume]) -> None:
    volume = random_volume(4, Modality.MR)
    write_series(tmp_path / "mr", volume)
    found = read_series(tmp_path / "mr")
    assert found.array.dtype == np.uint16 and found.unit is Unit.ARBITRARY
    edit(tmp_path / "mr", lambda d, _: d.update({"RescaleSlope": 2, "RescaleIntercept": -7}))
    np.testing.assert_array_equal(read_series(tmp_path / "mr").array, found.array.astype(int) * 2 - 7)


@pytest.mark.parametrize(
    ("header", "sequence"),
    [
        ({"ProtocolName": "AX T1 MPRAGE"}, "T1"),
        ({"ProtocolName": "head", "SeriesDescription": "t2_tse_tra"}, "T2"),
        ({"SeriesDescription": "T2 FLAIR fs"}, "FLAIR"),
        ({"SeriesDescription": "T1_FLAIR"}, "T1"),
        ({"SeriesDescription": "ep2d T2*"}, None),
        ({"SeriesDescription": "PD_tse"}, "PD"),
        ({"ScanningSequence": "SE", "RepetitionTime": 500, "EchoTime": 12}, "T1"),
        ({"ScanningSequence": "SE", "RepetitionTime": 4500, "EchoTime": 95}, "T2"),
        ({"ScanningSequence": "SE", "RepetitionTime": 2500, "EchoTime": 15}, "PD"),
        ({"ScanningSequence": ["SE", "IR"], "RepetitionTime": 9000, "EchoTime": 110, "InversionTime": 2500}, "FLAIR"),
        ({"ScanningSequence": ["GR", "IR"], "RepetitionTime": 2000, "EchoTime": 3, "InversionTime": 900}, "T1"),
        ({"ScanningSequence": "EP", "RepetitionTime": 3000, "EchoTime": 80}, None),
        ({}, None),
    ],
)
def test_the_sequence_is_guessed_from_names_then_from_times(header: dict[str, object], sequence: str | None) -> None:
    dataset = pydicom.Dataset()
    for keyword, value in header.items():
        setattr(dataset, keyword, value)
    assert guess_sequence(dataset) == sequence


def test_mixed_series_are_refused(axial: Path) -> None:
    edit(axial, lambda d, k: setattr(d, "SeriesInstanceUID", f"1.2.{k // 4}"))
    assert "mixed series: 2" in refusal(axial)


def test_a_missing_slice_is_refused_with_its_neighbour(axial: Path) -> None:
    (axial / "IM_0004.dcm").unlink()
    message = refusal(axial)
    assert "missing slices: 1 where neighbours are 2.50 mm apart (1 between IM_0003.dcm and IM_0005.dcm)" in message


def test_uneven_gaps_are_refused_with_the_gaps_found(axial: Path) -> None:
    def move(d: pydicom.Dataset, k: int) -> None:
        if k == 6:
            d.ImagePositionPatient[2] += 1.1

    edit(axial, move)
    message = refusal(axial)
    assert "uneven gaps: slices lie 2.50 mm apart, but 3.60 mm between IM_0006.dcm and IM_0007.dcm" in message


def test_gaps_within_a_tenth_of_a_millimetre_are_even_but_not_their_drift(axial: Path) -> None:
    def stretch(d: pydicom.Dataset, k: int) -> None:
        d.ImagePositionPatient[2] = k * 2.5 + 0.03 * (k % 2)

    edit(axial, stretch)
    volume = read_series(axial)
    assert volume.spacing_mm[0] == pytest.approx(2.5) and volume.notes == ()

    def two_slabs(d: pydicom.Dataset, k: int) -> None:
        d.ImagePositionPatient[2] = k * 2.5 + 0.09 * max(0, k - 3)

    edit(axial, two_slabs)
    (note,) = read_series(axial).notes
    assert note == "uneven gaps of 2.50 to 2.59 mm were resampled to 2.54 mm, linearly interpolated"


@pytest.mark.parametrize("words", ["US", "UNSPECIFIED"])
def test_an_unspecified_rescale_type_is_hounsfield_units_where_the_image_shows_air_in_them(
    axial: Path, words: str
) -> None:
    before = read_series(axial)
    edit(axial, lambda d, k: setattr(d, "RescaleType", words))
    after = read_series(axial)
    np.testing.assert_array_equal(after.array, before.array)
    assert after.unit is Unit.HU and "unspecified (US)" in after.notes[0]
    edit(axial, lambda d, k: setattr(d, "RescaleIntercept", 1024))
    assert "RescaleType 'unspecified' (US) and its lowest value is" in refusal(axial)


def test_a_series_is_found_in_folders_below_but_not_beside_files_of_its_own(axial: Path) -> None:
    truth = read_series(axial).array
    study = axial.parent / "patient" / "study"
    study.mkdir(parents=True)
    axial.rename(study / "series")
    np.testing.assert_array_equal(read_series(axial.parent / "patient").array, truth)
    for file in sorted((study / "series").iterdir()):
        (study / f"other{file.name}").write_bytes(file.read_bytes())
    np.testing.assert_array_equal(read_series(study).array, truth)
    # A copy of a series is no other one; an image that was changed is.
    np.testing.assert_array_equal(read_series(axial.parent / "patient").array, truth)
    changed = pydicom.dcmread(file)
    changed.InstanceNumber = 99
    changed.save_as(file)
    assert "duplicates" in refusal(axial.parent / "patient")


def test_what_macos_leaves_beside_slices_is_no_slice(axial: Path) -> None:
    truth = read_series(axial).array
    for file in sorted(axial.iterdir()):
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    np.testing.assert_array_equal(read_series(axial).array, truth)
    groups = group_series(axial.parent)
    assert len(groups) == 1 and not groups.unreadable


def test_uids_that_are_empty_in_the_data_set_are_those_of_the_file_meta_information(axial: Path) -> None:
    truth = read_series(axial).array

    def empty(dataset: pydicom.Dataset, k: int) -> None:
        dataset.SOPClassUID = dataset.SOPInstanceUID = ""

    edit(axial, empty)
    np.testing.assert_array_equal(read_series(axial).array, truth)
    (files,) = group_series(axial).values()
    assert len(files) == 7


def test_two_slices_at_one_position_are_refused(axial: Path) -> None:
    edit(axial, lambda d, k: setattr(d, "ImagePositionPatient", [0, 0, 2.5 * min(k, 5)]))
    assert "duplicates" in refusal(axial)


def test_two_files_of_one_image_that_differ_are_refused(axial: Path) -> None:
    again = pydicom.dcmread(axial / "IM_0002.dcm")
    again.InstanceNumber = 99
    again.save_as(axial / "again.dcm")
    assert "duplicates" in refusal(axial) and "SOPInstanceUID" in refusal(axial)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: setattr(d, "ImageOrientationPatient", [1, 0, 0, 0, 0, -1]), "inconsistent orientation"),
        (lambda d: setattr(d, "PixelSpacing", [0.5, 0.6]), "inconsistent PixelSpacing"),
        (lambda d: d.update({"Rows": 5, "PixelData": d.PixelData[:50]}), "inconsistent shape"),
        (lambda d: setattr(d, "ImageOrientationPatient", [1, 0, 0, 0.2, 0.98, 0]), "two orthogonal unit vectors"),
        (lambda d: setattr(d, "PixelSpacing", [0, 0.5]), "above 0 mm"),
        (lambda d: d.__delattr__("ImagePositionPatient"), "no usable ImagePositionPatient"),
        (lambda d: setattr(d, "RescaleType", "Z_EFF"), "RescaleType 'Z_EFF'"),
        (lambda d: setattr(d, "RescaleType", "OD"), "RescaleType 'OD'"),
        (lambda d: d.__delattr__("RescaleSlope"), "not Hounsfield units"),
        (lambda d: setattr(d, "RescaleSlope", 0), "RescaleSlope 0"),
        (lambda d: setattr(d, "RescaleIntercept", "1e400"), "finite numbers and a slope are needed"),
        (lambda d: setattr(d, "PhotometricInterpretation", "PALETTE COLOR"), "'PALETTE COLOR'; MONOCHROME2 is needed"),
        (lambda d: setattr(d, "HighBit", 11), "HighBit 11 with BitsStored 16"),
        (lambda d: setattr(d, "ModalityLUTSequence", [pydicom.Dataset()]), "Modality LUT"),
        (lambda d: setattr(d, "Rows", 0), "has no pixels (Rows 0, Columns 5)"),
        (lambda d: d.update({"Rows": 65535, "Columns": 65535}), "claims 65535×65535 pixels"),
        (lambda d: setattr(d, "NumberOfFrames", 3), "3 frames"),
        (lambda d: setattr(d, "SamplesPerPixel", 3), "3 samples"),
        (lambda d: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
        (lambda d: setattr(d, "PixelData", d.PixelData[:20]), "damaged pixel data"),
        (lambda d: setattr(d, "PixelData", d.PixelData * 2), "damaged pixel data (120 bytes, 60 are needed)"),
    ],
)
def test_one_odd_slice_refuses_the_series(axial: Path, change: Callable[[pydicom.Dataset], None], reason: str) -> None:
    edit(axial, lambda d, k: change(d) if k == 2 else None)
    message = refusal(axial)
    assert reason in message
    assert "IM_000" in message or "shape" in reason


def test_a_shear_that_no_gantry_makes_is_refused_with_its_angle(axial: Path) -> None:
    def tilt(d: pydicom.Dataset, k: int) -> None:
        d.ImagePositionPatient[1] += 2.5 * k * math.tan(math.radians(50))

    edit(axial, tilt)
    assert "sheared volume" in (message := refusal(axial)) and "(50.0°, at most 45° are straightened)" in message


def test_a_slice_shifted_sideways_is_refused(axial: Path) -> None:
    def shift(d: pydicom.Dataset, k: int) -> None:
        if k == 3:
            d.ImagePositionPatient[0] += 4

    edit(axial, shift)
    assert "IM_0004.dcm is shifted 4.00 mm sideways" in refusal(axial)


def test_another_modality_is_refused(axial: Path) -> None:
    assert "wrong modality: 'CT', allowed is MR" in refusal(axial, modality=Modality.MR)
    edit(axial, lambda d, _: setattr(d, "Modality", "PT"))
    assert "'PT', allowed is CT or MR" in refusal(axial)


def test_compression_without_a_decoder_is_refused_by_name(axial: Path) -> None:
    def claim(d: pydicom.Dataset, _: int) -> None:
        d.file_meta.TransferSyntaxUID = MPEG2MPML
        d.PixelData = pydicom.encaps.encapsulate([b"\x00\x00\x01\xb3 no image"])
        d["PixelData"].is_undefined_length = True

    edit(axial, claim)
    message = refusal(axial)
    assert "IM_0001.dcm" in message and "MPEG2" in message and "no decoder" in message


@pytest.mark.parametrize("keep", [140, 200, 400])
def test_a_truncated_file_is_refused_by_name(axial: Path, keep: int) -> None:
    path = axial / "IM_0005.dcm"
    path.write_bytes(path.read_bytes()[:keep])
    assert "IM_0005.dcm" in refusal(axial)


def test_what_is_no_dicom_at_all_is_refused(tmp_path: Path) -> None:
    assert "holds no DICOM image" in refusal(tmp_path)
    (tmp_path / "a.dcm").write_text("hello")
    assert "a.dcm is not a DICOM file" in refusal(tmp_path)
    assert "not a folder" in refusal(tmp_path / "absent")
    with pytest.raises(InputError, match=r"a\.dcm is not a DICOM file"):
        read_series([tmp_path / "a.dcm"])
    with pytest.raises(InputError, match="no DICOM image"):
        read_series([])


def test_a_folder_tree_is_sorted_into_series(tmp_path: Path, random_volume: Callable[..., Volume]) -> None:
    a = write_series(tmp_path / "x" / "a", random_volume(1))
    b = write_series(tmp_path / "b", random_volume(2, Modality.MR))
    (tmp_path / "readme.txt").write_text("no image")
    broken = tmp_path / "x" / "broken.dcm"
    broken.write_bytes(a[0].read_bytes()[:150])
    groups = group_series(tmp_path)
    assert sorted(map(tuple, groups.values())) == sorted([tuple(sorted(a)), tuple(sorted(b))])
    assert all(read_series(files).uid == uid for uid, files in groups.items())
    assert list(groups.unreadable) == [broken] and "damaged" in groups.unreadable[broken]


@pytest.mark.shared_data
def test_the_tilted_ge_series_is_refused_naming_tilt_and_gaps(shared_data: Path) -> None:
    message = refusal(shared_data / "dicom_ct_head_ge")
    assert "gantry tilt 18.5°" in message
    assert "slices lie 4.00 mm apart, but 1.08 mm between 14.dcm and 15.dcm, 7.00 mm between 15.dcm" in message


def test_a_dicomdir_beside_the_series_is_no_image(axial: Path) -> None:
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MediaStorageDirectoryStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory = pydicom.Dataset()
    directory.file_meta, directory.FileSetID = meta, "DISC"
    pydicom.dcmwrite(axial / "DICOMDIR", directory, enforce_file_format=True)
    assert read_series(axial).array.shape == (7, 6, 5)
    groups = group_series(axial)
    assert [len(files) for files in groups.values()] == [7] and not groups.unreadable
