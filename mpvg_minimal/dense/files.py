"""Images with their masks or objects, checked one by one. A UserError names the file in which something is wrong.

mask        (H, W) uint8
objects     a dictionary: boxes (M, 4) in pixels, labels (M,), and ignored (M,), which is 1 for objects that are not to
            be counted (COCO's crowds, VOC's difficult ones)
"""
import warnings
from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import ops, tv_tensors
from torchvision.transforms import v2

from ..runtime.errors import UserError, reason

IGNORED = 255           # in masks
LONG = 500              # letters of a library's complaint, because the cause may stand behind a long path

class Named(Dataset):
    """named[index] -> (PIL image in RGB, mask or objects), which `read(base, index)` gives and this class checks."""

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
        except (MemoryError, UserError):
            raise
        except Exception as error:                      # Pillow, XML and pycocotools raise a dozen kinds
            raise UserError(f"{file} or its annotation cannot be read ({reason(error, LONG)})") from error
        size = (image.height, image.width)
        if isinstance(target, dict):
            return image, valid_boxes(target, size, file)
        if tuple(target.shape) != size:
            raise UserError(f"{file} is of size {size}, but its mask of {tuple(target.shape)}: they have to agree")
        return image, tv_tensors.Mask(target)


def valid_boxes(target: dict[str, Tensor], size: tuple[int, int], file: str) -> dict[str, Tensor]:
    """The objects with their boxes (M, 4) clipped to the image, without those that have no area. A warning says so."""
    given = target["boxes"].reshape(-1, 4).float()
    boxes = ops.clip_boxes_to_image(given, size)
    keep = ops.remove_small_boxes(boxes, min_size=1e-3)
    if len(keep) < len(given):
        warnings.warn(f"{file}: {len(given) - len(keep)} of {len(given)} boxes lie outside or have no area: left out")
    elif (boxes - given).abs().amax() > 1 if len(given) else False:
        warnings.warn(f"{file}: a box reaches out of the image, which is {size}: clipped")
    return {"boxes": tv_tensors.BoundingBoxes(boxes[keep], format="XYXY", canvas_size=size),
            "labels": target["labels"][keep], "ignored": target["ignored"][keep]}


def class_mask(mask: Image.Image, classes: int) -> Tensor:
    """The mask as (H, W) uint8. ValueError for a picture in colour, or for a number that stands for no class."""
    if mask.mode not in ("P", "L"):
        raise ValueError(f"the mask has mode {mask.mode}, expected one channel of classes (P or L)")
    mask = v2.functional.pil_to_tensor(mask)[0]                             # (1, H, W) -> (H, W)
    highest = mask[mask != IGNORED].max().item() if (mask != IGNORED).any() else 0
    if highest >= classes:
        raise ValueError(f"the mask holds class {highest}, expected 0 to {classes - 1} or {IGNORED}")
    return mask
