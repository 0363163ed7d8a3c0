"""The training photographs resized once, for all epochs to come: `train_imagenet.py --cache DIR`.

Reading, cropping and resizing a photograph costs a core more time than a GPU needs to train on it (scaling.py has the
measurement). In DIR each is stored with the shorter side that testing resizes to: image size / 0.875, 256 for 224.
What that changes: crops are taken from the smaller image, so a small crop is enlarged where the original had more
pixels, and photographs are compressed as JPEG twice. Test images are read as they are. Accuracy: not compared.
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
from .batches import Batches, Keyed
from .sources import Source, shorter_side, take

QUALITY = 95            # of the JPEGs; they are about half as large as ImageNet's
TOGETHER = 64           # images between two steps of the progress bar


def cached(source: Source, folder: Path, *, limit: int | None, workers: int) -> Source:
    """The source with its training images from `folder`, those that are missing there made first, by all processes.

    UserError if the folder holds anything but a cache of this source and size, or an image cannot be read or written.
    """
    train, side = source.train, shorter_side(source.image_size)
    names = [os.path.relpath(file, train.root) for file, _ in train.samples]
    stamp = {"shorter_side": side, "quality": QUALITY, "images": len(names),
             "checksum_of_names": zlib.crc32("\n".join(names).encode())}
    distributed.first_process_first(lambda: claim(folder, stamp))
    targets = [str(folder / "train" / name) for name in names]
    there = {os.path.join(place, name) for place, _, files in os.walk(folder / "train") for name in files}
    wanted = getattr(take(train, limit), "indices", range(len(names)))
    missing = [index for index in wanted if targets[index] not in there]
    distributed.barrier()                            # all have looked before the first begins: their shares fit
    rank, count = distributed.on_this_machine()
    if missing:
        batches = Batches(Resized(train, targets, missing, side), None, batch_size=TOGETHER * count, train=False,
                          rank=rank, world=count, workers=workers)
        for _ in tqdm(batches.epoch(), total=len(batches), desc=f"resizing into {folder}", leave=False, disable=None):
            pass
    distributed.barrier()                            # all are through before the first one trains
    small = copy.copy(train)
    small.samples = small.imgs = [(target, label) for target, (_, label) in zip(targets, train.samples, strict=True)]
    return source._replace(train=small)


def claim(folder: Path, stamp: dict[str, int]) -> None:
    """Make the folder ours, or see that it is: its cache.json says of what and how its images are made."""
    path = folder / "cache.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            write(path, json.dumps(stamp, indent=1).encode())
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--cache {folder} is neither empty nor a cache ({reason(error)}): name a folder of its "
                        "own") from error
    for key, value in stamp.items():
        if saved.get(key) != value:
            raise UserError(f"--cache {folder} was made with {key} = {saved.get(key)}, now it is {value}: name another "
                            "folder, or delete this one")


class Resized(Dataset):
    """resized[i] makes the file of the i-th missing image; there is nothing to be had from it."""

    def __init__(self, train: ImageFolder, targets: list[str], missing: list[int], side: int):
        self.images, self.targets, self.missing, self.side = Keyed(train, None, 0), targets, missing, side

    def __len__(self) -> int:
        return len(self.missing)

    def __getitem__(self, position: int) -> tuple[int, int]:
        index = self.missing[position]
        image, _ = self.images[0, index]
        target = Path(self.targets[index])
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, shrunk(image, self.side) or Path(self.images.dataset.samples[index][0]).read_bytes())
        return 0, 0


def shrunk(image: Image.Image, side: int) -> bytes | None:
    """A JPEG whose shorter side has `side` pixels; None if the image is no larger than that already."""
    if min(image.size) <= side:
        return None
    content = io.BytesIO()
    F.resize(image, [side], interpolation=InterpolationMode.BICUBIC).save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def write(target: Path, content: bytes) -> None:
    """All of the file or nothing: a kill leaves a hidden file, which nobody reads."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}): make room and start again, it goes on from "
                        "there") from error
