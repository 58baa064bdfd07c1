"""Alarms: each sounds on the fault that it is for, none on trainings that go well."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from ctmr.data.domain import Domain
from ctmr.data.sampling import TrainingData
from ctmr.data.shards import pack_head
from ctmr.errors import CtmrError
from ctmr.imaging.volume import Modality
from ctmr.recipe.training import Alarm, Alarms, Discriminator, Generator, Loss, Network, Train, Warmup
from ctmr.training.alarms import (
    Reading,
    discriminator_won,
    identity_shortcut,
    intensity_inversion,
    mode_collapse,
    scalp_and_skull,
    tissue_swap,
)
from ctmr.training.cyclegan import networks
from ctmr.training.cyclegan.losses import adversarial_loss
from ctmr.training.events import AlarmEvent, ReadingEvent
from ctmr.training.monitor import Monitor
from ctmr.training.trainer import Trainer

torch.set_num_threads(1)

SIDE, SLICES = 32, 16
AIR, SCALP, SKULL, BRAIN, FLUID = range(5)
VALUES = {Modality.MR: (-1.0, 0.7, -0.7, 0.1, -0.3), Modality.CT: (-1.0, -0.4, 0.7, 0.0, -0.1)}
"""Of normalised heads, by tissue."""


def heads(modality: Modality, seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Return heads in rings, their depth channel and head masks: two pixels of scalp, two of skull, brain, fluid."""
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIDE) - 15.5, torch.arange(SIDE) - 15.5, indexing="ij")
    radius = 10.0 + 4.0 * torch.rand(SLICES, 1, 1, generator=rng)
    depth = radius - torch.hypot(x, y)
    blob = 4.0 * (torch.rand(SLICES, 2, 1, 1, generator=rng) - 0.5)
    tissue = torch.where(depth > 0, SCALP, AIR)
    tissue[depth > 2] = SKULL
    tissue[depth > 4.5] = BRAIN
    tissue[(torch.hypot(x - blob[:, 0], y - blob[:, 1]) < 2.5) & (depth > 4.5)] = FLUID
    images = torch.tensor(VALUES[modality])[tissue] + 0.03 * torch.randn(SLICES, SIDE, SIDE, generator=rng)
    channel = (depth.clamp(0, 12) / 6 - 1)[:, None]
    return images.clamp(-1, 1)[:, None], channel, (depth > 0).numpy()


def domain(modality: Modality, seed: int) -> Domain:
    images, depth, head = heads(modality, seed)
    names = tuple(f"{modality}{n}" for n in range(2))
    return Domain(
        images,
        depth,
        torch.arange(SLICES).remainder(8) - 3.5,
        torch.arange(SLICES) // 8,
        names,
        names,
        head=torch.from_numpy(pack_head(head)),
    )


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return TrainingData(domain(Modality.MR, 1), domain(Modality.CT, 2))


class Painter(nn.Module):
    """Paints each pixel of the tissue whose value is nearest, as told."""

    def __init__(self, source: Modality, values: tuple[float, ...]) -> None:
        super().__init__()
        self.known, self.values = torch.tensor(VALUES[source]), torch.tensor(values)

    def forward(self, images: Tensor) -> Tensor:
        return self.values[(images[..., None] - self.known).abs().argmin(dim=-1)]


class Constant(nn.Module):
    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = image

    def forward(self, images: Tensor) -> Tensor:
        return self.image + 0.01 * images


def painters(**changes: nn.Module) -> nn.ModuleDict:
    right = {
        "mr2ct": Painter(Modality.MR, VALUES[Modality.CT]),
        "ct2mr": Painter(Modality.CT, VALUES[Modality.MR]),
    }
    return nn.ModuleDict(right | changes)


def watch(data: TrainingData, **alarms: object) -> Monitor:
    return Monitor(Train(steps=10, alarms=Alarms(**{"after": 0.0, "patience": 2} | alarms)), Loss(), data)


def sounding(data: TrainingData, generators: nn.ModuleDict) -> set[str]:
    monitor = watch(data)
    return {e.reading.name for step in (1, 2) for e in monitor.sound(step, monitor.of_images(generators))}


def swapped(values: tuple[float, ...]) -> tuple[float, ...]:
    changed = list(values)
    changed[SCALP], changed[SKULL] = values[SKULL], values[SCALP]
    return tuple(changed)


def test_right_translations_sound_none_and_are_read_by_every_alarm(data: TrainingData) -> None:
    assert sounding(data, painters()) == set()
    readings = watch(data).of_images(painters())
    assert {(r.alarm, r.side) for r in readings} == {
        (a, m) for a in set(Alarm) - {Alarm.DISCRIMINATOR_WON} for m in Modality
    }
    assert [r.value for r in readings if r.alarm is Alarm.TISSUE_SWAP] == pytest.approx([1, 1], abs=0.15)


