"""Image pool: what Shrivastava et al. and CycleGAN say it does."""

from __future__ import annotations

import torch

from ctmr.training.cyclegan.pool import ImagePool


def image(value: float, batch: int = 1) -> torch.Tensor:
    return torch.full((batch, 2, 1, 1), value)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_filling_pool_returns_what_it_is_given() -> None:
    pool = ImagePool(5, rng())
    assert [pool.query(image(v))[0, 0, 0, 0].item() for v in range(5)] == [0, 1, 2, 3, 4]
    assert pool.count == 5


def test_a_pool_of_size_zero_is_the_identity() -> None:
    pool = ImagePool(0, rng())
    x = image(3.0, batch=2)
    assert torch.equal(pool.query(x), x)
    assert pool.state_dict() == {}


def test_a_full_pool_returns_an_old_image_half_of_the_time_and_keeps_the_new_one_then() -> None:
    pool = ImagePool(10, rng())
    for v in range(10):
        pool.query(image(v))
    held = set(range(10))
    swaps = 0
    for v in range(10, 2010):
        out = int(pool.query(image(v))[0, 0, 0, 0])
        if out != v:
            assert out in held
            held = (held - {out}) | {v}
            swaps += 1
    # 2000 fair coins: sd 22
    assert 900 < swaps < 1100
    assert set(pool.state_dict()["images"][:, 0, 0, 0].int().tolist()) == held


def test_a_returned_image_does_not_change_when_its_slot_does() -> None:
    pool = ImagePool(1, rng())
    pool.query(image(0.0))
    old = [pool.query(image(float(v))) for v in range(1, 20)]
    values = [o[0, 0, 0, 0].item() for o in old]
    assert all(torch.equal(o, image(v)) for o, v in zip(old, values, strict=True))
    assert len(set(values)) == len(values)


def test_channels_of_an_image_stay_together() -> None:
    pool = ImagePool(3, rng())
    for v in range(40):
        out = pool.query(torch.tensor([float(v), -float(v)]).view(1, 2, 1, 1))
        assert out[0, 0] == -out[0, 1]


def test_a_restored_pool_goes_on_as_the_original() -> None:
    generator = rng(4)
    pool = ImagePool(3, generator)
    for v in range(9):
        pool.query(image(v))
    twin_rng = rng()
    twin_rng.set_state(generator.get_state())
    twin = ImagePool(3, twin_rng)
    twin.load_state_dict(pool.state_dict(), torch.device("cpu"))
    for v in range(9, 30):
        assert torch.equal(pool.query(image(v, 2)), twin.query(image(v, 2)))
