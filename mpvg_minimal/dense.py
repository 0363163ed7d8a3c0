"""Segmentation and detection: two short heads on the tokens after the last norm.

    python -m mpvg_minimal.dense --task segmentation --gap --mpvg           built-in shapes, nothing to download
    python -m mpvg_minimal.dense --task detection --gap --mpvg
    python -m mpvg_minimal.dense --task detection --dataset coco --data-dir COCO --gap --mpvg --model deit_tiny \\
        --init runs/NAME/checkpoint.pt                                      begin with a classifier's weights

Under GAP, PE at the last norm adds one vector to every image's feature. Here every token is read by itself and PE
differs from token to token, so PE at the last norm can matter at inference too: `fold_last_pe(vit, dense=True)`.
Sources: the linear head is Segmenter's (Strudel et al. 2021); the feature pyramid is ViTDet's (Li et al. 2022), the
detector torchvision's FCOS (Tian et al. 2019). Shapes: B images, h x w the grid of patches of size P, D width,
K classes, M objects.
"""
import argparse
import contextlib
import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, pixel_shuffle
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.ops import nms

from . import checkpoint, cli, distributed, plots, recipes
from .dense_data import IGNORED, open_dense
from .errors import UserError, one_line_errors
from .run import Task
from .train import outputs
from .vit import SIZES, ViT


def token_map(vit: ViT, images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, D, h, w): the tokens after the last norm on their grid, without the class token."""
    tokens, grid = vit.forward_tokens(images), vit.patch_embed.grid         # (B, N, D)
    return tokens[:, -grid[0] * grid[1]:].transpose(1, 2).unflatten(2, grid)


class Segmenter(nn.Module):
    """(B, 3, H, W) -> scores of every pixel (B, K, H, W).

    A linear map gives each token a patch of c x c scores for every class, c = P, or P / 4 for larger patches than
    8; a pixel shuffle lays them out, and bilinear interpolation fills what is missing.
    """

    def __init__(self, vit: ViT, num_classes: int):
        super().__init__()
        width, patch = vit.head.in_features, vit.patch_embed.patch_size
        self.vit, self.side = vit, patch if patch <= 8 else patch // 4
        vit.head = nn.Identity()
        self.head = nn.Conv2d(width, num_classes * self.side ** 2, kernel_size=1)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        scores = self.head(token_map(self.vit, images))                     # (B, D, h, w) -> (B, K * c * c, h, w)
        scores = pixel_shuffle(scores, self.side)                           # (B, K, c * h, c * w)
        if scores.shape[2:] == images.shape[2:]:
            return scores
        return interpolate(scores, images.shape[2:], mode="bilinear")       # (B, K, H, W)


def segmentation_loss(model: nn.Module, images: Tensor, masks: Tensor, *,
                      label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and the share of right pixels, of each image's counted pixels; then the images' mean and sum."""
    scores, masks = model(images), masks.long()                             # (B, K, H, W), (B, H, W)
    counted = masks != IGNORED
    pixels = counted.flatten(1).sum(1).clamp(min=1)                         # (B,)
    loss = cross_entropy(scores, masks, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="none")
    right = counted & (scores.detach().argmax(1) == masks)
    return (loss.flatten(1).sum(1) / pixels).mean(), (right.flatten(1).sum(1) / pixels).sum()


@torch.no_grad()
def test_segmenter(model: nn.Module, batches: Any, **options: Any) -> dict[str, float]:
    """Mean IoU over the classes that occur in masks or predictions, and the share of right pixels, both 0 to 1."""
    confusion: Any = 0
    for scores, masks in outputs(model, batches, **options):
        classes, counted = scores.shape[1], masks != IGNORED
        pairs = classes * masks[counted].long() + scores.argmax(1)[counted]
        confusion = confusion + pairs.bincount(minlength=classes ** 2).view(classes, classes)   # (K, K): truth, given
    return iou_of(distributed.summed(confusion))


