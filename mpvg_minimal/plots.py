"""A finished run as pictures: `python -m mpvg_minimal.plots RUN` draws RUN/curves.png and RUN/counterbalance.png.

The counterbalance figure is drawn as in the paper: tokens in the top row, PE in the bottom row, one column for each
layer with the last norm at the end, N upwards and D to the right, the correlation written below.
"""
import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import torch

from .balance import Balance, counterbalance

matplotlib.use("Agg")                                           # files only, no window


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Loss and accuracy over the epochs, from the metrics of a run."""
    epochs = [line["epoch"] for line in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for key, label in (("train_loss", "training"), ("test_loss", "test")):
        left.plot(epochs, [line[key] for line in history], marker=".", label=label)
    right.plot(epochs, [line["top1"] for line in history], marker=".", color="C1")
    left.set(xlabel="epoch", ylabel="loss")
    left.legend()
    right.set(xlabel="epoch", ylabel="test top-1 (%)", title=f"last: {history[-1]['top1']:.2f} %")
    _save(figure, path)


def draw_counterbalance(balances: list[Balance], path: Path) -> None:
    """Heatmaps of mean token embedding and delivered PE, a column for each place."""
    figure, axes = plt.subplots(2, len(balances), figsize=(1.7 * len(balances) + 1, 4), layout="constrained", squeeze=False)
    for column, balance in enumerate(balances):
        top, bottom = axes[:, column]
        for axis, values in ((top, balance.tokens), (bottom, balance.pe)):
            axis.set(xticks=[], yticks=[])
            if values is not None:
                limit = values.abs().max().item()               # each map on its own scale: directions are compared
                axis.imshow(values.cpu(), aspect="auto", cmap="coolwarm", vmin=-limit, vmax=limit, interpolation="nearest")
        top.set_title(balance.place, fontsize=9)
        bottom.set_xlabel("no PE" if balance.pe is None else f"r = {balance.correlation:+.2f}", fontsize=9)
    axes[0, 0].set_ylabel("tokens: N")
    axes[1, 0].set_ylabel("PE: N")
    figure.supxlabel("D, and below it the correlation of tokens and PE", fontsize=9)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)
