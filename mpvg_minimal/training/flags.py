"""The flags of all commands, how their values are read, and what they become. A wrong flag is one line.

If a flag is omitted, the recipe's value is used (recipes.py). The `settings` of a run are plain types. They are written
to OUT/config.json and to every checkpoint, and compared when the run is resumed.
"""
import argparse
import math
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..runtime.errors import UserError
from .recipes import Recipe

LARGEST_IMAGE = 65_535  # height and width in pixels: JPEG knows no larger one
MOST_PROCESSES = max(16, 4 * (os.cpu_count() or 1))     # that load images or train, on this machine
LARGEST = 10 ** 9       # whole numbers: no run has more epochs, images, steps or rounds


class Parser(argparse.ArgumentParser):
    """A wrong flag is a UserError, not a page of usage. doc: the module's, for --help; None under `python -OO`."""

    def __init__(self, doc: str | None = None, **options: Any):
        super().__init__(description=(doc or "").split("\n")[0], **options)

    def error(self, message: str) -> None:
        message = re.sub(r"\S{300,}", lambda word: short(word[0]), message)      # a value may be very long
        raise UserError(f"{message} ({self.prog} --help lists the flags)")


def number(kind: type, *, above: float = -math.inf, least: float = -math.inf, most: float | None = None,
           below: float = math.inf) -> Any:
    """A type for argparse: a finite int or float in bounds. An int is at most `LARGEST` if no bound is given."""
    most = most if most is not None else LARGEST if kind is int and below == math.inf else math.inf

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError as error:
            name = {int: "whole number", float: "number"}[kind]
            raise argparse.ArgumentTypeError(f"{short(text)} is no {name}") from error
        if not (above < value < below and least <= value <= most):
            bounds = {"above": above, "at least": least, "at most": most, "below": below}
            words = [f"{name} {bound}" for name, bound in bounds.items() if abs(bound) < math.inf]
            raise argparse.ArgumentTypeError(f"{short(text)} is out of range: it must be {' and '.join(words)}")
        return value
    return parse


def short(text: str) -> str:
    """Text of a user, to be repeated in an error."""
    return repr(text) if len(text) < 40 else f"{text[:30]!r}... ({len(text)} characters)"


def path(text: str) -> Path:
    """A type for argparse: the name of a file or a folder."""
    long = len(os.fsencode(text)) > 4000 or any(len(os.fsencode(part)) > 255 for part in Path(text).parts)
    why = "empty" if not text.strip() else "too long" if long else "holding a null byte" if "\0" in text else None
    if why:
        raise argparse.ArgumentTypeError(f"{short(text)} cannot be a file's name: it is {why}")
    return Path(text)


def add_flags(parser: argparse.ArgumentParser, models: list[str]) -> None:
    """Add the flags that all training scripts have. None as a default means that the flag was not given."""
    parser.add_argument("--data-dir", type=path, default="data", help="where data is, or goes (default: %(default)s)")
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


def adjust(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe, with the values of the flags that were given in place of its own."""
    names = ("model", "epochs", "batch_size", "lr", "ema", "accumulate", "seed")
    given = {name: getattr(args, name, None) for name in names}
    recipe = replace(recipe, **{name: value for name, value in given.items() if value is not None})
    return replace(recipe, final_lr=min(recipe.final_lr, recipe.lr))        # the rate never rises after the warm-up


def settings_of(args: argparse.Namespace, recipe: Recipe, *, amp: torch.dtype | None, **more: Any) -> dict[str, Any]:
    """All that makes a run another one, as plain types: the recipe, the flags' other values, and `more`.

    The precision belongs to it. --compile, --device, --workers and --save-every do not.
    """
    return {**asdict(recipe), "pool": args.pool or "cls", "pe": args.pe or "once", "pe_init": args.pe_init or "learned",
            "amp": str(amp).removeprefix("torch.") if amp else None, "limit": args.limit, **more}


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto": CUDA, else MPS, else the CPU. UserError if there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {short(name)} is no device: choose auto, cpu, cuda, cuda:1 or mps") from error
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    count = there.get(device.type, 0)
    if (device.index or 0) >= count:
        raise UserError(f"--device {name}: there are {count} such devices here; choose auto or cpu")
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
