"""Train segmentation or detection, and draw some predictions at the end.

    python -m mpvg_minimal.dense --task segmentation --gap --mpvg           built-in shapes, nothing to download
    python -m mpvg_minimal.dense --task detection --gap --mpvg
    python -m mpvg_minimal.dense --task detection --dataset coco --data-dir COCO --gap --mpvg --model deit_tiny \\
        --init runs/NAME/checkpoint.pt                                      begin with a classifier's weights

The same story as train_cifar.py, with a head of its own on the tokens: segmentation.py, detection.py, data: targets.py.
"""
import argparse
from pathlib import Path

import torch

from ..data.loading import make_batches, normalizer
from ..runtime import distributed
from ..runtime.errors import UserError, one_line_errors
from ..training import flags, recipes
from ..training.curves import draw_curves
from ..training.folder import choose_out, take_from_init, write_config
from ..training.loop import fit
from ..training.models import init_from, refuse_size
from ..training.run import start_run
from ..vit import SIZES
from .pictures import draw_predictions
from .targets import open_dense
from .tasks import TASKS, build_dense


def parse() -> argparse.Namespace:
    parser = flags.Parser(__doc__, prog="python -m mpvg_minimal.dense")
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--dataset", choices=["shapes", "voc", "coco", "ade20k"], default="shapes")
    flags.add_flags(parser, models=list(SIZES))
    parser.add_argument("--image-size", type=flags.number(int, least=1, most=flags.LARGEST_IMAGE),
                        help="default: 32 for shapes, otherwise 224")
    parser.add_argument("--init", type=flags.path, metavar="CHECKPOINT", help="begin with a classifier's weights")
    args = parser.parse_args()
    if args.loader == "device":
        raise UserError("--loader device holds no masks and boxes: leave it out, dense tasks load by workers")
    if args.compile == "reduce-overhead":
        raise UserError("--compile reduce-overhead is not tried for dense tasks: give --compile alone")
    if args.dataset == "shapes" and args.image_size not in (None, 32):
        raise UserError(f"--image-size {args.image_size}: the shapes are drawn at 32; leave it out")
    return args


def train(args: argparse.Namespace, device: torch.device) -> None:
    # 1. Settings
    task, init, amp = TASKS[args.task], take_from_init(args), flags.choose_amp(args.amp, device)
    recipe = flags.adjust(recipes.DENSE_SHAPES[args.task] if args.dataset == "shapes" else recipes.DENSE, args)
    size = 32 if args.dataset == "shapes" else args.image_size or 224
    settings = flags.settings_of(args, recipe, amp=amp, loader="workers", dataset=args.dataset, image_size=size,
                                 task=args.task, init=init)
    default = Path("runs") / "{task}_{dataset}_{model}_{pool}_{pe}_seed{seed}".format(**settings)
    out = choose_out(args.out or default, settings, resume=args.resume)
    refuse_size(settings, device)

    # 2. Data
    source = open_dense(args.task, args.dataset, args.data_dir, size, recipe.augment and recipe.augment["scale"])
    settings |= source.identity()

    # 3. Model
    model = build_dense(settings)
    init_from(model.vit, init, out)

    # 4. Batches
    options = dict(batch_size=recipe.batch_size, device=device, seed=recipe.seed, limit=args.limit,
                   workers=args.workers)
    train_batches, test_batches = (make_batches(source, train=train, **options) for train in (True, False))
    normalize = normalizer(source, device)

    # 5. Run
    run = start_run(model, recipe, out=out, device=device, amp=amp, task=task, compiled=args.compile, settings=settings)
    run.resume()
    write_config(out, settings, data_dir=args.data_dir, device=device)

    # 6. Training, the result, then the curves and the predictions
    history = fit(run, train_batches, test_batches, normalize=normalize, save_every=args.save_every)
    if distributed.is_first():
        print(task.result.format(**history[-1]), flush=True)
        draw_curves(history, out / "curves.png", score=task.score)
        draw_predictions(run.ema or run.model, test_batches, out / "predictions.png", normalize=normalize,
                         device=device)


def main() -> None:
    args = parse()
    device = distributed.join(flags.choose_device(args.device))
    train(args, device)     # a function of its own, so that the run is freed before its process group is destroyed
    distributed.leave()


if __name__ == "__main__":
    with one_line_errors():
        main()
