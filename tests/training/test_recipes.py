"""Every shipped recipe trains through the one trainer, cut down in size alone, and what it trained is exported."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from ctmr.data.domain import Domain
from ctmr.data.sampling import TrainingData
from ctmr.networks import build_discriminator, build_generator
from ctmr.networks.normaliser import Normaliser
from ctmr.networks.translator import Translator
from ctmr.recipe.loading import load, override
from ctmr.recipe.recipe import Recipe, Window
from ctmr.recipe.training import GENERATORS, Generator, LayerNorm, Upsampling
from ctmr.serving.export import export_translator
from ctmr.training.events import DoneEvent, NoticeEvent, SampleEvent, StepEvent
from ctmr.training.trainer import Trainer

torch.set_num_threads(1)
RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
SIDE = 64
STEPS = 4
CUT_DOWN = [
    ("train.steps", STEPS),
    ("train.threads", 1),
    ("network.generator.width", 4),
    ("network.discriminator.width", 4),
    ("train.pool", 2),
    ("train.sample_every", STEPS),
    ("train.checkpoint_every", STEPS),
    ("train.precision", "fp32"),
]
PRINTED_NAMES = {
    "nehra": {"ABA", "BAB", "DA", "DB", "D", "G_AB", "G_BA", "G", "reconstruction"},
    "jha_iima": {"G_loss", "F_loss", "D_X_loss", "D_Y_loss", "forward_cycle_loss", "backward_cycle_loss"},
}


def small(path: Path) -> Recipe:
    recipe = override(load(str(path)), CUT_DOWN)
    train = {"batch": min(2, recipe.train.batch), "subset_images": min(2, recipe.train.subset_images)}
    if recipe.network.generator.kind == "resnet":
        recipe = override(recipe, [("network.generator.blocks", 1)])
    return override(recipe, [(f"train.{key}", value) for key, value in train.items()])


def heads(inside: float, subjects: tuple[str, ...], seed: int, pictures: bool) -> Domain:
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    radius = 0.5 + 0.3 * torch.rand(8, 1, 1, 1, generator=rng)
    images = torch.where(y.square() + x.square() < radius.square(), inside, -1.0)
    images = (images + 0.1 * torch.rand(8, 1, SIDE, SIDE, generator=rng)).clamp(-1, 1)
    levels = None if pictures else torch.arange(8).remainder(4).float() - 1.5
    return Domain(images, images.clone(), levels, torch.arange(8) // 4, subjects, subjects, absolute=not pictures)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
@pytest.mark.parametrize("pictures", [False, True], ids=["volumes", "pictures"])
def test_every_recipe_trains_through_the_same_trainer(path: Path, pictures: bool) -> None:
    recipe = small(path)
    data = TrainingData(mr=heads(0.4, ("a", "b"), 1, pictures), ct=heads(0.0, ("c", "d"), 2, pictures))
    if not recipe.network.discriminator.position:
        data = TrainingData(*(dataclasses.replace(d, depth=None) for d in (data.mr, data.ct)))
    trainer = Trainer(recipe.network, recipe.loss, recipe.train, data, report_every=STEPS)
    before = trainer.generator(recipe.direction).state_dict()
    events = list(trainer.run())
    assert isinstance(events[-1], DoneEvent) and any(isinstance(e, SampleEvent) for e in events)
    (report,) = [e for e in events if isinstance(e, StepEvent)]
    assert {"generator", "discriminator"} <= set(report.losses)
    assert all(abs(value) < 1e4 for value in report.losses.values())
    assert set(report.named) == PRINTED_NAMES.get(recipe.name, set())
    assert set(report.accuracy) == {"ct", "mr"}
    after = trainer.generator(recipe.direction).state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in after)
    random = [e for e in events if isinstance(e, NoticeEvent) and "RANDOM" in e.message]
    assert len(random) == (2 if recipe.name == "duval" else 0)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_fits_the_slices_that_it_asks_for(path: Path) -> None:
    recipe = load(str(path))
    for size in {recipe.preprocess.size, recipe.preprocess.picture_size}:
        build_generator(recipe.network.generator, 1, 1, size=size)
        build_discriminator(recipe.network.discriminator, 1, size=size)


def test_the_recipes_of_papers_with_zhus_networks_have_their_published_parameters() -> None:
    """Zhu et al. 2017: 11.378 and 7.838 million in a generator that sees RGB, 2.765 million in a discriminator."""
    for name, millions in (("shangari", 11.378), ("jha_iima", 7.838)):
        network = load(name).network
        generator = build_generator(network.generator, 1, 1)
        discriminator = build_discriminator(network.discriminator, 1)
        assert round(sum(p.numel() for p in generator.parameters()) / 1e6, 3) == millions
        assert round(sum(p.numel() for p in discriminator.parameters()) / 1e6, 3) == 2.765


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(GENERATORS))
@pytest.mark.parametrize("upsampling", list(Upsampling))
@pytest.mark.parametrize("norm", list(LayerNorm))
def test_every_generator_is_exported_and_onnx_runtime_gives_what_pytorch_gives(
    kind: str, upsampling: Upsampling, norm: LayerNorm, tmp_path: Path
) -> None:
    """`export_translator` refuses a graph that differs."""
    config = Generator(kind=kind, width=4, blocks=2, norm=norm, upsampling=upsampling, rgb=norm is LayerNorm.BATCH)
    rng = torch.Generator().manual_seed(1)
    generator = build_generator(config, 1, 1, size=(32, 40), rng=rng)
    for p in generator.parameters():
        torch.nn.init.normal_(p, 0.0, 0.2, generator=rng)
    for _ in range(3):
        # Statistics of batch norm that are not those it starts with.
        generator(torch.randn(2, 1, 32, 40, generator=rng))
    window = Normaliser(Window(low=-1000, high=2000))
    files = export_translator(Translator(window, generator, window, (-1000.0, 2000.0)), 1, (32, 40), tmp_path)
    assert files.generator.is_file() and files.difference < 0.3
