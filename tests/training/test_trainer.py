"""Trainer: events, exact resumption, determinism, learning, and errors."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ctmr.data.sampling import Batch, TrainingData
from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.imaging.volume import Direction
from ctmr.recipe.training import (
    Discriminator,
    Generator,
    LayerNorm,
    Loss,
    Network,
    Pairs,
    Precision,
    Supervised,
    Term,
    Train,
    Warmup,
)
from ctmr.training.events import CheckpointEvent, DoneEvent, NoticeEvent, ReadingEvent, SampleEvent, StepEvent
from ctmr.training.trainer import Trainer

Sections = tuple[Network, Loss, Train, TrainingData]


@pytest.fixture
def sections(network: Network, loss: Loss, train: Train, data: TrainingData) -> Sections:
    return network, loss, train, data


def weights(trainer: Trainer) -> list[torch.Tensor]:
    tensors, _ = trainer.state()
    return [tensors[k] for k in sorted(tensors)]


def same(a: Trainer, b: Trainer) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def test_events_come_in_order_and_those_of_checkpoints_once_they_are_on_disk(
    sections: Sections, tmp_path: Path
) -> None:
    trainer = Trainer(*sections, checkpoints=tmp_path, report_every=2)
    names: list[tuple[int, type]] = []
    for event in trainer.run():
        names.append((event.step, type(event)))
        if isinstance(event, CheckpointEvent):
            assert (event.path / "state.json").is_file() and trainer.step >= event.step
    saved = [(3, CheckpointEvent), (6, CheckpointEvent)]
    assert [n for n in names if n not in saved] == [
        (2, StepEvent),
        (2, ReadingEvent),
        (4, StepEvent),
        (4, ReadingEvent),
        (4, SampleEvent),
        (4, ReadingEvent),
        (6, StepEvent),
        (6, ReadingEvent),
        (6, SampleEvent),
        (6, ReadingEvent),
        (6, DoneEvent),
    ]
    assert [n for n in names if n in saved] == saved and names[-2:] == [saved[1], (6, DoneEvent)]
    assert list(trainer.run()) == []


def test_a_run_in_chunks_equals_a_run_in_one(sections: Sections) -> None:
    whole, chunked = Trainer(*sections), Trainer(*sections)
    list(whole.run())
    for stop in (2, 3, 99):
        list(chunked.run(until_step=stop))
        chunked.generator(Direction.MR2CT)(torch.zeros(1, 1, 16, 16))
    assert chunked.step == 6
    assert same(whole, chunked)


@pytest.mark.parametrize("precision", list(Precision))
def test_six_steps_equal_three_saved_and_three_resumed(
    sections: Sections, tmp_path: Path, precision: Precision
) -> None:
    network, loss, train, data = sections
    train = train.model_copy(update={"precision": precision, "steps": 12, "checkpoint_every": 6})
    whole = Trainer(network, loss, train, data)
    list(whole.run())
    first = Trainer(network, loss, train, data, checkpoints=tmp_path)
    list(first.run(until_step=6))
    torch.manual_seed(99)
    second = Trainer(network, loss, train, data, checkpoints=tmp_path)
    assert second.resume()
    assert second.step == 6
    assert same(first, second)
    list(second.run())
    assert same(whole, second)


def test_another_process_resumes_to_the_same_bits(sections: Sections, tmp_path: Path) -> None:
    network, loss, train, data = sections
    whole = Trainer(network, loss, train, data)
    list(whole.run())
    list(Trainer(network, loss, train, data, checkpoints=tmp_path / "c").run(until_step=3))
    torch.save([dataclasses.asdict(data.mr), dataclasses.asdict(data.ct)], tmp_path / "data.pt")
    texts = [json.dumps(s.model_dump(mode="json")) for s in (network, loss, train)]
    program = f"""
import torch
from ctmr.data.domain import Domain
from ctmr.data.sampling import TrainingData
from ctmr.training.trainer import Trainer
from ctmr.recipe.training import Loss, Network, Train
from pathlib import Path
mr, ct = torch.load({str(tmp_path / "data.pt")!r}, weights_only=True)
sections = [s.model_validate_json(t) for s, t in zip((Network, Loss, Train), {texts!r})]
trainer = Trainer(*sections, TrainingData(Domain(**mr), Domain(**ct)), checkpoints=Path({str(tmp_path / "c")!r}))
assert trainer.resume() and trainer.step == 3
list(trainer.run())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    resumed = Trainer(network, loss, train, data, checkpoints=tmp_path / "c")
    assert resumed.resume() and resumed.step == 6
    assert same(whole, resumed)


