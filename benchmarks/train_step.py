"""Training steps a second beside a plain CycleGAN step, in turns of one run; what each fast ingredient buys.

``python benchmarks/train_step.py --size 128 --batch 1 [--json]``. The plain step is written here from the paper (Zhu et
al. 2017, arXiv:1703.10593): ResNet-9 generators, 70×70 PatchGANs, least squares, cycle and identity losses, pools of 50
images, Adam; eager, fp32, contiguous, each image translated and judged by itself. Ours is
`ctmr.training.trainer.Trainer` with a recipe's ``train.speed``.
Shares of the peak count the multiplications of both networks' passes against the best
matrix product measured here in the same arithmetic.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ctmr.data.domain import Domain
from ctmr.data.sampling import TrainingData
from ctmr.imaging.volume import Direction
from ctmr.recipe.training import Loss, Network, Train
from ctmr.training.cyclegan.networks import CycleGan
from ctmr.training.hardware.speed import step_tflop
from ctmr.training.trainer import Trainer

CYCLE, POOL, RATE, BETAS = 10.0, 50, 2e-4, (0.5, 0.999)
IMAGES = 64
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")
OFF: dict[str, Any] = {
    "layout": "contiguous",
    "layers": "pytorch",
    "joined": False,
    "fused_adam": False,
    "compile": False,
    "graphs": False,
}
LADDER: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ours, nothing on, fp32", {}),
    ("+ tf32 (CUDA)", {"precision": "tf32"}),
    ("+ bf16", {"precision": "bf16"}),
    ("+ joined passes", {"joined": True}),
    ("+ fused Adam", {"fused_adam": True}),
    ("+ fast layers", {"layers": "fast"}),
    ("+ channels_last", {"layout": "channels_last"}),
    ("+ compile", {"compile": True}),
    ("+ CUDA graphs", {"graphs": True}),
)
"""Each rung keeps those before it."""


class PlainPool:
    """Buffer of 50 generated images (section 4); holds them one by one."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def query(self, images: Tensor) -> Tensor:
        """Return each image itself or an earlier one."""
        shown = []
        for image in images.detach().split(1):
            if len(self.images) < POOL:
                self.images.append(image)
            elif random.random() < 0.5:
                place = random.randrange(POOL)
                image, self.images[place] = self.images[place], image
            shown.append(image)
        return torch.cat(shown)


class Plain:
    """The step of the paper with nothing done for speed."""

    def __init__(self, size: int, batch: int, identity: bool, device: torch.device) -> None:
        networks = CycleGan(Network(), mr_channels=1, ct_channels=1, size=(size, size)).to(device)
        self.to_ct, self.to_mr = (networks.generators[d.value] for d in Direction)
        self.judge_ct, self.judge_mr = networks.discriminators["CT"], networks.discriminators["MR"]
        self.generator_adam = torch.optim.Adam(networks.generators.parameters(), RATE, BETAS)
        self.discriminator_adam = torch.optim.Adam(networks.discriminators.parameters(), RATE, BETAS)
        self.discriminators = networks.discriminators
        self.pools = PlainPool(), PlainPool()
        self.identity, self.batch, self.device = identity, batch, device
        self.mr, self.ct = (torch.rand(IMAGES, 1, size, size) * 2 - 1 for _ in range(2))
        self.losses: list[float] = []

    def draw(self, images: Tensor) -> Tensor:
        """Return a batch, each image flipped with probability one half."""
        chosen = [images[random.randrange(len(images))] for _ in range(self.batch)]
        return torch.stack([i.flip(2) if random.random() < 0.5 else i for i in chosen]).to(self.device)

    def step(self) -> None:
        """Update generators, then discriminators; log the losses as tutorials do."""
        mr, ct = self.draw(self.mr), self.draw(self.ct)
        self.discriminators.requires_grad_(False)
        self.generator_adam.zero_grad()
        fake_ct, fake_mr = self.to_ct(mr), self.to_mr(ct)
        loss = (self.judge_ct(fake_ct) - 1).square().mean() + (self.judge_mr(fake_mr) - 1).square().mean()
        loss = loss + CYCLE * functional.l1_loss(self.to_mr(fake_ct), mr)
        loss = loss + CYCLE * functional.l1_loss(self.to_ct(fake_mr), ct)
        if self.identity:
            loss = loss + CYCLE / 2 * functional.l1_loss(self.to_ct(ct), ct)
            loss = loss + CYCLE / 2 * functional.l1_loss(self.to_mr(mr), mr)
        loss.backward()
        self.generator_adam.step()
        self.discriminators.requires_grad_(True)
        self.discriminator_adam.zero_grad()
        judged = torch.zeros((), device=self.device)
        for judge, real, fake, pool in (
            (self.judge_ct, ct, fake_ct, self.pools[0]),
            (self.judge_mr, mr, fake_mr, self.pools[1]),
        ):
            shown = pool.query(fake)
            judged = judged + 0.5 * ((judge(real) - 1).square().mean() + judge(shown).square().mean())
        judged.backward()
        self.discriminator_adam.step()
        self.losses.append(float(loss.detach()) + float(judged.detach()))


