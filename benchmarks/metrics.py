"""Time of the metrics beside scikit-image in one run: `python benchmarks/metrics.py [--json]`.

Each pair computes the same number, which is asserted. Ours and theirs take turns on one thread, in CPU time, so that
what else the machine does falls on both alike; the ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ctmr.metrics.measurement import measure_paired
from ctmr.metrics.protocol import SsimWindow, protocol
from ctmr.metrics.ssim import masked_ssim, ssim
from ctmr.phantom import make_head

CT_NOISE_HU = 60.0
AGREEMENT = 1e-6
GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


@dataclass(frozen=True)
class Timing:
    """One comparison.

    Attributes
    ----------
    ours_s, theirs_s
        Median CPU seconds.
    ratio
        Median of theirs / ours, turn by turn; above 1: ours is faster.
    difference
        Of the two numbers.
    """

    what: str
    ours_s: float
    theirs_s: float
    ratio: float
    difference: float


def measure(repeats: int) -> list[Timing]:
    """Time every pair on a phantom head of 96 × 112 × 96 voxels and on its middle slice."""
    head = make_head(1)
    hu = protocol("paired_volume_hu")
    grey = protocol("paired_slice_grey8_full")
    low, high = hu.clip or (0.0, 0.0)
    truth = head.ct.astype(np.float64)
    noise = np.random.default_rng(0).normal(0, CT_NOISE_HU, truth.shape)
    prediction = truth + noise
    p, t = (np.where(head.head, np.clip(a, low, high), low) - low for a in (prediction, truth))
    middle = truth.shape[0] // 2
    x, y = (np.clip(a[middle] / 8, 0, 255) for a in (p, t))

    def their_ssim() -> float:
        return float(structural_similarity(p, t, data_range=hu.data_range, full=True)[1][head.head].mean())

    def their_protocol() -> float:
        error = p[head.head] - t[head.head]
        peak_signal_noise_ratio(t[head.head], p[head.head], data_range=hu.data_range)
        np.abs(error).mean()
        return their_ssim()

    def our_protocol() -> float:
        found = measure_paired(prediction, truth, head.head, hu, case="c", subject="s", slice_axis=0)
        return found.values["ssim"]

    pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "SSIM 3-D, uniform 7³, mean over the head": (
            lambda: masked_ssim(p, t, head.head, data_range=hu.data_range or 0.0, window=hu.ssim_window),
            their_ssim,
        ),
        "paired_volume_hu, all metrics; theirs: MAE, PSNR, SSIM": (our_protocol, their_protocol),
        "SSIM 2-D, Gaussian 11 × 11, one slice": (
            lambda: float(
                ssim(
                    *(torch.from_numpy(a) for a in (x, y)),
                    data_range=grey.data_range or 0.0,
                    window=SsimWindow.GAUSSIAN_11_2D,
                )
            ),
            lambda: float(structural_similarity(x, y, data_range=grey.data_range, **GAUSSIAN)),
        ),
    }
    return [_turns(what, ours, theirs, repeats) for what, (ours, theirs) in pairs.items()]


def _turns(what: str, ours: Callable[[], float], theirs: Callable[[], float], repeats: int) -> Timing:
    seconds: list[tuple[float, float]] = []
    values = (ours(), theirs())
    if abs(values[0] - values[1]) > AGREEMENT:
        raise SystemExit(f"{what}: ours is {values[0]}, scikit-image's is {values[1]}; they must be the same number")
    for _ in range(repeats):
        turn = []
        for run in (ours, theirs):
            started = time.process_time()
            run()
            turn.append(time.process_time() - started)
        seconds.append((turn[0], turn[1]))
    mine, other = (statistics.median(s[k] for s in seconds) for k in range(2))
    return Timing(what, mine, other, statistics.median(b / a for a, b in seconds), abs(values[0] - values[1]))


def main() -> None:
    """Print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="turns of each pair")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    timings = measure(max(1, chosen.repeats))
    if chosen.json:
        print(json.dumps({"repeats": chosen.repeats, "timings": [asdict(t) for t in timings]}, indent=1))
        return
    print(f"{'':<58}{'ours':>9}{'theirs':>9}{'ratio':>8}{'difference':>12}")
    for t in timings:
        print(f"{t.what:<58}{1000 * t.ours_s:>6.1f} ms{1000 * t.theirs_s:>6.1f} ms{t.ratio:>8.2f}{t.difference:>12.1e}")


if __name__ == "__main__":
    main()