def iou_of(confusion: Tensor) -> dict[str, float]:
    """confusion (K, K): number of pixels of a class (row) that were given a class (column)."""
    confusion = confusion.cpu().double()
    both, either = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return {"mean_iou": (both / either)[either > 0].mean().item(),
            "pixel_accuracy": (both.sum() / confusion.sum()).item()}


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
        (height, width), patch = vit.patch_embed.image_size, vit.patch_embed.patch_size
        pyramid = FeaturePyramid(vit, channels, levels)
        strides = tuple((int(patch / level),) for level in levels)          # FCOS: one anchor, as large as the stride
        self.fcos = FCOS(pyramid, num_classes, min_size=min(height, width), max_size=max(height, width),
                         image_mean=[0.0] * 3, image_std=[1.0] * 3, size_divisible=1, score_thresh=0.05,
                         anchor_generator=AnchorGenerator(strides, ((1.0,),) * len(levels)),
                         head=FCOSHead(channels, 1, num_classes, convs))
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.padding_mode = padding

    @property
    def vit(self) -> ViT:
        return self.fcos.backbone.vit

    def forward(self, images: Tensor, objects: Tensor | None = None) -> Any:
        targets = None
        if objects is not None:
            counted = [rows[(rows[:, 0] >= 0) & (rows[:, 5] == 0)] for rows in objects]
            targets = [{"labels": rows[:, 0].long(), "boxes": rows[:, 1:5]} for rows in counted]
        return self.fcos(list(images), targets)


def detection_loss(model: nn.Module, images: Tensor, objects: Tensor, *,
                   label_smoothing: float) -> tuple[Tensor, Tensor]:
    """The sum of FCOS's losses (classes, boxes, centres); there are no hits to count."""
    losses = model(images, objects)
    return sum(losses.values()), images.new_zeros(())


@torch.no_grad()
def test_detector(model: nn.Module, batches: Any, **options: Any) -> dict[str, float]:
    """Average precision over all images of all processes."""
    found, truths = [], []
    for detections, objects in outputs(model, batches, **options):
        found += [{key: value.cpu() for key, value in image.items()} for image in detections]
        truths += [rows[rows[:, 0] >= 0].cpu() for rows in objects]
    parts = distributed.gathered((found, truths))
    return average_precision([f for part in parts for f in part[0]], [t for part in parts for t in part[1]])


