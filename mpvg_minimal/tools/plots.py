"""A finished run as pictures: `python -m mpvg_minimal.tools.plots RUN` draws RUN/curves.png and RUN/counterbalance.png.

The counterbalance figure is drawn as in the paper (Fig. 2): tokens in the top row, PE in the bottom row, one column for
each layer with the last norm at the end, D to the right and N downwards. Below each column stand the correlation of
the two maps, the correlations of their shared parts and of what differs by place, and the variance of the norm's beta
and of the shift, beta plus the shared part of PE (balance.py).
"""
from pathlib import Path

from torch import Tensor

from ..balance import Balance, counterbalance
from ..data import sources
from ..data.loading import first_images
from ..dense.targets import open_dense
from ..dense.tasks import TASKS
from ..runtime.errors import UserError, one_line_errors
from ..runtime.files import write_figure
from ..training import flags
from ..training.curves import draw_curves
from ..training.folder import read_config
from . import finished


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
    """Draw heatmaps of mean token embedding and delivered PE, a column for each place."""
    from matplotlib.figure import Figure  # here, so that --help need not wait for it

    figure = Figure(figsize=(1.7 * len(balances) + 1, 4), layout="constrained")
    axes = figure.subplots(2, len(balances), squeeze=False)
    for column, balance in enumerate(balances):
        top, bottom = axes[:, column]
        for axis, values in ((top, balance.tokens), (bottom, balance.pe)):
            axis.set(xticks=[], yticks=[])
            if values is not None:
                limit = values.abs().max().item()               # each map on its own scale: directions are compared
                axis.imshow(values.cpu(), aspect="auto", cmap="coolwarm", vmin=-limit, vmax=limit,
                            interpolation="nearest")
        top.set_title(balance.place, fontsize=9)
        beta = f"Var β {variance(balance.beta):.3f}"
        lines = ["no PE", beta] if balance.pe is None else [
            f"r = {balance.correlation:+.2f}", f"shared {balance.shared_correlation:+.2f}",
            f"places {balance.place_correlation:+.2f}", beta, f"shift {variance(balance.shift):.3f}"]
        bottom.set_xlabel("\n".join(lines), fontsize=8, va="top")
    axes[0, 0].set_ylabel("tokens: N")
    axes[1, 0].set_ylabel("PE: N")
    write_figure(path, figure)


def main() -> None:
    parser = flags.Parser(__doc__, prog="python -m mpvg_minimal.tools.plots")
    parser.add_argument("run", type=flags.path, metavar="RUN", help="a run's folder")
    parser.add_argument("--images", type=flags.number(int, least=2), default=512, help="test images to average over")
    parser.add_argument("--data-dir", type=flags.path, help="where the data is (default: where it was in training)")
    args = parser.parse_args()
    saved, model = finished.load(args.run)
    settings = saved["settings"]
    if not saved["history"]:
        raise UserError(f"{args.run} has not finished an epoch: there is nothing to draw yet")
    place = (settings["dataset"], args.data_dir or read_config(args.run)["data_dir"], settings["image_size"])
    task = settings.get("task")
    source = open_dense(task, *place) if task else sources.open_source(*place)
    balances = counterbalance(model.vit if task else model, first_images(source, args.images))
    print(counterbalance_table(balances), flush=True)
    draw_curves(saved["history"], args.run / "curves.png", score=TASKS[task].score if task else "top1")
    draw_counterbalance(balances, args.run / "counterbalance.png")
    print(f"drawn: {args.run / 'curves.png'}, {args.run / 'counterbalance.png'}")


if __name__ == "__main__":
    with one_line_errors():
        main()
