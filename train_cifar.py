"""Train a ViT on CIFAR-10, CIFAR-100 or the built-in shapes.

    python train_cifar.py --gap --mpvg --dataset shapes     nothing to download; half a minute on two CPU cores
    python train_cifar.py --gap --mpvg                      CIFAR-10, ViT-Lite, the published recipe of 310 epochs

The file is the story of a run, step by step. What happens in its last step, `fit`: mpvg_minimal/training/loop.py.
"""
# The package first: from here on Ctrl-C is one line, also while torch is imported.
from mpvg_minimal.runtime.errors import one_line_errors

# isort: split
import argparse

import torch

from mpvg_minimal.data import sources
from mpvg_minimal.data.loading import choose_loader, make_batches, normalizer
from mpvg_minimal.runtime import distributed
from mpvg_minimal.training import flags, recipes
from mpvg_minimal.training.curves import draw_curves
from mpvg_minimal.training.folder import choose_out, write_config
from mpvg_minimal.training.loop import fit
from mpvg_minimal.training.models import build_model, check_compile, refuse_size
from mpvg_minimal.training.run import start_run


def parse() -> argparse.Namespace:
    parser = flags.Parser(__doc__)
    parser.add_argument("--dataset", choices=["cifar10", "cifar100", "shapes"], default="cifar10")
    flags.add_flags(parser, models=["vit_lite", "vit_nano"])
    return parser.parse_args()


def train(args: argparse.Namespace, device: torch.device) -> None:
    # 1. Settings: the recipe, changed by the flags, and all else that tells this run from another one.
    recipe = flags.adjust(recipes.SHAPES if args.dataset == "shapes" else recipes.CIFAR, args)
    amp, loader = flags.choose_amp(args.amp, device), choose_loader(args.loader, device, args.dataset)
    check_compile(args.compile, recipe, device)
    settings = flags.settings_of(args, recipe, amp=amp, loader=loader, dataset=args.dataset)
    out = choose_out(args.out, settings, resume=args.resume)
    refuse_size(settings | {"image_size": 32}, device)

    # 2. Data: what is on disk. The settings also name its classes and sizes.
    source = sources.open_source(args.dataset, args.data_dir)
    settings |= source.identity()

    # 3. Model: fresh weights that depend on the seed alone.
    model = build_model(settings)

    # 4. Batches: images stay uint8 until they are on the device; there they are normalized, and mixed for training.
    options = dict(batch_size=recipe.batch_size, device=device, augment=recipe.augment, seed=recipe.seed,
                   limit=args.limit, loader=loader, workers=args.workers)
    train_batches, test_batches = (make_batches(source, train=train, **options) for train in (True, False))
    mix = sources.mixing(len(source.classes), mixup=recipe.mixup, cutmix=recipe.cutmix)

    # 5. Run: the model with its optimizer, loss scaler and averaged copy, from the newest checkpoint if there is one.
    run = start_run(model, recipe, out=out, device=device, amp=amp, compiled=args.compile, settings=settings)
    run.resume()
    write_config(out, settings, data_dir=args.data_dir, device=device)

    # 6. Training, the result, then the curves.
    history = fit(run, train_batches, test_batches, normalize=normalizer(source, device), mix=mix,
                  save_every=args.save_every)
    if distributed.is_first():
        print(f"test accuracy: {history[-1]['top1']:.2f} %", flush=True)
        draw_curves(history, out / "curves.png")


def main() -> None:
    args = parse()
    device = distributed.join(flags.choose_device(args.device))
    train(args, device)     # a function of its own, so that the run is freed before its process group is destroyed
    distributed.leave()


if __name__ == "__main__":
    with one_line_errors():
        main()
