"""Every paired protocol and metric against numpy, scipy and scikit-image, with parameters typed from the sources."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, signal
from skimage.metrics import normalized_mutual_information, structural_similarity

from ctmr.metrics.fidelity import flicker
from ctmr.metrics.measurement import measure_cycle, measure_paired, measure_structure, measure_unpaired_pixels
from ctmr.metrics.pair import ImagePair
from ctmr.metrics.protocol import PROTOCOLS, Pairing
from ctmr.metrics.ssim import ms_ssim

torch.set_num_threads(1)

# name: clip of PSNR and SSIM, MAX, window, border of SSIM, is the MAE clipped
PAIRED = {
    "paired_volume_hu": ((-1024, 3000), 4024, "uniform", 0, True),
    "synthrad2023": ((-1024, 3000), 4024, "uniform", 3, False),
    "synthrad2025": ((-1024, 3071), 4095, "multi-scale", 3, False),
    "synthrad2025_metrics": ((-1024, 3000), 4024, "multi-scale", 3, False),
    "wolterink": (None, 4095, None, 0, True),
    "paired_slice_grey8": ((0, 255), 255, "gaussian", 0, True),
    "paired_slice_grey8_full": ((0, 255), 255, "gaussian", 5, True),
}
HU = [n for n in PAIRED if not n.startswith("paired_slice")]


def reference_ms_ssim(x, y, mask, span):
    """SynthRAD2025's multi-scale SSIM from its published definition, on scipy's filters."""
    grow = [((97 - n) // 2, 97 - n - (97 - n) // 2) if n < 97 else (0, 0) for n in x.shape]
    x, y, mask = (np.pad(a, grow, mode="edge") for a in (x, y, mask.astype(float)))
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    product, box, n = 1.0, np.full((2, 2, 2), 1 / 8), 7**3
    for w in (0.0448, 0.2856, 0.3001, 0.2363, 0.1333):
        mx, my = (ndimage.uniform_filter(a, 7) for a in (x, y))
        vx, vy = (n / (n - 1) * (ndimage.uniform_filter(a * a, 7) - m * m) for a, m in ((x, mx), (y, my)))
        vxy = n / (n - 1) * (ndimage.uniform_filter(x * y, 7) - mx * my)
        sx, sy = np.sqrt(np.maximum(vx, 0)), np.sqrt(np.maximum(vy, 0))
        terms = [
            (2 * mx * my + c1) / (mx**2 + my**2 + c1),
            (2 * sx * sy + c2) / (vx + vy + c2),
            (vxy + c2 / 2) / (sx * sy + c2 / 2),
        ]
        local = np.prod([np.maximum(t, 0) ** w for t in terms], axis=0)[3:-3, 3:-3, 3:-3]
        product *= np.clip(local[mask[3:-3, 3:-3, 3:-3] > 0].mean(), 0, 1)
        x, y = (signal.fftconvolve(a, box, mode="same")[::2, ::2, ::2] for a in (x, y))
        mask = mask[::2, ::2, ::2]
    return product


def volume(shape=(21, 26, 24), seed=0):
    """A blurred head in HU with noise, metal beyond every clip, and a mask with a hole."""
    rng = np.random.default_rng(seed)
    truth = ndimage.gaussian_filter(rng.random(shape), 2.0)
    truth = -1100 + 3000 * (truth - truth.min()) / np.ptp(truth)
    truth[10, 12, 9:12] = 3900.0
    prediction = truth + rng.normal(0, 150, shape)
    mask = np.zeros(shape, bool)
    mask[3:-2, 4:-1, 2:-5] = True
    mask[8:11, 8:11, 8:11] = False
    return prediction, truth, mask


def picture(seed=0):
    rng = np.random.default_rng(seed)
    truth = ndimage.gaussian_filter(rng.random((1, 40, 37)), (0, 2, 2))
    truth = 255 * (truth - truth.min()) / np.ptp(truth)
    mask = np.zeros(truth.shape, bool)
    mask[0, 5:33, 3:30] = True
    return np.clip(truth + rng.normal(0, 25, truth.shape), -20, 280), truth, mask


def by_hand(name, prediction, truth, mask):
    clip, top, window, border, mae_clipped = PAIRED[name]
    grey = name.startswith("paired_slice")
    inside = np.ones_like(mask) if name.endswith("_full") else mask
    p, t = (prediction, truth) if clip is None else (np.clip(prediction, *clip), np.clip(truth, *clip))
    error = p[inside] - t[inside]
    absolute = np.abs(error) if mae_clipped else np.abs(prediction[inside] - truth[inside])
    mse = math.fsum(error**2) / error.size
    out = {"mae": math.fsum(absolute) / absolute.size, "mse": mse, "rmse": math.sqrt(mse)}
    out["psnr"] = 10 * math.log10(top**2 / mse)
    if not grey:
        bone, air = t[inside] > 250, t[inside] < -200
        out |= {"mae_bone": absolute[bone].mean(), "mae_air": absolute[air].mean()}
        out["mae_soft"] = absolute[~bone & ~air].mean()
        made = p[inside] > 250
        out["dice_bone"] = 2 * np.count_nonzero(made & bone) / (np.count_nonzero(made) + np.count_nonzero(bone))
        p, t = (np.where(inside, a, -1024) + 1024 for a in (p, t))
    cut = (slice(border, -border or None),) * 3
    if window == "uniform":
        out["ssim"] = structural_similarity(p, t, data_range=top, full=True)[1][cut][inside[cut]].mean()
    elif window == "multi-scale":
        out["ms_ssim"] = reference_ms_ssim(p, t, inside, top)
    elif window == "gaussian":
        how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        full = structural_similarity(p[0], t[0], data_range=top, full=True, **how)[1]
        out["ssim"] = full[cut[1:]][inside[0][cut[1:]]].mean()
    return out


def test_the_table_of_sources_names_every_paired_protocol():
    assert {n for n, p in PROTOCOLS.items() if p.pairing is Pairing.PAIRED} == set(PAIRED)


@pytest.mark.parametrize("name", sorted(PAIRED))
def test_every_metric_of_a_paired_protocol_equals_the_reference(name):
    images = picture() if name.startswith("paired_slice") else volume()
    found = measure_paired(*images, PROTOCOLS[name], case="c", subject="s").values
    expected = by_hand(name, *images)
    assert set(found) == set(expected)
    for metric, value in expected.items():
        assert found[metric] == pytest.approx(value, abs=1e-6, rel=1e-9), metric


@pytest.mark.parametrize("name", HU)
def test_what_is_measured_does_not_depend_on_the_type_that_holds_the_hounsfield_units(name):
    prediction, truth, mask = (a.round() if a.dtype == float else a for a in volume())
    wide = measure_paired(prediction, truth, mask, PROTOCOLS[name], case="c", subject="s", slice_axis=0).values
    for kind in (np.int16, np.float32):
        narrow = measure_paired(
            prediction.astype(kind), truth.astype(kind), mask, PROTOCOLS[name], case="c", subject="s", slice_axis=0
        ).values
        assert narrow == wide


def test_a_small_error_on_a_large_offset_is_not_lost():
    """A float32 mean of squares of values near 1e5 would be off by whole units; the errors here are 0.25."""
    rng = np.random.default_rng(3)
    truth = (1e5 + rng.integers(0, 4000, (60, 90, 80))).astype(np.float32)
    prediction = truth + np.where(rng.random(truth.shape) < 0.5, 0.25, -0.25).astype(np.float32)
    mask = np.ones(truth.shape, bool)
    found = measure_paired(prediction, truth, mask, PROTOCOLS["wolterink"], case="c", subject="s").values
    assert found["mae"] == pytest.approx(0.25, abs=1e-12) and found["mse"] == pytest.approx(0.0625, abs=1e-12)


@pytest.mark.parametrize("shape", [(60, 70, 101), (98, 97, 64)])
def test_ms_ssim_equals_the_challenges_definition_for_odd_and_even_sizes(shape):
    rng = np.random.default_rng(2)
    x = ndimage.gaussian_filter(rng.random(shape), 1.5)
    x = 4095 * (x - x.min()) / np.ptp(x)
    y = np.clip(x + rng.normal(0, 330, shape), 0, 4095)
    mask = np.zeros(shape, bool)
    mask[5:-5, 8:-3, 4:-9] = True
    expected = reference_ms_ssim(x, y, mask, 4095.0)
    assert 0.05 < expected < 0.99
    assert float(ms_ssim(*(torch.from_numpy(a) for a in (x, y, mask)), data_range=4095.0)) == pytest.approx(
        expected, abs=1e-6
    )


def test_a_cycle_is_measured_over_the_trained_range_of_two():
    reconstruction, image, _ = (a[0] / 127.5 - 1 for a in picture(4))
    p, t = np.clip(reconstruction, -1, 1), image
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 2}
    found = measure_cycle(image, reconstruction, case="c", subject="s").values
    mse = np.mean((p - t) ** 2)
    expected = {"mae": np.mean(np.abs(p - t)), "mse": mse, "rmse": mse**0.5, "psnr": 10 * math.log10(4 / mse)}
    expected["ssim"] = structural_similarity(p + 1, t + 1, **how)
    assert found == pytest.approx(expected, abs=1e-6)


def test_unpaired_pixels_rebuild_a_papers_formula_and_name_the_paper():
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-1, 1, (2, 16, 16))
    case = measure_unpaired_pixels(x, y, data_range=2.0, paper="Jha and Iima", case="c")
    mse = np.mean((x - y) ** 2)
    expected = {"mae": np.abs(x - y).mean(), "mse": mse, "rmse": mse**0.5, "psnr": 10 * math.log10(4 / mse)}
    assert case.values == pytest.approx(expected)
    assert "Jha and Iima" in case.protocol.describe() and "range 2" in case.protocol.describe()
    assert not case.protocol.may_gate and not case.protocol.measures_fidelity


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flicker_equals_a_loop_over_voxels(axis):
    rng = np.random.default_rng(0)
    prediction, truth = rng.normal(0, 100, (2, 7, 8, 9))
    mask = rng.random(truth.shape) < 0.8
    sums = [0.0, 0.0]
    for index in np.ndindex(mask.shape):
        if not 0 < index[axis] < mask.shape[axis] - 1:
            continue
        before, after = (tuple(i + (s if a == axis else 0) for a, i in enumerate(index)) for s in (-1, 1))
        if mask[index] and mask[before] and mask[after]:
            for k, v in enumerate((prediction, truth)):
                sums[k] += abs(v[index] - (v[before] + v[after]) / 2)
    assert flicker(ImagePair(prediction, truth, mask, PROTOCOLS["wolterink"], axis)) == pytest.approx(
        sums[0] / sums[1], rel=1e-12
    )


def head_and_slices(seed):
    rng = np.random.default_rng(seed)
    head = np.hypot(*np.mgrid[-32:32, -32:32]) < 28
    x, y = (ndimage.gaussian_filter(rng.normal(size=(64, 64)), 2.0) for _ in range(2))
    return head, ndimage.binary_erosion(head, iterations=2), x, 0.7 * x + 0.5 * y


def gradient_magnitude(image):
    """Derivative of a Gaussian (σ 1, reach 4) as explicit sums over neighbours, mirrored with the edge."""
    taps = np.exp(-0.5 * np.arange(-4, 5) ** 2.0)
    taps /= taps.sum()
    slope = taps * np.arange(-4, 5)
    padded = np.pad(image, 4, mode="symmetric")
    n, m = image.shape
    parts = []
    for rows, columns in ((slope, taps), (taps, slope)):
        total = np.zeros_like(image)
        for i in range(9):
            for j in range(9):
                total += rows[i] * columns[j] * padded[i : i + n, j : j + m]
        parts.append(total)
    return np.hypot(*parts)


def test_mutual_information_equals_scikit_image():
    head, inner, x, y = head_and_slices(1)
    a, b = (np.clip(v[inner], *np.percentile(v[inner], (0.5, 99.5))) for v in (x, y))
    found = measure_structure(x, y, head, case="c", subject="s").values["nmi"]
    assert found == pytest.approx(normalized_mutual_information(a, b, bins=64) - 1, abs=1e-6)


def test_gradient_correlation_equals_explicit_sums():
    head, inner, x, y = head_and_slices(2)
    a, b = (gradient_magnitude(v)[inner] for v in (x, y))
    found = measure_structure(x, y, head, case="c", subject="s").values["gradient_correlation"]
    assert found == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)


def test_edge_overlap_equals_a_count_of_neighbours():
    head, inner, x, y = head_and_slices(3)
    edges = []
    for v in (x, y):
        magnitude = gradient_magnitude(v)
        edges.append(inner & (magnitude >= np.quantile(magnitude[inner], 0.9)))
    met = 0
    for own, other in (edges, edges[::-1]):
        for i, j in np.argwhere(own):
            met += other[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].any()
    found = measure_structure(x, y, head, case="c", subject="s").values["edge_overlap"]
    assert found == pytest.approx(met / (edges[0].sum() + edges[1].sum()), abs=1e-6)
