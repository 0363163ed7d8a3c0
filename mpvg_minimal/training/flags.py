"""What the two training scripts share: the flags, and the settings that they make.

A flag that is not given leaves the recipe's value (recipes.py). What a run was told is its `settings`: plain types,
kept in OUT/config.json and in every checkpoint, and compared when a run is resumed. What becomes of them: assemble.py.
"""
import argparse
import math
import os
from pathlib import Path
from typing import Any

import torch

from ..runtime import distributed
from ..runtime.errors import UserError
from . import checkpoint


class Parser(argparse.ArgumentParser):
    """A wrong flag is one line on stderr, not a page of usage."""

    def error(self, message: str) -> None:
        raise UserError(f"{message} ({self.prog} --help lists the flags)")


def number(kind: type, *, above: float | None = None, least: float | None = None, below: float = math.inf) -> Any:
    """An argparse type: an int or a float within bounds, finite."""
    def parse(text: str):
        value = kind(text)                                      # ValueError: argparse says that it is no such number
        if not abs(value) < below or above is not None and value <= above or least is not None and value < least:
            bound = f"above {above}" if above is not None else f"at least {least}"
            bound += f" and below {below}" if below < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text} is out of range: it must be {bound}")
        return value
    parse.__name__ = {int: "whole number", float: "number"}[kind]
    return parse


def add_flags(parser: argparse.ArgumentParser, models: list[str]) -> None:
    """The flags of both scripts. Those that name the model default to None, "not given"."""
    parser.add_argument("--data-dir", default="data", help="where the data is, or goes (default: %(default)s)")
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
    parser.add_argument("--seed", type=number(int, least=0, below=2 ** 63), default=0)
    parser.add_argument("--limit", type=number(int, least=1), metavar="N", help="only N training and N test images")
    parser.add_argument("--loader", choices=["auto", "device", "workers"], default="auto",
                        help="hold and augment the images on the device, or in worker processes (auto: by the data)")
    parser.add_argument("--workers", type=number(int, least=0), help="processes that load images (default: by cores)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument("--amp", choices=["auto", "bf16", "fp16", "off"], default="auto",
                        help="mixed precision, on CUDA only")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/ and the settings)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUT")


def settings_of(args: argparse.Namespace, device: torch.device, recipe: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The recipe with what the flags say instead, and `more`.

    --amp is among them: another precision is another run. --compile, --device and --workers are not.
    """
    given = {key: getattr(args, key) for key in ("model", "epochs", "batch_size", "lr", "ema")}
    recipe = {**recipe, **{key: value for key, value in given.items() if value is not None}}
    recipe["final_lr"] = min(recipe["final_lr"], recipe["lr"])          # the rate falls, also from a small --lr
    amp = choose_amp(args.amp, device)
    return {**recipe, "pool": args.pool or "cls", "pe": args.pe or "once", "pe_init": args.pe_init or "learned",
            "amp": str(amp).removeprefix("torch.") if amp else None, "seed": args.seed, "limit": args.limit,
            "accumulate": getattr(args, "accumulate", 1),
            "loader": choose_loader(args.loader, device, more["dataset"]), **more}


def choose_loader(name: str, device: torch.device, dataset: str) -> str:
    """"device" on a GPU for the data sets that fit on it, else "workers". UserError for ImageNet on the device."""
    fits = dataset != "imagenet"
    if name == "device" and not fits:
        raise UserError(f"--loader device: {dataset} does not fit on a device; leave it out, or give --loader workers")
    return name if name != "auto" else "device" if fits and device.type == "cuda" else "workers"


def settings_of_init(args: argparse.Namespace) -> dict[str, Any]:
    """--init: what the checkpoint says about the model, where no flag does; a flag that says otherwise is refused."""
    if args.init is None:
        return {}
    saved = checkpoint.read(args.init)["settings"]
    model = {key: saved[key] for key in ("model", "pool", "pe", "pe_init")}
    given = {key: getattr(args, key) for key in model if getattr(args, key) is not None}
    checkpoint.refuse_other_settings({key: model[key] for key in given}, given)
    return model | {"init": str(args.init)}


def choose_device(name: str, amp: str = "auto") -> torch.device:
    """UserError if the device is not there, or cannot compute in the precision asked for."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name} is no device: choose auto, cpu, cuda, cuda:1 or mps") from error
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if device.index is not None and device.index >= there.get(device.type, 0) or not there.get(device.type):
        raise UserError(f"--device {name}: there are {there.get(device.type, 0)} such devices here; choose auto or cpu")
    choose_amp(amp, device)
    return device


def choose_amp(name: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 where the card computes in it, else float16; float32 (None) on CPU and MPS."""
    if device.type != "cuda":
        if name in ("bf16", "fp16"):
            raise UserError(f"--amp {name} needs --device cuda: on {device.type} training is in float32")
        return None
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    name = ("bf16" if native else "fp16") if name == "auto" else name
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[name]


def choose_out(args: argparse.Namespace, settings: dict[str, Any]) -> Path:
    """The run's folder, made if need be. UserError if it cannot be written, or holds a run and no --resume is given."""
    name = "{dataset}_{model}_{pool}_{pe}_seed{seed}".format(**settings)
    out = args.out or Path("runs") / name
    try:
        config = (out / "config.json").exists()
        holds = config or any(out.glob("checkpoint*.pt"))
        if holds and not args.resume and not distributed.was_restarted():
            raise UserError(f"{out} holds a run already: --resume goes on with it, another --out starts a new one")
        if args.resume and not holds and not distributed.was_restarted():
            raise UserError(f"--resume, but {out} holds no run: start one without it, or name its folder by --out")
        if config:                      # before the data is opened; the checkpoint's own settings are compared later
            saved = {key: checkpoint.read_config(out)["settings"].get(key) for key in settings}
            checkpoint.refuse_other_settings(saved, settings, may_differ=("epochs",))
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable.{distributed.rank()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): name another folder") from error
    distributed.agree(0)                # no process writes there before all have looked
    return out


def choose_workers(given: int | None) -> int:
    """--workers, or this process's share of the machine's cores, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(16, cores // distributed.on_this_machine()[1]) if given is None else given
