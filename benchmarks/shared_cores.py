"""Two trainings that share the cores, with threads that spin while they wait and with threads that sleep.

``python benchmarks/shared_cores.py [--json]``: GNU OpenMP lets a waiting thread spin. With as many threads as cores in
each of two processes, each burns the time slices that the other needs. `ctmr.system.processes.share_cores` lets them
sleep; what that costs a process that has the machine for itself stands beside it. Times of one run, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

STEPS, TURNS = 20, 3


def train() -> float:
    """Return the seconds of some steps of a small convolutional network on all cores."""
    import torch
    from torch import nn

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    layers = [m for _ in range(9) for m in (nn.Conv2d(32, 32, 3, padding=1), nn.InstanceNorm2d(32), nn.ReLU())]
    network = nn.Sequential(*layers)
    optimiser = torch.optim.Adam(network.parameters())
    image = torch.randn(1, 32, 64, 64)
    for step in range(STEPS + 3):
        if step == 3:
            began = time.perf_counter()
        optimiser.zero_grad()
        network(image).square().mean().backward()
        optimiser.step()
    return time.perf_counter() - began


def seconds(side_by_side: int, shares: bool) -> float:
    """Return the mean seconds of processes that train side by side."""
    command = [sys.executable, __file__, "--train", *(["--shares"] if shares else [])]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(side_by_side)]
    return statistics.mean(float(process.communicate()[0]) for process in started)


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    arguments.add_argument("--shares", action="store_true", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.train:
        if given.shares:
            from ctmr.system.processes import share_cores

            share_cores()
        print(train())
        return
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        os.environ.pop(name, None)
    turns = [{(n, s): seconds(n, s) for n in (1, 2) for s in (False, True)} for _ in range(TURNS)]
    ratios = {
        "alone": statistics.median(t[1, True] / t[1, False] for t in turns),
        "two": statistics.median(t[2, True] / t[2, False] for t in turns),
    }
    if given.json:
        print(json.dumps({"cores": len(os.sched_getaffinity(0)), "time_of_sleeping_to_spinning": ratios}))
        return
    print(f"time with threads that sleep over time with threads that spin, {len(os.sched_getaffinity(0))} cores")
    print(f"one training alone        {ratios['alone']:.2f}")
    print(f"two trainings at once     {ratios['two']:.2f}")


if __name__ == "__main__":
    main()
