"""The HTML report: self-contained, escaped, and saying in words what was and was not measured."""

import math
import re

from evaluated import direction_result, evaluation_result, lesion_test, summary

from ctmr.evaluation.gate import judge
from ctmr.imaging.volume import Direction, Unit
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import protocol
from ctmr.metrics.stats import summarise
from ctmr.metrics.tissue import TissueClass, TissueRow
from ctmr.recipe.recipe import Recipe
from ctmr.reports.html import ReportFigure, ReportSection, render_report

OWN = summary("paired_volume_hu", {"mae": 80.0, "psnr": 27.0, "ssim": 0.8})
RIVALS = {"mean image": summary("paired_volume_hu", {"mae": 245.0, "psnr": 22.6, "ssim": 0.7})}


def page(own=OWN, rivals=RIVALS, *, words=(), figures=(), gated=None, **fields):
    """The page of a paired test; `gated` are fields of the gated direction."""
    verdict = judge(own, Recipe().gate.limits, has_pairs=True, baselines=rivals)
    result = evaluation_result(direction_result(own, rivals, **(gated or {})), verdict, **fields)
    return render_report(result, "demo, MR→CT", words=words, figures=figures)


def test_the_page_loads_nothing_and_needs_no_script():
    shown = page(figures=[ReportFigure(b"\x89PNG", "a head")])
    assert 'src="data:image/png;base64,' in shown and 'alt="a head"' in shown
    assert not re.search(r"(src|href)=.(https?:|//)|@import|url\((?!#)|<script", shown)


def test_model_and_baseline_translators_stand_in_one_table_with_counts():
    shown = page()
    table = shown[shown.index('id="measurements"') :]
    assert table.index("this model") < table.index("mean image")
    assert "80.0<span>± 0.0</span>" in table and "245.0<span>± 0.0</span>" in table and "2 / 2" in table
    assert "range 4024" in shown


def test_text_from_outside_is_escaped():
    shown = page(lineage={"dataset": "<script>alert(1)</script>"}, gated={"warnings": ("a & b",)})
    assert "<script>" not in shown and "A &amp; b" in shown


def test_a_phantom_is_called_one_and_a_patient_is_not():
    assert "Phantoms, not patients" in page(gated={"phantom": True})
    assert "Phantoms, not patients" not in page()


def test_without_pairs_the_page_says_that_fidelity_was_not_measured():
    own = summary("cycle_slice", {"ssim": 0.9}) | summary("structure", {"nmi": 0.2})
    verdict = judge(own, Recipe().gate.limits, has_pairs=False)
    gated = direction_result(own, has_pairs=False)
    shown = render_report(evaluation_result(gated, verdict), "pictures")
    assert "Fidelity was not measured" in shown and "unpaired_distribution kid was not measured" in shown


def test_an_infinite_psnr_and_a_tissue_table_are_shown():
    table = {TissueClass.FAT: TissueRow(100, -90.0, -40.0, -80.0, 10.0)}
    shown = page(summary("paired_volume_hu", {"mae": 0.0, "psnr": math.inf, "ssim": 0.8}), gated={"tissues": table})
    assert "∞" in shown and "<td>fat</td>" in shown and "+50" in shown


def test_equal_reports_are_equal_bytes():
    assert page() == page()


def reverse(own, **fields):
    return direction_result(own, direction=Direction.CT2MR, unit=Unit.ARBITRARY, has_pairs=False, **fields)


def test_a_distribution_has_no_patients_to_count():
    case = CaseMetrics("test", "", protocol("unpaired_distribution"), {"kid": 0.2, "fid": 90.0})
    shown = page(other=reverse({"unpaired_distribution": summarise([case])}))
    assert "1 / 1" not in shown and "<td>–</td></tr>" in shown


def test_lesions_are_listed_with_what_was_shown_of_the_truth():
    shown = page(lesions=(lesion_test([True, False], [{"invented": 2.0, "false_findings": 7.0}] * 2),))
    part = shown[shown.index('id="lesions"') :]
    assert "1 of 2" in part and "9 to 91 % (Wilson)" in part and "80 %" in part
    assert part.index("✓ kept") < part.index("✗ lost") and "lesions: with and without lesions" in part
    assert "invented, an image" in part and "false findings, an image" in part
    tile = shown[shown.index("lesions kept") :]
    assert "1 of 2" in tile and "2 invented an image, 7 false findings" in tile


def test_the_best_of_a_column_is_marked_and_numbers_carry_their_protocol():
    shown = page()
    assert re.search(r'<td class="best">80.0<span>', shown) and not re.search(r'<td class="best">245.0', shown)
    tile = shown[shown.index('class="tile"') :]
    assert "80.0 HU" in tile and "mean image: 245.0" in tile and "<code>paired_volume_hu</code>" in tile


def test_cases_are_listed_worst_first():
    cases = [CaseMetrics(n, n, protocol("paired_volume_hu"), {"mae": m}) for n, m in (("x", 5.0), ("y", 50.0))]
    shown = page(gated={"cases": {"paired_volume_hu": cases}})
    part = shown[shown.index('id="cases"') :]
    assert part.index("<td>y</td>") < part.index("<td>x</td>") and "Worst mae first" in part


def test_figures_stand_in_their_sections_and_charts_follow_the_theme():
    figures = [
        ReportFigure(b"\x89PNG", "losses over steps", "<svg><text>losses</text></svg>", ReportSection.TRAINING),
        ReportFigure(b"\x89PNG", "a head"),
    ]
    shown = page(figures=figures)
    assert shown.index('alt="a head"') < shown.index('id="measurements"') < shown.index("<svg><text>losses")
    assert "prefers-color-scheme: dark" in shown and "@media print" in shown and 'href="#training"' in shown


def test_the_other_direction_and_why_it_may_be_missing():
    shown = page(other=reverse(summary("structure", {"nmi": 0.2}), alarm="fluid is bright", warnings=("bone is dark",)))
    part = shown[shown.index('id="other"') :]
    assert "The other direction, ct2mr" in part and "Information only" in part and "structure: input" in part
    assert part.index("Fluid is bright.") < part.index("Bone is dark.")
    assert "no channel." in page(other="no channel")


def test_information_is_told_from_checks():
    verdict = judge(OWN, Recipe().gate.limits, has_pairs=True, baselines={}, information=["8 of 8 lesions kept"])
    shown = render_report(evaluation_result(direction_result(OWN), verdict), "x", words=["In plain words."])
    assert "deciding nothing" in shown and "8 of 8 lesions kept" in shown
    assert shown.index("In plain words.") < shown.index('id="measurements"')
