"""The grids' processes end with the grid, one cause is printed once, and damaged results are named."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dense_grid
import grid
import grid_jobs
import pytest
from conftest import ROOT
from runs import Ended, ended, fork, in_child, one_line, small_shapes

from mpvg_minimal.data import sources
from mpvg_minimal.runtime.errors import UserError
from mpvg_minimal.runtime.signals import catch_signals

GRID = ("--dataset", "shapes", "--tiny", "--cells", "gap once", "gap mpvg", "--name", "tiny")


def run_grid(tmp_path: Path, *flags, module=grid) -> Ended:
    folders = ("--runs", tmp_path / "runs", "--results", tmp_path) if module is grid else ()

    def function():
        sources.open_shapes = small_shapes
        sys.argv = ["grid.py", *map(str, (*folders, *flags))]
        module.main()
    return in_child(function)


@pytest.mark.promise("preemption")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_save_and_end_with_their_parent(tmp_path, number):
    def work(name: str):
        with catch_signals() as interrupt:
            (tmp_path / f"{name}.began").touch()
            while not interrupt.number:
                time.sleep(0.01)
        (tmp_path / f"{name}.saved").write_text(str(interrupt.number))

    parent = fork(lambda: list(grid_jobs.in_children(work, [("a",), ("b",)], at_once=2)))
    while len(list(tmp_path.glob("*.began"))) < 2:
        time.sleep(0.01)
    os.kill(parent.process.pid, number)
    assert ended(parent).code == -number
    until = time.monotonic() + 20
    while [path.read_text() for path in tmp_path.glob("*.saved")] != ["15", "15"]:
        assert time.monotonic() < until, "a child outlived its parent"
        time.sleep(0.01)


@pytest.mark.promise("bad flags")
def test_one_cause_is_printed_once_and_the_others_go_on():
    def work(name: str, seed: int):
        if seed == 1:
            raise UserError("no room")
        if seed == 2:
            os._exit(9)
    jobs = [(name, seed) for seed in range(3) for name in "ab"]
    end = in_child(lambda: [print(*job) for job in grid_jobs.in_children(work, jobs)])
    assert end.out.splitlines() == ["a 0", "b 0"] and end.code == 2
    assert end.err.splitlines() == [
        "error: no room", "error: a run ended with exit code 9",
        "error: these runs did not end well, see above: a, seed 1; b, seed 1; a, seed 2; b, seed 2. The same command "
        "goes on"]


@pytest.mark.promise("bad flags")
def test_the_same_wrong_flag_of_all_cells_is_printed_once(tmp_path):
    end = run_grid(tmp_path, *GRID, "--batch-size", 100_000)
    assert end.code == 2 and end.err.count("\n") == 2 and "these runs did not end well" in end.err, end


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("module, file, flags", [
    (grid, "grid_tiny.json", ("--dataset", "shapes", "--name", "tiny", "--table")),
    (dense_grid, "dense_shapes.json", ("--table",))])
def test_damaged_results_are_named(tmp_path, monkeypatch, module, file, flags):
    """Cut, of another type, and every needed key missing or of another type."""
    monkeypatch.setattr(dense_grid, "JSON", tmp_path / "dense_shapes.json")
    monkeypatch.setattr(dense_grid, "TABLE", tmp_path / "dense_shapes.md")
    name = "dense_shapes.json" if module is dense_grid else "grid_shapes.json"
    runs = json.loads((ROOT / "results" / name).read_text())
    damaged = ["", "{", "3", '"text"', "[3]", "{}", "[" * 100_000, '{"a": {}}', "[null]"]
    for key in module.NEEDED:
        damaged += [json.dumps([*runs[:2], {**runs[2], key: [runs[2]]}]),
                    json.dumps([{k: value for k, value in runs[0].items() if k != key}])]
    path = tmp_path / file
    for text in damaged:
        path.write_text(text)
        with pytest.raises(UserError, match=f"{file} is damaged"):
            monkeypatch.setattr(sys, "argv", ["grid.py", *flags, *(("--results", str(tmp_path)) if module is grid
                                                                  else ())])
            module.main()
    path.unlink()
    path.mkdir()
    one_line(run_grid(tmp_path, *flags, module=module), f"{file} is damaged (IsADirectoryError")


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("module", [grid, dense_grid])
@pytest.mark.parametrize("flags, part", [
    (("--nosuch",), "--nosuch"), (("--seeds", "0"), "at least 1"), (("--seeds", "9" * 500), "(500 characters)"),
    (("--runs", ""), "--runs"), (("--runs", "x" * 300), "too long")])
def test_a_wrong_flag_is_one_line(tmp_path, module, flags, part):
    one_line(run_grid(tmp_path, *flags, module=module), part)


@pytest.mark.promise("mismatch")
def test_finished_cells_with_other_settings_are_refused(tmp_path):
    """Also where no run is left to be made."""
    runs = [{"cell": "gap once", "seed": seed, "top1": 50.0, "environment": {"commit": ""}, "machine": "", "data": "",
             "epochs": [{"correlation": []}], "zeroed": None,
             "settings": {"lr": 0.001, "model": "", "limit": 0, "epochs": 1, "batch_size": 1}} for seed in (0, 1)]
    (tmp_path / "grid_tiny.json").write_text(json.dumps(runs))
    one_line(run_grid(tmp_path, *GRID[:5], "--name", "tiny", "--lr", "0.5"), "holds runs with", "another --name")


@pytest.mark.promise("disk full")
def test_results_that_cannot_be_written_are_named_before_the_training(tmp_path):
    (tmp_path / "file").write_text("")
    one_line(run_grid(tmp_path, *GRID, "--results", tmp_path / "file"), "cannot be")
    assert not (tmp_path / "runs").exists()


IN_MANY_THREADS = """
import sys
import torch
sys.path.insert(0, "tutorials")
import grid_jobs

def compute(threads, _):
    torch.set_num_threads(threads)
    assert torch.get_num_threads() == 2
    assert float((torch.ones(4000, 400).exp() * 0).sum()) == 0
    print("done", flush=True)

torch.set_num_threads(2)
threads = grid_jobs.one_thread()
assert threads == 2 and float((torch.ones(4000, 400).exp() * 0).sum()) == 0
list(grid_jobs.in_children(compute, [(threads, 0)]))
"""


def test_children_may_compute_in_many_threads():
    """Forked after OpenMP has started threads, they would hang in the first parallel loop. An interpreter of its own:
    in this process other tests may have started such threads already."""
    done = subprocess.run([sys.executable, "-c", IN_MANY_THREADS], cwd=ROOT, capture_output=True, text=True,
                          timeout=120)
    assert done.stdout == "done\n", done.stderr
