"""A5: measure, layer by layer, whether the position embedding (PE) counterbalances the tokens that it meets.

Shapes: B images, N tokens, D width.
"""
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity


def mean_tokens(batches: Iterable[Tensor]) -> Tensor:
    """Batches of tokens, each (B, N, D) -> their mean over all images of all batches, (N, D), in their dtype.

    The batches may have different numbers of images, and every image counts the same.
    """
    total, images = 0, 0
    for batch in batches:
        total, images = total + batch.sum(dim=0), images + len(batch)           # (B, N, D) -> (N, D)
    return total / images


def pearson(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of two tensors (N, D), all their N * D entries taken as one list of pairs."""
    a, b = a - a.mean(), b - b.mean()
    return ((a * b).sum() / (a.norm() * b.norm())).item()


def mean_cosine(a: Tensor, b: Tensor) -> float:
    """Mean over the N tokens of the cosine of the angle between a's row and b's row, both (N, D)."""
    return cosine_similarity(a, b, dim=1).mean().item()


@torch.no_grad()
def counterbalance(model: nn.Module, images: Tensor) -> list[tuple[float, float] | None]:
    """For every place where tokens may meet PE, (Pearson, mean cosine) of the two; None where no PE is delivered.

    `model.norms` are the LayerNorms at those places, in order: what such a norm gives, LN(x) (B, N, D), is
    what PE is added to. `model.pes()` is the list of what is added there, each (1, N, D) or None.
    `model(images)` runs the model, and one run with all images has to do. The tokens are averaged over the images
    before they are compared. Measured in eval mode; afterwards the model is in the mode it was in, and has the hooks
    that it had before and no others, also if its run raises an error, which goes on to the caller.
    """
    outputs, was_training = [], model.training
    hooks = [norm.register_forward_hook(lambda module, inputs, output: outputs.append(output))
             for norm in model.norms]
    model.eval()
    try:
        model(images)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    tokens = [mean_tokens([output]) for output in outputs]                      # (N, D) each
    return [None if pe is None else (pearson(t, pe[0]), mean_cosine(t, pe[0]))
            for t, pe in zip(tokens, model.pes())]
