"""What tuning minimises, against errors that are worked out here: paired in HU and grey levels, unpaired from parts."""

import numpy as np
import pytest
import torch

from ctmr.data.manifest import Split
from ctmr.data.shards import Shard, ShardVolume, write_shard
from ctmr.errors import InputError
from ctmr.imaging.grid import Plane, volume_grid
from ctmr.imaging.volume import Direction, Modality, Unit
from ctmr.metrics.distribution import polynomial_mmd2
from ctmr.metrics.extractors import features, load_extractor
from ctmr.metrics.measurement import measure_structure
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe
from ctmr.training.setup import describe
from ctmr.tuning.evidence import TrialEvidence
from ctmr.tuning.objective import Scorer
from ctmr.tuning.trial import Reported

SIZE, SHOWN = 32, 5
MR, CT = Modality.MR, Modality.CT
RECIPE = override(Recipe(), [("preprocess.size", [SIZE, SIZE])])
CT2MR = override(RECIPE, [("direction", "ct2mr")])
Y, X = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
HEAD = X**2 + Y**2 < 13**2


def images(modality, unit, count):
    """``count`` discs of unlike size with a bright spot, one slice each, in the unit's values."""
    rng = np.random.default_rng(count + (modality is CT))
    low, tissue, bright = {Unit.HU: (-1000, 40, 900), Unit.ARBITRARY: (5, 700, 1500), Unit.GREY8: (2, 90, 240)}[unit]
    out = []
    for k in range(count):
        shown = np.where((9 + k % 4) ** 2 > X**2 + Y**2, tissue, low) + rng.normal(0, 8, HEAD.shape)
        out.append(np.where((X - 3) ** 2 + (Y + k - 2) ** 2 < 6, bright, shown))
    ends = {Unit.HU: (-1024, 3000), Unit.ARBITRARY: (0, 4000), Unit.GREY8: (0, 255)}[unit]
    return np.stack(out)[:, None].round().clip(*ends)


@pytest.fixture
def prepared(tmp_path):
    """Write shards whose validation subjects are in both modalities, or in one each, and one of the way back."""

    def make(mr, ct, *, paired, count=SHOWN):
        stored = {Unit.HU: np.int16, Unit.ARBITRARY: np.uint16, Unit.GREY8: np.uint8}
        for modality, unit in ((MR, mr), (CT, ct)):
            for split in (Split.TRAIN, Split.VAL):
                name = "both" if paired and split is Split.VAL else f"{split}{modality}"
                volumes = tuple(
                    ShardVolume(f"{split}{modality}{k}", f"{name}{k}", "", k, 1, ("x",), ("",)) for k in range(count)
                )
                slices = images(modality, unit, count).astype(stored[unit])
                heads = np.broadcast_to(HEAD, (count, SIZE, SIZE))
                write_shard(tmp_path / "shards", split, Shard(slices, heads, volumes, unit, modality))
        (tmp_path / "grid.json").write_text(volume_grid(Plane.AXIAL, (SIZE, SIZE), (1.0, 1.0)).model_dump_json())
        return tmp_path

    return make


def scorer(folder, recipe=RECIPE):
    return Scorer.make(folder / "shards", recipe, describe(folder, recipe))


def linear(weight, bias):
    """A generator: normalised value times `weight` plus `bias`."""
    layer = torch.nn.Conv2d(1, 1, 1)
    torch.nn.init.constant_(layer.weight, weight)
    torch.nn.init.constant_(layer.bias, bias)
    return layer.eval().requires_grad_(False)


SAME, GREY = linear(1.0, 0.0), linear(0.0, 0.0)


def test_pairs_in_hu_are_scored_by_their_mean_error_in_the_head(prepared):
    made = scorer(prepared(Unit.ARBITRARY, Unit.HU, paired=True))
    assert made.name == "validation MAE (HU, paired, in the head)"
    # 0 is the middle of the window from -1024 to 2000 HU.
    truth = images(CT, Unit.HU, SHOWN)[:, 0]
    expected = np.mean([np.abs(488.0 - t)[HEAD].mean() for t in truth])
    assert made(GREY, SAME) == pytest.approx(expected, rel=1e-5)


