"""Charts: PNG for files, and an SVG that carries text, loads nothing and takes its colours from the page."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from ctmr.evaluation.robustness import Curve
from ctmr.evaluation.uncertainty import Measure, UncertaintyMap, UncertaintyResult
from ctmr.imaging.volume import Unit
from ctmr.metrics.tissue import TissueClass, TissueRow
from ctmr.reports.canvas import CSS_COLOURS, themed
from ctmr.reports.charts import agreement_chart, loss_chart, robustness_chart, sparsification_chart, tissue_chart

TABLE = {
    TissueClass.FAT: TissueRow(100, -90, -40, -80, 10),
    TissueClass.BONE: TissueRow(100, 900, 700, 300, 1100),
}
CURVES = [Curve("noise", "σ 60 HU", (0.0, 0.5, 1.0), (9.0, 10.0, 13.0), (8.0, 9.0, 11.0), (10.0, 12.0, 16.0))]
BOTH = Measure("both", 0.5, 0.4, 0.6, (9.0, 4.0), 0.3)
SLICE = UncertaintyMap("a", *[np.zeros((2, 2), np.float32)] * 4)
UNCERTAIN = UncertaintyResult(Unit.HU, 1, (BOTH,), (9.0, 2.0), 0.5, SLICE)


def every_chart():
    return {
        "losses": loss_chart({"cycle": [9 / (1 + k) for k in range(40)], "a<b": [0.1] * 40}, range(40)),
        "tissues": tissue_chart(TABLE, phantom=True),
        "agreement": agreement_chart([(100, 120), (110, 115), (90, 99)], [TABLE, TABLE]),
        "robustness": robustness_chart(CURVES, label="MAE (HU)"),
        "coverage": sparsification_chart((1.0, 0.5), UNCERTAIN, label="MAE (HU)"),
    }


@pytest.mark.parametrize("name", ["losses", "tissues", "agreement", "robustness", "coverage"])
def test_a_chart_is_a_png_and_an_svg_that_follows_its_page(name):
    chart = every_chart()[name]
    assert chart.png.startswith(b"\x89PNG")
    ElementTree.fromstring(chart.svg)
    assert "var(--ink)" in chart.svg and "var(--c1)" in chart.svg
    assert not any(colour in chart.svg.lower() for colour in CSS_COLOURS if colour != "#ffffff")
    assert not re.search(r"https?://(?!www\.w3\.org/)|url\((?!#)|<script|<image", chart.svg)
    assert "<text" in chart.svg and re.search(r'<svg style="max-width: \d+px"[^>]*viewBox', chart.svg)


def test_equal_data_give_equal_charts():
    assert every_chart() == every_chart()


def test_text_in_a_chart_is_escaped():
    assert "a&lt;b" in every_chart()["losses"].svg and "a<b" not in every_chart()["losses"].svg


def test_bias_and_limits_of_agreement_are_those_of_bland_and_altman():
    svg = agreement_chart([(100, 120), (110, 115), (90, 99)], []).svg
    differences = (20, 5, 9)
    bias = sum(differences) / 3
    spread = 1.96 * math.sqrt(sum((d - bias) ** 2 for d in differences) / 2)
    for said in (f"bias {bias:+.0f}", f"{bias + spread:+.0f}", f"{bias - spread:+.0f}"):
        assert said.replace("-", "−") in svg.replace("-", "−")


def test_two_heads_have_no_limits_of_agreement():
    assert "bias" not in agreement_chart([(100, 120), (110, 115)], []).svg.split("limits of agreement")[-1]


def test_an_svg_loses_its_size_and_its_prologue_and_keeps_its_box():
    made = themed('<?xml version="1.0"?>\n<svg width="72pt" height="36pt" viewBox="0 0 72 36"><g id="figure_1"/></svg>')
    assert made == '<svg style="max-width: 96px" viewBox="0 0 72 36"><g/></svg>'
