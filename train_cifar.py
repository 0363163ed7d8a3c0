"""Train a ViT on CIFAR-10, CIFAR-100 or the built-in shapes.

    python train_cifar.py --gap --mpvg --dataset shapes     nothing to download; under a minute on two CPU cores
    python train_cifar.py --gap --mpvg                      CIFAR-10, ViT-Lite, the published recipe of 300 epochs
"""
from mpvg_minimal import assemble, cli, data, distributed, recipes
from mpvg_minimal.errors import one_line_errors


def main() -> None:
    parser = cli.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", choices=["cifar10", "cifar100", "shapes"], default="cifar10")
    cli.add_flags(parser, models=["vit_lite", "vit_nano"])
    args = parser.parse_args()
    device = distributed.start(cli.choose_device(args.device, args.amp))
    recipe = recipes.SHAPES if args.dataset == "shapes" else recipes.CIFAR
    settings = cli.settings_of(args, device, recipe, dataset=args.dataset)
    out = cli.choose_out(args, settings)
    source = data.open_source(args.dataset, args.data_dir)
    assemble.train(args, settings | source.identity(), source, out, device)
    distributed.stop()


if __name__ == "__main__":
    with one_line_errors():
        main()
