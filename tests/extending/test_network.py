"""A new network is a class and a row: a recipe names it, the trainer trains it, and it is exported and rebuilt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_training import heads
from torch import Tensor, nn

from ctmr.errors import InputError
from ctmr.imaging.grid import Plane, volume_grid
from ctmr.imaging.volume import Direction, Unit
from ctmr.networks import model_folder
from ctmr.networks.blocks import ImageNetwork, norm
from ctmr.networks.model_folder import Description, ModalityDescription
from ctmr.recipe.loading import load
from ctmr.recipe.recipe import Recipe
from ctmr.recipe.training import DISCRIMINATORS, GENERATORS, LayerNorm, Upsampling
from ctmr.serving.export import export_translator
from ctmr.training.trainer import Trainer

SETTINGS = (
    "network.generator.kind=plain",
    "network.generator.width=4",
    "network.generator.blocks=2",
    "network.discriminator.kind=pixels",
    "network.discriminator.width=4",
    "train.steps=6",
    "train.threads=1",
)


class PlainGenerator(ImageNetwork):
    """Convolutions at full resolution: the smallest generator that learns."""

    divisor = 2
    what = "the plain generator"

    def __init__(
        self, in_channels: int, out_channels: int, width: int, blocks: int, kind: LayerNorm, up: Upsampling
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU()]
        for _ in range(blocks):
            layers += [nn.Conv2d(width, width, 3, padding=1), norm(width, kind), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, out_channels, 3, padding=1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        self.require_divisible((x.shape[-2], x.shape[-1]))
        return self.layers(x)


class PixelDiscriminator(ImageNetwork):
    """Scores every pixel by itself."""

    def __init__(self, in_channels: int, width: int, layers: int, kind: LayerNorm) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 1))

    def forward(self, x: Tensor, depth: Tensor | None = None) -> Tensor:
        return self.layers(x)


@pytest.fixture
def recipe() -> Recipe:
    with GENERATORS.added("plain", PlainGenerator), DISCRIMINATORS.added("pixels", PixelDiscriminator):
        yield load("default", SETTINGS)


def test_it_trains_and_the_model_folder_and_onnx_give_what_was_trained(recipe: Recipe, tmp_path: Path) -> None:
    trainer = Trainer(recipe.network, recipe.loss, recipe.train, heads(), report_every=6, samples=0)
    before = trainer.generator(Direction.MR2CT).state_dict()
    list(trainer.run())
    trained = {d: trainer.generator(d) for d in Direction}
    assert isinstance(trained[Direction.MR2CT], PlainGenerator)
    assert any(not torch.equal(v, before[k]) for k, v in trained[Direction.MR2CT].state_dict().items())
    assert set(trainer.reports[-1].accuracy) == {"ct", "mr"}

    side = ModalityDescription(unit=Unit.HU, channels=1, sequences=("",), target_range=(-1000.0, 2000.0))
    description = Description(
        generator=recipe.network.generator,
        normalise=recipe.normalise,
        grid=volume_grid(Plane.AXIAL, (16, 16), (1.0, 1.0)),
        sides={"CT": side, "MR": side},
        directions=tuple(Direction),
    )
    model_folder.save(tmp_path, description, trained)
    translator = model_folder.load_translator(tmp_path, Direction.MR2CT)
    slices = torch.linspace(-1000, 2000, 256).reshape(1, 1, 16, 16)
    limits = translator.source.measure(slices)[None]
    own = model_folder.make_translator(description, Direction.MR2CT, trained[Direction.MR2CT])
    assert torch.equal(translator(slices, limits), own(slices, limits))
    # Refuses a graph that differs from PyTorch.
    assert export_translator(translator, 1, (16, 16), tmp_path / "onnx").generator.is_file()


def test_slices_that_do_not_fit_are_refused_before_training(recipe: Recipe) -> None:
    from ctmr.networks import build_generator

    with pytest.raises(InputError, match=r"the plain generator needs slices .* divisible by 2, found 15×16"):
        build_generator(recipe.network.generator, 1, 1, size=(15, 16))


def test_a_name_without_a_row_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(InputError, match=r"network\.generator\.kind: should be one of resnet, unet, .*found 'plain'"):
        load("default", SETTINGS)
    with pytest.raises(ValueError, match="has a row already"), GENERATORS.added("resnet", PlainGenerator):
        pass


@pytest.mark.parametrize("registry", [GENERATORS, DISCRIMINATORS])
def test_every_row_names_a_class_that_is_there(registry: dict[str, type]) -> None:
    assert all(issubclass(row, ImageNetwork) for row in registry.values())
