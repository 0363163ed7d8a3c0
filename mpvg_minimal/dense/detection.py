"""Detection: torchvision's FCOS on a pyramid made of the tokens after the last norm, scored by pycocotools.

Sources: the feature pyramid is ViTDet's (Li et al. 2022), the detector FCOS (Tian et al. 2019). Trained by __main__.py.
A training step waits for the device where FCOS's own loss picks the matched anchors, and a test where FCOS picks boxes.
Shapes: B images, h x w the grid of patches of size P, D width, C channels, M objects.
"""
import contextlib
import io
from collections import OrderedDict
from typing import Any

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert

from ..runtime import distributed
from ..training.task import Task, evaluate_batches
from ..vit import ViT
from .segmentation import token_map


class FeaturePyramid(nn.Module):
    """Images -> maps of C channels, finest first, all made from the last tokens: ViTDet's simple feature pyramid.

    levels: how fine each is, in units of the token map: 4, 2, 1 or 0.5.
    """

    def __init__(self, vit: ViT, channels: int, levels: list[float]):
        super().__init__()
        width, self.vit, self.out_channels = vit.head.in_features, vit, channels
        vit.head = nn.Identity()
        finer = {4: [nn.ConvTranspose2d(width, channels, 2, 2), LayerNorm2d(channels), nn.GELU(),
                     nn.ConvTranspose2d(channels, channels, 2, 2)],
                 2: [nn.ConvTranspose2d(width, channels, 2, 2)], 1: [nn.Conv2d(width, channels, 1)],
                 0.5: [nn.MaxPool2d(2), nn.Conv2d(width, channels, 1)]}
        self.levels = nn.ModuleList(
            nn.Sequential(*finer[level], LayerNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1),
                          LayerNorm2d(channels)) for level in levels)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        tokens = token_map(self.vit, images)                                # (B, D, h, w)
        return OrderedDict((str(number), level(tokens)) for number, level in enumerate(self.levels))


class Detector(nn.Module):
    """torchvision's FCOS on the pyramid. Training: (images, objects (B, M, 6)) -> losses; else boxes, scores, labels.

    convs: 3 x 3 convolutions before each of the head's outputs. padding: "zeros", or "circular": zeros at the border
    tell a convolution where it is, which is position information that no PE gave; a map that is closed tells nothing.
    """

    def __init__(self, vit: ViT, num_classes: int, *, channels: int, levels: list[float], convs: int, padding: str):
        super().__init__()
        pyramid, patch = FeaturePyramid(vit, channels, levels), vit.patch_embed.patch_size
        strides = tuple((int(patch / level),) for level in levels)          # FCOS: one anchor, as large as the stride
        self.fcos = FCOS(pyramid, num_classes, score_thresh=0.05,
                         anchor_generator=AnchorGenerator(strides, ((1.0,),) * len(levels)),
                         head=FCOSHead(channels, 1, num_classes, convs))
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.padding_mode = padding

    @property
    def vit(self) -> ViT:
        return self.fcos.backbone.vit

    def __setattr__(self, name: str, value: Any) -> None:       # nn.Module's takes no notice of a property
        nn.Module.__setattr__(self.fcos.backbone if name == "vit" else self, name, value)

    def forward(self, images: Tensor, objects: Tensor | None = None) -> Any:
        """FCOS.forward, without its resizing; boxes in float32, because bfloat16 knows 220 pixels to half a pixel."""
        fcos, sizes = self.fcos, [tuple(images.shape[2:])] * len(images)
        maps = [level.float() for level in fcos.backbone(images).values()]              # (B, C, h, w) of each level
        outputs = {name: value.float() for name, value in fcos.head(maps).items()}      # (B, all anchors, ...)
        anchors = fcos.anchor_generator(ImageList(images, sizes), maps)
        counts = [level.shape[2] * level.shape[3] for level in maps]
        if self.training:
            counted = (objects[:, :, :1] >= 0) & (objects[:, :, 5:] == 0)               # (B, M, 1)
            boxes = torch.where(counted, objects[:, :, 1:5], -1.0)      # outside the image, so no anchor matches it:
            targets = [{"labels": labels, "boxes": rows} for labels, rows in zip(objects[:, :, 0].long(), boxes)]
            return fcos.compute_loss(targets, outputs, anchors, counts)  # to select rows would wait for each image
        split = {name: list(value.split(counts, dim=1)) for name, value in outputs.items()}
        return fcos.postprocess_detections(split, [list(each.split(counts)) for each in anchors], sizes)


def detection_loss(model: nn.Module, images: Tensor, objects: Tensor, *,
                   label_smoothing: float) -> tuple[Tensor, Tensor]:
    """The sum of FCOS's losses (classes, boxes, centers); no answers are counted."""
    losses = model(images, objects)
    return sum(losses.values()), images.new_zeros(())


@torch.no_grad()
def evaluate_detector(model: nn.Module, batches: Any, **options: Any) -> dict[str, float]:
    """Average precision over all images of all processes."""
    found, truths = [], []
    for detections, objects in evaluate_batches(model, batches, **options):
        found += [{key: value.cpu() for key, value in image.items()} for image in detections]
        truths += [rows[rows[:, 0] >= 0] for rows in objects.cpu()]
    parts = distributed.all_gather((found, truths))
    return average_precision([f for part in parts for f in part[0]], [t for part in parts for t in part[1]])


def average_precision(found: list[dict[str, Tensor]], truths: list[Tensor]) -> dict[str, float]:
    """COCO's AP (mean over IoU 0.50 ... 0.95), AP50 and AP75, from 0 to 1, by pycocotools.

    found: boxes (M, 4), scores (M,), labels (M,) for each image. truths: (M, 6) for each, see targets.py.
    """
    annotations, results = [], []
    for image, (detections, rows) in enumerate(zip(found, truths), start=1):
        for label, x1, y1, x2, y2, ignored in rows.tolist():
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": int(label),
                                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
                                "iscrowd": int(ignored)})
        boxes = box_convert(detections["boxes"].double(), "xyxy", "xywh")                           # (M, 4)
        number = boxes.new_full((len(boxes),), image)
        results.append(torch.column_stack([number, boxes, detections["scores"], detections["labels"]]))     # (M, 7)
    classes = sorted({annotation["category_id"] for annotation in annotations})
    results = torch.cat(results)
    results = results[torch.isin(results[:, 6], torch.tensor(classes))]
    if not len(results):
        return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):                         # it prints
        truth = COCO()
        truth.dataset = {"images": [{"id": image} for image in range(1, len(truths) + 1)], "annotations": annotations,
                         "categories": [{"id": number} for number in classes]}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results.numpy()), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = torch.from_numpy(evaluation.eval["precision"])              # (10 IoUs, 101 recalls, K, 1, 1); or -1
    mean = [level[level > -1].mean().nan_to_num().item() for level in (precision, precision[0], precision[5])]
    return dict(zip(("ap", "ap50", "ap75"), mean))


DETECTION = Task(detection_loss, evaluate_detector, accuracy=None, score="ap50", line="AP {ap:.4f}  AP50 {ap50:.4f}",
                 result="test AP: {ap:.4f}  AP50: {ap50:.4f}")
