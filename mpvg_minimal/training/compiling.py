"""`--compile`: torch.compile's default mode, or CUDA graphs ("reduce-overhead") where they are faster on this GPU.

A CUDA graph replays a step's kernels without launching each from Python: that wins while launching takes longer than
computing, so for small models and batches. It also replays them at fixed addresses. Whatever might still be read
there when the next pass overwrites it is not tried at all: see `may_replay`. On a GPU: not measured.
"""
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..runtime import distributed
from ..runtime.errors import reason
from ..runtime.seeding import seeded
from .loop import train_step
from .run import start

GRAPHS = "reduce-overhead"
GAIN = 1.03             # CUDA graphs have to be faster by this factor
WARM_UP, TIMED = 5, 20  # steps: compilation, a run to find out about memory and the recording come first


def may_replay(settings: dict[str, Any], device: torch.device) -> bool:
    """Not with gradients of an earlier part that stay (--accumulate), or that other processes read; only static shapes.

    The last batch of a test is smaller, and gets a graph of its own. The averaged model is never compiled.
    """
    return (device.type == "cuda" and distributed.count() == 1 and settings["accumulate"] == 1
            and "task" not in settings)


def choose_mode(model: nn.Module, settings: dict[str, Any], device: torch.device, amp: torch.dtype | None) -> str:
    """The mode for `start` in run.py; where there is a choice, by the time of a copy's steps, and said in one line."""
    if not may_replay(settings, device):
        return "default"
    seconds, problem = {}, ""
    for mode in ("default", GRAPHS):
        try:
            with seeded("compile", settings["seed"]):       # a GPU's generator is set anew for every step anyway
                seconds[mode] = step_seconds(copy.deepcopy(model), settings, device, amp, mode)
        except RuntimeError as error:                       # out of memory, or a compiler's complaint
            problem = f", {mode} failed: {reason(error)}"
        finally:
            torch.compiler.reset()                          # the copies' code and graphs are not kept
    wins = len(seconds) == 2 and seconds["default"] > GAIN * seconds[GRAPHS]
    measured = ", ".join(f"{mode} {1000 * step:.2f} ms a step" for mode, step in seconds.items())
    print(f"compiling in the mode {GRAPHS if wins else 'default'} ({measured}{problem})", flush=True)
    return GRAPHS if wins else "default"


def step_seconds(model: nn.Module, settings: dict[str, Any], device: torch.device, amp: torch.dtype | None,
                 mode: str) -> float:
    """The median of some training steps of this model, which is used up, on a batch of the run's shape."""
    run = start(model, settings, out=Path(), device=device, amp=amp, compiled=mode)
    run.model.train()
    size = settings["image_size"]
    images = torch.randn(settings["batch_size"], 3, size, size, device=device)
    labels = torch.randint(settings["num_classes"], (len(images),), device=device)
    if settings["mixup"] or settings["cutmix"]:
        labels = nn.functional.one_hot(labels, settings["num_classes"]).float()
    times = []
    for _ in range(WARM_UP + TIMED):
        began = time.perf_counter()
        train_step(run, images, labels, lr=settings["lr"], label_smoothing=settings["label_smoothing"],
                   clip_grad=settings["clip_grad"])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[WARM_UP:])
