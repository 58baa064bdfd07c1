"""Trainings that are started, killed and started again: for the tests of exact resumption."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ctmr.data.domain import Domain
from ctmr.data.sampling import TrainingData
from ctmr.recipe.training import Alarms, Discriminator, Generator, Loss, Network, Train, Warmup
from ctmr.training.trainer import Trainer

KILLS = 20 if os.environ.get("CTMR_DRILL") == "full" else 3
STEPS = 40 * (KILLS + 1)
"""More than a training does between two kills, so that none comes after the end."""
_LATER_S = 0.15
_PATIENCE_S = 120.0
SERVER = """
import json, os, signal, sys, traceback
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import killed_training as drill
import safetensors.torch
if sys.argv[2] == "stage":
    import mlflow, onnx, onnxruntime, onnxscript, torch.onnx, torch._dynamo
    import ctmr.pipeline.stages.train, ctmr.serving.export, ctmr.reports.charts, ctmr.tracking.mlflow
print("ready", flush=True)
for line in sys.stdin:
    # A fork has everything imported, so that most of a kill's time goes into training.
    pid = os.fork()
    if pid == 0:
        try:
            getattr(drill, sys.argv[2])(**json.loads(line))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def data() -> TrainingData:
    rng = torch.Generator().manual_seed(3)

    def domain(subjects: tuple[str, ...]) -> Domain:
        return Domain(
            images=torch.rand(12, 1, 16, 16, generator=rng) * 2 - 1,
            depth=torch.rand(12, 1, 16, 16, generator=rng) * 2 - 1,
            levels=torch.arange(12).remainder(6).float() - 2.5,
            volume=torch.arange(12) // 6,
            subjects=subjects,
            uids=subjects,
        )

    return TrainingData(mr=domain(("a", "b")), ct=domain(("c", "d")))


def recipe(kind: str) -> tuple[Network, Loss, Train]:
    """Plain: the defaults in small. Everything: whatever has a state of its own."""
    generator = Generator(width=4, blocks=1)
    train = Train(steps=STEPS, threads=1, checkpoint_every=5, sample_every=20)
    if kind == "plain":
        return Network(generator=generator, discriminator=Discriminator(width=4, layers=1)), Loss(), train
    changes = {
        "batch": 2,
        "pool": 3,
        "ema": 0.9,
        "shift": 2,
        "subset_images": 4,
        "subset_fraction": 0.4,
        "rotation_deg": 5.0,
        "intensity": 0.1,
        "generator_every": 3,
        "alarms": Alarms(patience=2, after=0.0),
        "checkpoint_every": 4,
    }
    return (
        Network(generator=generator, discriminator=Discriminator(width=4, layers=1, position=True)),
        Loss(adversarial="wasserstein", cycle=5.0, identity=0.5, warmup=Warmup(weight=5.0, fraction=0.6)),
        train.model_copy(update=changes),
    )


def training(kind: str, folder: str) -> None:
    """Train to the end, from the newest checkpoint."""
    trainer = Trainer(*recipe(kind), data(), checkpoints=Path(folder), report_every=6, samples=1)
    trainer.resume()
    for _ in trainer.run():
        pass


def stage(preprocessed: str, best: str, settings: list[Any], home: str, out: str) -> None:
    """Run the stage train."""
    from ctmr.pipeline.stage import run_stage
    from ctmr.pipeline.stages import train
    from ctmr.recipe.loading import override
    from ctmr.recipe.recipe import Recipe
    from ctmr.system.home import Home

    run_stage(
        train.STAGE,
        inputs={"preprocessed": Path(preprocessed), "best": Path(best)},
        recipe=override(Recipe(), [tuple(s) for s in settings]),
        out=Path(out),
        home=Home(Path(home)),
    )


class Victim:
    """Starts one function, as often as asked, in processes that can be killed."""

    def __init__(self, what: str, errors: Path) -> None:
        self._errors = errors
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(Path(__file__).parent), what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors.open("a"),
            text=True,
            start_new_session=True,
        )
        assert self._answer() == "ready"

    def start(self, **arguments: Any) -> int:
        assert self._server.stdin is not None
        print(json.dumps(arguments), file=self._server.stdin, flush=True)
        return int(self._answer())

    def ended(self) -> int:
        return int(self._answer())

    def stop(self) -> None:
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()

    def errors(self) -> str:
        return self._errors.read_text()

    def _answer(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline().strip()
        assert line, self.errors()
        return line


def kill_repeatedly(victim: Victim, checkpoints: Callable[[], set[Path]], arguments: dict[str, Any]) -> dict[str, int]:
    """Kill a training `KILLS` times and let it end; return how often at which kind of moment.

    Parameters
    ----------
    checkpoints
        Returns the checkpoints that there are, and those that are being written.
    """
    rng = random.Random(KILLS)
    moments = {"at a random moment": 0, "a little after a checkpoint": 0, "while a checkpoint is written": 0}
    for number in range(KILLS):
        moment = list(moments)[number % 3]
        before = checkpoints()
        pid = victim.start(**arguments)
        if moment == "while a checkpoint is written":
            _wait_for(lambda: any(f".{pid}-" in p.name for p in checkpoints()))  # noqa: B023
            time.sleep(rng.choice((0.0, 0.001, 0.003)))
        else:
            if moment == "a little after a checkpoint":
                _wait_for(lambda: any(p.name.startswith("step-") for p in checkpoints() - before))  # noqa: B023
            time.sleep(rng.uniform(0, _LATER_S))
        os.kill(pid, signal.SIGKILL)
        moments[moment] += int(victim.ended() == -signal.SIGKILL)
    victim.start(**arguments)
    assert victim.ended() == 0, victim.errors()
    return moments


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.0005)
