"""The step: gradients of every parameter against float64 autograd of formulas written out here."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ctmr.data.sampling import Batch
from ctmr.errors import InputError
from ctmr.imaging.volume import Direction, Modality
from ctmr.recipe.training import (
    ADVERSARIAL_LOSSES,
    GENERATORS,
    CycleTerms,
    Discriminator,
    Generator,
    LayerNorm,
    Loss,
    Network,
    Perceptual,
    Precision,
    Supervised,
)
from ctmr.training.cyclegan.networks import CycleGan
from ctmr.training.cyclegan.pool import ImagePool
from ctmr.training.cyclegan.step import CycleGanStep
from ctmr.training.hardware.distributed import Team

RELATIVE_FP32 = 2e-3
"""Of each parameter's gradient norm; measured at most 2e-4 (fp32 through two generators and a discriminator)."""
CYCLE, IDENTITY, WARMUP, PENALTY = 7.0, 0.4, 3.0, 6.0
SEED = 11


class ElementaryInstanceNorm(nn.Module):
    """Written with mean and square root, so that its gradient shares nothing with PyTorch's kernel."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean((2, 3), keepdim=True)
        return centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()


def elementary(module: nn.Module) -> nn.Module:
    module = copy.deepcopy(module).double()
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.InstanceNorm2d):
                setattr(parent, name, ElementaryInstanceNorm())
    return module


def networks(position: bool, kind: str = "resnet", mr: int = 1) -> CycleGan:
    rng = torch.Generator().manual_seed(2)
    net = CycleGan(
        Network(
            generator=Generator(kind=kind, width=4, blocks=1 if kind == "unet_resnet18" else 2),
            discriminator=Discriminator(width=4, layers=2, position=position),
        ),
        mr_channels=mr,
        ct_channels=1,
        rng=rng,
    )
    # Larger weights than at the start, and biases, so that no gradient is lost in rounding.
    for p in net.parameters():
        nn.init.normal_(p, 0.0, 0.15, generator=rng)
    return net


def batch(size: int, mr: int = 1) -> Batch:
    rng = torch.Generator().manual_seed(3)
    return Batch(*(torch.rand(size, c, 20, 24, generator=rng) * 2 - 1 for c in (mr, 1, 1, 1)))


def adversarial(kind: str, scores: Tensor, real: bool) -> Tensor:
    if kind == "least_squares_sigmoid":
        return ((1 / (1 + torch.exp(-scores)) - (1.0 if real else 0.0)) ** 2).mean()
    if kind == "wasserstein":
        return -scores.mean() if real else scores.mean()
    if kind == "least_squares":
        return ((scores - (1.0 if real else 0.0)) ** 2).mean()
    return -torch.log(torch.sigmoid(scores if real else -scores)).mean()


def scores(module: nn.Module, image: Tensor, depth: Tensor, position: bool) -> Tensor:
    if not position:
        return module(image)
    n, _, h, w = image.shape
    rows = torch.tensor([[2 * i / (h - 1) - 1 for _ in range(w)] for i in range(h)]).double()
    columns = torch.tensor([[abs(2 * j / (w - 1) - 1) for j in range(w)] for _ in range(h)]).double()
    return module.inner(torch.cat([image, rows.expand(n, 1, h, w), columns.expand(n, 1, h, w), depth], 1))


def reference(
    net: CycleGan, b: Batch, kind: str, identity: bool, position: bool, warmup: float
) -> tuple[Tensor, Tensor, nn.ModuleDict, nn.ModuleDict]:
    """Zhu et al. 2017 in float64, one network pass an image set: objectives of generators and discriminators."""
    generators, discriminators = elementary(net.generators), elementary(net.discriminators)
    to_ct, to_mr = generators["mr2ct"], generators["ct2mr"]
    x, y = b.mr.double(), b.ct.double()
    x_depth, y_depth = b.mr_depth.double(), b.ct_depth.double()
    fake_y, fake_x = to_ct(x), to_mr(y)

    def judge(m: str, image: Tensor, depth: Tensor) -> Tensor:
        return scores(discriminators[m], image, depth, position)

    objective = adversarial(kind, judge("CT", fake_y, x_depth), True)
    objective = objective + adversarial(kind, judge("MR", fake_x, y_depth), True)
    objective = objective + CYCLE * (to_mr(fake_y) - x).abs().mean() + CYCLE * (to_ct(fake_x) - y).abs().mean()
    if identity:
        objective = objective + CYCLE * IDENTITY * ((to_ct(y) - y).abs().mean() + (to_mr(x) - x).abs().mean())
    objective = objective + warmup * ((fake_y - y).abs().mean() + (fake_x - x).abs().mean())
    fake_y, fake_x = fake_y.detach(), fake_x.detach()
    judged = adversarial(kind, judge("CT", y, y_depth), True) + adversarial(kind, judge("CT", fake_y, x_depth), False)
    judged = judged + adversarial(kind, judge("MR", x, x_depth), True)
    judged = judged + adversarial(kind, judge("MR", fake_x, y_depth), False)
    if kind != "wasserstein":
        return objective, judged / 2, generators, discriminators
    # Gulrajani et al. 2017, algorithm 1; the depth map of a mixture is the mixture of the depth maps.
    rng = torch.Generator().manual_seed(SEED)
    for m, real, fake, depths in (("CT", y, fake_y, (y_depth, x_depth)), ("MR", x, fake_x, (x_depth, y_depth))):
        e = torch.rand(len(real), 1, 1, 1, generator=rng).double()
        between = (e * real + (1 - e) * fake).requires_grad_(True)
        scored = judge(m, between, e * depths[0] + (1 - e) * depths[1])
        (slope,) = torch.autograd.grad(scored.mean((1, 2, 3)).sum(), between, create_graph=True)
        judged = judged + PENALTY * ((slope.square().sum((1, 2, 3)).sqrt() - 1) ** 2).mean()
    return objective, judged, generators, discriminators


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.double() for n, p in module.named_parameters() if p.grad is not None}


def assert_gradients(found: nn.Module, truth: nn.Module, relative: float) -> None:
    got, want = gradients(found), gradients(truth)
    assert got.keys() == want.keys() == dict(found.named_parameters()).keys()
    # Biases before an instance norm have gradient zero: measured against the largest gradient instead.
    floor = 1e-4 * relative * max(float(g.norm()) for g in want.values())
    for name, g in want.items():
        error = float((got[name] - g).norm())
        assert error <= relative * float(g.norm()) + 10 * floor, (name, error, float(g.norm()))


CASES = list(itertools.product((1, 2), ADVERSARIAL_LOSSES, (False, True), (False, True)))


@pytest.mark.parametrize(("size", "kind", "identity", "position"), CASES)
def test_gradients_equal_float64_autograd_of_the_published_formulas(
    size: int, kind: str, identity: bool, position: bool
) -> None:
    net, b = networks(position), batch(size)
    warmup = WARMUP if position else 0.0
    objective, judged, generators, discriminators = reference(net, b, kind, identity, position, warmup)
    objective.backward()
    discriminators.zero_grad()
    judged.backward()

    loss = Loss(adversarial=kind, cycle=CYCLE, identity=IDENTITY if identity else 0.0, gradient_penalty=PENALTY)
    step = CycleGanStep(net, loss, Precision.FP32, partial(Team().mixture, rng=torch.Generator().manual_seed(SEED)))
    net.discriminators.requires_grad_(False)
    losses, fake_ct, fake_mr = step.generator_losses(b, warmup)
    losses["generator"].backward()
    assert not gradients(net.discriminators)
    net.discriminators.requires_grad_(True)
    found = step.discriminator_losses(b, Batch(fake_mr, fake_ct, b.ct_depth, b.mr_depth))
    found["discriminator"].backward()

    assert losses["generator"].item() == pytest.approx(objective.item(), rel=1e-5)
    assert found["discriminator"].item() == pytest.approx(judged.item(), rel=1e-5)
    assert_gradients(net.generators, generators, RELATIVE_FP32)
    assert_gradients(net.discriminators, discriminators, RELATIVE_FP32)
    assert ("identity_ct" in losses) is identity


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("kind", list(GENERATORS))
def test_bf16_gradients_are_as_good_as_rounding_to_8_bits_allows(size: int, kind: str) -> None:
    """Guards PyTorch's instance-norm kernels: the same rounding with an elementary norm is the yardstick."""
    net, b = networks(True, kind), batch(size)
    objective, _, generators, _ = reference(net, b, "least_squares", False, True, WARMUP)
    objective.backward()
    want = torch.cat([g.flatten() for g in gradients(generators).values()])
    yardstick = copy.deepcopy(net)
    yardstick.generators, yardstick.discriminators = generators, elementary(net.discriminators)
    yardstick.float().zero_grad()
    cosines = []
    for candidate in (net, yardstick):
        losses, fake_ct, _ = CycleGanStep(candidate, Loss(cycle=CYCLE, identity=0.0), Precision.BF16).generator_losses(
            b, WARMUP
        )
        losses["generator"].backward()
        got = torch.cat([g.flatten() for g in gradients(candidate.generators).values()])
        cosines.append(torch.cosine_similarity(got, want, dim=0).item())
        assert losses["generator"].item() == pytest.approx(objective.item(), rel=0.02)
        assert losses["generator"].dtype == fake_ct.dtype == torch.float32
    assert cosines[0] > max(0.85, cosines[1] - 0.02), cosines


