"""The data sets for classification, how their images are augmented, and how batches of them are mixed.

Sources of the augmentation: Cubuk et al. 2020 (RandAugment), Zhong et al. 2020 (random erasing), Zhang et al. 2018
(mixup), Yun et al. 2019 (cutmix), all by torchvision. Shapes: B images, 3 channels, H x W pixels.
"""
import zlib
from typing import Any, NamedTuple

from torch.utils.data import Dataset, Subset
from torchvision import datasets
from torchvision.transforms import InterpolationMode, v2

from ..runtime import distributed
from ..runtime.errors import UserError
from .images import ClassFolders, data_folder, one_line, read_rgb
from .shapes import Shapes


class Source(NamedTuple):
    """A data set as it is on disk: (PIL image or uint8 tensor, label) pairs, and all that a model is built from."""

    train: Dataset
    test: Dataset
    classes: list[str]
    image_size: int
    mean: tuple[float, float, float]        # of each channel, for pixels scaled to 0 ... 1
    std: tuple[float, float, float]
    transforms: dict[str, v2.Transform | None] | None = None    # "train" and "test"; None: `augmentation` and `plain`

    def identity(self) -> dict[str, Any]:
        """The settings that tell one data set from another. A run is not resumed when one of them differs."""
        checksum = zlib.crc32("\n".join(self.classes).encode(errors="surrogateescape"))     # also names not in UTF-8
        return {"num_classes": len(self.classes), "image_size": self.image_size, "train_images": len(self.train),
                "classes": f"{self.classes[0]} ... {self.classes[-1]} (checksum {checksum:08x})"}


CIFAR_STATS = {"cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
               "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))}
SHAPES_STATS = ((0.25, 0.25, 0.25), (0.25, 0.25, 0.25))
IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def open_source(dataset: str, data_dir: str, image_size: int = 224) -> Source:
    """The data set of this name: "shapes", "cifar10", "cifar100" or "imagenet". Only "imagenet" uses `image_size`."""
    if dataset == "shapes":
        return open_shapes()
    return open_imagenet(data_dir, image_size) if dataset == "imagenet" else open_cifar(dataset, data_dir)


def open_shapes() -> Source:
    """The built-in data set (shapes.py). Its 10,000 training and 2,000 test images are always the same."""
    train, test = Shapes("train"), Shapes("test")
    return Source(train, test, train.classes, train.images.shape[-1], *SHAPES_STATS)


def open_cifar(name: str, data_dir: str) -> Source:
    """CIFAR-10 or CIFAR-100 in `data_dir`, downloaded if it is missing. UserError if it is not there afterwards."""
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    data_folder(data_dir)

    def read() -> list[Dataset]:
        with one_line(f"{name} is not complete in {data_dir} and could not be downloaded",
                      f"put {kind.filename} into {data_dir}, or train without a download by --dataset shapes"):
            return [kind(data_dir, train=split, download=True) for split in (True, False)]

    train, test = distributed.first_process_first(read)
    return Source(train, test, train.classes, 32, *CIFAR_STATS[name])


def open_imagenet(data_dir: str, image_size: int = 224) -> Source:
    """The folder with `train/CLASS/*.jpg` and `val/CLASS/*.jpg`. UserError if the files lie in another way."""
    splits = []
    for split in map(data_folder(data_dir).joinpath, ("train", "val")):
        with one_line(f"{data_dir} is not complete", f"Expected {split}/CLASS/*.jpg for every class"):
            splits.append(ClassFolders(split, loader=read_rgb))
            for path in split.iterdir():
                if datasets.folder.is_image_file(path.name) and path.is_file() and not path.name.startswith("."):
                    raise UserError(f"{path} is in no class: move it to {split}/CLASS/, or away")
    train, val = splits
    if train.classes != val.classes:
        differ = sorted(set(train.classes) ^ set(val.classes))
        raise UserError(f"{data_dir}: train/ and val/ hold different classes, for instance {differ[0]} is in one "
                        "of them alone: both need a folder for every class")
    return Source(train, val, train.classes, image_size, *IMAGENET_STATS)


def augmentation(source: Source, *, scale: list[float], rand_augment: int = 0, erasing: float = 0.0) -> v2.Compose:
    """For training: crop, flip, RandAugment (0: none), random erasing (0: none). PIL image -> (3, H, W) uint8.

    rand_augment: the magnitude on timm's scale of 0 to 10, which the published recipes use. timm draws two operations
    and applies each with probability 1/2. torchvision's scale has 31 steps for the same range, so 9 becomes 27.
    timm adds noise to the magnitude; we do not. Erased pixels get the mean color of the data set.
    """
    crop = v2.RandomResizedCrop(source.image_size, scale=scale, interpolation=InterpolationMode.BICUBIC)
    color = tuple(round(255 * channel) for channel in source.mean)
    one_operation = v2.RandAugment(num_ops=1, magnitude=3 * rand_augment, num_magnitude_bins=31, fill=list(color))
    operations = [v2.RandomApply([one_operation], p=0.5) for _ in range(2 if rand_augment else 0)]
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *operations, v2.PILToTensor(),
                       v2.RandomErasing(erasing, value=color)])


def shorter_side(image_size: int) -> int:
    """Pixels of a photograph's shorter side when testing, before the center is cropped: 256 for image size 224."""
    return round(image_size / 0.875)


def plain(source: Source) -> v2.Transform | None:
    """For testing: PIL image -> (3, H, W) uint8. Photographs are resized and their center is cropped."""
    if isinstance(source.test, datasets.ImageFolder):
        resize = v2.Resize(shorter_side(source.image_size), interpolation=InterpolationMode.BICUBIC)
        return v2.Compose([resize, v2.CenterCrop(source.image_size), v2.PILToTensor()])
    return None if isinstance(source.test, Shapes) else v2.PILToTensor()


def mixing(num_classes: int, *, mixup: float, cutmix: float) -> v2.Transform | None:
    """Mixup or cutmix, drawn anew for each batch of normalized images. None if both alphas are 0."""
    kinds = [kind(alpha=alpha, num_classes=num_classes)
             for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha > 0]
    return v2.RandomChoice(kinds) if kinds else None


def limit_dataset(dataset: Dataset, limit: int | None) -> Dataset:
    """A data set of at most `limit` images: the first ones, or evenly spaced ones where images are sorted by class."""
    if limit is None or limit >= len(dataset):
        return dataset
    stride = len(dataset) / limit if isinstance(dataset, datasets.ImageFolder) else 1
    return Subset(dataset, [int(number * stride) for number in range(limit)])
