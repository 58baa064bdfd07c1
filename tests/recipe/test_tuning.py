"""Search spaces: everything that a training has can be searched, and what cannot be is refused before anything runs."""

import pytest

from ctmr.errors import InputError
from ctmr.recipe.loading import parse
from ctmr.recipe.recipe import Recipe
from ctmr.recipe.tuning import Choice, Integers, LogUniform, Pruner, Sampler, Uniform


def refusal(space, **tune):
    with pytest.raises(InputError) as caught:
        parse({"tune": {"space": space, **tune}})
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_tpe_and_hyperband_are_the_default():
    tune = Recipe().tune
    assert (tune.sampler, tune.pruner, tune.reduction) == (Sampler.TPE, Pruner.HYPERBAND, 3)


def test_rates_weights_ratio_generator_depth_pool_and_augmentation_can_be_searched():
    space = {
        "train.lr_generator": {"kind": "log_uniform", "low": 1e-4, "high": 1e-3},
        "loss.cycle_mr": {"kind": "uniform", "low": 1, "high": 10},
        "loss.identity": {"kind": "uniform", "low": 0, "high": 1},
        "loss.cycle_terms.ssim": {"kind": "choice", "values": [0, 0.5]},
        "train.discriminator_every": {"kind": "choice", "values": [1, 2, 4]},
        "network.generator.kind": {"kind": "choice", "values": ["resnet", "unet"]},
        "network.generator.blocks": {"kind": "int", "low": 2, "high": 8, "step": 2},
        "train.pool": {"kind": "int", "low": 1, "high": 50, "log": True},
        "train.flip": {"kind": "choice", "values": [True, False]},
        "train.rotation_deg": {"kind": "uniform", "low": 0, "high": 20},
    }
    read = parse({"tune": {"space": space}}).tune.space
    assert read["train.lr_generator"] == LogUniform(low=1e-4, high=1e-3)
    assert read["loss.identity"] == Uniform(low=0.0, high=1.0)
    assert read["network.generator.blocks"] == Integers(low=2, high=8, step=2)
    assert read["train.flip"] == Choice(values=(True, False))
    assert parse(parse({"tune": {"space": space}}).dump()).tune.space == read


@pytest.mark.parametrize(
    ("key", "searched", "said"),
    [
        ("train", {"kind": "int", "low": 1, "high": 2}, "'train' cannot be tuned; tunable keys start with"),
        ("loss.warmup", {"kind": "int", "low": 1, "high": 2}, "'loss.warmup' cannot be tuned; it is a section"),
        ("train.steps", {"kind": "int", "low": 1, "high": 2}, "cannot be tuned; a trial trains tune.steps"),
        ("train.shift", {"kind": "uniform", "low": 1, "high": 5}, "fractional part; search it by kind int"),
        ("train.ema", {"kind": "uniform", "low": 0.9, "high": 1.2}, "'train.ema' cannot be 1.2, which the"),
        ("loss.cycle", {"kind": "uniform", "low": -1, "high": 5}, "greater than or equal to 0"),
        ("train.zoom", {"kind": "uniform", "low": 0.9, "high": 1.2}, "should be a valid tuple"),
        ("network.generator.kind", {"kind": "choice", "values": ["resnet", "unat"]}, "cannot be 'unat', which"),
        ("train.pool", {"kind": "int", "low": 5, "high": 5}, "low 5 must be below high 5"),
        ("train.pool", {"kind": "int", "low": 0, "high": 50, "step": 7}, "steps of 7 from 0 do not meet high 50"),
        ("train.pool", {"kind": "int", "low": 0, "high": 50, "log": True}, "log needs a low of at least 1"),
        ("train.pool", {"kind": "int", "low": 0.5, "high": 50}, "tune.space.train.pool.low"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(key, searched, said):
    assert said in refusal({key: searched})


def test_a_subset_is_decided_in_one_place():
    space = {"train.subset_images": {"kind": "int", "low": 10, "high": 20}}
    assert "subset_images decides train.subset_images of every trial" in refusal(space, subset_images=5)


def test_a_study_is_named_in_plain_letters():
    assert "tune.study" in refusal({}, study="my study/..")
