"""Data for dense tasks: (image, ONE target tensor), so that the loop is the same as for classification.

segmentation    mask (H, W) uint8: the class of every pixel, or IGNORED
detection       objects (MOST, 6) float32, one row for each: class, x1, y1, x2, y2 in pixels, 1 if it is not to be
                counted. The other rows are -1, so that a batch is one tensor.

All images are squeezed to a square, also for testing, and scores are computed there. This changes no IoU of boxes, but
mean IoU is not the one at the original size. Nothing is downloaded: the message says what to fetch.
"""
import contextlib
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision import ops
from torchvision.transforms import v2

from ..data.images import data_folder, one_line
from ..data.shapes import KINDS, Shapes
from ..data.sources import IMAGENET_STATS, SHAPES_STATS, Source
from ..runtime.errors import UserError
from .layouts import FETCH, OPEN

MOST = 100              # objects in an image; if there are more, the largest are kept


def open_dense(task: str, dataset: str, data_dir: str, image_size: int, scale: list[float] | None = None) -> Source:
    """The data set with its targets. task: "segmentation" or "detection".

    dataset: "shapes", "voc", "coco", or "ade20k", which has segmentation only.
    scale: the smallest and the largest share of an image that a training crop shows. None: images are not cropped.
    UserError if the data set is not complete.
    """
    if dataset == "shapes":
        return open_shapes(task)
    fetch = "fetch " + FETCH[dataset].format(data_dir)
    with one_line(f"{dataset} is not complete in {data_dir}", fetch), contextlib.redirect_stdout(io.StringIO()):
        train, test, classes = OPEN[dataset](task, data_folder(data_dir))          # pycocotools prints
    if not len(train) or not len(test):
        raise UserError(f"{data_dir} holds {len(train)} training and {len(test)} test images: {fetch}")
    return Source(train, test, classes, image_size, *IMAGENET_STATS, transforms_of(image_size, scale))


def transforms_of(image_size: int, scale: list[float] | None) -> dict[str, v2.Compose]:
    """For "train" and "test": (PIL image, mask or objects) -> the tensors that the top of this file describes."""
    size = (image_size, image_size)
    crop = [v2.RandomResizedCrop(size, scale=scale), v2.RandomHorizontalFlip()] if scale else [v2.Resize(size)]
    return {"train": v2.Compose([*crop, pack]), "test": v2.Compose([v2.Resize(size), pack])}


def open_shapes(task: str) -> Source:
    """The built-in shapes in 3 x 2 classes: the kind of a shape AND the half of the image in which it stands."""
    train, test = dense_shapes("train", task), dense_shapes("test", task)
    classes = [f"{kind}, {side}" for kind in KINDS for side in ("left", "right")]
    classes = ["background", *classes] if task == "segmentation" else classes
    return Source(train, test, classes, train[0][0].shape[-1], *SHAPES_STATS, {"train": None, "test": None})


def dense_shapes(split: str, task: str, *, size: int | None = None) -> TensorDataset:
    """The images of `Shapes`, with masks (size, S, S) or objects (size, cells, 6) as targets."""
    shapes = Shapes(split, size=size)
    right = torch.arange(16) % 4 >= 2                                       # (cells,)
    classes = 2 * shapes.kinds + right                                      # (size, cells)
    if task == "detection":
        rows = [classes[..., None], shapes.boxes, torch.zeros_like(classes[..., None])]
        return TensorDataset(shapes.images, torch.cat(rows, dim=-1))
    of_instance = torch.nn.functional.pad(classes + 1, (1, 0))              # instance 0 is the background
    flat = of_instance.gather(1, shapes.instances.flatten(1).long())
    return TensorDataset(shapes.images, flat.view_as(shapes.instances).to(torch.uint8))


def pack(image: Image.Image, target: Any) -> tuple[Tensor, Tensor]:
    """The last transform: to plain tensors. Boxes become rows, and those that were cropped away are left out."""
    image = v2.functional.pil_to_tensor(image)                              # (3, H, W) uint8
    if not isinstance(target, dict):
        return image, target.as_subclass(Tensor).to(torch.uint8)            # (H, W)
    boxes = ops.clip_boxes_to_image(target["boxes"].as_subclass(Tensor), image.shape[1:])
    keep = ops.remove_small_boxes(boxes, min_size=1.0)
    keep = keep[ops.box_area(boxes[keep]).argsort(descending=True)[:MOST]]
    rows = torch.full((MOST, 6), -1.0, dtype=torch.float32)
    rows[:len(keep)] = torch.cat([target["labels"][keep, None], boxes[keep], target["ignored"][keep, None]], dim=1)
    return image, rows
