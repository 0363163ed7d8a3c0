"""The training loop: plain functions over one `Run` (run.py), which is what a checkpoint holds.

    fit          for every epoch: train_epoch, test, save
    train_epoch  for every batch: to the device, normalise, mix, train_step
    train_step   forward, loss; then scale, backward, unscale, clip, step, update, in this order

Nothing in a step waits for the device: losses add up there and are read every `LOOK` steps. Every random draw
comes from (seed, epoch, step), see seeding.py, so a run that is resumed goes on bit for bit.
What is trained is classification.py's `Task` unless told otherwise. Shapes: B images of one process in one step,
K classes. The settings' keys: see recipes.py.
"""
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from ..runtime import distributed
from ..runtime.errors import Interrupted, NonFinite
from ..runtime.seeding import seed_of
from ..runtime.signals import Interrupt, noted
from .classification import CLASSIFICATION, classification_loss
from .run import Run, Task

LOOK = 50               # steps between two looks at the running loss: each look waits for the device
GIVE_UP = 20            # fp16: so many skipped steps in a row end the run


def learning_rate(update: int, total: int, *, lr: float, final_lr: float, warmup: float,
                  cooldown: float = 0.0) -> float:
    """Linear warm-up over the share `warmup` of all updates, then half a cosine from lr to final_lr.

    It stays at final_lr over the last share, `cooldown`.
    """
    ramp = round(warmup * total)
    if update < ramp:
        return lr * (update + 1) / ramp
    progress = min((update - ramp) / max(total - ramp - round(cooldown * total), 1), 1.0)
    return final_lr + (lr - final_lr) * (1 + math.cos(math.pi * progress)) / 2


def train_step(run: Run, images: Tensor, targets: Tensor, *, lr: float, label_smoothing: float = 0.0,
               clip_grad: float = 0.0, accumulate: int = 1, loss_of: Callable = classification_loss) -> None:
    """One update from images (B, 3, H, W) and their targets (B, ...), taken in `accumulate` parts.

    A non-finite gradient moves nothing. In fp16 the scaler sees to that and tries a smaller scale. Otherwise the
    optimizer is told to skip this step and all later ones, on the device, until `look` reads it and ends the run.
    """
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.zero_grad(set_to_none=True)
    parts = list(zip(images.chunk(accumulate), targets.chunk(accumulate)))
    check = torch.zeros((), device=run.device)                              # NaN once a part's loss is not finite
    for number, (x, y) in enumerate(parts, start=1):
        wait = number < len(parts) and run.wrapped is not run.model         # other processes: at the last part
        with run.wrapped.no_sync() if wait else nullcontext(), run.autocast():
            loss, hits = loss_of(run.wrapped, x, y, label_smoothing=label_smoothing)
            run.scaler.scale(loss * len(x) / len(images)).backward()
        check += 0 * loss.detach()                                          # 0 * inf is NaN
        run.totals += torch.stack([loss.detach().nan_to_num(0, 0, 0) * len(x), hits])
    run.scaler.unscale_(run.optimizer)
    gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
    norm = get_total_norm(gradients)
    if clip_grad:
        clip_grads_with_norm_(run.model.parameters(), clip_grad, norm)
    scale = run.scaler.get_scale()                                          # 1.0 and no waiting unless fp16
    if not run.scaler.is_enabled():
        first_bad = (run.bad_step == 0) & ~(norm + check).isfinite()
        run.bad_step = torch.where(first_bad, run.step + 1, run.bad_step)
        run.optimizer.found_inf = (run.bad_step > 0).float()                # how GradScaler tells fused optimizers
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.step += 1
    if run.scaler.get_scale() < scale:
        run.skipped += 1
        return
    run.skipped, run.updates = 0, run.updates + 1
    if run.ema:
        run.ema.update_parameters(run.model)


def look(run: Run) -> tuple[float, float]:
    """Mean loss and accuracy (%) of this epoch so far, in this process. NonFinite if a step was bad."""
    loss, correct, bad_step = torch.stack([*run.totals, run.bad_step]).tolist()     # the one wait for the device
    last_good = f"the last good checkpoint is after {run.saved_at}" if run.saved_at else "there is no checkpoint yet"
    if bad_step:
        raise NonFinite(f"the loss or its gradient is not finite in epoch {run.epoch + 1}, step {int(bad_step)}; "
                        f"no update was made from it, {last_good}. Try a smaller --lr")
    if run.skipped >= GIVE_UP:
        raise NonFinite(f"the gradient overflowed in fp16 in {run.skipped} steps in a row, up to epoch "
                        f"{run.epoch + 1}, step {run.step}; {last_good}. Try a smaller --lr or --amp off")
    images = run.step * run.settings["batch_size"] / distributed.count()
    return loss / images, 100 * correct / images


