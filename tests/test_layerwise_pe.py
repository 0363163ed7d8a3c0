from dataclasses import FrozenInstanceError, astuple
from inspect import signature

import numpy as np
import pytest
import torch
from equations import INITS, NAMED, every_init, every_name, every_pool, every_schedule, random_images, sincos, tiny

from mpvg_minimal import LayerwisePE, PESchedule, deit_nano
from mpvg_minimal.layerwise_pe import sincos2d


@every_name
def test_named_settings_are_their_four_switches(known):
    assert astuple(PESchedule.named(known)) == NAMED[known]
    assert tiny(known).pe.schedule == tiny(NAMED[known]).pe.schedule == PESchedule.named(known)
    assert PESchedule.named(known).uses_pe == (known != "none")


def test_the_default_is_mpvg_and_cannot_be_changed():
    assert PESchedule() == PESchedule.named("mpvg")
    with pytest.raises(FrozenInstanceError):
        PESchedule().first_block = 1


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


def test_blocks_may_be_numbers_of_numpy():
    PESchedule(at_last_norm=np.int64(3)).check(3)
    for number in ("first_block", "at_last_norm"):
        with pytest.raises(ValueError, match=f"{number} is .*4.*, but the model has 3 blocks"):
            PESchedule(**{number: np.int64(4)}).check(3)


@pytest.mark.parametrize("grid, width", [((3, 5), 12), ((1, 4), 4), ((6, 2), 32)])
def test_sincos2d_number_by_number(grid, width):
    torch.testing.assert_close(sincos2d(grid, width)[0].double(), sincos(*grid, width), rtol=0, atol=2e-6)


def test_sincos2d_is_fixed_and_never_stored_and_moves_with_the_model():
    pe = LayerwisePE(PESchedule.named("once"), grid=(3, 5), width=12, depth=3, class_token=True, init="sincos2d")
    assert not pe.state_dict() and not list(pe.parameters())
    assert pe.pos_embed.shape == (1, 16, 12) and pe.pos_embed[0, 0].eq(0).all()
    torch.testing.assert_close(pe.pos_embed[0, 1:].double(), sincos(), rtol=0, atol=2e-6)
    assert pe.to("meta")()[0].device.type == "meta"


def test_gradients_of_twelve_handed_on_sincos2d_stay_finite():
    """LN' of the class token's row of zeros would multiply its gradient by 1000 in every block."""
    model = deit_nano(pool="cls", pe="mpvg", pe_init="sincos2d")
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    sizes = [norm.bias.grad.norm() for norm in model.pe.norms]
    assert all(0 < size < 100 for size in sizes), sizes
    assert all(pe[0, 0].eq(0).all() for pe in model.pe()[1][1:])


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


def test_pe_does_not_depend_on_the_image():
    """What a block is given has no images in its shape, and `forward` has no way to see one."""
    assert list(signature(LayerwisePE.forward).parameters) == ["self"]
    model, seen = tiny("mpvg"), []
    for part in (*model.blocks, model.last_norm):
        part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    model(random_images(1))
    model(random_images(3))
    assert all(a is b is None or torch.equal(a, b) and len(a) == 1 for a, b in zip(seen[:4], seen[4:], strict=True))


@every_init
@every_pool
@every_schedule
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
