"""MPVG in Swin, as the paper has it: one absolute PE at the first stage, which serves all stages.

    model = adapt_swin(torchvision.models.swin_t(weights="DEFAULT"), 224, schedule="mpvg", start="same")

p_0 (1, H, W, D) is added to the tokens before the first block, in the default model ("once") too. PVG and MPVG deliver
PE from block 1 on (paper: Swin "exceptionally includes layer 0"), block by block across all stages. From one stage to
the next PE goes through the model's own patch merging, as the tokens do: our inference from Table 1, whose parameter
counts leave no room for more. For Swin-Ti, theirs and ours in millions: 28.589 (once), 28.598 (PVG), 28.599 (MPVG).

Source: paper, Table 1 and text; the patch merging and all the rest are ours.
Shapes: H x W patches of the first stage, D its width; stage s has H / 2^s x W / 2^s tokens of width 2^s D.
"""
import copy
from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import interpolate

from ..layerwise_pe import PESchedule
from ..patch_embed import pair
from .deliver import add_layerwise_pe
from .models import first_norms, new_pe, part


def adapt_swin(model: nn.Module, image_size: int | tuple[int, int], schedule: str | PESchedule = "mpvg", *,
               start: str = "fresh") -> nn.Module:
    """torchvision's `SwinTransformer` (not V2, which normalizes after the attention), for images of this size.

    Blocks are counted through all stages. The names "pvg" and "mpvg" start at block 1; a `PESchedule` stays as it is.
    """
    takes = "torchvision's SwinTransformer"
    features, last_norm = part(model, "features", takes), part(model, "norm", takes)
    if not hasattr(part(model, "features.0.0", takes), "stride") or not isinstance(features[1], nn.Sequential):
        raise ValueError(f"found a {type(model).__name__} whose features are no patches and stages: expected {takes}")
    if isinstance(schedule, str):
        named = PESchedule.named(schedule)
        schedule = replace(named, first_block=1) if schedule in ("pvg", "mpvg") else named
    norms, carry = [], {}
    for number, stage in enumerate(features[1:]):                   # stage, patch merging, stage, ...
        if number % 2:
            carry[len(norms) + 1] = stage                           # merges before the next block
        else:
            norms += first_norms(stage, "norm1", takes)
    weight, grid = features[0][0].weight, _grid(model, image_size)  # the patches' convolution: (D, 3, P, P)
    return add_layerwise_pe(model, norms=norms, last_norm=last_norm, pe=new_pe((1, *grid, len(weight)), weight),
                            schedule=schedule, add_before=features[1][0], start=start, carry=carry,
                            example=weight.new_empty(2, weight.shape[1], *pair(image_size)))


@torch.no_grad()
def resize_swin_pe(model: nn.Module, image_size: int | tuple[int, int]) -> nn.Module:
    """A copy of an adapted Swin for images of another size: p_0 is interpolated as in `resize_pe`.

    Every delivered PE follows, since only p_0 is stored. With the same size the logits are bitwise the same.
    """
    if getattr(model, "pos_embed", None) is None or not hasattr(model, "features"):
        raise ValueError(f"this {type(model).__name__} has no p_0 of a Swin: adapt it first, adapt_swin(model, size)")
    model, grid = copy.deepcopy(model), _grid(model, image_size)
    p = model.pos_embed                                             # (1, H, W, D)
    if tuple(p.shape[1:3]) != grid:
        places = p.to(torch.promote_types(p.dtype, torch.float32)).permute(0, 3, 1, 2)      # half precision: in float32
        places = interpolate(places, grid, mode="bicubic", antialias=True)
        model.pos_embed = nn.Parameter(places.permute(0, 2, 3, 1).to(p.dtype), requires_grad=p.requires_grad)
    return model


def _grid(model: nn.Module, image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(H, W), how many patches the model makes of such an image. ValueError for a size that gives none."""
    size, patch = pair(image_size), model.features[0][0].stride
    grid = size[0] // patch[0], size[1] // patch[1]
    if min(grid) < 1:
        raise ValueError(f"image size is {image_size}, expected one side or (height, width), at least {patch[0]} each")
    return grid
