"""The balance between tokens and PE: MPVG's last norm, and how to measure the balance.

In every layer of a layer-wise ViT, tokens and delivered PE point in opposite directions, more so with depth: the
paper says that PE counterbalances the tokens. The gains and shifts that do it are learnt by PE's own LayerNorms (LN')
in layerwise_pe.py. After the last block no PE is added any more, so the tokens that global average pooling (GAP)
averages are left unbalanced. MPVG therefore delivers PE to the last norm too, through a LayerNorm of its own:

    y = LN(x) + LN'_last(p)          p = p_0, the learnt PE itself

Source: Lee, Ham and Kim, AAAI 2025 (arXiv 2502.02919), "paper" below: Fig. 3 d (equation), Fig. 2 and 4 (correlations),
appendix (variance of beta, cosine before and after the last norm). Splitting PE into what all tokens share and the
rest is ours. Shapes: B images, N tokens, D width, L blocks, K classes.
"""
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from .layerwise_pe import LayerwisePE


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


def pearson(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of two tensors of one shape, flattened."""
    return cosine_similarity(a.flatten() - a.mean(), b.flatten() - b.mean(), dim=0).item()


def mean_cosine(a: Tensor, b: Tensor) -> float:
    """Mean over tokens of the cosine between the rows of a and b, both (N, D)."""
    return cosine_similarity(a, b, dim=1).mean().item()


def shared(map: Tensor) -> Tensor:
    """(N, D) -> (1, D): the part of a map that all tokens share, its mean over tokens."""
    return map.mean(dim=0, keepdim=True)


@dataclass(frozen=True)
class Balance:
    """One place where tokens can meet PE. `pe` and its correlations are None where no PE is delivered."""

    place: str              # "block 1" ... "block L", "last norm"
    tokens: Tensor          # (N, D) mean over the images of LN(x), which PE is added to
    stream: Tensor          # (N, D) mean over the images of x itself, the residual stream
    beta: Tensor            # (D,) the shift that LN has learnt
    pe: Tensor | None       # (N, D) PE as delivered

    def compare(self, how, tokens: Tensor) -> float | None:
        return None if self.pe is None else how(tokens, self.pe)

    @property
    def correlation(self) -> float | None:
        """Pearson of `tokens` and `pe`, both flattened. Negative: the counterbalance (paper, Fig. 2 b)."""
        return self.compare(pearson, self.tokens)

    @property
    def cosine(self) -> float | None:
        """Mean over tokens of the cosine of `tokens` and `pe`."""
        return self.compare(mean_cosine, self.tokens)

    @property
    def stream_correlation(self) -> float | None:
        return self.compare(pearson, self.stream)

    @property
    def stream_cosine(self) -> float | None:
        return self.compare(mean_cosine, self.stream)

    @property
    def shared_correlation(self) -> float | None:
        """Pearson of the two parts that all tokens share, (D,) each."""
        return self.compare(lambda tokens, pe: pearson(shared(tokens), shared(pe)), self.tokens)

    @property
    def place_correlation(self) -> float | None:
        """Pearson of what is left without the shared parts: what differs from token to token."""
        return self.compare(lambda tokens, pe: pearson(tokens - shared(tokens), pe - shared(pe)), self.tokens)

    @property
    def shift(self) -> Tensor:
        """(D,) all that is added to every token here: beta, and the shared part of PE where PE is delivered."""
        return self.beta if self.pe is None else self.beta + shared(self.pe)[0]

    @property
    def norm_cosine(self) -> float:
        """Cosine of the mean token maps before and after LN (paper, appendix), both flattened (our reading)."""
        return cosine_similarity(self.stream.flatten(), self.tokens.flatten(), dim=0).item()


@torch.no_grad()
def counterbalance(model: nn.Module, images: Tensor, *, batch_size: int = 256) -> list[Balance]:
    """Measure the balance in every block and at the last norm: L + 1 `Balance` records, in order.

    images: (B, 3, H, W), normalized as for the model, on its device. The model is put into eval mode and back.
    As in the paper, maps are taken after the norms and averaged over images. ValueError for a folded model (fold.py).
    """
    if not isinstance(model.pe, LayerwisePE):
        raise ValueError("this model's PE is folded into constants: measure it before folding")
    norms = [block.norm1 for block in model.blocks] + [model.last_norm.token_norm]
    sums = [[0.0, 0.0] for _ in norms]                              # of LN(x) and of x, over the images seen

    def watch(total):
        def hook(_, inputs, output):
            total[0] = total[0] + output.cpu().double().sum(0)      # (B, N, D) -> (N, D); CPU: MPS has no float64
            total[1] = total[1] + inputs[0].cpu().double().sum(0)
        return hook

    was_training = model.training
    model.eval()
    hooks = [norm.register_forward_hook(watch(total)) for norm, total in zip(norms, sums)]
    try:
        for batch in images.split(batch_size):
            model.forward_tokens(batch)
        _, pes, last_pe = model.pe()
        pes = [*pes, None if last_pe is None else model.last_norm.pe_norm(last_pe)]
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    places = [f"block {number}" for number in range(1, len(norms))] + ["last norm"]
    return [Balance(place, tokens / len(images), stream / len(images), norm.bias.detach().cpu().double(),
                    None if pe is None else pe[0].detach().cpu().double())   # (1, N, D) -> (N, D)
            for place, (tokens, stream), norm, pe in zip(places, sums, norms, pes)]
