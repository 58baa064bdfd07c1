"""ctmr compare: like is held against like or refused in one sentence, in Python, in the terminal and on the page."""

import csv
import json
import math
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from evaluated import direction_result, evaluation_result

from ctmr.cli.app import main
from ctmr.errors import InputError
from ctmr.evaluation.gate import judge
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import UnlikeProtocolsError, protocol
from ctmr.metrics.stats import summarise
from ctmr.recipe.recipe import Recipe
from ctmr.reports.compare import compare_runs, render_comparison
from ctmr.reports.html import render_report
from ctmr.reports.numbers import metric_text, number_text, p_text
from ctmr.reports.runs import read_run
from ctmr.system.digest import content_digest

HU = protocol("paired_volume_hu")


def paired_cases(gain=1.0, patients=12, how=HU, seed=0):
    """Cases whose errors are `gain` times those of a fixed model."""
    rng = np.random.default_rng(seed)
    cases = []
    for k in range(patients):
        rmse = gain * rng.uniform(150, 250)
        values = {"mae": rmse * rng.uniform(0.4, 0.6), "mse": rmse**2, "rmse": rmse}
        values |= {"psnr": 20 * math.log10(how.data_range / rmse), "ssim": 1 - rmse / 1000}
        cases.append(CaseMetrics(f"test/MR/phantom-{k}", f"phantom-{k}", how, values))
    return cases


