"""One line for the transformers of torchvision, timm and torch.

    model = adapt_torchvision_vit(torchvision.models.vit_b_16(weights="DEFAULT"), schedule="mpvg", start="same")

Each helper finds the parts of the model and hands them to `add_layerwise_pe` (deliver.py). ValueError, before anything
is changed, for a model that is something else or cannot be adapted; README.md has a table of both kinds.

Source: ours. Shapes: B inputs, N tokens, D width.
"""
import torch
from torch import nn

from ..layerwise_pe import PESchedule
from .check import check_not_adapted
from .deliver import add_layerwise_pe


def adapt_torchvision_vit(model: nn.Module, schedule: str | PESchedule = "mpvg", *, start: str = "fresh") -> nn.Module:
    """torchvision's `VisionTransformer`: its own PE, its class token included."""
    takes = "torchvision's VisionTransformer"
    pe = part(model, "encoder.pos_embedding", takes)
    size, convolutions = part(model, "image_size", takes), part(model, "conv_proj", takes).modules()
    channels = next((m.in_channels for m in convolutions if isinstance(m, nn.Conv2d)), 3)
    return add_layerwise_pe(model, norms=first_norms(part(model, "encoder.layers", takes), "ln_1", takes),
                            last_norm=part(model, "encoder.ln", takes), pe=pe, schedule=schedule, start=start,
                            example=pe.new_empty(2, channels, size, size))


def adapt_timm_vit(model: nn.Module, schedule: str | PESchedule = "mpvg", *, start: str = "fresh") -> nn.Module:
    """timm's `VisionTransformer` and its kin: DeiT, DINOv2, EVA. For GAP build it with fc_norm=False, so that a last
    norm exists. Class and register tokens without a PE of their own (DeiT-III, DINOv2 with registers) are given none.
    """
    takes = "timm's VisionTransformer of pre-norm blocks"
    norms, pe = first_norms(part(model, "blocks", takes), "norm1", takes), part(model, "pos_embed", takes)
    if not isinstance(pe, nn.Parameter):
        found = "None" if pe is None else f"a {type(pe).__name__}"
        raise ValueError(f"pos_embed of this {type(model).__name__} is {found}, expected an nn.Parameter: layer-wise "
                         "PE hands on a learnt absolute PE; build the model with one, if it has the option")
    if getattr(model, "dynamic_img_size", False):
        raise ValueError("dynamic_img_size=True resamples PE at the input for each image size, and the delivered PE "
                         "would keep the old grid: build the model for one size (img_size=..., dynamic_img_size=False)")
    last_norm = getattr(model, "norm", None)
    size, channels = part(model, "patch_embed.img_size", takes), getattr(model, "in_chans", 3)
    return add_layerwise_pe(model, norms=norms, last_norm=None if isinstance(last_norm, nn.Identity) else last_norm,
                            pe=pe, schedule=schedule, start=start, example=pe.new_empty(2, channels, *size),
                            prefix=model.num_prefix_tokens if getattr(model, "no_embed_class", False) else 0)


def adapt_encoder(encoder: nn.TransformerEncoder, length: int, schedule: str | PESchedule = "mpvg", *,
                  start: str = "fresh") -> nn.TransformerEncoder:
    """`nn.TransformerEncoder` of layers with norm_first=True, for sequences of `length` tokens, with a new PE."""
    takes = "nn.TransformerEncoder"
    attention, norms = part(encoder, "layers.0.self_attn", takes), first_norms(encoder.layers, "norm1", takes)
    if not isinstance(length, int) or length < 1:
        raise ValueError(f"length is {length!r}, expected the number of tokens of a sequence")
    weight, width = attention.out_proj.weight, attention.embed_dim
    shape = (1, length, width) if attention.batch_first else (length, 1, width)
    return add_layerwise_pe(encoder, norms=norms, last_norm=part(encoder, "norm", takes),
                            pe=new_pe(shape, weight), schedule=schedule, add_before=encoder.layers[0], start=start,
                            example=weight.new_empty(shape), batch_dim=int(not attention.batch_first))


def new_pe(shape: tuple[int, ...], like: torch.Tensor) -> nn.Parameter:
    """A new p_0: truncated normal, std 0.02, drawn in float32, on the device and in the data type of `like`."""
    p = torch.empty(shape, device=like.device, dtype=torch.float32)
    return nn.Parameter(nn.init.trunc_normal_(p, std=0.02).to(like.dtype))


def first_norms(blocks: nn.Module, name: str, takes: str) -> list[nn.Module]:
    """The pre-attention norm of every block. ValueError if a block has none of this name."""
    return [part(block, name, takes) for block in blocks]


def part(model: nn.Module, path: str, takes: str):
    """What the model has at this path. ValueError if it has nothing there or is adapted already."""
    check_not_adapted(model)
    found = model
    for name in path.split("."):
        if not hasattr(found, name):
            raise ValueError(f"found a {type(model).__name__} without {path}, but this helper takes {takes}: take the "
                             "helper for this model, or add_layerwise_pe, if it has pre-attention norms")
        found = getattr(found, name)
    return found
