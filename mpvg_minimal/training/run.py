"""What a training run consists of, everything that a checkpoint holds and nothing else; and what a task is to the loop.

Source of the loss scaling: Micikevicius et al. 2018 (mixed precision); weight decay on linear maps only: as in DeiT.
"""
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..runtime import distributed
from ..runtime.errors import UserError
from . import checkpoint

COUNTERS = ("epoch", "step", "updates", "skipped", "history")


class Task(NamedTuple):
    """What the loop has to know of a task. Targets are one tensor (B, ...) for a batch, whatever the task."""

    loss_of: Callable           # (model, images, targets, label_smoothing) -> (mean loss, number of hits)
    test: Callable              # (model, batches, options as for `outputs`) -> metrics by name
    hits: str | None            # name of the share of hits, in %, among the metrics; None: there are no hits
    score: str                  # the metric that counts
    line: str                   # how to print the test's metrics after an epoch,
    result: str                 # and at the end


def outputs(model: nn.Module, batches: Any, *, prepare: Callable, device: torch.device, autocast: Any,
            between: Callable = lambda: None) -> Iterator[tuple[Any, Tensor]]:
    """(what the model gives in eval mode, labels) for each batch of this process; `between` is called after each."""
    model.eval()
    done = 0
    for images, labels in batches.epoch():
        labels = labels.to(device, non_blocking=True)
        with autocast:
            output = model(prepare(images.to(device, non_blocking=True)))
        yield output, labels
        done += 1
        between()
    for _ in range(done, len(batches)):                         # a process without a share of the last batch:
        between()                                               # every process has to ask the others equally often


@dataclass
class Run:
    """What is trained, with what, and how far it is."""

    model: nn.Module
    wrapped: nn.Module                  # the model, or DistributedDataParallel around it
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler        # scales the loss in fp16, passes everything through otherwise
    ema: AveragedModel | None           # the averaged model, which is then the one tested
    settings: dict[str, Any]
    out: Path
    device: torch.device
    amp: torch.dtype | None             # bfloat16, float16, or None for float32
    totals: Tensor                      # this epoch's loss sum and number of correct images, on the device
    bad_step: Tensor                    # first step of this epoch, from 1, with a non-finite gradient; 0: none
    epoch: int = 0                      # epochs finished
    step: int = 0                       # steps finished in this epoch
    updates: int = 0                    # optimizer updates in all: the steps, less those that fp16 skipped
    skipped: int = 0                    # fp16: skipped steps in a row
    history: list[dict[str, Any]] = field(default_factory=list)     # one dict of metrics for each epoch
    saved_at: str = ""                  # how far the newest checkpoint is, in words; "": there is none

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.amp)

    def save(self) -> None:
        """Write OUT/checkpoint.pt and OUT/metrics.jsonl, from the first process. All processes must call it."""
        totals = self.totals.new_zeros(distributed.count(), 2)      # each process has its own: a row for each
        totals[distributed.rank()] = self.totals
        totals = distributed.summed(totals)
        self.saved_at = f"{self.epoch} epochs and {self.step} steps"
        if distributed.is_first():
            checkpoint.save(self.out, {
                "settings": self.settings, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(), "ema": self.ema.state_dict() if self.ema else None,
                "totals": totals.cpu(), **{name: getattr(self, name) for name in COUNTERS}})
            self.write_metrics()

    def write_metrics(self) -> None:
        checkpoint.write_text(self.out / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.history))

    def load(self) -> None:
        """Go on from OUT's newest checkpoint. UserError if there is none, or other settings made it."""
        saved = checkpoint.newest(self.out)
        checkpoint.refuse_other_settings(saved["settings"], self.settings, may_differ=("epochs",))
        if self.settings["epochs"] < saved["settings"]["epochs"]:
            raise UserError(f"the run was started for {saved['settings']['epochs']} epochs, got --epochs "
                            f"{self.settings['epochs']}: on resume it may only grow")
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scaler.is_enabled() and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        if self.ema:
            self.ema.load_state_dict(saved["ema"])
        rows = saved["totals"]                  # with another number of processes, all start from the mean row
        self.totals.copy_(rows[distributed.rank()] if len(rows) == distributed.count() else
                          rows.sum(0) / distributed.count())
        for name in COUNTERS:
            setattr(self, name, saved[name])
        self.saved_at = f"{self.epoch} epochs and {self.step} steps"
        if distributed.is_first():
            self.write_metrics()                # a kill between checkpoint and metrics leaves these a line short


def autocast(device: torch.device, amp: torch.dtype | None) -> torch.autocast:
    """Mixed precision in this type; None: float32 throughout."""
    return torch.autocast(device.type, dtype=amp or torch.bfloat16, enabled=amp is not None)


def start(model: nn.Module, settings: dict[str, Any], *, out: Path, device: torch.device,
          amp: torch.dtype | None = None, compiled: str | None = None) -> Run:
    """Put the model on the device and make its optimizer, loss scaler and averaged copy.

    compiled: torch.compile's mode, or None.
    """
    model.to(device)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings["ema"])) if settings["ema"] else None
    if compiled:
        # in place, so the names of the parameters stay; every size of batch for itself: there are two or three
        model.compile(mode=compiled, dynamic=False)
    wrapped = model
    if torch.distributed.is_initialized():
        wrapped = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings["weight_decay"]), lr=settings["lr"], fused=True)
    exact = torch.float32 if device.type == "mps" else torch.float64
    return Run(model, wrapped, optimizer, torch.amp.GradScaler(device.type, enabled=amp is torch.float16), ema,
               settings, out, device, amp, totals=torch.zeros(2, dtype=exact, device=device),
               bad_step=torch.zeros((), dtype=torch.int64, device=device))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weight decay for the weights of linear maps; none for norms, biases, PE and the class token.

    By name: PE and the class token have three dimensions, so "all with two or more" would decay them.
    """
    decay, rest = [], []
    for name, parameter in model.named_parameters():
        spared = parameter.ndim < 2 or name.endswith(("pos_embed", "cls_token"))
        (rest if spared else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
