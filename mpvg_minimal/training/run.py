"""What a training run consists of: everything that a checkpoint holds, and nothing else.

Source of the loss scaling: Micikevicius et al. 2018 (mixed precision); weight decay on linear maps only: as in DeiT.
"""
import copy
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..runtime import distributed
from ..runtime.device import autocast, prepare
from ..runtime.errors import UserError
from ..runtime.files import write_text
from . import checkpoint
from .folder import refuse_other_settings
from .recipes import Recipe
from .task import CLASSIFICATION, Objective, Task

COUNTERS = ("epoch", "step", "updates", "skipped", "history")


@dataclass
class Run:
    """What is trained, by what, and how far it is."""

    model: nn.Module
    objective: Objective                # the model and its loss
    wrapped: nn.Module                  # the objective, or DistributedDataParallel around it
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler        # scales the loss in fp16, passes everything through otherwise
    ema: nn.Module | None               # the averaged copy; if there is one, it is tested in place of the model
    recipe: Recipe
    task: Task
    settings: dict[str, Any]            # the recipe and all that makes this run another one: written and compared only
    out: Path
    device: torch.device
    amp: torch.dtype | None             # mixed precision; None: float32 throughout
    epoch: int = 0                      # epochs finished
    step: int = 0                       # steps finished in this epoch
    updates: int = 0                    # updates by the optimizer in all: the steps without those that fp16 skipped
    skipped: int = 0                    # fp16: skipped steps in a row
    history: list[dict[str, Any]] = field(default_factory=list)     # one dictionary of metrics for each epoch
    saved_at: str = ""                  # position of the newest checkpoint, for messages; empty if there is none

    def __post_init__(self):
        """What is made once, because each step needs it. Tensors are on the device."""
        self.saved_when = time.monotonic()              # of the newest checkpoint, or of the run's beginning
        self.weights, self.averaged = list(self.model.parameters()), list(self.ema.parameters() if self.ema else ())
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        self.totals = torch.zeros(2, dtype=exact, device=self.device)   # this epoch's sum of the loss, number correct
        self.non_finite, self.one = torch.tensor([0.0, 1.0], dtype=torch.float32).to(self.device).unbind()
        self.optimizer.found_inf = self.non_finite      # 1 after a loss or gradient was not finite: no more updates

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.amp)

    @torch.no_grad()
    def average(self) -> None:
        """Move the averaged copy, if there is one, towards the weights; after the first update it is equal to them."""
        if self.ema:
            torch._foreach_lerp_(self.averaged, self.weights, 1.0 if self.updates == 1 else 1 - self.recipe.ema)

    def save(self) -> None:
        """Write OUT/checkpoint.pt and OUT/metrics.jsonl, if all in them is finite. All processes must call it."""
        checkpoint.refuse_non_finite([self.model, self.ema], self.history[-1:], saved_at=self.saved_at)
        totals = torch.stack(distributed.all_gather(self.totals.cpu()))     # each process has its own: a row for each
        self.saved_at, self.saved_when = f"{self.epoch} epochs and {self.step} steps", time.monotonic()
        if distributed.is_first():
            checkpoint.save(self.out, {
                "settings": self.settings, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(), "ema": self.ema.state_dict() if self.ema else None,
                "totals": totals, **{name: getattr(self, name) for name in COUNTERS}})
            self.write_metrics()

    def write_metrics(self) -> None:
        write_text(self.out / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.history))

    def resume(self) -> None:
        """Go on from OUT's newest checkpoint, if there is one. UserError if the processes find different ones."""
        if checkpoint.there(self.out):
            with checkpoint.of_this_version():
                self.load()
        if len(set(distributed.all_gather((self.epoch, self.step)))) > 1:
            raise UserError(f"the processes found different checkpoints in {self.out}: --out has to be a folder that "
                            "all of them share")

    def load(self) -> None:
        """Take over OUT's newest checkpoint. UserError if there is none, or if other settings made it."""
        saved = checkpoint.newest(self.out)
        absent = dict.fromkeys(saved["settings"])              # of a setting that this run does not have
        refuse_other_settings(saved["settings"], absent | self.settings, may_differ=("epochs",))
        before, now = saved["settings"]["epochs"], self.settings["epochs"]
        if now < before:
            raise UserError(f"the run was started for {before} epochs, got --epochs {now}: on resume it may only grow")
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        if self.ema:
            self.ema.load_state_dict(saved["ema"])
        rows = saved["totals"]                  # with another number of processes, all start from the mean row
        same = len(rows) == distributed.count()
        self.totals.copy_(rows[distributed.rank()] if same else rows.sum(0) / distributed.count())
        for name in COUNTERS:
            setattr(self, name, saved[name])
        self.saved_at = f"{self.epoch} epochs and {self.step} steps"
        if distributed.is_first():
            self.write_metrics()                # a kill between checkpoint and metrics leaves these a line short
            if now > before:
                print(f"the run was started for {before} epochs, now it goes on to {now}", flush=True)


def start_run(model: nn.Module, recipe: Recipe, *, out: Path, device: torch.device, amp: torch.dtype | None = None,
              task: Task = CLASSIFICATION, compiled: str | None = None, settings: dict[str, Any] | None = None) -> Run:
    """A run at its beginning: the model on the device, its optimizer, its loss scaler and its averaged copy.

    compiled: torch.compile's mode; None: eager. settings: what the checkpoint names; None: the recipe alone.
    """
    prepare(device)
    model.to(device)
    ema = copy.deepcopy(model) if recipe.ema else None
    objective = wrapped = Objective(model, task.loss_of)
    if compiled:
        for module in (objective, ema or model):        # to train, to test; in place: the parameters keep their names
            module.compile(mode=compiled, dynamic=False)        # each of the two or three sizes of batches by itself
    if torch.distributed.is_initialized():
        wrapped = DistributedDataParallel(objective, device_ids=[device.index] if device.type == "cuda" else None)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.lr, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=amp is torch.float16)
    return Run(model, objective, wrapped, optimizer, scaler, ema, recipe, task, settings or asdict(recipe), out, device,
               amp)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weight decay for the weights of linear maps; none for norms, biases, PE and the class token.

    PE and the class token are told by their names, because they have three dimensions: the rule "decay everything
    that has two or more" would decay them.
    """
    decay, rest = [], []
    for name, parameter in model.named_parameters():
        spared = parameter.ndim < 2 or name.endswith(("pos_embed", "cls_token"))
        (rest if spared else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
