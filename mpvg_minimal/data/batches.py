"""A data set as batches of uint8 images. What a batch holds depends on (seed, epoch, index) alone.

Images stay uint8 until they are on the device, because that is a quarter of the bytes to move. They are normalized
there. Shapes: B images, 3 channels, H x W pixels.
"""
import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from errno import ENOSPC

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ..runtime import signals
from ..runtime.errors import SHARED_MEMORY, Exhausted, UserError, exhausted, reason
from ..runtime.seeding import generator, seeded


class EpochDataset(Dataset):
    """keyed[epoch, index] -> (image uint8, label). The epoch is part of the index, so that worker processes know it.

    seed: of what the transform draws. None: it draws nothing, and seeding would cost more than a small image does.
    image_size, classes: a UserError names an image of another size, or a label that is no class. None: not checked.
    """

    def __init__(self, dataset: Dataset, transform: v2.Transform | None, seed: int | None, *,
                 image_size: int | None = None, classes: int | None = None):
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.image_size, self.classes = image_size, classes

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        image, label = self.dataset[index]
        if self.transform is not None:
            with nullcontext() if self.seed is None else seeded("image", self.seed, epoch, index):
                image, label = self.transform(image, label)
        expected = (3, self.image_size, self.image_size)
        if self.image_size is not None and tuple(image.shape) != expected:
            raise UserError(f"image {index} is of shape {tuple(image.shape)}, expected {expected}")
        if self.classes is not None and not 0 <= label < self.classes:
            raise UserError(f"image {index} has the label {label}, expected 0 to {self.classes - 1}")
        return image, label


class Batches:
    """One data set as batches: `for images, labels in batches.epoch(3)`, (B, 3, H, W) uint8 and (B,).

    Each of the `world` processes gets its share of the `batch_size` images of a step.
    train: every epoch is shuffled anew, and all batches are whole. Otherwise the images come in order, the last batch
    may be smaller, and the shares of the processes may differ by one image.
    `len()` is the number of batches, the same in every process. expected: as for `EpochDataset`.
    """

    def __init__(self, dataset: Dataset, transform: v2.Transform | None, *, batch_size: int, train: bool, seed: int = 0,
                 workers: int = 0, rank: int = 0, world: int = 1, pin_memory: bool = False, **expected: int | None):
        self.batch_size = batch_size
        self.order = BatchOrder(len(dataset), batch_size=batch_size, train=train, seed=seed, rank=rank, world=world)
        self.loader = DataLoader(
            EpochDataset(dataset, transform, seed if train else None, **expected), batch_sampler=self.order,
            num_workers=workers, pin_memory=pin_memory, persistent_workers=workers > 0, worker_init_fn=signals.ignore,
            generator=torch.Generator())                        # its own, so that iter() draws from no shared one

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of this process in this epoch, from step `start` on. UserError for an image that is unusable."""
        self.order.position = (epoch, start)
        deaths = []
        try:
            batches = iter(self.loader)
            deaths = signals.deaths(os.getpid()) if self.loader.num_workers else []
            deaths.clear()                          # those of an earlier run
            for batch in batches:
                if deaths:
                    raise deaths[0]
                yield batch
        except UserError as error:                  # from a worker it comes with a traceback as its text
            error.with_traceback(None)              # DataLoader's own, a circle of references through the loader
            raise UserError(str(error).strip().rsplit("UserError: ", 1)[-1]) from None
        except (ConnectionError, EOFError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not re.match(r"DataLoader worker \(pid", str(error)):
                raise
            died = deaths[0] if deaths else error   # error: it died while it handed over a batch, or sent none for 5 s
            raise exhausted(died) or Exhausted(
                f"a process that loads images died ({reason(died).strip('.: ')}): out of memory, or of shared memory "
                "(in a container: a larger --shm-size)? Try fewer --workers; a saved run goes on by --resume") from None
        except OSError as error:                    # the loader puts a few semaphores into shared memory
            raise (Exhausted(f"{SHARED_MEMORY} ({reason(error)})") if error.errno == ENOSPC else error) from None


class BatchOrder:
    """Which images are in which batch. DataLoader calls this a batch sampler.

    It holds no reference to the loader. In a circle of references the loader's processes would end late or never.
    """

    def __init__(self, size: int, *, batch_size: int, train: bool, seed: int = 0, rank: int = 0, world: int = 1):
        if train and batch_size % world:
            raise UserError(f"batch size {batch_size} cannot be shared by {world} processes: choose a multiple")
        if train and size < batch_size:
            raise UserError(f"{size} training images are fewer than one batch of {batch_size}: give a smaller "
                            "--batch-size or more images")
        self.size, self.batch_size, self.train, self.seed = size, batch_size, train, seed
        self.rank, self.world = rank, world
        self.position = (0, 0)                                  # epoch and first step of the next iteration

    def __len__(self) -> int:
        return self.size // self.batch_size if self.train else -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """For each batch, (epoch, index) of each of its images in this process."""
        epoch, start = self.position
        return ([(epoch, index) for index in share.tolist()] for share in self.shares(epoch, start))

    def shares(self, epoch: int, start: int) -> list[Tensor]:
        """The indices of this process's images in each step, from step `start` on."""
        order = torch.arange(self.size)
        if self.train:
            order = torch.randperm(self.size, generator=generator("order", self.seed, epoch))
        steps = order.split(self.batch_size)[start:len(self)]
        shares = [step[self.rank::self.world] for step in steps]    # the same step, whatever the number of processes
        return [share for share in shares if len(share)]
