"""Train a DeiT-sized ViT on ImageNet, or on any folder of images, by DeiT's recipe.

    python train_imagenet.py --gap --mpvg --data-dir IMAGENET                               one GPU
    torchrun --nproc-per-node 8 train_imagenet.py --gap --mpvg --data-dir IMAGENET          eight GPUs
    python train_imagenet.py --data-dir IMAGENET --eval runs/NAME/checkpoint.pt             test a checkpoint
    python train_imagenet.py --data-dir IMAGENET --init CHECKPOINT --image-size 384 --epochs 30 --lr 5e-6

IMAGENET holds train/CLASS/*.jpg and val/CLASS/*.jpg. --batch-size counts the images of one update over all
processes, so the recipe is the same everywhere. Accuracy and hours on ImageNet: not measured.
"""
import argparse
from pathlib import Path

from mpvg_minimal.data import cache, sources
from mpvg_minimal.runtime import distributed
from mpvg_minimal.runtime.errors import one_line_errors
from mpvg_minimal.training import assemble, checkpoint, flags, recipes


def parse() -> argparse.Namespace:
    parser = flags.Parser(description=__doc__.split("\n")[0])
    flags.add_flags(parser, models=["deit_tiny", "deit_small", "deit_base", "vit_lite", "vit_nano"])
    parser.add_argument("--image-size", type=flags.number(int, least=1), help="default: 224")
    parser.add_argument("--accumulate", type=flags.number(int, least=1), default=1,
                        help="parts that each process takes its share of a batch in, to save memory")
    parser.add_argument("--cache", type=Path, metavar="DIR",
                        help="train on smaller copies of the images in DIR, made there on first use")
    parser.add_argument("--eval", type=Path, metavar="CHECKPOINT", help="only test this checkpoint on val/")
    parser.add_argument("--init", type=Path, metavar="CHECKPOINT",
                        help="begin with its weights, PE resized to --image-size")
    return parser.parse_args()


def test(args: argparse.Namespace, device) -> None:
    """--eval: the checkpoint says which model it is; a flag that says otherwise is refused."""
    saved = checkpoint.read(args.eval)
    given = {key: getattr(args, key) for key in ("model", "pool", "pe", "pe_init", "image_size")}
    given = {key: value for key, value in given.items() if value is not None} | {"dataset": "imagenet"}
    checkpoint.refuse_other_settings({key: saved["settings"].get(key) for key in given}, given)
    source = sources.open_source("imagenet", args.data_dir, saved["settings"]["image_size"])
    classes = {key: source.identity()[key] for key in ("num_classes", "classes")}
    checkpoint.refuse_other_settings({key: saved["settings"].get(key) for key in classes}, classes)
    settings = saved["settings"] | {"limit": args.limit}
    metrics = assemble.test(assemble.load_model(saved), source, settings, device, workers=args.workers,
                            amp=flags.choose_amp(args.amp, device))
    if distributed.is_first():
        print("test loss: {test_loss:.4f}\ntest accuracy: {top1:.2f} %".format(**metrics))


def main() -> None:
    args = parse()
    device = distributed.start(flags.choose_device(args.device, args.amp))
    if args.eval:
        test(args, device)
    else:
        size = args.image_size or 224
        settings = flags.settings_of(args, device, recipes.IMAGENET, dataset="imagenet", image_size=size,
                                     cache=sources.shorter_side(size) if args.cache else None,
                                     **flags.settings_of_init(args))
        out = flags.choose_out(args, settings)
        assemble.refuse_size(settings)
        source = sources.open_source("imagenet", args.data_dir, settings["image_size"])
        if args.cache:
            source = cache.cached(source, args.cache, limit=args.limit, workers=flags.choose_workers(args.workers))
        assemble.train(args, settings | source.identity(), source, out, device)
    distributed.stop()


if __name__ == "__main__":
    with one_line_errors():
        main()
