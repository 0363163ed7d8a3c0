"""A6 with all PEs in one buffer, a head that is built anew, and an einsum."""
import copy

import torch
from torch import nn


def pooled_pe(pe_norm, p_0, how):
    delivered = pe_norm(p_0)
    weights = torch.zeros(delivered.shape[1]).to(delivered)
    weights[0] = 1
    if how == "gap":
        weights[:] = 1 / len(weights)
    return torch.einsum("n,bnd->d", weights, delivered)


@torch.no_grad()
def fold_into_head(head, c):
    folded = nn.Linear(head.in_features, head.out_features).to(head.weight)
    folded.weight.copy_(head.weight)
    folded.bias.copy_(head(c[None])[0])
    return folded


class ConstantPE(nn.Module):
    def __init__(self, input_pe, block_pes, last_pe):
        super().__init__()
        pes = [input_pe, *block_pes, last_pe]
        self.there = [pe is not None for pe in pes]
        rows = [pe.detach() for pe in pes if pe is not None]
        self.register_buffer("pes", torch.cat(rows) if rows else None)

    def forward(self):
        rows = iter(self.pes.split(1) if any(self.there) else [])
        pes = [next(rows) if there else None for there in self.there]
        return pes[0], pes[1:-1], pes[-1]


@torch.no_grad()
def fold(model):
    folded = copy.deepcopy(model)
    input_pe, block_pes, last_pe = model.pe()
    folded.head = fold_into_head(model.head, pooled_pe(model.last_norm.pe_norm, last_pe, model.how))
    folded.pe = ConstantPE(input_pe, block_pes, None)
    folded.last_norm.pe_norm = None
    folded.eval()
    return folded
