"""Train a DeiT-sized ViT on ImageNet, or on any folder of images, by DeiT's recipe. The same story as train_cifar.py.

    python train_imagenet.py --gap --mpvg --data-dir IMAGENET                               one GPU
    torchrun --nproc-per-node 8 train_imagenet.py --gap --mpvg --data-dir IMAGENET          eight GPUs
    python train_imagenet.py --data-dir IMAGENET --eval runs/NAME/checkpoint.pt             test a checkpoint
    python train_imagenet.py --data-dir IMAGENET --init CHECKPOINT --image-size 384 --epochs 30 --lr 5e-6 --out DIR

IMAGENET holds train/CLASS/*.jpg and val/CLASS/*.jpg. Accuracy and hours: not measured. --batch-size counts the images
of one update over all processes, so the recipe is the same everywhere.
"""
# The package first: from here on Ctrl-C is one line, also while torch is imported.
from mpvg_minimal.runtime.errors import UserError, one_line_errors

# isort: split
import argparse

import torch

from mpvg_minimal.data import cache, sources
from mpvg_minimal.data.loading import choose_loader, make_batches, normalizer
from mpvg_minimal.runtime import distributed
from mpvg_minimal.runtime.device import autocast
from mpvg_minimal.training import checkpoint, flags, folder, recipes
from mpvg_minimal.training.curves import draw_curves
from mpvg_minimal.training.folder import choose_out, write_config
from mpvg_minimal.training.loop import fit
from mpvg_minimal.training.models import build_model, check_compile, init_from, load_model, refuse_size
from mpvg_minimal.training.run import start_run
from mpvg_minimal.training.task import CLASSIFICATION

TRAINING = ("epochs", "lr", "ema", "seed", "loader", "compile", "out", "resume", "accumulate", "cache", "init",
            "save_every")     # flags that --eval refuses


def parse() -> argparse.Namespace:
    parser = flags.Parser(__doc__)
    flags.add_flags(parser, models=["deit_tiny", "deit_small", "deit_base", "vit_lite", "vit_nano"])
    parser.add_argument("--image-size", type=flags.number(int, least=1, most=flags.LARGEST_IMAGE), help="default: 224")
    parser.add_argument("--accumulate", type=flags.number(int, least=1), default=1,
                        help="parts in which each process takes its share of a batch, to save memory")
    parser.add_argument("--cache", type=flags.path, metavar="DIR",
                        help="train on smaller copies of the images in DIR, made there on first use")
    parser.add_argument("--eval", type=flags.path, metavar="CHECKPOINT", help="only test this checkpoint on val/")
    parser.add_argument("--init", type=flags.path, metavar="CHECKPOINT",
                        help="begin with its weights, PE resized to --image-size")
    args = parser.parse_args()
    for flag in TRAINING if args.eval else ():
        if getattr(args, flag) != parser.get_default(flag):
            raise UserError(f"--eval only tests: --{flag.replace('_', '-')} means nothing to it, leave it out")
    return args


def evaluate(args: argparse.Namespace, device: torch.device) -> None:
    """--eval: test a checkpoint, which says itself which model it is. A flag that says otherwise is refused."""
    amp, saved = flags.choose_amp(args.amp, device), checkpoint.read(args.eval)
    settings = saved["settings"]
    folder.refuse_other_settings(settings, {"dataset": "imagenet"},
                                 advice="only checkpoints of train_imagenet.py can be tested here")
    folder.refuse_another_model(args, settings, "image_size")
    model = load_model(saved).to(device)
    source = sources.open_source("imagenet", args.data_dir, settings["image_size"])
    folder.refuse_other_settings(settings, {"classes": source.identity()["classes"]},
                                 advice="name its data by --data-dir")
    batches = make_batches(source, train=False, batch_size=args.batch_size or settings["batch_size"],
                           limit=args.limit, device=device, workers=args.workers)
    metrics = CLASSIFICATION.evaluate(model, batches, normalize=normalizer(source, device), device=device,
                                      autocast=autocast(device, amp))
    if distributed.is_first():
        print("test loss: {test_loss:.4f}\ntest accuracy: {top1:.2f} %".format(**metrics))


def train(args: argparse.Namespace, device: torch.device) -> None:
    # 1. Settings
    size, init = args.image_size or 224, folder.take_from_init(args)
    recipe = flags.adjust(recipes.IMAGENET, args)
    amp, loader = flags.choose_amp(args.amp, device), choose_loader(args.loader, device, "imagenet")
    check_compile(args.compile, recipe, device)
    settings = flags.settings_of(args, recipe, amp=amp, loader=loader, dataset="imagenet", image_size=size, init=init,
                                 cache=sources.shorter_side(size) if args.cache else None)
    out = choose_out(args.out, settings, resume=args.resume)
    refuse_size(settings, device)

    # 2. Data
    source = sources.open_source("imagenet", args.data_dir, size)
    if args.cache:
        source = cache.cached(source, args.cache)
    settings |= source.identity()

    # 3. Model
    model = build_model(settings)
    init_from(model, init, out)

    # 4. Batches
    options = dict(batch_size=recipe.batch_size, device=device, augment=recipe.augment, seed=recipe.seed,
                   limit=args.limit, loader=loader, workers=args.workers)
    train_batches, test_batches = (make_batches(source, train=train, **options) for train in (True, False))
    mix = sources.mixing(len(source.classes), mixup=recipe.mixup, cutmix=recipe.cutmix)

    # 5. Run
    run = start_run(model, recipe, out=out, device=device, amp=amp, compiled=args.compile, settings=settings)
    run.resume()
    write_config(out, settings, data_dir=args.data_dir, device=device)

    # 6. Training, the result, then the curves
    history = fit(run, train_batches, test_batches, normalize=normalizer(source, device), mix=mix,
                  save_every=args.save_every)
    if distributed.is_first():
        print(f"test accuracy: {history[-1]['top1']:.2f} %", flush=True)
        draw_curves(history, out / "curves.png")


def main() -> None:
    args = parse()
    device = distributed.join(flags.choose_device(args.device))
    if args.eval:
        evaluate(args, device)
    else:
        train(args, device)
    distributed.leave()


if __name__ == "__main__":
    with one_line_errors():
        main()
