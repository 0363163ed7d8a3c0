"""The models of runs: built, loaded, begun with another run's weights; and whether they can be compiled here."""
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..layerwise_pe import PESchedule
from ..runtime import distributed
from ..runtime.errors import UserError
from ..vit import SIZES, ViT, resize_pe
from . import checkpoint
from .recipes import Recipe


def build_model(settings: dict[str, Any]) -> ViT:
    """The model that a run's settings name, with fresh weights that depend on the seed alone.

    UserError if the settings do not fit together, for instance if the patch does not divide the image.
    """
    options = {key: settings[key] for key in ("num_classes", "pool", "pe", "pe_init", "image_size", "stochastic_depth",
                                              "attention_dropout")}
    options |= {key: settings[key] for key in ("pe_std", "depth") if key in settings}
    if isinstance(options["pe"], dict):                         # switches in place of a name: those of the ablations
        options["pe"] = PESchedule(**options["pe"])
    torch.manual_seed(settings["seed"])
    try:
        return SIZES[settings["model"]](**options)
    except ValueError as error:
        raise UserError(f"{settings['model']} cannot be built: {error}") from error


def refuse_more_than_fits(needed: float, device: torch.device, what: str) -> None:
    """UserError if `what`, for instance "--batch-size 9", needs more bytes than the device has in all."""
    cpu = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    there = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else cpu
    if needed > there:
        raise UserError(f"{what} needs at least {needed / 1e9:,.1f} GB, {device} has {there / 1e9:,.1f}: lower it")


def refuse_size(settings: dict[str, Any], device: torch.device) -> None:
    """UserError if the model does not take images of this size, or if this device cannot hold the model or a batch.

    It needs no memory itself. Counted are weights, gradients, AdamW's two copies, and the images.
    """
    size, batch = settings["image_size"], min(settings["batch_size"], settings["limit"] or settings["batch_size"])
    share = batch / distributed.count()
    refuse_more_than_fits(3 * size ** 2 * share * (1 + 4 / settings["accumulate"]), device,
                          f"a batch of {batch} images of size {size} (--batch-size)")
    with torch.device("meta"):
        weights = sum(p.numel() for p in build_model({**settings, "num_classes": 1}).parameters())
    refuse_more_than_fits(16 * weights, device, f"{settings['model']} for images of size {size} (--image-size)")


def load_model(saved: dict[str, Any], build: Callable = build_model) -> Any:
    """The model of a checkpoint in eval mode: the averaged copy if the run kept one.

    saved: a checkpoint's content. build: settings -> model, for another task than classification.
    """
    with checkpoint.of_this_version():
        model = build(saved["settings"])
        model.load_state_dict(saved["ema"] or saved["model"])
    return model.eval()


def init_from(vit: ViT, path: str | None, out: Path) -> None:
    """Give `vit` the weights of a classification run's checkpoint. Nothing is changed if `path` is None, or if the
    run's folder `out` holds a checkpoint of its own, which will be loaded.

    PE is resized to the image size of `vit`. The head is taken too if the number of classes is the same.
    """
    if path is None or checkpoint.there(out):
        return
    saved = checkpoint.read(Path(path))
    if "task" in saved["settings"]:
        raise UserError(f"--init {path} is of a {saved['settings']['task']} run, not of a classification run")
    model = load_model(saved)
    with checkpoint.of_this_version():
        weights = resize_pe(model, vit.patch_embed.image_size).state_dict()
    own = vit.state_dict()
    for name in ("head.weight", "head.bias"):
        if name not in own or own[name].shape != weights[name].shape:
            del weights[name]
    try:
        vit.load_state_dict({**own, **weights})
    except RuntimeError as error:
        raise UserError(f"--init {path} does not fit this model: {error}") from error


def check_compile(mode: str | None, recipe: Recipe, device: torch.device) -> None:
    """UserError if --compile cannot be used here. mode: torch.compile's; None: nothing is compiled.

    CUDA graphs (reduce-overhead) reuse the same memory in every step, so they are refused where an old output may still
    be needed: gradients that stay for the next part of a batch, or that DistributedDataParallel reads.
    """
    if mode and (missing := missing_for_compiling(device)):
        raise UserError(f"--compile needs {missing}; or leave --compile out")
    if mode == "reduce-overhead":
        why = ("needs --device cuda" if device.type != "cuda" else
               "cannot be used under torchrun" if torch.distributed.is_initialized() else
               f"cannot be used with --accumulate {recipe.accumulate}" if recipe.accumulate > 1 else None)
        if why:
            raise UserError(f"--compile reduce-overhead: it {why}; give --compile alone")


def missing_for_compiling(device: torch.device) -> str | None:
    """What torch.compile lacks on this machine, in a few words: on CUDA Triton compiles C, on the CPU torch C++."""
    if device.type == "mps":
        return None
    cpu = "clang++" if sys.platform == "darwin" else "g++"       # no other is tried
    named, known = {"cuda": ("CC", ["gcc", "clang", "cc"]), "cpu": ("CXX", [cpu])}[device.type]
    names = [os.environ[named]] if named in os.environ else known
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not any(map(shutil.which, names)):
        return f"a compiler, and {' or '.join(names)} is not on the PATH: install one, or name it in {named}"
    return None if header.exists() else f"{header}, which is not there: install Python's headers, often python3-dev"
