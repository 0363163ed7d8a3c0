"""VOC, COCO and ADE20K: where each one keeps its images and annotations, and how these become masks or boxes.

Every `open_...(task, folder)` returns the training and the test images, and the names of the classes. An exception
means that something is missing; `FETCH` says where to get it. Shapes: M objects, H x W pixels.
"""
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from pycocotools.coco import COCO
from torch import Tensor
from torchvision import datasets, ops

from ..data.images import images_below, open_file
from .files import IGNORED, Annotated, class_mask

VOC = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
       "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"]
FETCH = {
    "voc": "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar (2 GB), so that {0}/VOCdevkit/"
           "VOC2012/JPEGImages is there",
    "coco": "http://images.cocodataset.org/zips/train2017.zip (18 GB), val2017.zip and ../annotations/"
            "annotations_trainval2017.zip, so that {0}/train2017, {0}/val2017 and {0}/annotations are there",
    "ade20k": "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip (1 GB), and name its folder, so "
              "that {0}/images/training and {0}/annotations/training are there"}


def open_voc(task: str, folder: Path) -> tuple[Annotated, Annotated, list[str]]:
    masks = task == "segmentation"
    kind = datasets.VOCSegmentation if masks else datasets.VOCDetection
    read = partial(class_mask, classes=21) if masks else voc_boxes
    train, val = (kind(folder, year="2012", image_set=split) for split in ("train", "val"))
    train, val = (Annotated(list(zip(base.images, base.targets)), read) for base in (train, val))
    return train, val, ["background", *VOC] if masks else VOC


def voc_boxes(path: str) -> dict[str, Tensor]:
    with open_file(path) as file:
        objects = ElementTree.parse(file).getroot().findall("object")
    corners = [[float(o.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
    return {"boxes": torch.tensor(corners),
            "labels": torch.tensor([VOC.index(o.findtext("name")) for o in objects]).long(),
            "ignored": torch.tensor([float(o.findtext("difficult", "0")) for o in objects])}


def open_coco(task: str, folder: Path) -> tuple[Annotated, Annotated, list[str]]:
    parts, names = [], []
    for split in ("train2017", "val2017"):
        if not (folder / split).is_dir():
            raise FileNotFoundError(f"no folder {folder / split}")
        coco = COCO(folder / "annotations" / f"instances_{split}.json")
        items = [(folder / split / image["file_name"], image) for image in coco.loadImgs(sorted(coco.imgs))]
        parts.append(Annotated(items, partial(coco_masks if task == "segmentation" else coco_boxes, coco)))
        names.append([category["name"] for category in coco.loadCats(sorted(coco.getCatIds()))])
    if names[0] != names[1]:
        raise ValueError("the two annotation files list different categories")
    return *parts, (["background"] if task == "segmentation" else []) + names[0]


def coco_label(coco: COCO, annotation: dict[str, Any]) -> int:
    """The class from 0, because the numbers of COCO's categories have gaps. ValueError for a number of no category."""
    number = annotation["category_id"]
    if number not in coco.cats:
        raise ValueError(f"the annotation has category {number}, which the file does not list")
    return sorted(coco.cats).index(number)


def coco_boxes(coco: COCO, image: dict[str, Any]) -> dict[str, Tensor]:
    annotations = coco.imgToAnns[image["id"]]
    boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
    return {"boxes": ops.box_convert(boxes, "xywh", "xyxy"),
            "labels": torch.tensor([coco_label(coco, a) for a in annotations]).long(),
            "ignored": torch.tensor([a["iscrowd"] for a in annotations]).float()}


def coco_masks(coco: COCO, image: dict[str, Any]) -> Tensor:
    """Instances painted from the largest to the smallest: 0 is the background, and crowds are IGNORED."""
    painted = torch.zeros(image["height"], image["width"], dtype=torch.uint8)
    instances = [(torch.from_numpy(coco.annToMask(a)).bool(), a) for a in coco.imgToAnns[image["id"]]]
    for mask, annotation in sorted(instances, key=lambda instance: -instance[0].sum()):
        painted[mask] = IGNORED if annotation["iscrowd"] else coco_label(coco, annotation) + 1
    return painted


def open_ade20k(task: str, folder: Path) -> tuple[Annotated, Annotated, list[str]]:
    if task != "segmentation":
        raise ValueError("this folder has masks alone: use --task segmentation")
    parts = []
    for split in ("training", "validation"):
        images, masks = folder / "images" / split, folder / "annotations" / split
        files = [Path(path) for path in images_below(str(images))]
        items = [(path, masks / path.relative_to(images).with_suffix(".png")) for path in files]
        parts.append(Annotated(items, ade20k_mask))
    return *parts, [f"class {number}" for number in range(1, 151)]


def ade20k_mask(path: Path) -> Tensor:
    """In the files 0 stands for "other", which does not count. 1 ... 150 become 0 ... 149."""
    return class_mask(path, 151) - 1                                    # uint8: 0 - 1 is 255, which is IGNORED


OPEN = {"voc": open_voc, "coco": open_coco, "ade20k": open_ade20k}
