"""VOC, COCO and ADE20K: where each one keeps its images and annotations, and how these become masks or boxes.

Every `open_...(task, folder)` returns the training and the test images as `Named` data sets, and the names of the
classes. An exception means that something is missing; `FETCH` says where to get it.
"""
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets

from ..data.images import images_below, open_file, open_image, read_rgb
from .files import IGNORED, Named, class_mask

VOC = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
       "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"]
FETCH = {
    "voc": "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar (2 GB), so that {0}/VOCdevkit/"
           "VOC2012/JPEGImages is there",
    "coco": "http://images.cocodataset.org/zips/train2017.zip (18 GB), val2017.zip and ../annotations/"
            "annotations_trainval2017.zip, so that {0}/train2017, {0}/val2017 and {0}/annotations are there",
    "ade20k": "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip (1 GB), and name its folder, so "
              "that {0}/images/training and {0}/annotations/training are there"}


def open_voc(task: str, folder: Path) -> tuple[Dataset, Dataset, list[str]]:
    masks = task == "segmentation"
    kind, read = (datasets.VOCSegmentation, voc_mask) if masks else (datasets.VOCDetection, voc_boxes)
    train, val = (Named(kind(folder, year="2012", image_set=split), read, voc_file) for split in ("train", "val"))
    return train, val, ["background", *VOC] if masks else VOC


def voc_file(base: Any, index: int) -> str:
    return str(base.images[index])


def voc_mask(base: Any, index: int) -> tuple[Image.Image, Tensor]:
    return read_rgb(base.images[index]), class_mask(open_image(base.masks[index]), 21)


def voc_boxes(base: Any, index: int) -> tuple[Image.Image, dict[str, Tensor]]:
    with open_file(base.annotations[index]) as file:
        objects = ElementTree.parse(file).getroot().findall("object")
    corners = [[float(o.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
    return read_rgb(base.images[index]), {
        "boxes": torch.tensor(corners), "labels": torch.tensor([VOC.index(o.findtext("name")) for o in objects]).long(),
        "ignored": torch.tensor([float(o.findtext("difficult", "0")) for o in objects])}


class Coco(datasets.CocoDetection):
    def _load_image(self, id: int) -> Image.Image:          # torchvision's would clip 16 bits and wait for a pipe
        return read_rgb(os.path.join(self.root, self.coco.loadImgs(id)[0]["file_name"]))


def open_coco(task: str, folder: Path) -> tuple[Dataset, Dataset, list[str]]:
    key = "masks" if task == "segmentation" else "boxes"
    parts, names = [], []
    for split in ("train2017", "val2017"):
        if not (folder / split).is_dir():
            raise FileNotFoundError(f"no folder {folder / split}")
        base = Coco(folder / split, folder / "annotations" / f"instances_{split}.json")
        base = datasets.wrap_dataset_for_transforms_v2(base, target_keys=[key, "labels", "iscrowd"])
        parts.append(Named(base, coco_masks if key == "masks" else coco_boxes, coco_file))
        names.append([category["name"] for category in base.coco.loadCats(sorted(base.coco.getCatIds()))])
    if names[0] != names[1]:
        raise ValueError("the two annotation files list different categories")
    return *parts, (["background"] if key == "masks" else []) + names[0]


def coco_file(base: Any, index: int) -> str:
    return str(Path(base.root) / base.coco.loadImgs(base.ids[index])[0]["file_name"])


def coco_labels(base: Any, target: dict[str, Any]) -> Tensor:
    """Classes from 0, because the numbers of COCO's categories have gaps. ValueError for a number of no category."""
    numbers = torch.tensor(sorted(base.coco.getCatIds()))
    unknown = target["labels"][~torch.isin(target["labels"], numbers)].tolist()
    if unknown:
        raise ValueError(f"the annotation has category {unknown[0]}, which the file does not list")
    return torch.bucketize(target["labels"], numbers)


def coco_boxes(base: Any, index: int) -> tuple[Image.Image, dict[str, Tensor]]:
    image, target = base[index]
    if "boxes" not in target:                               # an image without an annotation
        return image, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "ignored": torch.zeros(0)}
    return image, {"boxes": target["boxes"].as_subclass(Tensor), "labels": coco_labels(base, target),
                   "ignored": torch.tensor(target["iscrowd"]).float()}


def coco_masks(base: Any, index: int) -> tuple[Image.Image, Tensor]:
    """Instances painted from the largest to the smallest: 0 is the background, and crowds are IGNORED."""
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
        images, masks = folder / "images" / split, folder / "annotations" / split
        files = [Path(path) for path in images_below(str(images))]
        pairs = [(path, masks / path.relative_to(images).with_suffix(".png")) for path in files]
        parts.append(Named(pairs, ade20k_mask, ade20k_file))
    return *parts, [f"class {number}" for number in range(1, 151)]


def ade20k_file(base: list[tuple[Path, Path]], index: int) -> str:
    return str(base[index][0])


def ade20k_mask(base: list[tuple[Path, Path]], index: int) -> tuple[Image.Image, Tensor]:
    """In the files 0 stands for "other", which does not count. 1 ... 150 become 0 ... 149."""
    image, mask = base[index]
    return read_rgb(image), class_mask(open_image(mask), 151) - 1       # uint8: 0 - 1 is 255, which is IGNORED


OPEN = {"voc": open_voc, "coco": open_coco, "ade20k": open_ade20k}
