"""The training loop: plain functions over one `Run` (run.py), which is what a checkpoint holds.

    fit          for every epoch: train_epoch, evaluate, save
    train_epoch  for every batch: to the device, normalize, mix, train_step
    train_step   forward, loss; then scale, backward, unscale, clip, step, update, in this order

No step waits for the device, but in fp16 (was it skipped?) and in FCOS's loss: losses add up there and are read every
`LOG_EVERY` steps. Random draws: see runtime/seeding.py. Shapes: B images of one process, K classes.
"""
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from ..runtime import distributed
from ..runtime.device import to_device
from ..runtime.errors import Interrupted, NonFinite
from ..runtime.provenance import device_name
from ..runtime.seeding import seed_device
from ..runtime.signals import Interrupt, catch_signals
from .recipes import learning_rate
from .run import Run

LOG_EVERY = 50          # steps between two readings of the running loss, because each reading waits for the device
GIVE_UP = 20            # fp16: this many skipped steps in a row end the run


def train_step(run: Run, images: Tensor, targets: Tensor, *, lr: float, label_smoothing: float = 0.0,
               clip_grad: float = 0.0, accumulate: int = 1) -> None:
    """One update from images (B, 3, H, W) and their targets (B, ...), taken in `accumulate` parts.

    A non-finite gradient changes no weight. In fp16 the scaler skips the step and tries a smaller scale. Otherwise the
    optimizer skips this step and all later ones, on the device, until `read_running_loss` sees it and ends the run.
    """
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.zero_grad(set_to_none=True)
    parts, checked, fp16 = list(zip(images.chunk(accumulate), targets.chunk(accumulate))), [], run.scaler.is_enabled()
    for number, (x, y) in enumerate(parts, start=1):
        wait = number < len(parts) and run.wrapped is not run.objective     # processes add gradients at the last part
        with run.wrapped.no_sync() if wait else nullcontext():
            with run.autocast():
                loss, correct = run.wrapped(x, y, label_smoothing=label_smoothing)
            run.scaler.scale(loss if len(parts) == 1 else loss * (len(x) / len(images))).backward()
        checked.append(loss.detach())                                       # it and all gradients have to be finite
        run.totals[0].add_(checked[-1].nan_to_num(0, 0, 0) if fp16 else checked[-1], alpha=len(x))
        run.totals[1].add_(correct)
    run.scaler.unscale_(run.optimizer)
    gradients = [weight.grad for weight in run.weights if weight.grad is not None]
    if not fp16:                                                            # by GradScaler's kernel: sets non_finite
        torch._amp_foreach_non_finite_check_and_unscale_(gradients + checked, run.non_finite, run.one)
    if clip_grad:
        clip_grads_with_norm_(run.weights, clip_grad, get_total_norm(gradients))
    scale = run.scaler.get_scale()                                          # 1.0 and no waiting unless fp16
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.step += 1
    if run.scaler.get_scale() < scale:
        run.skipped += 1
    else:
        run.skipped, run.updates = 0, run.updates + 1
        run.average()


def read_running_loss(run: Run) -> tuple[float, float]:
    """Mean loss and accuracy (%) of this epoch so far, in this process. NonFinite if a step was bad."""
    made = next(iter(run.optimizer.state.values()))["step"]                 # updates that the device made
    loss, correct, bad, made = torch.stack([*run.totals, run.non_finite, made]).tolist()    # here it waits
    if bad:
        raise NonFinite(f"the loss or its gradient is not finite in epoch {run.epoch + 1}, step "
                        f"{run.step - (run.updates - int(made)) + 1}; no update was made from it", run.saved_at)
    if run.skipped >= GIVE_UP:
        raise NonFinite(f"the gradient overflowed in fp16 in {run.skipped} steps in a row, up to epoch {run.epoch + 1}"
                        f", step {run.step}", run.saved_at, try_this="a smaller --lr or --amp off")
    images = run.step * run.recipe.batch_size / distributed.count()
    return loss / images, 100 * correct / images


def train_epoch(run: Run, batches: Any, *, normalize: Callable, mix: Callable | None, interrupt: Interrupt) -> None:
    """Train from `run.step` to the end of the epoch."""
    run.model.train()
    recipe, total = run.recipe, len(batches) * run.recipe.epochs
    bar = tqdm(batches.epoch(run.epoch, run.step), initial=run.step, total=len(batches), unit="step", leave=False,
               desc=f"epoch {run.epoch + 1}/{recipe.epochs}", disable=None if distributed.is_first() else True)
    began, first = time.perf_counter(), run.step
    for images, targets in bar:
        seed_device(run.device, "step", recipe.seed, run.epoch, run.step, distributed.rank())
        images, targets = normalize(to_device(images, run.device)), to_device(targets, run.device)
        images, targets = mix(images, targets) if mix else (images, targets)
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

    save_every: seconds. A checkpoint comes after an epoch if the last one is as old, at the end, and after a signal.
    train, test: `Batches`, or what has `len()` and `epoch(epoch=0, start=0)`, which yields (B, 3, H, W) uint8 and (B,).
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
            speed, seconds = (1 - first / len(train)) * seen / trained, time.perf_counter() - began
            run.history.append({
                "epoch": run.epoch, "train_loss": loss / seen, **tested, "lr": run.optimizer.param_groups[0]["lr"],
                "images_per_second": round(speed, 1), "seconds": round(seconds, 3)})
            late = time.monotonic() - run.saved_when >= save_every
            if distributed.all_reduce_max(late or run.epoch == run.recipe.epochs):
                run.save()
            if distributed.is_first():
                print(f"epoch {run.epoch}/{run.recipe.epochs}  train loss {loss / seen:.4f}  "
                      f"{run.task.line.format(**tested)}  {speed:,.0f} images/s  {seconds:.1f} s", flush=True)
    return run.history
