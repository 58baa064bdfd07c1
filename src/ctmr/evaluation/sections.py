"""Sections of a case for a figure: source, translation, truth and difference, each with its window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.imaging.volume import Unit

_AXIAL_LEVELS = (0.3, 0.45, 0.6, 0.75)


@dataclass(frozen=True)
class GreyWindow:
    """Grey levels of a display: black at `low`, white at `high`."""

    name: str
    low: float
    high: float


BRAIN_WINDOW = GreyWindow("brain window", -40.0, 120.0)
BONE_WINDOW = GreyWindow("bone window", -700.0, 1700.0)
DIFFERENCE_LIMIT_HU = 500.0
UNIT_WORDS = {Unit.HU: "HU", Unit.GREY8: "grey level", Unit.ARBITRARY: "arbitrary units"}


@dataclass(frozen=True)
class FigureSection:
    """One row of a comparison: where it is, and the height of a voxel over its width."""

    name: str
    aspect: float
    height: float


@dataclass(frozen=True)
class FigureColumn:
    """One column of a comparison: an image in each section, its window (``None``: a difference) and its unit."""

    name: str
    images: tuple[NDArray[Any], ...]
    window: GreyWindow | None
    unit: str


@dataclass(frozen=True)
class Compared:
    """Sections of a case: what a comparison shows of whole volumes, and nothing more."""

    sections: tuple[FigureSection, ...]
    columns: tuple[FigureColumn, ...]
    limit: float


def compare(
    source: NDArray[Any],
    synthetic: NDArray[Any],
    truth: NDArray[Any] | None = None,
    *,
    source_unit: Unit,
    target_unit: Unit,
    source_name: str,
    target_name: str,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    head: NDArray[np.bool_] | None = None,
) -> Compared:
    """Take source, synthetic image, truth and difference at several axial levels and in one midline sagittal section.

    Parameters
    ----------
    source, synthetic, truth
        ``[D, H, W]`` on one grid, D to superior and H to posterior; a picture is ``[1, H, W]``. Without truth there is
        no difference.
    source_unit, target_unit
        Units; a target in HU is shown in brain and bone windows.
    source_name, target_name
        ``MR T1``, ``CT``, …; the synthetic image's column says *synthetic*.
    spacing_mm
        Of D, H, W: the sagittal section has right proportions.
    head
        ``[D, H, W]`` bool; outside it the difference is left blank, since the errors there are in no number.
    """
    rows = _sections(source.shape)
    windows = (BRAIN_WINDOW, BONE_WINDOW) if target_unit is Unit.HU else (own_window(synthetic, truth),)
    target = UNIT_WORDS[target_unit]
    columns = [FigureColumn(source_name, _cut(source, rows), own_window(source, None), UNIT_WORDS[source_unit])]
    for w in windows:
        columns.append(FigureColumn(f"synthetic {target_name}\n{w.name}", _cut(synthetic, rows), w, target))
        if truth is not None:
            columns.append(FigureColumn(f"true {target_name}\n{w.name}", _cut(truth, rows), w, target))
    limit = DIFFERENCE_LIMIT_HU
    if truth is not None:
        difference = synthetic.astype(np.float32) - truth.astype(np.float32)
        if head is not None:
            difference = np.where(head, difference, np.nan)
        limit = limit if target_unit is Unit.HU else difference_limit(difference)
        columns.append(FigureColumn("difference\nsynthetic - true", _cut(difference, rows), None, target))
    d_mm, h_mm, w_mm = spacing_mm
    depth, height, width = (n * mm for n, mm in zip(source.shape, spacing_mm, strict=True))
    sections = [
        FigureSection(
            f"sagittal, column {index}" if axis == 2 else f"axial, slice {index}",
            d_mm / h_mm if axis == 2 else h_mm / w_mm,
            depth / height if axis == 2 else height / width,
        )
        for axis, index in rows
    ]
    return Compared(tuple(sections), tuple(columns), limit)


def _sections(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(array axis, index): axial levels from caudal to cranial, then the midline sagittal section."""
    if shape[0] < 8:
        return [(0, shape[0] // 2)]
    return [*((0, round(level * (shape[0] - 1))) for level in _AXIAL_LEVELS), (2, shape[2] // 2)]


def _cut(volume: NDArray[Any], rows: Sequence[tuple[int, int]]) -> tuple[NDArray[Any], ...]:
    """Sections as they are shown, cranial end up; copies, so that the volume can go."""
    cuts = (np.take(volume, index, axis=axis) for axis, index in rows)
    return tuple(np.array(np.flipud(cut) if axis == 2 else cut) for cut, (axis, _) in zip(cuts, rows, strict=True))


def own_window(volume: NDArray[Any], other: NDArray[Any] | None) -> GreyWindow:
    sample = volume.ravel() if other is None else np.concatenate([volume.ravel(), other.ravel()])
    low, high = np.percentile(sample[:: max(1, sample.size // 200_000)], (0.5, 99.5))
    return GreyWindow("own range", float(low), float(high) if high > low else float(low) + 1.0)


def difference_limit(difference: NDArray[Any]) -> float:
    known = np.abs(difference[np.isfinite(difference)])
    return max(1.0, float(np.percentile(known, 99))) if known.size else 1.0
