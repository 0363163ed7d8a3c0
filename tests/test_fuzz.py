"""Flags and values drawn at random for every command, from its own parser: one line and an exit code, whatever comes.

All but the training, the measuring and the drawing themselves is real.
"""
import argparse
import contextlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from runs import in_child, parsers_of, small_shapes

from mpvg_minimal.data import sources
from mpvg_minimal.runtime.errors import one_line_errors

COMMANDS = ("train_cifar", "train_imagenet", "mpvg_minimal.dense.__main__", "mpvg_minimal.tools.plots",
            "mpvg_minimal.tools.export", "mpvg_minimal.tools.cost", "mpvg_minimal.tools.throughput", "grid",
            "dense_grid")
NASTY = ("", " ", "-1", "0", "1", "2", "3.5", "1e400", "1e38", "nan", "inf", "9" * 12, "9" * 30, "9" * 500, "x" * 300,
         "x/" * 3000, "a/b", "\0", "\udce4", "\u00e9", "..", "/dev/null", "/proc/self/mem", "--", "-", "None", "{}",
         "%s", "cpu", "cuda:99", "line\nline", "\u202e")
SECONDS = 20            # of one command; it is expected to need a part of one
METRICS = dict.fromkeys(("top1", "mean_iou", "pixel_accuracy", "ap", "ap50", "train_loss", "test_loss"), 1.0)


def drawn(draw: random.Random, parsers: list[argparse.ArgumentParser], there: list[str]) -> list[str]:
    """A command line: flags and positional arguments with good or bad values, in any order, some of them twice."""
    actions = [action for parser in parsers for action in parser._actions if action.dest != "help"]
    required = [action for action in actions if action.required or not action.option_strings]
    words = []
    for action in [*draw.choices(actions, k=draw.randint(0, 5)), *(required if draw.random() < 0.9 else [])]:
        good = [str(choice) for choice in action.choices or there]
        values = [] if action.nargs == 0 else [draw.choice(good if draw.random() < 0.6 else NASTY)
                                               for _ in range(draw.choice((1, 1, 1, 1, 1, 2, 0)))]
        words += ([draw.choice(action.option_strings)] if action.option_strings else []) + values
    return words + ([draw.choice(NASTY)] if draw.random() < 0.05 else [])


def stand_ins(module, folder: Path) -> None:
    """In place of what takes long or leaves the machine; and the data sets of the tests."""
    sources.open_shapes = small_shapes

    def offline(*_, **__):
        raise urllib.error.URLError("no network in this test")
    urllib.request.urlopen = offline
    for name, value in {
            "fit": lambda *_, **__: [METRICS], "draw_curves": None, "draw_predictions": None,
            "draw_counterbalance": None, "export": lambda *_: {"model.pt2": 0.0}, "measure": lambda *_, **__: [],
            "PARTS": dict.fromkeys(getattr(module, "PARTS", ()), lambda _: {}),
            "results": lambda *_: iter(()), "in_children": lambda *_: iter(()), "JSON": folder / "dense.json",
            "TABLE": folder / "dense.md"}.items():
        if hasattr(module, name):
            setattr(module, name, value or (lambda *_, **__: None))


def try_all(name: str, count: int, seed: int, there: list[str], folder: Path) -> None:
    """Call the command `count` times. A call with something wrong is a line of JSON; the last line has the codes."""
    def too_long(*_):
        raise TimeoutError(f"not ended after {SECONDS} s")

    module, draw, codes, original = importlib.import_module(name), random.Random(f"{name} {seed}"), {}, sys.stdout
    parsers = parsers_of(module)
    stand_ins(module, folder)
    os.chdir(folder)
    signal.signal(signal.SIGALRM, too_long)
    for _ in range(count):
        words, code, problem, err = drawn(draw, parsers, there), 0, None, io.StringIO()
        sys.argv = [name, *words]
        signal.alarm(SECONDS)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err), one_line_errors():
                module.main()
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"[:300]
        signal.alarm(0)
        said = err.getvalue()
        lines = [line for line in said.splitlines() if "Warning" not in line and not line.startswith(" ")]
        if code in (1, 2) and (len(lines) != 1 or not lines[0].startswith("error: ") or len(said) > 2000):
            problem = f"not one line: {said[:300]!r}"
        if code not in (0, 1, 2) or "Traceback" in said:
            problem = f"exit code {code}, {said[:300]!r}"
        codes[str(code)] = codes.get(str(code), 0) + 1
        if problem:
            print(json.dumps({"command": [word[:60] for word in sys.argv], "problem": problem}), file=original)
    print(json.dumps({"codes": codes}), file=original)


@pytest.fixture(scope="module")
def there(finished, tmp_path_factory) -> list[str]:
    """Names of files and folders that are there: data, a run, its checkpoint, others in their place; and numbers."""
    base = tmp_path_factory.mktemp("there")
    shutil.copytree(finished / "data", base / "data")
    shutil.copytree(finished / "folder", base / "run")
    (base / "empty").mkdir()
    (base / "file").write_text("text")
    os.mkfifo(base / "pipe")
    names = ("data", "run", "run/checkpoint.pt", "run/config.json", "empty", "file", "pipe", "file/below", "missing")
    return [*(str(base / name) for name in names), "1", "2", "16", "32", "64", "0.5"]


@pytest.mark.promise("fuzz")
@pytest.mark.parametrize("count, seed", [(40, 0), pytest.param(600, 1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", COMMANDS)
def test_any_flags(name, count, seed, there, tmp_path):
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    end = in_child(lambda: try_all(name, count, seed, there, folder), timeout=600)
    assert end.code == 0, (end.code, end.out, end.err[-2000:])
    *problems, last = end.out.splitlines()
    assert not problems, "\n".join(problems[:5])
    codes = json.loads(last)["codes"]
    assert sum(codes.values()) == count and codes["2"] > 10
