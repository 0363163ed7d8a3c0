from dataclasses import FrozenInstanceError, astuple
from inspect import signature

import pytest
import torch
from equations import COLUMNS, INITS, NAMED, POOLS, ROWS, TINY, VALID, name, random_images, sincos, tiny, trace

from mpvg_minimal import LayerwisePE, PESchedule, ViT, deit_nano
from mpvg_minimal.layerwise_pe import sincos2d


@pytest.mark.parametrize("known", NAMED)
def test_named_settings_are_their_four_switches(known):
    assert astuple(PESchedule.named(known)) == NAMED[known]
    assert PESchedule.named(known).uses_pe == (known != "none")


def test_the_default_is_mpvg():
    assert PESchedule() == PESchedule.named("mpvg")


def test_an_unknown_name_is_answered_by_the_known_ones():
    with pytest.raises(ValueError, match="'mvpg'.* none, once, lape, pvg, mpvg"):
        PESchedule.named("mvpg")


@pytest.mark.parametrize("switches, why", [
    ((True, 0, True, None), "first_block is 0, but blocks are counted from 1"),
    ((True, -1, False, "initial"), "first_block is -1, but blocks are counted from 1"),
    ((True, None, True, None), "hierarchical, but first_block is None"),
    ((False, None, True, "initial"), "hierarchical, but first_block is None"),
    ((True, None, False, "delivered"), "at_last_norm is 'delivered', but first_block is None"),
    ((True, 2, True, "final"), "at_last_norm is 'final', expected"),
    ((True, 2, True, True), "at_last_norm is True, expected"),
    ((True, 2, True, 1), "at_last_norm is 1, but first_block is 2: block 1 receives no PE"),
    ((True, 2, True, 0), "at_last_norm is 0, but"), ((True, None, False, 3), "at_last_norm is 3, but")])
def test_a_schedule_that_contradicts_itself_is_refused(switches, why):
    with pytest.raises(ValueError, match=why):
        PESchedule(*switches)


def test_a_first_block_beyond_the_last_is_refused():
    PESchedule(first_block=3).check(3)
    with pytest.raises(ValueError, match="first_block is 4, but the model has 3 blocks"):
        PESchedule(first_block=4).check(3)
    with pytest.raises(ValueError, match="first_block is 4, but the model has 3 blocks"):
        ViT(**TINY, pe=PESchedule(first_block=4))
    with pytest.raises(ValueError, match="first_block is 2, but the model has 1 blocks"):
        ViT(**{**TINY, "depth": 1}, pe="mpvg")
    with pytest.raises(ValueError, match="at_last_norm is 4, but the model has 3 blocks"):
        ViT(**TINY, pe=PESchedule(at_last_norm=4))


def test_a_schedule_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        PESchedule().first_block = 1


@pytest.mark.parametrize("grid, width", [((3, 5), 12), ((1, 4), 4), ((6, 2), 32)])
def test_sincos2d_number_by_number(grid, width):
    torch.testing.assert_close(sincos2d(grid, width)[0].double(), sincos(*grid, width), rtol=0, atol=2e-6)


def test_sincos2d_tells_all_places_apart():
    table = sincos2d((7, 9), 16)[0]
    apart = torch.cdist(table, table) + 9 * torch.eye(63)
    assert apart.min() > 0.1


def test_sincos2d_needs_a_width_that_4_divides():
    with pytest.raises(ValueError, match="4 divides, got 10"):
        sincos2d((3, 5), 10)


def test_sincos2d_is_fixed_and_never_stored():
    pe = LayerwisePE(PESchedule.named("once"), grid=(3, 5), width=12, depth=3, class_token=True, init="sincos2d")
    assert not pe.state_dict() and not list(pe.parameters())
    assert pe.pos_embed.shape == (1, 16, 12) and pe.pos_embed[0, 0].eq(0).all()
    torch.testing.assert_close(pe.pos_embed[0, 1:].double(), sincos(), rtol=0, atol=2e-6)


def test_gradients_of_twelve_handed_on_sincos2d_stay_finite():
    """LN' of the class token's row of zeros would multiply its gradient by 1000 in every block."""
    model = deit_nano(pool="cls", pe="mpvg", pe_init="sincos2d")
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    sizes = [norm.bias.grad.norm() for norm in model.pe.norms]
    assert all(0 < size < 100 for size in sizes), sizes
    assert all(pe[0, 0].eq(0).all() for pe in model.pe()[1][1:])


