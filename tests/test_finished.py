"""plots and export on finished runs: also those of the grid, with data elsewhere, and where nothing can be written."""
import builtins
import shutil
import sys
from dataclasses import replace

import grid_cells
import pytest
import torch
from conftest import ROOT
from runs import FOLDER, Ended, one_line, run, small_files

import train_imagenet
from mpvg_minimal.training import checkpoint, recipes
from mpvg_minimal.training.run import start_run

TOOLS = ("plots", "export")
CELLS = ("gap mpvg, free bias", "gap mpvg, the shared part alone")
MORE = ("gap mpvg, not at the input", "gap mpvg, stopped gradient", "gap mpvg, sign flipped",
        "gap mpvg, without the shared part", "gap once, PE std 1.0")


def tool(name: str, *flags, fault=None) -> Ended:
    return run(f"mpvg_minimal.tools.{name}", *flags, *(("--images", 8) if name == "plots" else ()), fault=fault)


@pytest.fixture(scope="module", autouse=True)
def export_is_ready():
    """torch.export imports 1,300 modules in its first call: once here, and not in each child."""
    torch.export.export(torch.nn.Linear(1, 1), (torch.zeros(1, 1),))


@pytest.mark.parametrize("cell", [*CELLS, *(pytest.param(cell, marks=pytest.mark.slow) for cell in MORE)])
def test_the_grids_own_runs(cell, tmp_path, monkeypatch):
    """Saved as the grid saves them; without one of its steps of training, so that the model is its start."""
    monkeypatch.chdir(ROOT)
    recipe = replace(recipes.SHAPES, epochs=1, batch_size=16)
    settings = {**vars(recipe), "pool": "gap", "pe_init": "learned", "num_classes": 16, "image_size": 32,
                "dataset": "shapes", "limit": None, **grid_cells.CELLS[cell], "cell": cell}
    saving = start_run(grid_cells.build(settings), recipe, out=tmp_path, device=torch.device("cpu"), settings=settings)
    saving.history = [{"epoch": 1, "train_loss": 1.0, "test_loss": 1.0, "top1": 50.0}]
    saving.save()
    (tmp_path / "config.json").write_text('{"settings": {}, "data_dir": "data", "environment": {}}')
    drawn, exported = tool("plots", tmp_path), tool("export", tmp_path)
    assert (drawn.code, exported.code) == (0, 0), (drawn, exported)
    assert "last norm" in drawn.out and (tmp_path / "counterbalance.png").stat().st_size > 5000
    assert float(exported.out.split("difference ")[1].split()[0]) < 1e-4


def test_a_run_of_the_grid_away_from_the_tutorials_is_one_line(finished, tmp_path):
    shutil.copytree(finished / "folder", tmp_path / "run")
    saved = checkpoint.read(tmp_path / "run" / "checkpoint.pt")
    saved["settings"]["cell"] = "gap mpvg"
    checkpoint.save(tmp_path / "run", saved)

    def elsewhere():
        sys.modules["tutorials.grid_cells"] = None
    one_line(tool("plots", tmp_path / "run", fault=elsewhere), "start in the folder that holds tutorials/")


def test_data_that_was_moved(finished, tmp_path):
    shutil.copytree(finished / "folder", tmp_path / "run")
    shutil.copytree(finished / "data", tmp_path / "data")
    (tmp_path / "run" / "config.json").unlink()
    one_line(tool("plots", tmp_path / "run"), "data")
    assert tool("plots", tmp_path / "run", "--data-dir", tmp_path / "data").code == 0


def read_only(folder):
    """Root may write everywhere, so the refusal is put in."""
    def fault():
        opened = builtins.open

        def refuse(path, mode="r", *args, **options):
            if str(folder) in str(path) and set(mode) & set("wxa"):
                raise PermissionError(13, "Permission denied")
            return opened(path, mode, *args, **options)
        builtins.open = refuse
    return fault


@pytest.mark.promise("disk full")
@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("trouble", ["read-only", "full"])
def test_a_folder_that_cannot_be_written(finished, tmp_path, name, trouble):
    out = tmp_path / "run"
    shutil.copytree(finished / "folder", out)
    before = sorted(path.name for path in out.iterdir())
    end = tool(name, out, fault=read_only(out) if trouble == "read-only" else small_files(4_000))
    one_line(end, "cannot be written", "make room, or make the folder writable")
    assert sorted(path.name for path in out.iterdir()) == before
    assert name == "export" or "before and after the last norm" in end.out        # printed first, then drawn


@pytest.mark.promise("disk full")
def test_the_accuracy_is_printed_though_the_curves_cannot_be_drawn(finished, tmp_path):
    def full_at_the_end():
        original = train_imagenet.draw_curves
        train_imagenet.draw_curves = lambda *args: (small_files(4_000)(), original(*args))
    end = run(*FOLDER, "--epochs", 1, "--data-dir", finished / "data", "--out", tmp_path, fault=full_at_the_end,
              curves=True)
    one_line(end, "curves.png cannot be written")
    assert end.out.splitlines()[-1].startswith("test accuracy: ")
