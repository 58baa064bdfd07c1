"""Processes that torchrun starts train what one process trains, resume each other's checkpoints, and end together."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ctmr.data.sampling import Batch, TrainingData
from ctmr.errors import InputError
from ctmr.recipe.training import Discriminator, Generator, LayerNorm, Loss, Network, Train, Warmup
from ctmr.training.cyclegan.networks import CycleGan
from ctmr.training.cyclegan.pool import ImagePool
from ctmr.training.hardware.distributed import Team
from ctmr.training.trainer import Trainer

STEPS, HALF = 20, 10
DOUBLE = 1e-8
"""Largest difference of a weight or a pooled image after 20 steps in float64, which shows that the arithmetic is the
same (measured: 5e-10). Sums in another order differ by 1e-16 of the summands."""
SINGLE_LOSS = 0.02
"""Largest relative difference of a report's cycle losses in float32 (measured: 0.004). Adam divides a gradient by its
own size, so where one is hardly more than rounding, a weight may move by its whole step in another direction."""
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from ctmr.data.domain import Domain
from ctmr.data.sampling import TrainingData
from ctmr.errors import CtmrError
from ctmr.training.hardware.distributed import team
from ctmr.training.trainer import Trainer
from ctmr.recipe.training import Loss, Network, Train

task = json.loads(Path(sys.argv[1]).read_text())
mr, ct = torch.load(task["data"], weights_only=True)
single = TrainingData(Domain(**mr), Domain(**ct))
double = TrainingData(*(Domain(**d | {"images": d["images"].double(), "depth": d["depth"].double()}) for d in (mr, ct)))
try:
    with team() as processes:
        for name, texts in task["trainings"].items():
            sections = [s.model_validate_json(t) for s, t in zip((Network, Loss, Train), texts)]
            data = double if name.startswith("double") else single
            trainer = Trainer(*sections, data, checkpoints=Path(task["folder"]) / name, team=processes, samples=2)
            if name.startswith("double"):
                trainer.cyclegan.networks.double(), trainer.cyclegan.ema.double()
            trainer.resume()
            events = 0
            for stop in range(trainer.step + 1, sections[2].steps + 1):
                events += len(list(trainer.run(until_step=stop)))
                if trainer.step == task["dies"] and not processes.leads:
                    os.kill(os.getpid(), signal.SIGKILL)
            assert bool(events) == processes.leads
except CtmrError as error:
    print(f"ctmr: {error}", file=sys.stderr, flush=True)
    sys.exit(error.exit_code)
"""

Sections = tuple[Network, Loss, Train]


def trainings(network: Network, train: Train) -> dict[str, Sections]:
    train = train.model_copy(
        update={
            "steps": STEPS,
            "checkpoint_every": HALF,
            "sample_every": HALF,
            "batch": 2,
            "pool": 3,
            "shift": 2,
        }
    )
    least_squares = (network, Loss(cycle=5.0, warmup=Warmup(weight=5.0, fraction=0.5)), train)
    penalty = train.model_copy(update={"generator_every": 2})
    return {
        "single": least_squares,
        "double": least_squares,
        "double_penalty": (network, Loss(adversarial="wasserstein", identity=0.0), penalty),
    }


