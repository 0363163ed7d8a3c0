"""Segmentation: a linear head on every token after the last norm.

Under GAP, PE at the last norm adds one vector to every image's feature. Here every token is read by itself and PE
differs from token to token, so PE at the last norm can matter at inference too: `fold_last_pe(vit, dense=True)`.

Source: the linear head is Segmenter's (Strudel et al. 2021). Trained by __main__.py.
Masks: see targets.py. Shapes: B images, h x w the grid of patches of size P, D width, K classes.
"""
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, pixel_shuffle

from ..runtime import distributed
from ..training.task import Task, evaluate_batches
from ..vit import ViT
from .files import IGNORED


def token_map(vit: ViT, images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, D, h, w): the tokens after the last norm on their grid, without the class token."""
    tokens, grid = vit.forward_tokens(images), vit.patch_embed.grid         # (B, N, D)
    return tokens[:, -grid[0] * grid[1]:].transpose(1, 2).unflatten(2, grid)


class Segmenter(nn.Module):
    """(B, 3, H, W) -> scores of every pixel (B, K, H, W).

    A linear map gives each token a patch of c x c scores for every class, c = P, or P / 4 for larger patches than
    8; a pixel shuffle lays them out, and bilinear interpolation fills what is missing.
    """

    def __init__(self, vit: ViT, num_classes: int):
        super().__init__()
        width, patch = vit.head.in_features, vit.patch_embed.patch_size
        self.vit, self.side = vit, patch if patch <= 8 else patch // 4
        vit.head = nn.Identity()
        self.head = nn.Conv2d(width, num_classes * self.side ** 2, kernel_size=1)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        scores = self.head(token_map(self.vit, images))                     # (B, D, h, w) -> (B, K * c * c, h, w)
        scores = pixel_shuffle(scores, self.side)                           # (B, K, c * h, c * w)
        if scores.shape[2:] == images.shape[2:]:
            return scores
        return interpolate(scores, images.shape[2:], mode="bilinear")       # (B, K, H, W)


def segmentation_loss(model: nn.Module, images: Tensor, masks: Tensor, *,
                      label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and the share of right pixels, of each image's counted pixels; then the images' mean and sum."""
    scores, masks = model(images), masks.long()                             # (B, K, H, W), (B, H, W)
    counted = masks != IGNORED
    pixels = counted.flatten(1).sum(1).clamp(min=1)                         # (B,)
    loss = cross_entropy(scores, masks, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="none")
    right = counted & (scores.detach().argmax(1) == masks)
    return (loss.flatten(1).sum(1) / pixels).mean(), (right.flatten(1).sum(1) / pixels).sum()


@torch.no_grad()
def evaluate_segmenter(model: nn.Module, batches: Any, **options: Any) -> dict[str, float]:
    """Mean IoU over the classes that occur in masks or predictions, and the share of right pixels, both 0 to 1."""
    confusion: Any = 0
    for scores, masks in evaluate_batches(model, batches, **options):
        classes, counted = scores.shape[1], masks != IGNORED
        pairs = classes * masks[counted].long() + scores.argmax(1)[counted]
        confusion = confusion + pairs.bincount(minlength=classes ** 2).view(classes, classes)   # (K, K): truth, given
    return iou_of(distributed.all_reduce_sum(confusion))


def iou_of(confusion: Tensor) -> dict[str, float]:
    """confusion (K, K): number of pixels of a class (row) that were given a class (column)."""
    confusion = confusion.cpu().double()
    both, either = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return {"mean_iou": (both / either)[either > 0].mean().item(),
            "pixel_accuracy": (both.sum() / confusion.sum()).item()}


SEGMENTATION = Task(segmentation_loss, evaluate_segmenter, accuracy="train_pixel_accuracy", score="mean_iou",
                    line="mean IoU {mean_iou:.4f}  pixels {pixel_accuracy:.4f}", result="test mean IoU: {mean_iou:.4f}")
