"""The rows that cost.py measures, as Markdown tables."""
from typing import Any

COLUMNS = {                     # heading -> key of a row, format
    "parameters": ("parameters", ","), "GFLOP forward": ("gflop_forward", ".3f"),
    "MB kept for backward, an image": ("kept_mb_per_image", ".2f"), "peak MB of a step": ("peak_mb", ",.0f"),
    "training images/s": ("train_images_per_second", ",.0f"), "to `once`": ("train_ratio", ".3f"),
    "inference images/s": ("inference_images_per_second", ",.0f"), "to `once` ": ("inference_ratio", ".3f")}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table; – for what was not measured."""
    lines = [f"| model | PE | {' | '.join(map(str.strip, COLUMNS))} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for row in rows:
        cells = [format(row[key], form) if row.get(key) else "–" for key, form in COLUMNS.values()]
        lines.append(f"| {row['model']}{', compiled' * row['compiled']} | {row['variant']} | {' | '.join(cells)} |")
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
