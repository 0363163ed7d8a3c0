"""What the paper says about the counterbalance, and our four predictions, as numbers with a verdict.

Each row is a quantity of a trained model, summed over cells with weights, seed by seed (`paired`). Expected is a sign,
or 0 for equal: the value lies within the margin of 0. The signs are older than the runs, but for three rows. On a
stopped gradient and a flipped sign it is the sign that a use of PE at the last norm would need. On deeper models it is
the paper's, and the first run of four blocks had been seen. The margins were set when two runs of twelve blocks were
finished and seen, PE once and LaPE with a class token. LaPE's growth with depth was counted from block 1 until all its
runs had been seen: the paper's first layer is our block 2.
Sources: the paper's Fig. 2 b and appendix; what is marked "ours" follows from them, tutorials 5 and 6.
"""
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from grid_report import claim_line, p_value, paired, verdict

Run = dict[str, Any]
LAST_BLOCK, LAST_NORM = -2, -1              # positions in the lists of a run's measures


class Row(NamedTuple):
    claim: str
    expected: int                               # +1, -1, or 0 for equal
    cells: dict[str, int]                       # cell -> weight
    quantity: Callable[[Run], float]
    theirs: str = "ours"                        # the paper's figure for DeiT-Ti; "ours": the paper has no such claim
    digits: int = 2
    margin: float = 0.0                         # how far from 0 counts as equal


def at(key: str, place: int) -> Callable[[Run], float]:
    """A measure after the last epoch, in the LAST_BLOCK or at the LAST_NORM."""
    return lambda run: run["epochs"][-1][key][place]


def top1(run: Run) -> float:
    return run["top1"]


def growth(run: Run) -> float:
    """r in the last block less r in block 2, the first layer that the paper shows."""
    r = run["epochs"][-1]["correlation"]
    return r[LAST_BLOCK] - r[1]


def parts_differ(run: Run) -> float:
    return at("place_correlation", LAST_BLOCK)(run) - at("shared_correlation", LAST_BLOCK)(run)


def norm_cosine(run: Run) -> float:
    return run["epochs"][-1]["norm_cosine"]


def log_learnt_at_last_norm(run: Run) -> float:
    return math.log(run["learnt_shift_variance"][LAST_NORM])


def log_learnt_in_blocks(run: Run) -> float:
    return statistics.mean(math.log(value) for value in run["learnt_shift_variance"][1:-1])


def lost_without(where: str) -> Callable[[Run], float]:
    return lambda run: run["zeroed"][where] - run["zeroed"]["nothing"]


LAPE, MPVG = {"gap lape": 1}, {"gap mpvg": 1}
ROWS = (
    Row("PE counterbalances: r in the last block, LaPE", -1, LAPE, at("correlation", LAST_BLOCK), "−0.95"),
    Row("more with depth: r in the last block − r in block 2, LaPE", -1, LAPE, growth, "−0.58"),
    Row("the same, MPVG", -1, MPVG, growth, "–"),
    Row("more in deeper models: r in the last block, twelve blocks − four, LaPE", -1,
        LAPE | {"gap lape, 4 blocks": -1}, at("correlation", LAST_BLOCK), "–"),
    Row("at the last norm too: r there, MPVG", -1, MPVG, at("correlation", LAST_NORM), "–"),
    Row("PE is used: points lost without it in testing, MPVG", -1, MPVG, lost_without("all")),
    Row("and at the last norm alone", -1, MPVG, lost_without("last norm")),
    Row("PE at the last norm is more than a free bias there", +1, MPVG | {"gap mpvg, free bias": -1}, top1),
    Row("and more than with its gradient on p_0 stopped", +1, MPVG | {"gap mpvg, stopped gradient": -1}, top1),
    Row("and more than with LN' subtracted at the start", +1, MPVG | {"gap mpvg, sign flipped": -1}, top1),
    Row("LaPE is more than PE once that starts larger (std 0.2)", +1, LAPE | {"gap once, PE std 0.2": -1}, top1),
    Row("1. the shared parts oppose: their r in the last block, LaPE", -1, LAPE, at("shared_correlation", LAST_BLOCK)),
    Row("1. what differs by place does not: its r in the last block, LaPE", +1, LAPE,
        at("place_correlation", LAST_BLOCK)),
    Row("1. the second less the first", +1, LAPE, parts_differ),
    Row("2. the last norm's Var(β): PVG − MPVG", +1, {"gap pvg": 1, "gap mpvg": -1}, at("beta_variance", LAST_NORM),
        "+0.2194", 4),
    Row("2. learnt there: ln Var(β + c) of MPVG − ln Var(β) of PVG", 0, {"gap mpvg": 1, "gap pvg": -1},
        log_learnt_at_last_norm, margin=math.log(1.25)),
    Row("2. learnt in blocks: ln Var(β + shared PE) of LaPE − ln Var(β) of PE once", 0, {"gap lape": 1, "gap once": -1},
        log_learnt_in_blocks, margin=math.log(1.25)),
    Row("3. without the shared part: r in the last block", 0, {"gap mpvg, without the shared part": 1},
        at("correlation", LAST_BLOCK), margin=0.1),
    Row("3. and no accuracy lost", 0, {"gap mpvg, without the shared part": 1, "gap mpvg": -1}, top1, margin=0.5),
    Row("3. the shared part alone: accuracy lost", -1, {"gap mpvg, the shared part alone": 1, "gap mpvg": -1}, top1),
    Row("4. cosine before and after the last norm, PVG: GAP − class token", -1, {"gap pvg": 1, "cls pvg": -1},
        norm_cosine, "−0.1602", 4),
    Row("4. the last norm's Var(β), PVG: GAP − class token", +1, {"gap pvg": 1, "cls pvg": -1},
        at("beta_variance", LAST_NORM), "–", 4),
)


def equal(values: list[float], margin: float) -> tuple[float, str]:
    """p of two one-sided t-tests that the mean is above -margin and below +margin, and a verdict."""
    mean = statistics.mean(values)
    above, below = p_value([value + margin for value in values]), p_value([value - margin for value in values])
    p = max(above / 2 if mean > -margin else 1 - above / 2, below / 2 if mean < margin else 1 - below / 2)
    outside = abs(mean) > margin and (below if mean > 0 else above) < 0.05
    words = "holds" if p < 0.05 else "does not hold" if outside else f"too small to tell with {len(values)} seeds"
    return p, f"{words} (within ± {margin:.2f})"


def predictions_table(runs: list[Run]) -> list[str]:
    """Markdown: a line for each row whose cells have runs."""
    lines = ["| what should be seen, under GAP | paper, DeiT-Ti | ours, paired | seeds | p | verdict |",
             "|---|---|---|---|---|---|"]
    for row in ROWS:
        runs_of = [run for run in runs if run["cell"] in row.cells and "learnt_shift_variance" in run]
        values = paired({(run["cell"], run["seed"]): row.quantity(run) for run in runs_of}, row.cells)
        if values:
            if row.expected or len(values) < 3:
                tested = p_value(values), verdict(values, row.expected)
            else:
                tested = equal(values, row.margin)
            lines.append(claim_line(row.claim, row.theirs, values, *tested, digits=row.digits))
    return lines if len(lines) > 2 else []
