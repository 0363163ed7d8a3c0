"""A3 with the solution's ways in other words: functional linear, enumerate, a conditional expression."""
import torch
from torch import nn
from torch.nn import functional as F


class Delivery(nn.Module):
    def __init__(self, tokens, width, depth):
        super().__init__()
        self.pe = nn.Parameter(torch.zeros(1, tokens, width))
        nn.init.trunc_normal_(self.pe, std=0.02)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(depth)])

    def forward(self):
        def handed_on(p, norms):
            return [p, *handed_on(norms[0](p), norms[1:])] if len(norms) else [p]
        return handed_on(self.pe, self.norms)[1:]


class Block(nn.Module):
    def __init__(self, width, attention, mlp):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), attention
        self.norm2, self.mlp = nn.LayerNorm(width), mlp

    def forward(self, x, pe=None):
        n = F.layer_norm(x, x.shape[-1:], self.norm1.weight, self.norm1.bias)
        after = x + (self.attention(n) if pe is None else self.attention(torch.add(n, pe)))
        return self.mlp(self.norm2(after)) + after


def encode(tokens, blocks, delivery):
    for number, p in enumerate(delivery()):
        tokens = blocks[number](tokens, p)
    return tokens


def qkv_bias(qkv, pe):
    return F.linear(pe, qkv.weight)
