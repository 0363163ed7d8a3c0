"""A1: cut images into patches, put them together again, map every patch to a token.

Shapes: B images, C channels, H x W pixels, P patch size, N = (H / P) * (W / P) patches, D width.
"""
from torch import Tensor


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, N, C * P * P), with P = patch.

    The patches come row by row, from the top left. Within a patch all pixels of channel 0 come first, row by
    row, then all of channel 1, and so on. ValueError if P does not divide both H and W.
    """
    raise NotImplementedError("part 1: patchify")


def unpatchify(patches: Tensor, patch: int, height: int, width: int) -> Tensor:
    """(B, N, C * P * P) -> (B, C, H, W), with H = height and W = width: what `patchify` did, undone."""
    raise NotImplementedError("part 2: unpatchify")


def embed(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, C, H, W) -> tokens (B, N, D), by one matrix product and without a convolution.

    weight (D, C, P, P) and bias (D,) are those of a convolution with kernel size P and stride P, and the
    tokens are what that convolution gives, row by row.
    """
    raise NotImplementedError("part 3: embed")
