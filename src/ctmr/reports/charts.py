"""Charts: losses, tissues, agreement, robustness and uncertainty, each as PNG and as an SVG that follows its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ctmr.metrics.tissue import TissueClass, TissueTable
from ctmr.reports.canvas import (
    BLUE,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    Chart,
    chart,
    colours,
    legend,
    marked,
    plain_axes,
    running_median,
)

if TYPE_CHECKING:
    from ctmr.evaluation.robustness import Curve
    from ctmr.evaluation.uncertainty import UncertaintyResult

LIMITS_OF_AGREEMENT = 1.96
"""Standard deviations; Bland and Altman 1986."""
MIN_AGREEMENT = 3
"""Cases from which limits of agreement are drawn."""


def loss_chart(history: Mapping[str, Sequence[float]], steps: Sequence[int], *, title: str = "Losses") -> Chart:
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
    with chart((7.2, 3.8), title=title) as drawing:
        ax = drawing.axes[0, 0]
        for colour, name in zip(colours(len(history)), history, strict=True):
            values = np.asarray(history[name], dtype=np.float64)
            width = max(1, len(values) // 20)
            style = "-" if list(history).index(name) < len(set(colours(len(history)))) else "--"
            ax.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
            ax.plot(steps, running_median(values, width), color=colour, linewidth=1.8, linestyle=style, label=name)
        positive = [v for series in history.values() for v in series if v > 0]
        if positive and max(positive) / min(positive) > 200 and len(positive) == sum(map(len, history.values())):
            ax.set_yscale("log")
        plain_axes(ax, "step", "loss")
        if history:
            legend(ax, ncols=2)
    return drawing.chart


def tissue_chart(table: TissueTable, *, title: str = "", phantom: bool = False) -> Chart:
    """Draw each tissue's median HU, true and synthetic, the latter with its 10th to 90th percentile."""
    names = [t for t in TissueClass if t in table]
    with chart((7.2, 0.52 * max(1, len(names)) + 1.7), title=marked(title, phantom)) as drawing:
        ax = drawing.axes[0, 0]
        for y, tissue in enumerate(names):
            row = table[tissue]
            ax.plot([row.low, row.high], [y, y], color=ORANGE, alpha=0.35, linewidth=7, solid_capstyle="round")
            ax.plot([row.truth, row.prediction], [y, y], color=MUTED, linewidth=1)
            ax.scatter([row.truth], [y], s=64, facecolor=PAPER, edgecolor=BLUE, linewidth=2, zorder=3)
            ax.scatter([row.prediction], [y], s=46, color=ORANGE, zorder=4)
            difference = row.prediction - row.truth
            ax.annotate(
                f"{difference:+.0f}", (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=INK
            )
        ax.scatter([], [], s=64, facecolor=PAPER, edgecolor=BLUE, linewidth=2, label="true median")
        ax.scatter([], [], s=46, color=ORANGE, label="synthetic median, 10th to 90th percentile")
        ax.set_yticks(range(len(names)), [t.value for t in names], fontsize=9, color=INK)
        ax.set_ylim(-0.7, len(names) - 0.3)
        plain_axes(ax, "HU (the numbers on the right are synthetic - true)", "")
        legend(ax, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return drawing.chart


def agreement_chart(
    heads: Sequence[tuple[float, float]], tables: Sequence[TissueTable], *, title: str = "", phantom: bool = False
) -> Chart:
    """Draw synthetic minus true HU over their mean (Bland, Altman 1986): of each head, and of each tissue in it.

    Parameters
    ----------
    heads
        (true, synthetic) mean HU inside the head, one a case.
    tables
        The tissue table of each case.
    title, phantom
        Above the plots.
    """
    with chart((9.4, 3.7), 1, 2, title=marked(title, phantom), width_ratios=[1, 1.45]) as drawing:
        whole, tissues = drawing.axes[0]
        truth, made = (np.array([h[k] for h in heads]) for k in (0, 1))
        difference = made - truth
        whole.axhline(0, color=MUTED, linewidth=0.8)
        whole.scatter((truth + made) / 2, difference, s=34, color=BLUE, zorder=3)
        if len(heads) >= MIN_AGREEMENT:
            bias, spread = float(difference.mean()), LIMITS_OF_AGREEMENT * float(difference.std(ddof=1))
            whole.axhline(bias, color=ORANGE, linewidth=1.6)
            for y, said in (
                (bias, f"bias {bias:+.0f}"),
                (bias + spread, f"{bias + spread:+.0f}"),
                (bias - spread, f"{bias - spread:+.0f}"),
            ):
                if y != bias:
                    whole.axhline(y, color=ORANGE, linewidth=1.1, linestyle="--")
                whole.annotate(said, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=INK)
        plain_axes(whole, "mean of true and synthetic (HU)", "synthetic - true (HU)")
        whole.set_title("mean of the whole head, bias and limits of agreement", fontsize=9, color=INK)
        whole.margins(0.2)
        tissues.axhline(0, color=MUTED, linewidth=0.8)
        present = [t for t in TissueClass if any(t in table for table in tables)]
        for colour, tissue in zip(colours(len(present)), present, strict=True):
            rows = [t[tissue] for t in tables if tissue in t]
            x = [(r.truth + r.prediction) / 2 for r in rows]
            tissues.scatter(x, [r.prediction - r.truth for r in rows], s=26, color=colour, label=tissue.value)
        plain_axes(tissues, "mean of true and synthetic (HU)", "")
        tissues.set_title("median of each tissue", fontsize=9, color=INK)
        if tables:
            legend(tissues, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawing.chart


def robustness_chart(curves: Sequence[Curve], *, label: str, title: str = "", phantom: bool = False) -> Chart:
    """Draw one panel a disturbance: the error over its strength, with the best and the worst image.

    Parameters
    ----------
    curves
        One a disturbance.
    label
        What the curves are of, with the unit.
    title, phantom
        Above the plots.
    """
    count = max(1, len(curves))
    with chart((1.9 * count + 0.9, 2.9), 1, count, title=marked(title, phantom), sharey=True) as drawing:
        for k, (ax, curve) in enumerate(zip(drawing.axes[0], curves, strict=False)):
            ax.fill_between(curve.strengths, curve.lows, curve.highs, color=BLUE, alpha=0.16, linewidth=0)
            ax.plot(curve.strengths, curve.means, color=BLUE, linewidth=2, marker="o", markersize=4)
            ax.axhline(curve.means[0], color=GREY, linewidth=0.9, linestyle=":")
            plain_axes(ax, f"1 = {curve.strongest}", label if k == 0 else "")
            ax.set_title(curve.name, fontsize=9.5, color=INK)
            ax.set_xlim(-0.05, 1.05)
        drawing.axes[0, 0].margins(y=0.15)
    return drawing.chart


def sparsification_chart(
    coverages: Sequence[float], found: UncertaintyResult, *, label: str, title: str = "", phantom: bool = False
) -> Chart:
    """Draw the error that remains when the least certain voxels are left out, beside the best possible order.

    Parameters
    ----------
    coverages
        Shares of voxels that remain, falling from 1.
    found
        Kinds of uncertainty, and the true error itself.
    label
        Of the error, with its unit.
    title, phantom
        Above the plot.
    """
    x = [100 * c for c in coverages]
    with chart((7.2, 3.6), title=marked(title, phantom)) as drawing:
        ax = drawing.axes[0, 0]
        ax.axhline(found.perfect[0], color=GREY, linewidth=1.1, linestyle=":", label="uncertainty says nothing")
        for colour, kind in zip(colours(len(found.measures)), found.measures, strict=True):
            ax.plot(x, kind.curve, color=colour, linewidth=2, marker="o", markersize=3.5, label=kind.name)
        ax.plot(x, found.perfect, color=INK, linewidth=1.3, linestyle="--", label="the true error itself")
        ax.invert_xaxis()
        ax.set_ylim(0, None)
        plain_axes(ax, "voxels that remain, most certain first (%)", label)
        legend(ax, loc="lower left", ncols=2)
    return drawing.chart
