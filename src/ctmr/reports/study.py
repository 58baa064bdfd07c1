"""Figure of a tuning study: every trial's score over its steps."""

from __future__ import annotations

from collections.abc import Mapping

from ctmr.reports.canvas import chart, colours, legend, plain_axes


def trial_curves(curves: Mapping[str, Mapping[int, float]], *, best: str, label: str) -> bytes:
    """Draw the validation score of each trial over its training steps; the best one is thick.

    Parameters
    ----------
    curves
        Trial → step → score.
    best
        The trial that won.
    label
        What the score is.
    """
    with chart((7.2, 3.8), title="Tuning") as drawing:
        ax = drawing.axes[0, 0]
        for colour, (name, points) in zip(colours(len(curves)), curves.items(), strict=True):
            width, text = (2.6, f"{name} (best)") if name == best else (1.3, name)
            ax.plot(list(points), list(points.values()), color=colour, linewidth=width, marker="o", label=text)
        legend(ax)
        plain_axes(ax, "training step", label)
    return drawing.png
