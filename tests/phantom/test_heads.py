"""The head phantom: deterministic, anatomically ordered, and one head in air."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from ctmr.phantom import PROPERTIES, PhantomHead, Tissue, make_head
from ctmr.phantom.acquisition import SpinEcho, spin_echo_signal

TINY = (24, 28, 24)
TINY_MM = 8.0
SMALL = (48, 56, 48)
SMALL_MM = 4.0


@pytest.fixture(scope="module")
def head() -> PhantomHead:
    """One subject at the default shape: thin layers need 2 mm to have voxels of their own."""
    return make_head(11, lesion=True)


@pytest.fixture(scope="module")
def small_heads() -> list[PhantomHead]:
    return [make_head(seed, shape=SMALL, spacing_mm=SMALL_MM) for seed in range(8)]


def median(volume: NDArray[np.generic], head: PhantomHead, tissue: Tissue) -> float:
    return float(np.median(volume[head.labels == tissue]))


def core_median(volume: NDArray[np.generic], head: PhantomHead, tissue: Tissue) -> float:
    """Median over voxels whose six neighbours are the same tissue: free of partial volume."""
    core = ndimage.binary_erosion(head.labels == tissue)
    assert core.sum() > 50
    return float(np.median(volume[core]))


def test_the_same_seed_makes_the_same_arrays() -> None:
    first, second = (make_head(5, shape=TINY, spacing_mm=TINY_MM) for _ in range(2))
    for name in ("ct", "t1", "t2", "labels", "head"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.lesion == second.lesion


def test_the_same_seed_at_another_spacing_is_the_same_person() -> None:
    coarse = make_head(5, shape=SMALL, spacing_mm=SMALL_MM).head
    fine = make_head(5, shape=(96, 112, 96), spacing_mm=2.0).head
    share_of_fine = fine.reshape(48, 2, 56, 2, 48, 2).mean((1, 3, 5))
    assert ((share_of_fine > 0.5) == coarse).mean() > 0.99


def test_subjects_differ_in_shape_and_size(small_heads: list[PhantomHead]) -> None:
    volumes = [int(subject.head.sum()) for subject in small_heads]
    assert len(set(volumes)) == len(volumes)
    assert max(volumes) / min(volumes) > 1.03
    assert not np.array_equal(small_heads[0].head, small_heads[1].head)


def test_arrays_have_the_documented_types_and_one_shape() -> None:
    subject = make_head(0, shape=TINY, spacing_mm=TINY_MM)
    types = {name: getattr(subject, name).dtype for name in ("ct", "t1", "t2", "labels", "head")}
    assert types == {"ct": np.int16, "t1": np.uint16, "t2": np.uint16, "labels": np.uint8, "head": np.bool_}
    assert {getattr(subject, name).shape for name in types} == {TINY}
    assert subject.spacing_mm == TINY_MM
    assert [field.name for field in fields(subject)] == [*types, "spacing_mm", "lesion"]


def test_ct_numbers_stay_within_twelve_bits(head: PhantomHead) -> None:
    assert head.ct.min() >= -1024
    assert head.ct.max() <= 3071


def test_ct_orders_air_fat_csf_white_grey_bone(head: PhantomHead) -> None:
    ordered = (Tissue.AIR, Tissue.FAT, Tissue.CSF, Tissue.WHITE_MATTER, Tissue.GREY_MATTER, Tissue.CORTICAL_BONE)
    hu = [core_median(head.ct, head, tissue) for tissue in ordered]
    assert hu == sorted(hu)
    assert hu[1] == pytest.approx(-90, abs=20)
    assert hu[2] == pytest.approx(8, abs=6)
    assert hu[3] == pytest.approx(28, abs=4)
    assert hu[4] == pytest.approx(36, abs=4)
    assert hu[5] > 1000


def test_t1_orders_bone_csf_grey_white_fat(head: PhantomHead) -> None:
    ordered = (Tissue.CORTICAL_BONE, Tissue.CSF, Tissue.GREY_MATTER, Tissue.WHITE_MATTER, Tissue.FAT)
    signal = [core_median(head.t1, head, tissue) for tissue in ordered]
    assert signal == sorted(signal)
    assert signal[3] / signal[2] > 1.25


def test_t2_orders_bone_white_grey_csf(head: PhantomHead) -> None:
    ordered = (Tissue.CORTICAL_BONE, Tissue.WHITE_MATTER, Tissue.GREY_MATTER, Tissue.CSF)
    signal = [core_median(head.t2, head, tissue) for tissue in ordered]
    assert signal == sorted(signal)
    assert signal[2] / signal[1] > 1.3


def test_compact_bone_is_dark_in_both_mr_weightings_although_thin(head: PhantomHead) -> None:
    for weighting in (head.t1, head.t2):
        bone = median(weighting, head, Tissue.CORTICAL_BONE)
        assert bone < 0.4 * median(weighting, head, Tissue.WHITE_MATTER)


def test_outside_is_air_with_the_noise_of_the_scanner(head: PhantomHead) -> None:
    # Three voxels off the skin the scanner's blur has ended.
    outside = head.ct[~ndimage.binary_dilation(head.head, iterations=3)]
    assert np.median(outside) == -1000
    # Rounding adds a little, an ear next to a corner nothing.
    assert 3.0 < outside.std() < 6.5


def test_the_head_is_one_piece_that_holds_all_tissue(small_heads: list[PhantomHead]) -> None:
    for subject in small_heads:
        assert ndimage.label(subject.head)[1] == 1
        assert not (subject.labels[~subject.head] != Tissue.AIR).any()
        assert not (ndimage.binary_erosion(subject.head) & (subject.labels == Tissue.AIR)).any()


def test_the_head_fits_in_the_field_of_view_except_for_the_neck(small_heads: list[PhantomHead]) -> None:
    for subject in small_heads:
        inside = subject.head
        for face in (inside[-1], inside[:, 0], inside[:, -1], inside[:, :, 0], inside[:, :, -1]):
            assert not face.any()
        assert inside[0].any()


def test_a_wanted_lesion_is_where_the_record_says(head: PhantomHead) -> None:
    assert head.lesion is not None
    tissue = Tissue.TUMOUR if head.lesion.kind == "tumour" else Tissue.HAEMORRHAGE
    centre = np.mean(np.argwhere(head.labels == tissue), axis=0) * head.spacing_mm
    assert np.linalg.norm(centre - head.lesion.centre_mm) < head.lesion.radius_mm
    assert 7 <= head.lesion.radius_mm <= 14


def test_an_unwanted_lesion_is_absent() -> None:
    subject = make_head(11, shape=TINY, spacing_mm=TINY_MM, lesion=False)
    assert subject.lesion is None
    assert not np.isin(subject.labels, (Tissue.TUMOUR, Tissue.OEDEMA, Tissue.HAEMORRHAGE)).any()


def test_a_lesion_leaves_the_rest_of_the_anatomy_alone() -> None:
    without, with_one = (make_head(3, shape=TINY, spacing_mm=TINY_MM, lesion=wanted) for wanted in (False, True))
    np.testing.assert_array_equal(without.head, with_one.head)
    np.testing.assert_array_equal(without.labels == Tissue.FAT, with_one.labels == Tissue.FAT)


def test_about_a_third_of_subjects_have_a_lesion() -> None:
    found = sum(make_head(seed, shape=TINY, spacing_mm=TINY_MM).lesion is not None for seed in range(16))
    # Binomial(16, 0.3): none, or more than 10, happens once in 200 cohorts.
    assert 1 <= found <= 10


@pytest.mark.parametrize(
    ("tr_ms", "te_ms", "expected"),
    [
        # By hand: 0.8 (1 - e^-0.5) e^-0.1 = 0.8 x 0.393469 x 0.904837
        (500, 10, 0.284821),
        # By hand: 0.8 (1 - e^-4) e^-1 = 0.8 x 0.981684 x 0.367879
        (4000, 100, 0.288913),
    ],
)
def test_the_spin_echo_signal_matches_the_hand_computed_value(tr_ms: float, te_ms: float, expected: float) -> None:
    signal = spin_echo_signal(0.8, t1_ms=1000, t2_ms=100, sequence=SpinEcho(tr_ms, te_ms))
    assert math.isclose(signal, expected, abs_tol=2e-6)


def test_every_tissue_has_physical_properties() -> None:
    assert set(PROPERTIES) == set(Tissue)
    for row in PROPERTIES.values():
        assert row.t2_ms <= row.t1_ms
        assert 0 <= row.proton_density <= 1


@pytest.mark.parametrize(
    ("arguments", "found", "allowed"),
    [
        ({"seed": -1}, "-1", "integers from 0"),
        ({"seed": 0, "shape": (24, 28)}, "(24, 28)", "three positive voxel counts"),
        ({"seed": 0, "shape": (24, 0, 24)}, "(24, 0, 24)", "three positive voxel counts"),
        ({"seed": 0, "spacing_mm": 0.0}, "0.0", "0.5 to 10.0"),
        ({"seed": 0, "spacing_mm": float("nan")}, "nan", "0.5 to 10.0"),
        ({"seed": 0, "shape": (24, 24, 24), "spacing_mm": 4.0}, "(96.0, 96.0, 96.0) mm", "at least (184.0, 216.0"),
    ],
)
def test_an_impossible_argument_is_refused_with_what_was_found_and_what_is_allowed(
    arguments: dict[str, object], found: str, allowed: str
) -> None:
    with pytest.raises(ValueError, match="allowed") as refusal:
        make_head(**arguments)  # type: ignore[arg-type]
    message = str(refusal.value)
    assert found in message
    assert allowed in message
    assert "\n" not in message
