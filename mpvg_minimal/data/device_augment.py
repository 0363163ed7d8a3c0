"""Crop, flip, RandAugment and random erasing of many images at once, from a table of uniform numbers.

It is the augmentation of `augmentation` in data.py, drawn in the same way. Two things make it fast. Cropping and
resizing is linear, so it is two small matrices for each image. RandAugment's magnitude is fixed, so all images that
drew one operation go through one call of torchvision's function.

What differs: resizing rounds once more precisely than PIL's fixed-point arithmetic, and torchvision's operations for
tensors round otherwise than PIL's. Shapes: B images, H x W pixels.
"""
import math
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

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
    """(B, 3, H, W) uint8, and for each image its rectangle (B,) -> (B, 3, H, W) uint8."""
    rows = resize_matrix(top, height, images.shape[2])                                  # (B, H, H)
    columns = resize_matrix(left, width, images.shape[3])                               # (B, W, W)
    x = rows[:, None] @ images.float() @ columns[:, None].transpose(2, 3)               # (B, 3, H, W)
    return x.round().clamp(0, 255).to(torch.uint8)


def operations(magnitude: float, size: int, fill: list[int]) -> list:
    """RandAugment's 14 operations (Cubuk et al. 2020) as torchvision defines them; magnitude 0 ... 1 of the range.

    Each is called with (images, sign), sign +1 or -1; those that know no sign ignore it.
    """
    affine = partial(F.affine, angle=0.0, scale=1.0, fill=fill, center=[0.0, 0.0])
    shear, shift, enhance = math.degrees(math.atan(0.3 * magnitude)), int(150 / 331 * size * magnitude), 0.9 * magnitude
    return [
        lambda x, s: x,
        lambda x, s: affine(x, translate=[0, 0], shear=[s * shear, 0.0]),
        lambda x, s: affine(x, translate=[0, 0], shear=[0.0, s * shear]),
        lambda x, s: F.affine(x, angle=0.0, translate=[s * shift, 0], scale=1.0, shear=[0.0, 0.0], fill=fill),
        lambda x, s: F.affine(x, angle=0.0, translate=[0, s * shift], scale=1.0, shear=[0.0, 0.0], fill=fill),
        lambda x, s: F.rotate(x, angle=s * 30.0 * magnitude, fill=fill),
        lambda x, s: F.adjust_brightness(x, 1 + s * enhance),
        lambda x, s: F.adjust_saturation(x, 1 + s * enhance),
        lambda x, s: F.adjust_contrast(x, 1 + s * enhance),
        lambda x, s: F.adjust_sharpness(x, 1 + s * enhance),
        lambda x, s: F.posterize(x, 8 - round(4 * magnitude)),
        lambda x, s: F.solarize(x, 255.0 * (1 - magnitude)),
        lambda x, s: F.autocontrast(x),
        lambda x, s: F.equalize(x),
    ]


def one_operation(images: Tensor, u: Tensor, ops: list) -> Tensor:
    """One of the operations for each image, with probability 1/2, in place. u: (B, 3), on CPU: grouping reads it."""
    choice = (u[:, 1] * len(ops)).long()
    for number, op in enumerate(ops):
        for sign in (1, -1):
            drew = (u[:, 0] < 0.5) & (choice == number) & ((u[:, 2] < 0.5) == (sign == 1))
            which = drew.nonzero()[:, 0].to(images.device, non_blocking=True)
            if len(which):
                images[which] = op(images[which], sign)
    return images


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


def augmented(images: Tensor, u: Tensor, source: Source, *, scale: list[float], rand_augment: int = 0,
              erasing: float = 0.0) -> Tensor:
    """Crop, flip, RandAugment, random erasing: (B, 3, H, W) uint8 on the device, u (B, COLUMNS) on CPU -> the same."""
    height, width = images.shape[2:]
    crop, flip, first, second, last = u.split([RECTANGLE, 1, 3, 3, RECTANGLE + 1], dim=1)
    crop, flip, last = (part.to(images.device, non_blocking=True) for part in (crop, flip, last))
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
