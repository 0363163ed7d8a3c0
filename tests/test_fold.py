import copy

import pytest
import torch
from equations import DEPTH, every_init, every_name, every_pool, every_schedule, layer_norm, random_images, tiny
from torch import nn

from mpvg_minimal import counterbalance, fold_last_pe
from mpvg_minimal.layerwise_pe import LayerwisePE


@torch.no_grad()
@every_init
@every_pool
@every_schedule
def test_folding_keeps_the_logits(switches, pool, pe_init):
    model, images = tiny(switches, pool, pe_init).float(), random_images().float()
    before, expected = copy.deepcopy(model.state_dict()), model(images)
    folded = fold_last_pe(model)
    torch.testing.assert_close(folded(images), expected, rtol=0, atol=1e-5)
    assert not any(isinstance(module, LayerwisePE) for module in folded.modules())
    assert sum(isinstance(module, nn.LayerNorm) for module in folded.modules()) == 2 * DEPTH + 1
    assert isinstance(model.pe, LayerwisePE) and torch.equal(model(images), expected)
    assert all(torch.equal(weight, before[key]) for key, weight in model.state_dict().items())


@every_pool
def test_folding_moves_the_bias_by_w_c(pool):
    """GAP: c is the mean over tokens of LN'_last(p_0); class token: its row 0. W (f + c) + b = W f + (W c + b)."""
    model = tiny("mpvg", pool)
    pe = layer_norm(model.pe.pos_embed, model.state_dict(), "last_norm.pe_norm")[0]             # (N, D)
    c = pe.mean(0) if pool == "gap" else pe[0]
    expected = model.head.bias + model.head.weight @ c
    assert model.pe()[2] is model.pe.pos_embed and c.abs().max() > 0.1
    torch.testing.assert_close(fold_last_pe(model).head.bias, expected, rtol=0, atol=1e-10)


def test_a_folded_model_is_for_inference():
    """A constant that still asked for a gradient would keep every activation. Images may ask, for saliency maps."""
    model = tiny("mpvg").train()
    folded, images, gradients = fold_last_pe(model), random_images(), []
    assert model.training and not folded.training and not folded(images).requires_grad
    assert not any(weight.requires_grad for weight in folded.state_dict(keep_vars=True).values())
    assert all(weight.requires_grad for weight in model.parameters())
    for which in (model.eval(), folded):                            # PE is added in place there, and autograd knows
        images = images.detach().requires_grad_()
        which(images).square().sum().backward()
        gradients.append(images.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-9)


@torch.no_grad()
@every_init
@every_name
def test_a_folded_model_is_folded_again_saved_and_loaded(tmp_path, known, pe_init):
    images, folded, other = random_images(), *(fold_last_pe(tiny(known, pe_init=pe_init)) for _ in range(2))
    assert not torch.allclose(other(images), folded(images))        # other random weights
    torch.save(fold_last_pe(folded).state_dict(), tmp_path / "folded.pt")
    other.load_state_dict(torch.load(tmp_path / "folded.pt", weights_only=True))
    assert torch.equal(other(images), folded(images))


@torch.no_grad()
@pytest.mark.parametrize("known", ["lape", "pvg", "mpvg"])
def test_a_folded_model_adds_pe_in_the_memory_of_the_normalized_tokens(known):
    model, images = tiny(known), random_images()
    folded, seen = fold_last_pe(model, dense=True), {}
    norms = [*(block.norm1 for block in folded.blocks), folded.last_norm.token_norm]
    receiving = [norm for norm in norms if not isinstance(norm, nn.LayerNorm)]
    assert len(receiving) == {"lape": DEPTH, "pvg": DEPTH - 1, "mpvg": DEPTH}[known]
    for norm in receiving:
        for part in (norm, norm.norm):
            part.register_forward_hook(lambda part, _, output: seen.update({part: output.data_ptr()}))
    folded(images)
    assert len(seen) == 2 * len(receiving) and all(seen[norm] == seen[norm.norm] for norm in receiving)


@pytest.mark.parametrize("dense", [False, True])
def test_a_folded_model_is_not_measured(dense):
    with pytest.raises(ValueError, match="folded into constants: measure it before folding"):
        counterbalance(fold_last_pe(tiny("mpvg"), dense=dense), random_images(3))


class Sharper(nn.Linear):
    """A head that only inherits: not linear, so a bias cannot stand for PE."""

    def forward(self, x):
        return super().forward(x).square()


HEADS = {"nn.Linear without a bias": lambda width: nn.Linear(width, 5, bias=False),
         "is Identity": lambda width: nn.Identity(), "is Sharper": lambda width: Sharper(width, 5),
         "is Sequential": lambda width: nn.Sequential(nn.Linear(width, 5))}


@torch.no_grad()
@pytest.mark.parametrize("message", HEADS)
def test_a_head_that_is_not_plainly_linear_is_refused_unless_dense(message):
    for known in ("mpvg", "pvg"):
        model, images = tiny(known), random_images()
        model.head = HEADS[message](model.head.in_features).double()
        if known == "mpvg":
            with pytest.raises(ValueError, match=f"{message}.*dense=True"):
                fold_last_pe(model)
        else:                                                       # no PE at the last norm: any head will do
            torch.testing.assert_close(fold_last_pe(model)(images), model(images), rtol=0, atol=1e-10)
        torch.testing.assert_close(fold_last_pe(model, dense=True)(images), model(images), rtol=0, atol=1e-10)


@pytest.mark.parametrize("pool", [lambda tokens: tokens.amax(1), lambda tokens: tokens.mean(1) ** 2,
                                  lambda tokens: (tokens.softmax(1) * tokens).sum(1)])
def test_a_pooling_that_is_not_linear_is_refused(pool):
    model = tiny("mpvg")
    model.pool_tokens = pool
    with pytest.raises(ValueError, match="does not take sums to sums.*dense=True"):
        fold_last_pe(model)
    model.pool_tokens = lambda tokens: tokens.sum(1) / 7            # linear, and none of ours
    with torch.no_grad():
        images = random_images()
        torch.testing.assert_close(fold_last_pe(model)(images), model.eval()(images), rtol=0, atol=1e-10)


def test_what_is_no_vit_of_ours_is_refused():
    with pytest.raises(ValueError, match="found a Linear without pe, blocks.*expected a ViT"):
        fold_last_pe(nn.Linear(2, 2))
