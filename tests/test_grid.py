import json
import math
import os
import re
import statistics
import sys
from dataclasses import asdict
from unittest.mock import patch

import grid
import grid_cells
import grid_figures
import grid_report
import pytest
import torch
from conftest import ROOT
from equations import randomize
from runs import in_child

from mpvg_minimal import PESchedule
from mpvg_minimal.runtime.errors import UserError
from mpvg_minimal.training import flags, recipes

BASE = asdict(recipes.SHAPES) | {"num_classes": 16, "image_size": 32, "seed": 3, "pool": "cls", "pe": "once",
                                  "pe_init": "learned"}


def built(cell: str):
    return grid.build(BASE | grid.CELLS[cell]).eval()


def test_the_grid_holds_what_is_to_be_compared():
    assert [list(group) for group in grid.GROUPS.values()][0] == [
        f"{pool} {pe}" for pool in ("cls", "gap") for pe in ("none", "once", "lape", "pvg", "mpvg")]
    assert sum(map(len, grid.GROUPS.values())) == len(grid.CELLS)               # no name twice
    for weights in (weights for _, _, weights, _ in grid_report.CLAIMS):
        assert set(weights) <= set(grid.CELLS) and sum(weights.values()) == 0


FITTING = [cell for cell in grid.CELLS if cell not in grid.GROUPS["middle"]]    # p_9 needs nine blocks


@pytest.mark.parametrize("cell", FITTING)
def test_a_cell_is_what_its_name_says_and_starts_from_the_same_weights(cell):
    settings = grid.CELLS[cell]
    depth = {"depth": settings["depth"]} if "depth" in settings else {}
    model, once = built(cell), grid.build(BASE | grid.CELLS["gap once"] | depth)
    assert model.pool == cell.split()[0] == settings["pool"]
    pe = settings["pe"]
    assert model.pe.schedule == (PESchedule.named(pe) if isinstance(pe, str) else PESchedule(**pe))
    own, shared = model.state_dict(), once.state_dict()
    for name in own.keys() & shared.keys() - {"pe.pos_embed"}:
        assert torch.equal(own[name], shared[name]), name
    assert len(own.keys() & shared.keys()) > 50 and len(model.blocks) == settings.get("depth", 4)
    if isinstance(model.pe.pos_embed, torch.nn.Parameter):
        std = settings.get("pe_std", 0.02)
        start = grid.build(BASE | grid.CELLS["gap once"] | {"pe_std": std}).pe.pos_embed
        assert torch.equal(model.pe.pos_embed[:, -start.shape[1]:], start)
        torch.testing.assert_close(start, once.pe.pos_embed * std / 0.02)


def test_switches_differ_from_mpvg_in_what_they_name():
    mpvg, cells = PESchedule.named("mpvg"), grid.GROUPS["switches"] | grid.GROUPS["middle"]
    changed = {name.removeprefix("gap mpvg, "): PESchedule(**cell["pe"]) for name, cell in cells.items()}
    assert changed == {
        "not at the input": PESchedule(False, 2, True, "initial"), "from block 1": PESchedule(True, 1, True, "initial"),
        "not hierarchical": PESchedule(True, 2, False, "initial"),
        "last norm: p_L": PESchedule(True, 2, True, "delivered"), "no block": PESchedule(True, None, False, "initial"),
        "LaPE with the last norm": PESchedule(False, 1, True, "initial"),
        "last norm: p_9": PESchedule(True, 2, True, 9), "last norm: p_6": PESchedule(True, 2, True, 6)}
    assert mpvg not in changed.values()


