"""A1 with torch's own unfold and fold; the matrix product as an einsum."""
import torch
from torch.nn import functional as F


def patchify(images, patch):
    H, W = images.shape[-2:]
    if (H % patch, W % patch) != (0, 0):
        raise ValueError
    return F.unfold(images, patch, stride=patch).transpose(1, 2)


def unpatchify(patches, patch, height, width):
    return F.fold(patches.mT, (height, width), patch, stride=patch)


def embed(images, weight, bias):
    return torch.einsum("bnp,dp->bnd", patchify(images, weight.shape[-1]), weight.reshape(len(weight), -1)).add_(bias)
