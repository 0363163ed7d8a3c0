"""Resize the training photographs once and keep them: `train_imagenet.py --cache DIR`.

To read, crop and resize a photograph takes a core longer than a GPU needs to train on it (tutorial 7 has the
measurement). When a photograph is first read, it is stored in DIR with the shorter side that testing resizes to: image
size / 0.875, 256 for 224. From then on it is read from there. This changes two things. Crops are taken from the smaller
image, so a small crop is enlarged where the original had more pixels. And photographs are compressed as JPEG twice.
Test images are read as they are. Accuracy: not compared. Several runs may make and use one cache at the same time.
"""
import copy
import io
import json
import os
import zlib
from functools import partial
from pathlib import Path

from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..runtime import distributed
from ..runtime.errors import UserError
from ..runtime.files import replacing
from .images import one_line, open_file, read_rgb
from .sources import Source, shorter_side

QUALITY = 95            # of the JPEGs; they are about half as large as ImageNet's


def cached(source: Source, folder: Path) -> Source:
    """The source, but with a training set whose images are read from `folder`, which is filled as they are first read.

    UserError if the folder holds anything but a cache of these images in this size.
    """
    train, side = source.train, shorter_side(source.image_size)
    stamp = {"shorter_side": side, "quality": QUALITY, "images": len(train),
             "checksum_of_names_sizes_and_times": checksum(train)}
    distributed.first_process_first(lambda: claim_folder(folder, stamp))
    small = copy.copy(train)
    small.loader = partial(read_small, root=train.root, folder=folder / "train", side=side)
    return source._replace(train=small)


def checksum(train: ImageFolder) -> int:
    """Of the names, sizes and times of the original images. It differs if one of them was changed or exchanged."""
    total = 0
    for file, _ in train.samples:
        with one_line(f"{file} cannot be read", "replace or remove it"):
            status = os.stat(file)
        line = f"{os.path.relpath(file, train.root)} {status.st_size} {status.st_mtime_ns}\n"
        total = zlib.crc32(line.encode(errors="surrogateescape"), total)        # also names that are not UTF-8
    return total


def claim_folder(folder: Path, stamp: dict[str, int]) -> None:
    """Write cache.json, which says what the cache is made from, into an empty folder. Otherwise compare it."""
    with one_line(f"--cache {folder} is neither empty nor a cache", "name a folder of its own"):
        if folder == Path():                        # --cache "", perhaps from a variable of the shell that is not set
            raise ValueError("it is the current folder")
        folder.mkdir(parents=True, exist_ok=True)
        if all(name.startswith(".") for name in os.listdir(folder)):
            write(folder / "cache.json", json.dumps(stamp, indent=1).encode(), replace=False)
        with open_file(folder / "cache.json") as file:
            saved = json.loads(file.read().decode())
        if not isinstance(saved, dict):
            raise ValueError("cache.json holds something else")
    for key, value in stamp.items():
        if saved.get(key) != value:
            raise UserError(f"--cache {folder} was made with {key} = {saved.get(key)!r:.40}, now it is {value}: name "
                            "another folder, or delete this one")


def read_small(path: str, *, root: str, folder: Path, side: int) -> Image.Image:
    """The image that the cache keeps for an original. It is made first if it is not there."""
    target = folder / os.path.relpath(path, root)
    if not target.exists():
        image, small = read_rgb(path), io.BytesIO()
        if min(image.size) > side:                              # otherwise the file itself is kept
            F.resize(image, [side], interpolation=InterpolationMode.BICUBIC).save(small, "JPEG", quality=QUALITY)
        write(target, small.getvalue() or Path(path).read_bytes())
    return read_rgb(target)


def write(target: Path, content: bytes, *, replace: bool = True) -> None:
    """Write the whole file or nothing of it. A kill may leave a hidden file. replace: as for `replacing`."""
    with replacing(target, many=True, replace=replace, advice="make room or name another --cache, and start again, it "
                   "goes on from there") as file:
        file.write(content)
