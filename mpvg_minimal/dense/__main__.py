"""Segmentation and detection: what is trained, from which data, and `predictions.png` at the end.

    python -m mpvg_minimal.dense --task segmentation --gap --mpvg           built-in shapes, nothing to download
    python -m mpvg_minimal.dense --task detection --gap --mpvg
    python -m mpvg_minimal.dense --task detection --dataset coco --data-dir COCO --gap --mpvg --model deit_tiny \\
        --init runs/NAME/checkpoint.pt                                      begin with a classifier's weights

The heads: segmentation.py and detection.py. The data: targets.py.
"""
import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from ..runtime import distributed
from ..runtime.errors import UserError, one_line_errors
from ..tools import plots
from ..training import assemble, checkpoint, flags, recipes
from ..vit import SIZES
from .detection import DETECTION, Detector
from .files import IGNORED
from .segmentation import SEGMENTATION, Segmenter
from .targets import open_dense

TASKS = {"segmentation": SEGMENTATION, "detection": DETECTION}


def build(settings: dict[str, Any]) -> Segmenter | Detector:
    """The model that the settings name, freshly initialised from the settings' seed."""
    vit = assemble.build_model(settings)
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
    parser = flags.Parser(prog="python -m mpvg_minimal.dense", description=__doc__.split("\n")[0])
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--dataset", choices=["shapes", "voc", "coco", "ade20k"], default="shapes")
    flags.add_flags(parser, models=list(SIZES))
    parser.add_argument("--image-size", type=flags.number(int, least=1), help="default: 32 for shapes, otherwise 224")
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
    device = distributed.start(flags.choose_device(args.device, args.amp))
    recipe = recipes.DENSE_SHAPES[args.task] if args.dataset == "shapes" else recipes.DENSE
    settings = flags.settings_of(args, device, recipe, dataset=args.dataset, task=args.task,
                               **flags.settings_of_init(args), loader="workers")      # it knows no masks and boxes
    settings["image_size"] = 32 if args.dataset == "shapes" else args.image_size or 224
    if args.padding:
        settings["detector"] = {**settings["detector"], "padding": args.padding}
    args.out = args.out or Path("runs") / "{task}_{dataset}_{model}_{pool}_{pe}_seed{seed}".format(**settings)
    out = flags.choose_out(args, settings)
    assemble.refuse_size(settings)
    scale = settings["augment"] and settings["augment"]["scale"]
    source = open_dense(args.task, args.dataset, args.data_dir, settings["image_size"], scale)
    settings |= source.identity()
    run = assemble.train(args, settings, source, out, device, build=build, task=TASKS[args.task])
    if distributed.is_first():
        batches = assemble.build_batches(source, settings, train=False, workers=0, device=device)
        draw(run.ema.module if run.ema else run.model, batches, assemble.prepare_on(device, source), device,
             out / "predictions.png")
    distributed.stop()


def load(run: Path) -> tuple[Segmenter | Detector, dict[str, Any]]:
    """The newest model of a dense run, in eval mode, and its settings."""
    saved = checkpoint.newest(run)
    return assemble.load_model(saved, build), saved["settings"]


if __name__ == "__main__":
    with one_line_errors():
        main()
