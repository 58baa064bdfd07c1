"""Acquisition of the anatomy by the scanners: CT in Hounsfield units, T1- and T2-weighted spin echo.

References
----------
Spin-echo signal: Haacke et al., *Magnetic Resonance Imaging: Physical Principles and Sequence Design* (1999),
ch. 8. Rician noise: Gudbjartsson and Patz, *Magn. Reson. Med.* 34 (1995) 910-914. A smooth multiplicative bias
field: Sled, Zijdenbos and Evans, *IEEE Trans. Med. Imaging* 17 (1998) 87-97.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ctmr.imaging.hounsfield import SCANNER_RANGE_HU

from .canvas import Canvas
from .geometry import Volume, wave_noise
from .tissue import PROPERTIES, Tissue

# Point spread of both scanners, as a Gaussian sigma in voxels: a scan at other spacing has another kernel.
CT_BLUR_VOXELS = 0.55
MR_BLUR_VOXELS = 0.40

# Variation between subjects of every relaxation time, and of the CT number of dense tissue.
_RELAXATION_SPREAD = 0.04
_DENSE_HU_SPREAD = 0.06
_SOFT_HU_SPREAD_HU = 1.2


@dataclass(frozen=True)
class SpinEcho:
    """Repetition and echo time of a spin-echo sequence in milliseconds."""

    tr_ms: float
    te_ms: float


def spin_echo_signal(proton_density: float, t1_ms: float, t2_ms: float, sequence: SpinEcho) -> float:
    """Signal S = PD (1 - exp(-TR / T1)) exp(-TE / T2), relative to fully relaxed CSF."""
    recovered = 1 - np.exp(-sequence.tr_ms / t1_ms)
    dephased = np.exp(-sequence.te_ms / t2_ms)
    return float(proton_density * recovered * dephased)


@dataclass(frozen=True)
class Scans:
    """The three volumes of one subject on one grid: `ct` in HU, `t1` and `t2` in arbitrary units."""

    ct: NDArray[np.int16]
    t1: NDArray[np.uint16]
    t2: NDArray[np.uint16]


def acquire(canvas: Canvas, axes_mm: Sequence[NDArray[np.float64]], rng: np.random.Generator) -> Scans:
    """Scan an anatomy once with CT and once with each MR weighting.

    Parameters
    ----------
    canvas
        The painted anatomy.
    axes_mm
        Grid axes in millimetres; the bias field is smooth in millimetres, whatever the spacing.
    rng
        Source of sequence parameters, tissue spread and noise.
    """
    t1_weighted = SpinEcho(tr_ms=rng.uniform(440, 560), te_ms=rng.uniform(9, 13))
    t2_weighted = SpinEcho(tr_ms=rng.uniform(3800, 5200), te_ms=rng.uniform(85, 105))
    ct, t1, t2 = canvas.render(_subject_values(rng, t1_weighted, t2_weighted))
    return Scans(ct=_scan_ct(ct, rng), t1=_scan_mr(t1, axes_mm, rng), t2=_scan_mr(t2, axes_mm, rng))


def _subject_values(rng: np.random.Generator, t1_weighted: SpinEcho, t2_weighted: SpinEcho) -> NDArray[np.float32]:
    """Rows of (HU, T1-weighted signal, T2-weighted signal) by tissue for this subject."""
    values = np.zeros((len(Tissue), 3), np.float32)
    for tissue in Tissue:
        row = PROPERTIES[tissue]
        hu_draw, t1_draw, t2_draw = rng.uniform(-1, 1, 3)
        hu = row.hu
        if tissue not in (Tissue.AIR, Tissue.AIRWAY):
            hu += hu_draw * (_DENSE_HU_SPREAD * hu if hu > 200 else _SOFT_HU_SPREAD_HU)
        t1_ms = row.t1_ms * (1 + _RELAXATION_SPREAD * t1_draw)
        t2_ms = row.t2_ms * (1 + _RELAXATION_SPREAD * t2_draw)
        values[tissue] = (
            hu,
            spin_echo_signal(row.proton_density, t1_ms, t2_ms, t1_weighted),
            spin_echo_signal(row.proton_density, t1_ms, t2_ms, t2_weighted),
        )
    return values


def _scan_ct(hu: Volume, rng: np.random.Generator) -> NDArray[np.int16]:
    """Blur, and add noise of 3.5 to 6 HU whose low frequencies filtered back-projection has suppressed."""
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    noise -= np.float32(0.6) * gaussian_filter(noise, 1.5, truncate=3)
    noise *= np.float32(rng.uniform(3.5, 6.0) / noise.std())
    scanned = gaussian_filter(hu, CT_BLUR_VOXELS) + noise
    stored: NDArray[np.int16] = np.rint(np.clip(scanned, *SCANNER_RANGE_HU)).astype(np.int16)
    return stored


def _scan_mr(signal: Volume, axes_mm: Sequence[NDArray[np.float64]], rng: np.random.Generator) -> NDArray[np.uint16]:
    """Blur, shade with the coil's bias field, add noise in both channels of the receiver, take the magnitude."""
    bias = np.exp(np.float32(rng.uniform(0.06, 0.12)) * wave_noise(rng, 160, points=16).on_grid(axes_mm))
    clean = gaussian_filter(signal, MR_BLUR_VOXELS) * bias
    sigma = np.float32(rng.uniform(0.004, 0.008))
    real = clean + sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    gain = np.float32(rng.uniform(1500, 2600))
    magnitude = gain * np.sqrt(real * real + imaginary * imaginary)
    stored: NDArray[np.uint16] = np.rint(np.clip(magnitude, 0, np.iinfo(np.uint16).max)).astype(np.uint16)
    return stored