def test_generators_move_first_and_discriminators_see_pooled_fakes_with_their_depth() -> None:
    net, b = networks(True), batch(1)
    before = copy.deepcopy(net)
    seen: dict[str, Tensor] = {}

    def pool(name: str):
        def query(images: Tensor) -> Tensor:
            moved = any(
                not torch.equal(p, q)
                for p, q in zip(net.generators.parameters(), before.generators.parameters(), strict=True)
            )
            still = all(
                torch.equal(p, q)
                for p, q in zip(net.discriminators.parameters(), before.discriminators.parameters(), strict=True)
            )
            assert moved and still
            seen[name] = images
            return images

        return query

    losses = CycleGanStep(net, Loss(identity=0.0), Precision.FP32)(
        b,
        warmup=0.0,
        generator_optimiser=torch.optim.SGD(net.generators.parameters(), 0.1),
        discriminator_optimiser=torch.optim.SGD(net.discriminators.parameters(), 0.1),
        ct_pool=pool("ct"),
        mr_pool=pool("mr"),
    )
    torch.testing.assert_close(seen["ct"][:, :1], before.generators["mr2ct"](b.mr))
    assert torch.equal(seen["ct"][:, 1:], b.mr_depth)
    assert torch.equal(seen["mr"][:, 1:], b.ct_depth)
    assert not any(value.requires_grad for value in losses.values())
    assert any(
        not torch.equal(p, q)
        for p, q in zip(net.discriminators.parameters(), before.discriminators.parameters(), strict=True)
    )


