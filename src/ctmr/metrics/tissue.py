"""Tissue order: are fat, fluid, soft tissue, bone and air of a translation, CT or MR, still in their order?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctmr.imaging.hounsfield import AIR_INSIDE_BELOW_HU

SMOOTHING_SIGMA_VOXELS = 0.8
"""CT noise of 3.5–6 HU would mix CSF and grey matter, 25 HU apart; this brings it to about 1.5 HU."""
MIN_VOXELS = 20

FAT_BELOW_SOFT_HU = 10.0
BONE_ABOVE_SOFT_HU = 100.0
AIR_BELOW_FAT_HU = 300.0
CSF_BELOW_BRAIN_HU = 5.0

MR_CONTRAST = 0.05
"""Share of the brain's median by which tissues of an MR image, whose unit means nothing, must differ in order."""


class TissueClass(StrEnum):
    """Tissues; a CT defines them by its Hounsfield units, all but grey and white matter, which need a segmentation."""

    OUTSIDE_AIR = "air outside"
    INSIDE_AIR = "air inside the head"
    FAT = "fat"
    CSF = "cerebrospinal fluid"
    GREY = "grey matter"
    BRAIN = "brain"
    WHITE = "white matter"
    BONE = "bone"


RANGE_HU: dict[TissueClass, tuple[float, float]] = {
    TissueClass.INSIDE_AIR: (-np.inf, AIR_INSIDE_BELOW_HU),
    TissueClass.FAT: (-150.0, -30.0),
    TissueClass.CSF: (0.0, 16.0),
    TissueClass.BRAIN: (20.0, 50.0),
    TissueClass.BONE: (700.0, np.inf),
}
"""Classes inside the mask, by smoothed CT."""


@dataclass(frozen=True)
class TissueRow:
    """One tissue: how many voxels, and the medians there in the target's unit.

    Attributes
    ----------
    voxels
        Voxels of the class.
    truth, prediction
        Medians; `truth` is NaN where there is none.
    low, high
        10th and 90th percentile of the prediction.
    """

    voxels: int
    truth: float
    prediction: float
    low: float
    high: float


TissueTable = dict[TissueClass, TissueRow]


def tissue_table(prediction: NDArray[Any], truth: NDArray[Any], mask: NDArray[np.bool_]) -> TissueTable:
    """Medians of a synthetic CT in the tissues that the true CT defines.

    Parameters
    ----------
    prediction, truth
        ``[D, H, W]`` in HU on one grid.
    mask
        ``[D, H, W]`` bool, the head.

    Returns
    -------
    dict
        `TissueClass` → `TissueRow`; a tissue of fewer than 20 voxels is left out.

    Raises
    ------
    ValueError
        When shapes differ.
    """
    return table_of_classes(prediction, classes_by_hu(truth, mask), truth)


def classes_by_hu(ct: NDArray[Any], mask: NDArray[np.bool_]) -> dict[TissueClass, NDArray[np.bool_]]:
    """Divide a CT into tissues: the truth of a synthetic CT, or the source of a synthetic MR.

    Parameters
    ----------
    ct
        ``[D, H, W]`` in HU.
    mask
        ``[D, H, W]`` bool, the head.

    Raises
    ------
    ValueError
        When shapes differ.

    Notes
    -----
    No label is needed: the CT is smoothed (σ 0.8 voxel), classed by its HU and each class eroded by a voxel, since
    the border of skin and air passes through every value, that of fat too. Thin tissues (skin fat, CSF) that
    erosion would leave with fewer than 20 voxels stay whole.
    """
    if ct.shape != mask.shape or ct.ndim != 3:
        raise ValueError(f"CT {ct.shape} and mask {mask.shape} must share one shape [D, H, W]")
    smooth = ndimage.gaussian_filter(ct.astype(np.float32), SMOOTHING_SIGMA_VOXELS, mode="nearest")
    inside = mask.astype(bool)
    found = {TissueClass.OUTSIDE_AIR: _core(~inside & (smooth < RANGE_HU[TissueClass.INSIDE_AIR][1]))}
    for tissue, (low, high) in RANGE_HU.items():
        found[tissue] = _core(inside & (smooth >= low) & (smooth < high))
    return found


def table_of_classes(
    prediction: NDArray[Any], classes: Mapping[TissueClass, NDArray[np.bool_]], truth: NDArray[Any] | None = None
) -> TissueTable:
    """Medians of a prediction in given tissues.

    Parameters
    ----------
    prediction, truth
        ``[D, H, W]`` in the target's unit, HU or arbitrary; without truth its medians are NaN.
    classes
        Tissue → ``[D, H, W]`` bool, from `classes_by_hu`, a segmentation, or both.

    Raises
    ------
    ValueError
        When shapes differ.
    """
    shapes = {prediction.shape, *(w.shape for w in classes.values()), *(() if truth is None else (truth.shape,))}
    if len(shapes) > 1:
        raise ValueError(f"prediction, truth and tissues must share one shape [D, H, W]; found {sorted(shapes)}")
    return {
        tissue: _row(prediction[where], None if truth is None else truth[where])
        for tissue, where in classes.items()
        if int(where.sum()) >= MIN_VOXELS
    }


def pool_tables(tables: Sequence[Mapping[TissueClass, TissueRow]]) -> TissueTable:
    """Return one table of several patients: voxels added, every other number the median over patients."""
    pooled: TissueTable = {}
    for tissue in TissueClass:
        rows = [t[tissue] for t in tables if tissue in t]
        if rows:
            medians = (float(np.median([getattr(r, k) for r in rows])) for k in ("truth", "prediction", "low", "high"))
            pooled[tissue] = TissueRow(sum(r.voxels for r in rows), *medians)
    return pooled


