"""Normaliser: against numpy, and back again."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ctmr.errors import InputError
from ctmr.imaging.storage_types import STORAGE_DTYPE, to_storage
from ctmr.imaging.volume import Unit
from ctmr.networks.normaliser import Normaliser, normaliser_for
from ctmr.recipe.recipe import Normalise, Percentile, Window

torch.set_num_threads(1)

KNOTS = ((-1024.0, -1.0), (-150.0, -0.45), (150.0, 0.25), (2000.0, 1.0))
uint16_volumes = hnp.arrays(np.uint16, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6))


@st.composite
def windows(draw):
    low = draw(st.floats(-5000, 5000))
    high = low + draw(st.floats(1, 10000))
    if not draw(st.booleans()):
        return Window(low=low, high=high)
    inner = sorted(draw(st.lists(st.integers(1, 99), max_size=4, unique=True)))
    values = sorted(draw(st.lists(st.integers(1, 99), min_size=len(inner), max_size=len(inner), unique=True)))
    t, y = [0, *inner, 100], [0, *values, 100]
    x = [low, *(low + (high - low) * k / 100 for k in t[1:-1]), high]
    return Window(low=low, high=high, knots=tuple(zip(x, (2 * v / 100 - 1 for v in y), strict=True)))


def slices(values):
    return torch.as_tensor(np.asarray(values), dtype=torch.float32).reshape(1, 1, 1, -1)


def limits_of(normaliser, volume):
    return normaliser.measure(torch.as_tensor(volume, dtype=torch.float32))[None]


# There and back


@given(windows(), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_inverse_undoes_the_map_inside_the_window(config, fractions):
    normaliser = Normaliser(config)
    width = config.high - config.low
    x = slices([config.low + width * f for f in fractions])
    limits = limits_of(normaliser, x)
    y = normaliser(x, limits)
    assert float(y.min()) >= -1 - 1e-5 and float(y.max()) <= 1 + 1e-5
    # One float32 rounding of the largest magnitude, made larger by the steepest slope of the inverse.
    steepest = max(
        [1.0]
        + [(b[0] - a[0]) / width * 2 / (b[1] - a[1]) for a, b in zip(config.knots, config.knots[1:], strict=False)]
    )
    scale = max(abs(config.low), abs(config.high), width)
    np.testing.assert_allclose(normaliser.inverse(y, limits), x, rtol=0, atol=4e-6 * scale * max(1, steepest))


@given(windows(), st.lists(st.floats(-1e4, 2e4), min_size=1, max_size=20))
def test_the_map_is_numpys_interpolation_clipped_to_the_window(config, values):
    normaliser = Normaliser(config)
    knots = config.knots or ((config.low, -1.0), (config.high, 1.0))
    expected = np.interp(values, *zip(*knots, strict=True))
    x = slices(values)
    found = normaliser(x, limits_of(normaliser, x)).numpy().ravel()
    steepest = max((b[1] - a[1]) * (config.high - config.low) / (b[0] - a[0]) for a, b in pairwise(knots))
    scale = max(abs(config.low), abs(config.high)) / (config.high - config.low)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * max(1, steepest) * max(1, scale))


def test_a_wider_share_of_the_range_goes_to_soft_tissue_with_knots():
    normaliser = Normaliser(Window(low=-1024, high=2000, knots=KNOTS))
    x = slices([-1024, -150, 0, 150, 2000])
    found = normaliser(x, limits_of(normaliser, x)).ravel().tolist()
    assert found == pytest.approx([-1, -0.45, -0.1, 0.25, 1], abs=1e-5)


@pytest.mark.parametrize("levels", [2, 5, 256])
def test_quantisation_leaves_that_many_evenly_spaced_levels(levels):
    normaliser = Normaliser(Window(low=0, high=1000, levels=levels))
    x = slices(np.linspace(0, 1000, 20 * levels + 1))
    found = np.unique(normaliser(x, limits_of(normaliser, x)).numpy())
    assert len(found) == levels
    np.testing.assert_allclose(found, np.linspace(-1, 1, levels), atol=1e-6)


def test_256_levels_are_an_eight_bit_picture_of_the_window():
    normaliser = Normaliser(Window(low=-1000, high=1000, levels=256))
    hu = np.random.default_rng(0).integers(-1000, 1000, 500)
    grey = np.rint((hu + 1000) / 2000 * 255)
    found = normaliser(slices(hu), limits_of(normaliser, slices(hu))).numpy().ravel()
    np.testing.assert_allclose(found, grey / 255 * 2 - 1, atol=1e-6)
    back = normaliser.inverse(slices(found), limits_of(normaliser, slices(hu))).numpy().ravel()
    assert np.abs(back - hu).max() <= 2000 / 255 / 2 + 1e-3


def test_output_of_a_network_beyond_its_range_is_clipped_on_the_way_back():
    normaliser = Normaliser(Window(low=-1024, high=2000))
    back = normaliser.inverse(slices([-3.0, 3.0]), torch.tensor([[[-1024.0, 2000.0]]])).ravel().tolist()
    assert back == pytest.approx([-1024.0, 2000.0])


# Range of a volume


@given(uint16_volumes, st.sampled_from([1.0, 50.0, 90.0, 99.0, 99.5, 100.0]), st.floats(0.5, 2))
@settings(max_examples=60)
def test_the_percentile_is_numpys_over_the_voxels_above_the_mean(volume, percentile, headroom):
    normaliser = Normaliser(Percentile(percentile=percentile, headroom=headroom))
    foreground = volume[volume > volume.astype(np.float64).mean()]
    expected = max(1.0, float(np.percentile(foreground, percentile)) if foreground.size else 1.0) * headroom
    found = normaliser.measure(torch.from_numpy(volume.astype(np.float32))[None])
    assert found.shape == (1, 2) and found.dtype == torch.float32
    assert found[0].tolist() == pytest.approx([0.0, expected], rel=1e-6)


@given(uint16_volumes, st.integers(0, 2**31))
@settings(max_examples=20)
def test_the_range_does_not_depend_on_the_order_of_voxels(volume, seed):
    normaliser = Normaliser(Percentile())
    shuffled = np.random.default_rng(seed).permutation(volume.ravel()).reshape(volume.shape)
    a, b = (normaliser.measure(torch.from_numpy(v.astype(np.float32))[None]) for v in (volume, shuffled))
    assert torch.equal(a, b)


def test_channels_are_measured_apart():
    rng = np.random.default_rng(1)
    volume = rng.integers(0, 60000, (3, 4, 5, 6)).astype(np.float32) * np.array([1, 0.1, 0.01])[:, None, None, None]
    together = Normaliser(Percentile()).measure(torch.from_numpy(volume).float())
    apart = [Normaliser(Percentile()).measure(torch.from_numpy(c[None]).float())[0] for c in volume]
    assert torch.equal(together, torch.stack(apart))
    assert together[0, 1] > together[1, 1] > together[2, 1]


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_volume_has_a_range_that_can_be_divided_by(value):
    normaliser = Normaliser(Percentile())
    volume = torch.full((1, 2, 3, 4), value)
    limits = normaliser.measure(volume)
    assert limits[0, 1] > limits[0, 0]
    assert torch.isfinite(normaliser(volume.movedim(1, 0), limits[None])).all()


def test_a_window_is_the_same_for_every_volume_and_channel():
    limits = Normaliser(Window(low=-1024, high=2000)).measure(torch.rand(2, 3, 4, 5) * 500)
    assert limits.tolist() == [[-1024.0, 2000.0]] * 2


# Batches


@pytest.mark.parametrize("config", [Window(low=0, high=900, knots=((0, -1), (300, 0.5), (900, 1))), Percentile()])
def test_each_slice_and_channel_of_a_batch_uses_its_own_range(config):
    normaliser = Normaliser(config)
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(3, 2, 4, 5, generator=rng) * 1000
    limits = torch.tensor([[[0.0, 500.0], [0.0, 900.0]], [[0.0, 300.0], [0.0, 1200.0]], [[0.0, 1.0], [0.0, 2.0]]])
    together = normaliser(x, limits)
    for n in range(3):
        for c in range(2):
            alone = normaliser(x[n : n + 1, c : c + 1], limits[n : n + 1, c : c + 1])
            assert torch.equal(together[n, c], alone[0, 0])
    assert together.shape == normaliser.inverse(together, limits).shape == x.shape


@pytest.mark.parametrize(
    ("unit", "expected"), [(Unit.HU, (-1024, 2000)), (Unit.GREY8, (0, 255)), (Unit.ARBITRARY, None)]
)
def test_each_unit_has_the_normaliser_of_its_recipe_key(unit, expected):
    config = normaliser_for(unit, Normalise()).config
    assert (config == Percentile()) if expected is None else ((config.low, config.high) == expected)


# Storage


@pytest.mark.parametrize("unit", Unit)
@given(data=st.data())
@settings(max_examples=25)
def test_what_is_stored_already_stays_as_it_is(unit, data):
    array = data.draw(hnp.arrays(STORAGE_DTYPE[unit], (2, 2, 2)))
    assert to_storage(array, unit) is array


@given(hnp.arrays(np.float64, (2, 2, 2), elements=st.floats(-32768, 32767)))
@settings(max_examples=40)
def test_hounsfield_units_are_rounded_to_the_nearest_integer(array):
    stored = to_storage(array, Unit.HU)
    assert stored.dtype == np.int16
    assert np.abs(stored - array).max() <= 0.5


@given(hnp.arrays(np.float64, (2, 2, 2), elements=st.floats(-1e7, 1e7)))
@settings(max_examples=40)
def test_values_beyond_the_storage_type_are_clipped_and_never_wrap_around(array):
    hu, grey = to_storage(array, Unit.HU).astype(np.float64), to_storage(array, Unit.GREY8).astype(np.float64)
    np.testing.assert_array_equal(hu, np.clip(np.rint(array), -32768, 32767))
    np.testing.assert_array_equal(grey, np.clip(np.rint(array), 0, 255))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.int64, np.float32, np.float64])
def test_ordinary_mr_values_keep_their_numbers_in_any_type(dtype):
    array = np.array([0, 1, 255, 300, 32767], dtype=dtype).reshape(1, 1, 5)
    np.testing.assert_array_equal(to_storage(array, Unit.ARBITRARY).ravel(), [0, 1, 255, 300, 32767])


def test_a_dark_integer_mr_keeps_its_numbers_too():
    array = np.arange(200, dtype=np.int16).reshape(2, 10, 10)
    np.testing.assert_array_equal(to_storage(array, Unit.ARBITRARY), array)


@given(
    hnp.arrays(np.float64, (2, 3, 4), elements=st.floats(-1e9, 1e9, width=32), unique=True),
    st.sampled_from([1e-6, 1.0, 1e6]),
)
@settings(max_examples=60)
def test_any_scale_of_an_mr_becomes_uint16_that_keeps_order_and_proportion(array, scale):
    array = array * scale
    stored = to_storage(array, Unit.ARBITRARY)
    assert stored.dtype == np.uint16
    order = np.argsort(array, axis=None)
    assert (np.diff(stored.ravel()[order].astype(np.int64)) >= 0).all()
    if array.min() < 0 or array.max() > 65535 or array.max() < 256:
        offset = min(array.min(), 0.0)
        np.testing.assert_allclose(stored, (array - offset) / (array.max() - offset) * 60000, atol=0.51, rtol=1e-9)


@pytest.mark.parametrize("value", [-5.0, 0.0, 0.5, 70000.0, -1e300])
@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_a_constant_mr_is_stored_without_a_division_by_zero(value, dtype):
    array = np.full((1, 2, 2), max(value, np.iinfo(np.int64).min) if dtype == np.int64 else value).astype(dtype)
    with np.errstate(all="raise"):
        stored = to_storage(array, Unit.ARBITRARY)
    assert stored.dtype == np.uint16
    assert len(np.unique(stored)) == 1


@pytest.mark.parametrize("unit", Unit)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_with_how_many(unit, bad):
    array = np.zeros((2, 2, 2), dtype=np.float32)
    array[0, 0, :] = bad
    with pytest.raises(InputError, match="holds 2 values that are not finite"):
        to_storage(array, unit)
