"""PE at inference: the same for every image, so it is computed once and folded into what is there already.

PE at the last norm adds one vector c to every pooled feature f (GAP: the mean over tokens of LN'_last(p); class
token: its row 0), and with the linear head

    W (f + c) + b  =  W f + (W c + b)

so c can move into the head's bias. PE in the blocks differs from token to token: it becomes a constant of the norm
that it meets. No LayerNorm on PE is left, and no addition at the last norm.

Source: ours; no paper on the method that we know of states it.
Shapes: B images, N tokens (with the class token, if any), D width, L blocks, K classes.
"""
import copy

import torch
from torch import Tensor, nn


class ConstantPE(nn.Module):
    """Stands in for `LayerwisePE` at inference: only the input still gets PE from here, as a constant."""

    def __init__(self, input_pe: Tensor | None, depth: int):
        super().__init__()
        self.depth = depth
        self.register_buffer("input_pe", None if input_pe is None else input_pe.detach())   # no Parameter any more

    def forward(self) -> tuple[Tensor | None, list[None], None]:
        return self.input_pe, [None] * self.depth, None


class PlusConstant(nn.Module):
    """Stands in for a norm that meets PE, at inference: x (B, N, D) -> LN(x) + pe, with pe (1, N, D) constant.

    pe is added in place, so the sum needs no memory of its own. `Block` must not do that: a hook may keep what a norm
    returns and would find it changed. Here the norm is this module, and hooks see the sum.
    """

    def __init__(self, norm: nn.LayerNorm, pe: Tensor):
        super().__init__()
        self.norm = norm
        self.register_buffer("pe", pe)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).add_(self.pe)                           # (B, N, D) + (1, N, D)


@torch.no_grad()
def fold_last_pe(model: nn.Module, *, dense: bool = False) -> nn.Module:
    """A copy for inference with the same logits (B, K): PE at the last norm is in the head's bias, else a constant.

    Only for logits: the copy's `forward_tokens` gives the tokens without PE at the last norm. The copy is in eval
    mode and asks for no gradient of its weights; the model is untouched.
    dense: for heads that use every token PE at the last norm is no mere bias, as it differs from token to token.
    So it stays, as one more norm's constant, LN'_last(p), and the copy gives the same tokens (B, N, D) too.
    ValueError for what is no `ViT`, and for a head or a pooling that is not linear, unless dense.
    """
    _check(model, dense)
    folded = copy.deepcopy(model).eval()
    input_pe, block_pes, last_pe = folded.pe()
    for block, pe in zip(folded.blocks, block_pes):
        if pe is not None:
            block.norm1 = PlusConstant(block.norm1, pe)
    last_norm = folded.last_norm
    if last_pe is not None:
        pe = last_norm.pe_norm(last_pe)                             # (1, N, D)
        last_norm.pe_norm = None
        if dense:
            last_norm.token_norm = PlusConstant(last_norm.token_norm, pe)
        else:
            c = folded.pool_tokens(pe)                              # (1, N, D) -> (1, D)
            folded.head.bias += (c @ folded.head.weight.T)[0]       # (1, D) @ (D, K) -> (K,)
    folded.pe = ConstantPE(input_pe, len(block_pes))
    return folded.requires_grad_(False)


def _check(model: nn.Module, dense: bool) -> None:
    """W (f + c) + b is W f + (W c + b) for a plain linear head with a bias, and pooling that takes sums to sums."""
    lacking = [name for name in ("pe", "blocks", "last_norm", "head", "pool_tokens") if not hasattr(model, name)]
    if lacking:
        raise ValueError(f"found a {type(model).__name__} without {', '.join(lacking)}, expected a ViT of this "
                         "package: only its PE can be folded")
    last_pe = model.pe()[2]
    if dense or last_pe is None:
        return
    head, way_on = model.head, "use dense=True, which leaves PE at the last norm in place"
    if type(head) is not nn.Linear or head.bias is None:
        found = "nn.Linear without a bias" if type(head) is nn.Linear else type(head).__name__
        raise ValueError(f"the head is {found}, but PE can only be folded into the bias of a plain nn.Linear: {way_on}")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, *last_pe.shape, generator=generator, dtype=torch.float64).to(last_pe)     # (1, N, D) each
    pooled, parts = model.pool_tokens(a + b).float(), (model.pool_tokens(a) + model.pool_tokens(b)).float()
    if not torch.allclose(pooled, parts, rtol=0.02, atol=0.02):     # half precision is as exact as this
        raise ValueError(f"the pooling of this {type(model).__name__} does not take sums to sums, so PE at the last "
                         f"norm is no bias: {way_on}")
