"""A finished run as pictures: `python -m mpvg_minimal.tools.plots RUN` draws RUN/curves.png and RUN/counterbalance.png.

The counterbalance figure is drawn as in the paper (Fig. 2): tokens in the top row, PE in the bottom row, one column for
each layer with the last norm at the end, D to the right and N downwards. Below each column stand the correlation of
the two maps, the correlations of their shared parts and of what differs by place, and the variance of the norm's beta
and of the shift, beta plus the shared part of PE (balance.py).
"""
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from ..balance import Balance, counterbalance
from ..runtime.errors import UserError, one_line_errors

matplotlib.use("Agg")                                           # files only, no window


def draw_curves(history: list[dict[str, Any]], path: Path, *, score: str = "top1") -> None:
    """Loss and the metric that counts over the epochs, from the metrics of a run."""
    label = "test top-1 (%)" if score == "top1" else f"test {score}"
    epochs = [line["epoch"] for line in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for key, name in (("train_loss", "training"), ("test_loss", "test")):
        if key in history[0]:
            left.plot(epochs, [line[key] for line in history], marker=".", label=name)
    right.plot(epochs, [line[score] for line in history], marker=".", color="C1")
    left.set(xlabel="epoch", ylabel="loss")
    left.legend()
    right.set(xlabel="epoch", ylabel=label, title=f"last: {history[-1][score]:.4g}")
    _save(figure, path)


def variance(values: Tensor) -> float:
    """Over the D features, as the paper's appendix gives it for the last norm's beta."""
    return values.var(correction=0).item()


def counterbalance_table(balances: list[Balance]) -> str:
    """The same numbers as text, a line for each place, and the cosine across the last norm."""
    lines = [f"{'':10} {'r':>7} {'cosine':>7} {'shared':>7} {'places':>7} {'Var(beta)':>10} {'Var(shift)':>10}"]
    for balance in balances:
        cells = (balance.correlation, balance.cosine, balance.shared_correlation, balance.place_correlation)
        cells = [f"{'–':>7}" if cell is None else f"{cell:+7.3f}" for cell in cells]
        cells += [f"{variance(shift):10.4f}" for shift in (balance.beta, balance.shift)]
        lines.append(f"{balance.place:10} {' '.join(cells)}")
    lines.append(f"cosine of the mean tokens before and after the last norm: {balances[-1].norm_cosine:.3f}")
    return "\n".join(lines)


def draw_counterbalance(balances: list[Balance], path: Path) -> None:
    """Heatmaps of mean token embedding and delivered PE, a column for each place."""
    size = (1.7 * len(balances) + 1, 4)
    figure, axes = plt.subplots(2, len(balances), figsize=size, layout="constrained", squeeze=False)
    for column, balance in enumerate(balances):
        top, bottom = axes[:, column]
        for axis, values in ((top, balance.tokens), (bottom, balance.pe)):
            axis.set(xticks=[], yticks=[])
            if values is not None:
                limit = values.abs().max().item()               # each map on its own scale: directions are compared
                axis.imshow(values.cpu(), aspect="auto", cmap="coolwarm", vmin=-limit, vmax=limit,
                            interpolation="nearest")
        top.set_title(balance.place, fontsize=9)
        lines = ["no PE"] if balance.pe is None else [
            f"r = {balance.correlation:+.2f}", f"shared {balance.shared_correlation:+.2f}",
            f"places {balance.place_correlation:+.2f}"]
        lines.append(f"Var β {variance(balance.beta):.3f}")
        lines += [] if balance.pe is None else [f"shift {variance(balance.shift):.3f}"]
        bottom.set_xlabel("\n".join(lines), fontsize=8, va="top")
    axes[0, 0].set_ylabel("tokens: N")
    axes[1, 0].set_ylabel("PE: N")
    _save(figure, path)


def draw_cost(rows: list[dict[str, Any]], path: Path) -> None:
    """Images/s relative to PE added once, with the quartiles over the rounds; rows as cost.py makes them."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.22 * len(rows) + 1.2), layout="constrained", sharey=True)
    for axis, what in zip(axes, ("train", "inference")):
        shown = [(place, row) for place, row in enumerate(rows) if f"{what}_ratio" in row]
        for place, row in shown:
            axis.plot(row[f"{what}_ratio_quartiles"], [place, place], color="C0", alpha=0.5)
            axis.plot(row[f"{what}_ratio"], place, "o", color="C0", markersize=4)
        axis.axvline(1.0, color="grey", linewidth=0.8)
        axis.set(title=what, xlabel="images/s, relative to PE added once", yticks=range(len(rows)))
    axes[0].set_yticklabels([f"{row['model']}{', compiled' if row['compiled'] else ''}: {row['variant']}"
                             for row in rows], fontsize=7)
    axes[0].invert_yaxis()
    _save(figure, path)


def draw_dense(images: Tensor, truths: Any, found: Any, path: Path) -> None:
    """Images (B, 3, H, W) uint8 above; below, truth and prediction: masks (H, W), or rows of a class and a box."""
    size = (1.9 * len(images) + 0.4, 6)
    figure, axes = plt.subplots(3, len(images), figsize=size, layout="constrained", squeeze=False)
    for column, image in enumerate(images.permute(0, 2, 3, 1)):
        rows = (("image", None), ("truth", truths[column]), ("found", found[column]))
        for axis, (name, what) in zip(axes[:, column], rows):
            axis.set(xticks=[], yticks=[], ylabel=name if column == 0 else "")
            axis.imshow(image, interpolation="nearest", alpha=1 if what is None else 0.6)
            if what is not None and what.shape == image.shape[:2]:
                axis.imshow(torch.where(what == 0, torch.nan, what.float()), cmap="tab10", vmin=0, vmax=10, alpha=0.8,
                            interpolation="nearest")
            elif what is not None:
                for label, x1, y1, x2, y2 in what.tolist():
                    corner, colour = (x1 - 0.5, y1 - 0.5), f"C{int(label) % 10}"
                    axis.add_patch(plt.Rectangle(corner, x2 - x1, y2 - y1, fill=False, color=colour, linewidth=2))
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    # imported here: the functions above need none of it
    from ..data import sources
    from ..dense import __main__ as dense
    from ..dense import targets
    from ..training import assemble, checkpoint, flags

    parser = flags.Parser(prog="python -m mpvg_minimal.tools.plots", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--images", type=flags.number(int, least=2), default=512, help="test images to average over")
    args = parser.parse_args()
    saved = checkpoint.newest(args.run)
    if not saved["history"]:
        raise UserError(f"{args.run} has not finished an epoch: there is nothing to draw yet")
    settings = saved["settings"]
    place = (settings["dataset"], checkpoint.read_config(args.run)["data_dir"], settings["image_size"])
    if "task" in settings:
        score, source = dense.TASKS[settings["task"]].score, targets.open_dense(settings["task"], *place)
        model = assemble.load_model(saved, dense.build).vit
    else:
        score, source, model = "top1", sources.open_source(*place), assemble.load_model(saved)
    draw_curves(saved["history"], args.run / "curves.png", score=score)
    balances = counterbalance(model, assemble.first_images(source, settings, args.images))
    draw_counterbalance(balances, args.run / "counterbalance.png")
    print(counterbalance_table(balances))
    print(f"drawn: {args.run / 'curves.png'}, {args.run / 'counterbalance.png'}")


if __name__ == "__main__":
    with one_line_errors():
        main()
