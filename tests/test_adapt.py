"""MPVG inside other people's models: against our `ViT`, against themselves, and learning what only PE can tell."""
import copy
import functools
import io
from itertools import product

import pytest
import torch
import torchvision
from equations import torchvision_name
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mpvg_minimal import PESchedule, ViT
from mpvg_minimal.adapt import (
    NormWithPE,
    adapt_encoder,
    adapt_swin,
    adapt_timm_vit,
    adapt_torchvision_vit,
    add_layerwise_pe,
)

SCHEDULES = ["once", "lape", "pvg", "mpvg"]


def torchvision_vit():
    model = torchvision.models.VisionTransformer(image_size=16, patch_size=4, num_layers=4, num_heads=2,
                                                 hidden_dim=16, mlp_dim=32, num_classes=5)
    nn.init.normal_(model.heads.head.weight)                # torchvision begins with zeros, which would hide all
    return model


def timm_vit(**options):
    timm = pytest.importorskip("timm")
    return timm.models.VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=4, num_heads=2, num_classes=5,
                                         mlp_ratio=2, **options)


def encoder(batch_first=True):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, norm_first=True, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 4, norm=nn.LayerNorm(16), enable_nested_tensor=False)


def swin():
    return torchvision.models.SwinTransformer(patch_size=[2, 2], embed_dim=16, depths=[2, 2], num_heads=[2, 2],
                                              window_size=[4, 4], num_classes=5, stochastic_depth_prob=0.0)


