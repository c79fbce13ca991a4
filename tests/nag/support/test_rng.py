"""Keyed randomness: what an image or a step draws depends on its key alone."""

import numpy as np
import pytest
import torch

from nag.support.rng import ImageNoise, generator

SHAPE = (1, 28, 28)


def test_an_images_noise_does_not_depend_on_its_batch():
    together, alone = ImageNoise([7, 3, 5]), ImageNoise([3])
    for _ in range(3):  # also for later draws, which stochastic samplers make
        assert torch.equal(together(SHAPE)[1], alone(SHAPE)[0])


def test_order_of_the_batch_does_not_matter():
    assert torch.equal(ImageNoise([1, 2, 3])(SHAPE), ImageNoise([3, 2, 1])(SHAPE).flip(0))


def test_draws_differ_between_images_and_between_calls():
    noise = ImageNoise([0, 1])
    draws = torch.cat([noise(SHAPE), noise(SHAPE)]).flatten(1)
    correlation = torch.corrcoef(draws) - torch.eye(4)
    assert correlation.abs().max() < 5 / 28


def test_noise_is_standard_normal():
    x = ImageNoise(range(200))(SHAPE)
    n = x.numel()
    assert x.dtype == torch.float32
    assert abs(x.mean()) < 4 / n**0.5 and abs(x.var() - 1) < 4 * (2 / n) ** 0.5


def test_global_generator_is_neither_used_nor_moved():
    before = torch.get_rng_state()
    first = ImageNoise([4])(SHAPE)
    torch.manual_seed(123)
    assert torch.equal(first, ImageNoise([4])(SHAPE))
    torch.set_rng_state(before)
    generator(1, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_the_keys_in_use_are_distinct():
    """Images (i,), permutations (seed, 1, epoch) and steps (seed, 2, step) never share a stream."""
    keys = [(i,) for i in range(200)]
    keys += [(seed, kind, k) for seed in range(3) for kind in (1, 2) for k in range(50)]
    assert len(
        {
            torch.rand(4, dtype=torch.float64, generator=generator(*key)).numpy().tobytes()
            for key in keys
        }
    ) == len(keys)


def test_a_key_is_reproducible_and_its_order_counts():
    assert torch.equal(
        torch.rand(5, generator=generator(3, 1)), torch.rand(5, generator=generator(3, 1))
    )
    assert not torch.equal(
        torch.rand(5, generator=generator(3, 1)), torch.rand(5, generator=generator(1, 3))
    )


def test_a_negative_key_is_refused():
    with pytest.raises(ValueError):
        generator(-1)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 1.5, "7", None], ids=repr)
def test_what_is_no_seed_is_refused(seed):
    for draw in (generator, lambda seed: generator(0, seed), lambda seed: ImageNoise([0, seed])):
        with pytest.raises(ValueError, match=r"must be a whole number from 0 to 2\^63 - 1, not"):
            draw(seed)


def test_whole_numbers_of_any_type_are_the_same_seed():
    wanted = ImageNoise([7])(SHAPE)
    for seed in (np.int64(7), np.uint8(7), torch.tensor(7)):
        assert torch.equal(ImageNoise([seed])(SHAPE), wanted)
    assert not torch.equal(ImageNoise([2**63 - 1])(SHAPE), ImageNoise([2**63 - 2])(SHAPE))
