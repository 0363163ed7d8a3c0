"""Output that goes away, Ctrl-C at any time, and other ways of starting: no traceback, and the run goes on."""
import importlib.machinery
import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from runs import FOLDER, SHAPES, Ended, before, call, in_child, run

from mpvg_minimal.runtime.errors import one_line_errors
from mpvg_minimal.training import checkpoint, loop

RUN = (*SHAPES, "--epochs", 2)


def nobody_reads(descriptor: int):
    def act():
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, descriptor)
    return act


def full(descriptor: int):
    return lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)


def whole(end: Ended, out, code: int = 0) -> None:
    assert (end.code, end.seconds < 60) == (code, True), end
    assert checkpoint.read(out / "checkpoint.pt")["epoch"] == 2 and (out / "curves.png").exists()


@pytest.mark.promise("output")
def test_nobody_reads_what_is_printed(tmp_path):
    """`| head -1`, or a closed terminal, from the second epoch on."""
    end = run(*RUN, "--out", tmp_path, fault=before(loop, "train_step", 8, nobody_reads(1)), curves=True)
    whole(end, tmp_path)
    assert end.err == ""


@pytest.mark.promise("output")
def test_a_terminal_is_closed(tmp_path):
    """SIGHUP, and both streams are gone: the run is saved."""
    def closed():
        nobody_reads(1)()
        nobody_reads(2)()
        os.kill(os.getpid(), signal.SIGHUP)
    assert run(*RUN, "--out", tmp_path, fault=before(loop, "train_step", 8, closed)).code == 129
    assert checkpoint.read(tmp_path / "checkpoint.pt")["step"] == 2


@pytest.mark.promise("output")
def test_a_full_disk_under_stdout_is_told_at_the_end(tmp_path):
    end = run(*RUN, "--out", tmp_path, fault=before(loop, "train_step", 8, full(1)), curves=True)
    whole(end, tmp_path, code=1)
    assert end.err == ("error: what was printed could not be written to stdout (OSError: [Errno 28] No space left on "
                       "device)\n")


@pytest.mark.promise("output")
def test_streams_that_are_closed_from_the_start(tmp_path):
    """Python has None in their place."""
    def closed():
        sys.stdout = sys.stderr = None
    whole(started_anew(closed, *RUN, "--out", tmp_path, curves=True), tmp_path)


def started_anew(prepare, *command, **options) -> Ended:
    """The command in a child, with its own beginning and end around it as in a new process."""
    def function():
        prepare()
        with one_line_errors():
            call(*command, **options)()
    return in_child(function)


@pytest.mark.promise("output")
def test_letters_that_the_terminal_does_not_have(finished, tmp_path):
    """The table holds dashes, and names may hold anything."""
    shutil.copytree(finished / "shapes", tmp_path / "run")

    def ascii_only():
        sys.stdout = open(1, "w", encoding="ascii", closefd=False)
    drawn = started_anew(ascii_only, "mpvg_minimal.tools.plots", tmp_path / "run", "--images", 16)
    assert drawn.code == 0 and "\\u2013" in drawn.out and drawn.err == "", drawn


COMMANDS = (["train_cifar.py"], ["train_imagenet.py"], ["tutorials/grid.py"], ["tutorials/dense_grid.py"],
            *(["-m", f"mpvg_minimal.{name}"] for name in ("dense", "tools.plots", "tools.export", "tools.cost",
                                                          "tools.throughput")))


@pytest.mark.promise("output")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-1])
def test_ctrl_c_while_torch_is_imported(command, tmp_path):
    """In place of torch stands a file that is interrupted."""
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    end = subprocess.run([sys.executable, *command], cwd=ROOT, text=True, capture_output=True, timeout=100,
                         env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (end.returncode, end.stderr) == (-signal.SIGINT, "error: interrupted, nothing was done\n")


def without_docstrings():
    """A fault: the package is imported anew, as `python -OO` would, and nobody reads what is printed."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("mpvg_minimal", "train_imagenet")]:
        del sys.modules[name]
    importlib.machinery.SourceFileLoader.get_code = lambda loader, _: compile(
        loader.get_data(loader.path), loader.path, "exec", dont_inherit=True, optimize=2)
    assert importlib.import_module("train_imagenet").__doc__ is None
    nobody_reads(1)()


@pytest.mark.promise("output")
def test_without_docstrings_and_assertions(finished, tmp_path):
    end = run(*FOLDER, "--epochs", 1, "--data-dir", finished / "data", "--out", tmp_path, fault=without_docstrings)
    assert (end.code, end.err) == (0, "")
    assert checkpoint.read(tmp_path / "checkpoint.pt")["epoch"] == 1


@pytest.mark.slow
@pytest.mark.promise("output")
def test_all_without_docstrings_and_assertions(finished, tmp_path):
    """`python -OO`, for torch too, and a reader of its output that is gone from the start."""
    line = " ".join(map(str, [sys.executable, "-OO", "train_imagenet.py", *FOLDER[1:], "--epochs", 1, "--data-dir",
                              finished / "data", "--out", tmp_path]))
    end = subprocess.run(["bash", "-c", f"{line} | true; exit ${{PIPESTATUS[0]}}"], cwd=ROOT, text=True,
                         capture_output=True, timeout=100, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert (end.returncode, end.stderr) == (0, "")
    assert checkpoint.read(tmp_path / "checkpoint.pt")["epoch"] == 1
