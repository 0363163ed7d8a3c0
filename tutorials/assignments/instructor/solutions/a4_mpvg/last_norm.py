"""A4: MPVG delivers the position embedding (PE) to the last LayerNorm (LN) too, for global average pooling (GAP).

    input:     x = tokens + p_0                  p_0 is the learnt PE itself
    block 1:   no PE
    block l:   p_l = LN'_l(p_{l-1})              l = 2 ... L; what block 2 normalizes is p_0 (p_1 = p_0)
    last norm: y = LN(x) + LN'_last(p_0)
    head:      logits = head(mean over the tokens of y)

Shapes: B images, N tokens, D width, L blocks, K classes. Every LN is nn.LayerNorm(D).
"""
from collections.abc import Sequence

from torch import Tensor, nn


class LastNorm(nn.Module):
    """x (B, N, D), pe (1, N, D) or None -> (B, N, D): LN(x) + LN'_last(pe), or LN(x) alone.

    `token_norm` is LN, `pe_norm` is LN'_last.
    """

    def __init__(self, width: int):
        super().__init__()
        self.token_norm = nn.LayerNorm(width)
        self.pe_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, pe: Tensor | None = None) -> Tensor:
        y = self.token_norm(x)
        return y if pe is None else y + self.pe_norm(pe)


def pool(y: Tensor, how: str) -> Tensor:
    """(B, N, D) -> (B, D). how: "gap", the mean over all tokens, or "cls", the class token, which is token 0."""
    return y.mean(dim=1) if how == "gap" else y[:, 0]


def deliver(p_0: Tensor, norms: Sequence[nn.Module]) -> tuple[Tensor, list[Tensor | None], Tensor]:
    """(PE for the input, [PE for block 1, ..., PE for block L], PE for the last norm), each (1, N, D) or None.

    norms: LN'_2 ... LN'_L, so L = len(norms) + 1. The last norm's own LN'_last is not among them: it is in
    `LastNorm`, which gets its PE as it is.
    """
    p, blocks = p_0, [None]
    for norm in norms:
        p = norm(p)
        blocks.append(p)
    return p_0, blocks, p_0


def classify(tokens: Tensor, p_0: Tensor, norms: Sequence[nn.Module], blocks: Sequence[nn.Module],
             last_norm: nn.Module, head: nn.Module, how: str = "gap") -> Tensor:
    """(B, N, D) -> logits (B, K): all of MPVG, from the tokens on. A block is called as block(x, pe)."""
    input_pe, block_pes, last_pe = deliver(p_0, norms)
    x = tokens + input_pe
    for block, pe in zip(blocks, block_pes):
        x = block(x, pe)
    return head(pool(last_norm(x, last_pe), how))