def train_epoch(run: Run, batches: Any, *, prepare: Callable, mix: Callable | None, interrupt: Interrupt,
                loss_of: Callable = classification_loss) -> None:
    """From `run.step` to the end of the epoch."""
    run.model.train()
    s, total = run.settings, run.settings["epochs"] * len(batches)
    step_options = {key: s[key] for key in ("label_smoothing", "clip_grad", "accumulate")}
    bar = tqdm(batches.epoch(run.epoch, run.step), initial=run.step, total=len(batches), unit="step", leave=False,
               desc=f"epoch {run.epoch + 1}/{s['epochs']}", disable=None if distributed.is_first() else True)
    began, first = time.perf_counter(), run.step
    for images, labels in bar:
        torch.manual_seed(seed_of("step", s["seed"], run.epoch, run.step, distributed.rank()))
        images = prepare(images.to(run.device, non_blocking=True))
        labels = labels.to(run.device, non_blocking=True)
        if mix is not None:
            images, labels = mix(images, labels)
        rate = learning_rate(run.updates, total, lr=s["lr"], final_lr=s["final_lr"], warmup=s["warmup"],
                             cooldown=s["cooldown"])
        train_step(run, images, labels, lr=rate, loss_of=loss_of, **step_options)
        if run.step % LOOK == 0 or run.step == len(batches) or run.skipped >= GIVE_UP:
            loss, accuracy = look(run)
            speed = (run.step - first) * s["batch_size"] / (time.perf_counter() - began)
            hits = f"accuracy {accuracy:.1f} %, " if accuracy else ""        # a task without hits counts none
            bar.set_postfix_str(f"loss {loss:.3f}, {hits}{speed:,.0f} images/s")
        save_if_interrupted(run, interrupt)


def save_if_interrupted(run: Run, interrupt: Interrupt) -> None:
    """If a signal came to any process: save, in the same step in all of them, and raise Interrupted."""
    number = distributed.agree(interrupt.number)
    if number:
        look(run)                                               # never save after a step that was not finite
        run.save()
        raise Interrupted(f"interrupted by signal {number}, saved in epoch {run.epoch + 1} after step {run.step}: "
                          "go on with --resume", number)


def fit(run: Run, train: Any, test: Any, *, prepare: Callable, mix: Callable | None = None,
        task: Task = CLASSIFICATION) -> list[dict[str, Any]]:
    """Train to the end of `settings["epochs"]`; returns one dict of metrics for each epoch.

    train, test: `Batches`, or what has its `len()` and `epoch(epoch, start)` and yields (B, 3, H, W) uint8 and (B,).
    prepare: such images on the device -> normalised ones. mix: (images, labels) -> (images, targets (B, K)).
    """
    with noted() as interrupt:
        while run.epoch < run.settings["epochs"]:
            began, first = time.perf_counter(), run.step
            train_epoch(run, train, prepare=prepare, mix=mix, interrupt=interrupt, loss_of=task.loss_of)
            loss, correct = distributed.summed(run.totals).tolist()
            seen, trained = len(train) * run.settings["batch_size"], time.perf_counter() - began
            tested = task.test(run.ema or run.model, test, prepare=prepare, device=run.device,
                               autocast=run.autocast(), between=lambda: save_if_interrupted(run, interrupt))
            run.epoch, run.step = run.epoch + 1, 0
            run.totals.zero_()
            tested |= {task.hits: 100 * correct / seen} if task.hits else {}
            run.history.append({
                "epoch": run.epoch, "train_loss": loss / seen, **tested,
                "lr": run.optimizer.param_groups[0]["lr"],
                "images_per_second": round((1 - first / len(train)) * seen / trained, 1),
                "seconds": round(time.perf_counter() - began, 3)})
            run.save()
            report(run.history[-1], run.settings["epochs"], task.line)
    return run.history


def report(line: dict[str, Any], epochs: int, tested: str) -> None:
    if distributed.is_first():
        words = "epoch {epoch}/{epochs}  train loss {train_loss:.4f}  " + tested
        words += "  {images_per_second:,.0f} images/s  {seconds:.1f} s"
        print(words.format(epochs=epochs, **line), flush=True)