@torch.no_grad()
def test_one_part_of_the_delivered_pe():
    """Of what a block and the last norm receive: its mean over tokens alone, or all but that."""
    whole, rest, shared = (randomize(built(f"gap mpvg{end}")) for end in
                           ("", ", without the shared part", ", the shared part alone"))
    for model in (rest, shared):
        weights = {name.replace("norms.1.", "norms.1.norm."): weight for name, weight in whole.state_dict().items()}
        model.load_state_dict({name: weights.get(name, whole.state_dict().get(name.replace("norm.norm.", "norm.")
                                                                              .replace(".norm.", "."), weight))
                               for name, weight in model.state_dict().items()})
    first = whole.pe()[1][1]
    mean = first.mean(1, keepdim=True)
    torch.testing.assert_close(rest.pe()[1][1], first - mean)
    torch.testing.assert_close(shared.pe()[1][1], mean.expand_as(first))
    assert all(pe.std(1).max() < 1e-5 for pe in shared.pe()[1][1:]) and first.std(1).max() > 0.1
    assert shared.last_norm.pe_norm(shared.pe.pos_embed).std(1).max() < 1e-5


def test_the_plan_holds_the_papers_tables_and_is_what_was_trained(monkeypatch):
    monkeypatch.setattr("sys.argv", ["grid.py", "--twelve"])
    jobs = grid.planned(grid.parse())
    assert {cell for _, _, weights, _ in grid_report.CLAIMS for cell in weights} <= {cell for cell, _ in jobs}
    assert jobs[:40] == [(cell, seed) for seed in range(5) for cell in grid_cells.MAIN]
    trained = json.loads((ROOT / "results" / "grid_cifar10_jpeg_twelve.json").read_text())
    assert sorted(jobs) == sorted((run["cell"], run["seed"]) for run in trained)    # each once


def gradients(model, images):
    model.zero_grad()
    model(images).square().sum().backward()
    return model.pe.pos_embed.grad.clone()


