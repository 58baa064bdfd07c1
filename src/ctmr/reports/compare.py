"""Comparison of finished runs: one table a protocol, paired tests on the same cases, and what else differs."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctmr.data.manifest import PHANTOM_PREFIX
from ctmr.errors import InputError
from ctmr.metrics.protocol import Pairing, Protocol, UnlikeProtocolsError, require_same_protocol
from ctmr.metrics.registry import METRICS, Metric, Shown, shown_metrics
from ctmr.metrics.significance import SIGNIFICANCE, PairedTest, compare_cases, correct, require_same_cases
from ctmr.metrics.stats import FEW_PATIENTS, Summary
from ctmr.reports.numbers import ABSENT, interval_text, metric_text, p_text, value_text
from ctmr.reports.runs import FinishedRun


@dataclass(frozen=True)
class ComparisonRow:
    """One run, or one baseline, in the table of a protocol."""

    who: str
    baseline: bool
    summary: Summary


@dataclass(frozen=True)
class PairTests:
    """Two runs, *a* less *b*, metric by metric."""

    a: str
    b: str
    tests: tuple[PairedTest, ...]


@dataclass(frozen=True)
class ProtocolTable:
    """Everything under one protocol.

    Attributes
    ----------
    metrics
        What the registry shows in tables, where any row has it.
    rows
        Runs in the order given, then baselines.
    pairs
        Every two runs, corrected together; empty where a protocol has no patients.
    """

    protocol: Protocol
    metrics: tuple[Metric, ...]
    rows: tuple[ComparisonRow, ...]
    pairs: tuple[PairTests, ...]

    def better(self, pair: PairTests, test: PairedTest) -> str:
        """Name the better run of a significant test; empty where none is, or where the protocol shows no quality."""
        wants = METRICS[test.metric].higher_is_better
        if not (test.significant and self.protocol.measures_fidelity) or wants is None or test.difference is None:
            return ""
        return pair.a if (test.difference > 0) == wants else pair.b


@dataclass(frozen=True)
class Comparison:
    """Two or more runs side by side.

    Attributes
    ----------
    tables
        One a protocol that all runs share.
    settings
        Recipe key → one value a run, only where they differ.
    notes
        Sentences that a reader must know.
    phantom
        All patients are phantoms.
    """

    runs: tuple[FinishedRun, ...]
    tables: tuple[ProtocolTable, ...]
    settings: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    phantom: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "runs": [
                {
                    "name": r.name,
                    "recipe": r.recipe,
                    "code": r.code,
                    "direction": r.direction,
                    "passed": r.passed,
                    "statement": r.statement,
                    "dataset": dict(r.dataset),
                    "raw": r.raw,
                }
                for r in self.runs
            ],
            "protocols": {
                t.protocol.name: {
                    "protocol": t.protocol.describe(),
                    "rows": [{"who": r.who, "baseline": r.baseline} | r.summary.to_dict() for r in t.rows],
                    "paired": [
                        {
                            "a": p.a,
                            "b": p.b,
                            "tests": [test.to_dict() | {"better": t.better(p, test) or None} for test in p.tests],
                        }
                        for p in t.pairs
                    ],
                }
                for t in self.tables
            },
            "settings": {key: list(values) for key, values in self.settings.items()},
            "notes": list(self.notes),
            "phantom": self.phantom,
        }


def compare_runs(runs: Sequence[FinishedRun], *, protocols: Sequence[str] = ()) -> Comparison:
    """Compare runs that were measured under the same protocols on the same cases.

    Parameters
    ----------
    runs
        At least two, with names of their own.
    protocols
        Only these; empty: all that the runs share.

    Raises
    ------
    UnlikeProtocolsError
        When runs name a protocol alike but measured it differently; a ``TypeError``.
    InputError
        When there are fewer than two runs, directions, cases or test images differ, or no protocol is shared.
    """
    if len(runs) < 2:
        raise InputError(f"a comparison needs two runs or more; {len(runs)} given")
    for first, other in itertools.pairwise(runs):
        if first.direction != other.direction:
            raise InputError(
                f"run {first.name} translates {first.direction} and run {other.name} {other.direction}; only runs of "
                "one direction can be compared"
            )
    shared, notes = _shared(runs, protocols)
    for a, b in itertools.combinations(runs, 2):
        for name in shared:
            _require_comparable(a, b, name)
    notes += _test_images(runs, shared)
    tables = tuple(_table(name, runs) for name in shared)
    counts = {t.protocol.name: t.rows[0].summary.subjects for t in tables if t.pairs}
    few = ", ".join(f"{name} {count}" for name, count in counts.items() if count < FEW_PATIENTS)
    if few:
        notes.append(f"few patients ({few}): 95 % intervals of fewer than {FEW_PATIENTS} are too narrow")
    settings, unknown = _settings(runs)
    subjects = {c.subject for r in runs for name in shared for c in r.cases[name]}
    phantom = all(s.startswith(PHANTOM_PREFIX) for s in subjects)
    return Comparison(tuple(runs), tables, settings, tuple(notes + unknown), phantom)


def _shared(runs: Sequence[FinishedRun], wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    have = {r.name: sorted(n for n in r.summaries if r.cases.get(n)) for r in runs}
    listed = "; ".join(f"{name}: {', '.join(found) or 'none'}" for name, found in have.items())
    for name in wanted:
        lacking = [run for run, found in have.items() if name not in found]
        if lacking:
            raise InputError(f"protocol {name} was not measured in run {lacking[0]}; measured were {listed}")
    shared = [n for n in have[runs[0].name] if all(n in found for found in have.values())]
    if not shared:
        raise InputError(f"the runs share no protocol, so no two numbers can be compared; measured were {listed}")
    shared.sort(key=lambda n: not runs[0].protocol(n).measures_fidelity)
    if wanted:
        return [n for n in shared if n in wanted], []
    partial = sorted({n for found in have.values() for n in found} - set(shared))
    return shared, [f"{n} is left out: not every run was measured under it" for n in partial]


def _require_comparable(a: FinishedRun, b: FinishedRun, name: str) -> None:
    try:
        require_same_protocol((a.protocol(name), b.protocol(name)))
    except UnlikeProtocolsError as error:
        raise UnlikeProtocolsError(f"runs {a.name} and {b.name}: {error}") from None
    require_same_cases(a.cases[name], b.cases[name], (f"run {a.name}", f"run {b.name}"))


def _test_images(runs: Sequence[FinishedRun], shared: Sequence[str]) -> list[str]:
    """Refuse runs whose cases are called alike but are other images; return notes on what could not be checked."""
    notes = []
    subjects = {c.subject for name in shared for c in runs[0].cases[name]}
    for first, other in ((runs[0], r) for r in runs[1:]):
        if first.raw and first.raw == other.raw:
            continue
        if not (first.images and other.images):
            notes.append(
                f"runs {first.name} and {other.name} list the same cases, but whether these are the same images is not "
                "recorded"
            )
            continue
        for subject in sorted(subjects):
            mine, theirs = first.images.get(subject, {}), other.images.get(subject, {})
            unlike = sorted(i for i in {*mine, *theirs} if mine.get(i) != theirs.get(i))
            if unlike:
                raise InputError(
                    f"runs {first.name} and {other.name} were tested on different images of {subject}: {unlike[0]} is "
                    "not the same file; evaluate both on one dataset revision"
                )
        notes.append(f"runs {first.name} and {other.name} used different data, but their test images are the same")
    return notes


def _table(name: str, runs: Sequence[FinishedRun]) -> ProtocolTable:
    protocol = runs[0].protocol(name)
    rows = [ComparisonRow(r.name, False, r.summaries[name]) for r in runs] + _baseline_rows(name, protocol, runs)
    pairs: list[PairTests] = []
    if protocol.pairing is not Pairing.UNPAIRED_DISTRIBUTION:
        combinations = list(itertools.combinations(runs, 2))
        tested = correct([compare_cases(a.cases[name], b.cases[name], names=(a.name, b.name)) for a, b in combinations])
        pairs = [PairTests(a.name, b.name, tuple(t)) for (a, b), t in zip(combinations, tested, strict=True)]
    metrics = shown_metrics(Shown.TABLE, [r.summary.metrics for r in rows])
    return ProtocolTable(protocol, tuple(metrics), tuple(rows), tuple(pairs))


def _baseline_rows(name: str, protocol: Protocol, runs: Sequence[FinishedRun]) -> list[ComparisonRow]:
    """One row where all runs measured a translator alike, else one a run: it was fitted on other data or grids."""
    rows = []
    for who in sorted({w for r in runs for w, by_protocol in r.baselines.items() if name in by_protocol}):
        measured = {r.name: r.baselines[who][name] for r in runs if name in r.baselines.get(who, {})}
        require_same_protocol((protocol, *(s.protocol for s in measured.values())))
        first, *others = measured.values()
        if all(_alike(first, s) for s in others):
            rows.append(ComparisonRow(who, True, first))
        else:
            rows += [ComparisonRow(f"{who}, {run}", True, s) for run, s in measured.items()]
    return rows


def _alike(a: Summary, b: Summary) -> bool:
    def same(x: float, y: float) -> bool:
        return x == y or (math.isnan(x) and math.isnan(y))

    return set(a.metrics) == set(b.metrics) and all(same(a.metrics[m].mean, b.metrics[m].mean) for m in a.metrics)


def _settings(runs: Sequence[FinishedRun]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    differing = {}
    sections = {r.name: {_section(k) for k in r.settings} for r in runs}
    for key in sorted({k for r in runs for k in r.settings}):
        values = {r.name: _shown(r.settings[key]) if key in r.settings else ABSENT for r in runs}
        # A run that did not record the section says nothing about the key.
        known = {v for name, v in values.items() if _section(key) in sections[name]}
        if len(known) > 1:
            differing[key] = tuple(values.values())
    notes = []
    unrecorded = sorted({s for r in runs for s in r.unrecorded})
    unsure = [s for s in unrecorded if len({r.unrecorded.get(s) for r in runs}) > 1]
    if unsure:
        notes.append(f"not every run recorded the values of recipe section {', '.join(unsure)}, which may differ")
    if any(not r.settings and not r.unrecorded for r in runs):
        nothing = [r.name for r in runs if not r.settings and not r.unrecorded]
        notes.append(f"the recipe of {', '.join(nothing)} is not recorded, so its settings cannot be compared")
    return differing, notes


def _section(key: str) -> str:
    return key.partition(".")[0]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def render_comparison(comparison: Comparison) -> str:
    """Return the comparison as a self-contained HTML page; text is escaped, nothing is loaded."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ctmr.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "value": value_text,
        "interval": interval_text,
        "p": p_text,
        "number": metric_text,
        "plot": _plot,
    }
    return environment.get_template("compare.html.j2").render(c=comparison, significance=SIGNIFICANCE)


def _plot(table: ProtocolTable, metric: Metric) -> list[dict[str, Any]]:
    """Positions in percent of means and intervals of one metric, for a row of dots; rows without it are left out."""
    found = [
        (r, m) for r in table.rows if (m := r.summary.metrics.get(metric.name)) is not None and math.isfinite(m.mean)
    ]
    ends = [v for _, m in found for v in (m.mean, m.low, m.high) if math.isfinite(v)]
    low, span = (min(ends), max(ends) - min(ends) or 1.0) if ends else (0.0, 1.0)

    def place(value: float) -> float:
        return round(4 + 92 * (value - low) / span, 2)

    return [
        {
            "who": r.who,
            "baseline": r.baseline,
            "mean": place(m.mean),
            "text": value_text(metric.name, table.protocol, m),
            "low": place(m.low if math.isfinite(m.low) else m.mean),
            "high": place(m.high if math.isfinite(m.high) else m.mean),
        }
        for r, m in found
    ]