def order_alarm(table: Mapping[TissueClass, TissueRow]) -> str | None:
    """Return one sentence when tissues have changed places, else ``None``.

    Fat must lie 10 HU below brain, bone 100 HU above it, and air outside 300 HU below fat. A plain CycleGAN trained
    for a short time swaps bright scalp fat for bright bone while its losses look content.
    """
    value = {t: r.prediction for t, r in table.items()}
    fat, brain, bone, air = (
        value.get(t) for t in (TissueClass.FAT, TissueClass.BRAIN, TissueClass.BONE, TissueClass.OUTSIDE_AIR)
    )
    wrong = []
    if fat is not None and brain is not None and not fat + FAT_BELOW_SOFT_HU < brain:
        wrong.append(f"fat ({fat:.0f} HU) is not {FAT_BELOW_SOFT_HU:g} HU below brain ({brain:.0f} HU)")
    if bone is not None and brain is not None and not brain + BONE_ABOVE_SOFT_HU < bone:
        wrong.append(f"bone ({bone:.0f} HU) is not {BONE_ABOVE_SOFT_HU:g} HU above brain ({brain:.0f} HU)")
    if fat is not None and bone is not None and not fat < bone:
        wrong.append(f"fat ({fat:.0f} HU) is not below bone ({bone:.0f} HU)")
    darkest = [v for v in (fat, brain, bone) if v is not None]
    if air is not None and darkest and not air + AIR_BELOW_FAT_HU < min(darkest):
        wrong.append(f"air outside ({air:.0f} HU) is not {AIR_BELOW_FAT_HU:g} HU below every tissue")
    return f"the translation changes the order of tissues: {'; '.join(wrong)}" if wrong else None


def order_warnings(table: Mapping[TissueClass, TissueRow]) -> tuple[str, ...]:
    """Return sentences for weaker faults, which a report must say and which fail no model.

    Cerebrospinal fluid that is not below grey matter (brain, where no segmentation tells them apart), and air inside
    the head that is painted as tissue or bone: T1 alone shows air and cortical bone equally black, so a good model may
    err there.
    """
    found = []
    csf, air = table.get(TissueClass.CSF), table.get(TissueClass.INSIDE_AIR)
    matter = TissueClass.GREY if TissueClass.GREY in table else TissueClass.BRAIN
    brain = table.get(matter)
    if csf is not None and brain is not None and not csf.prediction + CSF_BELOW_BRAIN_HU < brain.prediction:
        found.append(
            f"cerebrospinal fluid ({csf.prediction:.0f} HU for {csf.truth:.0f}) is not {CSF_BELOW_BRAIN_HU:g} HU below "
            f"{matter} ({brain.prediction:.0f} HU for {brain.truth:.0f})"
        )
    if air is not None and air.prediction >= RANGE_HU[TissueClass.INSIDE_AIR][1]:
        found.append(f"air inside the head is painted with {air.prediction:.0f} HU, the truth has {air.truth:.0f}")
    return tuple(found)


def mr_order_alarm(table: Mapping[TissueClass, TissueRow], sequence: str | None) -> str | None:
    """Return one sentence when the tissues of a synthetic MR image have changed places, else ``None``.

    Parameters
    ----------
    table
        From `table_of_classes` with the classes of the source CT, and of a segmentation where there is one.
    sequence
        ``T1``: fluid is darker than brain, grey matter than white. ``T2``: the other way round. In these and in every
        other sequence bone and air are darker than brain; more is not known without the sequence.

    Notes
    -----
    An MR image has no unit, so the least difference is `MR_CONTRAST` of the brain's median.
    """
    brain = table.get(TissueClass.BRAIN)
    if brain is None:
        return None
    darker_than_brain = [TissueClass.OUTSIDE_AIR, TissueClass.INSIDE_AIR, TissueClass.BONE]
    order = [(t, TissueClass.BRAIN) for t in darker_than_brain]
    if sequence == "T1":
        order += [(TissueClass.CSF, TissueClass.BRAIN), (TissueClass.GREY, TissueClass.WHITE)]
    elif sequence == "T2":
        order += [(TissueClass.BRAIN, TissueClass.CSF), (TissueClass.WHITE, TissueClass.GREY)]
    margin = MR_CONTRAST * abs(brain.prediction)
    wrong = [
        f"{dark} ({table[dark].prediction:.0f}) is not darker than {bright} ({table[bright].prediction:.0f})"
        for dark, bright in order
        if dark in table and bright in table and not table[dark].prediction + margin < table[bright].prediction
    ]
    what = f"{sequence} image" if sequence else "MR image"
    return f"the synthetic {what} changes the order of tissues: {'; '.join(wrong)}" if wrong else None


def table_to_dict(table: Mapping[TissueClass, TissueRow]) -> dict[str, dict[str, Any]]:
    """Plain JSON types, tissues from dark to bright on CT; a missing truth is ``null``."""
    rows = {t.value: asdict(table[t]) for t in TissueClass if t in table}
    return {t: row | {"truth": None if np.isnan(row["truth"]) else row["truth"]} for t, row in rows.items()}


def _core(where: NDArray[np.bool_]) -> NDArray[np.bool_]:
    eroded: NDArray[np.bool_] = ndimage.binary_erosion(where)
    return eroded if int(eroded.sum()) >= MIN_VOXELS else where


def _row(prediction: NDArray[Any], truth: NDArray[Any] | None) -> TissueRow:
    low, middle, high = np.percentile(prediction.astype(np.float64), (10, 50, 90))
    true = float("nan") if truth is None else float(np.median(truth))
    return TissueRow(int(prediction.size), true, float(middle), float(low), float(high))
