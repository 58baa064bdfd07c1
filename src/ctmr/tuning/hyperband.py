"""Hyperband over the slots of a study: which bracket a slot is in, at which reports it competes, who goes on."""

from __future__ import annotations

from collections.abc import Sequence


def bracket_sizes(reports: int, reduction: int) -> list[int]:
    """Return how many slots each bracket gets of a round of slots, the bracket that prunes earliest first.

    Parameters
    ----------
    reports
        Largest resource R; the unit is one report.
    reduction
        η.

    References
    ----------
    Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar: Hyperband, JMLR 18, 2018, algorithm 1: with s_max = ⌊log_η R⌋,
    bracket s begins with n = ⌈(s_max + 1) η^s / (s + 1)⌉ trials.
    """
    most = 0
    while reduction ** (most + 1) <= reports:
        most += 1
    return [-(-(most + 1) * reduction**s // (s + 1)) for s in range(most, -1, -1)]


def bracket_of(slot: int, sizes: Sequence[int]) -> int:
    """Return the bracket of a slot: each is as near as can be to its share among the slots up to this one.

    So a wave holds slots of all brackets, and a study that is short has some of each.
    """
    total, counts = sum(sizes), [0] * len(sizes)
    # The pattern repeats with every round.
    for number in range(slot % total + 1):
        behind = [size * (number + 1) - count * total for size, count in zip(sizes, counts, strict=True)]
        chosen = behind.index(max(behind))
        counts[chosen] += 1
    return chosen


def rungs(bracket: int, reports: int, reduction: int) -> list[int]:
    """Return the reports, counted from 1, at which slots of a bracket compete; never the last, after which all is done.

    Parameters
    ----------
    bracket
        0 competes from the first report on, bracket b from report η^b on.
    """
    out, at = list[int](), reduction**bracket
    while at < reports:
        out.append(at)
        at *= reduction
    return out


def goes_on(score: float, rivals: Sequence[float], reduction: int) -> bool:
    """True when a score is within the best 1/η of its rung, itself included; the best one always is.

    Parameters
    ----------
    score
        Lower is better.
    rivals
        Scores of others at the same rung.

    References
    ----------
    Li, Jamieson, Rostamizadeh, et al.: A System for Massively Parallel Hyperparameter Tuning, MLSys 2020, algorithm 2,
    in the form in which a trial is stopped instead of paused.
    """
    ranked = sorted([*rivals, score])
    return score <= ranked[max(1, len(ranked) // reduction) - 1]
