"""The one SSIM against scikit-image, and what makes it fast against what it replaces."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ctmr.metrics import ssim as similarity
from ctmr.metrics.measurement import measure_paired
from ctmr.metrics.protocol import SsimWindow, protocol
from ctmr.metrics.ssim import masked_ssim, ssim, ssim_map

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


def corner(mask):
    mask[0, 0, 0] = True


def edge(mask):
    mask[-1, :, -2:] = True


def block(mask):
    mask[6:12, 9:20, 5:17] = True


def everything(mask):
    mask[:] = True


@pytest.mark.parametrize("mark", [corner, edge, block, everything])
@pytest.mark.parametrize(
    ("window", "border"),
    [
        (SsimWindow.UNIFORM_7_3D, 0),
        (SsimWindow.UNIFORM_7_3D, 3),
        (SsimWindow.GAUSSIAN_11_2D, 0),
        (SsimWindow.GAUSSIAN_11_2D, 5),
    ],
)
def test_cropping_to_the_mask_changes_no_number(mark, window, border):
    x, y = images((19, 26, 23), seed=7, top=4024.0)
    mask = np.zeros(x.shape, bool)
    mark(mask)
    counted = np.zeros_like(mask)
    depth = slice(border, -border or None) if window is SsimWindow.UNIFORM_7_3D else slice(None)
    inner = (depth, slice(border, -border or None), slice(border, -border or None))
    counted[inner] = mask[inner]
    how = {"data_range": 4024.0, "window": window}
    if not counted.any():
        with pytest.raises(ValueError, match="mask is empty without the border"):
            masked_ssim(x, y, mask, border=border, **how)
        return
    whole = ssim_map(torch.from_numpy(x), torch.from_numpy(y), **how).numpy()[counted].mean()
    assert masked_ssim(x, y, mask, border=border, **how) == pytest.approx(whole, abs=1e-13)


@pytest.mark.parametrize("voxels", [1, 700, 5000])
def test_slabs_of_any_thickness_give_the_same_map(monkeypatch, voxels):
    x, y = (torch.from_numpy(a) for a in images((17, 20, 18), seed=8, top=4024.0))
    how = {"data_range": 4024.0, "window": SsimWindow.UNIFORM_7_3D}
    monkeypatch.setattr(similarity, "_THINNEST_SLAB", 1)
    monkeypatch.setattr(similarity, "_SLAB_VOXELS", x.numel())
    whole = ssim_map(x, y, **how)
    monkeypatch.setattr(similarity, "_SLAB_VOXELS", voxels)
    assert torch.equal(ssim_map(x, y, **how), whole)
