"""Stacks: every slice between its own neighbours, ends repeated, the middle found again."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ctmr.networks.normaliser import Normaliser
from ctmr.networks.stacks import gather_stacks, middle, stack_rows, stack_size
from ctmr.networks.translator import Translator
from ctmr.recipe.recipe import Window


@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(0, 4), st.integers(1, 3))
def test_a_stack_is_what_edge_padding_puts_around_a_slice(count, neighbours, channels):
    volume = np.random.default_rng(count).normal(size=(count, channels, 3, 2)).astype(np.float32)
    padded = np.pad(volume, ((neighbours, neighbours), (0, 0), (0, 0), (0, 0)), mode="edge")
    size = stack_size(neighbours)
    wanted = np.stack([padded[k : k + size].reshape(size * channels, 3, 2) for k in range(count)])
    stacks = gather_stacks(torch.from_numpy(volume), stack_rows(count, neighbours))
    assert np.array_equal(stacks.numpy(), wanted)
    assert np.array_equal(middle(stacks, neighbours).numpy(), volume)


class FirstOfEach(nn.Module):
    """Gives the first channel of every slice of a stack back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :: self.channels]


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(0, 3), st.integers(1, 3))
def test_a_translator_gives_the_middle_of_what_its_generator_makes_each_channel_by_its_own_range(
    count, neighbours, channels
):
    same = Normaliser(Window(low=0, high=100))
    translator = Translator(same, FirstOfEach(channels), same, (0.0, 100.0), neighbours)
    volume = torch.arange(float(count * channels)).view(count, channels, 1, 1).expand(-1, -1, 2, 2)
    limits = torch.tensor([[0.0, 200.0 * (c + 1)] for c in range(channels)]).expand(count, channels, 2)
    made = translator(gather_stacks(volume, stack_rows(count, neighbours)), limits)
    # The first channel's range is twice the output's, so values come out halved.
    assert made.shape == (count, 1, 2, 2)
    assert torch.allclose(made[:, 0], volume[:, 0] / 2, atol=1e-4)