def test_without_position_the_pool_holds_images_alone() -> None:
    net, b = networks(False), batch(2)
    pool = ImagePool(4, torch.Generator())
    CycleGanStep(net, Loss(identity=0.0), Precision.FP32)(
        Batch(b.mr, b.ct),
        warmup=0.0,
        generator_optimiser=torch.optim.SGD(net.generators.parameters(), 0.1),
        discriminator_optimiser=torch.optim.SGD(net.discriminators.parameters(), 0.1),
        ct_pool=pool.query,
        mr_pool=ImagePool(0, torch.Generator()).query,
    )
    assert pool.state_dict()["images"].shape == (2, 1, 20, 24)


def test_identity_of_unlike_channels_is_refused_at_construction() -> None:
    with pytest.raises(InputError, match=r"found 2 and 1; set loss\.identity to 0"):
        CycleGanStep(networks(False, mr=2), Loss(identity=0.5), Precision.FP32)


def test_two_mr_channels_train_without_identity() -> None:
    net, b = networks(True, mr=2), batch(1, mr=2)
    losses, fake_ct, fake_mr = CycleGanStep(net, Loss(identity=0.0), Precision.FP32).generator_losses(b, 0.0)
    assert fake_ct.shape[1] == 1 and fake_mr.shape[1] == 2
    assert losses["generator"].isfinite()


def test_each_direction_has_its_own_weight_and_identity_follows_it() -> None:
    net, b = networks(False), batch(1)
    loss = Loss(cycle=7.0, cycle_mr=2.0, cycle_ct=0.5, identity=0.3, cycle_terms=CycleTerms(l1=1.0, mse=4.0))
    found, fake_ct, _ = CycleGanStep(net, loss, Precision.FP32).generator_losses(b, 0.0)
    again = net.translate(Direction.CT2MR, fake_ct)
    torch.testing.assert_close(found["cycle_mr"], (again - b.mr).abs().mean() + 4 * (again - b.mr).square().mean())
    same = net.translate(Direction.MR2CT, b.ct)
    torch.testing.assert_close(found["identity_ct"], (same - b.ct).abs().mean())
    expected = (
        found["adversarial_mr2ct"]
        + found["adversarial_ct2mr"]
        + 2.0 * found["cycle_mr"]
        + 0.5 * found["cycle_ct"]
        + 0.3 * (2.0 * found["identity_mr"] + 0.5 * found["identity_ct"])
    )
    torch.testing.assert_close(found["generator"], expected)


