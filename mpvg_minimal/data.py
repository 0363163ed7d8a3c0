"""torchvision data sets -> batches of uint8 images whose content depends on (seed, epoch, index) alone.

Images stay uint8 until they are on the device (a quarter of the bytes to move) and are normalised there.
Batches are built for steps, not for processes: `batch_size` counts the images of one optimizer step over all
processes, so a recipe is the same on one GPU and on eight. Shapes: B images, 3 channels, H x W pixels.
"""
import signal
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets
from torchvision.transforms import InterpolationMode, v2

from .errors import UserError
from .seeding import generator, seeded
from .shapes import Shapes


class Source(NamedTuple):
    """A data set as it is on disk: (PIL image or uint8 tensor, label) pairs, and what a model must know of it."""

    train: Dataset
    test: Dataset
    classes: list[str]
    image_size: int
    mean: tuple[float, float, float]        # of the pixels, scaled to 0 ... 1
    std: tuple[float, float, float]
    transforms: dict[str, v2.Transform | None] | None = None    # of "train" and "test", if it brings its own


CIFAR_STATS = {"cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
               "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))}
IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def open_source(dataset: str, data_dir: str, image_size: int = 224) -> Source:
    """By name: "shapes", "cifar10", "cifar100" or "imagenet", the only one that has no size of its own."""
    if dataset == "shapes":
        return open_shapes()
    return open_imagenet(data_dir, image_size) if dataset == "imagenet" else open_cifar(dataset, data_dir)


def open_shapes() -> Source:
    """The built-in data set: always the same 10,000 training and 2,000 test images."""
    train, test = Shapes("train"), Shapes("test")
    return Source(train, test, train.classes, train.images.shape[-1], (0.25, 0.25, 0.25), (0.25, 0.25, 0.25))


def open_cifar(name: str, data_dir: str) -> Source:
    """CIFAR-10 or CIFAR-100, downloaded into `data_dir` if it is not there. UserError if it cannot be had."""
    kind, archive = {"cifar10": (datasets.CIFAR10, "cifar-10-python.tar.gz"),
                     "cifar100": (datasets.CIFAR100, "cifar-100-python.tar.gz")}[name]
    try:
        train, test = (kind(data_dir, train=split, download=True) for split in (True, False))
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{name} is not complete in {data_dir} and could not be downloaded ({reason}): put {archive} "
                        f"into {data_dir}, or train without a download by --dataset shapes") from error
    return Source(train, test, train.classes, 32, *CIFAR_STATS[name])


