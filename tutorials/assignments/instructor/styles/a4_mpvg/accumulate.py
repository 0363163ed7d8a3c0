"""A4 with itertools and sums; the head before the mean, which is the same for a linear head."""
from itertools import accumulate

import torch
from torch import nn


class LastNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.token_norm, self.pe_norm = (nn.LayerNorm(width) for _ in range(2))

    def forward(self, x, pe=None):
        if pe is None:
            return self.token_norm(x)
        return torch.add(self.token_norm(x), self.pe_norm(pe))


def pool(y, how):
    if how == "gap":
        return y.sum(dim=1) / y.shape[1]
    return y.select(1, 0)


def deliver(p_0, norms):
    handed_on = list(accumulate(norms, lambda p, norm: norm(p), initial=p_0))
    handed_on[0] = None
    return p_0, handed_on, p_0


def classify(tokens, p_0, norms, blocks, last_norm, head, how="gap"):
    x, block_pes, last_pe = deliver(p_0, norms)
    x = x + tokens
    for number, block in enumerate(blocks):
        x = block(x, block_pes[number])
    return pool(head(last_norm(x, last_pe)), how)