def test_the_perceptual_loss_compares_both_reconstructions_and_teaches_both_generators() -> None:
    from ctmr.networks.features import build_features

    net, b = networks(False), batch(1)
    perceptual = Perceptual(weight=3.0, layers=("stem", "block_1"))
    step = CycleGanStep(net, Loss(cycle=0.0, identity=0.5, perceptual=perceptual), Precision.FP32)
    assert "efficientnet-lite0" in step.notices[0] and "sha256" in step.notices[0]
    found, fake_ct, _ = step.generator_losses(b, 0.0)
    features = build_features(perceptual)
    wanted, got = features(b.mr), features(net.translate(Direction.CT2MR, fake_ct))
    by_hand = sum(((a - g) ** 2).mean() for a, g in zip(wanted, got, strict=True)) / 2
    torch.testing.assert_close(found["perceptual_mr"], by_hand)
    adversarial_sum = found["adversarial_mr2ct"] + found["adversarial_ct2mr"]
    torch.testing.assert_close(
        found["generator"], adversarial_sum + 3.0 * (found["perceptual_mr"] + found["perceptual_ct"])
    )
    (found["perceptual_mr"] + found["perceptual_ct"]).backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.generators.parameters())
    assert "identity_ct" not in found


def batch_norm() -> CycleGan:
    return CycleGan(
        Network(
            generator=Generator(kind="encoder_decoder", width=4, blocks=2, norm=LayerNorm.BATCH),
            discriminator=Discriminator(width=4, layers=2, norm=LayerNorm.BATCH),
        ),
        mr_channels=1,
        ct_channels=1,
        rng=torch.Generator().manual_seed(2),
    )


def test_with_batch_norm_real_and_fake_images_and_both_modalities_are_never_in_one_batch() -> None:
    net, b = batch_norm(), batch(2)
    step = CycleGanStep(net, Loss(identity=0.5), Precision.FP32)
    losses, fake_ct, _ = step.generator_losses(b, 0.0)
    torch.testing.assert_close(losses["identity_ct"], (net.translate(Direction.MR2CT, b.ct) - b.ct).abs().mean())
    torch.testing.assert_close(fake_ct, net.translate(Direction.MR2CT, b.mr))
    found = step.discriminator_losses(b, Batch(fake_ct, fake_ct))
    real, fake = net.discriminate(Modality.CT, b.ct, None), net.discriminate(Modality.CT, fake_ct, None)
    torch.testing.assert_close(found["discriminator_ct"], ((real - 1).square().mean() + fake.square().mean()) / 2)


def test_a_gradient_penalty_over_batch_norm_is_refused() -> None:
    with pytest.raises(InputError, match=r"network\.discriminator\.norm to instance, or loss\.gradient_penalty to 0"):
        CycleGanStep(batch_norm(), Loss(adversarial="wasserstein"), Precision.FP32)
    CycleGanStep(batch_norm(), Loss(adversarial="wasserstein", gradient_penalty=0.0), Precision.FP32)


@pytest.mark.parametrize("updated", ["generators", "discriminators"])
def test_only_networks_with_an_optimiser_are_updated(updated: str) -> None:
    net, b = networks(True), batch(1)
    before = copy.deepcopy(net)
    optimisers = {n: torch.optim.SGD(getattr(net, n).parameters(), 0.1) for n in ("generators", "discriminators")}
    losses = CycleGanStep(net, Loss(identity=0.0), Precision.FP32)(
        b,
        warmup=0.0,
        generator_optimiser=optimisers["generators"] if updated == "generators" else None,
        discriminator_optimiser=optimisers["discriminators"] if updated == "discriminators" else None,
        ct_pool=lambda images: images,
        mr_pool=lambda images: images,
    )
    for name in optimisers:
        pairs = zip(getattr(net, name).parameters(), getattr(before, name).parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs) is (name != updated)
    assert ("generator" in losses) is (updated == "generators")
    assert ("discriminator" in losses and "accuracy_ct" in losses) is (updated == "discriminators")
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("judged", [True, False])
def test_the_supervised_baselines_compare_a_translation_with_its_pair_alone(judged: bool) -> None:
    net, b = networks(False), batch(1)
    loss = Loss(cycle=0.0, adversarial_weight=2.0 if judged else 0.0, supervised=Supervised(weight=100.0))
    losses, fake_ct, fake_mr = CycleGanStep(net, loss, Precision.FP32).generator_losses(b, 0.0)
    torch.testing.assert_close(losses["supervised_ct"], (fake_ct - b.ct).abs().mean())
    expected = 100.0 * ((fake_ct - b.ct).abs().mean() + (fake_mr - b.mr).abs().mean())
    names = {"supervised_ct", "supervised_mr", "generator"}
    if judged:
        names |= {"adversarial_mr2ct", "adversarial_ct2mr"}
        expected = expected + 2.0 * (losses["adversarial_mr2ct"] + losses["adversarial_ct2mr"])
    torch.testing.assert_close(losses["generator"], expected)
    assert set(losses) == names


def test_a_loss_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to train"):
        CycleGanStep(networks(False), Loss(cycle=0.0, adversarial_weight=0.0), Precision.FP32)
