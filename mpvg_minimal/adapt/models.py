"""Layer-wise PE and MPVG in a transformer that exists already: one call, nothing else of the model is touched.

    model = adapt_torchvision_vit(torchvision.models.vit_b_16(weights="DEFAULT"), schedule="mpvg", start="same")

Every pre-attention LayerNorm that is to receive PE, and the last norm, is replaced by `NormWithPE` (norm_with_pe.py).
What happens to the names in `state_dict`: a norm called NAME.weight becomes NAME.norm.weight (bias likewise), new
are NAME.pe_norm.* and, with start="same", NAME.gate. A new p_0 is called pos_embed. All else keeps its name.
Source: equations as in layerwise_pe.py; `start` and all of this file are ours. Shapes: B inputs, N tokens, D width.
"""
from dataclasses import replace

import torch
from torch import nn

from ..layerwise_pe import PESchedule
from ..patch_embed import pair
from .norm_with_pe import NormWithPE, PEAtInput, add_pe_first


def add_layerwise_pe(model: nn.Module, *, norms: list[nn.Module], last_norm: nn.Module | None, pe: nn.Parameter,
                     schedule: str | PESchedule = "mpvg", add_before: nn.Module | None = None,
                     start: str = "fresh") -> nn.Module:
    """The same model, in place, with PE delivered as the schedule says. Make the optimizer afterwards.

    norms: its own pre-attention norms, in order. last_norm: its final one, on all tokens. pe: its own position
    parameter, which it adds to the tokens by itself, or a new one, such as nn.Parameter(0.02 * torch.randn(1, N, D)).
    add_before: the first block, where a PE that the model does not add by itself is added.
    start: "fresh" (PE's affines begin at (1, 0), as in `ViT`) or "same" (a pretrained model begins with its old
    logits, by gates of zero; every new parameter has a gradient from the second step on).
    Where the schedule does not add PE at the input and the model would, p_0 moves to NAME_delivered and NAME is zero.
    ValueError if something is not part of the model, has another width, or contradicts the schedule.
    """
    schedule = PESchedule.named(schedule) if isinstance(schedule, str) else schedule
    receiving = [] if schedule.first_block is None else norms[schedule.first_block - 1:]
    _check(model, norms, last_norm, pe, schedule, start)
    own, gate = add_before is None, start == "same"
    owner, name = _find_parameter(model, pe)
    if owner is None:
        if own and schedule.add_at_input:
            raise ValueError("a new pe has to be added at the input: name the first block as add_before")
        model.pos_embed = pe
        owner, name = model, "pos_embed"
    elif own and not schedule.add_at_input:
        if gate:
            raise ValueError('start="same" needs a schedule that keeps PE at the input, where the model has it')
        delattr(owner, name)
        owner.register_buffer(name, torch.zeros_like(pe.detach()), persistent=False)
        name = f"{name}_delivered"
        setattr(owner, name, pe)
    if not own and schedule.add_at_input:
        add_before.pe_at_input = PEAtInput((owner, name), gate=gate)
        add_before.register_forward_pre_hook(add_pe_first)
    source = (owner, name)
    for norm in receiving:
        wrapped = NormWithPE(norm, source, gate=gate)
        _replace(model, norm, wrapped)
        if schedule.hierarchical:
            source = (wrapped, "delivered")
    if schedule.at_last_norm is not None:
        source = (wrapped, "delivered") if schedule.at_last_norm == "delivered" else (owner, name)
        _replace(model, last_norm, NormWithPE(last_norm, source, gate=gate))
    return model


def _check(model, norms, last_norm, pe, schedule, start) -> None:
    schedule.check(len(norms))
    if start not in ("fresh", "same"):
        raise ValueError(f'start is {start!r}, expected "fresh" or "same"')
    if not schedule.uses_pe:
        raise ValueError('the schedule delivers no PE ("none"): there is nothing to add')
    if schedule.at_last_norm is not None and last_norm is None:
        raise ValueError("the schedule delivers PE to the last norm, but the model has none on all tokens: give it one "
                         'or choose schedule="pvg"')
    modules = [module for _, module in model.named_modules(remove_duplicate=False)]
    for norm in [*norms, *([] if last_norm is None else [last_norm])]:
        times, width = sum(module is norm for module in modules), getattr(norm, "normalized_shape", pe.shape[-1:])
        if isinstance(norm, NormWithPE):
            raise ValueError("this model has layer-wise PE already")
        if times != 1:
            raise ValueError(f"a norm of width {tuple(width)} is in the model {times} times, expected once")
        if tuple(width) != tuple(pe.shape[-1:]):
            raise ValueError(f"a norm is for width {tuple(width)}, but pe has shape {tuple(pe.shape)}")


