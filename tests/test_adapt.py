"""MPVG inside other people's models: against our `ViT`, against themselves, and learning what only PE can tell."""
import copy
import io

import pytest
import torch
import torchvision
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


def torchvision_vit(layers=4):
    model = torchvision.models.VisionTransformer(image_size=16, patch_size=4, num_layers=layers, num_heads=2,
                                                 hidden_dim=16, mlp_dim=32, num_classes=5)
    nn.init.normal_(model.heads.head.weight)                # torchvision begins with zeros, which would hide all
    return model


def timm_vit():
    timm = pytest.importorskip("timm")
    return timm.models.VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=4, num_heads=2, num_classes=5,
                                         mlp_ratio=2)


def encoder(batch_first=True):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, norm_first=True, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 4, norm=nn.LayerNorm(16), enable_nested_tensor=False)


def swin():
    return torchvision.models.SwinTransformer(patch_size=[2, 2], embed_dim=16, depths=[2, 2], num_heads=[2, 2],
                                              window_size=[4, 4], num_classes=5, stochastic_depth_prob=0.0)


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


def ours_into_torchvision(ours, theirs):
    """Copies the weights; names by hand, so that nothing of adapt.py is used."""
    state = {"class_token": ours.cls_token, "conv_proj.weight": ours.patch_embed.proj.weight,
             "conv_proj.bias": ours.patch_embed.proj.bias, "heads.head.weight": ours.head.weight,
             "heads.head.bias": ours.head.bias}
    pe_norms = dict(zip(range(ours.pe.depth - len(ours.pe.norms), ours.pe.depth), ours.pe.norms))
    parts = []
    for number, block in enumerate(ours.blocks):
        at = f"encoder.layers.encoder_layer_{number}."
        norm = at + ("ln_1.norm." if number in pe_norms else "ln_1.")
        parts += [(norm, block.norm1), (at + "ln_2.", block.norm2), (at + "mlp.0.", block.mlp.fc1),
                  (at + "mlp.3.", block.mlp.fc2), (at + "self_attention.out_proj.", block.attn.proj)]
        if number in pe_norms:
            parts.append((at + "ln_1.pe_norm.", pe_norms[number]))
        state[at + "self_attention.in_proj_weight"] = block.attn.qkv.weight
        state[at + "self_attention.in_proj_bias"] = block.attn.qkv.bias
    last = ours.last_norm
    if last.pe_norm is None:
        parts.append(("encoder.ln.", last.token_norm))
    else:
        parts += [("encoder.ln.norm.", last.token_norm), ("encoder.ln.pe_norm.", last.pe_norm)]
    for prefix, module in parts:
        state |= {prefix + "weight": module.weight, prefix + "bias": module.bias}
    moved = "_delivered" if not ours.pe.schedule.add_at_input else ""
    state["encoder.pos_embedding" + moved] = ours.pe.pos_embed
    theirs.load_state_dict(state)                           # strict: every name has to be as the rule says


@pytest.mark.parametrize("schedule", [*SCHEDULES, PESchedule(False, 3, False, "delivered")], ids=str)
def test_an_adapted_torchvision_vit_with_our_weights_is_our_vit(schedule):
    ours = ViT(image_size=16, patch_size=4, width=16, depth=4, heads=2, mlp_ratio=2, num_classes=5, pool="cls",
               pe=schedule).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    theirs = adapt_torchvision_vit(torchvision_vit(), schedule).eval()
    ours_into_torchvision(ours, theirs)
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


@every_helper
@pytest.mark.parametrize("schedule", ["pvg", "mpvg"])
def test_start_same_has_the_old_outputs_and_gradients_within_two_steps(helper, schedule):
    before, model, inputs = adapted(helper, schedule, start="same")
    assert torch.equal(model.eval()(inputs), before(inputs))
    new = {name: p for name, p in model.named_parameters() if "pe_norm" in name or "gate" in name}
    new |= {name: p for name, p in model.named_parameters() if "pos_embed" in name}
    assert sum(name.endswith("gate") for name in new) >= (2 if schedule == "pvg" else 3)
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
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    changed = model(inputs).detach()
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
            compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(inputs)
            exported = torch.export.export(model, (inputs,)).module()(inputs)
        torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(exported, expected, rtol=1e-5, atol=1e-5)


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
        with pytest.raises(ValueError, match=message):
            add_layerwise_pe(model, **{**parts, **changed})
    assert list(model.state_dict()) == list(torchvision_vit().state_dict())     # refused before anything was done
    with pytest.raises(ValueError, match="already"):
        adapt_torchvision_vit(adapt_torchvision_vit(torchvision_vit()))
    with pytest.raises(ValueError, match=r"\(2, 9, 16\) do not fit PE of shape \(1, 16, 16\)"):
        adapt_encoder(encoder(), 16)(torch.randn(2, 9, 16))
    with pytest.raises(ValueError, match="norm_first=False"):
        adapt_encoder(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2), 16)
    with pytest.raises(ValueError, match="V2"):
        adapt_swin(torchvision.models.swin_v2_t(), 224)


def sequence_accuracy(schedule):
    """Is the one marked token in the first half? Tokens are drawn alike everywhere, so only PE can tell."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 16), encoder())
    if schedule:
        adapt_encoder(model[1], 16, schedule)
    head = nn.Linear(16, 2)

    def batch(size):
        words, place = torch.randint(1, 6, (size, 16)), torch.randint(16, (size,))
        words[range(size), place] = 0
        return words, (place < 8).long()

    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    for _ in range(250):
        words, label = batch(64)
        loss = nn.functional.cross_entropy(head(model(words).mean(1)), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    words, label = batch(2000)
    with torch.no_grad():
        return (head(model.eval()(words).mean(1)).argmax(1) == label).double().mean().item()


def test_a_sequence_task_where_position_decides_is_learnt_with_pe_alone():
    assert sequence_accuracy("mpvg") > 0.95
    assert 0.4 < sequence_accuracy(None) < 0.6
