"""From settings, a dictionary of plain types, to the model, the batches and the run that they describe."""
import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import sources
from ..data.batches import Batches
from ..data.device_batches import DeviceBatches
from ..runtime import distributed
from ..runtime.errors import UserError
from ..tools import plots
from ..tools.measure import environment
from ..vit import SIZES, ViT, resize_pe
from . import checkpoint
from .classification import CLASSIFICATION
from .compiling import choose_mode
from .flags import choose_amp, choose_workers
from .loop import fit
from .run import Run, Task, autocast, start


def build_model(settings: dict[str, Any]) -> ViT:
    """The model that the settings name, freshly initialised from the settings' seed. UserError if they do not fit."""
    options = {key: settings[key] for key in ("num_classes", "pool", "pe", "pe_init", "image_size", "stochastic_depth",
                                              "attention_dropout")}
    options |= {key: settings[key] for key in ("pe_std", "depth") if key in settings}
    torch.manual_seed(settings["seed"])
    try:
        return SIZES[settings["model"]](**options)
    except ValueError as error:
        raise UserError(f"{settings['model']} cannot be built: {error}") from error


def refuse_size(settings: dict[str, Any]) -> None:
    """UserError if the model cannot have images of this size; without data, and without memory for weights."""
    with torch.device("meta"):
        build_model({**settings, "num_classes": 1})


def build_batches(source: sources.Source, settings: dict[str, Any], *, train: bool, workers: int | None,
                  device: torch.device) -> Batches | DeviceBatches:
    """The training or the test images of a source, for this process."""
    augment = settings["augment"] if train else None
    dataset = sources.take(source.train if train else source.test, settings["limit"])
    options = dict(batch_size=settings["batch_size"], train=train, seed=settings["seed"], rank=distributed.rank(),
                   world=distributed.count())
    if source.transforms:                                       # they make targets, and check what they are given
        transform = source.transforms["train" if train else "test"]
    else:
        options |= dict(image_size=source.image_size, classes=len(source.classes))
        if settings["loader"] == "device":
            return DeviceBatches(dataset, source, augment, device, **options)
        transform = sources.augmentation(source, **augment) if augment else sources.plain(source)
    if transform is None and workers is None:
        workers = 0                                             # nothing to decode or augment: no process for it
    workers = choose_workers(workers)
    return Batches(dataset, transform, workers=workers, pin_memory=device.type == "cuda", **options)


def prepare_on(device: torch.device, source: sources.Source) -> Any:
    """uint8 images on the device -> normalised ones."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (source.mean, source.std))
    return lambda images: sources.normalise(images, mean, std)


def first_images(source: sources.Source, settings: dict[str, Any], count: int) -> Tensor:
    """The first `count` test images, normalised, (B, 3, H, W) on the CPU."""
    cpu = torch.device("cpu")
    settings = {**settings, "limit": count, "batch_size": count}
    batches = build_batches(source, settings, train=False, workers=0, device=cpu)
    return prepare_on(cpu, source)(next(iter(batches.epoch()))[0])


def test(model: nn.Module, source: sources.Source, settings: dict[str, Any], device: torch.device, *,
         task: Task = CLASSIFICATION, workers: int | None = 0, amp: torch.dtype | None = None) -> dict[str, Any]:
    """The metrics of a model on the test images, as after an epoch of training."""
    batches = build_batches(source, settings, train=False, workers=workers, device=device)
    return task.test(model.to(device), batches, prepare=prepare_on(device, source), device=device,
                     autocast=autocast(device, amp))


def load_model(saved: dict[str, Any], build: Callable = build_model) -> Any:
    """The model of a checkpoint (see checkpoint.py), the averaged one if the run kept one, in eval mode."""
    model = build(saved["settings"])
    weights = saved["model"]
    if saved["ema"]:
        weights = {name.removeprefix("module."): w for name, w in saved["ema"].items() if name.startswith("module.")}
    model.load_state_dict(weights)
    return model.eval()


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


def train(args: argparse.Namespace, settings: dict[str, Any], source: sources.Source, out: Path, device: torch.device,
          *, build: Callable = build_model, task: Task = CLASSIFICATION) -> Run:
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
    mix = sources.mixing(settings["num_classes"], mixup=settings["mixup"], cutmix=settings["cutmix"])
    history = fit(run, parts["train"], parts["test"], prepare=prepare_on(device, source), mix=mix, task=task)
    run.wrapped = run.model             # whoever keeps the run: DistributedDataParallel goes before the process group
    if distributed.is_first():
        plots.draw_curves(history, out / "curves.png", score=task.score)
        print(task.result.format(**history[-1]))
    return run
