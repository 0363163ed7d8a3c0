"""A3: layer-wise position embedding (LaPE): PE goes to every block, each time through a LayerNorm (LN) of its own.

    p_l = LN'_l(p_{l-1})             l = 1 ... L; p_0 is the learnt PE itself
    x   = x + MSA(LN(x) + p_l)       block l, attention
    x   = x + MLP(LN(x))             block l, MLP

Shapes: B images, N tokens, D width, L blocks. Every LN is nn.LayerNorm(D).
"""
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Delivery(nn.Module):
    """The learnt PE, and what every block receives of it. `forward` takes no image: PE does not depend on it.

    `pe` is p_0, a parameter (1, N, D); `norms` are LN'_1 ... LN'_L, an nn.ModuleList.
    """

    def __init__(self, tokens: int, width: int, depth: int):
        super().__init__()
        self.pe = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))

    def forward(self) -> list[Tensor]:
        """[p_1, ..., p_L], each (1, N, D)."""
        p, delivered = self.pe, []
        for norm in self.norms:
            p = norm(p)
            delivered.append(p)
        return delivered


class Block(nn.Module):
    """x (B, N, D), pe (1, N, D) or None -> (B, N, D): the two lines above. With None: an ordinary block.

    attention and mlp are modules (B, N, D) -> (B, N, D).
    """

    def __init__(self, width: int, attention: nn.Module, mlp: nn.Module):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), attention
        self.norm2, self.mlp = nn.LayerNorm(width), mlp

    def forward(self, x: Tensor, pe: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        if pe is not None:
            y = y + pe
        x = x + self.attention(y)
        return x + self.mlp(self.norm2(x))


def encode(tokens: Tensor, blocks: Sequence[nn.Module], delivery: Delivery) -> Tensor:
    """(B, N, D) -> (B, N, D): all blocks in turn, block l with p_l. LaPE adds no PE to the tokens themselves."""
    x = tokens
    for block, pe in zip(blocks, delivery()):
        x = block(x, pe)
    return x


def qkv_bias(qkv: nn.Linear, pe: Tensor) -> Tensor:
    """(1, N, D) -> (1, N, 3 D): what a delivered PE adds to the queries, keys and values of every image.

    For every y (B, N, D): qkv(y + pe) = qkv(y) + qkv_bias(qkv, pe). qkv has a bias of its own.
    """
    return pe @ qkv.weight.T
