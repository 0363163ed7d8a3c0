"""What the loop has to know of a task, and the task that it trains unless told otherwise: classification.

Segmentation and detection are in dense/. Shapes: B images, K classes.
"""
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..runtime import distributed
from ..runtime.device import to_device


class Task(NamedTuple):
    """A task. Its targets are one tensor (B, ...) for a batch, whatever the task."""

    loss_of: Callable           # (model, images, targets, label_smoothing=) -> (mean loss, number of correct answers)
    evaluate: Callable          # (model, batches, and the options of `evaluate_batches`) -> metrics by name
    accuracy: str | None        # the name under which the share of correct answers in training (%) is reported
    score: str                  # the metric that counts
    line: str                   # how the test's metrics are printed after an epoch
    result: str                 # how they are printed at the end


class Objective(nn.Module):
    """A model and its loss as one module, for DistributedDataParallel and torch.compile."""

    def __init__(self, model: nn.Module, loss_of: Callable):
        super().__init__()
        self.model, self.loss_of = model, loss_of

    def forward(self, images: Tensor, targets: Tensor, *, label_smoothing: float) -> tuple[Tensor, Tensor]:
        return self.loss_of(self.model, images, targets, label_smoothing=label_smoothing)


def evaluate_batches(model: nn.Module, batches: Any, *, normalize: Callable, device: torch.device, autocast: Any,
                     between: Callable = lambda: None) -> Iterator[tuple[Any, Tensor]]:
    """(the model's output in eval mode, targets) for each batch of this process.

    normalize: uint8 images on the device -> what the model takes. between: called after each batch, equally often in
    every process, because it may ask the other processes.
    """
    model.eval()
    done = 0
    for done, (images, targets) in enumerate(batches.epoch(), start=1):
        with autocast:
            output = model(normalize(to_device(images, device)))
        yield output, to_device(targets, device)
        between()
    for _ in range(done, len(batches)):                         # this process has no share of the last batch
        between()


def classification_loss(model: nn.Module, images: Tensor, labels: Tensor, *,
                        label_smoothing: float) -> tuple[Tensor, Tensor]:
    """(mean loss, number of correct images) of images (B, 3, H, W) with labels (B,) or shares of classes (B, K)."""
    logits = model(images)                                                  # (B, K)
    correct = logits.detach().argmax(1) == (labels if labels.ndim == 1 else labels.argmax(1))
    return cross_entropy(logits, labels, label_smoothing=label_smoothing), correct.sum()


@torch.no_grad()
def evaluate_classifier(model: nn.Module, batches: Any, **options: Any) -> dict[str, float]:
    """Mean loss and top-1 in %, over all images of all processes. Options: see `evaluate_batches`."""
    device = options["device"]
    exact = torch.float32 if device.type == "mps" else torch.float64
    totals = torch.zeros(3, dtype=exact, device=device)         # sum of the loss, number correct, number of images
    for logits, labels in evaluate_batches(model, batches, **options):
        loss = cross_entropy(logits.float(), labels, reduction="sum")
        totals += torch.stack([loss, (logits.argmax(1) == labels).sum(), loss.new_full((), len(labels))])
    loss, correct, images = distributed.all_reduce_sum(totals).tolist()
    return {"test_loss": loss / images, "top1": 100 * correct / images}


CLASSIFICATION = Task(classification_loss, evaluate_classifier, accuracy="train_top1", score="top1",
                      line="test loss {test_loss:.4f}  top-1 {top1:.2f} %", result="test accuracy: {top1:.2f} %")