def open_imagenet(data_dir: str, image_size: int = 224) -> Source:
    """A folder with `train/CLASS/*.jpg` and `val/CLASS/*.jpg`. UserError if it is not like that."""
    splits = []
    for name in ("train", "val"):
        try:
            splits.append(datasets.ImageFolder(Path(data_dir) / name))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{data_dir}: {error}. Expected {data_dir}/{name}/CLASS/*.jpg for every class") from error
    train, val = splits
    if train.classes != val.classes:
        differ = sorted(set(train.classes) ^ set(val.classes))
        raise UserError(f"{data_dir}: train/ and val/ hold different classes, for instance {differ[0]} is in one "
                        "of them alone: both need a folder for every class")
    return Source(train, val, train.classes, image_size, *IMAGENET_STATS)


def augmentation(source: Source, *, scale: list[float], rand_augment: int, erasing: float) -> v2.Compose:
    """Crop, flip, RandAugment, random erasing: PIL image -> (3, H, W) uint8.

    rand_augment is the magnitude on timm's scale of 0 to 10, which the published recipes use: timm draws two
    operations and applies each with probability 1/2. torchvision's scale has 31 steps for the same range, so 9
    becomes 27 there. timm's noise on the magnitude is left out. Erased pixels get the data set's mean colour.
    """
    crop = v2.RandomResizedCrop(source.image_size, scale=scale, interpolation=InterpolationMode.BICUBIC)
    colour = tuple(round(255 * channel) for channel in source.mean)
    one_operation = v2.RandAugment(num_ops=1, magnitude=3 * rand_augment, num_magnitude_bins=31, fill=list(colour))
    return v2.Compose([crop, v2.RandomHorizontalFlip(),
                       v2.RandomApply([one_operation], p=0.5), v2.RandomApply([one_operation], p=0.5),
                       v2.PILToTensor(), v2.RandomErasing(erasing, value=colour)])


def plain(source: Source) -> v2.Transform | None:
    """For testing: PIL image -> (3, H, W) uint8, large images by the usual resize and central crop."""
    if isinstance(source.test, datasets.ImageFolder):
        resize = v2.Resize(round(source.image_size / 0.875), interpolation=InterpolationMode.BICUBIC)
        return v2.Compose([resize, v2.CenterCrop(source.image_size), v2.PILToTensor()])
    return None if isinstance(source.test, Shapes) else v2.PILToTensor()


def mixing(num_classes: int, *, mixup: float, cutmix: float) -> v2.Transform | None:
    """Mixup or cutmix, one of them for each batch (alphas; 0: without), on normalised images on their device."""
    kinds = [kind(alpha=alpha, num_classes=num_classes)
             for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha > 0]
    return v2.RandomChoice(kinds) if kinds else None


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> float32, by mean and std of shape (3, 1, 1) for pixels scaled to 0 ... 1."""
    return (images.float() / 255 - mean) / std


def take(dataset: Dataset, limit: int | None) -> Dataset:
    """`limit` images: the first ones; of a folder, which is sorted by class, evenly spaced ones."""
    if limit is None or limit >= len(dataset):
        return dataset
    stride = len(dataset) / limit if isinstance(dataset, datasets.ImageFolder) else 1
    return Subset(dataset, [int(number * stride) for number in range(limit)])


class Keyed(Dataset):
    """dataset[epoch, index] -> (image uint8, label): the epoch travels with the index, also to worker processes."""

    def __init__(self, dataset: Dataset, transform: v2.Transform | None, seed: int):
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        image, label = self.dataset[index]
        if self.transform is not None:
            with seeded("image", self.seed, epoch, index):
                image, label = self.transform(image, label)
        return image, label


class Batches:
    """One data set as batches: `for images, labels in batches.epoch(3)`, (B, 3, H, W) uint8 and (B,).

    train: shuffled anew each epoch, whole batches only. Otherwise in order, with a smaller last batch, and the
    processes' shares may differ by an image. `len()` is the number of batches, the same in every process.
    Of the `batch_size` images of a step, each of the `world` processes gets its share.
    """

    def __init__(self, dataset: Dataset, transform: v2.Transform | None, *, batch_size: int, train: bool, seed: int = 0,
                 workers: int = 0, rank: int = 0, world: int = 1, pin_memory: bool = False):
        if train and batch_size % world:
            raise UserError(f"batch size {batch_size} cannot be shared by {world} processes: choose a multiple")
        if train and len(dataset) < batch_size:
            raise UserError(f"{len(dataset)} training images are fewer than one batch of {batch_size}: "
                            "give a smaller --batch-size or more images")
        self.size, self.batch_size, self.train, self.seed = len(dataset), batch_size, train, seed
        self.rank, self.world = rank, world
        self.position = (0, 0)                                  # epoch and first step of the next iteration
        self.loader = DataLoader(
            Keyed(dataset, transform, seed), batch_sampler=self.Keys(self), num_workers=workers,
            pin_memory=pin_memory, persistent_workers=workers > 0, worker_init_fn=ignore_interrupt,
            generator=torch.Generator())                        # its own, so that iter() draws from no shared one

    def __len__(self) -> int:
        return self.size // self.batch_size if self.train else -(-self.size // self.batch_size)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of this process in this epoch, from step `start` on. UserError for an image without sense."""
        self.position = (epoch, start)
        return iter(self.loader)

    def keys(self) -> Iterator[list[tuple[int, int]]]:
        """For each batch, the (epoch, index) of its images in this process."""
        epoch, start = self.position
        order = torch.arange(self.size)
        if self.train:
            order = torch.randperm(self.size, generator=generator("order", self.seed, epoch))
        for step in range(start, len(self)):
            batch = order[step * self.batch_size:(step + 1) * self.batch_size]
            share = batch[self.rank::self.world].tolist()       # the same step, whatever the number of processes
            if share:
                yield [(epoch, index) for index in share]

    class Keys:
        """What DataLoader wants of a batch sampler: iteration and length."""

        def __init__(self, batches: "Batches"):
            self.batches = batches

        def __iter__(self):
            return self.batches.keys()

        def __len__(self):
            return len(self.batches)


def ignore_interrupt(_worker: int) -> None:
    """Ctrl-C reaches the workers too: they stay, so that the main process can finish its step and save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
