"""Latency and throughput of Triton beside bare ONNX Runtime: `python benchmarks/serve.py [--json]`.

The embedded server serves a recipe's generator with random weights (speed does not depend on them) from a repository
of its own, on free ports. For slices, clients call the generator with one slice each; bare is one session of the same
graph that as many threads share. For volumes they call the volume model; bare measures the range and runs the generator
in the same chunks. Served and bare take turns, window by window, and the ratio of a row is that of their medians. Last,
more clients than the queue of the volume model holds call without ever trying again: how many are refused at once, and
how long the others wait.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from ctmr.imaging.grid import Plane, volume_grid
from ctmr.imaging.volume import Direction, Modality, Unit
from ctmr.networks.generators import build_generator
from ctmr.networks.normaliser import normaliser_for
from ctmr.networks.translator import Translator
from ctmr.recipe.loading import load
from ctmr.serving.client import NO_PROXY
from ctmr.serving.export import ServedModality, ServedSpec, export_translator
from ctmr.serving.model_repository import VOLUME_QUEUE, Release, write_version
from ctmr.serving.rollout import canary
from ctmr.serving.server import PORTS, EmbeddedTriton
from ctmr.system.processes import share_cores
from ctmr.tracking.names import Part

MODEL = "bench_mr2ct"
CHUNK = 8
Call = Callable[[], Any]


@dataclass
class Window:
    """Calls of one window."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    lasted: float = 0.0

    def row(self) -> dict[str, float]:
        p50, p95, p99 = np.percentile(self.seconds, (50, 95, 99)) * 1000
        found = {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "per_s": len(self.seconds) / self.lasted}
        return {name: round(float(value), 2) for name, value in found.items()}


def release(given: argparse.Namespace, folder: Path) -> Release:
    """Export a translator of the recipe's generator."""
    recipe, size = load(given.recipe), (given.size, given.size)
    generator = build_generator(recipe.network.generator, 1, 1, size=size, rng=torch.Generator().manual_seed(0))
    source, target = (normaliser_for(unit, recipe.normalise) for unit in (Unit.ARBITRARY, Unit.HU))
    translator = Translator(source, generator, target, (-1024.0, 2000.0)).eval().requires_grad_(False)
    files = export_translator(translator, 1, size, folder)
    spec = ServedSpec(
        direction=Direction.MR2CT,
        source=ServedModality(modality=Modality.MR, unit=Unit.ARBITRARY),
        target=ServedModality(modality=Modality.CT, unit=Unit.HU),
        grid=volume_grid(Plane.AXIAL, size, (1.0, 1.0)),
        channels=1,
        chunk=CHUNK,
        max_voxels=2**26,
        generator_sha256=files.generator_sha256,
        range_sha256=files.range_sha256,
        lineage={},
    )
    return Release(MODEL, "1", files.generator, files.range, spec)


def bare(released: Release, volume: np.ndarray) -> tuple[Call, Call]:
    """Return a slice's and a volume's translation without a server."""
    providers = ["CPUExecutionProvider"]
    generator = onnxruntime.InferenceSession(str(released.generator), providers=providers)
    meter = onnxruntime.InferenceSession(str(released.range), providers=providers)
    slices = np.moveaxis(volume, 0, 1).astype(np.float32)
    limits = meter.run(None, {"volume": volume.astype(np.float32)})[0]

    def one() -> Any:
        return generator.run(None, {"slices": slices[:1], "range": limits[None]})[0]

    def whole() -> Any:
        found = meter.run(None, {"volume": volume.astype(np.float32)})[0]
        made = []
        for first in range(0, len(slices), CHUNK):
            part = slices[first : first + CHUNK]
            made.append(generator.run(None, {"slices": part, "range": np.repeat(found[None], len(part), axis=0)})[0])
        return np.rint(np.concatenate(made)).astype(np.int16)

    return one, whole


