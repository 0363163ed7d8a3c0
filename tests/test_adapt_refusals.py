"""What cannot be adapted is refused before it is touched; what nearly went wrong without a word is right now.

Most of timm's models that are refused stand in test_adapt_table.py.
"""
import copy
import pickle
from itertools import product

import pytest
import torch
import torchvision
from test_adapt import encoder, swin, timm_vit, torchvision_vit
from torch import nn

from mpvg_minimal.adapt import (
    NormWithPE,
    adapt_encoder,
    adapt_swin,
    adapt_timm_vit,
    adapt_torchvision_vit,
    add_layerwise_pe,
)


def state_of(model):
    """What adapting may not change when it refuses: modules, hooks, modes, parameters."""
    return ([(name, id(module), module.training, len(module._forward_pre_hooks), len(module._forward_hooks))
             for name, module in model.named_modules()],
            [(name, id(value), value.device) for name, value in model.state_dict(keep_vars=True).items()])


def refused(adapt, model, message):
    model.eval()
    before = state_of(model)
    with pytest.raises(ValueError, match=message) as caught:
        adapt(model)
    assert "\n" not in str(caught.value) and state_of(model) == before


class PostNorm(nn.TransformerEncoderLayer):
    """The name and norm_first=True promise a pre-norm layer; the forward pass is another."""

    def forward(self, src, *_, **__):
        src = src + self.norm1(self._sa_block(src, None, None))
        return src + self.norm2(self._ff_block(src))


@pytest.mark.parametrize("number", [1, 3])
def test_one_layer_that_normalizes_after_the_attention_is_enough(number):
    model = encoder()
    model.layers[number] = PostNorm(16, 2, 32, norm_first=True, batch_first=True)
    refused(lambda model: adapt_encoder(model, 16), model, rf"layers\.{number}\.norm1 does not receive what enters its "
                                                           "PostNorm.*pre-norm blocks")
    model = encoder()
    model.layers[number].norm_first = False
    refused(lambda model: adapt_encoder(model, 16), model, rf"layers\.{number}\.norm1 .*norm_first=False")


def test_mistakes_are_named():
    model = torchvision_vit()
    parts = dict(norms=[layer.ln_1 for layer in model.encoder.layers], last_norm=model.encoder.ln,
                 pe=model.encoder.pos_embedding)
    wrong = nn.Parameter(torch.zeros(1, 17, 8))
    for changed, message in [({"pe": wrong}, r"width \(16,\), but pe has shape \(1, 17, 8\)"),
                             ({"pe": nn.Parameter(torch.zeros(1, 17, 16))}, "add_before"),
                             ({"last_norm": nn.LayerNorm(16)}, "0 times"), ({"last_norm": None}, "has none"),
                             ({"norms": parts["norms"][:1]}, "first_block is 2, but the model has 1"),
                             ({"schedule": "none"}, "nothing to add"), ({"start": "warm"}, "'warm'"),
                             ({"schedule": "lape", "start": "same"}, "at the input")]:
        refused(lambda model: add_layerwise_pe(model, **{**parts, **changed}), model, message)


def test_the_norms_that_are_given_are_watched_too():
    model = torchvision_vit().eval()
    layers, example = list(model.encoder.layers), torch.empty(2, 3, 16, 16)

    def adapt(norms, **options):
        return lambda model: add_layerwise_pe(model, norms=norms, last_norm=model.encoder.ln, example=example,
                                              pe=model.encoder.pos_embedding, **options)

    refused(adapt([layer.ln_2 for layer in layers]), model, r"encoder_layer_1\.ln_2 does not receive")
    refused(adapt([layer.ln_1 for layer in reversed(layers)]), model, "in the order of the forward pass")
    refused(adapt([layer.ln_1 for layer in layers], prefix=1), model,
            r"\(2, 17, 16\) arrive .* PE has shape \(1, 18, 16\)")
    example = torch.empty(2, 3, 20, 20)
    refused(adapt([layer.ln_1 for layer in layers]), model, "Wrong image height")
    model.encoder.layers[2].unused = nn.LayerNorm(16)
    example = torch.empty(2, 3, 16, 16)
    refused(adapt([layers[0].ln_1, layers[2].unused]), model, r"encoder_layer_2\.unused is called 0 times")


@pytest.mark.parametrize("first", ["once", "pvg"])
def test_adapting_twice_is_refused(first):
    refused(lambda model: adapt_encoder(model, 16), adapt_encoder(encoder(), 16, first), "already")
    refused(lambda model: adapt_swin(model, 16), adapt_swin(swin(), 16, first), "already")
    if first == "pvg":                      # "once" leaves a model with its own PE as it is
        refused(adapt_torchvision_vit, adapt_torchvision_vit(torchvision_vit(), first), "already")
        refused(adapt_timm_vit, adapt_timm_vit(timm_vit(), first), "already")


def test_pe_is_added_at_the_input_once():
    """A new pe beside a pos_embed, or an own one with add_before, would be added twice."""
    class Vit(nn.Module):
        def __init__(self, pe):
            super().__init__()
            self.pos_embed, self.blocks, self.norm = pe, encoder().layers, nn.LayerNorm(16)

    def adapt(pe):
        return lambda model: add_layerwise_pe(model, norms=[block.norm1 for block in model.blocks], pe=pe,
                                              last_norm=model.norm, add_before=model.blocks[0])

    own, new = nn.Parameter(torch.randn(1, 16, 16)), nn.Parameter(torch.randn(1, 16, 16))
    refused(adapt(new), Vit(own), "has an attribute pos_embed already")
    refused(adapt(new), Vit(None), "has an attribute pos_embed already")
    refused(adapt(own), Vit(own), "leave add_before out")
    model = nn.Sequential(encoder().layers[0], encoder().layers[1])
    refused(lambda model: add_layerwise_pe(nn.Sequential(model), norms=[b.norm1 for b in model], last_norm=None, pe=new,
                                           schedule="pvg", add_before=model), model, "not a sequence of blocks")