def test_pairs_of_pictures_are_scored_by_their_mean_error_in_the_head(prepared):
    made = scorer(prepared(Unit.GREY8, Unit.GREY8, paired=True))
    assert made.name == "validation MAE (grey levels, paired, in the head)"
    truth = images(CT, Unit.GREY8, SHOWN)[:, 0]
    errors = [np.abs(127.5 - t)[HEAD].mean() for t in truth]
    assert made(GREY, SAME) == pytest.approx(np.mean(errors), rel=1e-5)
    assert made(GREY, SAME, 2) == pytest.approx(np.mean([errors[0], errors[-1]]), rel=1e-5)
    source = images(MR, Unit.GREY8, SHOWN)[:, 0]
    assert made(SAME, GREY) == pytest.approx(np.abs(source - truth)[:, HEAD].mean(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mr", "ct", "paired", "recipe"),
    [
        (Unit.GREY8, Unit.GREY8, False, RECIPE),
        (Unit.ARBITRARY, Unit.HU, False, RECIPE),
        (Unit.ARBITRARY, Unit.HU, True, CT2MR),
    ],
)
def test_without_pairs_in_a_unit_the_score_is_distance_structure_and_cycle(prepared, mr, ct, paired, recipe):
    """MR in arbitrary units has no unit to err in, paired or not."""
    made = scorer(prepared(mr, ct, paired=paired), recipe)
    assert made.name == "validation 10·KID + (1 - NMI) + (1 - cycle SSIM), unpaired"
    direction = recipe.direction
    source = images(direction.source, mr if direction is Direction.MR2CT else ct, SHOWN)[:, 0]
    real = images(direction.target, ct if direction is Direction.MR2CT else mr, SHOWN)[:, 0]
    low, high = made.description.sides[direction.target].target_range

    def seen(values):
        return features(((values - low) / (high - low)).clip(0, 1).astype(np.float32), load_extractor())

    whole = made(SAME, SAME)
    # The identity keeps all structure of its input and closes its cycle; only the distance is left.
    if mr is Unit.GREY8:
        assert whole == pytest.approx(10 * polynomial_mmd2(seen(real), seen(source)), abs=5e-3)
    # A way back that restores nothing costs 1 - SSIM and nothing else.
    broken = made(SAME, GREY)
    assert 0.3 < broken - whole < 1.2
    # A translation that is one grey has no structure, and no way back.
    middle = np.full_like(real, (low + high) / 2)
    nothing = made(GREY, SAME)
    assert measure_structure(source[0], middle[0], HEAD, case="c", subject="s").values["nmi"] == 0
    assert nothing == pytest.approx(10 * polynomial_mmd2(seen(real), seen(middle)) + 1 + broken - whole, abs=1e-3)


@pytest.mark.slow
def test_fewer_cases_are_looked_at_when_told(prepared, monkeypatch):
    made, looked = scorer(prepared(Unit.GREY8, Unit.GREY8, paired=False)), []
    real = type(made.source).volume
    monkeypatch.setattr(type(made.source), "volume", lambda self, k: looked.append(k) or real(self, k))
    made(SAME, SAME, 3)
    assert sorted(looked) == sorted([0, 2, 4] * 2)
    looked.clear()
    made(SAME, SAME, 3)
    assert sorted(looked) == [0, 2, 4]
    looked.clear()
    made(SAME, SAME)
    assert len(looked) == 2 * SHOWN


def test_a_distance_of_distributions_of_one_image_is_refused(prepared):
    folder = prepared(Unit.GREY8, Unit.GREY8, paired=False, count=1)
    with pytest.raises(InputError, match=r"the validation split has 1 (MR|CT) image.*raise data.val_fraction"):
        scorer(folder)


@pytest.mark.parametrize("paired", [True, False])
def test_pictures_show_what_a_trial_makes_of_validation_images(prepared, paired):
    made = scorer(prepared(Unit.GREY8, Unit.GREY8, paired=paired))
    pictures = made.pictures(linear(-1.0, 0.0), linear(0.0, 1.0), 3)
    truth = ("true CT",) if paired else ()
    assert pictures.columns == ("MR", "synthetic CT", *truth, "MR again")
    assert pictures.images.shape == (3, len(pictures.columns), SIZE, SIZE) and pictures.images.dtype == np.uint8
    source, target = (images(m, Unit.GREY8, SHOWN)[[0, 2, 4], 0] for m in (MR, CT))
    np.testing.assert_allclose(pictures.images[:, 0], source, atol=1)
    np.testing.assert_allclose(pictures.images[:, 1], 255 - source, atol=1)
    if paired:
        np.testing.assert_allclose(pictures.images[:, 2], target, atol=1)
    assert (pictures.images[:, -1] == 255).all()


def test_what_a_trial_leaves_is_read_back_as_it_was(prepared):
    pictures = scorer(prepared(Unit.GREY8, Unit.GREY8, paired=True)).pictures(SAME, SAME, 2)
    evidence = TrialEvidence()
    evidence.add(Reported(5, 1.0, {2: {"cycle_ct": 0.1 + 0.2}, 4: {"cycle_ct": float("inf")}}, pictures))
    evidence.add(Reported(10, 1.0, {8: {"cycle_ct": 1 / 3}}))
    found = TrialEvidence.of(evidence.files())
    assert (found.losses, found.step) == (evidence.losses, 5) and set(found.losses) == {2, 4, 8}
    assert found.pictures.columns == pictures.columns
    assert (found.pictures.images == pictures.images).all()
    assert TrialEvidence.of({}) == TrialEvidence() == TrialEvidence.of(TrialEvidence().files())