def served(address: str, released: Release, volume: np.ndarray) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return what a client calls for a slice and for a volume; the client is the argument."""
    import tritonclient.grpc as triton

    def tensor(name: str, array: np.ndarray) -> Any:
        made = triton.InferInput(name, array.shape, {"float32": "FP32", "uint16": "UINT16"}[array.dtype.name])
        made.set_data_from_numpy(np.ascontiguousarray(array))
        return made

    slices = tensor("slices", np.moveaxis(volume, 0, 1)[:1].astype(np.float32))
    limits = tensor("range", np.array([[[0.0, 2000.0]]], np.float32))
    whole = tensor("volume", volume)
    wanted = [triton.InferRequestedOutput("translation")]
    return (
        lambda client: client.infer(MODEL, [slices, limits]).as_numpy("translation"),
        lambda client: client.infer(f"{MODEL}{Part.VOLUME}", [whole], outputs=wanted).as_numpy("translation"),
    )


def window(calls: list[Call], seconds: float, *, refusals: bool = False) -> Window:
    """Have each call repeated by a thread of its own for so long."""
    from tritonclient.utils import InferenceServerException

    found, lock, end = Window(), threading.Lock(), time.monotonic() + seconds

    def repeat(call: Call) -> None:
        while time.monotonic() < end:
            began = time.monotonic()
            try:
                call()
            except InferenceServerException as error:
                if not refusals or "Exceeds maximum queue size" not in str(error):
                    raise
                with lock:
                    found.refused += 1
                time.sleep(0.05)
                continue
            with lock:
                found.seconds.append(time.monotonic() - began)

    threads = [threading.Thread(target=repeat, args=(call,)) for call in calls]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.lasted = time.monotonic() - began
    return found


def measure(given: argparse.Namespace, address: str, released: Release) -> list[dict[str, Any]]:
    import tritonclient.grpc as triton

    shape = (1, given.slices, given.size, given.size)
    volume = np.random.default_rng(0).integers(0, 3000, shape).astype(np.uint16)
    without, through = bare(released, volume), served(address, released, volume)
    most = max([*given.concurrency, given.overload])
    clients = [triton.InferenceServerClient(address, channel_args=NO_PROXY) for _ in range(most)]
    rows = []
    for what, mine, theirs in zip(("slice", "volume"), through, without, strict=True):
        mine(clients[0]), theirs()
        for count in given.concurrency:
            ours, plain = Window(), Window()
            for _ in range(given.turns):
                for into, calls in ((ours, [partial(mine, c) for c in clients[:count]]), (plain, [theirs] * count)):
                    turn = window(calls, given.seconds)
                    into.seconds += turn.seconds
                    into.lasted += turn.lasted
            one, two = ours.row(), plain.row()
            ratio = {"p50_ratio": round(one["p50_ms"] / two["p50_ms"], 3), "per_s_ratio": one["per_s"] / two["per_s"]}
            rows.append({"what": what, "clients": count, "triton": one, "bare": two, **ratio})
    callers = [partial(through[1], client) for client in clients[: given.overload]]
    flood = window(callers, 2 * given.seconds, refusals=True)
    rows.append({"what": "overload", "clients": given.overload, "triton": flood.row(), "refused": flood.refused})
    for client in clients:
        client.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--slices", type=int, default=16, help="of a volume")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a window")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--overload", type=int, default=2 * VOLUME_QUEUE + 8)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    share_cores()
    with tempfile.TemporaryDirectory() as folder:
        released = release(given, Path(folder) / "export")
        write_version(Path(folder) / "models", released)
        triton = EmbeddedTriton(Path(folder) / "state")
        try:
            with triton.client(Path(folder) / "models", dict.fromkeys(PORTS, 0)) as client:
                canary(client, MODEL)
                rows = measure(given, client.url, released)
        finally:
            triton.stop()
    if given.json:
        print(json.dumps({**vars(given), "rows": rows}))
        return
    print(f"{given.recipe}, {given.size}², volumes of {given.slices} slices, {onnxruntime.__version__}")
    columns = "".join(f"{who + ' p50/p95/p99 ms':>26}{'/s':>8}" for who in ("Triton", "bare"))
    print(f"{'':9}{'clients':>8}{columns}{'p50':>7}{'/s':>7}")
    for row in rows:
        text = f"{row['what']:9}{row['clients']:>8}{_cell(row['triton'])}"
        if "bare" in row:
            text += f"{_cell(row['bare'])}{row['p50_ratio']:>7.2f}{row['per_s_ratio']:>7.2f}"
        else:
            text += f"  {row['refused']} refused at once"
        print(text)


def _cell(row: dict[str, float]) -> str:
    times = f"{row['p50_ms']:.1f}/{row['p95_ms']:.1f}/{row['p99_ms']:.1f}"
    return f"{times:>26}{row['per_s']:>8.1f}"


if __name__ == "__main__":
    main()
