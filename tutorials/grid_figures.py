"""The experiment's figures: accuracies with every run, and how tokens and delivered PE correlate by place and time."""
import statistics
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from grid_cells import CELLS, GROUPS
from grid_findings import of_depths
from grid_report import beside, paired, standard_error

from mpvg_minimal.runtime.files import write_figure

matplotlib.use("Agg")
LAYERWISE = ("cls lape", "cls mpvg", "gap lape", "gap pvg", "gap mpvg")


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Three panels: every run's top-1 with each cell's mean; paired differences; the correlation of tokens and PE."""
    cells = [cell for cell in CELLS if any(run["cell"] == cell for run in runs)]
    size = (15, 0.2 * len(cells) + 1.8)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=size, layout="constrained", width_ratios=[3, 2, 3])
    scores = {(run["cell"], run["seed"]): run["top1"] for run in runs}
    for row, cell in enumerate(cells):
        color = "C0" if cell.startswith("gap") else "C1"
        top1 = [score for (name, _), score in scores.items() if name == cell]
        difference = paired(scores, {cell: 1, beside(cell): -1}) if beside(cell) != cell else []
        for axis, values in ((left, top1), (middle, difference)):
            if values:
                error = standard_error(values) if len(values) > 1 else 0
                axis.plot(values, [row] * len(values), ".", color=color, alpha=0.4)
                axis.errorbar(statistics.mean(values), row, xerr=error, fmt="|", color=color, capsize=3)
    left.set(yticks=range(len(cells)), xlabel="test top-1 (%): each run, and mean ± standard error")
    left.set_yticklabels(cells, fontsize=8)
    middle.set(yticks=[],
               xlabel="paired difference in points: to PE once;\nvariants to MPVG, other depths to twelve blocks")
    middle.axvline(0, color="gray", linewidth=0.8)
    for axis in (left, middle):
        axis.set_ylim(len(cells) - 0.5, -0.5)
    draw_places(runs, right)
    write_figure(path, figure, dpi=110, metadata={"Software": None})
    plt.close(figure)


def draw_places(runs: list[dict[str, Any]], axis: plt.Axes) -> None:
    """Correlation of tokens and delivered PE by place after the last epoch: mean over seeds ± standard error."""
    for number, cell in enumerate(LAYERWISE):
        own = [run["epochs"][-1]["correlation"] for run in runs if run["cell"] == cell]
        places = [place for place in range(len(own[0])) if own[0][place] is not None] if own else []
        if places:
            values = [[run[place] for run in own] for place in places]
            errors = [standard_error(of_place) if len(of_place) > 1 else 0 for of_place in values]
            axis.errorbar(places, [statistics.mean(of_place) for of_place in values], yerr=errors, marker=".",
                          color=f"C{number}", capsize=2, label=cell)
    depth = max(len(run["epochs"][-1]["correlation"]) for run in runs if run["cell"] not in GROUPS["depth"]) - 1
    axis.set_xticks(range(depth + 1), [*range(1, depth + 1), "last\nnorm"])
    axis.axhline(0, color="gray", linewidth=0.8)
    axis.set(xlabel="block", ylabel="correlation of tokens and delivered PE", title="after the last epoch",
             xlim=(-0.5, depth + 0.5))
    if axis.get_legend_handles_labels()[0]:
        axis.legend()


def draw_depth(runs: list[dict[str, Any]], path: Path) -> None:
    """Correlation in each block of models of several depths, LaPE and MPVG with GAP: does it grow with depth?"""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    for axis, pe in zip(axes, ("lape", "mpvg")):
        for depth, of_depth in of_depths(runs, pe).items():
            own = [run["epochs"][-1]["correlation"] for run in of_depth]
            blocks = [block for block in range(depth) if own and own[0][block] is not None]
            means = [statistics.mean(places[block] for places in own) for block in blocks]
            axis.plot([block + 1 for block in blocks], means, marker=".", label=f"{depth} blocks")
        axis.axhline(0, color="gray", linewidth=0.8)
        axis.set(title=f"GAP, {pe}", xlabel="block")
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    axes[0].set_ylabel("correlation of tokens and PE")
    write_figure(path, figure, dpi=110, metadata={"Software": None})
    plt.close(figure)


def draw_development(runs: list[dict[str, Any]], path: Path) -> None:
    """How the correlation of tokens and delivered PE develops over training: mean over seeds, a line for each place."""
    cells = [cell for cell in LAYERWISE if any(run["cell"] == cell for run in runs)]
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
        axis.axhline(0, color="gray", linewidth=0.8)
        axis.set(title=cell, xlabel="epoch")
    axes[0, 0].set_ylabel("correlation of tokens and PE")
    lines = {line.get_label(): line for axis in axes[0] for line in axis.get_lines() if line.get_label()[0] != "_"}
    names = sorted(lines, key=lambda name: (name == "last norm", len(name), name))       # block 9 before block 10
    figure.legend([lines[name] for name in names], names, loc="outside right center")
    write_figure(path, figure, dpi=110, metadata={"Software": None})
    plt.close(figure)