@dataclass
class Contender:
    """Something that takes steps, and the times of its turns."""

    name: str
    step: Callable[[], None]
    seconds: list[float]
    memory_mib: float = 0.0
    first_seconds: float = 0.0


def ours(name: str, size: int, batch: int, identity: bool, device: torch.device, train: dict[str, Any]) -> Contender:
    """Return a training of the package on images like the plain one's."""
    images = torch.rand(IMAGES, 1, size, size, device=device) * 2 - 1
    labels = ("a", "b")
    domain = Domain(images, None, None, torch.arange(IMAGES) // (IMAGES // 2), labels, labels)
    recipe = Train.model_validate({"steps": 1_000_000, "batch": batch, "threads": torch.get_num_threads(), **train})
    trainer = Trainer(
        Network(),
        Loss(identity=0.5 if identity else 0.0),
        recipe,
        TrainingData(domain, domain),
        samples=0,
        report_every=1_000_000,
    )
    plan = trainer.cyclegan.plan
    path = [str(plan.precision), "channels_last" if plan.channels_last else "contiguous"]
    path += [n for n in ("fast_layers", "joined", "fused_adam", "compile", "graphs") if getattr(plan, n)]

    def step() -> None:
        for _ in trainer.run(trainer.step + 1):
            pass

    return Contender(name or ", ".join(path), step, [])


def take_turns(contenders: list[Contender], rounds: int, steps: int, warm: int, device: torch.device) -> None:
    """Time each contender in each round, one after the other."""
    for contender in contenders:
        began = time.perf_counter()
        contender.step()
        _wait(device)
        contender.first_seconds = time.perf_counter() - began
        for _ in range(warm):
            contender.step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            contender.step()
            contender.memory_mib = torch.cuda.max_memory_allocated() / 2**20
    for _ in range(rounds):
        for contender in contenders:
            _wait(device)
            began = time.perf_counter()
            for _ in range(steps):
                contender.step()
            _wait(device)
            contender.seconds.append((time.perf_counter() - began) / steps)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_tflops(dtype: torch.dtype, device: torch.device) -> float:
    """Return the fastest of ten products of square matrices, in 10¹² additions and multiplications a second."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(10):
        _wait(device)
        began = time.perf_counter()
        a @ b
        _wait(device)
        times.append(time.perf_counter() - began)
    return 2 * side**3 / min(times) / 1e12


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the times depend on, without names of hosts or paths."""
    found: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {**found, "device": properties.name, "memory_gib": round(properties.total_memory / 2**30)}
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    lines = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    values = {k.strip(): v.strip() for k, v in lines.items()}
    flags = values.get("flags", "").split()
    return {**found, "device": values.get("model name", "CPU"), "flags": [f for f in FLAGS if f in flags]}


def rungs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each rung of the ladder as a name and settings of ``train``."""
    settings: dict[str, Any] = {"precision": "fp32", **OFF}
    for name, added in LADDER:
        settings = {**settings, **added}
        yield name, {"precision": settings["precision"], "speed": {k: settings[k] for k in OFF}}


def profile(contender: Contender, device: torch.device) -> list[dict[str, Any]]:
    """Return the five kernels (operators on CPU) that take most of a step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with record(activities=kinds) as found:
        contender.step()
        _wait(device)
    field = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    rows = sorted(found.key_averages(), key=lambda row: -getattr(row, field))
    whole = sum(getattr(row, field) for row in rows)
    return [{"kernel": row.key[:100], "calls": row.count, "share": getattr(row, field) / whole} for row in rows[:5]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--identity", "--with-identity", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--without-identity", dest="identity", action="store_false")
    parser.add_argument("--precision", default="auto", help="of our step; the plain one is fp32")
    parser.add_argument("--speed", type=json.loads, default={}, metavar="JSON", help="train.speed of our step")
    parser.add_argument("--ladder", action="store_true", help="add one ingredient after the other")
    parser.add_argument("--profile", action="store_true", help="name the five kernels that take most of our step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="a turn; 0: 2 on CPU, 20 on CUDA")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.set_num_threads(given.threads)
    tables = [measure(given, batch, device) for batch in given.batch]
    if given.json:
        print(json.dumps(tables if len(tables) > 1 else tables[0]))
        return
    for table in tables:
        show(table)


def measure(given: argparse.Namespace, batch: int, device: torch.device) -> dict[str, Any]:
    """Return all numbers of one batch size."""
    random.seed(0)
    torch.manual_seed(0)
    plain = Plain(given.size, batch, given.identity, device)
    contenders = [Contender("plain eager fp32", plain.step, [])]
    make = (given.size, batch, given.identity, device)
    if given.ladder:
        contenders += [
            ours(name, *make, train) for name, train in rungs() if device.type == "cuda" or "CUDA" not in name
        ]
    else:
        contenders.append(ours("", *make, {"precision": given.precision, "speed": given.speed}))
    cuda = device.type == "cuda"
    take_turns(contenders, given.rounds, given.steps or (20 if cuda else 2), 5 if cuda else 1, device)
    peaks = {str(t).removeprefix("torch."): peak_tflops(t, device) for t in (torch.float32, torch.bfloat16)}
    loss = Loss(identity=0.5 if given.identity else 0.0)
    networks = CycleGan(Network(), mr_channels=1, ct_channels=1)
    work = step_tflop(networks, loss, batch, (given.size, given.size))
    base = contenders[0]
    rows = []
    for one in contenders:
        seconds = statistics.median(one.seconds)
        row = {
            "name": one.name,
            "steps_per_s": 1 / seconds,
            "ratio": statistics.median(b / s for b, s in zip(base.seconds, one.seconds, strict=True)),
            "share_of_bf16_peak": work / seconds / peaks["bfloat16"],
            "first_step_s": one.first_seconds,
        }
        rows.append(row | ({"peak_memory_mib": one.memory_mib} if cuda else {}))
    table = {
        "machine": machine(device),
        "size": given.size,
        "batch": batch,
        "identity": given.identity,
        "peak_tflops": peaks,
        "step_tflop": work,
        "ratio": rows[-1]["ratio"],
        "rows": rows,
        "process_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }
    if given.profile:
        table["profile"] = profile(contenders[-1], device)
    return table


def show(table: dict[str, Any]) -> None:
    """Print one table."""
    about = table["machine"]
    print(f"{about['device']} {' '.join(about.get('flags', []))}, {about['threads']} threads, torch {about['torch']}")
    identity = "with" if table["identity"] else "without"
    print(f"{table['size']}×{table['size']}, batch {table['batch']}, {identity} identity")
    peaks = ", ".join(f"{name} {value:.2f}" for name, value in table["peak_tflops"].items())
    print(f"a step is {table['step_tflop']:.3f} TFLOP; matrix products reach {peaks} TFLOP/s")
    print(f"peak memory of this process, all contenders together: {table['process_peak_mib']:.0f} MiB")
    width = max(len(row["name"]) for row in table["rows"])
    memory = "  memory MiB" if "peak_memory_mib" in table["rows"][0] else ""
    print(f"{'':{width}}   steps/s  × plain  of bf16 peak  first step s{memory}")
    for row in table["rows"]:
        print(
            f"{row['name']:{width}}  {row['steps_per_s']:8.3f}  {row['ratio']:7.2f}  {row['share_of_bf16_peak']:12.1%}"
            f"  {row['first_step_s']:12.1f}" + (f"  {row['peak_memory_mib']:10.0f}" if memory else "")
        )
    for kernel in table.get("profile", []):
        print(f"  {kernel['share']:6.1%}  {kernel['calls']:5d} calls  {kernel['kernel']}")


if __name__ == "__main__":
    main()
