"""Slices a second of a recipe's generator in PyTorch and in ONNX Runtime: `python benchmarks/inference.py [--json]`.

The graph is what train exports and Triton serves. Ways take turns in one run; the ratio of a way is the median over
turns of its speed over plain PyTorch's (eager, fp32) in the same turn. Weights are random: speed does not depend on
them. Shangari and Sivakumar name ONNX Runtime as future work, so theirs is the default recipe.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from ctmr.networks.generators import build_generator
from ctmr.networks.translator import Translator
from ctmr.normaliser import normaliser_for
from ctmr.processes import share_cores
from ctmr.recipe_files import load
from ctmr.serving.export import export_translator
from ctmr.volume import Unit

PLAIN = "PyTorch, eager, fp32"


def ways(recipe_name: str, size: int, batch: int, threads: int, folder: Path) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name; each call translates one batch of pictures."""
    recipe = load(recipe_name)
    rng = torch.Generator().manual_seed(0)
    generator = build_generator(recipe.network.generator, 1, 1, size=(size, size), rng=rng)
    grey = normaliser_for(Unit.GREY8, recipe.normalise)
    translator = Translator(grey, generator, grey, (0.0, 255.0)).eval().requires_grad_(False)
    slices = torch.rand((batch, 1, size, size), generator=rng) * 255
    limits = torch.tensor([0.0, 255.0]).repeat(batch, 1, 1)
    export_translator(translator, 1, (size, size), folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(folder / "generator.onnx"), options, providers=["CPUExecutionProvider"]
    )  # fmt: skip
    feed = {"slices": slices.numpy(), "range": limits.numpy()}

    @torch.inference_mode()
    def plain() -> Any:
        return translator(slices, limits)

    @torch.inference_mode()
    def bf16() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return translator(slices, limits)

    def served() -> Any:
        return session.run(None, feed)[0]

    difference = float(np.abs(served() - plain().numpy()).max())
    assert difference < 0.1, f"ONNX Runtime differs by {difference} grey levels"
    return {PLAIN: plain, "PyTorch, eager, bf16 autocast": bf16, "ONNX Runtime, fp32": served}


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
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    share_cores()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        timed = ways(given.recipe, given.size, given.batch, given.threads, Path(folder))
        rows = measure(timed, given.batch, given.turns)
    if given.json:
        print(json.dumps({**vars(given), "rows": rows}))
        return
    print(f"{given.recipe}, {given.size}², batch {given.batch}, {given.threads} threads")
    print(f"{'way':32}{'slices/s':>10}{'ratio':>8}")
    for row in rows:
        print(f"{row['way']:32}{row['slices_per_s']:>10}{row['ratio']:>8}")


if __name__ == "__main__":
    main()
