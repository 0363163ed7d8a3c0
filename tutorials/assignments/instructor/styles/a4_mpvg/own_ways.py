"""A4 with an einsum, loops by index, and `classify` that does everything by itself."""
import torch
from torch import nn


class LastNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        norms = [nn.LayerNorm(width), nn.LayerNorm(width)]
        self.token_norm = norms[0]
        self.pe_norm = norms[1]

    def forward(self, x, pe=None):
        y = self.token_norm(x)
        if pe is not None:
            y += self.pe_norm(pe)
        return y


def pool(y, how):
    N = y.shape[1]
    weights = torch.ones(N).to(y) / N if how == "gap" else (torch.arange(N) == 0).to(y)
    return torch.einsum("n,bnd->bd", weights, y)


def deliver(p_0, norms):
    blocks = [None] * (len(norms) + 1)
    for number in range(len(norms)):
        blocks[number + 1] = norms[number](p_0 if number == 0 else blocks[number])
    return p_0, blocks, p_0


def classify(tokens, p_0, norms, blocks, last_norm, head, how="gap"):
    x = blocks[0](tokens + p_0, None)
    p = p_0
    for norm, block in zip(norms, blocks[1:]):
        p = norm(p)
        x = block(x, pe=p)
    y = last_norm(x, p_0)
    return head(torch.stack([image[0] if how == "cls" else image.mean(0) for image in y]))
