"""The table of predictions: values by hand, and the test of equality against published quantiles of Student's t."""
import math
import statistics

import pytest
from grid_cells import CELLS
from grid_predictions import ROWS, equal, predictions_table

T_95 = {3: 2.920, 5: 2.132}                     # one-sided 5 % of Student's t with n - 1 degrees of freedom


def run(cell, seed, *, top1=60.0, r=(-0.1, -0.3, -0.5), shared=-0.9, places=-0.4, beta=0.2, learnt=0.2, cosine=0.9):
    epoch = {"correlation": [*r, -0.2], "shared_correlation": [0, 0, shared, 0], "norm_cosine": cosine,
             "place_correlation": [0, 0, places, 0], "beta_variance": [0.1, 0.1, 0.1, beta]}
    return {"cell": cell, "seed": seed, "top1": top1, "epochs": [{}, epoch],
            "learnt_shift_variance": [0.1, 0.1, 0.1, learnt], "zeroed": {"nothing": 60, "all": 20, "last norm": 59}}


@pytest.mark.parametrize("seeds", T_95)
@pytest.mark.parametrize("mean", [0.3, -0.3])
def test_equal_holds_exactly_where_the_90_percent_interval_lies_within_the_margin(seeds, mean):
    values = [mean + 0.1 * (seed - (seeds - 1) / 2) for seed in range(seeds)]
    reach = abs(mean) + T_95[seeds] * statistics.stdev(values) / math.sqrt(seeds)
    assert equal(values, reach * 1.01)[1].startswith("holds")
    assert equal(values, reach * 0.99)[1] == f"too small to tell with {seeds} seeds (within ± {reach * 0.99:.2f})"
    assert equal(values, reach)[0] == pytest.approx(0.05, rel=1e-2)
    assert equal(values, 0.01)[1] == "does not hold (within ± 0.01)"


def test_a_row_is_the_paired_sum_of_its_cells():
    """Var(β): PVG 0.2, 0.3, 0.4 and MPVG 0.1, 0.1, 0.1: 0.1, 0.2, 0.3 paired."""
    runs = [run(cell, seed, beta=beta) for cell, betas in (("gap pvg", (0.2, 0.3, 0.4)), ("gap mpvg", (0.1, 0.1, 0.1)))
            for seed, beta in enumerate(betas)]
    [line] = [line for line in predictions_table(runs) if "PVG − MPVG" in line]
    assert line.split(" | ")[1:] == ["+0.2194", "+0.2000 ± 0.0577", "3", "0.074", "too small to tell with 3 seeds |"]


def test_each_quantity_by_hand():
    lape = run("gap lape", 0)
    found = {row.claim: row.quantity(lape) for row in ROWS}
    assert found["PE counterbalances: r in the last block, LaPE"] == -0.5
    assert found["more with depth: r in the last block − r in block 2, LaPE"] == pytest.approx(-0.2)
    assert found["at the last norm too: r there, MPVG"] == -0.2
    assert found["PE is used: points lost without it in testing, MPVG"] == -40
    assert found["and at the last norm alone"] == -1
    assert found["1. the second less the first"] == pytest.approx(0.5)
    assert found["2. learnt in blocks: ln Var(β + shared PE) of LaPE − ln Var(β) of PE once"] == math.log(0.1)


def test_rows_without_runs_are_left_out():
    assert predictions_table([]) == []
    assert len(predictions_table([run("gap lape", 0)])) == 2 + sum(row.cells == {"gap lape": 1} for row in ROWS)


def test_every_cell_exists():
    assert {cell for row in ROWS for cell in row.cells} <= CELLS.keys()
