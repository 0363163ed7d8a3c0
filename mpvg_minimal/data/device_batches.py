"""A data set that lives on the device as uint8 and is augmented there, many images at a time.

CIFAR is 150 MB: it fits, and worker processes cannot feed a GPU that trains a small model. An image's draws are again
a function of (seed, epoch, index): each epoch has a table of uniform numbers, a row for each image. On a GPU an epoch
is augmented before its first step, as far as memory allows, because torchvision's functions wait for the device.
"""
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..runtime.device import to_device
from ..runtime.seeding import generator
from .batches import Batches, BatchOrder
from .device_augment import COLUMNS, augmented
from .sources import Source, plain

CHUNK = 4096            # images augmented together on a CPU
BYTES = 20              # that augmentation needs at its peak for each of their values; 15 were measured


class DeviceBatches:
    """As `Batches` in batches.py, the same images in the same order, but held and augmented on the device."""

    def __init__(self, dataset: Dataset, source: Source, augment: dict | None, device: torch.device, **options):
        self.order = BatchOrder(len(dataset), **options)
        self.batch_size, self.source, self.augment = self.order.batch_size, source, augment
        whole = Batches(dataset, plain(source), batch_size=len(dataset), train=False, image_size=source.image_size,
                        classes=len(source.classes))
        images, labels = next(whole.epoch())
        self.images, self.labels = images.to(device), labels.to(device)                 # (size, 3, H, W) uint8, (size,)
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0       # bytes
        self.together = max(CHUNK, free // 3 // (BYTES * self.images[0].numel()))

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of this process in this epoch, from step `start` on."""
        steps, u = self.order.shares(epoch, start), None
        if self.augment:
            u = torch.rand(len(self.labels), COLUMNS, generator=generator("images", self.order.seed, epoch))
        together = max(1, self.together // max(map(len, steps), default=1))
        for position in range(0, len(steps), together):
            chunk = steps[position:position + together]
            index = torch.cat(chunk)
            there = to_device(index, self.images.device)
            images, labels = self.images[there], self.labels[there]
            if u is not None:
                images = augmented(images, u[index], self.source, **self.augment)
            sizes = [len(step) for step in chunk]
            yield from zip(images.split(sizes), labels.split(sizes), strict=True)
