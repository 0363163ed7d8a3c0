"""Images with their masks or objects, checked one by one. A UserError names the file in which something is wrong.

mask        (H, W) uint8
objects     a dictionary: boxes (M, 4) in pixels, labels (M,), and ignored (M,), which is 1 for objects that are not to
            be counted (COCO's crowds, VOC's difficult ones)
"""
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import ops, tv_tensors
from torchvision.transforms import v2

from ..data.images import one_line, open_image, read_rgb
from ..runtime.errors import UserError

IGNORED = 255           # in masks
AGAIN = "fetch it again, because the data set lists it"


class Annotated(Dataset):
    """annotated[index] -> (PIL image in RGB, mask or objects).

    items: the file of each image, and its annotation. read: annotation -> mask or objects, which are checked here.
    """

    def __init__(self, items: list[tuple[Path, Any]], read: Callable[[Any], Any]):
        self.items, self.read = items, read

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        file, annotation = self.items[index]
        image = read_rgb(file, AGAIN)
        with one_line(f"{file} or its annotation cannot be read", AGAIN):
            target = self.read(annotation)
        size = (image.height, image.width)
        if isinstance(target, dict):
            return image, valid_boxes(target, size, file)
        if tuple(target.shape) != size:
            raise UserError(f"{file} is of size {size}, but its mask of {tuple(target.shape)}: they have to agree")
        return image, tv_tensors.Mask(target)


def valid_boxes(target: dict[str, Tensor], size: tuple[int, int], file: Path) -> dict[str, Tensor]:
    """The objects with their boxes (M, 4) clipped to the image, without those that have no area. A warning says so."""
    given = target["boxes"].reshape(-1, 4).float()
    boxes = ops.clip_boxes_to_image(given, size)
    keep = ops.remove_small_boxes(boxes, min_size=1e-3)
    if len(keep) < len(given):
        warnings.warn(f"{file}: {len(given) - len(keep)} of {len(given)} boxes lie outside or have no area: left out")
    elif ((boxes - given).abs() > 1).any():
        warnings.warn(f"{file}: a box reaches out of the image, which is {size}: clipped")
    return {"boxes": tv_tensors.BoundingBoxes(boxes[keep], format="XYXY", canvas_size=size),
            "labels": target["labels"][keep], "ignored": target["ignored"][keep]}


def class_mask(path: Path, classes: int) -> Tensor:
    """The mask as (H, W) uint8. ValueError for a picture in color, or for a number that stands for no class."""
    mask = open_image(path)
    if mask.mode not in ("P", "L"):
        raise ValueError(f"the mask has mode {mask.mode}, expected one channel of classes (P or L)")
    mask = v2.functional.pil_to_tensor(mask)[0]                             # (1, H, W) -> (H, W)
    unknown = mask[(mask >= classes) & (mask != IGNORED)]
    if len(unknown):
        raise ValueError(f"the mask holds class {unknown.max()}, expected 0 to {classes - 1} or {IGNORED}")
    return mask
