"""Volume: orientation of any affine, and units that cannot be mistaken."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ctmr.errors import InputError
from ctmr.imaging.volume import Direction, Modality, Unit, Volume, orientation_of

PAIRS = ("RL", "AP", "SI")
ORIENTATIONS = ["".join(letters) for order in itertools.permutations(PAIRS) for letters in itertools.product(*order)]
AXIS_OF = {letter: (row, 1.0 if k == 0 else -1.0) for row, pair in enumerate(PAIRS) for k, letter in enumerate(pair)}
VOXELS = np.zeros((2, 3, 4), dtype=np.int16)

spacings = st.tuples(*[st.floats(0.1, 10.0)] * 3)
# Away from axes that three patient axes could claim alike, the nearest letter is unambiguous.
small_rotations = st.tuples(*[st.floats(-1.0, 1.0)] * 3).map(lambda v: np.asarray(v) * np.radians(20) / np.sqrt(3))


def affine_to(letters, spacing=(1.0, 1.0, 1.0), rotation=(0.0, 0.0, 0.0), origin=(0.0, 0.0, 0.0)):
    """Columns point where the letters say, then the whole patient is rotated."""
    matrix = np.eye(4)
    matrix[:3, :3] = 0
    for axis, letter in enumerate(letters):
        row, sign = AXIS_OF[letter]
        matrix[row, axis] = sign * spacing[axis]
    matrix[:3, :3] = Rotation.from_rotvec(rotation).as_matrix() @ matrix[:3, :3]
    matrix[:3, 3] = origin
    return matrix


def volume(**changes):
    fields = {"array": VOXELS, "affine": np.eye(4), "modality": Modality.CT, "unit": Unit.HU, "subject": "s1"}
    return Volume(**{**fields, **changes})


def test_there_are_48_axis_orders():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("letters", ORIENTATIONS)
def test_every_axis_order_is_named_by_its_letters(letters):
    assert orientation_of(affine_to(letters, (3.0, 0.5, 1.0))) == letters


@given(st.sampled_from(ORIENTATIONS), spacings, small_rotations, st.tuples(*[st.floats(-500, 500)] * 3))
def test_a_tilted_gantry_or_another_spacing_or_origin_changes_no_letter(letters, spacing, rotation, origin):
    assert orientation_of(affine_to(letters, spacing, rotation, origin)) == letters


@given(st.integers(0, 2**31), spacings)
def test_any_rotation_names_each_patient_axis_once(seed, spacing):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(rng=np.random.default_rng(seed)).as_matrix() * spacing
    letters = orientation_of(matrix)
    assert letters in ORIENTATIONS


@given(st.integers(0, 2**31), st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_turning_the_array_around_turns_the_letters_alike(seed, order, flips):
    """Reordering and reversing array axes of any oblique volume does the same to its letters."""
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(rng=rng).as_matrix() * rng.uniform(0.5, 5, 3)
    opposite = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
    before = orientation_of(matrix)
    turned = matrix.copy()
    turned[:3, :3] = matrix[:3, order] * [-1 if f else 1 for f in flips]
    expected = "".join(opposite[before[a]] if f else before[a] for a, f in zip(order, flips, strict=True))
    assert orientation_of(turned) == expected


@given(st.sampled_from(ORIENTATIONS), spacings, small_rotations)
def test_spacing_is_read_from_the_affine_in_array_order(letters, spacing, rotation):
    assert volume(affine=affine_to(letters, spacing, rotation)).spacing_mm == pytest.approx(spacing)


def test_hounsfield_units_belong_to_ct():
    with pytest.raises(InputError, match=r"HU belongs to CT.*MR"):
        volume(modality=Modality.MR)


@pytest.mark.parametrize("unit", [Unit.GREY8, Unit.ARBITRARY])
def test_only_hounsfield_units_yield_hounsfield_units(unit):
    with pytest.raises(InputError, match=f"unit {unit}; Hounsfield units are needed"):
        volume(unit=unit).require_hu()


def test_a_ct_in_hounsfield_units_yields_them():
    assert volume().require_hu() is VOXELS


@pytest.mark.parametrize("ask", [lambda v: v.spacing_mm, lambda v: v.orientation, lambda v: v.require_affine()])
def test_a_picture_yields_no_millimetres(ask):
    picture = volume(array=VOXELS[:1], affine=None, unit=Unit.GREY8)
    with pytest.raises(InputError, match="picture without geometry"):
        ask(picture)


@pytest.mark.parametrize("shape", [(3, 4), (1, 2, 3, 4), (0, 4, 4)])
def test_a_volume_has_three_axes_with_voxels(shape):
    with pytest.raises(InputError, match="shape"):
        volume(array=np.zeros(shape))


@pytest.mark.parametrize(
    "affine", [np.eye(3), np.full((4, 4), np.nan), np.diag([1.0, 1.0, 0.0, 1.0]), np.diag([np.inf, 1, 1, 1])]
)
def test_an_impossible_affine_is_refused(affine):
    with pytest.raises(InputError, match="affine"):
        volume(affine=affine)


def test_an_affine_of_integers_becomes_float64():
    assert volume(affine=np.eye(4, dtype=int)).require_affine().dtype == np.float64


def test_other_voxels_keep_everything_else():
    moved = affine_to("RAS", origin=(1, 2, 3))
    other = volume(affine=moved, uid="1.2").with_array(VOXELS + 1)
    assert (other.uid, other.unit, other.subject) == ("1.2", Unit.HU, "s1")
    np.testing.assert_array_equal(other.require_affine(), moved)
    np.testing.assert_array_equal(other.array, VOXELS + 1)
    np.testing.assert_array_equal(other.with_array(VOXELS, np.eye(4)).require_affine(), np.eye(4))


@pytest.mark.parametrize(
    ("direction", "source", "target"),
    [(Direction.MR2CT, Modality.MR, Modality.CT), (Direction.CT2MR, Modality.CT, Modality.MR)],
)
def test_a_direction_knows_what_goes_in_and_what_comes_out(direction, source, target):
    assert (direction.source, direction.target) == (source, target)
