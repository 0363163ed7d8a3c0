"""The rows that cost.py measures, as Markdown tables and as a figure."""
from pathlib import Path
from typing import Any


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| model | PE | parameters | GFLOP forward | MB kept for backward, an image | peak MB of a step "
             "| training images/s | to `once` | inference images/s | to `once` |", "|---" * 10 + "|"]
    for row in rows:
        kept = f"{row['kept_mb_per_image']:.2f}" if "kept_mb_per_image" in row else "–"
        peak = f"{row['peak_mb']:,.0f}" if row.get("peak_mb") else "–"
        cells = [row["model"] + (", compiled" if row["compiled"] else ""), row["variant"], f"{row['parameters']:,}",
                 f"{row['gflop_forward']:.3f}", kept, peak]
        for what in ("train", "inference"):
            if f"{what}_ratio" in row:
                cells += [f"{row[f'{what}_images_per_second']:,.0f}", f"{row[f'{what}_ratio']:.3f}"]
            else:
                cells += ["–", "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def short_table(rows: list[dict[str, Any]]) -> str:
    """What MPVG costs, a line for each model, in ratios to PE added once, and the peers' ratios if measured."""
    lines = ["| model | extra parameters | training | inference | folded | timm: training, inference "
             "| vit-pytorch: training, inference |", "|---|---|---|---|---|---|---|"]
    for name, compiled in dict.fromkeys((row["model"], row["compiled"]) for row in rows):
        of = {row["variant"]: row for row in rows if (row["model"], row["compiled"]) == (name, compiled)}
        mpvg = of["mpvg"]
        cells = [f"`{name}`{', compiled' if compiled else ''}",
                 f"{mpvg['parameters'] / of['once']['parameters'] - 1:.2%}", f"{mpvg['train_ratio']:.3f}",
                 f"{mpvg['inference_ratio']:.3f}", f"{of['mpvg, folded']['inference_ratio']:.3f}"]
        for peer in (of.get("timm"), of.get("vit-pytorch")):
            cells.append(f"{peer['train_ratio']:.3f}, {peer['inference_ratio']:.3f}" if peer else "not measured")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_cost(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw images/s relative to PE added once, with the quartiles over the rounds."""
    from matplotlib.figure import Figure  # here, so that --help need not wait for it

    figure = Figure(figsize=(10, 0.22 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
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
    figure.savefig(path, dpi=120)
