"""Resize the training photographs once and keep them: `train_imagenet.py --cache DIR`.

To read, crop and resize a photograph takes a core longer than a GPU needs to train on it (tutorial 7 has the
measurement). In DIR each photograph is stored with the shorter side that testing resizes to: image size / 0.875, 256
for 224. This changes two things. Crops are taken from the smaller image, so a small crop is enlarged where the original
had more pixels. And photographs are compressed as JPEG twice. Test images are read as they are. Accuracy: not compared.
Several runs may make and use one cache at the same time.
"""
import copy
import io
import json
import os
import zlib
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from ..runtime import distributed
from ..runtime.errors import UserError, reason
from ..runtime.files import replacing
from .batches import Batches, EpochDataset
from .sources import Source, limit_dataset, shorter_side

QUALITY = 95            # of the JPEGs; they are about half as large as ImageNet's
TOGETHER = 64           # images between two steps of the progress bar


def cached(source: Source, folder: Path, *, limit: int | None, workers: int) -> Source:
    """The source, but with the training images in `folder`. Those that are missing there are made first.

    All processes make them together. UserError if the folder holds anything but a cache of these images in this size,
    or if an image cannot be read or written.
    """
    train, side = source.train, shorter_side(source.image_size)
    names = [os.path.relpath(file, train.root) for file, _ in train.samples]
    stamp = {"shorter_side": side, "quality": QUALITY, "images": len(names),
             "checksum_of_names_sizes_and_times": checksum(train, names)}
    distributed.first_process_first(lambda: claim_folder(folder, stamp))
    targets = [str(folder / "train" / name) for name in names]
    there = {os.path.join(place, name) for place, _, files in os.walk(folder / "train") for name in files}
    wanted = getattr(limit_dataset(train, limit), "indices", range(len(names)))
    missing = [index for index in wanted if targets[index] not in there]
    distributed.barrier()                           # all have looked before the first one writes, so the shares fit
    rank, count = distributed.on_this_machine()
    if missing:
        batches = Batches(Resized(train, targets, missing, side), None, batch_size=TOGETHER * count, train=False,
                          rank=rank, world=count, workers=workers)
        for _ in tqdm(batches.epoch(), total=len(batches), desc=f"resizing into {folder}", leave=False, disable=None):
            pass
    distributed.barrier()                           # all have written before the first one trains
    small = copy.copy(train)
    small.samples = small.imgs = [(target, label) for target, (_, label) in zip(targets, train.samples, strict=True)]
    return source._replace(train=small)


def checksum(train: ImageFolder, names: list[str]) -> int:
    """Of the names, sizes and times of the original images. It differs if one of them was changed or exchanged."""
    total = 0
    for (file, _), name in zip(train.samples, names, strict=True):
        try:
            status = os.stat(file)
        except OSError as error:
            raise UserError(f"{file} cannot be read ({reason(error)}): replace or remove it") from error
        line = f"{name} {status.st_size} {status.st_mtime_ns}\n"
        total = zlib.crc32(line.encode(errors="surrogateescape"), total)        # also names that are not UTF-8
    return total


def claim_folder(folder: Path, stamp: dict[str, int]) -> None:
    """Write cache.json, which says what the cache is made from, into an empty folder. Otherwise compare it."""
    path = folder / "cache.json"
    try:
        if folder == Path():                        # --cache "", perhaps from a variable of the shell that is not set
            raise ValueError("it is the current folder")
        folder.mkdir(parents=True, exist_ok=True)
        if all(name.startswith(".") for name in os.listdir(folder)):
            write(path, json.dumps(stamp, indent=1).encode(), replace=False)
        if path.exists() and not path.is_file():    # to read a pipe could take for ever
            raise ValueError("cache.json is not a regular file")
        saved = json.loads(path.read_text())
        if not isinstance(saved, dict):
            raise ValueError("cache.json holds something else")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--cache {folder} is neither empty nor a cache ({reason(error)}): name a folder of its "
                        "own") from error
    for key, value in stamp.items():
        if saved.get(key) != value:
            raise UserError(f"--cache {folder} was made with {key} = {saved.get(key)!r:.40}, now it is {value}: name "
                            "another folder, or delete this one")


class Resized(Dataset):
    """resized[i] writes the file of the i-th missing image. What it returns means nothing."""

    def __init__(self, train: ImageFolder, targets: list[str], missing: list[int], side: int):
        self.images, self.targets, self.missing, self.side = EpochDataset(train, None, 0), targets, missing, side

    def __len__(self) -> int:
        return len(self.missing)

    def __getitem__(self, position: int) -> tuple[int, int]:
        index = self.missing[position]
        image, _ = self.images[0, index]
        content = shrunk(image, self.side) or Path(self.images.dataset.samples[index][0]).read_bytes()
        write(Path(self.targets[index]), content)
        return 0, 0


def shrunk(image: Image.Image, side: int) -> bytes | None:
    """A JPEG whose shorter side has `side` pixels. None if the image is no larger than that."""
    if min(image.size) <= side:
        return None
    content = io.BytesIO()
    F.resize(image, [side], interpolation=InterpolationMode.BICUBIC).save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def write(target: Path, content: bytes, *, replace: bool = True) -> None:
    """Write the whole file or nothing of it. A kill may leave a hidden file. replace: as for `replacing`."""
    with replacing(target, many=True, replace=replace, advice="make room or name another --cache, and start again, it "
                   "goes on from there") as file:
        file.write(content)
