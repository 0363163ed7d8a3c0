"""A3 with a loop by index, `encode` that goes through delivery.pe and delivery.norms, and qkv_bias as an einsum."""
import torch
from torch import nn


class Delivery(nn.Module):
    def __init__(self, tokens, width, depth):
        super().__init__()
        self.pe = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.norms = nn.ModuleList()
        for _ in range(depth):
            self.norms.append(nn.LayerNorm(width))

    def forward(self):
        pes = [self.norms[0](self.pe)]
        while len(pes) < len(self.norms):
            pes.append(self.norms[len(pes)](pes[-1]))
        return pes


class Block(nn.Module):
    def __init__(self, width, attention, mlp):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), attention
        self.norm2, self.mlp = nn.LayerNorm(width), mlp

    def forward(self, x, pe=None):
        x = x + self.attention(self.norm1(x) + (0 if pe is None else pe.expand(len(x), -1, -1)))
        return x + self.mlp(self.norm2(x))


def encode(tokens, blocks, delivery):
    p = delivery.pe
    for norm, block in zip(delivery.norms, blocks):
        p = norm(p)
        tokens = block(tokens, pe=p)
    return tokens


def qkv_bias(qkv, pe):
    return torch.einsum("bnd,ed->bne", pe, qkv.weight)
