"""Alarms: pure functions that measure, on a few slices, whether a training has failed in a way its losses hide.

All images are normalised to [-1, 1]. MR and CT slices of a reading are unpaired, of any subjects; a translation is
compared with what slices of its target modality are like, never with a truth. An alarm that the data cannot show
returns ``None``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctmr.imaging.mask import head_depth
from ctmr.imaging.volume import Modality
from ctmr.recipe.training import Alarm
from ctmr.training.cyclegan.losses import DATA_RANGE

Images = NDArray[np.floating]
Mask = NDArray[np.bool_]

ACCURACY_LIMIT = 0.99
"""A discriminator that is right about more than this share of patches, real and translated, has nothing to learn."""
SPREAD_LIMIT = 0.05
"""Translations of unlike slices that differ by less than this share of what the target's own slices differ."""
CORRELATION_LIMIT = 0.0
"""The mean translation that is the negative of the target's mean slice."""
CONTRAST_LIMIT = 0.0
"""The contrast of skull and scalp that is the reverse of the target's own."""
SHORTCUT_LIMIT = 0.5
"""Translations that a straight line of their input explains, but for less than this share of what it leaves of slices
of the target. Readings of good trainings and of copies, some of them above it, stand in docs/training.md."""

VISIBLE = 0.05 * DATA_RANGE
"""A spread, contrast or difference of the real slices that is smaller tells nothing."""
_INNER_SHELL_PX = 2
"""Of the pixels along the skin (shell 1) most are half air."""
_FEWEST_PIXELS = 20

ADVICE: dict[Alarm, str] = {
    Alarm.DISCRIMINATOR_WON: (
        "the generators learn nothing from a discriminator that is always right; lower train.lr_discriminator or "
        "raise train.discriminator_every"
    ),
    Alarm.MODE_COLLAPSE: (
        "unlike slices get nearly the same translation; raise loss.cycle, lower train.lr_generator, or enlarge "
        "train.pool or train.batch"
    ),
    Alarm.INTENSITY_INVERSION: (
        "bright and dark have changed places, which the cycle undoes unnoticed; train with another train.seed, or "
        "with loss.identity or loss.warmup.weight above 0"
    ),
    Alarm.TISSUE_SWAP: (
        "scalp is painted as skull and skull as scalp, which the cycle undoes unnoticed; set "
        "network.discriminator.position to true and loss.warmup.weight above 0"
    ),
    Alarm.IDENTITY_SHORTCUT: (
        "the generators hand their input on, perhaps brighter or darker; lower loss.identity and loss.cycle, raise "
        "loss.adversarial_weight, or take a network.generator.kind without skip connections"
    ),
}
"""What each alarm means, and what to do."""


@dataclass(frozen=True)
class Reading:
    """One measured quantity.

    Attributes
    ----------
    side
        Modality that is translated to, and that the discriminator judges.
    value, limit
        What was measured, and where it becomes alarming.
    beyond
        The value is on the wrong side of the limit.
    """

    alarm: Alarm
    side: Modality
    value: float
    limit: float
    beyond: bool

    @property
    def name(self) -> str:
        """``<alarm>_<side>``, as in ``mode_collapse_ct``."""
        return f"{self.alarm}_{self.side.lower()}"


def discriminator_won(accuracy: float, adversarial: float, unconvincing: float, side: Modality) -> Reading:
    """Accuracy > 0.99, and the generator's adversarial loss at least as high as that of fakes that convince nobody.

    Parameters
    ----------
    accuracy
        Share of patches on the right side, of one discriminator, mean since the last report.
    adversarial
        Unweighted loss of the generator that this discriminator judges, over the same steps.
    unconvincing
        From `ctmr.training.cyclegan.losses.AdversarialLoss`.
    """
    beyond = accuracy > ACCURACY_LIMIT and adversarial >= unconvincing
    return Reading(Alarm.DISCRIMINATOR_WON, side, accuracy, ACCURACY_LIMIT, beyond)


def mode_collapse(fake: Images, real: Images, side: Modality) -> Reading | None:
    """√(mean over pixels of Var(fake)) / √(the same of real), variances over the slices; below 0.05 is alarming.

    Parameters
    ----------
    fake, real
        ``[N, H, W]``: translations of N unlike slices, and N unlike slices of the target.

    Returns
    -------
    Reading or None
        ``None`` where the real slices themselves hardly differ, or there is but one.
    """
    own, others = _spread(fake), _spread(real)
    if len(real) < 2 or others < VISIBLE:
        return None
    return _below(Alarm.MODE_COLLAPSE, side, own / others, SPREAD_LIMIT)


def intensity_inversion(fake: Images, real: Images, side: Modality) -> Reading | None:
    """Pearson's correlation, over pixels, of the mean translation and the mean real slice; below 0 is alarming.

    Heads lie roughly in the middle, so the means show head and background; a generator that paints bright what should
    be dark correlates negatively. An inversion inside the head alone is not seen here.

    Parameters
    ----------
    fake, real
        ``[N, H, W]``.

    Returns
    -------
    Reading or None
        ``None`` where either mean is flat.
    """
    own, others = fake.mean(axis=0, dtype=np.float64), real.mean(axis=0, dtype=np.float64)
    own, others = own - own.mean(), others - others.mean()
    if others.std() < VISIBLE or own.std() < VISIBLE:
        return None
    value = float((own * others).mean() / (own.std() * others.std()))
    return _below(Alarm.INTENSITY_INVERSION, side, value, CORRELATION_LIMIT)