def write_run(folder, by_protocol, *, baselines=None, direction="mr2ct", passed=True, records=None, manifest=None):
    """Write what evaluate and the stages leave of a run; `records` are stage → extra keys of its record."""
    evaluate = folder / "evaluate"
    evaluate.mkdir(parents=True)
    with (evaluate / "cases.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["protocol", "case", "subject", "metric", "value"])
        for name, cases in by_protocol.items():
            for c in cases:
                writer.writerows([name, c.case, c.subject, m, f"{v:.8g}"] for m, v in sorted(c.values.items()))
    tree = {
        "direction": direction,
        "passed": passed,
        "statement": "Passed: it is good." if passed else "Failed: <bad>.",
        "summaries": {n: summarise(c, resamples=200).to_dict() for n, c in by_protocol.items()},
        "baselines": {
            who: {n: summarise(c, resamples=200).to_dict() for n, c in found.items()}
            for who, found in (baselines or {}).items()
        },
    }
    (evaluate / "verdict.json").write_text(json.dumps(tree))
    for stage, extra in ({"evaluate": {}} | (records or {})).items():
        place = folder / stage / "provenance"
        place.mkdir(parents=True, exist_ok=True)
        record = {"digest": content_digest(folder / stage), "recipe": "demo", "code_revision": "abc123"}
        record |= ({"settings": {"evaluate": {"bootstrap": 200}}} if stage == "evaluate" else {}) | extra
        (place / "stage.json").write_text(json.dumps(record))
    if manifest is not None:
        import pandas as pd

        (folder / "validate").mkdir(exist_ok=True)
        rows = [(s, f"test/{m}/{s}", sha, "test") for s, m, sha in manifest]
        pd.DataFrame(rows, columns=["subject", "image", "sha256", "split"]).to_parquet(
            folder / "validate" / "manifest.parquet"
        )
    return folder


def raw(digest):
    return {"parts": {"input raw": digest}}


def two_runs(tmp_path, **extra):
    a = write_run(tmp_path / "a", {HU.name: paired_cases()}, records={"evaluate": raw("same")}, **extra)
    b = write_run(tmp_path / "b", {HU.name: paired_cases(0.8)}, records={"evaluate": raw("same")}, **extra)
    return [read_run(a, "a"), read_run(b, "b")]


def test_a_run_is_read_back_as_it_was_measured(tmp_path):
    cases = paired_cases()
    run = read_run(write_run(tmp_path / "a", {HU.name: cases}), "a")
    assert run.protocol(HU.name) == HU and run.code == "abc123"
    assert [c.case for c in run.cases[HU.name]] == [c.case for c in cases]
    assert run.cases[HU.name][0].values == pytest.approx(dict(cases[0].values), rel=1e-7)
    assert run.summaries[HU.name].mean("mae") == pytest.approx(summarise(cases).mean("mae"))


def test_the_better_run_is_named_where_the_test_is_significant(tmp_path):
    comparison = compare_runs(two_runs(tmp_path))
    (table,) = comparison.tables
    (pair,) = table.pairs
    mae = next(t for t in pair.tests if t.metric == "mae")
    assert table.better(pair, mae) == "b" and mae.wilcoxon_p == pytest.approx(2 / 2**12)
    assert mae.difference == pytest.approx(0.2 * summarise(paired_cases()).mean("mae"), rel=1e-6)
    assert comparison.phantom and not comparison.notes


def test_no_run_is_called_better_by_numbers_that_show_no_fidelity(tmp_path):
    how = protocol("structure")
    runs = []
    for name, nmi in (("a", 0.2), ("b", 0.4)):
        cases = [CaseMetrics(f"c{k}", f"s{k}", how, {"nmi": nmi + k / 100}) for k in range(12)]
        runs.append(read_run(write_run(tmp_path / name, {"structure": cases}), name))
    (table,) = compare_runs(runs).tables
    (test,) = table.pairs[0].tests
    assert test.significant and table.better(table.pairs[0], test) == ""
    assert "No number here measures fidelity" in render_comparison(compare_runs(runs))


def test_three_runs_are_tested_two_by_two_and_corrected_together(tmp_path):
    a, b = two_runs(tmp_path)
    c = read_run(write_run(tmp_path / "c", {HU.name: paired_cases(1.3)}, records={"evaluate": raw("same")}), "c")
    (table,) = compare_runs([a, b, c]).tables
    assert [(p.a, p.b) for p in table.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    count = sum(len(p.tests) for p in table.pairs)
    assert table.pairs[0].tests[0].wilcoxon_holm == pytest.approx(min(1.0, count * 2 / 2**12))


def test_baseline_translators_share_a_row_where_they_are_alike(tmp_path):
    same, other = ({"mean image": {HU.name: paired_cases(2.0, seed=s)}} for s in (0, 1))
    runs = two_runs(tmp_path, baselines=same)
    c = read_run(write_run(tmp_path / "c", {HU.name: paired_cases()}, baselines=other), "c")
    assert [r.who for r in compare_runs(runs).tables[0].rows] == ["a", "b", "mean image"]
    rows = [r.who for r in compare_runs([runs[0], c]).tables[0].rows]
    assert rows == ["a", "c", "mean image, a", "mean image, c"]


def test_a_distribution_has_no_patients_and_no_paired_test(tmp_path):
    how = replace(protocol("unpaired_distribution"), variant="net sha256 abc, 40 real and 40 synthetic")
    runs = []
    for name, value in (("a", 0.1), ("b", 0.2)):
        case = CaseMetrics("test mr2ct", "", how, {"kid": value, "kid_sd": 0.01, "fid": 10 * value})
        runs.append(read_run(write_run(tmp_path / name, {how.name: [case]}), name))
    (table,) = compare_runs(runs).tables
    assert table.pairs == () and table.protocol == how


def test_extractors_that_differ_are_a_type_error(tmp_path):
    runs = []
    for name in ("a", "b"):
        how = replace(protocol("unpaired_distribution"), variant=f"weights of {name}")
        case = CaseMetrics("test mr2ct", "", how, {"kid": 0.1})
        runs.append(read_run(write_run(tmp_path / name, {how.name: [case]}), name))
    with pytest.raises(TypeError, match=r"runs a and b: numbers of different protocols.*weights of a.*weights of b"):
        compare_runs(runs)
    assert issubclass(UnlikeProtocolsError, TypeError)


def test_settings_that_differ_are_listed_and_equal_ones_are_not(tmp_path):
    def records(steps, rate):
        train = {
            "settings": {"train": {"steps": steps, "batch": 1}, "loss": {"cycle": 5.0}},
            "summary": {"settings": {"train.lr_generator": rate}},
        }
        return {"train": train, "evaluate": raw("same")}

    runs = [
        read_run(write_run(tmp_path / n, {HU.name: paired_cases()}, records=records(s, r)), n)
        for n, s, r in (("a", 100, 0.5), ("b", 200, 0.25))
    ]
    comparison = compare_runs(runs)
    assert comparison.settings == {"train.steps": ("100", "200"), "tuned train.lr_generator": ("0.5", "0.25")}
    logged = replace(runs[1], settings={"train.steps": 200, "train.batch": 1})
    assert compare_runs([runs[0], logged]).settings == {"train.steps": ("100", "200")}
    old = {"train": {"parts": {"recipe.loss": "1" * 64}}, "evaluate": raw("same")}
    c = read_run(write_run(tmp_path / "c", {HU.name: paired_cases()}, records=old), "c")
    assert any("recipe section loss, which may differ" in n for n in compare_runs([runs[0], c]).notes)


def test_unlike_cases_are_refused_by_name(tmp_path):
    a = read_run(write_run(tmp_path / "a", {HU.name: paired_cases()}), "a")
    b = read_run(write_run(tmp_path / "b", {HU.name: paired_cases(patients=11)}), "b")
    with pytest.raises(InputError, match=r"run a and run b were not measured on the same cases.*test/MR/phantom-11"):
        compare_runs([a, b])


def test_cases_of_one_name_that_are_other_images_are_refused(tmp_path):
    def run(name, digest, sha):
        images = [(k, m) for k in range(12) for m in ("CT", "MR")]
        manifest = [(f"phantom-{k}", m, sha if (k, m) == (3, "CT") else "alike") for k, m in images]
        folder = write_run(
            tmp_path / name, {HU.name: paired_cases()}, records={"evaluate": raw(digest)}, manifest=manifest
        )
        return read_run(folder, name)

    first = run("a", "one", "old")
    with pytest.raises(InputError, match=r"different images of phantom-3: test/CT/phantom-3 is not the same file"):
        compare_runs([first, run("b", "two", "new")])
    (note,) = compare_runs([first, run("c", "two", "old")]).notes
    assert "different data, but their test images are the same" in note
    d = read_run(write_run(tmp_path / "d", {HU.name: paired_cases()}), "d")
    (note,) = compare_runs([first, d]).notes
    assert "whether these are the same images is not recorded" in note


def test_what_not_every_run_measured_is_left_out_and_said(tmp_path):
    wolterink = protocol("wolterink")
    both = {HU.name: paired_cases(), "wolterink": paired_cases(how=wolterink)}
    a = read_run(write_run(tmp_path / "a", both), "a")
    b = read_run(write_run(tmp_path / "b", {HU.name: paired_cases(0.8)}), "b")
    comparison = compare_runs([a, b])
    assert [t.protocol.name for t in comparison.tables] == [HU.name]
    assert "wolterink is left out: not every run was measured under it" in comparison.notes
    with pytest.raises(InputError, match="wolterink was not measured in run b"):
        compare_runs([a, b], protocols=["wolterink"])


def test_runs_without_a_common_protocol_direction_or_company_are_refused(tmp_path):
    a = read_run(write_run(tmp_path / "a", {HU.name: paired_cases()}), "a")
    b = read_run(write_run(tmp_path / "b", {"wolterink": paired_cases(how=protocol("wolterink"))}), "b")
    c = read_run(write_run(tmp_path / "c", {HU.name: paired_cases()}, direction="ct2mr"), "c")
    with pytest.raises(InputError, match=r"share no protocol.*a: paired_volume_hu; b: wolterink"):
        compare_runs([a, b])
    with pytest.raises(InputError, match=r"run a translates mr2ct and run c ct2mr"):
        compare_runs([a, c])
    with pytest.raises(InputError, match="needs two runs or more"):
        compare_runs([a])


def test_few_patients_are_said(tmp_path):
    runs = [read_run(write_run(tmp_path / n, {HU.name: paired_cases(g, 4)}), n) for n, g in (("a", 1), ("b", 2))]
    comparison = compare_runs(runs)
    assert any("few patients (paired_volume_hu 4)" in n for n in comparison.notes)
    assert all(not t.significant for t in comparison.tables[0].pairs[0].tests)


def test_an_altered_evaluation_is_refused(tmp_path):
    folder = write_run(tmp_path / "a", {HU.name: paired_cases()})
    text = (folder / "evaluate" / "cases.csv").read_text()
    (folder / "evaluate" / "cases.csv").write_text(text.replace(",mae,1", ",mae,0", 1))
    with pytest.raises(InputError, match="was altered after it was measured"):
        read_run(folder, "a")


@pytest.mark.parametrize("content", ["not json", "[]", '{"summaries": {}}'])
def test_an_unreadable_verdict_is_one_sentence(tmp_path, content):
    folder = write_run(tmp_path / "a", {HU.name: paired_cases()})
    (folder / "evaluate" / "verdict.json").write_text(content)
    (folder / "evaluate" / "provenance" / "stage.json").unlink()
    with pytest.raises(InputError, match=r"run a: ") as caught:
        read_run(folder, "a")
    assert "\n" not in str(caught.value)


def test_the_page_is_self_contained_escaped_and_says_what_was_tested(tmp_path):
    a, b = two_runs(tmp_path)
    page = render_comparison(compare_runs([a, replace(b, passed=False, statement="Failed: <script>x</script>.")]))
    assert not re.search(r"(src|href)=|@import|url\(|<script", page)
    assert "&lt;script&gt;" in page and "Phantoms, not patients" in page
    assert HU.describe() in page and "prefers-color-scheme: dark" in page and "@media print" in page
    assert "a less b" in page and "Wilcoxon" in page and page.count("<svg") == 2 * 4


def test_an_infinite_psnr_is_shown_and_kept_out_of_the_plot(tmp_path):
    equal = [CaseMetrics(f"c{k}", f"s{k}", HU, {"mae": 0.0, "psnr": math.inf}) for k in range(3)]
    runs = [read_run(write_run(tmp_path / n, {HU.name: equal}), n) for n in "ab"]
    page = render_comparison(compare_runs(runs))
    assert ">∞<span>" in page and page.count("<svg") == 2
    json.dumps(compare_runs(runs).to_dict(), allow_nan=False)


def test_numbers_are_written_for_people():
    assert number_text(-0.0004, 3) == "0.000" and number_text(-1.25, 1, sign=True) == "−1.2"
    assert number_text(None, 1) == "–" and number_text(math.inf, 1) == "∞" and number_text(0.5, 2, sign=True) == "+0.50"
    assert p_text(1e-9) == "< 0.001" and p_text(0.0421) == "0.042" and p_text(None) == "–"
    cycle = protocol("cycle_slice")
    assert metric_text("mae", HU, 0.25) == "0.2" and metric_text("mae", cycle, 0.25) == "0.2500"
    assert (
        metric_text("psnr", cycle, 20.0, unit=True) == "20.00 dB" and metric_text("mae", HU, 9.0, unit=True) == "9.0 HU"
    )


def test_the_report_of_one_model_puts_no_unlike_numbers_in_one_table_either():
    own = {HU.name: summarise(paired_cases())}
    other = summarise(paired_cases(how=replace(HU, clip=(-1024.0, 2000.0), data_range=3024.0)))
    verdict = judge(own, Recipe().gate.limits, has_pairs=True, baselines={"mean image": own})
    with pytest.raises(TypeError, match="different protocols cannot be compared"):
        render_report(evaluation_result(direction_result(own, {"mean image": {HU.name: other}}), verdict), "demo")


@pytest.fixture
def ctmr(home, monkeypatch, capsys, tmp_path):
    """Run the command line in this process; returns (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["ctmr", "compare", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return command


def test_the_terminal_shows_means_intervals_tests_and_baseline_translators(ctmr, home):
    baselines = {"mean image": {HU.name: paired_cases(2.0)}}
    write_run(home.runs / "demo-one", {HU.name: paired_cases()}, baselines=baselines)
    write_run(home.runs / "demo-two", {HU.name: paired_cases(0.8)}, baselines=baselines, passed=False)
    code, out, _ = ctmr("demo-one", "demo-two", "--html", "page.html")
    assert code == 0
    for words in (
        "demo-one less demo-two",
        "mean image",
        "Failed: <bad>.",
        HU.describe(),
        "after Holm's correction",
        "page written to page.html",
    ):
        assert words in out
    code, out, _ = ctmr("demo-one", str(home.runs / "demo-two" / "evaluate"), "--json")
    tree = json.loads(out)
    assert code == 0 and [r["name"] for r in tree["runs"]] == ["demo-one", "evaluate"]
    assert {t["metric"] for t in tree["protocols"][HU.name]["paired"][0]["tests"]} == {"mae", "psnr", "ssim"}


def test_mistakes_are_one_sentence_and_exit_2(ctmr, home, tmp_path):
    write_run(home.runs / "one", {HU.name: paired_cases()})
    write_run(home.runs / "two", {HU.name: paired_cases(patients=3)})
    write_run(home.runs / "three", {"wolterink": paired_cases(how=protocol("wolterink"))})
    (home.runs / "empty").mkdir()
    (tmp_path / "taken.html").write_text("mine")
    for words, sentence in (
        (["one", "gone"], "there is no run 'gone'"),
        (["one", "empty"], "has no evaluate/cases.csv; run `ctmr evaluate`"),
        (["one", "one"], "run one is given twice"),
        (["one"], "needs two runs or more"),
        (["one", "two"], "were not measured on the same cases"),
        (["one", "three"], "share no protocol"),
        (["one", "two", "--html", "taken.html"], "taken.html exists already"),
    ):
        code, _, err = ctmr(*words)
        assert code == 2 and sentence in err, words
        assert err.startswith("ctmr: ") and err.count("\n") == 1
    assert (tmp_path / "taken.html").read_text() == "mine"


def test_unlike_protocols_end_with_exit_2_and_name_both(ctmr, home):
    for name in ("one", "two"):
        how = replace(protocol("unpaired_distribution"), variant=f"weights of {name}")
        write_run(home.runs / name, {how.name: [CaseMetrics("test mr2ct", "", how, {"kid": 0.1})]})
    code, _, err = ctmr("one", "two")
    assert code == 2 and err.count("\n") == 1
    assert "different protocols cannot be compared" in err and "weights of one" in err and "weights of two" in err


@pytest.mark.slow
def test_mlflow_runs_are_compared_with_their_parameters(ctmr, home, tmp_path):
    from ctmr.tracking.mlflow import Tracking

    tracking = Tracking(home)
    ids = []
    for name, gain, steps in (("a", 1.0, 100), ("b", 0.8, 200)):
        folder = write_run(tmp_path / name, {HU.name: paired_cases(gain)})
        run_id = tracking.start(name, tags={"recipe": "demo"})
        tracking.params(run_id, {"train": {"steps": steps, "flip": True}, "directions": ["mr2ct"]})
        for file in ("cases.csv", "verdict.json"):
            tracking.artifact(run_id, folder / "evaluate" / file, "evaluation")
        ids.append(run_id)
    code, out, _ = ctmr(*ids, "--json")
    tree = json.loads(out)
    assert code == 0 and tree["settings"] == {"train.steps": ["100", "200"]}
    recorded = {"train": {"settings": {"train": {"steps": 100, "flip": True}, "directions": ["mr2ct"]}}}
    write_run(home.runs / "here", {HU.name: paired_cases()}, records=recorded)
    assert json.loads(ctmr(ids[0], "here", "--json")[1])["settings"] == {}
    code, _, err = ctmr(ids[0], "0" * 32)
    assert code == 2 and "has no run 000" in err
