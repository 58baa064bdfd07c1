"""Augmentation: flips along W, shifts that bring in background, maps that move with their image."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ctmr.data.augment import Augmentation, augment, scale_intensity


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def candidates(image: torch.Tensor, flip: bool, shift: int, vertical: bool = False) -> list[torch.Tensor]:
    """Every image that flips and shift can give, by padding and cropping."""
    out = []
    for axes in itertools.product((False, True) if flip else (False,), (False, True) if vertical else (False,)):
        x = torch.flip(image, [axis for axis, flipped in zip((-1, -2), axes, strict=True) if flipped])
        padded = torch.nn.functional.pad(x, (shift,) * 4, value=-1.0)
        for dy in range(2 * shift + 1):
            for dx in range(2 * shift + 1):
                out.append(padded[..., dy : dy + image.shape[-2], dx : dx + image.shape[-1]])
    return out


@settings(max_examples=40, deadline=None)
@given(st.booleans(), st.booleans(), st.integers(0, 3), st.integers(0, 10_000), st.integers(1, 3))
def test_every_result_is_a_flip_and_a_padded_shift_of_its_own_image(
    flip: bool, vertical: bool, shift: int, seed: int, batch: int
) -> None:
    images = torch.rand(batch, 2, 5, 7, generator=rng(seed))
    out = augment(images, Augmentation(flip, shift, vertical), rng(seed))
    for before, after in zip(images, out, strict=True):
        assert any(torch.equal(after, c) for c in candidates(before, flip, shift, vertical))


def test_all_shifts_and_both_sides_occur() -> None:
    image = torch.arange(30.0).view(1, 1, 5, 6)
    generator = rng()
    moves = Augmentation(flip=True, shift=1, flip_vertical=True)
    seen = {tuple(augment(image, moves, generator).flatten().tolist()) for _ in range(800)}
    assert len(seen) == 4 * 9


def test_nothing_asked_for_changes_nothing_and_draws_nothing() -> None:
    generator = rng(3)
    state = generator.get_state()
    images = torch.rand(2, 1, 4, 4)
    assert augment(images, Augmentation(), generator) is images
    assert torch.equal(generator.get_state(), state)


def test_the_original_is_not_changed() -> None:
    images = torch.rand(4, 1, 6, 6)
    copy = images.clone()
    augment(images, Augmentation(flip=True, shift=2), rng())
    augment(images, Augmentation(rotation_deg=9.0, zoom=(0.9, 1.2)), rng())
    scale_intensity(images, 0.3, rng())
    assert torch.equal(images, copy)


def test_a_shift_of_15_is_padding_256_to_286_and_cropping_256() -> None:
    image = torch.rand(1, 1, 256, 256, generator=rng())
    padded = torch.nn.functional.pad(image, (15,) * 4, value=-1.0)
    assert padded.shape[-2:] == (286, 286)
    generator = rng(4)
    for _ in range(3):
        out = augment(image, Augmentation(shift=15), generator)
        crops = padded.unfold(2, 256, 1).unfold(3, 256, 1)[0, 0]
        assert bool((crops == out[0, 0]).flatten(2).all(2).any())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 90.0), st.floats(0.6, 1.0), st.floats(1.0, 1.7))
def test_zoom_and_rotation_equal_scipys_affine_transform(seed: int, degrees: float, low: float, high: float) -> None:
    """The same numbers drawn, and a smooth image, on which one bilinear interpolation equals another."""
    height, width = 24, 36
    y, x = np.mgrid[:height, :width].astype(float)
    image = np.sin(y / 5.0) * np.cos(x / 6.0) * 0.5
    drawn = rng(seed)
    angle = float(torch.rand(1, generator=drawn)) * 2 - 1
    if (low, high) == (1.0, 1.0) and degrees == 0:
        return
    zoom = float(np.exp(np.log(low) + (np.log(high) - np.log(low)) * float(torch.rand(1, generator=drawn))))
    a = np.radians(degrees * angle)
    turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) / zoom
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    expected = ndimage.affine_transform(image, turn, centre - turn @ centre, order=1, cval=-1.0)
    out = augment(torch.from_numpy(image)[None, None], Augmentation(rotation_deg=degrees, zoom=(low, high)), rng(seed))[
        0, 0
    ].numpy()
    inside = ndimage.affine_transform(np.ones_like(image), turn, centre - turn @ centre, order=1, cval=0.0) == 1.0
    np.testing.assert_allclose(out[inside], expected[inside], atol=1e-4)


def test_what_comes_in_by_zooming_out_is_background_and_zooming_in_by_286_over_256_brings_none() -> None:
    image = torch.full((1, 2, 64, 64), 0.5)
    small = augment(image, Augmentation(zoom=(0.5, 0.5)), rng())
    assert torch.equal(small[0, :, 0], torch.full((2, 64), -1.0))
    assert float(small[0, 0, 32, 32]) == pytest.approx(0.5)
    for seed in range(20):
        crop = augment(image, Augmentation(flip=True, shift=3, zoom=(286 / 256, 286 / 256)), rng(seed))
        assert float(crop.min()) == pytest.approx(0.5, abs=1e-6)


def test_a_map_moves_with_its_image_through_every_move() -> None:
    image = torch.rand(3, 1, 20, 20, generator=rng())
    everything = Augmentation(True, 2, True, 30.0, (0.8, 1.2))
    out = augment(torch.cat([image, image], 1), everything, rng(5))
    assert torch.equal(out[:, 0], out[:, 1])
    assert not torch.equal(out[:, :1], image)


def test_intensity_is_a_factor_about_black_clipped_to_white() -> None:
    images = torch.tensor([-1.0, -0.5, 0.0, 1.0]).view(1, 1, 2, 2).repeat(200, 1, 1, 1)
    out = scale_intensity(images, 0.2, rng())
    assert torch.equal(out[:, 0, 0, 0], torch.full((200,), -1.0))
    factors = (out[:, 0, 1, 0] + 1.0).numpy()
    assert 0.8 <= factors.min() < 0.82 and 1.18 < factors.max() <= 1.2
    np.testing.assert_allclose(out[:, 0, 0, 1], 0.5 * factors - 1.0, rtol=1e-5)
    assert float(out.max()) == 1.0
