"""Registration: known transforms are recovered, what no head can have done is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from ctmr.errors import EnvironmentFault, InputError
from ctmr.imaging.steps import ants
from ctmr.imaging.steps.base import Alignment, Transform
from ctmr.imaging.steps.registration import Engine, Registration, align, move, register, resolve_engine
from ctmr.imaging.volume import Interpolation, Modality, Unit, Volume
from ctmr.phantom import make_head
from ctmr.phantom.cohort import affine_of

SPACING_MM = 2.0
HALF_A_VOXEL_MM = SPACING_MM / 2
ROOM = (110, 130, 110)


@pytest.fixture(scope="module")
def head():
    return make_head(3)


def ct_of(head):
    return Volume(head.ct, affine_of(head.ct.shape, SPACING_MM), Modality.CT, Unit.HU, uid="ct")


def mr_of(head):
    return Volume(head.t1, affine_of(head.t1.shape, SPACING_MM), Modality.MR, Unit.ARBITRARY, sequence="T1", uid="mr")


def points_mm(head):
    """Places all over the head, homogeneous RAS mm."""
    index = np.argwhere(head.head)[::500]
    return np.c_[index, np.ones(len(index))] @ affine_of(head.ct.shape, SPACING_MM).T


def rigid(turn_deg, shift_mm):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
    matrix[:3, 3] = shift_mm
    return matrix


def carried(volume, matrix):
    """The image as a scanner would have taken it had the patient lain elsewhere: on straight voxels of its own."""
    room = Volume(np.zeros(ROOM, volume.array.dtype), affine_of(ROOM, SPACING_MM), volume.modality, volume.unit)
    return move(volume, Alignment(np.linalg.inv(matrix)), room)


def distances(found, truth, points):
    return np.linalg.norm((points @ (found - truth).T)[:, :3], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("turn, shift", [((9, -6, 8), (7, -9, 5)), ((-12, 4, -3), (-4, 6, 11))])
def test_a_rigid_transform_between_mr_and_ct_is_recovered_within_half_a_voxel(head, turn, shift):
    truth = rigid(turn, shift)
    moved = carried(mr_of(head), truth)
    found = align(moved, ct_of(head), transform=Transform.RIGID, engine=Engine.SIMPLEITK)
    assert distances(found.matrix, truth, points_mm(head)).max() < HALF_A_VOXEL_MM
    back = move(moved, found, ct_of(head)).array.astype(float)
    assert np.corrcoef(back[head.head], head.t1[head.head])[0, 1] > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("moving", [ct_of, mr_of])
def test_an_affine_transform_is_recovered_within_half_a_voxel(head, moving):
    truth = rigid((5, -4, 6), (4, -6, 3))
    truth[:3, :3] = truth[:3, :3] @ np.array([[1.06, 0.03, 0.0], [0.0, 0.95, 0.02], [0.0, 0.0, 1.04]])
    found = align(carried(moving(head), truth), ct_of(head), transform=Transform.AFFINE, engine=Engine.SIMPLEITK)
    assert distances(found.matrix, truth, points_mm(head)).mean() < HALF_A_VOXEL_MM


@pytest.mark.slow
def test_a_smooth_deformation_is_recovered_within_half_a_voxel(head):
    affine = affine_of(head.t1.shape, SPACING_MM)
    at = np.stack(np.meshgrid(*map(np.arange, head.t1.shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]

    def bent(mm):
        wave = 2 * np.pi / 160
        return 5 * np.sin(wave * np.stack([mm[..., 1], mm[..., 2] + 25, mm[..., 0] + 50], -1))

    source = at.copy()
    for _ in range(30):
        source = at - bent(source)
    to_index = np.linalg.inv(affine)
    index = np.moveaxis(source @ to_index[:3, :3].T + to_index[:3, 3], -1, 0)
    array = map_coordinates(head.t1.astype(np.float32), index, order=1, mode="nearest").astype(np.uint16)
    found = align(mr_of(head).with_array(array), mr_of(head), transform=Transform.DEFORMABLE, engine=Engine.SIMPLEITK)
    where = at @ found.matrix[:3, :3].T + found.matrix[:3, 3] + found.displacement_mm
    error = np.linalg.norm(where - at - bent(at), axis=-1)[head.head]
    linear = np.linalg.norm(at @ found.matrix[:3, :3].T + found.matrix[:3, 3] - at - bent(at), axis=-1)[head.head]
    assert error.mean() < HALF_A_VOXEL_MM < linear.mean()
    again = move(mr_of(head).with_array(array), found, mr_of(head)).array.astype(float)
    assert np.corrcoef(again[head.head], head.t1[head.head])[0, 1] > 0.9


@pytest.mark.slow
def test_equal_images_give_equal_transforms_twice(head):
    moved = carried(mr_of(head), rigid((4, 0, 0), (3, 0, 0)))
    first, second = (register(moved, ct_of(head), Registration(modality=Modality.MR)) for _ in range(2))
    assert np.array_equal(first.matrix, second.matrix)


def test_moving_by_a_known_shift_moves_voxels_exactly(head):
    shift = np.eye(4)
    shift[:3, 3] = [2 * SPACING_MM, 0.0, 0.0]
    volume = ct_of(head)
    for how in Interpolation:
        moved = move(volume, Alignment(shift), volume, interpolation=how).array
        # Column 0 lies at the patient's right end of the affine, so a shift in R takes from columns before.
        assert np.array_equal(moved[..., 2:], volume.array[..., :-2])
        assert (moved[..., :2] == -1024).all()


def test_a_displacement_field_moves_as_the_same_matrix_does(head):
    volume, shift = ct_of(head), np.eye(4)
    shift[:3, 3] = [3.0, -5.0, 1.0]
    field = np.broadcast_to(np.float32([3.0, -5.0, 1.0]), (*volume.array.shape, 3))
    by_matrix = move(volume, Alignment(shift), volume).array
    by_field = move(volume, Alignment(np.eye(4), field), volume).array
    assert np.abs(by_matrix[4:-4, 4:-4, 4:-4].astype(int) - by_field[4:-4, 4:-4, 4:-4]).max() <= 1


def test_an_image_without_a_head_is_refused(head):
    empty = mr_of(head).with_array(np.zeros_like(head.t1))
    with pytest.raises(InputError, match="shows no head, so it cannot be registered"):
        align(empty, ct_of(head), transform=Transform.RIGID)


def test_a_result_that_no_head_could_have_is_refused(head, monkeypatch):
    monkeypatch.setattr(
        "ctmr.imaging.steps.registration._by_simple_itk", lambda *_: Alignment(np.diag([2.0, 1.0, 1.0, 1.0]))
    )
    with pytest.raises(InputError, match=r"scales of 1\.00 to 2\.00"):
        align(mr_of(head), ct_of(head), transform=Transform.AFFINE, engine=Engine.SIMPLEITK)


@pytest.mark.parametrize("installed", [False, True])
def test_ants_is_taken_where_it_is_installed(monkeypatch, installed):
    monkeypatch.setattr(ants, "installed", lambda: installed)
    assert resolve_engine(Engine.AUTO) is (Engine.ANTS if installed else Engine.SIMPLEITK)


def test_ants_is_asked_for_by_name_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(ants, "installed", lambda: False)
    with pytest.raises(EnvironmentFault, match="pip install antspyx"):
        ants.register(None, None, Transform.RIGID)


@pytest.mark.slow
def test_ants_recovers_a_rigid_transform_within_half_a_voxel(head):
    if not ants.installed():
        pytest.skip("antspyx, an optional extra, is not installed (pip install antspyx)")
    truth = rigid((9, -6, 8), (7, -9, 5))
    found = align(carried(mr_of(head), truth), ct_of(head), transform=Transform.RIGID, engine=Engine.ANTS)
    assert distances(found.matrix, truth, points_mm(head)).mean() < HALF_A_VOXEL_MM
