"""Crop, flip, RandAugment and random erasing of many images at once, from a table of uniform numbers.

It is the augmentation of `augmentation` in sources.py, drawn in the same way. Two things make it fast. Cropping and
resizing is linear, so it is two small matrices for each image. RandAugment's magnitude is fixed, so all images that
drew one operation go through one call of torchvision's function.

What differs: weights of resizing have 15 bits, PIL's have 22, and torchvision's operations for tensors round otherwise
than PIL's. Shapes: B images, H x W pixels.
"""
import math
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..runtime.precision import full_float32
from .sources import Source

TRIES = 10                                          # torchvision draws a rectangle up to ten times until it fits
RECTANGLE = 2 * TRIES + 2                           # uniform numbers for a rectangle, and for all of an image:
COLUMNS = RECTANGLE + 1 + 3 + 3 + RECTANGLE + 1     # crop, flip, two operations, erasing


def rectangles(u: Tensor, *, scale: list[float], ratio: tuple[float, float], height: int, width: int,
               whole: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Uniform numbers (B, RECTANGLE) -> top, left, height, width (B,) and whether any try fitted.

    As torchvision draws them: area uniform in `scale`, aspect uniform in its logarithm, the first try that fits.
    whole: a rectangle as large as the image fits (cropping); otherwise it must be smaller (erasing).
    """
    area = (scale[0] + (scale[1] - scale[0]) * u[:, :TRIES]) * height * width           # (B, TRIES)
    low, high = map(math.log, ratio)
    aspect = torch.exp(low + (high - low) * u[:, TRIES:2 * TRIES])
    w, h = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    if not whole:                                   # RandomErasing's aspect is h / w, RandomResizedCrop's w / h
        w, h = h, w
    fits = ((0 < w) & (w <= width) & (0 < h) & (h <= height)) if whole else ((w < width) & (h < height))
    first = fits.int().argmax(1, keepdim=True)                                          # 0 if none fits: see `any`
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]
    top = (u[:, 2 * TRIES] * (height - h + 1)).long()
    left = (u[:, 2 * TRIES + 1] * (width - w + 1)).long()
    return top, left, h, w, fits.any(1)


def resize_matrix(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(B,) first pixel and length of each crop's side -> (B, size, size): resizes it to `size` pixels, bicubic.

    Row r holds the weights of the pixels that output pixel r is made of; nothing outside the crop has weight. The
    filter is PIL's, a = -1/2, widened when the crop is larger than the output (which "antialias" means).
    """
    pixel = torch.arange(size, device=start.device)
    step = (length / size)[:, None, None]                                               # (B, 1, 1)
    centre = (pixel + 0.5)[:, None] * step                                              # (B, size, 1), in the crop
    place = (pixel[None, :] - start[:, None])[:, None, :]                               # (B, 1, size)
    x = ((place + 0.5 - centre) / step.clamp(min=1)).abs()                              # (B, size, size)
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


def operations(magnitude: float, size: int, fill: list[int]) -> list[list]:
    """RandAugment's 14 operations (Cubuk et al. 2020) as torchvision defines them; magnitude 0 ... 1 of the range.

    Each is [with sign +1, with sign -1], or one function if it knows no sign; they take and give images (B, 3, H, W).
    """
    affine = partial(F.affine, angle=0.0, scale=1.0, fill=fill)
    shear, shift, enhance = math.degrees(math.atan(0.3 * magnitude)), int(150 / 331 * size * magnitude), 0.9 * magnitude
    signed = [
        lambda s: partial(affine, translate=[0, 0], shear=[s * shear, 0.0], center=[0.0, 0.0]),
        lambda s: partial(affine, translate=[0, 0], shear=[0.0, s * shear], center=[0.0, 0.0]),
        lambda s: partial(affine, translate=[s * shift, 0], shear=[0.0, 0.0]),
        lambda s: partial(affine, translate=[0, s * shift], shear=[0.0, 0.0]),
        lambda s: partial(F.rotate, angle=s * 30.0 * magnitude, fill=fill),
        lambda s: partial(F.adjust_brightness, brightness_factor=1 + s * enhance),
        lambda s: partial(F.adjust_saturation, saturation_factor=1 + s * enhance),
        lambda s: partial(F.adjust_contrast, contrast_factor=1 + s * enhance),
        lambda s: partial(F.adjust_sharpness, sharpness_factor=1 + s * enhance)]
    return [[lambda x: x], *([op(1), op(-1)] for op in signed),
            [partial(F.posterize, bits=8 - round(4 * magnitude))],
            [partial(F.solarize, threshold=255.0 * (1 - magnitude))], [F.autocontrast], [F.equalize]]


def one_operation(images: Tensor, u: Tensor, ops: list[list]) -> Tensor:
    """One of the operations for each image, with probability 1/2. u: (B, 3), on the CPU, which does the grouping."""
    count = torch.tensor([len(signs) for signs in ops])
    choice, minus = (u[:, 1] * len(ops)).long(), (u[:, 2] >= 0.5).long()
    group = (count.cumsum(0) - count)[choice] + minus * (count[choice] - 1)             # (B,), among all functions
    group = torch.where(u[:, 0] < 0.5, group, count.sum())                              # the last group: no operation
    place = group.argsort(stable=True).to(images.device, non_blocking=True)
    parts = images[place].split(group.bincount(minlength=int(count.sum()) + 1).tolist())
    calls = [op for signs in ops for op in signs]
    parts = [op(part) if len(part) else part for op, part in zip([*calls, lambda x: x], parts, strict=True)]
    return torch.empty_like(images).index_copy_(0, place, torch.cat(parts))


def erase(images: Tensor, u: Tensor, *, probability: float, fill: list[int]) -> Tensor:
    """Random erasing (Zhong et al. 2020): a rectangle in the colour `fill`; u (B, RECTANGLE + 1)."""
    height, width = images.shape[2:]
    top, left, h, w, fitted = rectangles(u[:, :-1], scale=[0.02, 0.33], ratio=(0.3, 3.3), height=height, width=width,
                                         whole=False)

    def inside(size, first, length):                                                    # (B, size)
        pixel = torch.arange(size, device=u.device)
        return (pixel >= first[:, None]) & (pixel < (first + length)[:, None])

    rows, columns = inside(height, top, h), inside(width, left, w)
    erased = (rows[:, :, None] & columns[:, None, :]) & (fitted & (u[:, -1] < probability))[:, None, None]  # (B, H, W)
    colour = torch.tensor(fill, dtype=torch.uint8, device=images.device).view(3, 1, 1)
    return torch.where(erased[:, None], colour, images)


@full_float32()
def augmented(images: Tensor, u: Tensor, source: Source, *, scale: list[float], rand_augment: int = 0,
              erasing: float = 0.0) -> Tensor:
    """Crop, flip, RandAugment, random erasing: (B, 3, H, W) uint8 on the device, u (B, COLUMNS) on CPU -> the same."""
    height, width = images.shape[2:]
    parts = [RECTANGLE, 1, 3, 3, RECTANGLE + 1]
    _, _, first, second, _ = u.split(parts, dim=1)
    crop, flip, _, _, last = u.to(images.device, non_blocking=True).split(parts, dim=1)
    top, left, h, w, fitted = rectangles(crop, scale=scale, ratio=(3 / 4, 4 / 3), height=height, width=width,
                                         whole=True)
    zero = torch.zeros_like(top)                    # no try fitted: the whole image
    images = resized_crop(images, torch.where(fitted, top, zero), torch.where(fitted, left, zero),
                          torch.where(fitted, h, height), torch.where(fitted, w, width))
    images = torch.where((flip < 0.5)[:, :, None, None], images.flip(3), images)
    fill = [round(255 * channel) for channel in source.mean]
    if rand_augment:
        ops = operations(rand_augment / 10, width, fill)
        images = one_operation(one_operation(images, first, ops), second, ops)
    return erase(images, last, probability=erasing, fill=fill) if erasing else images
