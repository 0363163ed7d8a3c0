"""The experiment's figures: accuracies with every run, and how tokens and delivered PE correlate by place and time."""
import statistics
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from grid_report import standard_error

matplotlib.use("Agg")
LAYERWISE = ("cls lape", "cls mpvg", "gap lape", "gap pvg", "gap mpvg")


def draw(runs: list[dict[str, Any]], groups: dict[str, dict[str, Any]], path: Path) -> None:
    """Every run's top-1 as a dot and each cell's mean with its error; beside it, the tokens' correlation with PE."""
    cells = [cell for group in groups.values() for cell in group if any(run["cell"] == cell for run in runs)]
    size = (11, 0.2 * len(cells) + 1.6)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, layout="constrained", width_ratios=[3, 2])
    for row, cell in enumerate(cells):
        top1 = [run["top1"] for run in runs if run["cell"] == cell]
        error = standard_error(top1) if len(top1) > 1 else 0
        colour = "C0" if cell.startswith("gap") else "C1"
        left.plot(top1, [row] * len(top1), ".", color=colour, alpha=0.4)
        left.errorbar(statistics.mean(top1), row, xerr=error, fmt="|", color=colour, capsize=3)
    left.set(yticks=range(len(cells)), xlabel="test top-1 (%): each run, and mean ± standard error")
    left.set_yticklabels(cells, fontsize=8)
    left.invert_yaxis()
    for number, cell in enumerate(("gap lape", "gap pvg", "gap mpvg")):
        own = [run["epochs"][-1]["correlation"] for run in runs if run["cell"] == cell]
        places = [place for place in range(len(own[0])) if own[0][place] is not None] if own else []
        means = [statistics.mean(values[place] for values in own) for place in places]
        if own:
            names = [f"block {place + 1}" for place in range(len(own[0]) - 1)] + ["last norm"]
            right.plot([names[place] for place in places], means, marker=".", color=f"C{number + 2}", label=cell)
    right.axhline(0, color="grey", linewidth=0.8)
    right.set(ylabel="correlation of tokens and delivered PE", title="after the last epoch, mean over seeds")
    right.tick_params(axis="x", rotation=45)
    if right.get_legend_handles_labels()[0]:
        right.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def draw_development(runs: list[dict[str, Any]], path: Path) -> None:
    """How the correlation of tokens and delivered PE develops over training: mean over seeds, a line for each place."""
    cells = [cell for cell in LAYERWISE
             if any(run["cell"] == cell for run in runs)]
    figure, axes = plt.subplots(1, max(len(cells), 1), figsize=(2.4 * max(len(cells), 1) + 1, 3), sharey=True,
                                layout="constrained", squeeze=False)
    for axis, cell in zip(axes[0], cells):
        own = [[line["correlation"] for line in run["epochs"]] for run in runs if run["cell"] == cell]
        places = len(own[0][0])
        for place in range(places):
            if own[0][0][place] is not None:
                means = [statistics.mean(values) for values in zip(*([line[place] for line in run] for run in own))]
                last = place == places - 1
                axis.plot(range(1, len(means) + 1), means, label="last norm" if last else f"block {place + 1}",
                          color="black" if last else plt.cm.viridis(place / places))
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set(title=cell, xlabel="epoch")
    axes[0, 0].set_ylabel("correlation of tokens and PE")
    lines = {line.get_label(): line for axis in axes[0] for line in axis.get_lines() if line.get_label()[0] != "_"}
    figure.legend([lines[name] for name in sorted(lines)], sorted(lines), loc="outside right center")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
