import copy
import math

import equations
import pytest
import torch
from equations import every_init, every_name, every_pool, every_schedule, random_images, randomize, tiny
from torch import nn
from torchvision.models import VisionTransformer

from mpvg_minimal import ViT, deit_base, deit_nano, deit_small, deit_tiny, vit_lite, vit_nano
from mpvg_minimal.block import DropPath
from mpvg_minimal.vit import SIZES

# The same numbers as torchvision, and as the equations

@torch.no_grad()
@pytest.mark.parametrize("size, patch, width, depth, heads, ratio, classes", [
    (32, 8, 96, 4, 3, 2, 16), (16, 4, 24, 2, 4, 4, 10), (12, 12, 8, 1, 1, 3, 2), (28, 7, 64, 3, 8, 1, 7)])
def test_once_is_torchvisions_vit(size, patch, width, depth, heads, ratio, classes):
    ours = ViT(image_size=size, patch_size=patch, width=width, depth=depth, heads=heads, mlp_ratio=ratio,
               num_classes=classes, pool="cls", pe="once").eval()
    theirs = VisionTransformer(image_size=size, patch_size=patch, num_layers=depth, num_heads=heads, hidden_dim=width,
                               mlp_dim=width * ratio, num_classes=classes).eval()
    randomize(ours)
    ours.head.weight.div_(4)                                # logits near 1, so that 1e-5 is well above rounding
    theirs.load_state_dict({equations.torchvision_name(key): weight for key, weight in ours.state_dict().items()})
    images = torch.randn(3, 3, size, size)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)
    assert ours(images).std() > 0.1


@torch.no_grad()
@every_init
@every_pool
@every_schedule
def test_every_combination_of_switches_is_its_equations(switches, pool, pe_init):
    model, images = tiny(switches, pool, pe_init), random_images()
    expected = equations.trace(model, images, switches)
    exact = dict(rtol=0, atol=1e-10 if pe_init == "learned" else 1e-4)          # sincos2d is made in float32
    torch.testing.assert_close(model.forward_tokens(images), expected.tokens, **exact)
    torch.testing.assert_close(model(images), expected.logits, **exact)
    at_input, block_pes, _ = model.pe()
    assert at_input is (model.pe.pos_embed if switches[0] else None)
    for pe, wanted in zip(block_pes, expected.pes, strict=False):               # the last one is the last norm's
        torch.testing.assert_close(pe, None if wanted is None else wanted[None], **exact)


# Without PE a ViT cannot know where a patch was

@torch.no_grad()
@every_init
@every_pool
@every_schedule
def test_the_order_of_patches_counts_only_with_pe(switches, pool, pe_init):
    """PE at the last norm alone comes too late: it is added after all that looks at the tokens (see balance.py)."""
    model, images = tiny(switches, pool, pe_init), random_images()
    change = (model(equations.permuted(images, torch.arange(15).roll(4))) - model(images)).abs().max()
    assert change > 1e-3 if switches[:2] != (False, None) else change < 1e-10


# Sizes

def count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("build, patch, tokens, width, depth, heads, hidden, classes", [
    (vit_nano, 8, 16, 96, 4, 3, 192, 16), (vit_lite, 4, 64, 256, 7, 4, 512, 10), (deit_nano, 8, 16, 96, 12, 3, 192, 10),
    (deit_tiny, 16, 196, 192, 12, 3, 768, 1000), (deit_small, 16, 196, 384, 12, 6, 1536, 1000),
    (deit_base, 16, 196, 768, 12, 12, 3072, 1000)])
