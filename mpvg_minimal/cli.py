"""What the two training scripts share: the flags, the settings they make, and the way from settings to a run.

A flag that is not given leaves the recipe's value (recipes.py). What a run was told is its `settings`: plain types,
kept in OUT/config.json and in every checkpoint, and compared when a run is resumed.
"""
import argparse
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision

from . import checkpoint, data, distributed, plots
from .compiling import choose_mode
from .device_data import DeviceBatches
from .errors import UserError
from .run import Run, start
from .train import CLASSIFICATION, Task, fit
from .vit import SIZES, ViT, resize_pe


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


def init_from(vit: ViT, path: str) -> None:
    """Give `vit` the weights of a checkpoint: PE resized to its image size, the head too if the classes are as many."""
    saved = checkpoint.read(Path(path))
    if "task" in saved["settings"]:
        raise UserError(f"--init {path} is of a {saved['settings']['task']} run, not of a classification run")
    weights = resize_pe(load_model(saved), vit.patch_embed.image_size).state_dict()
    own = vit.state_dict()
    for name in ("head.weight", "head.bias"):
        if name not in own or own[name].shape != weights[name].shape:
            del weights[name]
    try:
        vit.load_state_dict({**own, **weights})
    except RuntimeError as error:
        raise UserError(f"--init {path} does not fit this model: {error}") from error


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
            saved = {key: read_config(out)["settings"].get(key) for key in settings}
            checkpoint.refuse_other_settings(saved, settings, may_differ=("epochs",))
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable.{distributed.rank()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): name another folder") from error
    distributed.agree(0)                # no process writes there before all have looked
    return out


def environment(device: torch.device) -> dict[str, str]:
    """What else a result depends on: versions, machine, commit."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True,
                         text=True)
    cpu = f"{platform.machine()}, {os.cpu_count()} cores"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
            "device": f"{device.type}: {name}", "commit": git.stdout.strip() or "unknown"}


def build_model(settings: dict[str, Any]) -> ViT:
    """The model that the settings name, freshly initialised from the settings' seed. UserError if they do not fit."""
    options = {key: settings[key] for key in ("num_classes", "pool", "pe", "pe_init", "image_size", "stochastic_depth",
                                              "attention_dropout")}
    torch.manual_seed(settings["seed"])
    try:
        return SIZES[settings["model"]](**options)
    except ValueError as error:
        raise UserError(f"{settings['model']} cannot be built: {error}") from error


def refuse_size(settings: dict[str, Any]) -> None:
    """UserError if the model cannot have images of this size; without data, and without memory for weights."""
    with torch.device("meta"):
        build_model({**settings, "num_classes": 1})


def build_batches(source: data.Source, settings: dict[str, Any], *, train: bool, workers: int | None,
                  device: torch.device) -> data.Batches | DeviceBatches:
    """The training or the test images of a source, for this process."""
    augment = settings["augment"] if train else None
    dataset = data.take(source.train if train else source.test, settings["limit"])
    options = dict(batch_size=settings["batch_size"], train=train, seed=settings["seed"], rank=distributed.rank(),
                   world=distributed.count())
    if source.transforms:                                       # they make targets, and check what they are given
        transform = source.transforms["train" if train else "test"]
    else:
        options |= dict(image_size=source.image_size, classes=len(source.classes))
        if settings["loader"] == "device":
            return DeviceBatches(dataset, source, augment, device, **options)
        transform = data.augmentation(source, **augment) if augment else data.plain(source)
    if transform is None and workers is None:
        workers = 0                                             # nothing to decode or augment: no process for it
    workers = choose_workers(workers)
    return data.Batches(dataset, transform, workers=workers, pin_memory=device.type == "cuda", **options)


def choose_workers(given: int | None) -> int:
    """--workers, or this process's share of the machine's cores, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(16, cores // distributed.on_this_machine()[1]) if given is None else given


def read_config(run: Path) -> dict[str, Any]:
    """RUN/config.json. UserError if the folder holds no run."""
    try:
        return json.loads((run / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{run} holds no run: config.json is missing or damaged ({type(error).__name__})") from error


def load_model(saved: dict[str, Any], build: Callable = build_model) -> Any:
    """The model of a checkpoint (see checkpoint.py), the averaged one if the run kept one, in eval mode."""
    model = build(saved["settings"])
    weights = saved["model"]
    if saved["ema"]:
        weights = {name.removeprefix("module."): w for name, w in saved["ema"].items() if name.startswith("module.")}
    model.load_state_dict(weights)
    return model.eval()


def prepare_on(device: torch.device, source: data.Source) -> Any:
    """uint8 images on the device -> normalised ones."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (source.mean, source.std))
    return lambda images: data.normalise(images, mean, std)


def train(args: argparse.Namespace, settings: dict[str, Any], source: data.Source, out: Path, device: torch.device, *,
          build: Callable = build_model, task: Task = CLASSIFICATION) -> Run:
    """Build all parts, train to the end, draw the curves, print the test accuracy."""
    amp = choose_amp(args.amp, device)
    model = build(settings)
    if settings.get("init"):
        init_from(getattr(model, "vit", model), settings["init"])
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")              # TF32 for what stays in float32
    run = start(model, settings, out=out, device=device, amp=amp,
                compiled=choose_mode(model, settings, device, amp) if args.compile else None)
    if any(out.glob("checkpoint*.pt")):
        run.load()                                              # without one, the run was killed in its first epoch
    position = run.epoch << 32 | run.step
    if distributed.agree(position) != position:
        raise UserError(f"{out} is not the same for all processes: another one found a newer checkpoint; "
                        "--out has to be a folder that all of them share")
    parts = {name: build_batches(source, settings, train=name == "train", workers=args.workers, device=device)
             for name in ("train", "test")}
    if distributed.is_first():
        config = {"settings": settings, "environment": environment(device), "data_dir": args.data_dir}
        checkpoint.write_text(out / "config.json", json.dumps(config, indent=2) + "\n")
    mix = data.mixing(settings["num_classes"], mixup=settings["mixup"], cutmix=settings["cutmix"])
    history = fit(run, parts["train"], parts["test"], prepare=prepare_on(device, source), mix=mix,
                  task=task)
    if distributed.is_first():
        plots.draw_curves(history, out / "curves.png", score=task.score)
        print(task.result.format(**history[-1]))
    return run