def scalp_and_skull(ct: Images, head: Mask) -> tuple[int, int] | None:
    """Return the depths of scalp and skull under the skin, in pixels, as real CT slices show them.

    With p(d) the mean value of all pixels at rounded depth d: the skull is where p is largest, the scalp where p is
    smallest between depth 2 and the skull.

    Parameters
    ----------
    ct
        ``[N, H, W]`` real CT slices.
    head
        ``[N, H, W]`` bool, their head masks.

    Returns
    -------
    tuple or None
        ``None`` where nothing lies between, or the two hardly differ.
    """
    profile = _profile(ct, head, range(_INNER_SHELL_PX, max(_INNER_SHELL_PX, min(ct.shape[1:]) // 8) + 1))
    if not profile:
        return None
    skull = max(profile, key=profile.__getitem__)
    outside = [d for d in profile if d < skull]
    if not outside:
        return None
    scalp = min(outside, key=profile.__getitem__)
    return (scalp, skull) if profile[skull] - profile[scalp] >= VISIBLE else None


def tissue_swap(
    fake: Images, fake_head: Mask, real: Images, real_head: Mask, shells: tuple[int, int], side: Modality
) -> Reading | None:
    """(f(skull) - f(scalp)) / (r(skull) - r(scalp)); below 0, the order is reversed, is alarming.

    f and r are the mean values of translations and of real slices at a depth under the skin. In CT the skull is
    brighter than the scalp, in MR darker; a plain CycleGAN that is trained for a short time paints bright scalp fat as
    bright bone, and its losses are content (docs/decisions/0004-small-budget.md).

    Parameters
    ----------
    fake, fake_head
        ``[N, H, W]``: translations, and the head masks of the slices they were made from.
    real, real_head
        ``[N, H, W]``: slices of the target, and theirs.
    shells
        From `scalp_and_skull`.

    Returns
    -------
    Reading or None
        ``None`` where scalp and skull of the real slices hardly differ, or a depth has too few pixels.
    """
    scalp, skull = shells
    of_fake, of_real = _profile(fake, fake_head, shells), _profile(real, real_head, shells)
    if len(of_fake) < 2 or len(of_real) < 2 or abs(of_real[skull] - of_real[scalp]) < VISIBLE:
        return None
    value = (of_fake[skull] - of_fake[scalp]) / (of_real[skull] - of_real[scalp])
    return _below(Alarm.TISSUE_SWAP, side, value, CONTRAST_LIMIT)


def identity_shortcut(source: Images, fake: Images, real: Images, side: Modality) -> Reading | None:
    """√(mean over i of 1 - ρ²(sourceᵢ, fakeᵢ) / mean over all i, j of 1 - ρ²(sourceᵢ, realⱼ)); below 0.5 is alarming.

    ρ is Pearson's correlation over pixels, so 1 - ρ² is the share of a translation's variance that the best straight
    line of its input leaves unexplained. A copy leaves nothing, whether it is as bright as its input, brighter or
    its negative; a translation about as much as a slice of the target does.

    Parameters
    ----------
    source, fake, real
        ``[N, H, W]``: slices, their translations, and slices of the target.

    Returns
    -------
    Reading or None
        ``None`` where the modalities hardly differ: mean |sourceᵢ - realⱼ| below `VISIBLE`.
    """
    if float(np.mean([np.abs(one[None] - real).mean(dtype=np.float64) for one in source])) < VISIBLE:
        return None
    own = np.mean([_unexplained(a, b) for a, b in zip(source, fake, strict=True)])
    others = np.mean([_unexplained(a, b) for a in source for b in real])
    if others <= 0.0:
        return None
    return _below(Alarm.IDENTITY_SHORTCUT, side, math.sqrt(own / others), SHORTCUT_LIMIT)


def image_readings(
    slices: Mapping[Modality, Images], fakes: Mapping[Modality, Images], heads: Mapping[Modality, Mask] | None
) -> list[Reading]:
    """Return every reading that images allow.

    Parameters
    ----------
    slices
        Real slices of both modalities, ``[N, H, W]``.
    fakes
        By the modality they were translated to: those of the other modality's slices.
    heads
        Head masks of `slices`; without them tissue swap is not measured.
    """
    shells = None if heads is None else scalp_and_skull(slices[Modality.CT], heads[Modality.CT])
    found: list[Reading | None] = []
    for side in Modality:
        other = Modality.MR if side is Modality.CT else Modality.CT
        fake, real = fakes[side], slices[side]
        found += [mode_collapse(fake, real, side), intensity_inversion(fake, real, side)]
        if heads is not None and shells is not None:
            found.append(tissue_swap(fake, heads[other], real, heads[side], shells, side))
        found.append(identity_shortcut(slices[other], fake, real, side))
    return [reading for reading in found if reading is not None]


def _below(alarm: Alarm, side: Modality, value: float, limit: float) -> Reading:
    return Reading(alarm, side, value, limit, value < limit)


def _unexplained(x: Images, y: Images) -> float:
    """Return 1 - ρ² of two images; 1 where either is flat."""
    x, y = x - x.mean(dtype=np.float64), y - y.mean(dtype=np.float64)
    both = float((x * x).sum() * (y * y).sum())
    return 1.0 if both == 0.0 else max(0.0, 1.0 - float((x * y).sum()) ** 2 / both)


def _spread(images: Images) -> float:
    return float(np.sqrt(images.var(axis=0, dtype=np.float64).mean()))


def _profile(images: Images, head: Mask, depths: range | tuple[int, ...]) -> dict[int, float]:
    """Return the mean value by rounded depth in pixels, where there are pixels enough."""
    rounded = np.rint(head_depth(head)).astype(np.int64)
    inside = {d: images[rounded == d] for d in depths}
    return {d: float(v.mean(dtype=np.float64)) for d, v in inside.items() if v.size >= _FEWEST_PIXELS}
