"""Protocol: unlike numbers are never compared, contradicting numbers never pass."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ctmr.protocol import PROTOCOLS, CaseMetrics, Mask, Metric, Pairing, check_consistent, require_same_protocol

HU = PROTOCOLS["paired_volume_hu"]
images = hnp.arrays(np.float64, (4, 5), elements=st.floats(-1024, 3000, width=32))


def case(values, protocol=HU, name="s1"):
    return CaseMetrics(name, name, protocol, values)


@pytest.mark.parametrize(
    "change", [{"clip": None}, {"data_range": 4095.0}, {"variant": "other"}, {"mask": Mask.NONE}, {"volume": False}]
)
def test_numbers_of_protocols_that_differ_anywhere_cannot_be_compared(change):
    other = dataclasses.replace(HU, **change)
    with pytest.raises(TypeError, match="different protocols cannot be compared"):
        case({"mae": 1.0}).difference(case({"mae": 2.0}, other))


def test_a_comparison_of_nothing_is_a_type_error():
    with pytest.raises(TypeError, match="no protocol was given"):
        require_same_protocol([])


def test_equal_protocols_are_compared_metric_by_metric():
    a, b = case({"mae": 5.0, "ssim": 0.8}), case({"mae": 3.5, "nmi": 0.2})
    assert a.difference(b) == {"mae": 1.5}
    assert require_same_protocol([HU, dataclasses.replace(HU)]) == HU


def test_a_type_error_describes_both_sides():
    with pytest.raises(TypeError, match=r"paired_volume_hu.*range 4024.*synthrad2025.*range 4095"):
        require_same_protocol([HU, PROTOCOLS["synthrad2025"]])


@given(images, images)
def test_numbers_of_two_real_images_are_always_consistent(x, y):
    mse = float(np.mean((x - y) ** 2))
    assume(mse > 1e-12)
    values = {
        "mae": float(np.mean(np.abs(x - y))),
        "mse": mse,
        "rmse": math.sqrt(mse),
        "psnr": 10 * math.log10(4024.0**2 / mse),
    }
    case(values)


@given(st.floats(0.01, 1000), st.floats(1.001, 10))
def test_a_mean_error_above_the_root_mean_square_is_refused_whichever_way_that_is_given(rmse, factor):
    mae = rmse * factor
    for values in (
        {"rmse": rmse},
        {"mse": rmse**2},
        {"psnr": 20 * math.log10(4024.0 / rmse)},
    ):
        with pytest.raises(ValueError, match="no pair of images"):
            case({"mae": mae, **values})


@given(st.floats(0.01, 1000), st.floats(1.001, 10))
def test_a_psnr_over_another_range_than_the_protocols_is_noticed(rmse, factor):
    psnr = 20 * math.log10(4024.0 * factor / rmse)
    with pytest.raises(ValueError, match="implies RMSE"):
        case({"rmse": rmse, "psnr": psnr})


def test_equal_images_have_no_error_and_an_infinite_psnr():
    case({"mae": 0.0, "mse": 0.0, "rmse": 0.0, "psnr": math.inf})


def test_without_a_range_a_psnr_is_not_held_against_the_error():
    check_consistent({"psnr": 20.0, "rmse": 1.0, "mae": 0.5}, None, where="a paper")


def test_a_metric_nobody_defined_is_refused():
    with pytest.raises(ValueError, match=r"no metric is called.*'sharpness'"):
        case({"sharpness": 1.0})


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_protocol_is_registered_under_its_name_and_describes_itself(name):
    protocol = PROTOCOLS[name]
    assert protocol.name == name
    assert protocol.describe().startswith(f"{name}: {protocol.pairing}")
    if protocol.data_range is not None and protocol.clip is not None:
        assert protocol.clip[1] - protocol.clip[0] == protocol.data_range


def test_fidelity_is_measured_on_pairs_only_and_unpaired_pixels_never_gate():
    assert {n for n, p in PROTOCOLS.items() if p.measures_fidelity} == {
        n for n, p in PROTOCOLS.items() if p.pairing is Pairing.PAIRED
    }
    assert [n for n, p in PROTOCOLS.items() if not p.may_gate] == ["unpaired_pixels"]
    assert not PROTOCOLS["cycle_slice"].measures_fidelity


def test_metric_names_are_what_tables_and_gates_write():
    assert {"mae", "rmse", "psnr", "ssim", "kid", "nmi"} <= {m.value for m in Metric}
