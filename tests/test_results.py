"""Every figure on results/README.md and in the README comes from the JSON files in results/."""
import json
import statistics

import grid_findings
import grid_report
import pytest
import results_page
from conftest import ROOT
from grid_cells import MAIN

from mpvg_minimal.tools import cost


def flat(path: str) -> str:
    """The page's words, with plain minus signs."""
    return " ".join((ROOT / path).read_text().split()).replace("−", "-")


def measured(name: str):
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def test_the_page_is_what_its_command_writes():
    assert results_page.page() == (ROOT / "results" / "README.md").read_text()


def test_the_costs_on_the_page_by_another_way():
    rows = [row for kind in ("", "_compiled") for row in measured(f"cost_cpu{kind}")["rows"]]
    page = flat("results/README.md")
    control = [row[f"{what}_ratio"] for row in rows for what in ("train", "inference") if row["variant"] == cost.COPY]
    assert f"its true ratio is 1, we measured {min(control):.3f} to {max(control):.3f}" in page
    timm = [sorted(row[f"{what}_ratio"] for row in rows for what in ("train", "inference")
                   if row["variant"] == "timm" and row["compiled"] == compiled) for compiled in (False, True)]
    eager, compiled = (f"{ratios[0]:.3f} to {ratios[-1]:.3f}" for ratios in timm)
    assert f"it runs at {eager} of our images/s, compiled at {compiled}." in page


def test_the_speeds_on_the_page_by_another_way():
    kept, plain = (measured(f"{folder}throughput_cpu_vit_nano_batch")["batch"] for folder in ("", "plain/"))
    lite, nano = (measured(f"throughput_cpu_vit_{size}_processes")["processes"]["efficiency"]
                  for size in ("lite", "nano"))
    relative = ", ".join(f"{kept[size] / kept['128']:.2f}" for size in ("256", "512", "1024", "2048", "4096"))
    page = flat("results/README.md")
    share = measured("throughput_cpu_vit_lite_limit")["limit"]["share"]
    for sentence in (f"reaches {share:.2f} of the FLOP/s of a 2048",
                     f"`vit_nano` trains at {relative} images/s with 256",
                     f"4096 falls to {plain['4096'] / plain['128']:.2f}.",
                     f"do {lite:.2f} of twice the work of one", f"or {nano:.2f} for `vit_nano`"):
        assert sentence in page, sentence


@pytest.mark.parametrize("grid, file, cells", [
    ("twelve", "README.md", [
        "gap lape - gap once", "cls lape - cls once", "gap mpvg - gap pvg", "gap once, PE std 0.2 - gap once",
        "gap mpvg, free bias - gap mpvg"]),
    ("reduced", "README.md", ["gap lape - gap once", "cls lape - cls once"]),
    ("reduced", "results/README.md", [
        "gap once, PE std 0.2 - gap once", "gap lape - gap once, PE std 0.2", "gap once - cls once",
        "gap mpvg, free bias - gap mpvg", "gap mpvg, stopped gradient - gap mpvg",
        "gap mpvg, sign flipped - gap mpvg"])])
def test_the_differences_that_are_spoken_of(grid, file, cells):
    scores = {(run["cell"], run["seed"]): run["top1"] for run in measured(f"grid_cifar10_jpeg_{grid}")}
    for one, other in (cell.split(" - ") for cell in cells):
        difference = grid_report.mean_and_error(grid_report.paired(scores, {one: 1, other: -1}), sign="+")
        assert difference in flat(file), (one, other)


def test_the_seeds_and_the_p_values_that_the_prose_speaks_of():
    scores = {}
    for run in measured("grid_cifar10_jpeg_twelve"):
        scores.setdefault(run["cell"], {})[run["seed"]] = run["top1"]
    fewest = min(len(scores[cell]) for cell in MAIN)
    for file in ("README.md", "tutorials/04_class_token_or_gap.md"):
        assert f"{['five', 'six', 'seven', 'eight', 'nine', 'ten'][fewest - 5]} seeds or more" in flat(file)
    gap, cls = ([scores[f"{pool} lape"][seed] - scores[f"{pool} once"][seed] for seed in scores["gap lape"]]
                for pool in ("gap", "cls"))
    less = [one - other for one, other in zip(gap, cls, strict=True)]
    found = f"({grid_report.mean_and_error(less, sign='+')}, p {grid_report.p_value(less):.2f})"
    last_norm = [top1 - scores["gap pvg"][seed] for seed, top1 in scores["gap mpvg"].items()]
    lape = f"LaPE {grid_report.mean_and_error(gap[:3], sign='+')}"
    for words in (found, lape, f"{grid_report.mean_and_error(last_norm)} (p {grid_report.p_value(last_norm):.2f})"):
        assert words in flat("README.md")


