"""Verdict: whether measurements meet a gate, as a pure function of summaries, with a sentence for every failure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ctmr.imaging.volume import Unit
from ctmr.metrics.protocol import PROTOCOLS, Pairing, require_same_protocol
from ctmr.metrics.registry import KID, MAE, MS_SSIM, PSNR, SSIM, Metric
from ctmr.metrics.stats import Summary, finite_or_none
from ctmr.recipe.recipe import Limit, Limits

REQUIRED_WITHOUT_PAIRS = ("cycle_slice", "structure", "unpaired_distribution")
PROTOCOL_UNIT = {Unit.HU: "HU", Unit.GREY8: "grey levels"}
"""What paired protocols call the unit of the images they compare."""

_DECIDING = (MAE, PSNR, SSIM, MS_SSIM)
_UNPAIRED = ("unpaired_distribution",)
_UNMEASURED = (
    "fidelity was not measured, so the model is not promoted by itself; who wants that sets "
    "gate.allow_unmeasured_fidelity=true in the recipe"
)


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes
    ----------
    protocol, metric
        What was looked at.
    found
        Mean over patients; ``None`` when it was not measured. May be infinite (PSNR of equal images).
    limit
        In words: ``at least 20``, ``below 245.1 (mean image)``.
    ok
        Whether it holds.
    sentence
        The check in one sentence.
    """

    protocol: str
    metric: str
    found: float | None
    limit: str
    ok: bool
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """Decision whether a model may be registered, and why.

    Attributes
    ----------
    passed
        Every check holds and there was at least one limit.
    fidelity_measured
        True when the same patients' truth was compared.
    statement
        The verdict in one sentence for people.
    checks
        All checks, limits first.
    reasons
        A sentence for every failure; empty when passed.
    not_applied
        Limits of the gate that this test set gives no measurement for, each with the reason.
    replaces_champion
        Passed with measured fidelity (or the gate allows it unmeasured), and not worse than the champion under the
        deciding metric, or there is no champion.
    champion
        The comparison with the champion, or why there was none, in a sentence; empty when there is no champion.
    uncompared
        There is a champion, and it could not be compared: a person decides.
    stays
        Why a model that passed does not replace the champion, in a sentence; empty when it does, or failed.
    information
        Sentences about what was measured besides and decides nothing.
    """

    passed: bool
    fidelity_measured: bool
    statement: str
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    not_applied: tuple[str, ...]
    replaces_champion: bool
    champion: str
    uncompared: bool = False
    stays: str = ""
    information: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types without time or host; an infinite number is ``null`` beside ``"infinite": true``."""
        checks = [
            asdict(c) | {"found": finite_or_none(c.found), "infinite": c.found is not None and math.isinf(c.found)}
            for c in self.checks
        ]
        return asdict(self) | {"checks": checks}


def judge(
    summaries: Mapping[str, Summary],
    limits: Limits,
    *,
    has_pairs: bool,
    unit: Unit = Unit.HU,
    baselines: Mapping[str, Mapping[str, Summary]] | None = None,
    alarms: Sequence[str] = (),
    champion: Mapping[str, Summary] | None = None,
    champion_name: str = "the champion",
    uncompared: str = "",
    allow_unmeasured_fidelity: bool = False,
    information: Sequence[str] = (),
) -> Verdict:
    """Judge a model.

    Parameters
    ----------
    summaries
        Protocol name → summary of the model on the test set.
    limits
        ``<protocol>.<metric>.min|max``, `Gate.limits` of the recipe.
    has_pairs
        The test holds both images of a subject in a unit that has a paired protocol (HU or 8-bit grey levels).
    unit
        That unit. Limits of paired protocols in another unit cannot apply and are listed in `Verdict.not_applied`.
    baselines
        Name of a translator that saw no pairs → protocol name → summary on the same test.
    alarms
        Sentences of the tissue-order alarm; any fails the model.
    champion
        The present champion's summaries on the same test.
    champion_name
        How to call it.
    uncompared
        Why the champion could not be measured on the same test, in a sentence; empty when it was, or there is none.
    allow_unmeasured_fidelity
        `Gate.allow_unmeasured_fidelity` of the recipe.
    information
        Sentences for `Verdict.information`.

    Returns
    -------
    Verdict
        With pairs only paired limits apply, a missing measurement fails, and the model must beat the best baselines
        translator in MAE, PSNR and SSIM. Without pairs, limits and measurements of ``cycle_slice``, ``structure`` and
        ``unpaired_distribution`` are required, the model must beat the best baseline in KID, and the statement says
        that fidelity was not measured. Limits of ``lesions`` apply in both cases and are never enough.

    Raises
    ------
    TypeError
        When a baseline or the champion was measured under another protocol than the model.

    Examples
    --------
    >>> from ctmr.metrics.stats import MetricSummary, Summary
    >>> from ctmr.recipe.recipe import Recipe
    >>> protocol = PROTOCOLS["paired_volume_hu"]
    >>> means = {"mae": 180.0, "psnr": 18.5, "ssim": 0.71}
    >>> numbers = {name: MetricSummary(mean, 0.0, mean, mean, 3, 3) for name, mean in means.items()}
    >>> verdict = judge({protocol.name: Summary(protocol, numbers, 3, 3)}, Recipe().gate.limits, has_pairs=True)
    >>> verdict.passed
    False
    >>> [(check.metric, check.limit, check.ok) for check in verdict.checks]
    [('psnr', 'at least 20', False), ('ssim', 'at least 0.6', True)]
    >>> print(verdict.reasons[0])
    paired_volume_hu psnr is 18.5, which is not at least 20
    """
    applied, not_applied = _applicable(limits, has_pairs, unit)
    checks = [c for name, metrics in applied.items() for c in _limits(name, metrics, summaries.get(name))]
    problems = []
    if not any(PROTOCOLS[c.protocol].pairing is not Pairing.LESION for c in checks):
        problems.append(f"no limit of the gate applies to a test {'with' if has_pairs else 'without'} pairs; set one")
    if has_pairs:
        gated = [n for n in applied if n in summaries and PROTOCOLS[n].measures_fidelity]
        rivals, problem = _against_baselines(
            summaries, baselines or {}, gated or _paired_protocols(summaries, unit), _DECIDING
        )
    else:
        rivals, problem = _against_baselines(
            summaries, baselines or {}, [n for n in _UNPAIRED if n in summaries], [KID]
        )
        for name in REQUIRED_WITHOUT_PAIRS:
            if not any(limit.min is not None or limit.max is not None for limit in applied.get(name, {}).values()):
                problems.append(f"the gate has no limit for {name}, which a test without pairs requires; set one")
    checks += rivals
    problems += [*problem, *alarms]
    reasons = tuple(c.sentence for c in checks if not c.ok) + tuple(problems)
    passed = not reasons
    better, words = _against_champion(summaries, champion, champion_name, has_pairs, unit)
    if uncompared:
        better, words = None, uncompared
    measured = has_pairs and any(PROTOCOLS[n].measures_fidelity for n in summaries)
    promoted = measured or allow_unmeasured_fidelity
    return Verdict(
        passed=passed,
        fidelity_measured=measured,
        statement=_statement(passed, has_pairs, checks, reasons, summaries),
        checks=tuple(checks),
        reasons=reasons,
        not_applied=tuple(not_applied),
        replaces_champion=passed and promoted and better is True,
        champion=words,
        uncompared=better is None,
        stays="" if not passed or (promoted and better) else (words if promoted else _UNMEASURED),
        information=tuple(information),
    )


def _applicable(gate: Limits, has_pairs: bool, unit: Unit) -> tuple[Limits, list[str]]:
    applied, skipped = dict[str, Mapping[str, Limit]](), list[str]()
    for name in sorted(gate):
        p = PROTOCOLS[name]
        if p.pairing is Pairing.LESION:
            applied[name] = gate[name]
        elif p.measures_fidelity and not has_pairs:
            skipped.append(f"{name} does not apply: the test holds no pairs")
        elif p.measures_fidelity and p.unit != PROTOCOL_UNIT.get(unit):
            skipped.append(f"{name} does not apply: it is in {p.unit}, the test's pairs are in {unit}")
        elif not p.measures_fidelity and has_pairs:
            skipped.append(f"{name} does not apply: the test holds pairs, so fidelity decides")
        elif p.pairing is Pairing.UNPAIRED_PIXELS:
            skipped.append(f"{name} does not apply: images of different patients never decide")
        else:
            applied[name] = gate[name]
    return applied, skipped


def _limits(name: str, metrics: Mapping[str, Any], summary: Summary | None) -> list[Check]:
    checks = []
    for metric in sorted(metrics):
        limit = metrics[metric]
        for bound, text, sign in ((limit.min, "at least", 1), (limit.max, "at most", -1)):
            if bound is None:
                continue
            found = None if summary is None else summary.mean(metric)
            words = f"{text} {bound:g}"
            what = f"{name} {metric}"
            if found is None or math.isnan(found):
                checks.append(Check(name, metric, None, words, False, f"{what} was not measured, but must be {words}"))
                continue
            ok = sign * found >= sign * bound
            verb = "is" if ok else "is not"
            checks.append(Check(name, metric, found, words, ok, f"{what} is {found:.4g}, which {verb} {words}"))
    return checks


def _paired_protocols(summaries: Mapping[str, Summary], unit: Unit) -> list[str]:
    paired = (n for n in sorted(summaries) if PROTOCOLS[n].measures_fidelity)
    return [n for n in paired if PROTOCOLS[n].unit == PROTOCOL_UNIT.get(unit)]


def _against_baselines(
    summaries: Mapping[str, Summary],
    baselines: Mapping[str, Mapping[str, Summary]],
    names: Sequence[str],
    metrics: Sequence[Metric],
) -> tuple[list[Check], list[str]]:
    checks: list[Check] = []
    for name in names:
        rivals = {t: by_protocol[name] for t, by_protocol in baselines.items() if name in by_protocol}
        require_same_protocol([summaries[name].protocol, *(s.protocol for s in rivals.values())])
        for metric in metrics:
            measured = {t: m for t, s in rivals.items() if (m := s.mean(metric.name)) is not None and not math.isnan(m)}
            if not measured:
                continue
            higher = bool(metric.higher_is_better)
            best = (max if higher else min)(sorted(measured), key=lambda t: measured[t])
            limit = f"{'above' if higher else 'below'} {measured[best]:.4g} ({best})"
            own = summaries[name].mean(metric.name)
            if own is None or math.isnan(own):
                sentence = f"{name} {metric} was not measured, but must be {limit}"
                checks.append(Check(name, metric.name, None, limit, False, sentence))
                continue
            ok = own > measured[best] if higher else own < measured[best]
            words = f"which beats the best baseline, {best} with {measured[best]:.4g}"
            if not ok:
                words = f"no better than {best} with {measured[best]:.4g}, a baseline that saw no pairs"
            checks.append(Check(name, metric.name, own, limit, ok, f"{name} {metric} is {own:.4g}, {words}"))
    if checks:
        return checks, []
    return [], ["no baseline was measured beside the model, so nothing says that it learned anything"]


def _against_champion(
    summaries: Mapping[str, Summary],
    champion: Mapping[str, Summary] | None,
    champion_name: str,
    has_pairs: bool,
    unit: Unit,
) -> tuple[bool | None, str]:
    """Return whether the model is no worse, ``None`` where nothing compares, and the comparison in a sentence."""
    if champion is None:
        return True, ""
    names = _paired_protocols(summaries, unit) if has_pairs else _UNPAIRED
    metric = (MAE if has_pairs else KID).name
    for name in names:
        if name not in summaries or name not in champion:
            continue
        require_same_protocol([summaries[name].protocol, champion[name].protocol])
        own, theirs = summaries[name].mean(metric), champion[name].mean(metric)
        if own is None or theirs is None or math.isnan(own) or math.isnan(theirs):
            continue
        ok = own <= theirs
        words = "no worse" if ok else "worse"
        return ok, f"{name} {metric} is {own:.4g}, {words} than {champion_name} with {theirs:.4g} on the same test"
    return None, f"{champion_name} and this model share no measurement of {metric}"


def _statement(
    passed: bool,
    has_pairs: bool,
    checks: Sequence[Check],
    reasons: Sequence[str],
    summaries: Mapping[str, Summary],
) -> str:
    names = {c.protocol for c in checks}
    subjects = max((s.subjects for n, s in summaries.items() if n in names), default=0)
    over = f" on {subjects} patient{'s' if subjects != 1 else ''}" if has_pairs else ""
    unmeasured = (
        ""
        if has_pairs
        else (
            " Fidelity was not measured: the test holds no pairs, so nothing here says that a synthetic image shows "
            "this patient's anatomy."
        )
    )
    if passed:
        return f"Passed: all {len(checks)} checks hold{over} and every baseline is beaten.{unmeasured}"
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"Failed{over}: {reasons[0]}{more}.{unmeasured}"
