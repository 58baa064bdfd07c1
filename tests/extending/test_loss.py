"""A new loss is a function and a row: a recipe names it, the step computes it, and its gradients train."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_training import batch, heads, networks
from torch import Tensor
from torch.nn import functional

from ctmr.data.sampling import Batch
from ctmr.errors import InputError
from ctmr.imaging.volume import Direction
from ctmr.recipe.loading import load
from ctmr.recipe.recipe import Recipe
from ctmr.recipe.training import ADVERSARIAL_LOSSES, CYCLE_TERMS, Loss, Precision
from ctmr.training.cyclegan.losses import REAL, AdversarialLoss
from ctmr.training.cyclegan.step import CycleGanStep
from ctmr.training.trainer import Trainer

SETTINGS = ("loss.adversarial=hinge", "loss.cycle_terms.gradient=0.5", "loss.identity=0", "train.steps=6")
SMALL = (
    "network.discriminator.layers=1",
    "train.threads=1",
    "network.generator.width=4",
    "network.generator.blocks=1",
    "network.discriminator.width=4",
)


def hinge(scores: Tensor, target: float) -> Tensor:
    """Mean distance of a score from the right side of ±1 (Lim & Ye 2017, arXiv:1705.02894, eq. 3)."""
    return functional.relu(1.0 - scores if target == REAL else 1.0 + scores).mean()


HINGE = AdversarialLoss(hinge, share=1.0, generator=lambda fake: -fake.mean())


def gradient_difference(rec: Tensor, real: Tensor) -> Tensor:
    """Mean absolute difference of the slopes along H and W (Mathieu et al. 2016, arXiv:1511.05440, eq. 6)."""
    slopes = [(rec.diff(dim=axis) - real.diff(dim=axis)).abs().mean() for axis in (-2, -1)]
    return slopes[0] + slopes[1]


@pytest.fixture
def loss() -> Loss:
    with ADVERSARIAL_LOSSES.added("hinge", HINGE), CYCLE_TERMS.added("gradient", gradient_difference):
        yield load("default", SETTINGS).loss


def test_the_step_computes_it_from_fakes_and_reconstructions(loss: Loss) -> None:
    net, b = networks(), batch(2)
    step = CycleGanStep(net, loss, Precision.FP32)
    found, fake_ct, fake_mr = step.generator_losses(b, 0.0)
    score = net.discriminators["CT"](fake_ct).detach().numpy()
    assert found["adversarial_mr2ct"].item() == pytest.approx(-score.mean(), rel=1e-5)
    rec, real = (x.detach().numpy() for x in (net.translate(Direction.CT2MR, fake_ct), b.mr))
    by_hand = sum(np.abs(np.diff(rec, axis=a) - np.diff(real, axis=a)).mean() for a in (-2, -1))
    assert found["cycle_mr"].item() == pytest.approx(np.abs(rec - real).mean() + 0.5 * by_hand, rel=1e-5)
    discriminator = step.discriminator_losses(b, Batch(fake_mr, fake_ct))["discriminator_ct"].item()
    real_score = net.discriminators["CT"](b.ct).detach().numpy()
    assert discriminator == pytest.approx(
        np.maximum(0, 1 - real_score).mean() + np.maximum(0, 1 + score).mean(), rel=1e-5
    )


def test_it_trains_beside_alarms_that_know_no_limit_for_it(loss: Loss) -> None:
    recipe = load("default", SMALL)
    train = recipe.train.model_copy(update={"steps": 6, "sample_every": 3})
    trainer = Trainer(recipe.network, loss, train, heads(), report_every=3)
    before = trainer.generator(Direction.CT2MR).state_dict()
    list(trainer.run())
    assert all(np.isfinite(v) for r in trainer.reports for v in r.losses.values())
    assert any(not torch.equal(v, before[k]) for k, v in trainer.generator(Direction.CT2MR).state_dict().items())


def test_what_a_recipe_does_not_name_is_not_written_into_it(loss: Loss) -> None:
    assert Recipe().loss.cycle_terms.model_dump() == {"l1": 1.0, "mse": 0.0, "ssim": 0.0}
    assert loss.cycle_terms.model_dump() == {"l1": 1.0, "mse": 0.0, "ssim": 0.0, "gradient": 0.5}
    assert Loss.model_validate(loss.model_dump(mode="json")) == loss


@pytest.mark.usefixtures("loss")
def test_its_weight_is_checked_as_any_other() -> None:
    with pytest.raises(InputError, match=r"loss\.cycle_terms\.gradient: .*greater than or equal to 0 \(found -1\)"):
        load("default", ["loss.cycle_terms.gradient=-1"])


def test_names_without_a_row_are_refused_with_those_that_have_one() -> None:
    with pytest.raises(InputError, match=r"loss\.adversarial: should be one of least_squares, .*found 'hinge'"):
        load("default", SETTINGS[:1])
    with pytest.raises(InputError, match=r"loss\.cycle_terms\.gradient: should be one of l1, mse, ssim"):
        load("default", SETTINGS[1:2])
