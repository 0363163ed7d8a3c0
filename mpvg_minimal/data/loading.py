"""From a data set on disk to the batches of one process: which loader, how many workers, and normalization."""
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..runtime import distributed
from ..runtime.errors import UserError
from . import sources
from .batches import Batches
from .device_batches import DeviceBatches

TESTED = 1024           # images: launching the kernels for fewer would take a GPU longer than computing


def choose_loader(name: str, device: torch.device, dataset: str) -> str:
    """--loader auto: "device" on a GPU for data that fits there, else "workers". UserError for ImageNet on a device."""
    fits = dataset != "imagenet"
    if name == "device" and not fits:
        raise UserError(f"--loader device: {dataset} does not fit on a device; leave it out, or give --loader workers")
    return name if name != "auto" else "device" if fits and device.type == "cuda" else "workers"


def choose_workers(given: int | None) -> int:
    """--workers; if the flag is omitted, this process's share of the machine's cores, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.count()))         # processes on this machine
    return min(16, cores // here) if given is None else given


def make_batches(source: sources.Source, *, train: bool, batch_size: int, device: torch.device,
                 augment: dict[str, Any] | None = None, seed: int = 0, limit: int | None = None,
                 loader: str = "workers", workers: int | None = 0) -> Batches | DeviceBatches:
    """The training or the test images of a source as batches, this process's share of them.

    batch_size: images of one step over all processes. augment: the options of `augmentation`, for training images.
    On a GPU the test takes at least 1,024 images at a time. limit: only this many images. loader: "device" holds and
    augments the images on the device; "workers" reads them in this number of processes, None: as many as there are
    cores, or none where nothing is decoded or augmented.
    """
    dataset = sources.limit_dataset(source.train if train else source.test, limit)
    options = dict(batch_size=batch_size, train=train, seed=seed, rank=distributed.rank(), world=distributed.count())
    augment = augment if train else None
    if source.transforms:                                       # they make the targets, and check images and targets
        transform = source.transforms["train" if train else "test"]
    else:
        if not train and device.type == "cuda":
            options["batch_size"] = max(batch_size, TESTED)
        if loader == "device":
            return DeviceBatches(dataset, source, augment, device, **options)
        options |= dict(image_size=source.image_size, classes=len(source.classes))
        transform = sources.augmentation(source, **augment) if augment else sources.plain(source)
    workers = 0 if transform is None and workers is None else choose_workers(workers)
    return Batches(dataset, transform, workers=workers, pin_memory=device.type == "cuda", **options)


def normalizer(source: sources.Source, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function: (B, 3, H, W) uint8 images on the device -> float32, by the mean and the deviation of the source."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (source.mean, source.std))
    return lambda images: (images.float() / 255 - mean) / std


def first_images(source: sources.Source, count: int) -> Tensor:
    """`count` test images, normalized, (B, 3, H, W) on the CPU: the first, or of folders evenly spaced ones."""
    cpu = torch.device("cpu")
    batches = make_batches(source, train=False, batch_size=count, limit=count, device=cpu)
    return normalizer(source, cpu)(next(iter(batches.epoch()))[0])
