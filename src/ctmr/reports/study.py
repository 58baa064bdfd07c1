"""Figures of a tuning study: scores by trial and by step, what mattered, and each setting against the score."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ctmr.reports.canvas import (
    BLUE,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    RED,
    chart,
    legend,
    plain_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ACROSS = 3
_WIDE_RANGE = 20.0
"""From this ratio of largest to smallest on, scores stand on a logarithmic axis."""
_STAR = 190
_MOST_TICKS = 8
_LABEL_LETTERS = 34


@dataclass(frozen=True)
class TrialView:
    """Part of a trial that figures show.

    Attributes
    ----------
    state
        ``complete``, ``pruned`` or ``failed``.
    score
        Of its last report; not a number when it failed.
    params
        Dotted recipe key → value.
    reports
        Training step → score.
    """

    number: int
    state: str
    score: float = math.nan
    params: Mapping[str, Any] = field(default_factory=dict)
    reports: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Looks:
    """Look of a state: colour of the line, and of the marker's inside."""

    colour: str
    inside: str
    words: str


_LOOKS = {
    "complete": Looks(BLUE, BLUE, "complete"),
    "pruned": Looks(ORANGE, PAPER, "pruned, at its last report"),
}


def history_chart(trials: Sequence[TrialView], *, best: int, label: str) -> bytes:
    """Draw the score of each trial with the best so far, and beside it every trial's score over its steps.

    Parameters
    ----------
    trials
        In order.
    best
        Number of the trial that won.
    label
        What the score is, with its unit.
    """
    with chart((10.2, 4.3), 1, 2, title=f"Tuning: {len(trials)} trials, the best is trial {best}") as drawing:
        by_trial, by_step = drawing.axes[0]
        _scores(by_trial, trials, best)
        plain_axes(by_trial, "trial", _wrapped(f"{label}; lower is better"))
        by_trial.xaxis.get_major_locator().set_params(integer=True)
        for trial in (t for t in trials if t.state in _LOOKS):
            looks = _LOOKS[trial.state]
            own = trial.number == best
            by_step.plot(
                list(trial.reports),
                list(trial.reports.values()),
                color=looks.colour,
                linewidth=2.6 if own else 1.1,
                alpha=1.0 if own else 0.55,
                linestyle="-" if trial.state == "complete" else "--",
                marker="o",
                markersize=5 if own else 3.5,
                markerfacecolor=looks.inside,
                zorder=4 if own else 3,
            )
        by_step.plot([], [], color=BLUE, linewidth=2.6, marker="o", label=f"trial {best}, the best")
        by_step.plot([], [], color=BLUE, linewidth=1.1, alpha=0.55, marker="o", markersize=3.5, label="complete")
        if any(t.state == "pruned" for t in trials):
            by_step.plot(
                [],
                [],
                color=ORANGE,
                linewidth=1.1,
                linestyle="--",
                marker="o",
                markersize=3.5,
                markerfacecolor=PAPER,
                label="pruned",
            )
        plain_axes(by_step, "training step", "")
        legend(by_step, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
        _log_where_wide(by_trial, [t.score for t in trials])
        _log_where_wide(by_step, [score for t in trials for score in t.reports.values()])
    return drawing.png


def importance_chart(importances: Mapping[str, float], *, trials: int) -> bytes:
    """Draw how much of the score's variance each setting explains; says so where too few trials can tell.

    Parameters
    ----------
    importances
        Dotted recipe key → share in [0, 1]; empty where it could not be told.
    trials
        Complete trials that they are from.
    """
    ordered = sorted(importances.items(), key=lambda item: item[1])
    height = 0.42 * max(2, len(ordered)) + 1.5
    with chart((7.2, height), title=f"What mattered, from {trials} complete trials") as drawing:
        ax = drawing.axes[0, 0]
        shares = [100 * share for _, share in ordered]
        ax.barh(range(len(ordered)), shares, height=0.62, color=BLUE)
        for y, share in enumerate(shares):
            ax.annotate(
                f"{share:.0f} %",
                (share, y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=INK,
            )
        ax.set_yticks(range(len(ordered)), [key for key, _ in ordered])
        ax.set_xlim(0, max([*shares, 1.0]) * 1.12)
        plain_axes(ax, "share of the score's variance that it explains (fANOVA, %)", "")
        ax.grid(visible=False, axis="y")
        for text in ax.get_yticklabels():
            text.set_color(INK)
        if not ordered:
            ax.annotate(
                "too few complete trials with unlike scores",
                (0.5, 0.5),
                xycoords="axes fraction",
                ha="center",
                va="center",
                fontsize=10,
                color=MUTED,
            )
            ax.set_xticks([])
    return drawing.png


def slice_chart(trials: Sequence[TrialView], logarithmic: Mapping[str, bool], *, best: int, label: str) -> bytes:
    """Draw one panel a setting: the score over its value, later trials darker.

    Parameters
    ----------
    trials
        In order.
    logarithmic
        Setting that was searched → whether on a logarithmic scale.
    best
        Number of the trial that won.
    label
        What the score is, with its unit.
    """
    shown = [t for t in trials if t.state in _LOOKS]
    across = min(_ACROSS, len(logarithmic))
    down = -(-len(logarithmic) // across)
    size = (3.1 * across + 1.2, 2.75 * down + 0.9)
    with chart(size, down, across, title="Each setting against the score, later trials darker", sharey=True) as drawing:
        panels = list(drawing.axes.ravel())
        for panel in panels[len(logarithmic) :]:
            panel.set_visible(False)
        for k, (ax, key) in enumerate(zip(panels, sorted(logarithmic), strict=False)):
            _slice(ax, shown, key, best)
            if logarithmic[key]:
                _logarithmic(ax)
            scale = " (log scale)" if logarithmic[key] else ""
            plain_axes(ax, key + scale, _wrapped(label) if k % across == 0 else "")
            ax.xaxis.label.set_color(INK)
            _log_where_wide(ax, [t.score for t in shown])
            ax.margins(0.1)
        drawing.figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=8,
            labelcolor=INK,
        )
    return drawing.png


def _scores(ax: Axes, trials: Sequence[TrialView], best: int) -> None:
    lowest, line = math.inf, list[tuple[int, float]]()
    for trial in trials:
        if trial.state == "complete":
            lowest = min(lowest, trial.score)
        if lowest < math.inf:
            line.append((trial.number, lowest))
    ax.step([x for x, _ in line], [y for _, y in line], where="post", color=GREY, linewidth=1.2, label="best so far")
    for state, looks in _LOOKS.items():
        points = [t for t in trials if t.state == state]
        if points:
            ax.scatter(
                [t.number for t in points],
                [t.score for t in points],
                s=34,
                facecolor=looks.inside,
                edgecolor=looks.colour,
                linewidth=1.5,
                zorder=3,
                label=looks.words,
            )
    won = next(t for t in trials if t.number == best)
    _star(ax, best, won, f"the best, {won.score:.4g}")
    failed = [t.number for t in trials if t.state == "failed"]
    if failed:
        ax.scatter(
            failed,
            [0.02] * len(failed),
            s=34,
            marker="x",
            color=RED,
            transform=ax.get_xaxis_transform(),
            zorder=3,
            label="failed",
        )
    legend(ax, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)


def _slice(ax: Axes, shown: Sequence[TrialView], key: str, best: int) -> None:
    # The recipe's own value, which the first trial has, may be null.
    shown = [t for t in shown if t.params[key] is not None]
    values = [t.params[key] for t in shown]
    if any(isinstance(v, str | bool) for v in values):
        names = sorted({str(v) for v in values})
        places: list[float] = [names.index(str(v)) for v in values]
        ax.set_xticks(range(len(names)), names)
        ax.set_xlim(-0.5, len(names) - 0.5)
    else:
        places = [float(v) for v in values]
        if all(isinstance(v, int) for v in values) and len(set(values)) <= _MOST_TICKS:
            ax.set_xticks(sorted(set(values)))
    last = max((t.number for t in shown), default=0) or 1
    for state, looks in _LOOKS.items():
        for x, trial in zip(places, shown, strict=True):
            if trial.state == state and trial.number != best:
                strength = 0.3 + 0.7 * trial.number / last
                ax.scatter(
                    [x],
                    [trial.score],
                    s=34,
                    facecolor=looks.inside,
                    edgecolor=looks.colour,
                    linewidth=1.5,
                    alpha=strength,
                    zorder=3,
                )
        ax.scatter([], [], s=34, facecolor=looks.inside, edgecolor=looks.colour, linewidth=1.5, label=looks.words)
    for x, trial in zip(places, shown, strict=True):
        if trial.number == best:
            _star(ax, x, trial, f"trial {best}, the best")


def _star(ax: Axes, x: float, trial: TrialView, label: str) -> None:
    """Mark the best trial."""
    look: dict[str, Any] = {"s": _STAR, "marker": "*", "color": BLUE, "edgecolor": PAPER, "linewidth": 1, "zorder": 4}
    ax.scatter([x], [trial.score], label=label, **look)


def _wrapped(label: str) -> str:
    return "\n".join(textwrap.wrap(label, _LABEL_LETTERS))


def _logarithmic(ax: Axes) -> None:
    """A logarithmic axis with few ticks in plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _log_where_wide(ax: Axes, scores: Sequence[float]) -> None:
    known = [s for s in scores if math.isfinite(s)]
    if known and min(known) > 0 and max(known) / min(known) > _WIDE_RANGE:
        ax.set_yscale("log")
