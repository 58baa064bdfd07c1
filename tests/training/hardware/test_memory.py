"""A step that does not fit into memory ends in one sentence, which names the batch that fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctmr.data.domain import Domain
from ctmr.data.sampling import Batch, TrainingData
from ctmr.errors import EnvironmentFault
from ctmr.recipe.training import Discriminator, Generator, Loss, Network, Train
from ctmr.training import checkpoint
from ctmr.training.cyclegan.step import CycleGanStep
from ctmr.training.hardware.memory import is_out_of_memory, largest_batch
from ctmr.training.trainer import Trainer


@given(fits=st.integers(0, 200), more=st.integers(1, 200))
def test_the_largest_batch_is_found_in_few_attempts(fits: int, more: int) -> None:
    tried = []

    def attempt(batch: int) -> None:
        tried.append(batch)
        if batch > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert largest_batch(attempt, fits + more) == fits
    assert len(tried) == len(set(tried)) <= (fits + more).bit_length()
    assert all(0 < batch < fits + more for batch in tried)


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert is_out_of_memory(error.value)
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(ValueError("out of memory"))

    def attempt(batch: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        largest_batch(attempt, 8)


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device with memory for as many images of each modality as the list says."""
    room = [1000]
    step = CycleGanStep.__call__

    def on_small_device(self: CycleGanStep, batch: Batch, **rest: object) -> object:
        if len(batch.mr) > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return step(self, batch, **rest)

    monkeypatch.setattr(CycleGanStep, "__call__", on_small_device)
    return room


@pytest.mark.parametrize("fits", [1, 3, 7])
def test_the_sentence_names_the_batch_that_fits(
    small_device: list[int], data: TrainingData, network: Network, loss: Loss, train: Train, fits: int
) -> None:
    small_device[0] = fits
    trainer = Trainer(network, loss, train.model_copy(update={"batch": 8}), data)
    with pytest.raises(EnvironmentFault) as fault:
        list(trainer.run())
    assert str(fault.value).endswith(f"a step with train.batch 8; {fits} fits, set train.batch to it")


def test_where_no_batch_fits_the_sentence_says_what_to_make_smaller(
    small_device: list[int], data: TrainingData, network: Network, loss: Loss, train: Train
) -> None:
    small_device[0] = 0
    said = r"train\.batch 1, and for any \(CUDA out of memory.*\); lower network\.generator\.width"
    with pytest.raises(EnvironmentFault, match=said):
        list(Trainer(network, loss, train, data).run())


def test_a_device_that_fills_up_later_leaves_the_checkpoint_before(
    small_device: list[int], data: TrainingData, network: Network, loss: Loss, train: Train, tmp_path: Path
) -> None:
    train = train.model_copy(update={"batch": 2})
    trainer = Trainer(network, loss, train, data, checkpoints=tmp_path)
    list(trainer.run(4))
    small_device[0] = 1
    with pytest.raises(EnvironmentFault, match="1 fits"):
        list(trainer.run())
    small_device[0] = 2
    again = Trainer(network, loss, train, data, checkpoints=tmp_path)
    assert again.resume() and again.step == 3
    whole = Trainer(network, loss, train, data)
    list(again.run())
    list(whole.run())
    ends = [torch.cat([p.detach().flatten() for p in t.cyclegan.networks.parameters()]) for t in (again, whole)]
    assert torch.equal(*ends)
    assert checkpoint.load(tmp_path, again.digest).step == 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_real_device_the_batch_that_is_named_fits() -> None:
    images = torch.rand(64, 1, 128, 128, device="cuda") * 2 - 1
    domain = Domain(images, None, None, torch.arange(64) // 32, ("a", "b"), ("a", "b"))
    network = Network(generator=Generator(width=32, blocks=2), discriminator=Discriminator(width=32))

    def train(batch: int) -> str:
        settings = Train(steps=2, batch=batch, pool=0)
        try:
            list(Trainer(network, Loss(), settings, TrainingData(domain, domain), samples=0).run())
        except EnvironmentFault as fault:
            return str(fault)
        return ""

    torch.cuda.empty_cache()
    # Of one GiB.
    torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        sentence = train(256)
        fits = int(sentence.partition("; ")[2].partition(" ")[0])
        assert 0 < fits < 256 and not train(fits)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
