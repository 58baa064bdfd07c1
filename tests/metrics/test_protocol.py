"""Protocol: unlike numbers are never compared, contradicting numbers never pass."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ctmr.errors import InputError
from ctmr.metrics.cases import CaseMetrics, check_consistent
from ctmr.metrics.protocol import (
    PROTOCOLS,
    GridKind,
    Mask,
    Pairing,
    SsimWindow,
    read_description,
    require_same_protocol,
)

HU = PROTOCOLS["paired_volume_hu"]
images = hnp.arrays(np.float64, (4, 5), elements=st.floats(-1024, 3000, width=32))


def case(values, protocol=HU, name="s1"):
    return CaseMetrics(name, name, protocol, values)


CHANGES = [
    {"clip": None},
    {"data_range": 4095.0},
    {"variant": "other"},
    {"mask": Mask.NONE},
    {"volume": False},
    {"mae_clipped": False},
    {"ssim_border": 3},
    {"ssim_window": SsimWindow.NONE},
    {"unit": "grey levels"},
    {"grid": GridKind.MODEL},
    {"pairing": Pairing.CYCLE},
]


@pytest.mark.parametrize("change", CHANGES)
def test_numbers_of_protocols_that_differ_anywhere_cannot_be_compared(change):
    other = dataclasses.replace(HU, **change)
    with pytest.raises(TypeError, match="different protocols cannot be compared"):
        require_same_protocol([HU, other])


def test_a_comparison_of_nothing_is_a_type_error():
    with pytest.raises(TypeError, match="no protocol was given"):
        require_same_protocol([])


def test_equal_protocols_are_one():
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


def test_protocols_that_differ_anywhere_describe_themselves_differently():
    variants = [HU, *(dataclasses.replace(HU, **change) for change in CHANGES)]
    assert len({p.describe() for p in [*PROTOCOLS.values(), *variants]}) == len(PROTOCOLS) + len(CHANGES)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_description_is_read_back(name):
    protocol = PROTOCOLS[name]
    assert read_description(protocol.describe()) == protocol
    if not protocol.variant:
        named = dataclasses.replace(protocol, variant="net, weights abc, 40 real and 50 synthetic")
        assert read_description(named.describe()) == named
    if protocol.data_range is None:
        ranged = dataclasses.replace(protocol, data_range=2.0, variant="a paper")
        assert read_description(ranged.describe()) == ranged


def test_a_description_of_another_version_or_of_nothing_is_refused():
    with pytest.raises(InputError, match=r"not this version's 'paired_volume_hu.*evaluate again"):
        read_description(HU.describe().replace("4024", "4000"))
    with pytest.raises(InputError, match=r"'nonsense' is unknown to this version"):
        read_description("nonsense")


def test_a_legal_synthrad_case_may_have_an_unclipped_mae_above_the_clipped_rmse():
    metal = {"mae": 300.0, "mse": 100.0, "rmse": 10.0, "psnr": 20 * math.log10(4024 / 10)}
    case(metal, PROTOCOLS["synthrad2023"])
    with pytest.raises(ValueError, match="MAE 300 is above RMSE 10"):
        case(metal)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mae": math.nan}, "mae is nan"),
        ({"mae": -1.0}, "mae is -1; it lies between 0"),
        ({"ssim": 1.2}, "ssim is 1.2; it lies between -1 and 1"),
        ({"dice_bone": -0.1}, "dice_bone is -0.1"),
        ({"rmse": 5.0, "mse": 24.0}, "RMSE 5 is not the root of MSE 24"),
        ({"psnr": math.inf, "rmse": 3.0}, "implies RMSE 0"),
        ({"mae": 1.0, "rmse": 100.0}, "above its largest possible value 63"),
        ({"mae": 50.0, "mae_bone": 10.0, "mae_soft": 20.0, "mae_air": 30.0}, "no average of the MAE"),
    ],
)
def test_numbers_that_no_images_can_give_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        case(values)


@given(images, images)
def test_clipped_images_never_break_the_bound_from_above(x, y):
    error = np.abs(x - y)
    assume(error.max() > 1e-6)
    check_consistent(
        {"mae": float(error.mean()), "mse": float((error**2).mean())}, 4024.0, where="images", bounded=True
    )


def test_every_protocol_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "precision.md").read_text(encoding="utf-8")
    assert not [name for name in PROTOCOLS if f"`{name}`" not in page]
