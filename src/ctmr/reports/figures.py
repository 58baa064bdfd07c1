"""Figures of images: comparisons, lesions, uncertainty, sample grids and preview sheets, as PNG on a light box."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctmr.evaluation.sections import (
    BONE_WINDOW,
    BRAIN_WINDOW,
    UNIT_WORDS,
    Compared,
    GreyWindow,
    difference_limit,
    own_window,
)
from ctmr.imaging.volume import Direction, Unit
from ctmr.reports.canvas import BOX, BOX_INK, BOX_MUTED, bare, colour_bar, light_box, marked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ctmr.evaluation.lesions import LesionTest
    from ctmr.evaluation.uncertainty import UncertaintyMap

_SHEET_WIDTH_PX = 760
LESION_LIMIT_HU = 60.0
_OUTLINE = "#ffd166"
_KEPT, _LOST = "#7ddba3", "#ff8f87"


def comparison_figure(compared: Compared, *, title: str = "", phantom: bool = False) -> bytes:
    """Draw a comparison: a section a row, a colour bar with its unit below every column; returns PNG."""
    heights = [s.height for s in compared.sections]
    count, side = len(compared.columns), 2.05
    size = (side * count + 0.5, side * sum(heights) + 1.55)
    with light_box(size, len(heights), count, title=marked(title, phantom), height_ratios=heights) as drawing:
        for c, column in enumerate(compared.columns):
            for r, (section, image) in enumerate(zip(compared.sections, column.images, strict=True)):
                ax = drawing.axes[r, c]
                shown = _show(ax, image, column.window, compared.limit, section.aspect)
                if r == 0:
                    ax.set_title(column.name, fontsize=9, color=BOX_INK)
                if c == 0:
                    ax.set_ylabel(section.name, fontsize=8, color=BOX_MUTED)
            colour_bar(
                drawing.figure,
                shown,
                drawing.axes[:, c],
                column.unit,
                location="bottom",
                fraction=0.035,
                pad=0.012,
                aspect=16,
            )
    return drawing.png


def lesion_figure(test: LesionTest, *, title: str = "", phantom: bool = False) -> bytes:
    """Draw lesions: input, translation without and with the lesion, their difference, and the truth where it exists."""
    source_name, target_name, unit, views = test.direction.source, test.direction.target, test.unit, test.views
    truth = all(v.truth_ill is not None for v in views)
    names = [
        f"{source_name}\nwith lesion",
        f"synthetic {target_name}\nwithout",
        f"synthetic {target_name}\nwith",
        "difference\nwith - without",
    ] + [f"true {target_name}\nwith"] * truth
    shown_target = np.stack([v.answer_ill for v in views] + [v.answer_healthy for v in views], dtype=np.float32)
    window = BRAIN_WINDOW if unit is Unit.HU else own_window(shown_target, None)
    changes = np.stack([v.answer_ill.astype(np.float32) - v.answer_healthy.astype(np.float32) for v in views])
    limit = LESION_LIMIT_HU if unit is Unit.HU else difference_limit(changes)
    side = 1.9
    size = (side * len(names) + 1.0, (side + 0.32) * len(views) + 1.35)
    with light_box(size, len(views), len(names), title=marked(title, phantom)) as drawing:
        bars: dict[int, Any] = {}
        for r, (view, change) in enumerate(zip(views, changes, strict=True)):
            source = BRAIN_WINDOW if test.source_unit is Unit.HU else own_window(view.ill, None)
            images = [(view.ill, source), (view.answer_healthy, window), (view.answer_ill, window), (change, None)]
            if truth and view.truth_ill is not None:
                images.append((view.truth_ill, window if unit is Unit.HU else own_window(view.truth_ill, None)))
            for c, (image, levels) in enumerate(images):
                ax = drawing.axes[r, c]
                bars[c] = _show(ax, image, levels, limit, 1.0)
                if view.outline.any() and not view.outline.all():
                    ax.contour(view.outline, levels=[0.5], colors=[_OUTLINE], linewidths=0.8)
                if r == 0:
                    ax.set_title(names[c], fontsize=9, color=BOX_INK)
            found = view.response
            said = f"{found.kind}, {found.radius_mm:g} mm: {'kept' if found.kept else 'lost'}\nCNR {found.cnr:.1f}"
            drawing.axes[r, 0].set_ylabel(said, fontsize=8, color=_KEPT if found.kept else _LOST)
        for c in (1, 2, 3):
            colour_bar(
                drawing.figure,
                bars[c],
                drawing.axes[:, c],
                UNIT_WORDS[unit],
                location="bottom",
                fraction=0.04,
                pad=0.015,
                aspect=16,
            )
    return drawing.png


def uncertainty_figure(
    shown: UncertaintyMap, direction: Direction, unit: Unit, *, title: str = "", phantom: bool = False
) -> bytes:
    """Draw one slice: input, translation, uncertainty, and the true error where it is known."""
    words = UNIT_WORDS[unit]
    window = BONE_WINDOW if unit is Unit.HU else own_window(shown.made, None)
    panels: list[tuple[str, NDArray[Any], GreyWindow, str, str]] = [
        (direction.source, shown.source, own_window(shown.source, None), "gray", "own range"),
        (f"synthetic {direction.target}", shown.made, window, "gray", words),
        ("uncertainty", shown.uncertainty, _from_zero(shown.uncertainty), "magma", "times the head's mean"),
    ]
    if shown.error is not None:
        panels.append(("true error", shown.error, _from_zero(shown.error), "magma", words))
    with light_box((2.5 * len(panels) + 0.2, 3.5), 1, len(panels), title=marked(title, phantom)) as drawing:
        for ax, (name, image, levels, colours, label) in zip(drawing.axes[0], panels, strict=True):
            bare(ax)
            picture = ax.imshow(image, cmap=colours, vmin=levels.low, vmax=levels.high, interpolation="nearest")
            ax.set_title(name, fontsize=9, color=BOX_INK)
            colour_bar(drawing.figure, picture, ax, label, location="bottom", fraction=0.05, pad=0.02, aspect=18)
    return drawing.png


def sample_evolution(sheets: Sequence[bytes]) -> bytes:
    """Put sample sheets of a training beside each other, two a row, in order; takes and returns PNG."""
    from PIL import Image

    opened = [Image.open(io.BytesIO(s)).convert("RGB") for s in sheets]
    scaled = [
        i.resize((_SHEET_WIDTH_PX, round(i.height * _SHEET_WIDTH_PX / i.width)), Image.Resampling.LANCZOS)
        for i in opened
    ]
    across, gap = min(2, len(scaled)), 12
    cell = max(i.height for i in scaled)
    down = math.ceil(len(scaled) / across)
    board = Image.new("RGB", (across * (_SHEET_WIDTH_PX + gap) - gap, down * (cell + gap) - gap), BOX)
    for k, image in enumerate(scaled):
        board.paste(image, ((k % across) * (_SHEET_WIDTH_PX + gap), (k // across) * (cell + gap)))
    out = io.BytesIO()
    board.save(out, format="PNG", optimize=True)
    return out.getvalue()


def way_sheet(
    ways: Sequence[tuple[str, Sequence[tuple[str, NDArray[Any], tuple[float, float]]]]],
    *,
    unit: Unit,
    title: str = "",
    phantom: bool = False,
) -> bytes:
    """Draw images before, between and after the steps of preprocessing, one row an image.

    Parameters
    ----------
    ways
        For each image its caption and its stations: caption, slice ``[H, W]`` in physical units and spacing (H, W).
        Images may have unlike stations.
    unit
        Of the slices. HU are shown from -700 to 1700, others each in its own 0.5–99.5 percentile.
    title, phantom
        Above the sheet.
    """
    if not ways or not all(stations for _, stations in ways):
        raise ValueError("a sheet takes one image at least, and one station at least of each")
    columns = max(len(stations) for _, stations in ways)
    side = 2.1
    size = (max(side * columns + 0.2, 0.075 * len(title)), (side + 0.3) * len(ways) + 0.6)
    with light_box(size, len(ways), columns, title=marked(title, phantom)) as drawing:
        for row, (label, stations) in zip(drawing.axes, ways, strict=True):
            for ax in row[len(stations) :]:
                ax.set_visible(False)
            for k, (ax, (station, values, spacing)) in enumerate(zip(row, stations, strict=False)):
                window = BONE_WINDOW if unit is Unit.HU else own_window(values, None)
                _show(ax, values, window, 1.0, spacing[0] / spacing[1])
                where = f"{label}\n{station}" if k == 0 else f"\n{station}"
                ax.set_title(where, fontsize=6.5, color=BOX_MUTED, pad=2, loc="left")
    return drawing.png


def _from_zero(values: NDArray[Any]) -> GreyWindow:
    known = values[np.isfinite(values)]
    high = float(np.percentile(known, 99)) if known.size else 1.0
    return GreyWindow("", 0.0, high if high > 0 else 1.0)


def _show(ax: Axes, image: NDArray[Any], window: GreyWindow | None, limit: float, aspect: float) -> Any:
    bare(ax)
    if window is None:
        return ax.imshow(
            image, cmap=_difference_colours(), vmin=-limit, vmax=limit, aspect=aspect, interpolation="nearest"
        )
    return ax.imshow(image, cmap="gray", vmin=window.low, vmax=window.high, aspect=aspect, interpolation="nearest")


def _difference_colours() -> Any:
    """Blue through black to red: no error is as dark as the light box, where white would outshine everything."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("difference", ["#8ec9ff", "#2a7fd0", "#0d1116", "#d24b3e", "#ffb59e"])
