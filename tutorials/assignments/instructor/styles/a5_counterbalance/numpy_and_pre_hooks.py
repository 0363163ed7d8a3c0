"""A5 with a running mean, numpy and the statistics module; pre-hooks that apply the norm's equation to its input."""
import statistics

import numpy as np
import torch
from torch.nn import functional as F


def mean_tokens(batches):
    mean, count = None, 0
    for batch in batches:
        for image in batch:
            count += 1
            mean = image.clone() if mean is None else mean + (image - mean) / count
    return mean


def pearson(a, b):
    return float(np.corrcoef(a.numpy().ravel(), b.numpy().ravel())[0, 1])


def mean_cosine(a, b):
    return statistics.mean([F.cosine_similarity(row, other, dim=0).item() for row, other in zip(a, b)])


@torch.no_grad()
def counterbalance(model, images):
    inputs, mode, handles = [], model.training, []
    try:
        model.eval()
        for norm in model.norms:
            handles.append(norm.register_forward_pre_hook(lambda module, args: inputs.append(args[0])))
        model(images)
    finally:
        [handle.remove() for handle in handles]
        model.train(mode)
    result = []
    for norm, x, pe in zip(model.norms, inputs, model.pes()):
        tokens = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps).mean(0)
        result.append(pe if pe is None else (pearson(tokens, pe[0]), mean_cosine(tokens, pe[0])))
    return result
