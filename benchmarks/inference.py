"""Slices a second of a recipe's generator in PyTorch and in ONNX Runtime: `python benchmarks/inference.py [--json]`.

The graph is what train exports and Triton serves. Each way takes slices in host memory and leaves its answer there, so
that a GPU's transfers count. Ways take turns in one run; the ratio of a way is the median over turns of its speed over
plain PyTorch's (eager, fp32) in the same turn. Weights are random: speed does not depend on them. Shangari and
Sivakumar name ONNX Runtime as future work, so theirs is the default recipe; Wolterink et al. report 10 seconds a volume
of 183 slices on a Titan X, hence the seconds for 200. ONNX Runtime is timed where it is installed, on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctmr.imaging.volume import Unit
from ctmr.networks.generators import build_generator
from ctmr.networks.normaliser import normaliser_for
from ctmr.networks.translator import Translator
from ctmr.recipe.loading import load
from ctmr.system.processes import share_cores

PLAIN = "PyTorch, eager, fp32"
VOLUME = 200


def ways(given: argparse.Namespace, folder: Path) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name; each call translates one batch of pictures."""
    recipe, device, size = load(given.recipe), torch.device(given.device), (given.size, given.size)
    rng = torch.Generator().manual_seed(0)
    generator = build_generator(recipe.network.generator, 1, 1, size=size, rng=rng)
    grey = normaliser_for(Unit.GREY8, recipe.normalise)
    translator = Translator(grey, generator, grey, (0.0, 255.0)).eval().requires_grad_(False)
    slices = torch.rand((given.batch, 1, *size), generator=rng) * 255
    limits = torch.tensor([0.0, 255.0]).repeat(given.batch, 1, 1)

    def way(module: Callable[..., Tensor], dtype: torch.dtype) -> Callable[[], Any]:
        @torch.inference_mode()
        def translate() -> Any:
            with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
                return module(slices.to(device), limits.to(device)).cpu()

        return translate

    timed: dict[str, Callable[[], Any]] = {}
    session = None
    if device.type == "cpu" and importlib.util.find_spec("onnxruntime"):
        session = served(translator, size, given.threads, folder)
    on_device = copy.deepcopy(translator).to(device)
    timed[PLAIN] = way(on_device, torch.float32)
    timed["PyTorch, eager, bf16 autocast"] = way(on_device, torch.bfloat16)
    if given.compile:
        last = copy.deepcopy(on_device).to(memory_format=torch.channels_last)
        timed["PyTorch, compiled, fp32"] = way(torch.compile(on_device, dynamic=False), torch.float32)
        timed["PyTorch, compiled, bf16, channels_last"] = way(torch.compile(last, dynamic=False), torch.bfloat16)
    if session is not None:
        feed = {"slices": slices.numpy(), "range": limits.numpy()}
        timed["ONNX Runtime, fp32"] = lambda: session.run(None, feed)[0]
        difference = float(np.abs(timed["ONNX Runtime, fp32"]() - timed[PLAIN]().numpy()).max())
        assert difference < 0.1, f"ONNX Runtime differs by {difference} grey levels"
    return timed


def served(translator: Translator, size: tuple[int, int], threads: int, folder: Path) -> Any:
    """Return an ONNX Runtime session of the graph that train exports."""
    import onnxruntime

    from ctmr.serving.export import export_translator

    export_translator(translator, 1, size, folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(folder / "generator.onnx"), options, providers=["CPUExecutionProvider"])


def measure(timed: dict[str, Callable[[], Any]], batch: int, turns: int) -> list[dict[str, Any]]:
    """Time each way once a turn, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(turns + 1):
        for name, call in timed.items():
            began = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    plain = seconds[PLAIN]
    return [
        {
            "way": name,
            "slices_per_s": round(batch / statistics.median(mine), 3),
            "seconds_200_slices": round(VOLUME * statistics.median(mine) / batch, 2),
            "ratio": round(statistics.median(p / s for p, s in zip(plain, mine, strict=True)), 2),
        }
        for name, mine in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="shangari")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="also PyTorch's compiler, which takes minutes on a CPU")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    share_cores()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        timed = ways(given, Path(folder))
        rows = measure(timed, given.batch, given.turns)
    if given.json:
        print(json.dumps({**vars(given), "rows": rows}))
        return
    print(f"{given.recipe}, {given.size}², batch {given.batch}, {given.device}, {given.threads} threads")
    print(f"{'way':40}{'slices/s':>10}{'s for 200':>10}{'ratio':>8}")
    for row in rows:
        print(f"{row['way']:40}{row['slices_per_s']:>10}{row['seconds_200_slices']:>10}{row['ratio']:>8}")


if __name__ == "__main__":
    main()
