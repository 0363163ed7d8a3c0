"""The models of runs: built, loaded, begun with another run's weights; and whether they can be compiled here."""
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

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
    torch.manual_seed(settings["seed"])
    try:
        return SIZES[settings["model"]](**options)
    except ValueError as error:
        raise UserError(f"{settings['model']} cannot be built: {error}") from error


def refuse_size(settings: dict[str, Any]) -> None:
    """UserError if the model does not take images of this size. It needs no data, and no memory for weights."""
    with torch.device("meta"):
        build_model({**settings, "num_classes": 1})


def load_model(saved: dict[str, Any], build: Callable = build_model) -> Any:
    """The model of a checkpoint in eval mode: the averaged copy if the run kept one.

    saved: a checkpoint's content. build: settings -> model, for another task than classification.
    """
    model = build(saved["settings"])
    model.load_state_dict(saved["ema"] or saved["model"])
    return model.eval()


def init_from(vit: ViT, path: str | None) -> None:
    """Give `vit` the weights of a classification run's checkpoint; None: nothing is changed.

    PE is resized to the image size of `vit`. The head is taken too if the number of classes is the same.
    """
    if path is None:
        return
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
    named, known = {"cuda": ("CC", ["gcc", "clang", "cc"]), "cpu": ("CXX", ["g++", "clang++", "c++"])}[device.type]
    names = [os.environ[named]] if named in os.environ else known
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not any(map(shutil.which, names)):
        return f"a compiler, and {' or '.join(names)} is not on the PATH: install one, or name it in {named}"
    return None if header.exists() else f"{header}, which is not there: install Python's headers, often python3-dev"
