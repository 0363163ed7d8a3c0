"""What grid.py and dense_grid.py write: means with standard errors, paired differences, tables and figures.

Differences are paired: taken seed by seed between runs that began with the same weights and saw the same images in the
same order. Standard error: the standard deviation over seeds by the root of their number.
"""
import math
import statistics
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

matplotlib.use("Agg")

# The paper's claims, as sums and differences of cells. LaPE and PVG are both layer-wise.
CLAIMS = (
    ("GAP alone helps", "up", {"gap once": 1, "cls once": -1}),
    ("layer-wise PE alone helps (LaPE)", "up", {"cls lape": 1, "cls once": -1}),
    ("layer-wise PE alone helps (PVG)", "up", {"cls pvg": 1, "cls once": -1}),
    ("with GAP, layer-wise PE hurts (LaPE)", "down", {"gap lape": 1, "gap once": -1}),
    ("with GAP, layer-wise PE hurts (PVG)", "down", {"gap pvg": 1, "gap once": -1}),
    ("the conflict: layer-wise PE (LaPE) gains less with GAP than with a class token", "down",
     {"gap lape": 1, "gap once": -1, "cls lape": -1, "cls once": 1}),
    ("the conflict: layer-wise PE (PVG) gains less with GAP than with a class token", "down",
     {"gap pvg": 1, "gap once": -1, "cls pvg": -1, "cls once": 1}),
    ("PE at the last norm resolves it", "up", {"gap mpvg": 1, "gap pvg": -1}),
    ("MPVG with GAP is above PE once", "up", {"gap mpvg": 1, "gap once": -1}),
    ("MPVG with GAP is above layer-wise PE with a class token", "up", {"gap mpvg": 1, "cls lape": -1}),
)


def mean_and_error(values: list[float], digits: int = 2, sign: str = "") -> str:
    """"mean ± standard error"; of one value no error can be told, and of none nothing."""
    if len(values) < 2:
        return f"{values[0]:{sign}.{digits}f} (one run)" if values else "–"
    return f"{statistics.mean(values):{sign}.{digits}f} ± {standard_error(values):.{digits}f}"


def standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def paired(scores: dict[tuple[str, int], float], weights: dict[str, int]) -> list[float]:
    """The weighted sum of cells, for every seed that all of them have. scores: (cell, seed) -> top-1."""
    seeds = sorted(set.intersection(*({seed for name, seed in scores if name == cell} for cell in weights)))
    return [sum(weight * scores[cell, seed] for cell, weight in weights.items()) for seed in seeds]


def beside(cell: str) -> str:
    """What a cell is compared with: `once` with the same pooling; a variant of MPVG with MPVG."""
    pool, pe = cell.split(" ", 1)
    return f"{pool} mpvg" if pe.startswith("mpvg, ") else f"{pool} once"


def without_last_norm(run: dict[str, Any]) -> float | None:
    """Points that the trained model gains without PE at the last norm; None where there is none."""
    zeroed = run["zeroed"]
    if isinstance(zeroed, dict):                    # by place, on the first test images
        return zeroed["last norm"] - zeroed["nothing"] if "last norm" in zeroed else None
    return None if zeroed is None else zeroed - run["top1"]


def table(runs: list[dict[str, Any]], groups: dict[str, dict[str, Any]], *, command: str) -> str:
    """Markdown: every cell, then the paper's claims one by one."""
    scores = {(run["cell"], run["seed"]): run["top1"] for run in runs}
    lines = ["Test accuracy (top-1, %), mean ± standard error over seeds; differences are paired, seed by seed. "
             '"Zeroed": the same trained model tested without PE at the last norm.', "",
             "| cell | runs | top-1 | difference | compared with | zeroed − as trained |", "|---|---|---|---|---|---|"]
    for cell in [cell for group in groups.values() for cell in group]:
        own = [run for run in runs if run["cell"] == cell]
        other = beside(cell)
        if own:
            difference = [] if other == cell else paired(scores, {cell: 1, other: -1})
            zeroed = [change for run in own if (change := without_last_norm(run)) is not None]
            lines.append(f"| {cell} | {len(own)} | {mean_and_error([run['top1'] for run in own])} | "
                         f"{mean_and_error(difference, sign='+')} | {other if difference else '–'} | "
                         f"{mean_and_error(zeroed, sign='+')} |")
    lines += ["", "| the paper's claim, in our cells | expected | measured, paired | seeds |", "|---|---|---|---|"]
    for claim, expected, weights in CLAIMS:
        values = paired(scores, weights)
        if values:
            lines.append(f"| {claim} | {expected} | {mean_and_error(values, sign='+')} | {len(values)} |")
    return "\n".join([*lines, "", f"`{command}`; {'; '.join(origins(runs))}.", ""])


def short_table(runs: list[dict[str, Any]]) -> str:
    """Markdown for the README: top-1 by schedule and pooling."""
    lines = ["| schedule | class token | GAP |", "|---|---|---|"]
    for pe in ("none", "once", "lape", "pvg", "mpvg"):
        columns = [[run["top1"] for run in runs if run["cell"] == f"{pool} {pe}"] for pool in ("cls", "gap")]
        lines.append(f"| `{pe}` | {' | '.join(mean_and_error(values) for values in columns)} |")
    return "\n".join(lines)


def origins(runs: list[dict[str, Any]]) -> list[str]:
    """Where the runs come from: model, data, epochs; machine and commit. One line for each that differs."""
    lines = set()
    for run in runs:
        s = run["settings"]
        images = f"{s['limit']:,} images" if s["limit"] else "all images"
        lines.add(f"{s['model']} on {run['data']}, {images}, {s['epochs']} epochs, batch {s['batch_size']}; "
                  f"{run['machine']}, commit {run['environment']['commit']}")
    return sorted(lines)


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
    cells = [cell for cell in ("cls lape", "cls mpvg", "gap lape", "gap pvg", "gap mpvg")
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
