"""One training step over a `Run` (run.py): forward, loss; then scale, backward, unscale, clip, step, update.

A step does not wait for the device, but in fp16 (was it skipped?) and in FCOS's loss: losses add up on the device, and
`read_running_loss` reads them now and then. Shapes: B images of one process.
"""
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..runtime import distributed
from ..runtime.errors import NonFinite
from .run import Run

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
    parts = list(zip(images.chunk(accumulate), targets.chunk(accumulate)))
    fp16, checked = run.scaler.is_enabled(), []                             # checked: what has to be finite
    for number, (x, y) in enumerate(parts, start=1):
        wait = number < len(parts) and run.wrapped is not run.objective     # processes add gradients at the last part
        with run.wrapped.no_sync() if wait else nullcontext():
            with run.autocast():
                loss, correct = run.wrapped(x, y, label_smoothing=label_smoothing)
            run.scaler.scale(loss if len(parts) == 1 else loss * (len(x) / len(images))).backward()
        checked.append(loss.detach())
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
        if run.ema:
            run.average()


def read_running_loss(run: Run) -> tuple[float, float]:
    """Mean loss and accuracy (%) of this epoch so far, in this process. NonFinite if a step was bad."""
    made = next(iter(run.optimizer.state.values()))["step"]                 # updates that the device made
    loss, correct, bad, made = torch.stack([*run.totals, run.non_finite, made]).tolist()    # here it waits
    good = f"the last good checkpoint is after {run.saved_at}" if run.saved_at else "there is no checkpoint yet"
    if bad:
        raise NonFinite(f"the loss or its gradient is not finite in epoch {run.epoch + 1}, step "
                        f"{run.step - (run.updates - int(made)) + 1}; no update was made from it, {good}. Try a "
                        "smaller --lr")
    if run.skipped >= GIVE_UP:
        raise NonFinite(f"the gradient overflowed in fp16 in {run.skipped} steps in a row, up to epoch {run.epoch + 1}"
                        f", step {run.step}; {good}. Try a smaller --lr or --amp off")
    images = run.step * run.recipe.batch_size / distributed.count()
    return loss / images, 100 * correct / images
