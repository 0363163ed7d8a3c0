"""Crop, flip, RandAugment and random erasing of many images at once, from a table of uniform numbers.

It is the augmentation of `augmentation` in sources.py, drawn in the same way. Two things make it fast. Cropping and
resizing is linear, so it is two small matrices for each image. RandAugment's magnitude is fixed, so all images that
drew one operation go through one call of torchvision's function.

PIL differs: its weights of resizing have 22 bits, ours 15, and it rounds otherwise. Shapes: B images, H x W pixels.
"""
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import v2

from ..runtime.device import full_float32, to_device
from .sources import Source

TRIES = 10                                          # torchvision draws a rectangle up to ten times until it fits
RECTANGLE = 2 * TRIES + 2                           # uniform numbers for a rectangle, and for all of an image:
COLUMNS = RECTANGLE + 1 + 3 + 3 + RECTANGLE + 1     # crop, flip, two operations, erasing


def rectangles(u: Tensor, *, scale: list[float], ratio: tuple[float, float], height: int, width: int,
               whole: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Uniform numbers (B, RECTANGLE) -> top, left, height, width (B,) and whether any try fitted.

    As torchvision draws them: area uniform in `scale`, aspect uniform in its logarithm, the first try that fits. If
    none fits, the rectangle is the whole image.
    whole: a rectangle as large as the image fits (cropping); otherwise it must be smaller (erasing).
    """
    area = (scale[0] + (scale[1] - scale[0]) * u[:, :TRIES]) * height * width           # (B, TRIES)
    low, high = map(math.log, ratio)
    aspect = torch.exp(low + (high - low) * u[:, TRIES:2 * TRIES])
    w, h = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    if not whole:                                   # RandomErasing's aspect is h / w, RandomResizedCrop's w / h
        w, h = h, w
    fits = ((0 < w) & (w <= width) & (0 < h) & (h <= height)) if whole else ((w < width) & (h < height))
    first, fitted = fits.int().argmax(1, keepdim=True), fits.any(1)
    w = torch.where(fitted, w.gather(1, first)[:, 0], width)
    h = torch.where(fitted, h.gather(1, first)[:, 0], height)
    top = (u[:, 2 * TRIES] * (height - h + 1)).long()
    left = (u[:, 2 * TRIES + 1] * (width - w + 1)).long()
    return top, left, h, w, fitted


def resize_matrix(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(B,) first pixel and length of each crop's side -> (B, size, size): resizes it to `size` pixels, bicubic.

    Row r holds the weights of the pixels that output pixel r is made of; nothing outside the crop has weight. The
    filter is PIL's, a = -1/2, widened when the crop is larger than the output (which "antialias" means).
    """
    pixel = torch.arange(size, device=start.device)
    step = (length / size)[:, None, None]                                               # (B, 1, 1)
    center = (pixel + 0.5)[:, None] * step                                              # (B, size, 1), in the crop
    place = (pixel[None, :] - start[:, None])[:, None, :]                               # (B, 1, size)
    x = ((place + 0.5 - center) / step.clamp(min=1)).abs()                              # (B, size, size)
    near, far = 1.5 * x ** 3 - 2.5 * x ** 2 + 1, -0.5 * x ** 3 + 2.5 * x ** 2 - 4 * x + 2
    weight = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weight = weight * ((place >= 0) & (place < length[:, None, None]))
    return weight / weight.sum(2, keepdim=True)


def resized_crop(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """(B, 3, H, W) uint8, and for each image its rectangle (B,) -> (B, 3, H, W) uint8; first rows, then columns.

    Exact: the weights are multiples of 2^-15 and the pixels whole numbers, so no sum needs more than float32's 24 bits.
    A GPU adds in an order that depends on how many images it is given, and no order can change these sums.
    """
    rows, columns = ((resize_matrix(start, length, size) * 2 ** 15).round() / 2 ** 15               # (B, size, size)
                     for start, length, size in ((top, height, images.shape[2]), (left, width, images.shape[3])))
    x = (rows[:, None] @ images.float()).round_().clamp_(0, 255)                        # (B, 3, H, W)
    return (x @ columns[:, None].transpose(2, 3)).round_().clamp_(0, 255).to(torch.uint8)


def operations(magnitude: int, size: int, fill: list[int]) -> list[list[Callable]]:
    """RandAugment's 14 operations (Cubuk et al. 2020), torchvision's own; magnitude: 0 to 10, as in `augmentation`.

    Each is [with sign +1, with sign -1], or one function if it knows no sign; they take and give images (B, 3, H, W).
    """
    whole, ops = v2.RandAugment(fill=fill), []
    apply = partial(whole._apply_image_or_video_transform, interpolation=whole.interpolation, fill=whole._fill)
    for name, (strengths, signed) in whole._AUGMENTATION_SPACE.items():
        bins = strengths(31, size, size)
        strength = 0.0 if bins is None else float(bins[3 * magnitude])
        signs = (1, -1) if signed else (1,)
        ops.append([partial(apply, transform_id=name, magnitude=sign * strength) for sign in signs])
    return ops


def one_operation(images: Tensor, u: Tensor, ops: list[list[Callable]]) -> Tensor:
    """One of the operations for each image, with probability 1/2. u: (B, 3), on the CPU, which does the grouping."""
    count = torch.tensor([len(signs) for signs in ops])
    choice, minus = (u[:, 1] * len(ops)).long(), (u[:, 2] >= 0.5).long()
    group = (count.cumsum(0) - count)[choice] + minus * (count[choice] - 1)             # (B,), among all functions
    group = torch.where(u[:, 0] < 0.5, group, count.sum())                              # the last group: no operation
    place = to_device(group.argsort(stable=True), images.device)
    parts = images[place].split(group.bincount(minlength=int(count.sum()) + 1).tolist())
    calls = [op for signs in ops for op in signs]
    parts = [op(part) if len(part) else part for op, part in zip([*calls, lambda x: x], parts, strict=True)]
    return torch.empty_like(images).index_copy_(0, place, torch.cat(parts))


def erase(images: Tensor, u: Tensor, *, probability: float, fill: list[int]) -> Tensor:
    """Random erasing (Zhong et al. 2020): a rectangle in the color `fill`; u (B, RECTANGLE + 1)."""
    height, width = images.shape[2:]
    top, left, h, w, fitted = rectangles(u[:, :-1], scale=[0.02, 0.33], ratio=(0.3, 3.3), height=height, width=width,
                                         whole=False)

    def inside(size, first, length):                                                    # (B, size)
        pixel = torch.arange(size, device=u.device)
        return (pixel >= first[:, None]) & (pixel < (first + length)[:, None])

    rows, columns = inside(height, top, h), inside(width, left, w)
    erased = (rows[:, :, None] & columns[:, None, :]) & (fitted & (u[:, -1] < probability))[:, None, None]  # (B, H, W)
    color = torch.tensor(fill, dtype=torch.uint8, device=images.device).view(3, 1, 1)
    return torch.where(erased[:, None], color, images)


@full_float32()
def augmented(images: Tensor, u: Tensor, source: Source, *, scale: list[float], rand_augment: int = 0,
              erasing: float = 0.0) -> Tensor:
    """Crop, flip, RandAugment, random erasing: (B, 3, H, W) uint8 on the device, u (B, COLUMNS) on CPU -> the same."""
    height, width = images.shape[2:]
    parts = [RECTANGLE, 1, 3, 3, RECTANGLE + 1]
    _, _, first, second, _ = u.split(parts, dim=1)
    crop, flip, _, _, last = to_device(u, images.device).split(parts, dim=1)
    *rectangle, _ = rectangles(crop, scale=scale, ratio=(3 / 4, 4 / 3), height=height, width=width, whole=True)
    images = resized_crop(images, *rectangle)
    images = torch.where((flip < 0.5)[:, :, None, None], images.flip(3), images)
    fill = [round(255 * channel) for channel in source.mean]
    if rand_augment:
        ops = operations(rand_augment, width, fill)
        images = one_operation(one_operation(images, first, ops), second, ops)
    return erase(images, last, probability=erasing, fill=fill) if erasing else images
