"""The HTML report: self-contained, escaped, and saying in words what was and was not measured."""

import math
import re

from ctmr.evaluation.gate import judge
from ctmr.imaging.volume import Direction, Unit
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import protocol
from ctmr.metrics.stats import summarise
from ctmr.metrics.tissue import TissueClass, TissueRow
from ctmr.recipe.recipe import Recipe
from ctmr.reports.html import LesionRow, LesionTable, OtherDirection, Report, ReportFigure, ReportSection, render_report


def summary(name, values):
    return {name: summarise([CaseMetrics(s, s, protocol(name), values) for s in "ab"])}


def paired_report(**extra):
    psnr = math.inf if extra.pop("equal", False) else 27.0
    own = summary("paired_volume_hu", {"mae": 0.0 if math.isinf(psnr) else 80.0, "psnr": psnr, "ssim": 0.8})
    rivals = {"mean image": summary("paired_volume_hu", {"mae": 245.0, "psnr": 22.6, "ssim": 0.7})}
    verdict = judge(own, Recipe().gate, has_pairs=True, baselines=rivals)
    return Report("demo, MR→CT", verdict, own, rivals, **extra)


def test_the_page_loads_nothing_and_needs_no_script():
    page = render_report(paired_report(figures=[ReportFigure(b"\x89PNG", "a head")]))
    assert 'src="data:image/png;base64,' in page and 'alt="a head"' in page
    assert not re.search(r"(src|href)=.(https?:|//)|@import|url\((?!#)|<script", page)


def test_model_and_baseline_translators_stand_in_one_table_with_counts():
    page = render_report(paired_report())
    table = page[page.index('id="measurements"') :]
    assert table.index("this model") < table.index("mean image")
    assert "80.0<span>± 0.0</span>" in table and "245.0<span>± 0.0</span>" in table and "2 / 2" in table
    assert "range 4024" in page


def test_text_from_outside_is_escaped():
    page = render_report(paired_report(lineage={"dataset": "<script>alert(1)</script>"}, warnings=["a & b"]))
    assert "<script>" not in page and "A &amp; b" in page


def test_a_phantom_is_called_one_and_a_patient_is_not():
    assert "Phantoms, not patients" in render_report(paired_report(phantom=True))
    assert "Phantoms, not patients" not in render_report(paired_report())


def test_without_pairs_the_page_says_that_fidelity_was_not_measured():
    own = summary("cycle_slice", {"ssim": 0.9}) | summary("structure", {"nmi": 0.2})
    verdict = judge(own, Recipe().gate, has_pairs=False)
    page = render_report(Report("pictures", verdict, own))
    assert "Fidelity was not measured" in page and "unpaired_distribution kid was not measured" in page


def test_an_infinite_psnr_and_a_tissue_table_are_shown():
    table = {TissueClass.FAT: TissueRow(100, -90.0, -40.0, -80.0, 10.0)}
    page = render_report(paired_report(equal=True, tissues=table))
    assert "∞" in page and "<td>fat</td>" in page and "+50" in page


def test_equal_reports_are_equal_bytes():
    assert render_report(paired_report()) == render_report(paired_report())


def lesions(kept):
    rows = [LesionRow("a", "tumour", 5.0, 8.0, 10.0, 9.0, k) for k in kept]
    found = summary("lesions", {"detection_rate": 0.5, "invented": 2.0, "false_findings": 7.0})["lesions"]
    return LesionTable(Direction.MR2CT, "inserted", Unit.HU, rows, 0.1, 0.9, 2.0, 7.0, found)


def test_a_distribution_has_no_patients_to_count():
    case = CaseMetrics("test", "", protocol("unpaired_distribution"), {"kid": 0.2, "fid": 90.0})
    other = OtherDirection("ct2mr", summaries={"unpaired_distribution": summarise([case])})
    page = render_report(paired_report(other=other))
    assert "1 / 1" not in page and "<td>–</td></tr>" in page


def test_lesions_are_listed_with_what_was_shown_of_the_truth():
    page = render_report(paired_report(lesions=[lesions([True, False])]))
    part = page[page.index('id="lesions"') :]
    assert "1 of 2" in part and "10 to 90 % (Wilson)" in part and "80 %" in part
    assert part.index("✓ kept") < part.index("✗ lost") and "lesions: with and without lesions" in part


def test_the_best_of_a_column_is_marked_and_numbers_carry_their_protocol():
    page = render_report(paired_report())
    assert re.search(r'<td class="best">80.0<span>', page) and not re.search(r'<td class="best">245.0', page)
    tile = page[page.index('class="tile"') :]
    assert "80.0 HU" in tile and "mean image: 245.0" in tile and "<code>paired_volume_hu</code>" in tile


def test_cases_are_listed_worst_first():
    cases = [CaseMetrics(n, n, protocol("paired_volume_hu"), {"mae": m}) for n, m in (("x", 5.0), ("y", 50.0))]
    page = render_report(paired_report(cases={"paired_volume_hu": cases}))
    part = page[page.index('id="cases"') :]
    assert part.index("<td>y</td>") < part.index("<td>x</td>") and "Worst mae first" in part


def test_figures_stand_in_their_sections_and_charts_follow_the_theme():
    figures = [
        ReportFigure(b"\x89PNG", "losses over steps", "<svg><text>losses</text></svg>", ReportSection.TRAINING),
        ReportFigure(b"\x89PNG", "a head"),
    ]
    page = render_report(paired_report(figures=figures))
    assert page.index('alt="a head"') < page.index('id="measurements"') < page.index("<svg><text>losses")
    assert "prefers-color-scheme: dark" in page and "@media print" in page and 'href="#training"' in page


def test_the_other_direction_and_why_it_may_be_missing():
    other = OtherDirection("ct2mr", summaries=summary("structure", {"nmi": 0.2}), warnings=["fluid is bright"])
    page = render_report(paired_report(other=other))
    assert "Information only" in page and "Fluid is bright." in page and "structure: input" in page
    assert "no channel." in render_report(paired_report(other=OtherDirection("ct2mr", note="no channel")))


def test_information_is_told_from_checks():
    own = summary("paired_volume_hu", {"mae": 80.0, "psnr": 27.0, "ssim": 0.8})
    verdict = judge(own, Recipe().gate, has_pairs=True, baselines={}, information=["8 of 8 lesions kept"])
    page = render_report(Report("x", verdict, own, words=["In plain words."]))
    assert "deciding nothing" in page and "8 of 8 lesions kept" in page
    assert page.index("In plain words.") < page.index('id="measurements"')
