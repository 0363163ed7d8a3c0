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
    raise NotImplementedError("part 1: mean_tokens")


def pearson(a: Tensor, b: Tensor) -> float:
    """Pearson correlation of two tensors (N, D), all their N * D entries taken as one list of pairs."""
    raise NotImplementedError("part 2: pearson")


def mean_cosine(a: Tensor, b: Tensor) -> float:
    """Mean over the N tokens of the cosine of the angle between a's row and b's row, both (N, D)."""
    raise NotImplementedError("part 3: mean_cosine")


@torch.no_grad()
def counterbalance(model: nn.Module, images: Tensor) -> list[tuple[float, float] | None]:
    """For every place where tokens may meet PE, (Pearson, mean cosine) of the two; None where no PE is delivered.

    `model.norms` are the LayerNorms at those places, in order: what such a norm gives, LN(x) (B, N, D), is
    what PE is added to. `model.pes()` is the list of what is added there, each (1, N, D) or None.
    `model(images)` runs the model, and one run with all images has to do. The tokens are averaged over the images
    before they are compared. Measured in eval mode; afterwards the model is in the mode it was in, and has the hooks
    that it had before and no others, also if its run raises an error, which goes on to the caller.
    """
    raise NotImplementedError("part 4: counterbalance")
