"""The door of a served model: images come in on their own voxels, and what is none is refused in one sentence."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ctmr.errors import InputError
from ctmr.imaging.calibration import Calibration
from ctmr.imaging.grid import Plane, picture_grid, volume_grid
from ctmr.imaging.inference_path import finish, prepare
from ctmr.imaging.origin import PHANTOMS_ONLY
from ctmr.imaging.volume import Direction, Modality, Unit, Volume
from ctmr.phantom import make_head
from ctmr.phantom.cohort import affine_of
from ctmr.serving.door import receive
from ctmr.serving.export import ServedModality, ServedSpec, ServedUncertainty

SHAPE, SPACING_MM = (24, 28, 24), 8.0
AFFINE = affine_of(SHAPE, SPACING_MM)
HEAD = make_head(3, shape=SHAPE, spacing_mm=SPACING_MM)
GRID = volume_grid(Plane.AXIAL, (40, 40), (6.0, 6.0))
MR_SIDE = ServedModality(modality=Modality.MR, unit=Unit.ARBITRARY)
CT_SIDE = ServedModality(modality=Modality.CT, unit=Unit.HU)


def spec(direction: Direction = Direction.MR2CT, **more: object) -> ServedSpec:
    source, target = (MR_SIDE, CT_SIDE) if direction is Direction.MR2CT else (CT_SIDE, MR_SIDE)
    tree = {"direction": direction, "source": source, "target": target, "grid": GRID, "max_voxels": 400_000}
    return ServedSpec(**{**tree, "generator_sha256": "ab" * 32, "range_sha256": "cd" * 32, **more})


MR2CT, CT2MR = spec(), spec(Direction.CT2MR)


def test_an_image_comes_onto_the_grid_and_back_as_evaluate_brings_it():
    volume = Volume(HEAD.t1, AFFINE, Modality.MR, Unit.ARBITRARY)
    wanted, placement = prepare([volume], GRID)
    for sent in (HEAD.t1.astype(np.int16), HEAD.t1.astype(np.float32)):
        got = receive(MR2CT, sent, affine=AFFINE)
        assert np.array_equal(got.array, wanted) and got.array.dtype == np.uint16
        made = np.full(wanted.shape[1:], 40, np.int16)
        back = finish(made, placement, modality=Modality.CT, unit=Unit.HU).array
        assert np.array_equal(got.answer(made), back) and back.shape == SHAPE


def test_a_spacing_alone_means_axial_slices_of_a_head_that_lies_face_up_and_is_said():
    axial = np.array([[0, 0, -8.0, 0], [0, -8.0, 0, 0], [8.0, 0, 0, 0], [0, 0, 0, 1]])
    by_spacing = receive(MR2CT, HEAD.t1.astype(np.int16), spacing=np.array([8.0, 8.0, 8.0]))
    by_affine = receive(MR2CT, HEAD.t1.astype(np.int16), affine=axial)
    assert np.array_equal(by_spacing.array, by_affine.array)
    assert "only a spacing was given" in " ".join(by_spacing.findings) and "only" not in " ".join(by_affine.findings)


CT = HEAD.ct.astype(np.int16)
CORMACK = np.where(CT <= -100, CT + 1000, np.where(CT <= 100, CT * 11 + 2000, CT + 3000)).clip(0)
EIGHT_BIT = ((CT.clip(-200, 300) + 200) / 500 * 255).astype(np.int16)
MR = HEAD.t1.astype(np.int16)
NAN, INF = MR.astype(np.float32), MR.astype(np.float32)
NAN[3, 3, 3], INF[0, 0, 0] = np.nan, -np.inf
MM = {"affine": AFFINE}


def scaled(factor: float) -> dict[str, np.ndarray]:
    return {"affine": AFFINE @ np.diag([factor, factor, factor, 1])}


@pytest.mark.parametrize(
    ("served", "image", "more", "words"),
    [
        (MR2CT, NAN, MM, "1 values that are NaN or infinite"),
        (MR2CT, INF, MM, "1 values that are NaN or infinite"),
        (MR2CT, np.full(SHAPE, 7, np.int16), MM, "is 7 everywhere; an image is needed"),
        (MR2CT, MR[:0], MM, "is empty; at least one slice"),
        (MR2CT, np.zeros((1, 70_000, 4), np.int16), MM, "longer than 4096 voxels along an axis"),
        (MR2CT, np.zeros((100, 100, 100), np.int16), MM, "1000000 voxels, at most 400000"),
        (MR2CT, np.stack([MR, MR]), MM, r"takes 1 channels, \[D, H, W\]"),
        (MR2CT, MR[0], MM, r"has shape \[28, 24\]; this model takes 1 channels"),
        (MR2CT, CT, MM, "was taken for MR, but .* near -1000 .* send the MR"),
        (MR2CT, MR, {}, "has no geometry, or two; give either 'affine'"),
        (MR2CT, MR, {**MM, "spacing": np.ones(3)}, "has no geometry, or two"),
        (MR2CT, MR, {"spacing": np.ones(2)}, r"the spacing has shape \[2\]; it is 3 numbers"),
        (MR2CT, MR, {"spacing": np.array([8, np.nan, 8])}, "no finite 4×4 affine"),
        (MR2CT, MR, {"spacing": np.array([8, -8, 0])}, "8 × 8 × 0 mm apart"),
        (MR2CT, MR, {"affine": np.full((4, 4), np.inf)}, "no finite 4×4 affine"),
        (MR2CT, MR, {"affine": AFFINE.T}, "last row 0 0 0 1"),
        (MR2CT, MR, scaled(0.001), "use mm"),
        (MR2CT, MR, scaled(1000), "use mm"),
        (MR2CT, MR, {"affine": AFFINE[:, [0, 0, 2, 3]]}, "collapses an axis"),
        (MR2CT, MR, {"affine": AFFINE + np.array([[0, 5, 0, 0], [5, 0, 0, 0], [0] * 4, [0] * 4])}, "is sheared"),
        (MR2CT, np.resize(MR, (500, 24, 24)), {"affine": np.diag([50.0, 6, 6, 1])}, "of the model's grid, more than"),
        (MR2CT, MR, {**MM, "source": b"\xff"}, "'source' is no JSON"),
        (MR2CT, MR, {**MM, "source": b"[" * 100_000}, "'source' is no JSON"),
        (MR2CT, MR, {**MM, "source": b"[1]"}, "'source' is a JSON object with the keys modality"),
        (MR2CT, MR, {**MM, "source": b'{"patient": "x"}'}, "'source' is a JSON object with the keys modality"),
        (MR2CT, MR, {**MM, "source": b'{"modality": "CT"}'}, "says modality 'CT'; this model takes MR in arbitrary"),
        (CT2MR, MR, {**MM, "source": b'{"modality": "MR"}'}, "says modality 'MR'; this model takes CT in HU"),
        (CT2MR, EIGHT_BIT, MM, "holds 0 to 255, .* looks like an 8-bit picture"),
        (CT2MR, CORMACK.astype(np.int16), MM, "looks like stored values without rescale, or Cormack units"),
        (CT2MR, CT + np.int16(1024), MM, "stored values without rescale, or Cormack"),
        (CT2MR, CT.astype(np.float32) * 40, MM, "no Hounsfield units of a head"),
    ],
)
def test_what_cannot_be_translated_is_refused_in_one_sentence(served, image, more, words):
    with pytest.raises(InputError, match=words) as caught:
        receive(served, image, **more)
    assert not [noise for noise in ("\n", "/", "Traceback") if noise in str(caught.value).replace("(4×4", "")]


@given(
    arrays.arrays(
        st.sampled_from([np.int16, np.float32]),
        arrays.array_shapes(min_dims=3, max_dims=4, min_side=0, max_side=6),
    ),
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=16, max_size=16),
    st.binary(max_size=20),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_sent_is_answered_or_refused_and_nothing_else_happens(image, numbers, source):
    for served in (MR2CT, CT2MR):
        for more in ({"affine": np.array(numbers).reshape(4, 4)}, {"spacing": np.array(numbers[:3])}, MM):
            try:
                got = receive(served, image, **more, source=source)
            except InputError:
                continue
            assert got.array.ndim == 4 and got.array.shape[2:] == GRID.size


def test_oddities_are_findings():
    cut = HEAD.t1.astype(np.int16)[:, 10:, :]
    few = (HEAD.t1 // 100 * 100).astype(np.int16)
    hot = CT.copy()
    hot[12, 14, 12] = 20_000
    padded = CT.copy()
    padded[:, :3] = padded[:, -3:] = -3024
    narrow = spec(grid=volume_grid(Plane.AXIAL, (16, 20), (6.0, 6.0)))
    warned = spec(lineage={"warning": PHANTOMS_ONLY})
    for served, image, words in (
        (MR2CT, few, "grey levels; send the values that the scanner stored"),
        (narrow, HEAD.t1.astype(np.int16), "of the head lies outside the model's slices"),
        (CT2MR, hot, "holds -1.* to 20000 HU; a patient has -2048 to 4096"),
        (CT2MR, padded, "which nothing has: padding, which became -1024"),
        (warned, cut, PHANTOMS_ONLY),
    ):
        findings = " | ".join(receive(served, image, affine=AFFINE).findings)
        assert re.search(words, findings), findings
    quiet = receive(warned, cut, affine=AFFINE, source=json.dumps({"phantom": True}).encode())
    assert PHANTOMS_ONLY not in " ".join(quiet.findings)
    assert receive(MR2CT, HEAD.t1.astype(np.int16), affine=AFFINE).findings == ()


def test_pictures_need_no_geometry_and_take_none():
    side = ServedModality(modality=Modality.MR, unit=Unit.GREY8), ServedModality(modality=Modality.CT, unit=Unit.GREY8)
    served = spec(source=side[0], target=side[1], grid=picture_grid((32, 32)))
    picture = np.arange(40 * 50, dtype=np.int64).reshape(1, 40, 50).astype(np.uint8)
    assert receive(served, picture).answer(np.zeros((1, 32, 32), np.uint8)).shape == (1, 40, 50)
    with pytest.raises(InputError, match="pictures, which have no geometry"):
        receive(served, picture, spacing=np.ones(3))


KNOWN = Calibration(
    unit=Unit.HU, cases=6, images=4, rank_correlation=0.8, left_out_error=9, figures=(10, 20, 40), errors=(50, 80, 200)
)


@pytest.mark.parametrize(
    ("figure", "expected", "finding", "refused"),
    [
        (5, 50, False, False),
        (20, 80, False, False),
        (30, 140, True, False),
        (40, 200, True, False),
        (80, 400, True, True),
    ],
)
def test_a_figure_is_judged_by_its_expected_error(figure, expected, finding, refused):
    served = spec(uncertainty=ServedUncertainty(calibration=KNOWN, flag_above=100, refuse_above=300))
    got = receive(served, MR, affine=AFFINE)
    if refused:
        with pytest.raises(InputError, match=r"expected mean error inside the head is 400 HU, and nothing is answered"):
            got.judge(figure)
        return
    tree, told = got.judge(figure)
    assert tree["expected_error"] == expected and tree["calibrated"] and bool(told) is finding


def test_without_calibration_the_figure_is_given_and_nothing_is_refused():
    served = spec(uncertainty=ServedUncertainty(flag_above=1, refuse_above=2))
    tree, told = receive(served, MR, affine=AFFINE).judge(1e6)
    assert (tree["figure"], tree["calibrated"], tree["expected_error"], told) == (1e6, False, None, ())
    assert not served.uncertainty.limited


def test_the_figure_of_some_slices_is_that_of_the_whole_map():
    got = receive(MR2CT, MR, affine=AFFINE)
    rng = np.random.default_rng(0)
    made, mirrored = rng.normal(0, 50, (2, *got.array.shape[1:])).astype(np.float32)
    whole, figure = got.doubt(made, mirrored)
    _, by_some = got.doubt(made[got.levels], mirrored[got.levels], got.levels)
    by_hand = (np.abs(made - mirrored) / 2)[got.levels][got.head[got.levels]].mean()
    assert figure == pytest.approx(by_some) == pytest.approx(by_hand, rel=1e-5)
    native = got.native_doubt(whole)
    assert native.shape == SHAPE and native.dtype == np.float32 and np.isfinite(native).all()
