"""Enhanced multi-frame files: geometry, values and traits from the functional groups of each frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import add_group, enhanced, image, save, stream
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ctmr.errors import InputError
from ctmr.imaging.volume import Direction, Modality, Unit, Volume
from ctmr.io.dicom import SyntheticProvenance, group_series, read_header, read_series, write_synthetic_series

FRAMES = np.random.default_rng(5).integers(0, 1000, (5, 4, 3)).astype(np.uint16)
PLACES = [(0.0, 0.0, 2.5 * k) for k in range(5)]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), modality=st.sampled_from(["MR", "CT"]))
def test_the_affine_follows_the_standards_equation_for_every_frame(seed: int, modality: str) -> None:
    rng = np.random.default_rng(seed)
    across, down, normal = Rotation.random(rng=rng).as_matrix()
    origin, spacing, step = rng.uniform(-200, 200, 3), rng.uniform(0.3, 3, 2), rng.uniform(0.5, 5)
    order = rng.permutation(5)
    places = [origin + k * step * normal for k in order]
    cosines = [f"{x:.14f}"[:16] for x in (*across, *down)]
    dataset = enhanced(FRAMES, places, Modality=modality, orientation=cosines, spacing=[f"{x:.12f}" for x in spacing])
    volume = read_series([stream(dataset)])
    assert volume.unit is (Unit.HU if modality == "CT" else Unit.ARBITRARY)
    for frame, place in zip(FRAMES, places, strict=True):
        d = round((place - origin) @ normal / step)
        np.testing.assert_array_equal(volume.array[d], frame)
        for row, column in ((0, 0), (3, 1), (2, 2)):
            lps = place + column * spacing[1] * across + row * spacing[0] * down
            np.testing.assert_allclose(volume.affine @ [d, row, column, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-3)


def test_each_frame_is_rescaled_by_its_own_numbers() -> None:
    transforms = [(1.0, -1024.0), (2.0, 0.0), (0.5, 3.0), (1.0, 0.0), (3.0, -7.0)]
    found = read_series([stream(enhanced(FRAMES, PLACES, transforms=transforms))]).array
    truth = FRAMES * np.array([t[0] for t in transforms])[:, None, None]
    np.testing.assert_allclose(found, truth + np.array([t[1] for t in transforms])[:, None, None], rtol=1e-6)


def test_a_tilted_enhanced_file_is_straightened() -> None:
    places = [(0.0, 0.75 * k, 2.5 * k) for k in range(5)]
    volume = read_series([stream(enhanced(FRAMES, places, Modality="CT"))])
    assert "gantry tilt of 16.7°" in volume.notes[0]
    np.testing.assert_array_equal(volume.array[2, 1:5], FRAMES[2])


def own(sequence: str, keyword: str, values: list[Any]) -> list[dict[str, dict[str, Any]]]:
    return [{sequence: {keyword: v}} for v in values]


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        (own("MREchoSequence", "EffectiveEchoTime", [10, 80] * 5), "multi-echo: 2 images of each place (EchoTime=10; "),
        (own("MRDiffusionSequence", "DiffusionBValue", [0, 1000] * 5), "2 images of each place (DiffusionBValue=0; "),
        (own("FrameContentSequence", "TemporalPositionIndex", [1, 2] * 5), "(TemporalPositionIdentifier=1; "),
        (own("MRImageFrameTypeSequence", "FrameType", [["ORIGINAL", "M"], ["ORIGINAL", "P"]] * 5), "ImageType=ORIG"),
        ([{}] * 10, "duplicates: "),
    ],
)
def test_several_images_in_one_file_are_refused_by_what_tells_them_apart(
    groups: list[dict[str, dict[str, Any]]], reason: str
) -> None:
    places = [p for p in PLACES for _ in range(2)]
    with pytest.raises(InputError) as caught:
        read_series([stream(enhanced(np.repeat(FRAMES, 2, axis=0), places, own=groups))])
    assert reason in str(caught.value)


def test_volumes_in_files_of_their_own_are_sorted_apart(tmp_path: Path) -> None:
    moments = [
        enhanced(FRAMES + k, PLACES, own=own("FrameContentSequence", "TemporalPositionIndex", [k] * 5))
        for k in (1, 2, 3)
    ]
    paths = save(tmp_path, moments)
    groups = group_series(tmp_path)
    names = [key.partition("/")[2] for key in groups]
    assert names == [f"TemporalPositionIdentifier={k}" for k in (1, 2, 3)]
    assert list(groups.values()) == [[p] for p in paths]
    for k, files in enumerate(groups.values(), start=1):
        np.testing.assert_array_equal(read_series(files).array, FRAMES + k)


def test_frames_of_several_files_stack(tmp_path: Path) -> None:
    save(tmp_path, [enhanced(FRAMES[:2], PLACES[:2]), enhanced(FRAMES[2:], PLACES[2:])])
    save(tmp_path, [image(FRAMES[0], (0, 0, 12.5), Modality="MR")], prefix="single")
    np.testing.assert_array_equal(read_series(tmp_path).array, [*FRAMES, FRAMES[0]])


def test_the_sequence_is_guessed_from_the_first_frames_parameters() -> None:
    dataset = enhanced(FRAMES, PLACES, EchoPulseSequence="SPIN")
    shared = dataset.SharedFunctionalGroupsSequence[0]
    add_group(shared, "MRTimingAndRelatedParametersSequence", RepetitionTime=9000.0)
    add_group(shared, "MREchoSequence", EffectiveEchoTime=110.0)
    assert read_series([stream(dataset)]).sequence == "T2"
    add_group(shared, "MRModifierSequence", InversionRecovery="YES", InversionTimes=2500.0)
    assert read_series([stream(dataset)]).sequence == "FLAIR"


def spoil_position(dataset: pydicom.Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence


def spoil_count(dataset: pydicom.Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[4]


def spoil_groups(dataset: pydicom.Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence


def localizer(dataset: pydicom.Dataset) -> None:
    add_group(
        dataset.SharedFunctionalGroupsSequence[0], "CTImageFrameTypeSequence", FrameType=["ORIGINAL", "X", "LOCALIZER"]
    )


def arbitrary_units(dataset: pydicom.Dataset) -> None:
    dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0].RescaleType = "PVAL"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (spoil_position, "frame 4 has no usable ImagePositionPatient"),
        (spoil_count, "5 frames, but functional groups of 4"),
        (spoil_groups, "holds 5 frames without functional groups, so their positions are unknown"),
        (localizer, "is a localizer"),
        (arbitrary_units, "RescaleType 'PVAL'; Hounsfield units (HU) are needed"),
        (lambda d: setattr(d, "PixelData", d.PixelData[:-8]), "damaged pixel data"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(change: Callable[[pydicom.Dataset], None], reason: str) -> None:
    dataset = enhanced(FRAMES, PLACES, Modality="CT")
    change(dataset)
    with pytest.raises(InputError) as caught:
        read_series([stream(dataset)])
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_translation_of_an_enhanced_series_refers_to_its_frames(tmp_path: Path) -> None:
    (path,) = save(tmp_path / "source", [enhanced(FRAMES, PLACES)])
    volume = read_series(tmp_path / "source")
    made = Volume(volume.array.astype(np.int16), volume.affine, Modality.CT, Unit.HU)
    provenance = SyntheticProvenance("m", "1", "0" * 64, "r", "v", "d", "c", Direction.MR2CT)
    files = write_synthetic_series(tmp_path / "made", made, tmp_path / "source", provenance)
    source = read_header(path)
    for k, file in enumerate(files, start=1):
        (reference,) = read_header(file).SourceImageSequence
        assert (reference.ReferencedSOPInstanceUID, reference.ReferencedFrameNumber) == (source.SOPInstanceUID, k)