def _find_parameter(model: nn.Module, wanted: nn.Parameter) -> tuple[nn.Module | None, str]:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter is wanted:
                return module, name
    return None, ""


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    path = next(path for path, module in model.named_modules() if module is old)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)


def adapt_torchvision_vit(model: nn.Module, schedule: str | PESchedule = "mpvg", *, start: str = "fresh") -> nn.Module:
    """torchvision's `VisionTransformer`: its own PE, its class token included."""
    encoder = model.encoder
    return add_layerwise_pe(model, norms=[layer.ln_1 for layer in encoder.layers], last_norm=encoder.ln,
                            pe=encoder.pos_embedding, schedule=schedule, start=start)


def adapt_timm_vit(model: nn.Module, schedule: str | PESchedule = "mpvg", *, start: str = "fresh") -> nn.Module:
    """timm's `VisionTransformer`, DeiT included. For GAP build it with fc_norm=False, so that a last norm exists."""
    last_norm = None if isinstance(model.norm, nn.Identity) else model.norm
    return add_layerwise_pe(model, norms=[block.norm1 for block in model.blocks], last_norm=last_norm,
                            pe=model.pos_embed, schedule=schedule, start=start)


def adapt_encoder(encoder: nn.TransformerEncoder, length: int, schedule: str | PESchedule = "mpvg", *,
                  start: str = "fresh") -> nn.TransformerEncoder:
    """`nn.TransformerEncoder` of layers with norm_first=True, for sequences of `length` tokens, with a new PE."""
    first = encoder.layers[0]
    if not first.norm_first:
        raise ValueError("the layers have norm_first=False: PE is added after a norm that comes before the attention")
    p = torch.empty(length, first.norm1.normalized_shape[0], device=first.norm1.weight.device)      # (N, D)
    nn.init.trunc_normal_(p, std=0.02)
    return add_layerwise_pe(encoder, norms=[layer.norm1 for layer in encoder.layers], last_norm=encoder.norm,
                            pe=nn.Parameter(p[None] if first.self_attn.batch_first else p[:, None]),
                            schedule=schedule, add_before=first, start=start)


def adapt_swin(model: nn.Module, image_size: int | tuple[int, int], schedule: str | PESchedule = "mpvg", *,
               start: str = "fresh") -> nn.Module:
    """torchvision's `SwinTransformer` (not V2, which normalises after the attention): a new PE for each stage.

    The schedule is meant stage by stage, in the layout (B, H, W, D); the last norm gets the last stage's PE.
    """
    schedule = PESchedule.named(schedule) if isinstance(schedule, str) else schedule
    stages = [stage for stage in model.features if hasattr(next(stage.children()), "norm1")]
    if any("V2" in type(block).__name__ for stage in stages for block in stage):
        raise ValueError("SwinTransformer V2 normalises after the attention: no norm is there to add PE to")
    patch = model.features[0][0].stride
    rows, columns = ((side - step) // step + 1 for side, step in zip(pair(image_size), patch))
    for stage in stages:
        last, weight = stage is stages[-1], stage[0].norm1.weight
        p = nn.init.trunc_normal_(torch.empty(1, rows, columns, len(weight), device=weight.device), std=0.02)
        of_stage = schedule if last else replace(schedule, at_last_norm=None)
        if of_stage.uses_pe:
            stage.pos_embed = nn.Parameter(p)
            add_layerwise_pe(model, norms=[block.norm1 for block in stage], last_norm=model.norm if last else None,
                             pe=stage.pos_embed, schedule=of_stage, add_before=stage[0], start=start)
        rows, columns = -(-rows // 2), -(-columns // 2)                 # what patch merging leaves
    return model
