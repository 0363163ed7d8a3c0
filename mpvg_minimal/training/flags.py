"""What the training scripts share: their flags, and what the flags' values become.

If a flag is omitted, the recipe's value is used (recipes.py). The `settings` of a run are plain types. They are written
to OUT/config.json and to every checkpoint, and compared when the run is resumed.
"""
import argparse
from dataclasses import asdict, replace
from typing import Any

import torch

from ..runtime.errors import UserError
from . import checkpoint
from .folder import read_config, refuse_other_settings
from .parsing import LARGEST_IMAGE, MOST_PROCESSES, Parser, number, path, short  # noqa: F401  all under one name
from .recipes import Recipe

MODEL = ("model", "pool", "pe", "pe_init")          # the flags that choose a model, and settings of the same names


def add_flags(parser: argparse.ArgumentParser, models: list[str]) -> None:
    """Add the flags that all training scripts have. None as a default means that the flag was not given."""
    parser.add_argument("--data-dir", type=path, default="data",
                        help="where the data is, or goes (default: %(default)s)")
    parser.add_argument("--model", choices=models, help="default: the recipe's")
    parser.add_argument("--gap", dest="pool", action="store_const", const="gap",
                        help="global average pooling (default: a class token)")
    where = parser.add_argument_group("position embedding (PE)", "without one of these it is added once, at the input")
    where = where.add_mutually_exclusive_group()
    for flag, name, text in (("--mpvg", "mpvg", "to every block after the first, and to the last norm"),
                             ("--pvg", "pvg", "as --mpvg without the last norm"),
                             ("--lape", "lape", "to every block, not at the input"),
                             ("--no-pe", "none", "none at all")):
        where.add_argument(flag, dest="pe", action="store_const", const=name, help=text)
    parser.add_argument("--pe-init", choices=["learned", "sincos2d"], help="default: learned; sincos2d is fixed")
    parser.add_argument("--epochs", type=number(int, least=1))
    parser.add_argument("--batch-size", type=number(int, least=1), help="images per update, over all processes")
    parser.add_argument("--lr", type=number(float, above=0), help="peak learning rate, for that batch size")
    parser.add_argument("--ema", type=number(float, least=0, below=1), metavar="DECAY",
                        help="average the weights, for instance 0.9999; 0: do not")
    parser.add_argument("--seed", type=number(int, least=0, below=2 ** 63), help="default: 0")
    parser.add_argument("--limit", type=number(int, least=1), metavar="N", help="only N training and N test images")
    parser.add_argument("--loader", choices=["auto", "device", "workers"], default="auto",
                        help="hold and augment the images on the device, or in worker processes (auto: by the data)")
    parser.add_argument("--workers", type=number(int, least=0, most=MOST_PROCESSES),
                        help="processes that load images (default: by cores)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument("--amp", choices=["auto", "bf16", "fp16", "off"], default="auto",
                        help="mixed precision, on CUDA only")
    parser.add_argument("--compile", nargs="?", const="default", choices=["default", "reduce-overhead"],
                        help="torch.compile the model, in this mode; reduce-overhead replays CUDA graphs")
    parser.add_argument("--save-every", type=number(float, least=0), default=60.0, metavar="SECONDS",
                        help="least time between checkpoints at epochs' ends (default: %(default)g; 0: after each)")
    parser.add_argument("--out", type=path, help="the run's folder (default: runs/ and the settings)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUT")


def add_size_and_init(parser: argparse.ArgumentParser, *, size: str) -> None:
    """Add the flags of the commands that take images of any size. size: the default, for --help."""
    parser.add_argument("--image-size", type=number(int, least=1, most=LARGEST_IMAGE), help=f"default: {size}")
    parser.add_argument("--init", type=path, metavar="CHECKPOINT",
                        help="begin with a classification run's weights, PE resized to --image-size")


def adjust(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe, with the values of the flags that were given in place of its own."""
    names = ("model", "epochs", "batch_size", "lr", "ema", "accumulate", "seed")
    given = {name: getattr(args, name, None) for name in names}
    recipe = replace(recipe, **{name: value for name, value in given.items() if value is not None})
    return replace(recipe, final_lr=min(recipe.final_lr, recipe.lr))        # the rate falls, also from a small --lr


def settings_of(args: argparse.Namespace, recipe: Recipe, *, amp: torch.dtype | None, **more: Any) -> dict[str, Any]:
    """All that makes a run another one, as plain types: the recipe, the flags' other values, and `more`.

    The precision belongs to it. --compile, --device, --workers and --save-every do not.
    """
    return {**asdict(recipe), "pool": args.pool or "cls", "pe": args.pe or "once", "pe_init": args.pe_init or "learned",
            "amp": str(amp).removeprefix("torch.") if amp else None, "limit": args.limit, **more}


def take_from_init(args: argparse.Namespace) -> str | None:
    """--init: give `args` the checkpoint's model where no flag names one. Returns the checkpoint's path.

    A run that is resumed knows its model, so the checkpoint need not be there any more.
    UserError for a flag that names another model.
    """
    if args.init is None:
        return None
    resumed = args.resume and args.out and (args.out / "config.json").exists()
    saved = (read_config(args.out) if resumed else checkpoint.read(args.init))["settings"]
    with checkpoint.of_this_version():
        model = {key: saved[key] for key in MODEL}
    refuse_another_model(args, saved)
    vars(args).update(model)
    return str(args.init)


def take_from_eval(args: argparse.Namespace) -> dict[str, Any]:
    """--eval: the checkpoint's content. UserError if its data was not ImageNet, or for a flag of another model."""
    saved = checkpoint.read(args.eval)
    refuse_other_settings(saved["settings"], {"dataset": "imagenet"},
                          advice="only checkpoints of train_imagenet.py can be tested here")
    refuse_another_model(args, saved["settings"], "image_size")
    return saved


def refuse_another_model(args: argparse.Namespace, saved: dict[str, Any], *more: str) -> None:
    """UserError for a flag that names another model than the saved settings. more: other settings to compare."""
    given = {key: getattr(args, key) for key in (*MODEL, *more) if getattr(args, key) is not None}
    refuse_other_settings(saved, given, advice="leave that flag out")


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto": CUDA, else MPS, else the CPU. UserError if there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {short(name)} is no device: choose auto, cpu, cuda, cuda:1 or mps") from error
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if device.index is not None and device.index >= there.get(device.type, 0) or not there.get(device.type):
        raise UserError(f"--device {name}: there are {there.get(device.type, 0)} such devices here; choose auto or cpu")
    return device


def choose_amp(name: str, device: torch.device) -> torch.dtype | None:
    """The type for mixed precision. "auto": bfloat16 if the card computes in it, otherwise float16.

    None means float32, as always on CPU and MPS. UserError if the device cannot compute in the type.
    """
    if device.type != "cuda":
        if name in ("bf16", "fp16"):
            raise UserError(f"--amp {name} needs --device cuda: on {device.type} training is in float32")
        return None
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    name = ("bf16" if native else "fp16") if name == "auto" else name
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[name]