def test_the_errors_of_the_first_nine_claims():
    scores = {(run["cell"], run["seed"]): run["top1"] for run in measured("grid_cifar10_jpeg_twelve")}
    differences = [grid_report.paired(scores, weights) for _, _, weights, _ in grid_report.CLAIMS[:9]]
    assert max(statistics.stdev(values) / len(values) ** 0.5 for values in differences) <= 0.2
    fewest, most = min(map(len, differences)), max(map(len, differences))
    words = f"With {fewest} to {most} seeds, the errors of the first nine claims are at most 0.2."
    assert words in flat("results/README.md")


def test_the_correlations_that_the_readme_speaks_of():
    last = [run["epochs"][-1] for run in measured("grid_cifar10_jpeg_twelve") if run["cell"] == "gap lape"]
    for key in ("correlation", "shared_correlation", "place_correlation"):
        found = grid_report.mean_and_error([epoch[key][-2] for epoch in last])
        assert found in flat("README.md"), (key, found)
    four = [run["epochs"][-1] for run in measured("grid_cifar10_jpeg_twelve") if run["cell"] == "gap lape, 4 blocks"]
    found = grid_report.mean_and_error([epoch["correlation"][-2] for epoch in four])
    assert f"four blocks trained as the twelve have r = {found}" in flat("README.md")


def test_the_readme_is_short():
    assert len(flat("README.md").split()) <= 1300


# What the runs say beyond accuracy, from runs made up by hand

def run(cell: str, seed: int, r: list, shared: float, places: float, **more) -> dict:
    epoch = {"correlation": r, "shared_correlation": [shared] * len(r), "place_correlation": [places] * len(r),
             "beta_variance": [0.0, 0.02, 0.03], "shift_variance": [0.0, 0.02, 0.09], "norm_cosine": 0.5}
    return {"cell": cell, "seed": seed, "settings": {}, "epochs": [epoch], "learnt_shift_variance": [0, 0, 0.07],
            "zeroed": {"nothing": 60.0, "block 1": 55.0, "block 2": 40.0, "last norm": 59.0, "all": 10.0}, **more}


def test_findings_of_made_up_runs():
    runs = [run("gap mpvg", 0, [None, -0.2, -0.4], -0.9, 0.1), run("gap mpvg", 1, [None, -0.4, -0.6], -0.7, 0.3)]
    by_place, shifts = grid_findings.correlations(runs), grid_findings.shifts(runs)
    assert by_place[2:] == ["| gap mpvg | – | -0.30 ± 0.10 | -0.50 ± 0.10 | -0.80 ± 0.10 | +0.20 ± 0.10 |"]
    assert shifts[2:] == ["| gap mpvg | 0.0300 ± 0.0000 | 0.0900 ± 0.0000 | 0.0700 ± 0.0000 | 0.500 ± 0.000 |"]
    assert "| gap mpvg | -50.0 ± 0.0 | block 2: -20.0 ± 0.0 | -1.0 ± 0.0 |" in grid_findings.zeroed(runs)
    deeper = [run("gap lape, 1 blocks", 0, [-0.1, None], 0, 0), *runs, run("gap lape", 0, [-0.1, -0.2, None], 0, 0),
              run("gap lape", 1, [-0.1, -0.9, None], 0, 0)]     # of a seed that one depth alone has
    assert grid_findings.by_depth(deeper)[2:] == [
        "| 1 | 1, 0 | -0.10 (one run) | – | – |", "| 2 | 1, 2 | -0.20 (one run) | -0.30 ± 0.10 | -0.50 ± 0.10 |"]
    assert grid_findings.correlations([]) == grid_findings.shifts([]) == grid_findings.zeroed([]) == []
