"""A run's metrics as a picture."""
from pathlib import Path
from typing import Any

from ..runtime.files import write_figure


def draw_curves(history: list[dict[str, Any]], path: Path, *, score: str = "top1") -> None:
    """Draw the loss and the metric `score` over the epochs, from a run's metrics, into the image file `path`."""
    from matplotlib.figure import Figure  # here, so that --help need not wait for it

    label = "test top-1 (%)" if score == "top1" else f"test {score}"
    epochs = [line["epoch"] for line in history]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, name in (("train_loss", "training"), ("test_loss", "test")):
        if key in history[0]:
            left.plot(epochs, [line[key] for line in history], marker=".", label=name)
    right.plot(epochs, [line[score] for line in history], marker=".", color="C1")
    left.set(xlabel="epoch", ylabel="loss")
    left.legend()
    right.set(xlabel="epoch", ylabel=label, title=f"last: {history[-1][score]:.4g}")
    write_figure(path, figure)