def test_sizes_are_what_their_docstrings_say(build, patch, tokens, width, depth, heads, hidden, classes):
    attention = 4 * width ** 2 + (1 if build is vit_lite else 4) * width        # ViT-Lite: no biases in qkv
    block = attention + (width + 1) * hidden + (hidden + 1) * width + 2 * 2 * width
    rest = (3 * patch * patch + 1) * width + tokens * width + 2 * width + (width + 1) * classes
    with torch.device("meta"):                              # no memory, only shapes
        once, mpvg = build(pool="cls", pe="once"), build(pool="gap", pe="mpvg")
    assert count(once) == depth * block + rest + 2 * width                      # the class token, and its row of PE
    assert count(mpvg) == depth * block + rest + depth * 2 * width              # PE's own norms
    assert {block.attn.heads for block in once.blocks} == {heads} and SIZES[build.__name__] is build


# The paper's Table 1 (K = 1000) and Table 2 (ViT-Lite, CIFAR-100) in millions of parameters. Ours, cut after three
# decimals, are equal but for: DeiT-Ti with LaPE (the LaPE paper prints our 5.722), ViT-Lite with LaPE (they round).
PUBLISHED = {
    deit_tiny: ("5.717", "5.721", "5.721", "5.721"), deit_small: ("22.050", "22.059", "22.058", "22.059"),
    deit_base: ("86.567", "86.586", "86.583", "86.584"), vit_lite: ("3.740", "3.744", "3.742", "3.743")}
COLUMNS = (("once", "cls"), ("lape", "cls"), ("pvg", "gap"), ("mpvg", "gap"))


@pytest.mark.parametrize("build", PUBLISHED)
@pytest.mark.parametrize("pe, pool", COLUMNS)
def test_parameters_are_those_of_the_papers_tables(build, pe, pool):
    with torch.device("meta"):
        parameters = count(build(100 if build is vit_lite else 1000, pe=pe, pool=pool))
    printed = PUBLISHED[build][COLUMNS.index((pe, pool))]
    if (build, pe) == (deit_tiny, "lape"):
        assert parameters == 5_722_024 and printed == "5.721"
    else:
        cut = parameters / 1e6 if (build, pe) == (vit_lite, "lape") else math.floor(parameters / 1000) / 1000
        assert f"{cut:.3f}" == printed


def published_vit_lite(images: torch.Tensor, w: dict[str, torch.Tensor], *, normalized_stream: bool) -> torch.Tensor:
    """ViT-Lite-7/4 from its weights, in matrix products. normalized_stream: the MLP's branch begins from LN(x), and so
    does its residual, as in Compact-Transformers' code. eps as in ours."""
    x = equations.patches(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], 4)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pe.pos_embed"]
    for block in (f"blocks.{number}" for number in range(7)):
        x = x + equations.attention(equations.layer_norm(x, w, f"{block}.norm1"), w, f"{block}.attn", heads=4)
        y = equations.layer_norm(x, w, f"{block}.norm2")
        x = (y if normalized_stream else x) + equations.mlp(y, w, f"{block}.mlp")
    return equations.layer_norm(x, w, "last_norm.token_norm")[:, 0] @ w["head.weight"].T + w["head.bias"]


@torch.no_grad()
def test_vit_lite_is_the_published_one_but_for_the_stream_before_the_mlp():
    model = randomize(vit_lite(pool="cls", pe="once").double().eval())
    images, w = torch.randn(2, 3, 32, 32).double(), model.state_dict()
    assert "blocks.0.attn.qkv.bias" not in w
    torch.testing.assert_close(model(images), published_vit_lite(images, w, normalized_stream=False), rtol=0, atol=1e-9)
    for block in model.blocks:              # the published line: x = LN(x); x = x + MLP(x)
        block.forward = lambda x, pe=None, b=block: (
            lambda y: y + b.mlp(y))(b.norm2(x + b.attn(b.norm1(x))))
    torch.testing.assert_close(model(images), published_vit_lite(images, w, normalized_stream=True), rtol=0, atol=1e-9)


def test_vit_lite_starts_as_published_or_as_vit():
    assert vit_lite().pe.pos_embed.std().item() == pytest.approx(0.2, rel=0.03)
    assert all(block.attn.qkv.bias is None for block in vit_lite().blocks)
    other = vit_lite(qkv_bias=True, pe_std=0.02)
    assert other.pe.pos_embed.std().item() == pytest.approx(0.02, rel=0.03)
    assert all(block.attn.qkv.bias.eq(0).all() for block in other.blocks)