@pytest.mark.parametrize("batch_first", [True, False])
def test_one_row_of_pe_is_for_sequences_of_one_token(batch_first):
    model = adapt_encoder(encoder(batch_first), 1)
    assert model(torch.randn(*(3, 1, 16) if batch_first else (1, 3, 16))).isfinite().all()
    tokens = torch.randn(*(3, 10, 16) if batch_first else (10, 3, 16))
    with pytest.raises(ValueError, match=r"\(\d+, \d+, 16\) do not fit PE of shape \(1, 1, 16\)"):
        model(tokens)
    with pytest.raises(ValueError, match="length is 0"):
        adapt_encoder(encoder(), 0)


def test_encoders_without_layers_and_decoders_are_refused():
    empty = nn.TransformerEncoder(encoder().layers[0], 0)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, norm_first=True, batch_first=True), 2)
    refused(lambda model: adapt_encoder(model, 16), empty, r"TransformerEncoder without layers\.0")
    refused(lambda model: adapt_encoder(model, 16), decoder, "forward pass of TransformerDecoder .* 'memory'")


@pytest.mark.parametrize("schedule", ["lape", "mpvg"])
def test_tokens_without_a_place_are_given_no_pe(schedule):
    """DeiT-III, DINOv2 with registers: PE has no rows for the class token and the registers."""
    model = adapt_timm_vit(timm_vit(no_embed_class=True, reg_tokens=2), schedule).eval()
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, NormWithPE):
            module.register_forward_hook(lambda norm, inputs, output, name=name: seen.update({name: (
                output - norm.norm(inputs[0]), norm.delivered)}))
    model(torch.randn(2, 3, 16, 16))
    assert len(seen) == 4
    for added, delivered in seen.values():
        assert added.shape == (2, 19, 16) and delivered.shape == (1, 16, 16)
        assert torch.equal(added[:, :3], torch.zeros(2, 3, 16)) and delivered.std() > 0.5
        torch.testing.assert_close(added[:, 3:], delivered.expand(2, -1, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("start", ["fresh", "same"])
@pytest.mark.parametrize("kind", ["encoder", "swin"])
def test_a_new_pe_has_the_models_data_type(kind, start, dtype):
    """A forward pass on the meta device fails where two data types meet in a product."""
    build, adapt, shape = {"encoder": (encoder, lambda m: adapt_encoder(m, 16, start=start), (2, 16, 16)),
                           "swin": (swin, lambda m: adapt_swin(m, 16, start=start), (2, 3, 16, 16))}[kind]
    model = adapt(build().to(dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert 0.015 < model.pos_embed.double().std() < 0.02                    # truncated at two
    assert model.to("meta")(torch.empty(*shape, dtype=dtype, device="meta")).dtype == dtype


@pytest.mark.parametrize("model, message", [("resnet18", "ResNet without"), ("convnext_tiny", "ConvNeXt without")])
def test_torchvisions_others_are_refused_by_every_helper(model, message):
    with torch.device("meta"):
        model = getattr(torchvision.models, model)()
    for adapt in (adapt_torchvision_vit, adapt_timm_vit, lambda m: adapt_encoder(m, 16), lambda m: adapt_swin(m, 224)):
        refused(adapt, model, message)


def test_looking_leaves_no_trace():
    """One pass to look at the model: modes, buffers, random numbers are as before, also with BatchNorm and dropout."""
    model = torchvision_vit()
    model.conv_proj = nn.Sequential(model.conv_proj, nn.BatchNorm2d(16), nn.Dropout(0.5))
    model.encoder.layers[1].eval()
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    adapt_torchvision_vit(model, "once")
    assert [module.training for module in model.modules()] == modes and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers()) and buffers
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("schedule", ["lape", "mpvg"])
def test_timms_optimizers_do_not_decay_p_0(schedule):
    groups = pytest.importorskip("timm.optim").param_groups_weight_decay
    model = adapt_timm_vit(timm_vit(), schedule)
    p = model.pos_embed_delivered if schedule == "lape" else model.pos_embed
    for which in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        group, = (group for group in groups(which, 0.05, no_weight_decay_list=which.no_weight_decay())
                  if not group["weight_decay"])
        decayed = {name for name, q in which.named_parameters() if not any(q is free for free in group["params"])}
        assert all(name.endswith(".weight") and "pe_norm" not in name for name in decayed)
        assert which.no_weight_decay() >= {"pos_embed", "cls_token"}
    assert p.ndim == 3 and p.requires_grad


@pytest.mark.parametrize("start", ["fresh", "same"])
def test_the_names_in_a_checkpoint_are_as_the_rule_says(start):
    """The rule of adapt/deliver.py, where PE is new. Where it is the model's own: adapted_name in test_adapt.py."""
    model, receiving = encoder(), ["layers.1.norm1", "layers.2.norm1", "layers.3.norm1", "norm"]
    affines = list(product(receiving, ("weight", "bias")))
    kept = set(model.state_dict()) - {f"{norm}.{part}" for norm, part in affines}
    new = {f"{norm}.{inner}.{part}" for norm, part in affines for inner in ("norm", "pe_norm")} | {"pos_embed"}
    gates = {f"{norm}.gate" for norm in receiving} | {"layers.0.pe_at_input.gate"} if start == "same" else set()
    assert set(adapt_encoder(model, 16, start=start).state_dict()) == kept | new | gates
