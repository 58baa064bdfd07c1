"""Losses, schedules and the registry of adversarial losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from ctmr.errors import InputError
from ctmr.networks import build_discriminator
from ctmr.recipe.training import ADVERSARIAL_LOSSES, DISCRIMINATORS, CycleTerms, Discriminator
from ctmr.training.cyclegan.losses import (
    accuracy,
    adversarial_loss,
    cycle_loss,
    dissimilarity,
    gradient_penalty,
    l1,
    learning_rate_factor,
    warmup_weight,
)

SCORES = np.array([[-1.5, 0.25], [2.0, 0.0]])


@pytest.mark.parametrize("kind", list(ADVERSARIAL_LOSSES))
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_every_adversarial_loss_equals_its_formula_in_numpy(kind: str, target: float) -> None:
    p = 1 / (1 + np.exp(-SCORES))
    expected = {
        "least_squares": ((SCORES - target) ** 2).mean(),
        "least_squares_sigmoid": ((p - target) ** 2).mean(),
        "bce": -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean(),
        "wasserstein": (1 - 2 * target) * SCORES.mean(),
    }[kind]
    assert adversarial_loss(kind).score(torch.from_numpy(SCORES), target).item() == pytest.approx(expected)


def test_the_discriminator_loss_is_half_the_sum_of_real_and_fake() -> None:
    real, fake = torch.tensor([0.5]), torch.tensor([2.0])
    loss = adversarial_loss("least_squares").of_discriminator(real, fake)
    assert loss.item() == pytest.approx(0.5 * (0.25 + 4.0))


def test_l1_is_the_mean_absolute_difference() -> None:
    assert l1(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 3.0])).item() == 2.5


def test_learning_rate_is_constant_then_falls_linearly() -> None:
    factors = [learning_rate_factor(n, 10, 0.5) for n in range(11)]
    assert factors == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.0])


def test_learning_rate_stays_when_the_constant_part_is_everything() -> None:
    assert learning_rate_factor(9, 10, 1.0) == 1.0
    assert learning_rate_factor(5, 10, 0.0) == 0.5


def test_warmup_falls_linearly_to_zero() -> None:
    weights = [warmup_weight(20.0, 0.4, n, 10) for n in range(6)]
    assert weights == pytest.approx([20, 15, 10, 5, 0, 0])
    assert warmup_weight(20.0, 0.0, 0, 10) == 0.0


def test_the_wasserstein_critic_has_the_whole_difference_of_means() -> None:
    real, fake = torch.tensor([0.5, 1.5]), torch.tensor([2.0])
    loss = adversarial_loss("wasserstein").of_discriminator(real, fake)
    assert loss.item() == pytest.approx(2.0 - 1.0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("least_squares", 0.5 * (1 / 3 + 1 / 2)), ("bce", 0.5 * (2 / 3 + 0)), ("least_squares_sigmoid", 1 / 3)],
)
def test_accuracy_is_the_share_on_the_right_side_of_the_losss_own_threshold(kind: str, expected: float) -> None:
    threshold = adversarial_loss(kind).threshold
    assert threshold is not None
    real, fake = torch.tensor([-1.0, 0.2, 0.9]), torch.tensor([0.3, 0.8])
    assert accuracy(real, fake, threshold).item() == pytest.approx(expected)
    assert adversarial_loss("wasserstein").threshold is None


def images(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def ssim_of_scikit_image(x: np.ndarray, y: np.ndarray) -> float:
    options = {"data_range": 2.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(x, y, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5])
def test_the_ssim_loss_is_one_less_scikit_images_mean_over_the_images(noise: float, dtype: torch.dtype) -> None:
    a = torch.nn.functional.avg_pool2d(images(1, 2, 3, 60, 72), 3)
    b = a + noise * images(2, 2, 3, 20, 24)
    pairs = zip(a.flatten(0, 1).numpy(), b.flatten(0, 1).numpy(), strict=True)
    expected = 1 - np.mean([ssim_of_scikit_image(x, y) for x, y in pairs])
    assert abs(dissimilarity(a.to(dtype), b.to(dtype)).item() - expected) < 1e-6


def test_the_gradient_of_the_ssim_loss_is_finite_where_nothing_varies() -> None:
    flat = torch.zeros(1, 1, 16, 16, requires_grad=True)
    dissimilarity(flat, flat.detach()).backward()
    assert flat.grad is not None and bool(flat.grad.isfinite().all())


def test_the_gradient_of_the_ssim_loss_in_float32_is_that_in_float64() -> None:
    a, b = images(1, 2, 1, 20, 24), images(2, 2, 1, 20, 24)
    found = []
    for dtype in (torch.float32, torch.float64):
        x = a.to(dtype).requires_grad_(True)
        (slope,) = torch.autograd.grad(dissimilarity(x, b.to(dtype)), x)
        found.append(slope.double())
    assert torch.allclose(*found, atol=1e-6)


def test_ssim_of_images_smaller_than_its_window_is_refused() -> None:
    with pytest.raises(InputError, match=r"at least 11 pixels, found 10×40; .* loss\.cycle_terms\.ssim to 0"):
        dissimilarity(torch.zeros(1, 1, 10, 40), torch.zeros(1, 1, 10, 40))


def test_a_cycle_loss_is_the_weighted_sum_of_its_terms() -> None:
    a, b = images(3, 2, 1, 16, 16), images(4, 2, 1, 16, 16)
    x, y = a.numpy(), b.numpy()
    similar = np.mean([ssim_of_scikit_image(p[0], q[0]) for p, q in zip(x, y, strict=True)])
    expected = 0.5 * np.abs(x - y).mean() + 2.0 * ((x - y) ** 2).mean() + 3.0 * (1 - similar)
    assert cycle_loss(CycleTerms(l1=0.5, mse=2.0, ssim=3.0))(a, b).item() == pytest.approx(expected, abs=1e-9)
    assert cycle_loss(CycleTerms())(a, b).item() == l1(a, b).item()
    assert cycle_loss(CycleTerms(l1=0.0))(a, b).item() == 0.0


def test_the_gradient_penalty_of_a_linear_critic_is_known_in_closed_form() -> None:
    """Score = mean over patches of w·x, so the gradient is the same everywhere and mixing does not matter."""
    layer = nn.Conv2d(1, 1, 1, bias=False).double()
    nn.init.constant_(layer.weight, 3.0)
    real, fake = images(5, 2, 1, 4, 5), images(6, 2, 1, 4, 5)
    found = gradient_penalty(layer, real, fake, torch.rand(2, 1, 1, 1).double())
    assert found.item() == pytest.approx((3.0 / 20 * np.sqrt(20) - 1) ** 2, rel=1e-9)


class ElementaryInstanceNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean((2, 3), keepdim=True)
        return centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", list(DISCRIMINATORS))
def test_its_second_derivatives_through_instance_norm_equal_float64_autograd_of_an_elementary_norm(
    batch: int, kind: str
) -> None:
    rng = torch.Generator().manual_seed(7)
    critic = build_discriminator(Discriminator(kind=kind, width=4, layers=2), 1, size=(32, 32), rng=rng)
    for p in critic.parameters():
        nn.init.normal_(p, 0.0, 0.3, generator=rng)
    truth = build_discriminator(Discriminator(kind=kind, width=4, layers=2), 1).double()
    truth.load_state_dict(critic.state_dict())
    for parent in list(truth.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.InstanceNorm2d):
                setattr(parent, name, ElementaryInstanceNorm())
    real, fake, mix = images(8, batch, 1, 32, 32), images(9, batch, 1, 32, 32), torch.rand(batch, 1, 1, 1).double()
    wanted = gradient_penalty(truth, real, fake, mix)
    wanted.backward()
    found = gradient_penalty(critic, real.float(), fake.float(), mix.float())
    found.backward()
    # A few roundings of a slope near 1 in fp32: of its square's distance from 1 they may be more than 1e-4.
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4, abs=2e-8)
    largest = max(float(q.grad.norm()) for q in truth.parameters() if q.grad is not None)
    assert largest > 0
    for p, q in zip(critic.parameters(), truth.parameters(), strict=True):
        if q.grad is not None:
            error = float((p.grad.double() - q.grad).norm())
            assert error <= 1e-3 * float(q.grad.norm()) + 1e-5 * largest
