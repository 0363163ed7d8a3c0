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
