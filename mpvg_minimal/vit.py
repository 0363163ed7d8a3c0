"""The Vision Transformer, assembled from the four files before it, and its named sizes.

    images -> patch_embed -> (class token) -> + PE -> blocks, each with its PE -> last norm, with PE -> pool -> head

Shapes: B images, N tokens (with the class token, if any), D width, H heads, L blocks, K classes.
Source: ViT (Dosovitskiy et al. 2021); where PE goes: see layerwise_pe.py.
"""
import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from .balance import LastNorm
from .block import Block
from .layerwise_pe import LayerwisePE, PESchedule, sincos2d
from .patch_embed import PatchEmbed, check_sizes


class ViT(nn.Module):
    """Images (B, 3, H, W) -> logits (B, K).

    pool: "gap" (mean over all tokens, no class token) or "cls" (a class token, which alone is classified).
    pe: a name ("none", "once", "lape", "pvg", "mpvg") or a `PESchedule`. pe_init: "learned" or "sincos2d".
    pe_std: standard deviation with which a learned PE starts. qkv_bias: whether queries, keys and values have biases.
    stochastic_depth: the last block's rate; the rate grows linearly from 0 at the first block.
    ValueError for sizes below 1 or that do not divide one another, unknown names and PE schedules without sense.
    """

    def __init__(self, *, image_size: int | tuple[int, int], patch_size: int, width: int, depth: int, heads: int,
                 mlp_ratio: float = 4.0, num_classes: int = 10, pool: str = "gap", pe: str | PESchedule = "mpvg",
                 pe_init: str = "learned", pe_std: float = 0.02, qkv_bias: bool = True,
                 attention_dropout: float = 0.0, stochastic_depth: float = 0.0, channels: int = 3):
        super().__init__()
        if pool not in ("gap", "cls"):
            raise ValueError(f'pool is {pool!r}, expected "gap" or "cls"')
        check_sizes(patch_size=patch_size, width=width, depth=depth, heads=heads, num_classes=num_classes)
        schedule = PESchedule.named(pe) if isinstance(pe, str) else pe
        self.pool, self.num_classes = pool, num_classes
        self.patch_embed = PatchEmbed(image_size=image_size, patch_size=patch_size, width=width, channels=channels)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if pool == "cls" else None
        self.pe = LayerwisePE(schedule, grid=self.patch_embed.grid, width=width, depth=depth,
                              class_token=pool == "cls", init=pe_init, std=pe_std)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, attention_dropout=attention_dropout,
                  stochastic_depth=stochastic_depth * number / max(depth - 1, 1))
            for number in range(depth))
        self.last_norm = LastNorm(width, with_pe=schedule.at_last_norm is not None)
        self.head = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward_tokens(self, images: Tensor) -> Tensor:
        """Tokens after the last norm, (B, N, D), for dense tasks; with pool="cls" row 0 is the class token."""
        x = self.patch_embed(images)                                # (B, 3, H, W) -> (B, N, D)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)    # N grows by one
        input_pe, block_pes, last_pe = self.pe()                    # (1, N, D) each, or None
        if input_pe is not None:
            x = x + input_pe
        for block, pe in zip(self.blocks, block_pes):
            x = block(x, pe)
        return self.last_norm(x, last_pe)

    def pool_tokens(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D): what the head classifies."""
        return tokens.mean(dim=1) if self.pool == "gap" else tokens[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool_tokens(self.forward_tokens(images)))         # (B, D) -> (B, K)


@torch.no_grad()
def resize_pe(model: ViT, image_size: int | tuple[int, int]) -> ViT:
    """A copy for images of another size, any multiple of the patch; with the same size, bitwise the same logits.

    A learnt PE is a picture of D channels on the grid of patches: it is interpolated (bicubic, antialiased), the
    class token's row kept; a sin-cos PE is computed anew. Every delivered PE follows, since only p_0 is stored.
    Source: ViT (Dosovitskiy et al. 2021), section 3.2; the antialiasing is ours. ValueError if the patch does not
    divide the size, or for a model whose PE `fold_last_pe` has made constant.
    """
    if not isinstance(model.pe, LayerwisePE):
        raise ValueError("this model's PE is folded into constants: resize it first, then fold")
    model = copy.deepcopy(model)
    old, p = model.patch_embed.grid, model.pe.pos_embed
    model.patch_embed.set_image_size(image_size)
    grid = model.patch_embed.grid
    if p is None or grid == old:
        return model
    first = p.shape[1] - old[0] * old[1]                            # rows before the grid's: the class token's or none
    if isinstance(p, nn.Parameter):
        places = p[:, first:].transpose(1, 2).unflatten(2, old)     # (1, N, D) -> (1, D, H / P, W / P)
        places = places.to(torch.promote_types(p.dtype, torch.float32))     # torch has no bicubic in half precision
        places = interpolate(places, grid, mode="bicubic", antialias=True).flatten(2).transpose(1, 2).to(p.dtype)
        model.pe.pos_embed = nn.Parameter(torch.cat([p[:, :first], places], dim=1), requires_grad=p.requires_grad)
    else:
        model.pe.pos_embed = pad(sincos2d(grid, p.shape[2]), (0, 0, first, 0)).to(p)
    return model


def vit_nano(num_classes: int = 16, **options) -> ViT:
    """For the built-in shapes: 32 x 32 images, patch 8 (N = 16), D 96, L 4, H 3, MLP ratio 2."""
    return _sized(options, num_classes, image_size=32, patch_size=8, width=96, depth=4, heads=3, mlp_ratio=2)


def vit_lite(num_classes: int = 10, **options) -> ViT:
    """ViT-Lite-7/4 (Hassani et al. 2021): 32 x 32, patch 4 (N = 64), D 256, L 7, H 4, MLP ratio 2; 3.7 M parameters.

    As in its published code (Compact-Transformers): no qkv biases, and PE starts with std 0.2. So the parameters are
    those of the paper's Table 2. ViT's own choices are `vit_lite(qkv_bias=True, pe_std=0.02)`. Kept as in ViT, for one
    block that serves all sizes: the residual stream is not normalized before the MLP (there it is), eps is 1e-6 (there
    1e-5), the class token starts with std 0.02 (there 0), PE and class token are not decayed (there they are).
    """
    return _sized(options, num_classes, image_size=32, patch_size=4, width=256, depth=7, heads=4, mlp_ratio=2,
                  qkv_bias=False, pe_std=0.2)


def deit_nano(num_classes: int = 10, **options) -> ViT:
    """DeiT-Ti's depth and heads for 32 x 32 images and a CPU: patch 8 (N = 16), D 96, L 12, H 3, MLP ratio 2. Ours."""
    return _sized(options, num_classes, image_size=32, patch_size=8, width=96, depth=12, heads=3, mlp_ratio=2)


def deit_tiny(num_classes: int = 1000, **options) -> ViT:
    """DeiT-Ti (Touvron et al. 2021): 224 x 224, patch 16 (N = 196), D 192, L 12, H 3; 5.7 M parameters."""
    return _sized(options, num_classes, image_size=224, patch_size=16, width=192, depth=12, heads=3)


def deit_small(num_classes: int = 1000, **options) -> ViT:
    """DeiT-S: as DeiT-Ti with D 384, H 6; 22 M parameters."""
    return _sized(options, num_classes, image_size=224, patch_size=16, width=384, depth=12, heads=6)


def deit_base(num_classes: int = 1000, **options) -> ViT:
    """DeiT-B: as DeiT-Ti with D 768, H 12; 86 M parameters."""
    return _sized(options, num_classes, image_size=224, patch_size=16, width=768, depth=12, heads=12)


def _sized(options: dict, num_classes: int, **sizes) -> ViT:
    return ViT(num_classes=num_classes, **{**sizes, **options})     # the caller's image_size and so on win


SIZES = {size.__name__: size for size in (vit_nano, vit_lite, deit_nano, deit_tiny, deit_small, deit_base)}
