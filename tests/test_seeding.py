import pytest
import torch
from pretend_cuda import PretendCuda

from mpvg_minimal.runtime.seeding import generator, seed_device, seed_of, seeded


def test_seeds_never_change_silently():
    """With another function no run could be repeated, and the built-in shapes would be other images."""
    assert seed_of("order", 0, 3) == 8979983317763665565


def test_keys_that_differ_give_seeds_that_differ():
    keys = [(1, 2), (12,), (2, 1), (1, 2, 0), (0, 1, 2), ("image", 1, 2), ("step", 1, 2), (-1, 2), (), ("1", 2),
            ("1,2",), ("image,1", 2), ("image", "1", 2), ("image", "1,2")]
    keys += [("image", seed, epoch, index) for seed in range(5) for epoch in range(20) for index in range(50)]
    assert len({seed_of(*key) for key in keys}) == len(keys) == 5014
    assert all(0 <= seed_of(*key) < 2 ** 63 for key in keys)


def test_seeded_draws_by_the_key_and_restores_also_after_an_error_and_when_nested():
    before = torch.get_rng_state()
    with seeded("a", 1):
        first = torch.rand(1)
        with pytest.raises(KeyError), seeded("b", 1):
            inner = torch.rand(7)
            raise KeyError
        second = torch.rand(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.cat([first, second]), torch.rand(2, generator=generator("a", 1)))
    assert torch.equal(inner, torch.rand(7, generator=generator("b", 1)))


def test_seed_device_draws_as_manual_seed_on_the_runs_own_devices_and_leaves_the_others_alone():
    with PretendCuda():
        torch.cuda.default_generators = [torch.Generator() for _ in range(3)]           # the pretended card has one
        before = [card.get_state() for card in torch.cuda.default_generators]
        seed_device(torch.device("cuda:1"), "step", 3)
        ours, cards = torch.rand(5), torch.cuda.default_generators
        torch.manual_seed(seed_of("step", 3))
        assert torch.equal(ours, torch.rand(5)) and cards[1].initial_seed() == seed_of("step", 3)
        assert all(torch.equal(cards[other].get_state(), before[other]) for other in (0, 2))
        seed_device(torch.device("cuda"), "step", 4)                                    # the current one, the first
        assert [card.initial_seed() for card in cards[:2]] == [seed_of("step", 4), seed_of("step", 3)]
