"""Finished runs: what evaluate and the stage records of a run folder say, read back with their protocols."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ctmr.errors import InputError
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import Protocol, read_description
from ctmr.metrics.stats import MetricSummary, Summary, per_patient
from ctmr.system.digest import PROVENANCE, content_digest, flatten

EVALUATE = "evaluate"
CASES = "cases.csv"
VERDICT = "verdict.json"
_RECORD = f"{PROVENANCE}/stage.json"


@dataclass(frozen=True)
class FinishedRun:
    """One evaluated run.

    Attributes
    ----------
    name
        What the comparison calls it.
    direction
        ``mr2ct`` or ``ct2mr``.
    summaries
        Protocol name → summary over patients, as evaluate wrote it.
    cases
        Protocol name → cases.
    baselines
        Trivial translator → protocol name → summary.
    passed, statement
        The verdict.
    recipe, code
        Recipe's name and code revision; empty where not recorded.
    settings
        Dotted recipe key, and ``tuned <key>``, → value.
    unrecorded
        Recipe sections of which only a digest is known → that digest.
    dataset
        Name, revision and md5; empty where not recorded.
    raw
        Content digest of the images that were evaluated; empty where not recorded.
    images
        Patient → image → sha256, from the manifest; empty where the run folder has none.
    """

    name: str
    direction: str
    summaries: Mapping[str, Summary]
    cases: Mapping[str, tuple[CaseMetrics, ...]]
    baselines: Mapping[str, Mapping[str, Summary]]
    passed: bool
    statement: str
    recipe: str = ""
    code: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    unrecorded: Mapping[str, str] = field(default_factory=dict)
    dataset: Mapping[str, str] = field(default_factory=dict)
    raw: str = ""
    images: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def protocol(self, name: str) -> Protocol:
        """Protocol of that name, as this run was measured under."""
        return self.summaries[name].protocol


def read_run(folder: Path, name: str) -> FinishedRun:
    """Read a run folder.

    Parameters
    ----------
    folder
        Holds ``evaluate/`` and, where the stages left them, the records of the others and ``validate/``.
    name
        What to call the run.

    Raises
    ------
    InputError
        When the run was not evaluated, what evaluate left was altered since, or it cannot be read.
    """
    evaluate = folder / EVALUATE
    missing = [f for f in (CASES, VERDICT) if not (evaluate / f).is_file()]
    if missing:
        raise InputError(f"run {name} at {folder} has no {EVALUATE}/{missing[0]}; run `ctmr evaluate` on it first")
    records = {p.parents[1].name: _json(p, name) for p in sorted(folder.glob(f"*/{_RECORD}"))}
    own = records.get(EVALUATE, {})
    if own and own.get("digest") != content_digest(evaluate):
        raise InputError(f"run {name}: {evaluate} was altered after it was measured; run `ctmr evaluate` again")
    try:
        tree = _json(evaluate / VERDICT, name)
        summaries = {k: _summary(v) for k, v in tree["summaries"].items()}
        cases = _cases(evaluate / CASES, {k: s.protocol for k, s in summaries.items()})
        baselines = {
            who: {k: _summary(v) for k, v in by_protocol.items()}
            for who, by_protocol in tree.get("baselines", tree.get("trivial", {})).items()
        }
        settings, unrecorded = _settings(records)
        data = records.get("fetch", {}).get("summary", {})
        return FinishedRun(
            name=name,
            direction=tree["direction"],
            summaries={k: _with_infinite(s, cases.get(k, ())) for k, s in summaries.items()},
            cases=cases,
            baselines=baselines,
            passed=tree["passed"],
            statement=tree["statement"],
            recipe=own.get("recipe", ""),
            code=own.get("code_revision", ""),
            settings=settings,
            unrecorded=unrecorded,
            dataset={k: data[k] for k in ("name", "revision", "md5") if data.get(k)},
            raw=own.get("parts", {}).get("input raw", ""),
            images=_images(folder / "validate" / "manifest.parquet"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"run {name}: {evaluate} was not written by this version ({type(error).__name__}: {error}); "
            "run `ctmr evaluate` again"
        ) from None


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return tree
    except (OSError, ValueError):
        raise InputError(f"run {name}: {path} cannot be read; run the stage that writes it again") from None


def _summary(tree: Mapping[str, Any]) -> Summary:
    def number(value: float | None) -> float:
        return math.nan if value is None else float(value)

    metrics = {
        name: MetricSummary(
            number(m["mean"]), number(m["sd"]), number(m["low"]), number(m["high"]), m["subjects"], m["cases"]
        )
        for name, m in tree["metrics"].items()
    }
    return Summary(read_description(tree["protocol"]), metrics, tree["subjects"], tree["cases"])


def _with_infinite(summary: Summary, cases: Sequence[CaseMetrics]) -> Summary:
    """Give back the means that JSON cannot hold: a PSNR of equal images."""
    metrics = dict(summary.metrics)
    for name, found in metrics.items():
        means = list(per_patient(cases, name).values())
        if math.isnan(found.mean) and math.inf in means:
            metrics[name] = replace(found, mean=math.inf)
    return replace(summary, metrics=metrics)


def _cases(path: Path, protocols: Mapping[str, Protocol]) -> dict[str, tuple[CaseMetrics, ...]]:
    values: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            of_case = values.setdefault(row["protocol"], {}).setdefault((row["case"], row["subject"]), {})
            of_case[row["metric"]] = float(row["value"])
    return {
        name: tuple(CaseMetrics(case, subject, protocols[name], found) for (case, subject), found in by_case.items())
        for name, by_case in values.items()
        if name in protocols
    }


def _settings(records: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    settings: dict[str, Any] = {}
    digests: dict[str, str] = {}
    for stage in sorted(records):
        for section, tree in records[stage].get("settings", {}).items():
            settings |= flatten({section: tree})
        for part, digest in records[stage].get("parts", {}).items():
            if part.startswith("recipe."):
                digests[part.removeprefix("recipe.")] = digest
    known = {key.partition(".")[0] for key in settings}
    tuned = records.get("train", {}).get("summary", {}).get("settings", {})
    settings |= {f"tuned {key}": value for key, value in tuned.items()}
    return settings, {section: digest for section, digest in digests.items() if section not in known}


def _images(manifest: Path) -> dict[str, dict[str, str]]:
    if not manifest.is_file():
        return {}
    import pandas as pd

    from ctmr.data.manifest import Column, Split

    table = pd.read_parquet(manifest, columns=[Column.SUBJECT, Column.IMAGE, Column.SHA256, Column.SPLIT])
    out: dict[str, dict[str, str]] = {}
    for subject, image, sha256, split in table.itertuples(index=False):
        if split == Split.TEST:
            out.setdefault(str(subject), {})[str(image)] = str(sha256)
    return out
