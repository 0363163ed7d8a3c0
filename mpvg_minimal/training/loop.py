"""The training loop: plain functions over one `Run` (run.py), which is what a checkpoint holds.

    fit          for every epoch: train_epoch, evaluate, save
    train_epoch  for every batch: to the device, normalize, mix, train_step
    train_step   forward, backward and update: step.py

A resumed run goes on bit for bit, because every random draw depends on (seed, epoch, step) alone.
Shapes: B images of one process, K classes.
"""
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from ..runtime import distributed
from ..runtime.errors import Interrupted
from ..runtime.provenance import device_name
from ..runtime.seeding import seed_device
from ..runtime.signals import Interrupt, catch_signals
from .recipes import learning_rate
from .run import Run
from .step import GIVE_UP, read_running_loss, train_step

LOG_EVERY = 50          # steps between two readings of the running loss, because each reading waits for the device


def train_epoch(run: Run, batches: Any, *, normalize: Callable, mix: Callable | None, interrupt: Interrupt) -> None:
    """Train from `run.step` to the end of the epoch."""
    run.model.train()
    recipe, total = run.recipe, len(batches) * run.recipe.epochs
    bar = tqdm(batches.epoch(run.epoch, run.step), initial=run.step, total=len(batches), unit="step", leave=False,
               desc=f"epoch {run.epoch + 1}/{recipe.epochs}", disable=None if distributed.is_first() else True)
    began, first = time.perf_counter(), run.step
    for images, targets in bar:
        seed_device(run.device, "step", recipe.seed, run.epoch, run.step, distributed.rank())
        images = normalize(images.to(run.device, non_blocking=True))
        targets = targets.to(run.device, non_blocking=True)
        if mix is not None:
            images, targets = mix(images, targets)
        rate = learning_rate(run.updates, total, lr=recipe.lr, final_lr=recipe.final_lr, warmup=recipe.warmup,
                             cooldown=recipe.cooldown)
        train_step(run, images, targets, lr=rate, label_smoothing=recipe.label_smoothing, clip_grad=recipe.clip_grad,
                   accumulate=recipe.accumulate)
        if run.step % LOG_EVERY == 0 or run.step == len(batches) or run.skipped >= GIVE_UP:
            loss, accuracy = read_running_loss(run)
            speed = (run.step - first) * recipe.batch_size / (time.perf_counter() - began)
            shown = f"accuracy {accuracy:.1f} %, " if accuracy else ""      # 0 for a task that counts no answers
            bar.set_postfix_str(f"loss {loss:.3f}, {shown}{speed:,.0f} images/s")
        save_if_interrupted(run, interrupt)


def save_if_interrupted(run: Run, interrupt: Interrupt) -> None:
    """If any process received a signal: save after the same step in all of them, and raise Interrupted."""
    if number := distributed.all_reduce_max(interrupt.number):
        read_running_loss(run)                                  # raises, and so saves nothing, after a bad step
        run.save()
        raise Interrupted(f"interrupted by signal {number}, saved in epoch {run.epoch + 1} after step {run.step}: "
                          "go on with --resume", number)


def fit(run: Run, train: Any, test: Any, *, normalize: Callable, mix: Callable | None = None,
        save_every: float = 0.0) -> list[dict[str, Any]]:
    """Train to the end of the recipe's epochs. Returns one dictionary of metrics for each epoch.

    A checkpoint is written at the end, after a signal, and after each epoch that ends `save_every` seconds or more
    after the last one.

    train, test: `Batches`, or anything with `len()` and `epoch(epoch, start)` that yields (B, 3, H, W) uint8 and (B,).
    normalize: such images on the device -> what the model takes. mix: (images, labels) -> (images, targets (B, K)).
    """
    if distributed.is_first():
        print(f"training on {device_name(run.device)}, in {run.amp or torch.float32}", flush=True)
    with catch_signals() as interrupt:
        while run.epoch < run.recipe.epochs:
            began, first = time.perf_counter(), run.step
            train_epoch(run, train, normalize=normalize, mix=mix, interrupt=interrupt)
            loss, correct = distributed.all_reduce_sum(run.totals).tolist()
            seen, trained = len(train) * run.recipe.batch_size, time.perf_counter() - began
            tested = run.task.evaluate(run.ema or run.model, test, normalize=normalize, device=run.device,
                                       autocast=run.autocast(), between=lambda: save_if_interrupted(run, interrupt))
            run.epoch, run.step = run.epoch + 1, 0
            run.totals.zero_()
            tested |= {run.task.accuracy: 100 * correct / seen} if run.task.accuracy else {}
            speed = round((1 - first / len(train)) * seen / trained, 1)
            run.history.append({
                "epoch": run.epoch, "train_loss": loss / seen, **tested, "lr": run.optimizer.param_groups[0]["lr"],
                "images_per_second": speed, "seconds": round(time.perf_counter() - began, 3)})
            due = run.epoch == run.recipe.epochs or time.monotonic() - run.saved_when >= save_every
            if distributed.all_reduce_max(due):
                run.save()
            if distributed.is_first():
                words = f"epoch {{epoch}}/{run.recipe.epochs}  train loss {{train_loss:.4f}}  {run.task.line}"
                words += "  {images_per_second:,.0f} images/s  {seconds:.1f} s"
                print(words.format(**run.history[-1]), flush=True)
    return run.history
