"""The equations once more, to hold the model against: float64, matrix products, none of the package's modules.

Also the tiny model that the tests share, with every weight drawn anew. That matters: with fresh affines (1, 0)
LN(LN(p)) differs from LN(p) by a percent, and a PE that is handed on wrongly would go unseen.
"""
import math
from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mpvg_minimal import PESchedule, ViT

TINY = dict(image_size=(12, 20), patch_size=4, width=12, depth=3, heads=3, mlp_ratio=2, num_classes=5)
ROWS, COLUMNS, PATCH, WIDTH, DEPTH, HEADS = 3, 5, 4, 12, 3, 3
POOLS, INITS = ("gap", "cls"), ("learned", "sincos2d")

# The four switches: add at the input, first block that receives PE, hierarchical, what the last norm gets.
NAMED = {
    "none": (False, None, False, None),
    "once": (True, None, False, None),
    "lape": (False, 1, True, None),
    "pvg": (True, 2, True, None),
    "mpvg": (True, 2, True, "initial")}
VALID = [*product((True, False), (1, 2, 3), (True, False), (None, "initial", "delivered")),
         *((True, 2, hierarchical, block) for hierarchical in (True, False) for block in (2, 3)), (False, 1, True, 1),
         *product((True, False), (None,), (False,), (None, "initial"))]


def name(switches: tuple) -> str:
    """As a test's id: 'input, 2-, hierarchical, initial'."""
    at_input, first, hierarchical, last = switches
    return f"{'input' if at_input else '-'},{first}-,{'hierarchical' if hierarchical else 'flat'},{last}"


every_pool = pytest.mark.parametrize("pool", POOLS)
every_init = pytest.mark.parametrize("pe_init", INITS)
every_name = pytest.mark.parametrize("known", NAMED)
every_schedule = pytest.mark.parametrize("switches", VALID, ids=name)


def tiny(pe: str | tuple = "mpvg", pool: str = "gap", pe_init: str = "learned", **options) -> ViT:
    """A small model in float64 and eval mode, on images that are not square, with random weights."""
    schedule = pe if isinstance(pe, str) else PESchedule(*pe)
    return randomize(ViT(pe=schedule, pool=pool, pe_init=pe_init, **{**TINY, **options}).double().eval())


@torch.no_grad()
def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter normal: linear maps keep the size of their input, all others have std 1."""
    for key, weight in model.named_parameters():
        linear = weight.ndim > 1 and not key.endswith(("pos_embed", "cls_token"))
        weight.normal_(std=weight[0].numel() ** -0.5 if linear else 1.0)
    return model


def torchvision_name(key: str) -> str:
    """Where torchvision's VisionTransformer keeps the parameter that `ViT` keeps under this name."""
    for ours, theirs in (("patch_embed.proj", "conv_proj"), ("cls_token", "class_token"),
                         ("pe.pos_embed", "encoder.pos_embedding"), ("last_norm.token_norm", "encoder.ln"),
                         ("head", "heads.head"), ("blocks.", "encoder.layers.encoder_layer_"), ("norm1", "ln_1"),
                         ("norm2", "ln_2"), ("attn.qkv.", "self_attention.in_proj_"),
                         ("attn.proj", "self_attention.out_proj"), ("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.3")):
        key = key.replace(ours, theirs)
    return key


def random_images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, ROWS * PATCH, COLUMNS * PATCH, dtype=torch.float64)


def layer_norm(x: Tensor, weights: dict[str, Tensor], key: str) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    variance = (centered ** 2).mean(-1, keepdim=True)
    return centered / (variance + 1e-6).sqrt() * weights[f"{key}.weight"] + weights[f"{key}.bias"]


def attention(y: Tensor, weights: dict[str, Tensor], key: str, heads: int = HEADS) -> Tensor:
    width = y.shape[-1]
    size, outputs = width // heads, []
    bias = weights.get(f"{key}.qkv.bias", y.new_zeros(3 * width))
    for head in range(heads):
        q, k, v = (y @ weights[f"{key}.qkv.weight"][rows].T + bias[rows]
                   for rows in (slice(part * width + head * size, part * width + (head + 1) * size)
                                for part in range(3)))
        scores = (q @ k.transpose(1, 2) / math.sqrt(size)).exp()
        outputs.append(scores / scores.sum(-1, keepdim=True) @ v)
    return torch.cat(outputs, -1) @ weights[f"{key}.proj.weight"].T + weights[f"{key}.proj.bias"]


