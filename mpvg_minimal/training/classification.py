"""Classification: the loss, the test, and what the loop prints of them; what `train` does unless told otherwise.

The twins for other tasks: segmentation.py, detection.py. Shapes: B images, K classes.
"""
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..runtime import distributed
from .run import Task, outputs


def classification_loss(model: nn.Module, images: Tensor, labels: Tensor, *,
                        label_smoothing: float) -> tuple[Tensor, Tensor]:
    """(mean loss, number of hits) of images (B, 3, H, W) with labels (B,) or (B, K)."""
    logits = model(images)                                                  # (B, K)
    hits = logits.detach().argmax(1) == (labels if labels.ndim == 1 else labels.argmax(1))
    return cross_entropy(logits, labels, label_smoothing=label_smoothing), hits.sum()


@torch.no_grad()
def test_classifier(model: nn.Module, batches: Any, **options: Any) -> dict[str, float]:
    """Mean loss and top-1 in % over all images of all processes, exactly. Options: see `outputs`."""
    device = options["device"]
    exact = torch.float32 if device.type == "mps" else torch.float64
    totals = torch.zeros(3, dtype=exact, device=device)         # loss sum, correct, images
    for logits, labels in outputs(model, batches, **options):
        loss = cross_entropy(logits.float(), labels, reduction="sum")
        totals += torch.stack([loss, (logits.argmax(1) == labels).sum(), loss.new_full((), len(labels))])
    loss, correct, images = distributed.summed(totals).tolist()
    return {"test_loss": loss / images, "top1": 100 * correct / images}


CLASSIFICATION = Task(classification_loss, test_classifier, hits="train_top1", score="top1",
                      line="test loss {test_loss:.4f}  top-1 {top1:.2f} %", result="test accuracy: {top1:.2f} %")
