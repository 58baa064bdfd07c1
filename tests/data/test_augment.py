"""Augmentation: flips along W, shifts that bring in background, maps that move with their image."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctmr.data.augment import augment


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def candidates(image: torch.Tensor, flip: bool, shift: int) -> list[torch.Tensor]:
    """Every image that flip and shift can give, by padding and cropping."""
    out = []
    for mirrored in (False, True) if flip else (False,):
        x = torch.flip(image, (-1,)) if mirrored else image
        padded = torch.nn.functional.pad(x, (shift,) * 4, value=-1.0)
        for dy in range(2 * shift + 1):
            for dx in range(2 * shift + 1):
                out.append(padded[..., dy : dy + image.shape[-2], dx : dx + image.shape[-1]])
    return out


@settings(max_examples=40, deadline=None)
@given(st.booleans(), st.integers(0, 3), st.integers(0, 10_000), st.integers(1, 3))
def test_every_result_is_a_flip_and_a_padded_shift_of_its_own_image(
    flip: bool, shift: int, seed: int, batch: int
) -> None:
    images = torch.rand(batch, 2, 5, 7, generator=rng(seed))
    out = augment(images, flip=flip, shift=shift, rng=rng(seed))
    for before, after in zip(images, out, strict=True):
        assert any(torch.equal(after, c) for c in candidates(before, flip, shift))


def test_all_shifts_and_both_sides_occur() -> None:
    image = torch.arange(30.0).view(1, 1, 5, 6)
    generator = rng()
    seen = {tuple(augment(image, flip=True, shift=1, rng=generator).flatten().tolist()) for _ in range(400)}
    assert len(seen) == 2 * 9


def test_nothing_asked_for_changes_nothing_and_draws_nothing() -> None:
    generator = rng(3)
    state = generator.get_state()
    images = torch.rand(2, 1, 4, 4)
    assert augment(images, flip=False, shift=0, rng=generator) is images
    assert torch.equal(generator.get_state(), state)


def test_the_original_is_not_changed() -> None:
    images = torch.rand(4, 1, 6, 6)
    copy = images.clone()
    augment(images, flip=True, shift=2, rng=rng())
    assert torch.equal(images, copy)
