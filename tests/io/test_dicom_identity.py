"""One UID is one series only where patient, study, frame of reference, class and pass are one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import SERIES, image, save
from hypothesis import given
from hypothesis import strategies as st

from ctmr.errors import InputError
from ctmr.io.dicom import group_series, read_series
from ctmr.io.dicom.identity import canonical

PIXELS = np.arange(20, dtype=np.uint16).reshape(4, 5)
RAW_DATA = "1.2.840.10008.5.1.4.1.1.66"
OTHERS: dict[str, dict[str, Any]] = {
    "patient": {"PatientID": "B"},
    "study": {"StudyInstanceUID": "1.2.3.9"},
    "frame of reference": {"FrameOfReferenceUID": "1.2.4.9"},
}
FIRST = {"PatientID": "A", "StudyInstanceUID": "1.2.3.1", "FrameOfReferenceUID": "1.2.4.1"}


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("what", OTHERS)
def test_a_uid_that_two_of_a_kind_share_is_two_images(tmp_path: Path, what: str, interleaved: bool) -> None:
    step, start = (2, 1) if interleaved else (1, 4)
    mine = [image(PIXELS, (0, 0, step * k), **FIRST) for k in range(4)]
    theirs = [image(PIXELS + 100, (0, 0, step * k + start), **FIRST | OTHERS[what]) for k in range(4)]
    save(tmp_path, [*mine, *theirs])
    groups = group_series(tmp_path)
    assert sorted(groups) == [f"{SERIES}/{what} 1 of 2", f"{SERIES}/{what} 2 of 2"]
    first, second = (read_series(files).array for files in groups.values())
    assert (first == PIXELS).all() and (second == PIXELS + 100).all()
    with pytest.raises(InputError, match=f"mixed {what}: one SeriesInstanceUID, but not one {what}"):
        read_series(tmp_path)


def test_no_name_of_a_patient_stands_in_a_key_or_a_message(tmp_path: Path) -> None:
    save(tmp_path, [image(PIXELS, (0, 0, k), PatientID=f"Zwiebelfisch{k}") for k in range(2)])
    assert not any("Zwiebel" in key for key in group_series(tmp_path))
    with pytest.raises(InputError) as caught:
        read_series(tmp_path)
    assert "Zwiebel" not in str(caught.value)


@pytest.mark.parametrize("other", [" A", "A ", "a", "\u0041"])
def test_padding_and_case_make_no_other_patient(tmp_path: Path, other: str) -> None:
    save(tmp_path, [image(PIXELS, (0, 0, k), PatientID="A" if k % 2 else other) for k in range(4)])
    assert list(group_series(tmp_path)) == [SERIES]


@given(st.text(max_size=20))
def test_the_canonical_form_is_one_form(text: str) -> None:
    assert canonical(canonical(text)) == canonical(text) == canonical(f" {text} ")


def test_composed_and_decomposed_letters_are_one() -> None:
    assert canonical("Mu\u0308ller") == canonical("M\u00dcLLER")


@pytest.mark.parametrize("name", ["AA_first", "ZZ_last"])
def test_raw_data_in_a_series_neither_joins_nor_decides_it(tmp_path: Path, name: str) -> None:
    save(tmp_path, [image(PIXELS + k, (0, 0, k)) for k in range(3)])
    bare = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
    save(tmp_path, [image(PIXELS, SOPClassUID=RAW_DATA, **bare)], prefix=name)
    volume = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, [PIXELS + k for k in range(3)])
    assert any("an object beside its images" in note for note in volume.notes)
    groups = group_series(tmp_path)
    assert sorted(len(files) for files in groups.values()) == [1, 3]


@pytest.mark.parametrize("offset", [2.5, 2.2, 1.0])
def test_two_passes_over_one_region_are_two_images(tmp_path: Path, offset: float) -> None:
    first = [image(PIXELS, (0, 0, 5.0 * k), AcquisitionNumber=1) for k in range(6)]
    second = [image(PIXELS + 50, (0, 0, 5.0 * k + offset), AcquisitionNumber=2) for k in range(6)]
    save(tmp_path, [*first, *second])
    groups = group_series(tmp_path)
    assert list(groups) == [f"{SERIES}/AcquisitionNumber=1", f"{SERIES}/AcquisitionNumber=2"]
    values = [np.unique(read_series(files).array - PIXELS).tolist() for files in groups.values()]
    assert values == [[0], [50]]
    with pytest.raises(InputError, match="2 acquisitions whose slices interleave"):
        read_series(tmp_path)


def test_one_pass_that_is_numbered_in_slabs_is_one_image(tmp_path: Path) -> None:
    save(tmp_path, [image(PIXELS + k, (0, 0, 3.0 * k), AcquisitionNumber=1 + k // 3) for k in range(9)])
    assert list(group_series(tmp_path)) == [SERIES]
    assert read_series(tmp_path).array.shape == (9, 4, 5)
