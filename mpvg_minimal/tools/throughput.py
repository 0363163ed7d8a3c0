"""How close the training loop is to what the machine can do.

    python -m mpvg_minimal.tools.throughput                        everything below, into results/throughput_DEVICE.json
    torchrun --nproc-per-node 2 -m mpvg_minimal.tools.throughput --parts processes

    limit       the model's FLOP/s in a training step, beside those of a large matrix product in the same process
    data        images/s with real data, beside the same steps on one batch that is there already
    batch       images/s by batch size: work per image is constant if this does not fall
    processes   images/s of all processes, each with one thread, beside one of them alone (under torchrun)

Both sides of each comparison run in turns; medians over the rounds. Shapes: B images.
"""
import json
import os
from pathlib import Path

from ..data.loading import choose_loader
from ..runtime import distributed
from ..runtime.errors import UserError, one_line_errors
from ..training import flags, recipes
from ..training.models import check_compile, refuse_more_than_fits
from ..vit import SIZES
from .measure import header, write
from .throughput_parts import PARTS, Setup


def main() -> None:
    parser = flags.Parser(__doc__, prog="python -m mpvg_minimal.tools.throughput")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=["limit", "data", "batch"])
    flags.add_flags(parser, models=list(SIZES))
    parser.add_argument("--dataset", choices=["shapes", "cifar10", "cifar100", "imagenet"], default="shapes")
    parser.add_argument("--cache", type=flags.path, metavar="DIR", help="for imagenet, as in train_imagenet.py")
    parser.add_argument("--sizes", nargs="+", type=flags.number(int, least=1),
                        default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--matrix", type=flags.number(int, least=1), default=2048, help="side of the product, on CPU")
    parser.add_argument("--rounds", type=flags.number(int, least=1), default=5)
    parser.set_defaults(out=Path("results"))
    args = parser.parse_args()
    if "processes" in args.parts and "LOCAL_RANK" not in os.environ:
        raise UserError("--parts processes compares processes: start it by torchrun --nproc-per-node 2")
    if args.cache and args.dataset != "imagenet":
        raise UserError(f"--cache {args.cache} is for --dataset imagenet, not for {args.dataset}")
    device = distributed.join(flags.choose_device(args.device))
    amp, loader = flags.choose_amp(args.amp, device), choose_loader(args.loader, device, args.dataset)
    recipe = {"shapes": recipes.SHAPES, "imagenet": recipes.IMAGENET}.get(args.dataset, recipes.CIFAR)
    recipe = flags.adjust(recipe, args)
    check_compile(args.compile, recipe, device)
    size, classes = (224, 1000) if args.dataset == "imagenet" else (32, 100)
    settings = flags.settings_of(args, recipe, amp=amp, loader=loader, dataset=args.dataset, num_classes=classes,
                                 image_size=size)
    largest = max([recipe.batch_size, *args.sizes] if "batch" in args.parts else [recipe.batch_size])
    refuse_more_than_fits(12 * largest * size ** 2, device, f"a batch of {largest} images")
    refuse_more_than_fits(12 * args.matrix ** 2 if "limit" in args.parts else 0, device, f"--matrix {args.matrix}")
    result = header("mpvg_minimal.tools.throughput", device) | {"settings": settings, "rounds": args.rounds}
    for part in args.parts:
        result[part] = PARTS[part](Setup(args, recipe, settings, device, amp))
        if distributed.is_first():
            print(part, json.dumps(result[part]), flush=True)
    if distributed.is_first():
        write(result, args.out / ("_".join(["throughput", device.type, settings["model"], *args.parts]) + ".json"))
    distributed.leave()


if __name__ == "__main__":
    with one_line_errors():
        main()