def test_equal_seeds_give_equal_models_and_others_do_not(sections: Sections) -> None:
    network, loss, train, data = sections
    one, two, other = (Trainer(network, loss, train.model_copy(update={"seed": s}), data) for s in (0, 0, 1))
    list(one.run())
    torch.manual_seed(5)
    list(two.run())
    list(other.run())
    assert same(one, two)
    assert not same(one, other)


def test_a_damaged_newest_checkpoint_is_passed_over(sections: Sections, tmp_path: Path) -> None:
    whole = Trainer(*sections, checkpoints=tmp_path)
    list(whole.run())
    newest = sorted(tmp_path.iterdir())[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    again = Trainer(*sections, checkpoints=tmp_path)
    assert again.resume()
    assert again.step == 3
    events = list(again.run())
    assert isinstance(events[0], NoticeEvent) and "step-000000006" in events[0].message
    assert same(whole, again)


def test_a_checkpoint_of_another_recipe_is_refused(sections: Sections, tmp_path: Path) -> None:
    network, loss, train, data = sections
    list(Trainer(network, loss, train, data, checkpoints=tmp_path).run())
    other = Trainer(network, loss, train.model_copy(update={"beta1": 0.6}), data, checkpoints=tmp_path)
    with pytest.raises(InputError, match="recipe or data differ"):
        other.resume()


@pytest.mark.parametrize("what", ["images", "depth", "levels", "head"])
def test_a_checkpoint_of_other_contents_of_the_same_slices_is_refused(
    sections: Sections, tmp_path: Path, what: str
) -> None:
    network, loss, train, data = sections
    data = dataclasses.replace(data, ct=dataclasses.replace(data.ct, head=torch.ones(12, 16, 2, dtype=torch.uint8)))
    list(Trainer(network, loss, train, data, checkpoints=tmp_path).run())
    changed = getattr(data.ct, what).clone()
    changed.view(-1)[-1] += 1
    other = dataclasses.replace(data, ct=dataclasses.replace(data.ct, **{what: changed}))
    with pytest.raises(InputError, match="recipe or data differ"):
        Trainer(network, loss, train, other, checkpoints=tmp_path).resume()
    assert Trainer(network, loss, train, data, checkpoints=tmp_path).resume()


def test_a_report_interval_that_is_cut_by_a_checkpoint_is_whole_after_resuming(
    sections: Sections, tmp_path: Path
) -> None:
    whole = Trainer(*sections, report_every=4)
    list(whole.run())
    list(Trainer(*sections, checkpoints=tmp_path, report_every=4).run(until_step=5))
    resumed = Trainer(*sections, checkpoints=tmp_path, report_every=4)
    assert resumed.resume() and resumed.step == 3 and resumed.reports == []
    list(resumed.run())
    assert [r.step for r in whole.reports] == [4, 6]
    for a, b in zip(whole.reports, resumed.reports, strict=True):
        assert (a.step, a.losses, a.accuracy) == (b.step, b.losses, b.accuracy)


def test_training_draws_from_no_generator_but_its_own(sections: Sections) -> None:
    trainer = Trainer(*sections)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    list(trainer.run())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


def test_a_disk_that_is_full_ends_the_training_and_leaves_the_checkpoint_before(
    sections: Sections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(*sections, checkpoints=tmp_path)
    list(trainer.run(until_step=3))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EnvironmentFault, match=r"step-000000006 cannot be written.*No space left"):
        list(trainer.run())
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000003"]


def test_what_is_written_is_the_state_when_it_was_due_however_long_the_disk_takes(
    sections: Sections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on = threading.Event()
    flush = os.fsync

    def slow(descriptor: int) -> None:
        assert trained_on.wait(60)
        flush(descriptor)

    monkeypatch.setattr("os.fsync", slow)
    trainer, at_three = Trainer(*sections, checkpoints=tmp_path, report_every=1), Trainer(*sections, report_every=1)
    list(at_three.run(until_step=3))
    events = trainer.run(until_step=5)
    for event in events:
        assert not isinstance(event, CheckpointEvent) or trained_on.is_set()
        if event.step == 5:
            trained_on.set()
    resumed = Trainer(*sections, checkpoints=tmp_path, report_every=1)
    assert resumed.resume() and resumed.step == 3 and same(at_three, resumed)


def test_there_is_nothing_to_resume_at_first(sections: Sections, tmp_path: Path) -> None:
    assert not Trainer(*sections, checkpoints=tmp_path / "none").resume()
    assert not Trainer(*sections).resume()


def test_training_lowers_the_cycle_loss(sections: Sections) -> None:
    network, _, train, data = sections
    train = train.model_copy(update={"steps": 60, "lr_generator": 2e-3})
    trainer = Trainer(network, Loss(cycle=10.0, identity=0.0), train, data, report_every=10, samples=0)
    reports = [e.losses for e in trainer.run() if isinstance(e, StepEvent)]
    cycle = [r["cycle_mr"] + r["cycle_ct"] for r in reports]
    assert cycle[-1] < 0.5 * cycle[0]


def test_the_exported_generator_is_the_moving_average_of_the_weights(sections: Sections) -> None:
    network, loss, train, data = sections
    averaged, raw = (Trainer(network, loss, train.model_copy(update={"ema": e}), data) for e in (0.5, 0.0))
    mean = [p.detach().clone() for p in raw.generator(Direction.CT2MR).parameters()]
    for n in range(4):
        list(averaged.run(until_step=n + 1))
        list(raw.run(until_step=n + 1))
        decay = min(0.5, (n + 1) / (n + 10))
        now = raw.generator(Direction.CT2MR).parameters()
        mean = [decay * m + (1 - decay) * p for m, p in zip(mean, now, strict=True)]
    for m, p in zip(mean, averaged.generator(Direction.CT2MR).parameters(), strict=True):
        torch.testing.assert_close(m, p)


def test_the_exported_generator_is_a_copy_that_training_leaves_alone(sections: Sections) -> None:
    trainer = Trainer(*sections)
    generator = trainer.generator(Direction.MR2CT)
    before = [p.clone() for p in generator.parameters()]
    list(trainer.run(until_step=2))
    assert all(torch.equal(a, b) for a, b in zip(before, generator.parameters(), strict=True))
    assert not generator.training and not any(p.requires_grad for p in generator.parameters())


def test_learning_rates_and_warmup_follow_the_recipe(sections: Sections) -> None:
    trainer = Trainer(*sections, report_every=1)
    reports = [e for e in trainer.run() if isinstance(e, StepEvent)]
    assert [r.learning_rates["generator"] / 2e-4 for r in reports] == pytest.approx([1, 1, 1, 1, 2 / 3, 1 / 3])
    assert ["warmup_ct" in r.losses for r in reports] == [True, True, True, False, False, False]


def test_a_loss_that_is_not_finite_names_its_step_and_its_name(sections: Sections, tmp_path: Path) -> None:
    network, loss, train, data = sections
    trainer = Trainer(network, loss, train, data, checkpoints=tmp_path, report_every=100)
    list(trainer.run(until_step=1))
    data.mr.images[5].fill_(float("nan"))
    with pytest.raises(CtmrError, match=r"at step \d of 6: .*cycle_mr.* lower train\.lr_generator") as caught:
        list(trainer.run())
    (kept,) = tmp_path.iterdir()
    assert str(kept) in str(caught.value)
    with safe_open(kept, "pt") as file:
        facts, images = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    step = int(facts["step"])
    assert f"at step {step} of 6" in str(caught.value) and "cycle_mr" in facts["losses"]
    # What a training that stops before draws next: the batch of that step, and no other.
    again = Trainer(network, loss, train, data, report_every=100)
    list(again.run(until_step=step - 1))
    batch = again.draw(step - 1)
    assert set(images) == {"mr", "ct", "mr_depth", "ct_depth"} and bool(images["mr"].isnan().any())
    assert torch.equal(images["ct"], batch.ct) and torch.equal(images["ct_depth"], batch.ct_depth)
    assert len(list(trainer.readings)) == 0


def test_pictures_train_without_warmup_and_say_so(sections: Sections) -> None:
    network, loss, train, data = sections
    pictures = TrainingData(dataclasses.replace(data.mr, levels=None), dataclasses.replace(data.ct, levels=None))
    events = list(Trainer(network, loss, train, pictures).run())
    assert isinstance(events[0], NoticeEvent) and "loss.warmup is not used" in events[0].message
    reports = [e for e in events if isinstance(e, StepEvent)]
    assert all("warmup_ct" not in r.losses for r in reports)


def test_a_unet_that_does_not_fit_the_slices_is_refused_before_training(sections: Sections) -> None:
    network, loss, train, data = sections
    network = network.model_copy(update={"generator": Generator(kind="unet", width=2, blocks=5)})
    with pytest.raises(InputError, match="divisible by 32"):
        Trainer(network, loss, train, data)


def test_samples_are_the_real_slices_their_translations_and_reconstructions(sections: Sections) -> None:
    trainer = Trainer(*sections, samples=2)
    sample = [e for e in trainer.run() if isinstance(e, SampleEvent)][-1]
    to_ct, to_mr = trainer.generator(Direction.MR2CT), trainer.generator(Direction.CT2MR)
    assert sample.real_mr.shape == (2, 1, 16, 16)
    torch.testing.assert_close(sample.fake_ct, to_ct(sample.real_mr))
    torch.testing.assert_close(sample.rec_mr, to_mr(to_ct(sample.real_mr)))
    torch.testing.assert_close(sample.rec_ct, to_ct(to_mr(sample.real_ct)))


def test_the_core_needs_no_pipeline_library() -> None:
    program = (
        "import sys, ctmr.training.trainer, ctmr.networks, ctmr.data.sampling\n"
        "heavy = {'mlflow', 'kfp', 'dvc', 'optuna', 'great_expectations', 'pandas', 'boto3', 'safetensors',"
        " 'pydicom', 'nibabel', 'onnx', 'tritonclient', 'skimage'}\n"
        "found = heavy & {m.split('.')[0] for m in sys.modules}\n"
        "sys.exit(' '.join(found) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_warmup_is_off_by_default() -> None:
    assert Loss().warmup == Warmup(weight=0.0)


def reports_of(trainer: Trainer) -> list[StepEvent]:
    return [e for e in trainer.run() if isinstance(e, StepEvent)]


@pytest.mark.parametrize(("generator", "discriminator"), [(1, 3), (2, 1)])
def test_networks_are_updated_at_every_so_many_th_step(sections: Sections, generator: int, discriminator: int) -> None:
    network, loss, train, data = sections
    train = train.model_copy(update={"generator_every": generator, "discriminator_every": discriminator})
    reports = reports_of(Trainer(network, loss, train, data, report_every=1, samples=0))
    assert ["generator" in r.losses for r in reports] == [n % generator == 0 for n in range(1, 7)]
    assert ["discriminator" in r.losses for r in reports] == [n % discriminator == 0 for n in range(1, 7)]


def test_accuracy_is_reported_by_discriminator_and_beside_the_losses(sections: Sections) -> None:
    for report in reports_of(Trainer(*sections, report_every=2)):
        assert set(report.accuracy) == {"ct", "mr"} and all(0 <= v <= 1 for v in report.accuracy.values())
        assert not any("accuracy" in name for name in report.losses)


def test_losses_are_logged_under_the_papers_names_too(sections: Sections) -> None:
    network, loss, train, data = sections
    names = {"ABA": (Term.CYCLE_MR,), "reconstruction": (Term.CYCLE_MR, Term.CYCLE_CT), "W": (Term.WARMUP_CT,)}
    loss = loss.model_copy(update={"log_as": names})
    reports = reports_of(Trainer(network, loss, train, data, report_every=3))
    for r in reports:
        assert r.named["ABA"] == r.losses["cycle_mr"]
        assert r.named["reconstruction"] == pytest.approx(r.losses["cycle_mr"] + r.losses["cycle_ct"])
    assert ["W" in r.named for r in reports] == [True, False]


def test_a_subset_is_trained_on_first_and_a_resumed_run_knows_which(sections: Sections, tmp_path: Path) -> None:
    network, _, train, data = sections
    loss = Loss(identity=0.0)
    train = train.model_copy(
        update={
            "subset_images": 2,
            "subset_fraction": 0.5,
            "shift": 0,
            "flip": False,
            "steps": 60,
            "checkpoint_every": 20,
            "sample_every": 60,
        }
    )
    whole = Trainer(network, loss, train, data, checkpoints=tmp_path, samples=0)
    seen: list[int] = []
    draw = whole.draw

    def spy(step: int) -> Batch:
        batch = draw(step)
        seen.append(int((data.ct.images == batch.ct[0]).flatten(1).all(1).nonzero()[0]))
        return batch

    whole.draw = spy
    list(whole.run())
    assert len(set(seen[:30])) == 2 and len(set(seen[30:])) > 6
    first = Trainer(network, loss, train, data, checkpoints=tmp_path / "b", samples=0)
    list(first.run(until_step=20))
    second = Trainer(network, loss, train, data, checkpoints=tmp_path / "b", samples=0)
    assert second.resume()
    list(second.run())
    assert same(whole, second)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_batch_norm_resumes_exactly_and_samples_and_exports_use_its_running_statistics(
    sections: Sections, tmp_path: Path, ema: float
) -> None:
    network, loss, train, data = sections
    network = Network(
        generator=Generator(kind="encoder_decoder", width=4, blocks=2, norm=LayerNorm.BATCH),
        discriminator=Discriminator(width=4, layers=1, norm=LayerNorm.BATCH, position=True),
    )
    train = train.model_copy(update={"ema": ema, "batch": 2})
    whole = Trainer(network, loss, train, data, checkpoints=tmp_path)
    events = list(whole.run())
    sample = [e for e in events if isinstance(e, SampleEvent)][-1]
    torch.testing.assert_close(sample.fake_ct, whole.generator(Direction.MR2CT)(sample.real_mr))
    statistics = whole.generator(Direction.MR2CT).state_dict()
    assert any(k.endswith("running_mean") and bool(v.any()) for k, v in statistics.items())
    (tmp_path / "step-000000006" / "state.json").unlink()
    again = Trainer(network, loss, train, data, checkpoints=tmp_path)
    assert again.resume() and again.step == 3
    list(again.run())
    assert same(whole, again)
    assert whole.cyclegan.networks.training


def test_the_wasserstein_loss_trains_and_resumes_exactly(sections: Sections, tmp_path: Path) -> None:
    network, _, train, data = sections
    loss = Loss(adversarial="wasserstein", identity=0.0)
    train = train.model_copy(update={"generator_every": 2})
    whole = Trainer(network, loss, train, data, checkpoints=tmp_path, report_every=2)
    events = list(whole.run())
    (report, *_) = [e for e in events if isinstance(e, StepEvent)]
    assert {"gradient_penalty_ct", "gradient_penalty_mr"} <= set(report.losses) and not report.accuracy
    (tmp_path / "step-000000006" / "state.json").unlink()
    again = Trainer(network, loss, train, data, checkpoints=tmp_path)
    assert again.resume()
    list(again.run())
    assert same(whole, again)


def test_random_weights_where_imagenets_belong_are_an_event(sections: Sections) -> None:
    _, loss, train, data = sections
    network = Network(
        generator=Generator(kind="unet_resnet18", width=4, blocks=2),
        discriminator=Discriminator(width=4, layers=1, position=True),
    )
    events = list(Trainer(network, loss, train, data).run(until_step=1))
    assert isinstance(events[0], NoticeEvent) and "RANDOM" in events[0].message


@pytest.mark.parametrize("pairs", list(Pairs))
def test_a_network_trained_on_pairs_alone_learns_them_and_its_discriminators_stay_as_they_were(
    sections: Sections, pairs: Pairs
) -> None:
    network, _, train, data = sections
    twins = TrainingData(data.mr, dataclasses.replace(data.mr, images=0.5 * data.mr.images - 0.2))
    loss = Loss(adversarial_weight=0.0, cycle=0.0, supervised=Supervised(weight=1.0, pairs=pairs))
    train = train.model_copy(update={"steps": 80, "lr_generator": 5e-3, "checkpoint_every": 80, "sample_every": 80})
    trainer = Trainer(network, loss, train, twins, report_every=20, samples=0)
    before = [p.clone() for p in trainer.cyclegan.networks.discriminators.parameters()]
    errors = [r.losses["supervised_ct"] for r in reports_of(trainer)]
    assert errors[-1] < (0.6 if pairs is Pairs.SUBJECT else 0.8) * errors[0]
    after = trainer.cyclegan.networks.discriminators.parameters()
    assert all(torch.equal(p, q) for p, q in zip(before, after, strict=True))


def test_pairs_and_warm_up_together_are_refused() -> None:
    with pytest.raises(ValueError, match="set the weight of one to 0"):
        Loss(supervised=Supervised(weight=1.0), warmup=Warmup(weight=1.0))


def test_steps_without_any_update_are_refused(sections: Sections) -> None:
    network, _, train, data = sections
    with pytest.raises(InputError, match="generator_every 3 leaves steps that train nothing"):
        Trainer(network, Loss(adversarial_weight=0.0), train.model_copy(update={"generator_every": 3}), data)