def mlp(y: Tensor, weights: dict[str, Tensor], key: str) -> Tensor:
    hidden = y @ weights[f"{key}.fc1.weight"].T + weights[f"{key}.fc1.bias"]
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2                # GELU
    return hidden @ weights[f"{key}.fc2.weight"].T + weights[f"{key}.fc2.bias"]


def patches(images: Tensor, weight: Tensor, bias: Tensor, size: int = PATCH) -> Tensor:
    """Cut out patch by patch, row by row, and multiply: (B, N, D)."""
    return torch.stack([images[:, :, top:top + size, left:left + size].flatten(1) @ weight.flatten(1).T + bias
                        for top in range(0, images.shape[2], size)
                        for left in range(0, images.shape[3], size)], dim=1)


def permuted(images: Tensor, order: Tensor) -> Tensor:
    """The same patches in another order."""
    cut = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).flatten(2, 3)[:, :, order]     # (B, 3, N, P, P)
    cut = cut.unflatten(2, (ROWS, COLUMNS)).transpose(3, 4)                     # (B, 3, rows, P, columns, P)
    return cut.reshape(images.shape)


def sincos(rows: int = ROWS, columns: int = COLUMNS, width: int = WIDTH) -> Tensor:
    """Number by number: (N, D)."""
    quarter, table = width // 4, []
    for row, column in product(range(rows), range(columns)):
        angles = [[place / 10000 ** (i / quarter) for i in range(quarter)] for place in (column, row)]
        table.append([f(angle) for part in angles for f in (math.sin, math.cos) for angle in part])
    return torch.tensor(table, dtype=torch.float64)


class Trace(NamedTuple):
    logits: Tensor              # (B, K)
    tokens: Tensor              # (B, N, D) after the last norm
    stream: list[Tensor]        # x before block 1 ... L and before the last norm
    normed: list[Tensor]        # LN(x) there
    pes: list[Tensor | None]    # (N, D) what is added there


def trace(model: ViT, images: Tensor, switches: tuple) -> Trace:
    """The tiny model's forward pass, from its weights and the four switches alone."""
    w = {key: weight.double() for key, weight in model.state_dict().items()}
    at_input, first, hierarchical, last = switches
    x = patches(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"])
    fixed = sincos()
    if "cls_token" in w:
        x = torch.cat([w["cls_token"].repeat(len(x), 1, 1), x], 1)
        fixed = torch.cat([torch.zeros(1, WIDTH, dtype=torch.float64), fixed])
    p = p_0 = w["pe.pos_embed"][0] if "pe.pos_embed" in w else fixed
    if at_input:
        x = x + p_0
    streams, normed, pes = [], [], []
    for block in range(1, DEPTH + 1):
        y, delivered = layer_norm(x, w, f"blocks.{block - 1}.norm1"), None
        streams.append(x)
        normed.append(y)
        if first is not None and block >= first:
            delivered = p = layer_norm(p if hierarchical else p_0, w, f"pe.norms.{block - first}")
            if "cls_token" in w and "pe.pos_embed" not in w:        # sin-cos: the class token gets none
                delivered = p = torch.cat([torch.zeros_like(p[:1]), p[1:]])
            y = y + delivered
        pes.append(delivered)
        x = x + attention(y, w, f"blocks.{block - 1}.attn")
        x = x + mlp(layer_norm(x, w, f"blocks.{block - 1}.norm2"), w, f"blocks.{block - 1}.mlp")
    y = layer_norm(x, w, "last_norm.token_norm")
    streams.append(x)
    normed.append(y)
    source = pes[last - 1] if isinstance(last, int) else {None: None, "initial": p_0, "delivered": p}[last]
    pes.append(None if source is None else layer_norm(source, w, "last_norm.pe_norm"))
    tokens = y if source is None else y + pes[-1]
    pooled = tokens[:, 0] if "cls_token" in w else tokens.mean(1)
    return Trace(pooled @ w["head.weight"].T + w["head.bias"], tokens, streams, normed, pes)
