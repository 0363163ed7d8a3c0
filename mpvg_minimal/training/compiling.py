"""--compile: whether torch.compile can be used, asked before anything is built."""
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from ..runtime.errors import UserError
from .recipes import Recipe


def check_compile(mode: str | None, recipe: Recipe, device: torch.device) -> None:
    """UserError if --compile cannot be used here. mode: torch.compile's; None: nothing is compiled.

    CUDA graphs (reduce-overhead) reuse the same memory in every step, so they are refused where an old output may still
    be needed: gradients that stay for the next part of a batch, or that DistributedDataParallel reads.
    """
    missing = missing_for_compiling(device) if mode else None
    if missing:
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
    if not any(map(shutil.which, names)):
        return f"a compiler, and {' or '.join(names)} is not on the PATH: install one, or name it in {named}"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return None if header.exists() else f"Python's headers, and {header} is not there: install python3-dev or the like"
