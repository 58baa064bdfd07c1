"""Measurement: images that belong together become a pair, and every registered metric of the protocol is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.pair import ImagePair
from ctmr.metrics.protocol import PROTOCOLS, Mask, Pairing, Protocol, Unmeasurable
from ctmr.metrics.registry import METRICS

OUTLINE_PX = 2
WAY_OUT = "leave the image out of the test, or evaluate with other protocols"


def measure_paired(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    protocol: Protocol,
    *,
    case: str,
    subject: str,
    slice_axis: int | None = None,
) -> CaseMetrics:
    """Measure a prediction against the same patient's truth.

    Parameters
    ----------
    prediction, truth
        ``[D, H, W]`` on one grid in the protocol's unit (HU or 8-bit grey levels). Slice protocols take one slice,
        ``[1, H, W]``: the mean of slices' PSNRs has no RMSE.
    mask
        ``[D, H, W]`` bool, the mask that the protocol names, for SynthRAD the dataset's own; ignored where it names
        none.
    protocol
        One of the paired protocols of `ctmr.metrics.protocol.PROTOCOLS`.
    case, subject
        Identifiers of the case and its patient.
    slice_axis
        Axis along which the model's slices are stacked; ``None``: not known.

    Returns
    -------
    CaseMetrics
        What `ctmr.metrics.registry` has under the protocol. A tissue that the truth lacks gives no number, nor does
        flicker without `slice_axis`. PSNR is infinite for equal images. Everything is computed in float64.

    Raises
    ------
    ValueError
        When the protocol is not paired, shapes differ, a value is not finite, the mask is missing or empty, or the
        SSIM window does not fit.

    Examples
    --------
    >>> truth, head = np.zeros((8, 8, 8)), np.ones((8, 8, 8), bool)
    >>> case = measure_paired(truth + 10, truth, head, PROTOCOLS["paired_volume_hu"], case="c1", subject="s1")
    >>> case.values["mae"], round(case.values["psnr"], 2)
    (10.0, 52.09)
    """
    if protocol.pairing is not Pairing.PAIRED or protocol.data_range is None:
        raise ValueError(f"case {case}: protocol {protocol.name} does not compare a prediction with its truth")
    inside = _checked(prediction, truth, mask, protocol, case)
    return measure(ImagePair(prediction, truth, inside, protocol, slice_axis), case=case, subject=subject)


def measure_cycle(image: NDArray[Any], reconstruction: NDArray[Any], *, case: str, subject: str) -> CaseMetrics:
    """Measure an image against its own reconstruction, in [-1, 1] as trained: never fidelity, the identity scores 1.

    Parameters
    ----------
    image, reconstruction
        ``[H, W]`` or ``[C, H, W]``, clipped to [-1, 1]. SSIM (Gaussian, range 2, on x + 1) is the mean over channels.
    case, subject
        Identifiers.

    Raises
    ------
    ValueError
        When shapes differ, a value is not finite or the slice is smaller than the window.
    """
    protocol = PROTOCOLS["cycle_slice"]
    image, reconstruction = np.atleast_3d(image.T).T, np.atleast_3d(reconstruction.T).T
    inside = _checked(reconstruction, image, None, protocol, case, slices=image.shape[0])
    return measure(ImagePair(reconstruction, image, inside, protocol), case=case, subject=subject)


def measure_unpaired_pixels(
    translation: NDArray[Any], other: NDArray[Any], *, data_range: float, paper: str, case: str
) -> CaseMetrics:
    """Measure a translation against some *other* patient's image, only to rebuild a paper's table.

    Parameters
    ----------
    translation, other
        One shape, in the values that the paper measured.
    data_range
        MAX of the paper's PSNR.
    paper
        Whose table; the protocol's variant.
    case
        Name of the pair; it has no patient.

    Returns
    -------
    CaseMetrics
        mae, mse, rmse, psnr. They say nothing about fidelity and can never be in a gate.

    Raises
    ------
    ValueError
        When shapes differ or a value is not finite.
    """
    if translation.shape != other.shape:
        raise ValueError(f"case {case}: translation {translation.shape} and image {other.shape} must share one shape")
    if not (np.isfinite(translation).all() and np.isfinite(other).all()):
        raise ValueError(f"case {case}: translation or image holds values that are not finite; all must be numbers")
    how = replace(PROTOCOLS["unpaired_pixels"], data_range=data_range, variant=paper)
    inside = np.ones(other.shape, dtype=bool)
    return measure(ImagePair(translation, other, inside, how), case=case, subject="")


def measure_structure(
    source: NDArray[Any], translation: NDArray[Any], head: NDArray[np.bool_], *, case: str, subject: str
) -> CaseMetrics:
    """Measure a slice against its own translation inside the head.

    Parameters
    ----------
    source, translation
        ``[H, W]`` or ``[1, H, W]``, each in its own unit: all three metrics ignore scale and offset.
    head
        Same shape, bool. Its outermost 2 px are left out: any translator keeps the outline of the head.
    case, subject
        Identifiers.

    Returns
    -------
    CaseMetrics
        nmi in [0, 1], gradient_correlation in [-1, 1], edge_overlap in [0, 1]. All are 1 for the identity, so a high
        number only says that anatomy was kept, never that the other modality was reached.

    Raises
    ------
    ValueError
        When it is not one slice, shapes differ, values are not finite or the head is empty.
    """
    where = f"case {case} under structure"
    x, y, inside = (a[0] if a.ndim == 3 and a.shape[0] == 1 else a for a in (source, translation, head))
    if x.ndim != 2 or x.shape != y.shape or x.shape != inside.shape:
        raise ValueError(
            f"{where}: source {source.shape}, translation {translation.shape} and head {head.shape} must be one slice "
            "of one shape; measure slice by slice"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"{where}: source or translation holds values that are not finite; all must be numbers")
    inner = ndimage.binary_erosion(inside, iterations=OUTLINE_PX)
    inner = inner if inner.any() else inside.astype(bool)
    if not inner.any():
        raise Unmeasurable(f"{where}: the head mask is empty; it must hold at least one pixel; {WAY_OUT}")
    pair = ImagePair(y.astype(np.float64), x.astype(np.float64), inner, PROTOCOLS["structure"])
    return measure(pair, case=case, subject=subject)


def measure(pair: ImagePair, *, case: str, subject: str) -> CaseMetrics:
    """Take every metric of the registry that the pair's protocol carries and that has a function of a pair.

    Raises
    ------
    ValueError
        When a metric cannot be computed, such as an SSIM whose window does not fit.
    """
    values = {}
    for metric in METRICS.values():
        if metric.measure is None or pair.protocol.name not in metric.protocols:
            continue
        try:
            found = metric.measure(pair)
        except Unmeasurable as error:
            raise Unmeasurable(f"case {case} under {pair.protocol.name}: {error}; {WAY_OUT}") from None
        except ValueError as error:
            raise ValueError(f"case {case} under {pair.protocol.name}: {error}") from None
        if found is not None:
            values[metric.name] = found
    return CaseMetrics(case, subject, pair.protocol, values)


def _checked(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    protocol: Protocol,
    case: str,
    slices: int = 1,
) -> NDArray[np.bool_]:
    where = f"case {case} under {protocol.name}"
    if prediction.ndim != 3 or prediction.shape != truth.shape:
        raise ValueError(
            f"{where}: prediction {prediction.shape} and truth {truth.shape} must share one shape [D, H, W]"
        )
    if not protocol.volume and prediction.shape[0] != slices:
        raise ValueError(f"{where}: takes one slice [1, H, W], found {prediction.shape}; measure slice by slice")
    if not (np.isfinite(prediction).all() and np.isfinite(truth).all()):
        raise ValueError(f"{where}: prediction or truth holds values that are not finite; all must be numbers")
    if protocol.mask is Mask.NONE:
        return np.ones(truth.shape, dtype=bool)
    if mask is None or mask.shape != truth.shape:
        found = "none" if mask is None else str(mask.shape)
        raise ValueError(f"{where}: needs mask {protocol.mask} of shape {truth.shape}, found {found}")
    inside = mask.astype(bool)
    if not inside.any():
        raise Unmeasurable(f"{where}: mask {protocol.mask} is empty; it must hold at least one voxel; {WAY_OUT}")
    return inside