def average_precision(found: list[dict[str, Tensor]], truths: list[Tensor]) -> dict[str, float]:
    """COCO's AP (mean over IoU 0.50 ... 0.95), AP50 and AP75, from 0 to 1, by pycocotools.

    found: boxes (M, 4), scores (M,), labels (M,) for each image. truths: (M, 6) for each, see dense_data.py.
    """
    annotations, results = [], []
    for image, (detections, rows) in enumerate(zip(found, truths), start=1):
        for label, x1, y1, x2, y2, ignored in rows.tolist():
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": int(label),
                                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
                                "iscrowd": int(ignored)})
        for (x1, y1, x2, y2), score, label in zip(detections["boxes"].tolist(), detections["scores"].tolist(),
                                                  detections["labels"].tolist()):
            results.append({"image_id": image, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1],
                            "score": score})
    if not results or not annotations:
        return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    classes = sorted({annotation["category_id"] for annotation in annotations})
    with contextlib.redirect_stdout(io.StringIO()):                         # it prints
        truth = COCO()
        truth.dataset = {"images": [{"id": image} for image in range(1, len(truths) + 1)], "annotations": annotations,
                         "categories": [{"id": number} for number in classes]}
        truth.createIndex()
        results = [result for result in results if result["category_id"] in classes]
        evaluation = COCOeval(truth, truth.loadRes(results) if results else COCO(), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = torch.from_numpy(evaluation.eval["precision"])              # (10 IoUs, 101 recalls, K, 1, 1); or -1
    mean = [level[level > -1].mean().item() for level in (precision, precision[0], precision[5])]
    return dict(zip(("ap", "ap50", "ap75"), mean))


TASKS = {"segmentation": Task(segmentation_loss, test_segmenter, "train_pixel_accuracy", "mean_iou",
                              "mean IoU {mean_iou:.4f}  pixels {pixel_accuracy:.4f}", "test mean IoU: {mean_iou:.4f}"),
         "detection": Task(detection_loss, test_detector, None, "ap50", "AP {ap:.4f}  AP50 {ap50:.4f}",
                           "test AP: {ap:.4f}  AP50: {ap50:.4f}")}


def build(settings: dict[str, Any]) -> Segmenter | Detector:
    """The model that the settings name, freshly initialised from the settings' seed."""
    vit = cli.build_model(settings)
    if settings["task"] == "segmentation":
        return Segmenter(vit, settings["num_classes"])
    return Detector(vit, settings["num_classes"], **settings["detector"])


@torch.no_grad()
def draw(model: nn.Module, batches: Any, prepare: Any, device: torch.device, path: Path, count: int = 6) -> None:
    """Some test images, what is in them, and what the model finds; of boxes in one place the surest, from 0.3 on."""
    images, targets = (tensor[:count] for tensor in next(iter(batches.epoch())))
    given = model.eval()(prepare(images.to(device)))
    if isinstance(given, Tensor):
        plots.draw_dense(images, targets.masked_fill(targets == IGNORED, 0), given.argmax(1).cpu(), path)
        return
    truths = [rows[rows[:, 0] >= 0, :5] for rows in targets]
    found = []
    for image in given:
        keep = nms(image["boxes"], image["scores"], 0.5)                    # whatever the class, surest first
        keep = keep[image["scores"][keep] > 0.3]
        found.append(torch.cat([image["labels"][keep, None], image["boxes"][keep]], dim=1).cpu())
    plots.draw_dense(images, truths, found, path)


def parse() -> argparse.Namespace:
    parser = cli.Parser(prog="python -m mpvg_minimal.dense", description=__doc__.split("\n")[0])
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--dataset", choices=["shapes", "voc", "coco", "ade20k"], default="shapes")
    cli.add_flags(parser, models=list(SIZES))
    parser.add_argument("--image-size", type=cli.number(int, least=1), help="default: 32 for shapes, otherwise 224")
    parser.add_argument("--init", type=Path, metavar="CHECKPOINT", help="begin with a classification run's weights")
    parser.add_argument("--padding", choices=["zeros", "circular"],
                        help="of the detector's convolutions (default: circular for shapes, otherwise zeros)")
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.padding and args.task != "detection":
        raise UserError(f"--padding {args.padding} is for --task detection: the segmenter has no such convolutions")
    if args.loader == "device":
        raise UserError("--loader device holds no masks and boxes: leave it out, dense tasks load by workers")
    if args.dataset == "shapes" and args.image_size not in (None, 32):
        raise UserError(f"--image-size {args.image_size}: the shapes are drawn at 32")
    device = distributed.start(cli.choose_device(args.device, args.amp))
    recipe = recipes.DENSE_SHAPES[args.task] if args.dataset == "shapes" else recipes.DENSE
    settings = cli.settings_of(args, device, recipe, dataset=args.dataset, task=args.task,
                               **cli.settings_of_init(args), loader="workers")      # it knows no masks and boxes
    settings["image_size"] = 32 if args.dataset == "shapes" else args.image_size or 224
    if args.padding:
        settings["detector"] = {**settings["detector"], "padding": args.padding}
    args.out = args.out or Path("runs") / "{task}_{dataset}_{model}_{pool}_{pe}_seed{seed}".format(**settings)
    out = cli.choose_out(args, settings)
    cli.refuse_size(settings)
    scale = settings["augment"] and settings["augment"]["scale"]
    source = open_dense(args.task, args.dataset, args.data_dir, settings["image_size"], scale)
    settings |= source.identity()
    run = cli.train(args, settings, source, out, device, build=build, task=TASKS[args.task])
    if distributed.is_first():
        batches = cli.build_batches(source, settings, train=False, workers=0, device=device)
        draw(run.ema.module if run.ema else run.model, batches, cli.prepare_on(device, source), device,
             out / "predictions.png")
    distributed.stop()


def load(run: Path) -> tuple[Segmenter | Detector, dict[str, Any]]:
    """The newest model of a dense run, in eval mode, and its settings."""
    saved = checkpoint.newest(run)
    return cli.load_model(saved, build), saved["settings"]


if __name__ == "__main__":
    with one_line_errors():
        main()
