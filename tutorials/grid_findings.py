"""What the runs say beyond accuracy: the counterbalance, its two parts, the last norm's shift, where PE is used.

Each function gives lines of Markdown from the runs of one results/grid_NAME.json, as means over seeds with standard
errors. Cells without runs are left out, so the tables grow with the file.
"""
import statistics
from typing import Any

from grid_report import mean_and_error

Runs = list[dict[str, Any]]
SHOWN = ("cls lape", "cls pvg", "cls mpvg", "gap lape", "gap pvg", "gap mpvg", "gap mpvg, without the shared part",
         "gap mpvg, the shared part alone")


def last_epochs(runs: Runs, cell: str) -> Runs:
    return [run["epochs"][-1] for run in runs if run["cell"] == cell]


def at_place(epochs: Runs, key: str, place: int, digits: int = 2, sign: str = "+") -> str:
    values = [epoch[key][place] for epoch in epochs if epoch[key][place] is not None]
    return mean_and_error(values, digits, sign)


def correlations(runs: Runs) -> list[str]:
    """Pearson r of tokens and delivered PE by place; in the last block also of their shared parts and of the rest."""
    first = next((epochs for cell in SHOWN if (epochs := last_epochs(runs, cell))), None)
    if first is None or "shared_correlation" not in first[0]:
        return []
    depth = len(first[0]["correlation"]) - 1
    blocks = sorted(block for block in {1, 2, 3, depth // 2, depth} if 1 <= block <= depth)
    lines = [f"| cell | {' | '.join(f'block {block}' for block in blocks)} | last norm "
             f"| block {depth}, shared parts | block {depth}, what differs by place |",
             "|---" * (len(blocks) + 4) + "|"]
    for cell in SHOWN:
        if epochs := last_epochs(runs, cell):
            cells = [at_place(epochs, "correlation", place) for place in [*(block - 1 for block in blocks), -1]]
            cells += [at_place(epochs, key, depth - 1) for key in ("shared_correlation", "place_correlation")]
            lines.append(f"| {cell} | {' | '.join(cells)} |")
    return lines


def shifts(runs: Runs) -> list[str]:
    """The last norm's shift: variance over the D features of beta and of beta + c; and the cosine across the norm."""
    lines = ["| cell | Var(β) | Var(β + c) | of that learnt | cosine before and after the last norm |",
             "|---|---|---|---|---|"]
    for cell in ("cls once", "gap once", "cls pvg", "gap pvg", "gap mpvg", "gap mpvg, free bias"):
        own = [run for run in runs if run["cell"] == cell and "learnt_shift_variance" in run]
        if own:
            epochs = last_epochs(own, cell)
            learnt = mean_and_error([run["learnt_shift_variance"][-1] for run in own], 4)
            cosine = mean_and_error([epoch["norm_cosine"] for epoch in epochs], 3)
            lines.append(f"| {cell} | {at_place(epochs, 'beta_variance', -1, 4, '')} | "
                         f"{at_place(epochs, 'shift_variance', -1, 4, '')} | {learnt} | {cosine} |")
    return lines if len(lines) > 2 else []


def zeroed(runs: Runs) -> list[str]:
    """Points of top-1 that a trained model loses when PE is taken away at one place, or at all, in testing alone."""
    lines = ["| cell | all places | the block that matters most | last norm |", "|---|---|---|---|"]
    for cell in SHOWN:
        own = [run["zeroed"] for run in runs if run["cell"] == cell and isinstance(run["zeroed"], dict)]
        if own:
            change = {place: [run[place] - run["nothing"] for run in own] for place in own[0] if place != "nothing"}
            worst = min((place for place in change if place.startswith("block")),
                        key=lambda place: statistics.mean(change[place]))
            cells = [mean_and_error(change["all"], 1, "+"), f"{worst}: {mean_and_error(change[worst], 1, '+')}",
                     mean_and_error(change.get("last norm", []), 1, "+")]
            lines.append(f"| {cell} | {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


def of_depths(runs: Runs, pe: str) -> dict[int, Runs]:
    """Runs with GAP by their number of blocks, of the seeds that all these depths have: other seeds, other r."""
    found: dict[int, Runs] = {}
    for run in runs:
        depth = len(run["epochs"][-1]["correlation"]) - 1
        if run["cell"] in (f"gap {pe}", f"gap {pe}, {depth} blocks"):
            found.setdefault(depth, []).append(run)
    seeds = set.intersection(*({run["seed"] for run in own} for own in found.values())) if found else set()
    return {depth: [run for run in found[depth] if run["seed"] in seeds] for depth in sorted(found)}


def by_depth(runs: Runs) -> list[str]:
    """Pearson r in the last block and at the last norm, for models of several depths."""
    lines = ["| blocks | runs of each | LaPE, GAP: last block | MPVG, GAP: last block | MPVG, GAP: last norm |",
             "|---|---|---|---|---|"]
    of_lape, of_mpvg = (of_depths(runs, pe) for pe in ("lape", "mpvg"))
    for depth in sorted(of_lape | of_mpvg):
        lape, mpvg = ([run["epochs"][-1] for run in of.get(depth, [])] for of in (of_lape, of_mpvg))
        lines.append(f"| {depth} | {len(lape)}, {len(mpvg)} | {at_place(lape, 'correlation', depth - 1)} | "
                     f"{at_place(mpvg, 'correlation', depth - 1)} | {at_place(mpvg, 'correlation', depth)} |")
    return lines if len(lines) > 3 else []
