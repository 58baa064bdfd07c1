"""SSIM and MS-SSIM against independent references: scikit-image, and SynthRAD2025's definition written in scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage, signal
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ctmr.metrics.fidelity import measure_cycle, measure_paired, ms_ssim, ssim, ssim_map
from ctmr.protocol import SsimWindow, protocol

torch.set_num_threads(1)
GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def images(shape, seed=0, top=255.0):
    rng = np.random.default_rng(seed)
    x = ndimage.gaussian_filter(rng.random(shape), 1.5)
    x = (x - x.min()) / (x.max() - x.min()) * top
    return x, np.clip(x + rng.normal(0, 0.08 * top, shape), 0, top)


def test_the_gaussian_map_and_mean_equal_scikit_image():
    x, y = images((37, 52))
    mean, full = structural_similarity(x, y, data_range=255, full=True, **GAUSSIAN)
    window = SsimWindow.GAUSSIAN_11_2D
    ours = ssim_map(torch.from_numpy(x), torch.from_numpy(y), data_range=255.0, window=window)
    assert np.abs(ours.numpy() - full).max() < 1e-6
    assert float(ssim(torch.from_numpy(x), torch.from_numpy(y), data_range=255.0, window=window)) == pytest.approx(
        mean, abs=1e-6
    )


def test_the_uniform_map_and_mean_equal_scikit_image():
    x, y = images((19, 24, 21), top=4024.0)
    mean, full = structural_similarity(x, y, data_range=4024, full=True)
    window = SsimWindow.UNIFORM_7_3D
    ours = ssim_map(torch.from_numpy(x), torch.from_numpy(y), data_range=4024.0, window=window)
    assert np.abs(ours.numpy() - full).max() < 1e-6
    assert float(ssim(torch.from_numpy(x), torch.from_numpy(y), data_range=4024.0, window=window)) == pytest.approx(
        mean, abs=1e-6
    )


def heads():
    x, y = images((20, 30, 26), seed=4, top=3800.0)
    mask = np.zeros(x.shape, bool)
    mask[1:-2, 2:-1, 2:-4] = True
    return y - 1100.0, x - 1100.0, mask


def test_paired_volume_hu_is_clipped_filled_and_averaged_over_the_mask():
    prediction, truth, mask = heads()
    p, t = (np.where(mask, np.clip(a, -1024, 3000), -1024) + 1024 for a in (prediction, truth))
    full = structural_similarity(p, t, data_range=4024, full=True)[1]
    found = measure_paired(prediction, truth, mask, protocol("paired_volume_hu"), case="c", subject="s").values
    assert found["ssim"] == pytest.approx(full[mask].mean(), abs=1e-6)
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(t[mask], p[mask], data_range=4024), abs=1e-9)
    assert found["mae"] == pytest.approx(np.abs(p - t)[mask].mean())


def test_synthrad2023_leaves_a_border_out_and_does_not_clip_the_mae():
    prediction, truth, mask = heads()
    p, t = (np.where(mask, np.clip(a, -1024, 3000), -1024) + 1024 for a in (prediction, truth))
    inner = (slice(3, -3),) * 3
    full = structural_similarity(p, t, data_range=4024, full=True)[1]
    found = measure_paired(prediction, truth, mask, protocol("synthrad2023"), case="c", subject="s").values
    assert found["ssim"] == pytest.approx(full[inner][mask[inner]].mean(), abs=1e-6)
    assert found["mae"] == pytest.approx(np.abs(prediction - truth)[mask].mean())


def test_grey_slices_equal_scikit_image_on_the_whole_picture():
    x, y = images((40, 44))
    found = measure_paired(y[None], x[None], None, protocol("paired_slice_grey8_full"), case="c", subject="s").values
    assert found["ssim"] == pytest.approx(structural_similarity(y, x, data_range=255, **GAUSSIAN), abs=1e-6)
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(x, y, data_range=255), abs=1e-9)


def test_a_cycle_is_measured_over_the_trained_range_of_two():
    x, y = (a / 127.5 - 1 for a in images((32, 36)))
    found = measure_cycle(x, y, case="c", subject="s").values
    assert found["ssim"] == pytest.approx(structural_similarity(x + 1, y + 1, data_range=2, **GAUSSIAN), abs=1e-6)
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(x, y, data_range=2), abs=1e-9)


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


@pytest.mark.parametrize("shape", [(60, 70, 101), (98, 97, 64)])
def test_ms_ssim_equals_the_challenges_definition_for_odd_and_even_sizes(shape):
    x, y = images(shape, seed=2, top=4095.0)
    mask = np.zeros(shape, bool)
    mask[5:-5, 8:-3, 4:-9] = True
    expected = reference_ms_ssim(x, y, mask, 4095.0)
    found = ms_ssim(*(torch.from_numpy(a) for a in (x, y, mask)), data_range=4095.0)
    assert 0.05 < expected < 0.99
    assert float(found) == pytest.approx(expected, abs=1e-6)