def start(folder: Path, data: TrainingData, wanted: dict[str, Sections], dies: int = 0) -> subprocess.CompletedProcess:
    """Run the trainings under torchrun in two processes; they go on from checkpoints below the folder."""
    folder.mkdir(exist_ok=True)
    torch.save([dataclasses.asdict(data.mr), dataclasses.asdict(data.ct)], folder / "data.pt")
    texts = {n: [json.dumps(s.model_dump(mode="json")) for s in sections] for n, sections in wanted.items()}
    task = {"data": str(folder / "data.pt"), "folder": str(folder), "trainings": texts, "dies": dies}
    (folder / "task.json").write_text(json.dumps(task))
    (folder / "program.py").write_text(PROGRAM)
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(folder / "program.py"),
        str(folder / "task.json"),
    ]
    return subprocess.run(
        words, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer.state()[0]


def differ(a: Trainer, b: Trainer) -> float:
    one, two = state(a), state(b)
    assert torch.equal(one["rng"], two["rng"])
    names = [n for n in one if n.startswith(("networks.", "average.", "pool."))]
    return max(float((one[n] - two[n]).abs().max()) for n in names)


def trained(
    name: str, sections: Sections, data: TrainingData, folder: Path | None = None, until: int | None = None
) -> Trainer:
    """Train in this process, from the newest checkpoint of the folder."""
    if name.startswith("double"):
        mr, ct = (dataclasses.replace(d, images=d.images.double(), depth=d.depth.double()) for d in (data.mr, data.ct))
        data = TrainingData(mr, ct)
    trainer = Trainer(*sections, data, checkpoints=folder, samples=2)
    if name.startswith("double"):
        trainer.cyclegan.networks.double(), trainer.cyclegan.ema.double()
    trainer.resume()
    list(trainer.run(until_step=until))
    return trainer


@pytest.mark.slow
def test_two_processes_train_what_one_trains_and_each_resumes_the_others_checkpoints(
    network: Network, train: Train, data: TrainingData, tmp_path: Path
) -> None:
    wanted = trainings(network, train)
    from_one = {f"{name}_from_one": sections for name, sections in wanted.items()}
    for name, sections in from_one.items():
        trained(name, sections, data, tmp_path / name, until=HALF)
    done = start(tmp_path, data, wanted | from_one)
    assert done.returncode == 0, done.stderr
    for name, sections in wanted.items():
        alone = trained(name, sections, data)
        two = trained(name, sections, data, tmp_path / name)
        one_then_two = trained(name, sections, data, tmp_path / f"{name}_from_one")
        (tmp_path / name / f"step-{STEPS:09d}" / "state.json").unlink()
        two_then_one = trained(name, sections, data, tmp_path / name)
        assert {t.step for t in (alone, two, one_then_two, two_then_one)} == {STEPS}
        for other in (two, one_then_two, two_then_one):
            assert not name.startswith("double") or differ(alone, other) < DOUBLE
            for a, b in zip(alone.reports, other.reports, strict=True):
                assert a.step == b.step and set(a.losses) == set(b.losses)
                for term in ("cycle_mr", "cycle_ct"):
                    assert b.losses[term] == pytest.approx(a.losses[term], rel=SINGLE_LOSS)
        before, after = state(trained(name, sections, data, until=0)), state(alone)
        assert max(float((before[n] - after[n]).abs().max()) for n in before if n.endswith("weight")) > 1e-3


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all_with_one_sentence_and_the_rest_can_be_resumed(
    network: Network, train: Train, data: TrainingData, tmp_path: Path
) -> None:
    wanted = {"single": trainings(network, train)["single"]}
    done = start(tmp_path, data, wanted, dies=HALF + 2)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("ctmr: ")]
    assert len(said) == 1 and "goes on from the last checkpoint" in said[0], done.stderr
    resumed = Trainer(*wanted["single"], data, checkpoints=tmp_path / "single")
    assert resumed.resume() and resumed.step == HALF


@pytest.mark.slow
def test_what_all_processes_find_wrong_is_said_once(
    network: Network, train: Train, data: TrainingData, tmp_path: Path
) -> None:
    network, loss, train = trainings(network, train)["single"]
    done = start(tmp_path, data, {"single": (network, loss, train.model_copy(update={"batch": 3}))})
    said = [line for line in done.stderr.splitlines() if line.startswith("ctmr: ")]
    assert len(said) == 1 and said[0].startswith("ctmr: train.batch 3 cannot be divided among 2 processes; set it to")


def test_a_batch_that_cannot_be_divided_and_batch_norm_are_refused(network: Network, train: Train) -> None:
    networks = CycleGan(network, mr_channels=1, ct_channels=1)
    Team(1, 2).require_divisible(4, networks)
    with pytest.raises(InputError, match=r"train\.batch 3 cannot be divided among 2 processes"):
        Team(0, 2).require_divisible(3, networks)
    mixing = Network(
        generator=Generator(kind="encoder_decoder", width=4, blocks=2, norm=LayerNorm.BATCH),
        discriminator=Discriminator(width=4, layers=1),
    )
    with pytest.raises(InputError, match="set the networks' norm to instance"):
        Team(0, 2).require_divisible(4, CycleGan(mixing, mr_channels=1, ct_channels=1))
    Team().require_divisible(3, CycleGan(mixing, mr_channels=1, ct_channels=1))


def test_shares_of_a_batch_are_all_of_it_once() -> None:
    batch = Batch(torch.rand(4, 1, 2, 2), torch.rand(4, 1, 2, 2), None, torch.rand(4, 1, 2, 2))
    parts = [Team(rank, 2).share(batch) for rank in range(2)]
    assert torch.equal(torch.cat([p.mr for p in parts]), batch.mr)
    assert parts[0].mr_depth is None and torch.equal(parts[1].ct_depth, batch.ct_depth[2:])


def test_shares_of_random_numbers_are_those_of_one_process() -> None:
    whole = Team().mixture(4, rng=torch.Generator().manual_seed(1))
    parts = [Team(rank, 2).mixture(2, rng=torch.Generator().manual_seed(1)) for rank in range(2)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_pool_of_a_team_answers_as_the_pool_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = torch.rand(6, 4, 1, 2, 2)
    alone = ImagePool(3, torch.Generator().manual_seed(1))
    pools = [ImagePool(3, torch.Generator().manual_seed(1)) for _ in range(2)]
    for images in shown:
        monkeypatch.setattr(Team, "_gather", lambda self, part, images=images: images)
        parts = [Team(r, 2).pool(pools[r])(images[2 * r : 2 * r + 2]) for r in range(2)]
        assert torch.equal(torch.cat(parts), alone.query(images))
