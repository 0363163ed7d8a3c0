"""Train a ViT on CIFAR-10, CIFAR-100 or the built-in shapes.

    python train_cifar.py --gap --mpvg --dataset shapes     nothing to download; under a minute on two CPU cores
    python train_cifar.py --gap --mpvg                      CIFAR-10, ViT-Lite, the published recipe of 310 epochs
"""
from mpvg_minimal.data import sources
from mpvg_minimal.runtime import distributed
from mpvg_minimal.runtime.errors import one_line_errors
from mpvg_minimal.training import assemble, flags, recipes


def main() -> None:
    parser = flags.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", choices=["cifar10", "cifar100", "shapes"], default="cifar10")
    flags.add_flags(parser, models=["vit_lite", "vit_nano"])
    args = parser.parse_args()
    device = distributed.start(flags.choose_device(args.device, args.amp))
    recipe = recipes.SHAPES if args.dataset == "shapes" else recipes.CIFAR
    settings = flags.settings_of(args, device, recipe, dataset=args.dataset)
    out = flags.choose_out(args, settings)
    source = sources.open_source(args.dataset, args.data_dir)
    assemble.train(args, settings | source.identity(), source, out, device)
    distributed.stop()


if __name__ == "__main__":
    with one_line_errors():
        main()
