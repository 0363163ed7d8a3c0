"""A6: under GAP, MPVG's PE at the last norm is a bias of the head: fold it away, exactly, for inference.

    W (f + c) + b = W f + (W c + b)          f: pooled LN(x), one for each image; c: pooled LN'_last(p_0), one for all

Shapes: N tokens, D width, L blocks, K classes. The model's parts are named in `fold`.
"""
import copy

import torch
from torch import Tensor, nn


def pooled_pe(pe_norm: nn.Module, p_0: Tensor, how: str) -> Tensor:
    """c, (1, N, D) -> (D,): what PE adds to every image's pooled feature.

    how: "gap", the mean over all tokens, or "cls", token 0 alone.
    """
    raise NotImplementedError("part 1: pooled_pe")


@torch.no_grad()
def fold_into_head(head: nn.Linear, c: Tensor) -> nn.Linear:
    """A new head (D -> K), with a bias, that gives for f what `head` gives for f + c, c (D,).

    `head` may have no bias. It is left as it is, and the new head shares no memory with it.
    """
    raise NotImplementedError("part 2: fold_into_head")


class ConstantPE(nn.Module):
    """What a model's PE module delivers, as constants: it has no parameters, and calling it computes nothing.

    It gives (input_pe, block_pes, last_pe) as it got them: a tensor or None, a list of tensors and Nones, a
    tensor or None. The tensors need no gradient, are in the state_dict, and follow `.to()` and `.double()`. They
    stay as they are when the model that they came from is trained on.
    """

    def __init__(self, input_pe: Tensor | None, block_pes: list[Tensor | None], last_pe: Tensor | None):
        super().__init__()
        raise NotImplementedError("part 3: ConstantPE.__init__")

    def forward(self) -> tuple[Tensor | None, list[Tensor | None], Tensor | None]:
        raise NotImplementedError("part 3: ConstantPE.forward")


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """A copy of an MPVG model for inference, in eval mode: the same logits, PE at the last norm in the head's bias.

    It shares no memory with `model`, which is left as it is and can be trained on.

    `model.pe` is the PE module, pe() = (input_pe, block_pes, last_pe), with last_pe = p_0; `model.last_norm` has
    `token_norm` and `pe_norm`, and is called as last_norm(x, last_pe); `model.head` is an nn.Linear; `model.how` is
    "gap" or "cls". In the copy `pe` is a `ConstantPE` that gives the last norm None, and `last_norm.pe_norm` is None.
    """
    raise NotImplementedError("part 4: fold")
