"""Test images as a picture: what is in them, and what a model finds."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from ..runtime.files import write_figure
from .files import IGNORED


@torch.no_grad()
def draw_predictions(model: nn.Module, batches: Any, path: Path, *, normalize: Callable, device: torch.device) -> None:
    """Draw the first six test images. Boxes need a score above 0.3; of several in one place the best is drawn."""
    images, targets = (tensor[:6] for tensor in next(iter(batches.epoch())))
    output = model.eval()(normalize(images.to(device)))
    if isinstance(output, Tensor):
        draw_dense(images, targets.masked_fill(targets == IGNORED, 0), output.argmax(1).cpu(), path)
        return
    truths = [rows[rows[:, 0] >= 0, :5] for rows in targets]
    found = []
    for image in output:
        keep = nms(image["boxes"], image["scores"], 0.5)                    # whatever the class, best score first
        keep = keep[image["scores"][keep] > 0.3]
        found.append(torch.cat([image["labels"][keep, None], image["boxes"][keep]], dim=1).cpu())
    draw_dense(images, truths, found, path)


def draw_dense(images: Tensor, truths: Any, found: Any, path: Path) -> None:
    """Images (B, 3, H, W) uint8; below them truth and prediction: masks (H, W), or rows of a class and a box."""
    from matplotlib.figure import Figure  # here, so that --help need not wait for it
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(1.9 * len(images) + 0.4, 6), layout="constrained")
    axes = figure.subplots(3, len(images), squeeze=False)
    for column, image in enumerate(images.permute(0, 2, 3, 1)):
        rows = (("image", None), ("truth", truths[column]), ("found", found[column]))
        for axis, (name, target) in zip(axes[:, column], rows):
            axis.set(xticks=[], yticks=[], ylabel=name if column == 0 else "")
            axis.imshow(image, interpolation="nearest", alpha=1 if target is None else 0.6)
            if target is not None and target.shape == image.shape[:2]:
                axis.imshow(torch.where(target == 0, torch.nan, target.float()), cmap="tab10", vmin=0, vmax=10,
                            alpha=0.8, interpolation="nearest")
            elif target is not None:
                for label, x1, y1, x2, y2 in target.tolist():
                    corner, color = (x1 - 0.5, y1 - 0.5), f"C{int(label) % 10}"
                    axis.add_patch(Rectangle(corner, x2 - x1, y2 - y1, fill=False, color=color, linewidth=2))
    write_figure(path, figure)