def test_a_named_size_takes_other_options():
    model = vit_nano(7, image_size=(16, 24), depth=2, pe="lape")
    assert (model.patch_embed.grid, len(model.blocks), len(model.pe.norms)) == ((2, 3), 2, 2)
    assert model(torch.zeros(1, 3, 16, 24)).shape == (1, 7)


@every_pool
@every_schedule
def test_norms_exist_only_where_they_are_used_and_none_has_to_copy_its_tokens(switches, pool):
    """A convolution's tokens lie D before N, and every sum x + ... would keep that: see patch_embed.py."""
    model, contiguous = tiny(switches, pool), {}
    norms = {key: module for key, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    for key, module in norms.items():
        module.register_forward_pre_hook(lambda _, inputs, key=key: contiguous.update({key: inputs[0].is_contiguous()}))
    model(random_images())
    delivered = 0 if switches[1] is None else equations.DEPTH - switches[1] + 1
    assert len(norms) == 2 * equations.DEPTH + 1 + delivered + (switches[3] is not None)
    assert contiguous == dict.fromkeys(norms, True)


def test_linear_maps_and_class_token_start_small():
    model = ViT(image_size=32, patch_size=4, width=64, depth=2, heads=4, pool="cls")
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 4 * 2 + 1 and all(layer.bias.eq(0).all() for layer in linear)
    assert all(layer.weight.std().item() == pytest.approx(0.02, rel=0.1) for layer in linear)
    assert 0 < model.cls_token.std() < 0.04


@pytest.mark.parametrize("options, why", [
    (dict(pool="mean"), "pool is 'mean', expected \"gap\" or \"cls\""), (dict(pe="mvpg"), "'mvpg'.* none, once"),
    (dict(heads=5), "5 heads do not divide width 12"),
    (dict(pe_init="sincos2d", width=18, pe="once"), "4 divides, got 18"),
    (dict(pe_init="random"), "pe_init is 'random', expected"),
    (dict(depth=1), "first_block is 2, but the model has 1 blocks"),
    (dict(heads=0), "heads is 0, expected a whole"), (dict(heads=-2), "heads is -2"),
    (dict(width=0), "width is 0"), (dict(patch_size=0), "patch_size is 0"),
    (dict(depth=0, pe="once"), "depth is 0"), (dict(num_classes=0), "num_classes is 0")])
def test_settings_without_sense_are_refused(options, why):
    with pytest.raises(ValueError, match=why):
        ViT(**{**equations.TINY, **options})


# How it behaves in training, copied and stored

def test_stochastic_depth_grows_linearly():
    model = ViT(**{**equations.TINY, "depth": 5}, stochastic_depth=0.2)
    rates = [module.p for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert ViT(**{**equations.TINY, "depth": 1}, pe="lape", stochastic_depth=0.2).blocks[0].drop_path.p == 0


@torch.no_grad()
@pytest.mark.parametrize("kind", ["attention_dropout", "stochastic_depth"])
def test_nothing_is_drawn_in_eval_mode(kind):
    model, images = tiny("mpvg", **{kind: 0.5}), random_images(8)
    expected = equations.trace(model, images, equations.NAMED["mpvg"]).logits
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-10)
    model.train()
    assert (model(images) - expected).abs().max() > 0.01


@torch.no_grad()
@every_init
@every_pool
@every_name
def test_copies_give_the_same_bits(known, pool, pe_init, tmp_path):
    model, images = tiny(known, pool, pe_init), random_images()
    expected = model(images)
    copied, stored = copy.deepcopy(model), tiny(known, pool, pe_init)           # the second with other weights
    assert not torch.equal(stored(images), expected)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    stored.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    randomize(model)
    assert torch.equal(copied(images), expected) and torch.equal(stored(images), expected)
