"""The balance between tokens and PE: MPVG's last norm, and how to measure the balance.

The paper's reading: in every layer PE counterbalances the tokens (the two point in opposite directions, more
so with depth). What does the balancing is PE's own affine in every LN' (layerwise_pe.py). After the last
block nothing carries PE any more, so the tokens that global average pooling (GAP) averages are left
unbalanced. MPVG closes the gap: PE goes to the last norm too, again through a LayerNorm of its own:

    y = LN(x) + LN'_last(p)          p = p_0, the learnt PE itself

Source: Lee, Ham and Kim, AAAI 2025 (arXiv 2502.02919), this equation at second hand (a public review).
Shapes: B images, N tokens, D width, L blocks, K classes.
"""
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from .fold import PlusConstant


class LastNorm(nn.Module):
    """x (B, N, D), pe (1, N, D) or None -> (B, N, D): LN(x) + LN'(pe), or LN(x) alone.

    with_pe: whether PE is delivered here; PE's LayerNorm exists only if so.
    """

    def __init__(self, width: int, *, with_pe: bool):
        super().__init__()
        self.token_norm = nn.LayerNorm(width, eps=1e-6)
        self.pe_norm = nn.LayerNorm(width, eps=1e-6) if with_pe else None

    def forward(self, x: Tensor, pe: Tensor | None = None) -> Tensor:
        y = self.token_norm(x)                                      # (B, N, D)
        return y if pe is None else y + self.pe_norm(pe)            # (B, N, D) + (1, N, D)


class Balance(NamedTuple):
    """One place where tokens meet PE. `pe`, and what is computed from it, is None where none is delivered."""

    place: str                          # "block 1" ... "block L", "last norm"
    tokens: Tensor                      # (N, D) mean over the images of LN(x), which PE is added to
    stream: Tensor                      # (N, D) mean over the images of x itself, the residual stream
    pe: Tensor | None                   # (N, D) PE as delivered
    correlation: float | None           # Pearson, of `tokens` and `pe`, both flattened
    cosine: float | None                # mean over the N tokens of the cosine of `tokens` and `pe`
    stream_correlation: float | None    # the same two with `stream` in place of `tokens`
    stream_cosine: float | None


def pearson(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of two tensors of one shape, flattened."""
    return cosine_similarity(a.flatten() - a.mean(), b.flatten() - b.mean(), dim=0).item()


def mean_cosine(a: Tensor, b: Tensor) -> float:
    """Mean over tokens of the cosine between the rows of a and b, both (N, D)."""
    return cosine_similarity(a, b, dim=1).mean().item()


@torch.no_grad()
def counterbalance(model: nn.Module, images: Tensor, *, batch_size: int = 256) -> list[Balance]:
    """Measure the balance in every block and at the last norm: L + 1 `Balance` records, in order.

    images: (B, 3, H, W), normalised as for the model, on its device. The model is put into eval mode and back.
    Negative correlations are the counterbalance that the paper speaks of. Source: the heatmaps and correlations
    on the authors' project page; averaging over images before comparing is our reading.
    """
    norms = [block.norm1 for block in model.blocks] + [model.last_norm.token_norm]
    constants = [norm.pe if isinstance(norm, PlusConstant) else None for norm in norms]        # of a folded model
    norms = [norm.norm if isinstance(norm, PlusConstant) else norm for norm in norms]
    sums = [[0.0, 0.0] for _ in norms]                              # of LN(x) and of x, over the images seen

    def watch(total):
        def hook(_, inputs, output):
            total[0] = total[0] + output.double().sum(0)            # (B, N, D) -> (N, D)
            total[1] = total[1] + inputs[0].double().sum(0)
        return hook

    was_training = model.training
    model.eval()
    hooks = [norm.register_forward_hook(watch(total)) for norm, total in zip(norms, sums)]
    try:
        for batch in images.split(batch_size):
            model.forward_tokens(batch)
        _, pes, last_pe = model.pe()
        pes = [*pes, None if last_pe is None else model.last_norm.pe_norm(last_pe)]
        pes = [pe if constant is None else constant for pe, constant in zip(pes, constants)]
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    places = [f"block {number}" for number in range(1, len(norms))] + ["last norm"]
    return [_compare(place, total[0] / len(images), total[1] / len(images), pe)
            for place, total, pe in zip(places, sums, pes)]


def _compare(place: str, tokens: Tensor, stream: Tensor, pe: Tensor | None) -> Balance:
    if pe is None:
        return Balance(place, tokens, stream, None, None, None, None, None)
    pe = pe[0].double()                                             # (1, N, D) -> (N, D)
    return Balance(place, tokens, stream, pe, pearson(tokens, pe), mean_cosine(tokens, pe),
                   pearson(stream, pe), mean_cosine(stream, pe))
