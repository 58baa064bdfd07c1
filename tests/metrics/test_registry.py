"""The registry: rows that say what is measured, refused where they contradict, and the page that lists them."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from ctmr.metrics.detection import Findings, Response, lesion_metrics
from ctmr.metrics.distribution import measure_distribution
from ctmr.metrics.measurement import measure_cycle, measure_paired, measure_structure, measure_unpaired_pixels
from ctmr.metrics.protocol import PROTOCOLS, Pairing, protocol
from ctmr.metrics.registry import (
    FLICKER,
    KID,
    MAE,
    METRICS,
    MSE,
    PSNR,
    SSIM,
    Metric,
    Shown,
    register,
    registered,
    shown_metrics,
)

RNG = np.random.default_rng(0)
HEAD = np.hypot(*np.mgrid[-16:16, -16:16]) < 14
PAIRED = sorted(n for n, p in PROTOCOLS.items() if p.pairing is Pairing.PAIRED)


def carried(name):
    return {m.name for m in METRICS.values() if name in m.protocols}


@pytest.mark.parametrize("name", PAIRED)
def test_a_paired_protocol_measures_exactly_the_metrics_that_name_it(name):
    shape = (12, 13, 14) if protocol(name).volume else (1, 32, 33)
    truth = RNG.uniform(-1000, 2000, shape) if protocol(name).volume else RNG.uniform(0, 255, shape)
    images = (truth + RNG.normal(0, 9, shape), truth, np.ones(shape, bool))
    axis = 0 if protocol(name).volume else None
    assert set(measure_paired(*images, protocol(name), case="c", subject="s", slice_axis=axis).values) == carried(name)


def test_every_other_protocol_measures_exactly_the_metrics_that_name_it():
    x, y = RNG.uniform(-1, 1, (2, 32, 32))
    features = RNG.normal(size=(2, 12, 6))
    kept = Response(site=0, kind="bright", radius_mm=5.0, signal=9.0, expected=None, cnr=9.0, kept=True)
    measured = [
        measure_cycle(x, y, case="c", subject="s"),
        measure_structure(x, y, HEAD, case="c", subject="s"),
        measure_unpaired_pixels(x, y, data_range=2.0, paper="p", case="c"),
        measure_distribution(*features, subsets=2, subset_size=8, seed=0, variant="v", case="c"),
        lesion_metrics(Findings((kept,), 0), case="c", subject="s", variant="v", false_blobs=1),
    ]
    for case in measured:
        assert set(case.values) == carried(case.protocol.name)
    assert {c.protocol.name for c in measured} | set(PAIRED) == set(PROTOCOLS)


def test_every_row_has_bounds_a_protocol_and_knows_what_is_better():
    for name, metric in METRICS.items():
        assert metric.name == name and metric.bounds[0] < metric.bounds[1] and metric.protocols
    assert PSNR.higher_is_better and not MAE.higher_is_better and not KID.higher_is_better
    assert FLICKER.higher_is_better is None


def test_units_and_decimals_follow_the_protocol_where_a_metric_is_in_the_unit_of_the_images():
    hu, cycle = protocol("paired_volume_hu"), protocol("cycle_slice")
    assert (MAE.unit_under(hu), MAE.unit_under(cycle), PSNR.unit_under(hu), SSIM.unit_under(hu)) == (
        "HU",
        "as trained",
        "dB",
        "",
    )
    assert (MAE.decimals(hu), MAE.decimals(cycle), PSNR.decimals(cycle), KID.decimals(hu)) == (1, 4, 2, 4)


def test_places_show_what_was_measured_in_the_order_of_the_registry():
    measured = [{"psnr": 1.0, "mse": 1.0}, {"mae": 2.0, "flicker": 1.0}]
    assert shown_metrics(Shown.TABLE, measured) == [MAE, PSNR, FLICKER]
    assert shown_metrics(Shown.TERMINAL, measured) == [MAE, PSNR]
    assert MSE not in shown_metrics(Shown.TABLE, [METRICS])


def test_a_taken_name_and_an_unknown_protocol_are_refused():
    with pytest.raises(ValueError, match="'mae' is registered already"):
        register(MAE)
    lost = dataclasses.replace(MAE, name="mae2", protocols=frozenset({"paired"}))
    with pytest.raises(ValueError, match=r"'mae2' names unknown protocols \['paired'\]"):
        register(lost)
    assert METRICS["mae"] is MAE and "mae2" not in METRICS


def test_a_row_is_gone_after_its_block_also_when_that_failed():
    extra = dataclasses.replace(MAE, name="extra")
    with pytest.raises(ZeroDivisionError), registered(extra):
        assert METRICS["extra"] is extra
        raise ZeroDivisionError
    assert "extra" not in METRICS


def documented(metric: Metric) -> str:
    better = {True: "higher", False: "lower", None: "–"}[metric.higher_is_better]
    low, high = ("∞" if math.isinf(b) else f"{b:g}" for b in metric.bounds)
    low = f"−{low.lstrip('-')}" if metric.bounds[0] < 0 else low
    protocols = ", ".join(f"`{n}`" for n in PROTOCOLS if n in metric.protocols)
    return f"| `{metric.name}` | {metric.title} | {metric.unit or '–'} | {better} | {low} to {high} | {protocols} |"


def test_the_page_lists_every_metric_as_the_registry_has_it():
    page = (Path(__file__).parents[2] / "docs" / "precision.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `") and line.split("`")[1] in METRICS]
    assert rows == [documented(m) for m in METRICS.values()]