class Copy(nn.Module):
    """Hands its input on with another gain and offset, and some noise."""

    def __init__(self, gain: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.gain, self.offset = gain, offset

    def forward(self, images: Tensor) -> Tensor:
        noise = 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        return self.gain * images + self.offset + noise


@pytest.mark.parametrize("copy", [nn.Identity(), Copy(), Copy(0.6, 0.3)])
def test_generators_that_hand_their_input_on_are_an_identity_shortcut(data: TrainingData, copy: nn.Module) -> None:
    found = sounding(data, nn.ModuleDict({"mr2ct": copy, "ct2mr": copy}))
    assert {"identity_shortcut_ct", "identity_shortcut_mr"} <= found
    assert not any("collapse" in name or "inversion" in name for name in found)


def test_a_negative_of_its_input_is_an_identity_shortcut_as_well(data: TrainingData) -> None:
    assert "identity_shortcut_mr" in sounding(data, painters(ct2mr=Copy(-0.8)))


def test_one_image_for_all_is_a_mode_collapse(data: TrainingData) -> None:
    assert sounding(data, painters(mr2ct=Constant(data.ct.images[0]))) == {"mode_collapse_ct"}


def test_a_negative_is_an_intensity_inversion(data: TrainingData) -> None:
    negative = painters(ct2mr=Painter(Modality.CT, tuple(-v for v in VALUES[Modality.MR])))
    assert sounding(data, negative) == {"intensity_inversion_mr", "tissue_swap_mr"}


@pytest.mark.parametrize("side", ["mr2ct", "ct2mr"])
def test_scalp_painted_as_skull_is_a_tissue_swap(data: TrainingData, side: str) -> None:
    source, target = (Modality.MR, Modality.CT) if side == "mr2ct" else (Modality.CT, Modality.MR)
    swap = painters(**{side: Painter(source, swapped(VALUES[target]))})
    # In heads of five grey values the swap is nearly a line of its input, so that it counts as a copy too.
    assert sounding(data, swap) - {f"identity_shortcut_{target.lower()}"} == {f"tissue_swap_{target.lower()}"}


def test_without_head_masks_a_swap_is_not_read_but_the_rest_is(data: TrainingData) -> None:
    blind = TrainingData(*(d.__class__(**{**d.__dict__, "head": None}) for d in (data.mr, data.ct)))
    assert {r.alarm for r in watch(blind).of_images(painters())} == {
        Alarm.MODE_COLLAPSE,
        Alarm.INTENSITY_INVERSION,
        Alarm.IDENTITY_SHORTCUT,
    }


def test_an_alarm_sounds_once_when_its_patience_ends_and_again_after_a_good_reading(data: TrainingData) -> None:
    monitor = watch(data, patience=2)
    bad = [Reading(Alarm.MODE_COLLAPSE, Modality.CT, 0.01, 0.1, True)]
    good = [Reading(Alarm.MODE_COLLAPSE, Modality.CT, 0.5, 0.1, False)]
    assert [len(monitor.sound(n, r)) for n, r in enumerate([bad, good, bad, bad, bad, good, bad, bad])] == [
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        1,
    ]
    other = watch(data, patience=2)
    other.restore(monitor.state())
    assert other.state() == monitor.state() and other.readings == monitor.readings


def test_young_networks_are_not_judged(data: TrainingData) -> None:
    monitor = watch(data, patience=1, after=0.5)
    bad = [Reading(Alarm.MODE_COLLAPSE, Modality.CT, 0.01, 0.1, True)]
    assert [len(monitor.sound(n, bad)) for n in (4, 5)] == [0, 1]


def test_numbers_by_hand() -> None:
    real = np.array([[[0.0, 1.0]], [[1.0, 0.0]]])
    assert mode_collapse(real / 2, real, Modality.CT).value == pytest.approx(0.5)
    assert mode_collapse(real, np.zeros((2, 1, 2)), Modality.CT) is None
    ramp = np.linspace(-1, 1, 8)[None, None]
    assert intensity_inversion(-ramp, ramp, Modality.CT).value == pytest.approx(-1)
    assert intensity_inversion(ramp, np.zeros((1, 1, 8)), Modality.CT) is None
    assert adversarial_loss("least_squares").unconvincing == pytest.approx(0.9025)
    assert adversarial_loss("bce").unconvincing == pytest.approx(math.log(20))
    assert adversarial_loss("wasserstein").unconvincing is None
    won = [discriminator_won(a, g, 0.9025, Modality.MR).beyond for a, g in ((1.0, 0.95), (1.0, 0.5), (0.98, 0.95))]
    assert won == [True, False, False]


@given(
    gain=st.floats(0.05, 5.0) | st.floats(-5.0, -0.05),
    offset=st.floats(-2.0, 2.0),
    noise=st.floats(0.0, 2.0),
    seed=st.integers(0, 99),
)
def test_the_shortcut_is_read_from_correlations_so_gain_and_offset_do_not_matter(
    gain: float, offset: float, noise: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    source, real = rng.uniform(-1, 1, (2, 3, 6, 5))
    fake = source + noise * rng.standard_normal(source.shape)
    left = [1 - stats.pearsonr(a.ravel(), b.ravel()).statistic ** 2 for a, b in zip(source, fake, strict=True)]
    others = [1 - stats.pearsonr(a.ravel(), b.ravel()).statistic ** 2 for a in source for b in real]
    expected = math.sqrt(np.mean(left) / np.mean(others))
    for made in (fake, gain * fake + offset):
        assert identity_shortcut(source, made, real, Modality.CT).value == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert identity_shortcut(source, np.zeros_like(fake), real, Modality.CT).value >= 1.0
    assert identity_shortcut(source, fake, source[:1], Modality.CT) is not None
    assert identity_shortcut(source[:1], fake[:1], source[:1] + 0.01, Modality.CT) is None


def test_shells_are_found_by_depth_and_a_head_without_contrast_has_none() -> None:
    images, _, head = heads(Modality.CT, 5)
    scalp, skull = scalp_and_skull(images[:, 0].numpy(), head)
    assert scalp == 2 and skull in (3, 4)
    assert scalp_and_skull(np.zeros((4, SIDE, SIDE)), head[:4]) is None
    flat = np.zeros((SLICES, SIDE, SIDE))
    assert tissue_swap(flat, head, flat, head, (scalp, skull), Modality.CT) is None


# Trainings

NETWORK = Network(generator=Generator(width=8, blocks=1), discriminator=Discriminator(width=8, layers=1, position=True))
TRAIN = Train(
    steps=240,
    threads=1,
    pool=4,
    ema=0.9,
    lr_generator=5e-3,
    lr_discriminator=5e-4,
    sample_every=20,
    checkpoint_every=1000,
)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_training_that_goes_well_sounds_none(data: TrainingData, seed: int) -> None:
    loss = Loss(cycle=5.0, identity=0.0, warmup=Warmup(weight=10.0, fraction=0.6))
    trainer = Trainer(NETWORK, loss, TRAIN.model_copy(update={"seed": seed}), data, report_every=12)
    events = list(trainer.run())
    assert [e.message for e in events if isinstance(e, AlarmEvent)] == []
    last = {r.name: r for e in events if isinstance(e, ReadingEvent) and e.step == 240 for r in e.readings}
    assert {r.alarm for r in last.values()} == set(Alarm)
    assert last["tissue_swap_ct"].value > 0.3 and last["intensity_inversion_mr"].value > 0.7
    assert min(last["identity_shortcut_ct"].value, last["identity_shortcut_mr"].value) > 0.7


class Scale(nn.Module):
    """Can do nothing but hand its input on, more or less."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.9))

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * images


def test_generators_that_can_only_copy_end_the_training_as_an_identity_shortcut(
    data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "build_generator", lambda *args, **kwargs: Scale())
    train = TRAIN.model_copy(update={"alarms": Alarms(stop=(Alarm.IDENTITY_SHORTCUT,)), "sample_every": 4})
    trainer = Trainer(NETWORK, Loss(), train, data, report_every=50)
    with pytest.raises(CtmrError, match=r"identity shortcut of synthetic .* below the limit 0\.5.*train\.alarms\.stop"):
        list(trainer.run())
    # Three readings from step 60, a quarter of 240, on.
    assert trainer.step == 68


def test_generators_that_hardly_learn_are_told_that_the_discriminators_won(data: TrainingData) -> None:
    train = TRAIN.model_copy(update={"lr_generator": 1e-7, "lr_discriminator": 5e-3})
    trainer = Trainer(NETWORK, Loss(identity=0.0), train, data, report_every=12)
    said = [e for e in trainer.run() if isinstance(e, AlarmEvent) and e.reading.alarm is Alarm.DISCRIMINATOR_WON]
    assert {e.reading.side for e in said} == set(Modality) and not any(e.stops for e in said)
    assert "lower train.lr_discriminator" in said[0].message


def test_alarms_change_no_weight(data: TrainingData) -> None:
    def after(alarms: Alarms) -> list[Tensor]:
        train = TRAIN.model_copy(update={"steps": 12, "sample_every": 2, "alarms": alarms})
        trainer = Trainer(NETWORK, Loss(identity=0.0), train, data, report_every=2)
        list(trainer.run())
        tensors, _ = trainer.state()
        return [tensors[k] for k in sorted(tensors)]

    assert all(torch.equal(a, b) for a, b in zip(after(Alarms()), after(Alarms(watch=())), strict=True))


def test_an_alarm_that_stops_must_be_watched() -> None:
    with pytest.raises(ValueError, match="add them to watch"):
        Alarms(watch=(), stop=(Alarm.MODE_COLLAPSE,))