def test_sincos2d_moves_with_the_model():
    pe = LayerwisePE(PESchedule.named("once"), grid=(3, 5), width=12, depth=3, init="sincos2d").to("meta")
    assert pe()[0].device.type == "meta"


def test_an_unknown_init_is_refused():
    with pytest.raises(ValueError, match="pe_init is 'random', expected"):
        ViT(**TINY, pe_init="random")


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("std", [0.02, 0.2])
def test_learned_pe_starts_small_and_normal(class_token, std):
    pe = LayerwisePE(PESchedule(), grid=(20, 30), width=32, depth=3, class_token=class_token, std=std)
    assert pe.pos_embed.shape == (1, 600 + class_token, 32)
    assert pe.pos_embed.std().item() == pytest.approx(std, rel=0.03)
    assert pe.pos_embed.mean().item() == pytest.approx(0, abs=std / 20)
    assert all(torch.equal(norm.weight, torch.ones(32)) and torch.equal(norm.bias, torch.zeros(32))
               for norm in pe.norms)


def test_without_pe_nothing_is_made():
    for init in INITS:
        pe = LayerwisePE(PESchedule.named("none"), grid=(3, 5), width=12, depth=3, init=init)
        assert not list(pe.parameters()) and not list(pe.buffers())
        assert pe() == (None, [None] * 3, None)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("switches", VALID, ids=name)
def test_every_place_gets_what_the_switches_say(switches, pool):
    model = tiny(switches, pool)
    at_input, blocks, last = model.pe()
    expected = trace(model, random_images(1), switches)
    p_0, p_L = model.pe.pos_embed, (blocks or [None])[-1]
    assert at_input is (p_0 if switches[0] else None)
    assert last is (blocks[switches[3] - 1] if isinstance(switches[3], int) else
                    {None: None, "initial": p_0, "delivered": p_L}[switches[3]])
    assert [pe is None for pe in blocks] == [pe is None for pe in expected.pes[:-1]]
    for pe, wanted in zip(blocks, expected.pes):
        if wanted is not None:
            torch.testing.assert_close(pe[0], wanted, rtol=0, atol=1e-10)


def test_handing_on_is_not_normalising_anew():
    """Guards the tests themselves: with random affines the two schedules are far apart, so a mix-up is seen."""
    model = tiny((False, 1, True, None))
    _, handed_on, _ = model.pe()
    anew = model.pe.norms[2](model.pe.pos_embed)
    assert (handed_on[2] - anew).abs().mean() > 0.3


def test_forward_takes_no_image():
    assert list(signature(LayerwisePE.forward).parameters) == ["self"]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("switches", [NAMED["mpvg"], (True, 1, False, "delivered")], ids=name)
def test_pe_does_not_depend_on_the_image(switches, pool):
    model, seen = tiny(switches, pool), []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    model.last_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    model(random_images(1))
    model(random_images(3))
    once, again = seen[:4], seen[4:]
    assert len(again) == 4
    for a, b in zip(once, again):
        assert a is b is None or torch.equal(a, b) and a.shape == (1, ROWS * COLUMNS + (pool == "cls"), 12)


@pytest.mark.parametrize("pe_init", INITS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("switches", VALID, ids=name)
def test_gradients_reach_every_parameter(switches, pool, pe_init):
    """DistributedDataParallel without find_unused_parameters waits for ever for one that gets none."""
    model = tiny(switches, pool, pe_init).train()
    torch.nn.functional.cross_entropy(model(random_images(3)), torch.tensor([0, 1, 2])).backward()
    assert [key for key, weight in model.named_parameters() if weight.grad is None] == []
    only_cls_row = pool == "cls" and switches[:2] == (False, None)              # PE at the last norm alone
    if pe_init == "learned" and PESchedule(*switches).uses_pe:
        reached = model.pe.pos_embed.grad[0].abs().amax(1) > 0                  # (N,)
        assert reached.tolist() == [True] + [not only_cls_row] * (len(reached) - 1)
    for norm in [*model.pe.norms, model.last_norm.pe_norm]:
        if norm is not None:
            assert norm.bias.grad.abs().max() > 0
            zero_row = norm is model.last_norm.pe_norm and pool == "cls" and pe_init == "sincos2d"
            if not zero_row:                                                    # LN'(0) is the bias alone
                assert norm.weight.grad.abs().max() > 0
