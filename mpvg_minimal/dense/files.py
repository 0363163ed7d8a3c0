"""VOC, COCO and ADE20K as they lie on disk: (PIL image, mask or objects) pairs, and what to fetch if they do not.

mask: (H, W) uint8. objects: a dictionary of boxes (M, 4) in pixels, labels (M,) and ignored (M,), 1 for what is not to
be counted (COCO's crowds, VOC's difficult ones). Whatever is wrong with a file is a UserError that names the file.
"""
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets, ops, tv_tensors
from torchvision.transforms import v2

from ..runtime.errors import UserError, reason

IGNORED = 255           # in masks
LONG = 500              # letters of a library's complaint: what counts may stand behind a path
VOC = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
       "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"]
FETCH = {
    "voc": "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar (2 GB), so that {0}/VOCdevkit/"
           "VOC2012/JPEGImages is there",
    "coco": "http://images.cocodataset.org/zips/train2017.zip (18 GB), val2017.zip and ../annotations/"
            "annotations_trainval2017.zip, so that {0}/train2017, {0}/val2017 and {0}/annotations are there",
    "ade20k": "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip (1 GB), and name its folder, so "
              "that {0}/images/training and {0}/annotations/training are there"}


class Named(Dataset):
    """`read(base, index)` -> (PIL image, mask or objects), where whatever is wrong with a file names the file."""

    def __init__(self, base: Any, read: Callable, file_of: Callable[[Any, int], str]):
        self.base, self.read, self.file_of = base, read, file_of

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        file = self.file_of(self.base, index)
        try:
            image, target = self.read(self.base, index)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} is missing, but the data set lists it: fetch it again") from error
        except Exception as error:                      # PIL, XML and pycocotools raise a dozen kinds
            raise UserError(f"{file} or its annotation cannot be read ({reason(error, LONG)})") from error
        size = (image.height, image.width)
        if isinstance(target, dict):
            return image.convert("RGB"), sound(target, size, file)
        if tuple(target.shape) != size:
            raise UserError(f"{file} is of size {size}, but its mask of {tuple(target.shape)}: they have to agree")
        return image.convert("RGB"), tv_tensors.Mask(target)


def sound(target: dict[str, Tensor], size: tuple[int, int], file: str) -> dict[str, Tensor]:
    """Boxes (M, 4) clipped to the image and those without an area left out, with a warning that names the file."""
    given = target["boxes"].reshape(-1, 4).float()
    boxes = ops.clip_boxes_to_image(given, size)
    keep = ops.remove_small_boxes(boxes, min_size=1e-3)
    if len(keep) < len(given):
        warnings.warn(f"{file}: {len(given) - len(keep)} of {len(given)} boxes lie outside or have no area: left out")
    elif (boxes - given).abs().amax() > 1 if len(given) else False:
        warnings.warn(f"{file}: a box reaches out of the image, which is {size}: clipped")
    return {"boxes": tv_tensors.BoundingBoxes(boxes[keep], format="XYXY", canvas_size=size),
            "labels": target["labels"][keep], "ignored": target["ignored"][keep]}


def open_voc(task: str, folder: Path) -> tuple[Dataset, Dataset, list[str]]:
    masks = task == "segmentation"
    kind, read = (datasets.VOCSegmentation, voc_mask) if masks else (datasets.VOCDetection, voc_boxes)
    train, val = (Named(kind(folder, year="2012", image_set=split), read, voc_file) for split in ("train", "val"))
    return train, val, ["background", *VOC] if masks else VOC


def voc_file(base: Any, index: int) -> str:
    return str(base.images[index])


def voc_mask(base: Any, index: int) -> tuple[Image.Image, Tensor]:
    image, mask = base[index]
    return image, class_mask(mask, 21)


