"""What grid.py and dense_grid.py write: means with standard errors, paired differences, tables, and verdicts.

Differences are paired: taken seed by seed between runs that saw the same images in the same order and, but for runs of
another depth, began with the same weights. Standard error: the standard deviation over seeds by the root of their
number. p: of a paired t-test.
"""
import math
import statistics
from typing import Any

# The paper's claims as sums and differences of cells, with the sign that it expects and its own figure for DeiT-Ti on
# ImageNet-1k in points, where it prints one. LaPE and PVG are both layer-wise; only PVG also adds PE at the input.
CLAIMS = (
    ("GAP alone helps", +1, {"gap once": 1, "cls once": -1}, "+0.26"),
    ("layer-wise PE alone helps (LaPE)", +1, {"cls lape": 1, "cls once": -1}, "+0.80"),
    ("layer-wise PE alone helps (PVG)", +1, {"cls pvg": 1, "cls once": -1}, "–"),
    ("the conflict: with GAP, LaPE hurts", -1, {"gap lape": 1, "gap once": -1}, "in a picture only"),
    ("the conflict, weaker: LaPE gains less with GAP than with a class token", -1,
     {"gap lape": 1, "gap once": -1, "cls lape": -1, "cls once": 1}, "–"),
    ("PVG helps with GAP", +1, {"gap pvg": 1, "gap once": -1}, "+0.77"),
    ("MPVG resolves it: PE at the last norm helps PVG with GAP", +1, {"gap mpvg": 1, "gap pvg": -1}, "+0.34"),
    ("MPVG with GAP is above PE once", +1, {"gap mpvg": 1, "gap once": -1}, "+1.11"),
    ("MPVG with GAP is above LaPE with a class token", +1, {"gap mpvg": 1, "cls lape": -1}, "+0.57"),
    ("Table 6: MPVG is above the same from block 1", +1, {"gap mpvg": 1, "gap mpvg, from block 1": -1}, "+0.20"),
    ("Table 6: and above the same, not hierarchical", +1, {"gap mpvg": 1, "gap mpvg, not hierarchical": -1}, "+0.03"),
    ("Table 6: and above the same, not at the input", +1, {"gap mpvg": 1, "gap mpvg, not at the input": -1}, "+0.23"),
    ("Table 5: p_0 at the last norm is better than p_L", +1, {"gap mpvg": 1, "gap mpvg, last norm: p_L": -1}, "+0.21"),
    ("Table 5: and than p_9", +1, {"gap mpvg": 1, "gap mpvg, last norm: p_9": -1}, "+0.13"),
    ("Table 5: and than p_6", +1, {"gap mpvg": 1, "gap mpvg, last norm: p_6": -1}, "+0.12"),
    ("Fig. 5 b: PE at the last norm alone hurts PE once", -1, {"gap mpvg, no block": 1, "gap once": -1}, "−0.26"),
)


def mean_and_error(values: list[float], digits: int = 2, sign: str = "") -> str:
    """"mean ± standard error"; of one value no error can be told, and of none nothing."""
    if len(values) < 2:
        return f"{values[0]:{sign}.{digits}f} (one run)" if values else "–"
    return f"{statistics.mean(values):{sign}.{digits}f} ± {standard_error(values):.{digits}f}"


def standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def p_value(values: list[float], steps: int = 20_000) -> float | None:
    """Two-sided p of a t-test that the mean is 0. None: a single value cannot tell.

    With t = sqrt(n) tan(a), Student's density is cos(a) ** (n - 1).
    """
    if len(values) < 2:
        return None
    error, freedom = standard_error(values), len(values) - 1
    if not error:
        return 0.0 if statistics.mean(values) else 1.0
    angle = math.atan(abs(statistics.mean(values)) / error / math.sqrt(freedom))

    def area(start: float, end: float) -> float:            # midpoint rule
        step = (end - start) / steps
        return step * sum(math.cos(start + (number + 0.5) * step) ** (freedom - 1) for number in range(steps))

    return area(angle, math.pi / 2) / area(0, math.pi / 2)


def verdict(values: list[float], expected: int) -> str:
    if len(values) < 3:
        return "too few seeds"
    if p_value(values) >= 0.05:
        return f"too small to tell with {len(values)} seeds"
    return "holds" if statistics.mean(values) * expected > 0 else "does not hold: the opposite"


