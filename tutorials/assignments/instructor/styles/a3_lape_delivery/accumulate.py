"""A3 with itertools, by index, with an addition in the memory of LN(x); and qkv_bias as a difference of two maps."""
from itertools import accumulate

import torch
from torch import nn


class Delivery(nn.Module):
    def __init__(self, tokens, width, depth):
        super().__init__()
        self.pe = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.norms = nn.ModuleList([nn.LayerNorm([width]) for _ in range(depth)])

    def forward(self):
        return list(accumulate(self.norms, lambda p, norm: norm(p), initial=self.pe))[1:]


class Block(nn.Module):
    def __init__(self, width, attention, mlp):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), attention
        self.norm2, self.mlp = nn.LayerNorm(width), mlp

    def forward(self, x, pe=None):
        y = self.norm1(x)
        if pe is not None:
            y += pe
        x = x + self.attention(y)
        return x.add(self.mlp(self.norm2(x)))


def encode(tokens, blocks, delivery):
    pes = delivery.forward()
    for number in range(len(blocks)):
        tokens = blocks[number](tokens, pes[number])
    return tokens


def qkv_bias(qkv, pe):
    return qkv(pe) - qkv(torch.zeros_like(pe))