def voc_boxes(base: Any, index: int) -> tuple[Image.Image, dict[str, Tensor]]:
    image, target = base[index]
    objects = [o for o in target["annotation"].get("object", []) if o]      # torchvision gives [] or [[]] for none
    corners = [[float(o["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
    return image, {"boxes": torch.tensor(corners),
                   "labels": torch.tensor([VOC.index(o["name"]) for o in objects]).long(),
                   "ignored": torch.tensor([float(o.get("difficult", 0)) for o in objects])}


def class_mask(mask: Image.Image, classes: int) -> Tensor:
    """(H, W) uint8. ValueError for another kind of picture, or a class that is none."""
    if mask.mode not in ("P", "L"):
        raise ValueError(f"the mask has mode {mask.mode}, expected one channel of classes (P or L)")
    mask = v2.functional.pil_to_tensor(mask)[0]                             # (1, H, W) -> (H, W)
    highest = mask[mask != IGNORED].max().item() if (mask != IGNORED).any() else 0
    if highest >= classes:
        raise ValueError(f"the mask holds class {highest}, expected 0 to {classes - 1} or {IGNORED}")
    return mask


def open_coco(task: str, folder: Path) -> tuple[Dataset, Dataset, list[str]]:
    key = "masks" if task == "segmentation" else "boxes"
    parts, names = [], []
    for split in ("train2017", "val2017"):
        if not (folder / split).is_dir():
            raise FileNotFoundError(f"no folder {folder / split}")
        base = datasets.CocoDetection(folder / split, folder / "annotations" / f"instances_{split}.json")
        base = datasets.wrap_dataset_for_transforms_v2(base, target_keys=[key, "labels", "iscrowd"])
        parts.append(Named(base, coco_masks if key == "masks" else coco_boxes, coco_file))
        names.append([category["name"] for category in base.coco.loadCats(sorted(base.coco.getCatIds()))])
    if names[0] != names[1]:
        raise ValueError("the two annotation files list different categories")
    return *parts, (["background"] if key == "masks" else []) + names[0]


def coco_file(base: Any, index: int) -> str:
    return str(Path(base.root) / base.coco.loadImgs(base.ids[index])[0]["file_name"])


def coco_labels(base: Any, target: dict[str, Any]) -> Tensor:
    """COCO's category numbers have gaps; classes count from 0."""
    return torch.bucketize(target["labels"], torch.tensor(sorted(base.coco.getCatIds())))


def coco_boxes(base: Any, index: int) -> tuple[Image.Image, dict[str, Tensor]]:
    image, target = base[index]
    if "boxes" not in target:                           # an image without an annotation
        return image, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "ignored": torch.zeros(0)}
    return image, {"boxes": target["boxes"].as_subclass(Tensor), "labels": coco_labels(base, target),
                   "ignored": torch.tensor(target["iscrowd"]).float()}


def coco_masks(base: Any, index: int) -> tuple[Image.Image, Tensor]:
    """Instances painted from the largest to the smallest, crowds IGNORED, 0 where there is none."""
    image, target = base[index]
    painted = torch.zeros(image.height, image.width, dtype=torch.uint8)
    if "masks" in target:
        masks, labels = target["masks"].as_subclass(Tensor).bool(), coco_labels(base, target) + 1
        for number in masks.flatten(1).sum(1).argsort(descending=True).tolist():
            painted[masks[number]] = IGNORED if target["iscrowd"][number] else int(labels[number])
    return image, painted


def open_ade20k(task: str, folder: Path) -> tuple[Dataset, Dataset, list[str]]:
    if task != "segmentation":
        raise ValueError("this folder has masks alone: use --task segmentation")
    parts = []
    for split in ("training", "validation"):
        images = sorted((folder / "images" / split).glob("*.jpg"))
        masks = [folder / "annotations" / split / f"{image.stem}.png" for image in images]
        parts.append(Named(list(zip(images, masks)), ade20k_mask, ade20k_file))
    return *parts, [f"class {number}" for number in range(1, 151)]


def ade20k_file(base: list[tuple[Path, Path]], index: int) -> str:
    return str(base[index][0])


def ade20k_mask(base: list[tuple[Path, Path]], index: int) -> tuple[Image.Image, Tensor]:
    """In the files 0 is "other", which does not count; 1 ... 150 become 0 ... 149."""
    image, mask = (Image.open(path) for path in base[index])
    return image, class_mask(mask, 151) - 1             # uint8: 0 - 1 is 255, which is IGNORED


OPEN = {"voc": open_voc, "coco": open_coco, "ade20k": open_ade20k}
