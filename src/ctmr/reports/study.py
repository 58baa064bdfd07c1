"""Figure of a tuning study: every trial's score over its steps."""

from __future__ import annotations

from collections.abc import Mapping

from ctmr.reports.figures import _colours, _figure, _plain


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
    with _figure((7.2, 3.8), 1, 1, "Tuning") as (_, axes, out):
        ax = axes[0, 0]
        for colour, (name, points) in zip(_colours(len(curves)), curves.items(), strict=True):
            width, text = (2.6, f"{name} (best)") if name == best else (1.3, name)
            ax.plot(list(points), list(points.values()), color=colour, linewidth=width, marker="o", label=text)
        ax.legend(frameon=False, fontsize=9)
        _plain(ax, "training step", label)
    return out.getvalue()
