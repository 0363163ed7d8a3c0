"""A5 on a copy of the model, so that the mode and the hooks of the model itself need not be put back."""
import copy

import torch


def mean_tokens(batches):
    images = [image for batch in batches for image in batch]
    return torch.stack(images).mean(dim=0)


def pearson(a, b):
    a, b = (a - a.mean()).flatten(), (b - b.mean()).flatten()
    return (a @ b / (a.norm() * b.norm())).item()


def mean_cosine(a, b):
    return ((a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))).mean().item()


@torch.no_grad()
def counterbalance(model, images):
    twin, seen = copy.deepcopy(model).eval(), {}
    for place, norm in enumerate(twin.norms):
        norm.register_forward_hook(lambda _, inputs, output, place=place: seen.update({place: mean_tokens([output])}))
    twin(images)
    return [pe if pe is None else (pearson(seen[place], pe[0]), mean_cosine(seen[place], pe[0]))
            for place, pe in enumerate(model.pes())]
