"""The HTML report: self-contained, escaped, and saying in words what was and was not measured."""

import math
import re

from ctmr.metrics.stats import summarise
from ctmr.metrics.tissue import TissueClass, TissueRow
from ctmr.metrics.verdict import judge
from ctmr.protocol import CaseMetrics, protocol
from ctmr.recipe import Recipe
from ctmr.reports.html import Report, ReportFigure, render_report


def summary(name, values):
    return {name: summarise([CaseMetrics(s, s, protocol(name), values) for s in "ab"])}


def paired_report(**extra):
    psnr = math.inf if extra.pop("equal", False) else 27.0
    own = summary("paired_volume_hu", {"mae": 80.0, "psnr": psnr, "ssim": 0.8})
    rivals = {"mean image": summary("paired_volume_hu", {"mae": 245.0, "psnr": 22.6, "ssim": 0.7})}
    verdict = judge(own, Recipe().gate, has_pairs=True, trivial=rivals)
    return Report("demo, MR→CT", verdict, own, rivals, **extra)


def test_the_page_loads_nothing_and_needs_no_script():
    page = render_report(paired_report(figures=[ReportFigure(b"\x89PNG", "a head")]))
    assert 'src="data:image/png;base64,' in page and 'alt="a head"' in page
    assert not re.search(r"(src|href)=.(https?:|//)|@import|url\(|<script", page)


def test_model_and_trivial_translators_stand_in_one_table_with_counts():
    page = render_report(paired_report())
    assert page.index("this model") < page.index("mean image")
    assert "80.0 ± 0.0" in page and "245.0 ± 0.0" in page and "2 / 2" in page
    assert "range 4024" in page


def test_text_from_outside_is_escaped():
    page = render_report(paired_report(lineage={"dataset": "<script>alert(1)</script>"}, warnings=["a & b"]))
    assert "<script>" not in page and "a &amp; b" in page


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
    assert "∞" in page and "<td>fat</td>" in page


def test_equal_reports_are_equal_bytes():
    assert render_report(paired_report()) == render_report(paired_report())