def paired(scores: dict[tuple[str, int], float], weights: dict[str, int]) -> list[float]:
    """The weighted sum of cells, for every seed that all of them have. scores: (cell, seed) -> top-1."""
    seeds = sorted(set.intersection(*({seed for name, seed in scores if name == cell} for cell in weights)))
    return [sum(weight * scores[cell, seed] for cell, weight in weights.items()) for seed in seeds]


def beside(cell: str) -> str:
    """What a cell is compared with: `once` with the same pooling; a variant of MPVG, or another depth, with its own."""
    whole = cell.split(",")[0]
    return whole if whole != cell and (whole.endswith("mpvg") or "blocks" in cell) else f"{cell.split()[0]} once"


def without_last_norm(run: dict[str, Any]) -> float | None:
    """Points that the trained model gains without PE at the last norm; None where there is none."""
    zeroed = run["zeroed"]
    if isinstance(zeroed, dict):                    # by place, on the first test images
        return zeroed["last norm"] - zeroed["nothing"] if "last norm" in zeroed else None
    return None if zeroed is None else zeroed - run["top1"]


def cells_table(runs: list[dict[str, Any]], groups: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown: every cell."""
    scores = {(run["cell"], run["seed"]): run["top1"] for run in runs}
    lines = ["| cell | runs | top-1 | difference | compared with | zeroed − as trained |", "|---|---|---|---|---|---|"]
    for cell in [cell for group in groups.values() for cell in group]:
        own = [run for run in runs if run["cell"] == cell]
        other = beside(cell)
        if own:
            difference = [] if other == cell else paired(scores, {cell: 1, other: -1})
            zeroed = [change for run in own if (change := without_last_norm(run)) is not None]
            lines.append(f"| {cell} | {len(own)} | {mean_and_error([run['top1'] for run in own])} | "
                         f"{mean_and_error(difference, sign='+')} | {other if difference else '–'} | "
                         f"{mean_and_error(zeroed, sign='+')} |")
    return lines


def claims_table(runs: list[dict[str, Any]]) -> list[str]:
    """Markdown: the paper's claims one by one, as far as the runs go."""
    scores = {(run["cell"], run["seed"]): run["top1"] for run in runs}
    lines = ["| the paper's claim | paper, DeiT-Ti | ours, paired | seeds | p | verdict |", "|---|---|---|---|---|---|"]
    for claim, expected, weights, theirs in CLAIMS:
        values = paired(scores, weights)
        if values:
            lines.append(claim_line(claim, theirs, values, p_value(values), verdict(values, expected)))
    return lines


def claim_line(claim: str, theirs: str, values: list[float], p: float | None, answer: str, digits: int = 2) -> str:
    """A row of Markdown: the claim, the paper's figure, ours, seeds, p and verdict."""
    shown = "–" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"
    return f"| {claim} | {theirs} | {mean_and_error(values, digits, '+')} | {len(values)} | {shown} | {answer} |"


def table(runs: list[dict[str, Any]], groups: dict[str, dict[str, Any]], *, command: str) -> str:
    """Markdown: every cell, then the paper's claims one by one."""
    lines = ["Test accuracy (top-1, %), mean ± standard error over seeds; differences are paired, seed by seed. "
             '"Zeroed": the same trained model tested without PE at the last norm.', "", *cells_table(runs, groups), "",
             *claims_table(runs), "", f"`{command}`; {'; '.join(origins(runs))}.", ""]
    return "\n".join(lines)


def short_table(runs: list[dict[str, Any]]) -> str:
    """Markdown: top-1 by schedule and pooling."""
    lines = ["| schedule | class token | GAP |", "|---|---|---|"]
    for pe in ("none", "once", "lape", "pvg", "mpvg"):
        columns = [[run["top1"] for run in runs if run["cell"] == f"{pool} {pe}"] for pool in ("cls", "gap")]
        if any(columns):
            lines.append(f"| `{pe}` | {' | '.join(mean_and_error(values) for values in columns)} |")
    return "\n".join(lines)


def origins(runs: list[dict[str, Any]]) -> list[str]:
    """Where the runs come from: model, data, epochs; machine and commit. One line for each that differs."""
    lines = set()
    for run in runs:
        s = run["settings"]
        images = f"{s['limit']:,} images" if s["limit"] else "all images"
        epochs = f"{s['epochs']} epoch{'s' * (s['epochs'] > 1)}"
        lines.add(f"{s['model']} on {run['data']}, {images}, {epochs}, batch {s['batch_size']}; {run['machine']}, "
                  f"commit {run['environment']['commit']}")
    return sorted(lines)
