"""Image pool: shows discriminators earlier fakes too, so that they do not forget them."""

from __future__ import annotations

import torch
from torch import Tensor

_SWAP_PROBABILITY = 0.5


class ImagePool:
    """Buffer of generated images (Shrivastava et al. 2017, arXiv:1612.07828, section 2.3, as in CycleGAN).

    While it fills, every image is stored and returned. Afterwards each image is, with probability one half, swapped
    with a random stored one, which is returned instead. Channels that belong to an image (its depth map) must be
    concatenated to it, so that they stay together.

    Parameters
    ----------
    size
        Images held; 0 returns every image unchanged.
    rng
        CPU source of randomness, shared with the sampler so that one state restores everything.
    """

    def __init__(self, size: int, rng: torch.Generator) -> None:
        self.size = size
        self.count = 0
        self._rng = rng
        self._images: Tensor | None = None

    def query(self, images: Tensor) -> Tensor:
        """Return, for each of ``[N, C, H, W]`` detached images, itself or an earlier one."""
        if self.size == 0:
            return images
        if self._images is None:
            self._images = images.new_empty((self.size, *images.shape[1:]))
        shown = []
        for image in images:
            if self.count < self.size:
                self._images[self.count] = image
                self.count += 1
                shown.append(image)
            elif float(torch.rand((), generator=self._rng)) < _SWAP_PROBABILITY:
                slot = int(torch.randint(self.size, (), generator=self._rng))
                shown.append(self._images[slot].clone())
                self._images[slot] = image
            else:
                shown.append(image)
        return torch.stack(shown)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the stored images in order, ``{}`` while there are none."""
        return {} if self._images is None else {"images": self._images[: self.count].clone()}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Restore what `state_dict` returned."""
        self.count, self._images = 0, None
        if state:
            stored = state["images"].to(device)
            if len(stored) > self.size:
                raise ValueError(f"{len(stored)} images do not fit a pool of {self.size}")
            self.count = len(stored)
            self._images = stored.new_empty((self.size, *stored.shape[1:]))
            self._images[: self.count] = stored
