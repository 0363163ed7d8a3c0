"""MPVG in Swin as the paper has it: one absolute PE, through all stages, against equations written anew."""

import pytest
import torch
import torchvision
from test_adapt import SCHEDULES, spread, swin
from test_adapt_refusals import refused
from torch import nn
from torch.nn.functional import layer_norm, linear, pad

from mpvg_minimal import PESchedule
from mpvg_minimal.adapt import NormWithPE, adapt_swin, resize_swin_pe

OTHERS = [PESchedule(True, 2, False, "initial"), PESchedule(False, 3, True, "delivered"), PESchedule(True, 1, True, 2)]
SIZE = (18, 14)                                                     # 9 x 7 patches: merging has to pad them


def adapted(schedule="mpvg", dtype=torch.float64):
    return adapt_swin(spread(swin()).to(dtype), SIZE, schedule), torch.randn(2, 3, *SIZE, dtype=dtype)


def merge_by_hand(p, model):
    """(1, H, W, D) -> (1, H / 2, W / 2, 2 D): four neighbors side by side, normalized, mapped."""
    merging = model.features[2]
    p = pad(p, (0, 0, 0, p.shape[2] % 2, 0, p.shape[1] % 2))
    p = torch.cat([p[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=3)
    return linear(layer_norm(p, p.shape[3:], merging.norm.weight, merging.norm.bias, 1e-5), merging.reduction.weight)


def delivered_by_hand(model, schedule):
    """{name of the norm: PE that it delivers}, from the model's weights and the paper's equations alone."""
    if isinstance(schedule, str):
        first = {"once": 99, "lape": 1, "pvg": 1, "mpvg": 1}[schedule]      # Swin: PVG and MPVG include block 1
        schedule = PESchedule(schedule != "lape", first, True, "initial" if schedule == "mpvg" else None)
    weights, result = dict(model.named_parameters()), {}

    def normalized(p, name):
        return layer_norm(p, p.shape[3:], weights[f"{name}.pe_norm.weight"], weights[f"{name}.pe_norm.bias"], 1e-6)

    initial = p = last = model.pos_embed
    for number, name in enumerate(["features.1.0", "features.1.1", "features.3.0", "features.3.1"], 1):
        if number == 3:
            initial, p, last = (merge_by_hand(q, model) for q in (initial, p, last))
        if number >= schedule.first_block:
            p = normalized(p if schedule.hierarchical else initial, f"{name}.norm1")
            result[f"{name}.norm1"] = p
            last = p if schedule.at_last_norm in ("delivered", number) else last
    if schedule.at_last_norm is not None:
        result["norm"] = normalized(last, "norm")
    return result


@pytest.mark.parametrize("schedule", SCHEDULES + OTHERS, ids=str)
def test_every_norm_delivers_what_the_equations_say(schedule):
    model, images = adapted(schedule)
    spread(model).eval()
    seen, expected = {}, delivered_by_hand(model, schedule)
    found = {name: module for name, module in model.named_modules() if isinstance(module, NormWithPE)}
    assert set(found) == set(expected)
    for name, module in found.items():
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)}))
    model.features[1][0].norm1.register_forward_hook(lambda _, inputs, output: seen.update(first=inputs[0]))
    model(images)
    for name, module in found.items():
        tokens, output = seen[name]
        torch.testing.assert_close(output - module.norm(tokens), expected[name].expand_as(output))
        assert expected[name].std() > 0.1
    tokens = model.features[0](images)
    added = isinstance(schedule, PESchedule) and schedule.add_at_input or schedule in ("once", "pvg", "mpvg")
    torch.testing.assert_close(seen["first"], tokens + model.pos_embed if added else tokens)


@pytest.mark.parametrize("schedule, total", [("once", "28.589"), ("pvg", "28.598"), ("mpvg", "28.599")])
def test_the_parameters_are_as_many_as_in_the_papers_table_1(schedule, total):
    """In millions, cut after three decimals."""
    with torch.device("meta"):
        model = torchvision.models.swin_t()
        plain = sum(p.numel() for p in model.parameters())
        adapt_swin(model, 224, schedule)
    count = sum(p.numel() for p in model.parameters())
    assert f"{count // 1000 / 1000:.3f}" == total
    assert count - plain == 56 * 56 * 96 + {"once": 0, "pvg": 8832, "mpvg": 8832 + 1536}[schedule]
    assert model.pos_embed.shape == (1, 56, 56, 96)


@pytest.mark.parametrize("hierarchical", [True, False])
def test_every_stage_gives_p_0_a_gradient(hierarchical):
    """Through what is delivered in this stage alone."""
    model, _ = adapted(PESchedule(True, 1, hierarchical, "initial"))
    for name in ("features.1.0.norm1", "features.3.0.norm1", "features.3.1.norm1", "norm"):
        delivered = spread(model).get_submodule(name).delivered
        gradient, = torch.autograd.grad((delivered * torch.randn_like(delivered)).sum(), model.pos_embed)
        assert (gradient.abs().sum(-1) > 1e-6).all()                # at every place


def test_hooks_on_patch_merging_see_tokens_alone():
    """A feature extractor's hook must not be given PE for features."""
    model, images = adapted()
    shapes = []
    model.features[2].register_forward_hook(lambda _, inputs, output: shapes.append(tuple(output.shape)))
    model(images)
    assert shapes == [(2, 5, 4, 32)]


@torch.no_grad()
def test_another_image_size_resizes_p_0():
    model, images = adapted()
    spread(model).eval()
    assert torch.equal(resize_swin_pe(model, SIZE)(images), model(images))
    large = resize_swin_pe(model, (36, 28))
    assert large.pos_embed.shape == (1, 18, 14, 16) and model.pos_embed.shape == (1, 9, 7, 16)
    expected = nn.functional.interpolate(model.pos_embed.permute(0, 3, 1, 2), (18, 14), mode="bicubic", antialias=True)
    torch.testing.assert_close(large.pos_embed, expected.permute(0, 2, 3, 1))
    assert large(torch.randn(2, 3, 36, 28, dtype=torch.float64)).isfinite().all()
    with pytest.raises(ValueError, match="resize_swin_pe"):
        model(torch.randn(2, 3, 36, 28, dtype=torch.float64))
    half = resize_swin_pe(adapted(dtype=torch.float16)[0], 20)
    assert half.pos_embed.dtype == torch.float16 and half.pos_embed.shape == (1, 10, 10, 16)
    with pytest.raises(ValueError, match="adapt it first"):
        resize_swin_pe(swin(), 16)


def test_what_is_no_swin_or_no_size_is_refused_before_it_is_touched():
    class Renamed(torchvision.models.swin_transformer.SwinTransformerBlockV2):
        """Normalizes after the attention, as its name does not say."""

    v2 = torchvision.models.SwinTransformer([2, 2], 16, [2, 2], [2, 2], [4, 4], num_classes=5, block=Renamed,
                                            downsample_layer=torchvision.models.swin_transformer.PatchMergingV2)
    mixed = swin()
    mixed.features[3][1] = Renamed(32, 2, [4, 4], [0, 0])           # one block of the last stage alone
    for model, size, message in [(v2, 16, r"features\.1\.0\.norm1 does not receive what enters its Renamed"),
                                 (mixed, 16, r"features\.3\.1\.norm1 does not receive"),
                                 (nn.Sequential(), 224, "Sequential without features"),
                                 (swin(), (16, 16, 3), r"image size is \(16, 16, 3\)"), (swin(), 1, "at least 2")]:
        refused(lambda model: adapt_swin(model, size), model, message)