def spread(model, size=0.3):
    """Random weights everywhere, so that nothing is hidden by ones and zeros."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return model


IMAGES, SEQUENCES = (2, 3, 16, 16), (2, 16, 16)
HELPERS = {
    "torchvision": (torchvision_vit, adapt_torchvision_vit, IMAGES),
    "timm": (timm_vit, adapt_timm_vit, IMAGES),
    "encoder": (encoder, lambda model, *a, **k: adapt_encoder(model, 16, *a, **k), SEQUENCES),
    "encoder, batch second": (lambda: encoder(False), lambda model, *a, **k: adapt_encoder(model, 2, *a, **k),
                              SEQUENCES),
    "swin": (swin, lambda model, *a, **k: adapt_swin(model, 16, *a, **k), IMAGES),
}
every_helper = pytest.mark.parametrize("helper", HELPERS)


def adapted(helper, schedule="mpvg", start="fresh"):
    """(the model before, the adapted model, inputs); PE is made large, so that losing it would show."""
    build, adapt, shape = HELPERS[helper]
    before = build().eval()
    model = adapt(copy.deepcopy(before), schedule, start=start)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, NormWithPE) and start == "fresh":
                module.pe_norm.weight.normal_()
                module.pe_norm.bias.normal_()
    return before, model, torch.randn(*shape)


def adapted_name(key, ours):
    """Where an adapted torchvision ViT keeps the parameter of this name: by the rule of adapt/deliver.py."""
    first, words = ours.pe.depth - len(ours.pe.norms), key.split(".")
    if key.startswith("pe.norms."):
        key = f"blocks.{first + int(words[2])}.norm1.pe_norm.{words[3]}"
    elif ".norm1." in key and int(words[1]) >= first:
        key = key.replace("norm1", "norm1.norm")
    elif key.startswith("last_norm.") and ours.last_norm.pe_norm is not None:
        key = key.replace("token_norm", "token_norm.norm").replace("last_norm.pe_norm", "last_norm.token_norm.pe_norm")
    elif key == "pe.pos_embed" and not ours.pe.schedule.add_at_input:
        key += "_delivered"
    return torchvision_name(key)


@pytest.mark.parametrize("schedule", [*SCHEDULES, PESchedule(False, 3, False, "delivered")], ids=str)
def test_an_adapted_torchvision_vit_with_our_weights_is_our_vit(schedule):
    ours = ViT(image_size=16, patch_size=4, width=16, depth=4, heads=2, mlp_ratio=2, num_classes=5, pool="cls",
               pe=schedule).eval()
    spread(ours)
    theirs = adapt_torchvision_vit(torchvision_vit(), schedule).eval()
    theirs.load_state_dict({adapted_name(key, ours): weight for key, weight in ours.state_dict().items()})     # strict
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(theirs(images), ours(images), rtol=1e-5, atol=1e-5)


@every_helper
def test_evaluation_sees_the_pe_that_training_sees(helper):
    """No dropout here, so both modes must agree; nn.TransformerEncoderLayer has a fused path for evaluation alone."""
    before, model, inputs = adapted(helper)
    with torch.no_grad():
        evaluated, trained = model.eval()(inputs), model.train()(inputs)
        assert (evaluated - before(inputs)).abs().max() > 0.01
    torch.testing.assert_close(evaluated, trained, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("helper", ["torchvision", "timm"])
def test_once_leaves_a_model_with_its_own_pe_untouched(helper):
    before, model, inputs = adapted(helper, "once")
    assert list(model.state_dict()) == list(before.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert torch.equal(model.eval()(inputs), before(inputs))


def test_once_adds_a_new_pe_to_the_tokens_and_nowhere_else():
    before, model, inputs = adapted("encoder", "once")
    torch.testing.assert_close(model.eval()(inputs), before(inputs + model.pos_embed))
    assert not any(isinstance(m, NormWithPE) for m in model.modules())


@pytest.mark.parametrize("build, conv, adapt", [
    (torchvision_vit, "conv_proj", adapt_torchvision_vit),
    (swin, "features.0.0", lambda model: adapt_swin(model, 16))], ids=["torchvision", "swin"])
def test_models_of_gray_images(build, conv, adapt):
    model = build()
    rgb = model.get_submodule(conv)
    model.set_submodule(conv, nn.Conv2d(1, rgb.out_channels, rgb.kernel_size, rgb.stride))
    assert adapt(model)(torch.randn(2, 1, 16, 16)).shape == (2, 5)


class Words(nn.Module):
    """An encoder whose layers are called by keyword, with a class token before the others, in the layout (N, B, D)."""

    def __init__(self):
        super().__init__()
        self.layers, self.norm = encoder(False).layers, nn.LayerNorm(16)

    def forward(self, x):
        x = torch.cat([torch.ones_like(x[:1]), x])
        for layer in self.layers:
            x = layer(src=x)
        return self.norm(x)


@torch.no_grad()
def test_a_class_token_and_keywords_in_the_layout_n_b_d():
    model, x, pe = Words().eval(), torch.randn(4, 3, 16), nn.Parameter(torch.randn(4, 1, 16))
    first = model.layers[0]
    rows = torch.cat([torch.zeros(1, 1, 16), pe])                       # the class token has no place: no PE
    expected = model.norm(functools.reduce(lambda x, layer: layer(x), model.layers,
                                           torch.cat([torch.ones(1, 3, 16), x]) + rows))
    add_layerwise_pe(model, norms=[layer.norm1 for layer in model.layers], last_norm=model.norm, pe=pe, schedule="once",
                     add_before=first, prefix=1, batch_dim=1, example=x)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("helper, schedule", [
    *product(HELPERS, ("pvg", "mpvg")), *product(("encoder", "swin"), ("once", "lape"))])
def test_start_same_has_the_old_outputs_and_gradients_within_two_steps(helper, schedule):
    before, model, inputs = adapted(helper, schedule, start="same")
    assert torch.equal(model.eval()(inputs), before(inputs))
    new = {name: p for name, p in model.named_parameters()
           if any(part in name for part in ("pe_norm", "gate", "pos_embed"))}
    gates = sum(name.endswith("gate") for name in new)
    assert gates >= {"once": 1, "lape": 4, "pvg": 2, "mpvg": 3}[schedule]
    target = torch.randn_like(before(inputs))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    received = set()
    for _ in range(2):
        optimizer.zero_grad()
        (model(inputs) * target).sum().backward()
        received |= {name for name, p in new.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
    assert received == set(new)


@every_helper
def test_copies_checkpoints_and_averages_follow_their_own_weights(helper):
    _, model, inputs = adapted(helper)
    clone, averaged = copy.deepcopy(model), AveragedModel(model)
    expected = model.eval()(inputs).detach()
    changed = spread(model, 0.5)(inputs).detach()
    assert (changed - expected).abs().max() > 0.01
    torch.testing.assert_close(clone.eval()(inputs), expected)
    torch.testing.assert_close(averaged.eval()(inputs), expected)
    averaged.update_parameters(model)                       # the first update takes the weights over
    torch.testing.assert_close(averaged(inputs), changed)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    clone.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(clone(inputs), changed)
    assert len({id(p) for p in clone.parameters()} & {id(p) for p in model.parameters()}) == 0


def test_distributed_data_parallel_sees_every_parameter_used(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for helper in HELPERS.keys() - {"timm"}:
            _, model, inputs = adapted(helper)
            parallel = nn.parallel.DistributedDataParallel(model.train())
            for _ in range(2):                              # a parameter without a gradient ends the second one
                parallel(inputs).square().sum().backward()
            assert all(p.grad is not None for p in model.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_compiled_and_exported_models_keep_pe():
    for helper in ("torchvision", "encoder"):
        _, model, inputs = adapted(helper)
        with torch.no_grad():
            expected = model.eval()(inputs)
            compiled = torch.compile(model, backend="eager", fullgraph=True)(inputs)
            exported = torch.export.export(model, (inputs,)).module()(inputs)
        torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(exported, expected, rtol=1e-5, atol=1e-5)
