"""Figures: comparisons, loss curves, sample grids, preview sheets and tissue errors, as PNG bytes (matplotlib, Agg)."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctmr.metrics.tissue import TissueClass, TissueRow
from ctmr.volume import Unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
INK = "#1f2933"
MUTED = "#7b8794"
BLUE = "#2f6f9f"
ORANGE = "#d9822b"
PALETTE = (BLUE, ORANGE, "#3f8f5f", "#a4508b", "#b8433f", "#6b7280")
PHANTOM_NOTE = "PHANTOM: not a patient"
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
_UNIT_WORDS = {Unit.HU: "HU", Unit.GREY8: "grey level", Unit.ARBITRARY: "arbitrary units"}


def comparison_figure(
    source: NDArray[Any],
    synthetic: NDArray[Any],
    truth: NDArray[Any] | None = None,
    *,
    source_unit: Unit,
    target_unit: Unit,
    source_name: str,
    target_name: str,
    title: str = "",
    phantom: bool = False,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    head: NDArray[np.bool_] | None = None,
) -> bytes:
    """Show source, synthetic image, truth and difference at several axial levels and one midline sagittal section.

    Parameters
    ----------
    source, synthetic, truth
        ``[D, H, W]`` on one grid, D to superior and H to posterior; a picture is ``[1, H, W]``. Without truth there is
        no difference.
    source_unit, target_unit
        Units; a target in HU is shown in brain and bone windows.
    source_name, target_name
        ``MR T1``, ``CT``, …; the synthetic image's column says *synthetic*.
    title
        Above everything.
    phantom
        Marks the figure as not a patient.
    spacing_mm
        Of D, H, W: the sagittal section has right proportions.
    head
        ``[D, H, W]`` bool; outside it the difference is left blank, since the errors there are in no number.

    Returns
    -------
    bytes
        PNG.
    """
    windows = (BRAIN_WINDOW, BONE_WINDOW) if target_unit is Unit.HU else (_own_window(synthetic, truth),)
    columns: list[tuple[str, NDArray[Any], GreyWindow | None, str]] = [
        (source_name, source, _own_window(source, None), _UNIT_WORDS[source_unit])
    ]
    for w in windows:
        columns.append((f"synthetic {target_name}\n{w.name}", synthetic, w, _UNIT_WORDS[target_unit]))
        if truth is not None:
            columns.append((f"true {target_name}\n{w.name}", truth, w, _UNIT_WORDS[target_unit]))
    if truth is not None:
        difference = synthetic.astype(np.float32) - truth.astype(np.float32)
        if head is not None:
            difference = np.where(head, difference, np.nan)
        columns.append(("difference\nsynthetic - true", difference, None, _UNIT_WORDS[target_unit]))
    limit = DIFFERENCE_LIMIT_HU if target_unit is Unit.HU else _difference_limit(columns[-1][1])
    rows = _sections(source.shape)
    d_mm, h_mm, w_mm = spacing_mm
    depth, height, width = (n * mm for n, mm in zip(source.shape, spacing_mm, strict=True))
    heights = [depth / height if axis == 2 else height / width for axis, _ in rows]
    side = 2.05
    size = (side * len(columns) + 0.7, side * sum(heights) + 1.55)
    with _figure(size, len(rows), len(columns), _marked(title, phantom), height_ratios=heights) as (fig, axes, out):
        for r, (axis, index) in enumerate(rows):
            for c, (name, volume, window, _) in enumerate(columns):
                ax = axes[r, c]
                image = np.flipud(np.take(volume, index, axis=axis)) if axis == 2 else np.take(volume, index, axis=axis)
                aspect = d_mm / h_mm if axis == 2 else h_mm / w_mm
                shown = _show(ax, image, window, limit, aspect)
                if r == 0:
                    ax.set_title(name, fontsize=9, color=INK)
                if c == 0:
                    ax.set_ylabel(_section_name(axis, index), fontsize=8, color=MUTED)
                if r == len(rows) - 1:
                    bar = fig.colorbar(shown, ax=axes[:, c], location="bottom", fraction=0.035, pad=0.012, aspect=16)
                    bar.set_label(columns[c][3], fontsize=8, color=MUTED)
                    bar.ax.tick_params(labelsize=7, colors=MUTED)
                    bar.outline.set_visible(False)
    return out.getvalue()


def loss_curves(history: Mapping[str, Sequence[float]], steps: Sequence[int], *, title: str = "Losses") -> bytes:
    """Draw losses over steps, each with its running median over a twentieth of the run.

    Parameters
    ----------
    history
        Name → value at each step of `steps`; adversarial names of one generator pair belong to one call.
    steps
        Rising.
    title
        Above the plot.
    """
    with _figure((7.2, 3.8), 1, 1, title) as (_, axes, out):
        ax = axes[0, 0]
        for colour, name in zip(_colours(len(history)), history, strict=True):
            values = np.asarray(history[name], dtype=np.float64)
            width = max(1, len(values) // 20)
            ax.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
            ax.plot(steps, _running_median(values, width), color=colour, linewidth=1.8, label=name)
        positive = [v for series in history.values() for v in series if v > 0]
        if positive and max(positive) / min(positive) > 200 and len(positive) == sum(map(len, history.values())):
            ax.set_yscale("log")
        _plain(ax, "step", "loss")
        if history:
            ax.legend(frameon=False, fontsize=8, ncols=2)
    return out.getvalue()


def image_grid(images: NDArray[Any], *, columns: Sequence[str] = (), title: str = "", phantom: bool = False) -> bytes:
    """Draw a grid of normalised images.

    Parameters
    ----------
    images
        ``[R, C, H, W]`` in [-1, 1], one sample a row.
    columns
        C titles, such as ``MR``, ``synthetic CT``, ``MR again``.
    title, phantom
        Above the grid.
    """
    if images.ndim != 4 or (columns and len(columns) != images.shape[1]):
        raise ValueError(f"a grid takes images [R, C, H, W] and C titles, found {images.shape} and {list(columns)}")
    count_r, count_c, height, width = images.shape
    side = 1.7
    size = (side * count_c + 0.2, side * count_r * height / width + 0.75)
    window = GreyWindow("", -1.0, 1.0)
    with _figure(size, count_r, count_c, _marked(title, phantom)) as (_, axes, out):
        for r in range(count_r):
            for c in range(count_c):
                _show(axes[r, c], images[r, c], window, 1.0, 1.0)
                if r == 0 and columns:
                    axes[r, c].set_title(columns[c], fontsize=9, color=INK)
    return out.getvalue()


def preview_sheet(
    slices: NDArray[Any], labels: Sequence[str], *, unit: Unit, title: str = "", phantom: bool = False, columns: int = 8
) -> bytes:
    """Draw a contact sheet of shard slices, each with its label.

    Parameters
    ----------
    slices
        ``[N, H, W]`` in physical units. HU are shown from -700 to 1700, others each in its own 0–99.5 percentile.
    labels
        N captions, such as subject and level.
    unit
        Of the slices.
    title, phantom, columns
        Above the sheet; sheets are this many pictures wide.
    """
    if slices.ndim != 3 or len(slices) != len(labels) or not len(slices):
        raise ValueError(f"a sheet takes slices [N, H, W] and N labels, found {slices.shape} and {len(labels)} labels")
    columns = min(columns, len(slices))
    rows = math.ceil(len(slices) / columns)
    side = 1.45
    height = side * slices.shape[1] / slices.shape[2] + 0.2
    with _figure((side * columns + 0.2, height * rows + 0.6), rows, columns, _marked(title, phantom)) as (_, axes, out):
        for k, ax in enumerate(axes.flat):
            if k >= len(slices):
                ax.set_visible(False)
                continue
            window = BONE_WINDOW if unit is Unit.HU else _own_window(slices[k], None)
            _show(ax, slices[k], window, 1.0, 1.0)
            ax.set_title(labels[k], fontsize=6.5, color=MUTED, pad=2)
    return out.getvalue()


def tissue_figure(table: Mapping[TissueClass, TissueRow], *, title: str = "", phantom: bool = False) -> bytes:
    """Draw each tissue's median HU, true and synthetic, the latter with its 10th to 90th percentile."""
    names = [t for t in TissueClass if t in table]
    with _figure((7.2, 0.52 * max(1, len(names)) + 1.5), 1, 1, _marked(title, phantom)) as (_, axes, out):
        ax = axes[0, 0]
        for y, tissue in enumerate(names):
            row = table[tissue]
            ax.plot([row.low, row.high], [y, y], color=ORANGE, alpha=0.35, linewidth=7, solid_capstyle="round")
            ax.plot([row.truth, row.prediction], [y, y], color=MUTED, linewidth=1)
            ax.scatter([row.truth], [y], s=64, facecolor="white", edgecolor=BLUE, linewidth=2, zorder=3)
            ax.scatter([row.prediction], [y], s=46, color=ORANGE, zorder=4)
            difference = row.prediction - row.truth
            ax.annotate(f"{difference:+.0f}", (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8,
                        color=INK)  # fmt: skip
        ax.scatter([], [], s=64, facecolor="white", edgecolor=BLUE, linewidth=2, label="true median")
        ax.scatter([], [], s=46, color=ORANGE, label="synthetic median, 10th to 90th percentile")
        ax.set_yticks(range(len(names)), [t.value for t in names], fontsize=9, color=INK)
        ax.set_ylim(-0.7, len(names) - 0.3)
        _plain(ax, "HU (the numbers on the right are synthetic - true)", "")
        ax.legend(frameon=False, fontsize=8, loc="lower right")
    return out.getvalue()


def _sections(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(array axis, index): axial levels from caudal to cranial, then the midline sagittal section."""
    if shape[0] < 8:
        return [(0, shape[0] // 2)]
    return [*((0, round(level * (shape[0] - 1))) for level in _AXIAL_LEVELS), (2, shape[2] // 2)]


def _section_name(axis: int, index: int) -> str:
    return f"sagittal, column {index}" if axis == 2 else f"axial, slice {index}"


def _own_window(volume: NDArray[Any], other: NDArray[Any] | None) -> GreyWindow:
    sample = volume.ravel() if other is None else np.concatenate([volume.ravel(), other.ravel()])
    low, high = np.percentile(sample[:: max(1, sample.size // 200_000)], (0.5, 99.5))
    return GreyWindow("own range", float(low), float(high) if high > low else float(low) + 1.0)


def _difference_limit(difference: NDArray[Any]) -> float:
    known = np.abs(difference[np.isfinite(difference)])
    return max(1.0, float(np.percentile(known, 99))) if known.size else 1.0


def _show(ax: Axes, image: NDArray[Any], window: GreyWindow | None, limit: float, aspect: float) -> Any:
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    if window is None:
        ax.set_facecolor("#eceff2")
        return ax.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect=aspect, interpolation="nearest")
    return ax.imshow(image, cmap="gray", vmin=window.low, vmax=window.high, aspect=aspect, interpolation="nearest")


def _plain(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x, fontsize=9, color=MUTED)
    ax.set_ylabel(y, fontsize=9, color=MUTED)
    ax.tick_params(labelsize=8, colors=MUTED)
    ax.grid(color="#e4e7eb", linewidth=0.8)
    ax.set_axisbelow(True)
    for name, spine in ax.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#cbd2d9")
    for label in ax.get_yticklabels():
        label.set_color(INK)


def _colours(count: int) -> list[str]:
    return [PALETTE[k % len(PALETTE)] for k in range(count)]


def _running_median(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    half = width // 2
    return np.array([np.median(values[max(0, k - half) : k + half + 1]) for k in range(len(values))])


def _marked(title: str, phantom: bool) -> str:
    return " · ".join(part for part in (PHANTOM_NOTE if phantom else "", title) if part)


@contextmanager
def _figure(
    size: tuple[float, float], rows: int, columns: int, title: str, height_ratios: Sequence[float] | None = None
) -> Iterator[tuple[Figure, NDArray[Any], io.BytesIO]]:
    """A figure without pyplot's global state, saved as PNG on leaving; equal data give equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    fig = MatplotlibFigure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(rows, columns, squeeze=False, height_ratios=height_ratios)
    if title:
        fig.suptitle(title, fontsize=11, color=INK, fontweight="bold")
    out = io.BytesIO()
    yield fig, axes, out
    fig.savefig(out, format="png", metadata={"Software": None})
