"""A5 with cat, corrcoef and einsum; hooks that keep what they need by place, removed by an ExitStack."""
from contextlib import ExitStack

import torch
from torch.nn.functional import normalize


def mean_tokens(batches):
    return torch.cat(list(batches)).mean(dim=0)


def pearson(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def mean_cosine(a, b):
    return torch.einsum("nd,nd->n", normalize(a, dim=1), normalize(b, dim=1)).mean().item()


def counterbalance(model, images):
    norms = list(model.norms)
    tokens = {}

    def keep(module, inputs, output):
        tokens[norms.index(module)] = mean_tokens([output])
    with ExitStack() as undo, torch.no_grad():
        undo.callback(model.train, model.training)
        for norm in norms:
            undo.callback(norm.register_forward_hook(keep).remove)
        model.eval()(images)
        result = []
        for place, pe in enumerate(model.pes()):
            if pe is None:
                result.append(None)
            else:
                result.append((pearson(tokens[place], pe[0]), mean_cosine(tokens[place], pe.squeeze(0))))
        return result
