"""A tiny translator, its exported releases, and a real embedded Triton."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ctmr.imaging.grid import Plane, volume_grid
from ctmr.imaging.volume import Direction, Modality, Unit, Volume
from ctmr.networks.normaliser import Normaliser
from ctmr.networks.translator import Translator
from ctmr.recipe.recipe import Percentile, Window
from ctmr.serving.client import TritonClient
from ctmr.serving.export import ExportedFiles, ServedModality, ServedSpec, export_translator
from ctmr.serving.model_repository import Release
from ctmr.serving.server import PORTS, EmbeddedTriton, Endpoint

SIZE = (24, 32)
CHANNELS = 2


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def tiny_translator(seed: int) -> Translator:
    torch.manual_seed(seed)
    first, last = nn.Conv2d(CHANNELS, 4, 3, padding=1), nn.Conv2d(4, 1, 1)
    generator = nn.Sequential(first, nn.ReLU(), Residual(4), last, nn.Tanh())
    window = Window(low=-1024, high=2000, knots=((-1024, -1), (-150, -0.45), (150, 0.25), (2000, 1)))
    return Translator(Normaliser(Percentile()), generator, Normaliser(window), (-1024.0, 2000.0)).eval()


@dataclass(frozen=True)
class Exported:
    translator: Translator
    files: ExportedFiles
    spec: ServedSpec

    def release(self, model: str, version: int) -> Release:
        return Release(model, str(version), self.files.generator, self.files.range, self.spec)

    def by_torch(self, array: np.ndarray) -> np.ndarray:
        """Translate [C, D, H, W] by PyTorch, the range by numpy's percentile."""
        config = Percentile()
        limits = []
        for channel in array.astype(np.float64):
            foreground = channel[channel > channel.mean()]
            limits.append([0.0, np.percentile(foreground, config.percentile) * config.headroom])
        slices = torch.from_numpy(np.moveaxis(array, 0, 1).astype(np.float32))
        with torch.no_grad():
            repeated = torch.tensor(limits, dtype=torch.float32).expand(len(slices), CHANNELS, 2)
            made: np.ndarray = self.translator(slices, repeated).numpy()[:, 0]
        return made


@pytest.fixture(scope="session")
def make_translator() -> Callable[[int], Translator]:
    return tiny_translator


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> list[Exported]:
    """Two models of equal geometry and unlike weights."""
    torch.set_num_threads(1)
    out = []
    for seed in (0, 1):
        translator = tiny_translator(seed)
        files = export_translator(translator, CHANNELS, SIZE, tmp_path_factory.mktemp(f"export{seed}"))
        spec = ServedSpec(
            direction=Direction.MR2CT,
            source=ServedModality(modality=Modality.MR, unit=Unit.ARBITRARY, sequences=("T1", "T2")),
            target=ServedModality(modality=Modality.CT, unit=Unit.HU),
            grid=volume_grid(Plane.AXIAL, SIZE, (2.0, 2.0)),
            channels=CHANNELS,
            chunk=4,
            max_voxels=200_000,
            generator_sha256=files.generator_sha256,
            range_sha256=files.range_sha256,
            lineage={"model_name": "tiny", "recipe": "test"},
        )
        out.append(Exported(translator, files, spec))
    return out


@pytest.fixture(scope="session")
def array() -> np.ndarray:
    """[C, D, H, W] on the grid; more slices than one chunk and not a multiple of it."""
    return np.random.default_rng(3).integers(0, 3000, (CHANNELS, 10, *SIZE)).astype(np.uint16)


@pytest.fixture(scope="session")
def head() -> list[Volume]:
    """T1 and T2 of one subject in sagittal order and at a spacing that is not the grid's."""
    rng = np.random.default_rng(5)
    affine = np.array([[0, 0, -2.5, 40], [0, -1.5, 0, 30], [-1.5, 0, 0, 30], [0, 0, 0, 1]], dtype=np.float64)
    affine = affine[:, [2, 0, 1, 3]]
    return [
        Volume(
            rng.integers(0, 2000, (9, 26, 30)).astype(np.int16),
            affine,
            Modality.MR,
            Unit.ARBITRARY,
            subject="s1",
            sequence=sequence,
        )
        for sequence in ("T1", "T2")
    ]


@dataclass(frozen=True)
class Server:
    triton: EmbeddedTriton
    endpoint: Endpoint
    repository: Path

    def client(self) -> TritonClient:
        """Return a client that may load and unload."""
        return self.triton.client(self.repository)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("the bundled Triton is not installed (pip install --no-deps nvidia-pytriton)")
    root = tmp_path_factory.mktemp("triton")
    triton = EmbeddedTriton(root / "state")
    endpoint = triton.start(root / "repository", dict.fromkeys(PORTS, 0))
    yield Server(triton, endpoint, root / "repository")
    # Ending in peace is test_embedded's business; here it would only take time.
    os.kill(triton.status().process.pid, signal.SIGKILL)
    triton.stop()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, exported: list[Exported]) -> Iterator[Any]:
    """A home with a real Triton and a real MLflow, version 1 champion and live."""
    from tests.serving.promoting import made_place

    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("the bundled Triton is not installed")
    with made_place(tmp_path_factory.mktemp("promoting"), exported) as made:
        yield made
