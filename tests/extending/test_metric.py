"""A metric is one row: this file adds one, and every place shows, tests and gates it without a change elsewhere."""

import csv
import json
import math
import sys

import numpy as np
import pytest
from evaluated import direction_result, evaluation_result

from ctmr.cli.app import main
from ctmr.cli.console import Console
from ctmr.errors import InputError
from ctmr.evaluation.gate import judge
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.measurement import measure_paired
from ctmr.metrics.protocol import protocol
from ctmr.metrics.registry import METRICS, Metric, registered
from ctmr.metrics.stats import summarise
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe
from ctmr.reports.compare import compare_runs, render_comparison
from ctmr.reports.html import render_report
from ctmr.reports.runs import read_run
from ctmr.tracking.mlflow import held_out_metrics

HU = protocol("paired_volume_hu")
SHAPE = (8, 9, 10)


def normalised_cross_correlation(pair):
    """Pearson's correlation of HU inside the mask; none where an image is constant there."""
    p, r = (v - v.mean() for v in pair.values)
    scale = math.sqrt(np.square(p).sum() * np.square(r).sum())
    return float((p * r).sum() / scale) if scale > 0 else None


NCC = Metric(
    "ncc",
    "normalised cross-correlation",
    True,
    (-1.0, 1.0),
    frozenset({HU.name}),
    normalised_cross_correlation,
    digits=3,
)


@pytest.fixture(autouse=True)
def ncc():
    with registered(NCC) as metric:
        yield metric


def images(seed, noise):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(-1000, 2000, SHAPE)
    mask = rng.random(SHAPE) < 0.7
    return truth + noise * rng.normal(size=SHAPE), truth, mask


def cases(noise):
    return [
        measure_paired(*images(k, noise), HU, case=f"test/CT/s{k}", subject=f"phantom-{k}").values for k in range(8)
    ]


def case_metrics(noise):
    return [CaseMetrics(f"test/CT/s{k}", f"phantom-{k}", HU, values) for k, values in enumerate(cases(noise))]


def test_it_is_measured_under_its_protocol_and_no_other():
    prediction, truth, mask = images(0, 400.0)
    p, t = (np.clip(a[mask], -1024, 3000).tolist() for a in (prediction, truth))
    mean_p, mean_t = math.fsum(p) / len(p), math.fsum(t) / len(t)
    shared = math.fsum((a - mean_p) * (b - mean_t) for a, b in zip(p, t, strict=True))
    own = math.fsum((a - mean_p) ** 2 for a in p), math.fsum((b - mean_t) ** 2 for b in t)
    found = measure_paired(prediction, truth, mask, HU, case="c", subject="s")
    assert found.values["ncc"] == pytest.approx(shared / math.sqrt(own[0] * own[1]), abs=1e-12)
    other = measure_paired(prediction, truth, mask, protocol("wolterink"), case="c", subject="s")
    assert "ncc" not in other.values
    constant = measure_paired(np.zeros(SHAPE), truth, mask, HU, case="c", subject="s")
    assert "ncc" not in constant.values


def test_it_is_summarised_with_an_interval_and_logged():
    summary = summarise(case_metrics(400.0), resamples=200)
    expected = np.mean([values["ncc"] for values in cases(400.0)])
    assert summary.mean("ncc") == pytest.approx(expected)
    assert summary.to_dict()["metrics"]["ncc"]["low"] < expected < summary.to_dict()["metrics"]["ncc"]["high"]
    logged = held_out_metrics({HU.name: {"ncc": summary.mean("ncc")}})
    assert logged == {"test.paired_volume_hu.ncc": pytest.approx(expected)}


def test_the_terminal_shows_it(capsys):
    summary = {"metrics": {HU.name: {"ncc": 0.91234}}, "protocols": {HU.name: HU.describe()}, "statement": "Passed."}
    Console().measurements(summary | {"tissues": {}, "warnings": [], "baselines": {}})
    said = capsys.readouterr().out
    assert "ncc" in said and "0.912" in said


def test_the_report_shows_it_in_the_table_and_case_by_case():
    rows = case_metrics(400.0)
    own = {HU.name: summarise(rows, resamples=200)}
    verdict = judge(own, Recipe().gate.limits, has_pairs=True, baselines={"mean image": own})
    page = render_report(evaluation_result(direction_result(own, cases={HU.name: rows}), verdict), "demo")
    measurements, listed = page.split('id="cases"')
    assert "ncc&nbsp;↑</th>" in measurements and f"<td>{own[HU.name].mean('ncc'):.3f}<span>" in measurements
    assert f"<td>{rows[0].values['ncc']:.3f}</td>" in listed


def write_run(folder, rows):
    evaluate = folder / "evaluate"
    evaluate.mkdir(parents=True)
    with (evaluate / "cases.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["protocol", "case", "subject", "metric", "value"])
        writer.writerows([HU.name, c.case, c.subject, m, f"{v:.8g}"] for c in rows for m, v in c.values.items())
    own = {HU.name: summarise(rows, resamples=200).to_dict()}
    tree = {"direction": "mr2ct", "passed": True, "statement": "Passed.", "summaries": own}
    (evaluate / "verdict.json").write_text(json.dumps(tree | {"baselines": {"mean image": own}}))
    return folder


def test_two_runs_are_compared_and_tested_by_it(home, tmp_path, monkeypatch, capsys):
    folders = [write_run(tmp_path / name, case_metrics(noise)) for name, noise in (("good", 200.0), ("bad", 900.0))]
    comparison = compare_runs([read_run(folder, folder.name) for folder in folders])
    (table,) = comparison.tables
    (pair,) = table.pairs
    test = next(t for t in pair.tests if t.metric == "ncc")
    assert test.difference > 0 and test.wilcoxon_p == pytest.approx(2 / 2**8)
    page = render_comparison(comparison)
    assert '<td title="normalised cross-correlation">ncc</td>' in page
    assert '<h4>ncc <span class="small">higher is better' in page
    monkeypatch.setattr(sys, "argv", ["ctmr", "compare", *map(str, folders)])
    with pytest.raises(SystemExit):
        main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "ncc" in line]
    means = [f"{table.rows[k].summary.mean('ncc'):.3f}" for k in (0, 1)]
    assert any(line[:2] == ["ncc", means[0]] and means[1] in line for line in lines)
    assert any(line[0] == "baselines" for line in lines)


@pytest.mark.parametrize(("least", "passes"), [(0.5, True), (0.9999, False)])
def test_a_recipe_gates_by_it(least, passes):
    recipe = override(Recipe(), [("gate", {HU.name: {"ncc": {"min": least}}})])
    own = {HU.name: summarise(case_metrics(400.0), resamples=200)}
    beaten = {"mean image": {HU.name: summarise(case_metrics(900.0), resamples=200)}}
    verdict = judge(own, recipe.gate.limits, has_pairs=True, baselines=beaten)
    assert verdict.passed is passes
    assert [c.limit for c in verdict.checks if c.metric == "ncc"] == [f"at least {least:g}"]
    assert passes or "paired_volume_hu ncc is" in verdict.statement


def test_without_its_row_it_is_unknown_again(monkeypatch):
    monkeypatch.delitem(METRICS, "ncc")
    with pytest.raises(ValueError, match=r"no metric is called \['ncc'\]"):
        CaseMetrics("c", "s", HU, {"ncc": 0.5})
    with pytest.raises(InputError, match=r"gate\.paired_volume_hu: there is no metric 'ncc'; the metrics are"):
        override(Recipe(), [("gate.paired_volume_hu.ncc.min", 0.5)])