def test_where_a_gain_could_come_from():
    """Each variant against the equation y = LN(x) + c with c = mean over tokens of LN'(p), taken apart by hand."""
    torch.manual_seed(1)
    images = torch.randn(4, 3, 32, 32)
    mpvg, bias, stopped, flipped = (built(name) for name in
                                    ("gap mpvg", *(f"gap mpvg, {last}" for last in
                                                   ("free bias", "stopped gradient", "sign flipped"))))
    c = mpvg.last_norm.pe_norm(mpvg.pe.pos_embed).mean((0, 1)).detach()
    assert c.abs().max() > 0.1
    torch.testing.assert_close(bias(images), mpvg(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(stopped(images), mpvg(images), rtol=0, atol=0)
    # W (f + c) + b and W (f - c) + b differ by 2 W c
    twice = (2 * mpvg.head.weight @ c).expand(4, -1)
    torch.testing.assert_close(mpvg(images) - flipped(images), twice, rtol=0, atol=1e-5)
    # without the path through the last norm, PE learns as it would if c were a constant, or a parameter
    torch.testing.assert_close(gradients(stopped, images), gradients(bias, images), rtol=1e-3, atol=1e-6)
    assert (gradients(mpvg, images) - gradients(stopped, images)).abs().max() > 1e-3
    bias(images).sum().backward()
    assert bias.last_norm.pe_norm.bias.grad.abs().sum() > 0


@torch.no_grad()
def test_zeroed_takes_away_exactly_w_c():
    model = randomize(built("gap mpvg"))
    images = torch.randn(2, 3, 32, 32)
    before = model(images)
    c = model.last_norm.pe_norm(model.pe.pos_embed).mean((0, 1))
    model.pe.register_forward_hook(grid.without({"last norm"}))
    torch.testing.assert_close(before - model(images), (model.head.weight @ c).expand(2, -1), rtol=1e-3, atol=1e-4)


def test_means_errors_and_paired_differences():
    assert grid_report.mean_and_error([]) == "–"
    assert grid_report.mean_and_error([1.5]) == "1.50 (one run)"
    values = [1.0, 2.0, 6.0]                                    # mean 3, variance (4 + 1 + 9) / 2 = 7
    assert grid_report.mean_and_error(values, sign="+") == f"+3.00 ± {math.sqrt(7 / 3):.2f}"
    scores = {("a", 0): 5.0, ("a", 1): 7.0, ("a", 2): 1.0, ("b", 1): 4.0, ("b", 0): 3.5}
    assert grid_report.paired(scores, {"a": 1, "b": -1}) == [1.5, 3.0]          # seed 2 has no partner
    assert grid_report.paired(scores, {"a": 1, "c": -1}) == []


@pytest.mark.parametrize("t, values, p", [
    (12.706, [-1.0, 1.0], 0.05), (0.0, [-1.0, 1.0], 1.0),
    (2.776, [-2.0, -1.0, 0.0, 1.0, 2.0], 0.05), (4.604, [-2.0, -1.0, 0.0, 1.0, 2.0], 0.01),
    (8.610, [-2.0, -1.0, 0.0, 1.0, 2.0], 0.001)])
def test_p_values_against_tables_of_t(t, values, p):
    """values: their mean is 0; moved by t standard errors, t is what the test sees."""
    moved = [value + t * statistics.stdev(values) / math.sqrt(len(values)) for value in values]
    assert grid_report.p_value(moved) == pytest.approx(p, rel=2e-3)


@pytest.mark.parametrize("values, expected, words", [
    ([1.0, 1.1], +1, "too few seeds"), ([1.0, 1.1, 0.9], +1, "holds"),
    ([1.0, 1.1, 0.9], -1, "does not hold: the opposite"), ([1.0, -1.1, 0.9], +1, "too small to tell with 3 seeds")])
def test_verdicts(values, expected, words):
    assert grid_report.verdict(values, expected) == words
    assert grid_report.p_value([0.0, 0.0]) == 1.0 and grid_report.p_value([2.0, 2.0]) == 0.0


def made_up(cell, seed, top1, zeroed=None):
    balance = [None, -0.5, 0.25] if cell.split()[1] != "once" else [None] * 3
    settings = {"model": "vit_nano", "limit": None, "epochs": 2, "batch_size": 8}
    return {"cell": cell, "seed": seed, "top1": top1, "zeroed": zeroed, "settings": settings, "machine": "a machine",
            "data": "a data set", "environment": {"commit": "abc1234"}, "epochs": [{"correlation": balance}]}


def test_the_table_of_made_up_runs():
    runs = [made_up("cls once", 0, 50), made_up("cls once", 1, 52), made_up("gap once", 0, 53),
            made_up("gap once", 1, 54), made_up("gap mpvg", 0, 55, 45), made_up("gap mpvg", 1, 59, 49),
            made_up("gap mpvg, free bias", 0, 54), made_up("gap mpvg, 4 blocks", 1, 50)]
    text = grid_report.table(runs, grid.GROUPS, command="the command")
    assert "| gap mpvg | 2 | 57.00 ± 2.00 | +3.50 ± 1.50 | gap once | -10.00 ± 0.00 |" in text
    assert "| gap mpvg, free bias | 1 | 54.00 (one run) | -1.00 (one run) | gap mpvg | – |" in text
    assert "| gap mpvg, 4 blocks | 1 | 50.00 (one run) | -9.00 (one run) | gap mpvg | – |" in text
    assert "| GAP alone helps | +0.26 | +2.50 ± 0.50 | 2 | 0.126 | too few seeds |" in text
    assert "lape" not in text and "`the command`; vit_nano on a data set, all images, 2 epochs" in text


def axes(draw, *arguments):
    """The axes of the figure that `draw` draws and writes."""
    with patch.object(grid_figures.plt, "close") as close:
        draw(*arguments)
    assert arguments[-1].stat().st_size > 5000
    return close.call_args.args[0].axes


def test_the_figure_shows_every_cell_and_the_mean_correlation(tmp_path):
    runs = [made_up("gap once", 0, 53), made_up("gap mpvg", 0, 55), made_up("gap mpvg", 1, 59)]
    left, middle, right = axes(grid_figures.draw, runs, tmp_path / "figure.png")
    assert [label.get_text() for label in left.get_yticklabels()] == ["gap once", "gap mpvg"]
    drawn = {tuple(line.get_xdata()) for line in left.get_lines()}
    assert (53,) in drawn and (55, 59) in drawn and (57.0,) in drawn
    assert (2.0,) in {tuple(line.get_xdata()) for line in middle.get_lines()}           # 55 - 53, the one shared seed
    (line, *_), label = right.containers[0].lines, right.get_legend_handles_labels()[1]
    assert label == ["gap mpvg"] and list(line.get_ydata()) == [-0.5, 0.25] and list(line.get_xdata()) == [1, 2]


def test_the_figure_of_depth(tmp_path):
    runs = [made_up(f"gap lape{depth}", seed, 50) for depth in (", 4 blocks", "") for seed in range(2)]
    runs.append(made_up("gap lape", 2, 50))                                             # a seed of one depth alone
    given = [-0.1, -0.2, -0.3, -0.4, None], [-0.3, -0.4, -0.5, -0.6, None], *[[-0.1] * 12 + [None]] * 2, [9.0] * 13
    for run, values in zip(runs, given):
        run["epochs"] = [{"correlation": values}]
    four, twelve, _ = axes(grid_figures.draw_depth, runs, tmp_path / "figure.png")[0].get_lines()
    assert list(four.get_ydata()) == pytest.approx([-0.2, -0.3, -0.4, -0.5]) and list(four.get_xdata()) == [1, 2, 3, 4]
    assert twelve.get_label() == "12 blocks" and list(twelve.get_ydata()) == pytest.approx([-0.1] * 12)


def test_the_development_is_the_mean_over_seeds(tmp_path):
    runs = [made_up("gap mpvg", 0, 55), made_up("gap mpvg", 1, 59)]
    runs[0]["epochs"] = [{"correlation": [None, -0.5, 0.2]}, {"correlation": [None, -0.6, 0.4]}]
    runs[1]["epochs"] = [{"correlation": [None, -0.1, 0.4]}, {"correlation": [None, 0.0, 0.8]}]
    block_2, last, _ = axes(grid_figures.draw_development, runs, tmp_path / "figure.png")[0].get_lines()
    assert (block_2.get_label(), last.get_label()) == ("block 2", "last norm")
    assert list(block_2.get_ydata()) == pytest.approx([-0.3, -0.3])
    assert list(last.get_ydata()) == pytest.approx([0.3, 0.6])


def main(tmp_path, *flags):
    command = ["grid.py", "--dataset", "shapes", "--tiny", "--name", "tiny", "--runs", tmp_path,
               "--results", tmp_path / "results"]
    with patch.object(sys, "argv", [*map(str, command), *flags]):
        grid.main()


def run_grid(tmp_path, *flags, expect=0):
    done = in_child(lambda: main(tmp_path, *flags), timeout=240)
    assert done.code == expect, done.out + done.err
    return done


def test_from_nothing_to_a_table_and_only_once(tmp_path):
    cells = ["--cells", "gap once", "gap mpvg", "gap mpvg, free bias"]
    done = run_grid(tmp_path, *cells, "--jobs", "2")
    runs = json.loads((tmp_path / "results" / "grid_tiny.json").read_text())
    assert [(run["cell"], run["seed"]) for run in runs] == [(cell, seed) for cell in cells[1:] for seed in (0, 1)]
    for run in runs:
        assert run["top1"] == run["epochs"][-1]["top1"] and run["settings"]["limit"] == 256
        assert len(run["epochs"]) == 1
        measured = ["block 2", "block 3", "block 4", "last norm"] if run["cell"] != "gap once" else []
        assert list(run["zeroed"] or {}) == (["nothing", *measured, "all"] if measured else [])
        assert run["zeroed"] is None or run["zeroed"]["nothing"] == run["top1"]             # 256 images in both
        shifts, start, learnt = (run[key] for key in ("epochs", "start_shift_variance", "learnt_shift_variance"))
        assert shifts[0]["shift_variance"][0] == shifts[0]["beta_variance"][0] == learnt[0] and start[0] == 0
        assert (start[4] > 0.01) == (run["cell"] != "gap once")         # about 1 / N before any training
        delivered = [place is not None for place in run["epochs"][0]["correlation"]]
        assert delivered == [False] * 5 if run["cell"] == "gap once" else [False, True, True, True, True]
    means = [statistics.mean(run["top1"] for run in runs if run["cell"] == cell) for cell in cells[1:]]
    for mean in means:
        assert f"| {mean:.2f} ± " in done.out
    files = {file.name for file in (tmp_path / "results").iterdir()}
    assert files == {f"grid_tiny{end}" for end in (".json", ".md", ".png", "_balance.png", "_maps_mpvg.png")}
    before = (tmp_path / "results" / "grid_tiny.json").read_text()
    again = run_grid(tmp_path, *cells)
    assert "another --name" in run_grid(tmp_path, *cells, "--seeds", "3", "--lr", "0.002", expect=2).err
    assert "---" in done.out.splitlines()[0] and "--- gap" not in again.out       # what is finished is skipped
    assert (tmp_path / "results" / "grid_tiny.json").read_text() == before


def test_an_averaged_model_is_measured_too_and_the_parent_asks_for_no_device(tmp_path, monkeypatch):
    """In the parent a question to CUDA would break all children: "Cannot re-initialize CUDA in forked subprocess"."""
    asked, original = tmp_path / "asked", flags.choose_device

    def choose_device(name):
        asked.open("a").write(f"{os.getpid()} ")
        return original(name)
    monkeypatch.setattr(flags, "choose_device", choose_device)
    monkeypatch.setattr(grid, "draw_maps", lambda *_: None)
    main(tmp_path, "--cells", "gap mpvg", "--ema", "0.5")
    assert len(set(asked.read_text().split()) - {str(os.getpid())}) == 3        # one that prepares, and two runs
    assert str(os.getpid()) not in asked.read_text().split()
    runs = json.loads((tmp_path / "results" / "grid_tiny.json").read_text())
    assert [run["settings"]["ema"] for run in runs] == [0.5, 0.5] and runs[0]["zeroed"]["nothing"] == runs[0]["top1"]
    assert runs[0]["machine"] == runs[0]["environment"]["device"]


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path):
    broken = tmp_path / "tiny" / "gap_once_seed0"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{")
    done = run_grid(tmp_path, "--cells", "gap once", expect=2)
    assert "config.json is missing or damaged" in done.err
    assert done.err.splitlines()[-1].startswith("error: these runs did not end well, see above: gap once, seed 0.")
    assert [run["seed"] for run in json.loads((tmp_path / "results" / "grid_tiny.json").read_text())] == [1]


@pytest.mark.parametrize("flags, message", [
    (["--gap"], "the grid chooses pool itself, got gap"), (["--cells", "gap nothing"], "invalid choice"),
    (["--seed", "4"], "the grid chooses seed itself, got 4"), (["--seeds", "0"], "must be at least 1"),
    (["--table"], "holds no run yet: leave out --table")])
def test_wrong_flags(tmp_path, flags, message):
    with pytest.raises(UserError, match=re.escape(message)):
        main(tmp_path, *flags)


@pytest.mark.parametrize("file", sorted((ROOT / "results").glob("grid_*.json")), ids=lambda file: file.stem)
def test_the_committed_tables_are_made_of_the_committed_runs(file):
    runs = grid.read_runs(file, grid.NEEDED)
    text = file.with_suffix(".md").read_text()
    command = text.splitlines()[-1].split("`")[1]
    assert grid_report.table(runs, grid.GROUPS, command=command) == text
