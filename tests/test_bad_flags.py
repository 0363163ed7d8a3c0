"""Wrong flags: one line that says what is wrong, and exit code 2, before data is opened or a model built."""
import runpy
import sys

import pytest
import torch
from conftest import ROOT
from runs import SHAPES, in_child, one_line, parsers_of, run

import train_cifar
import train_imagenet
from mpvg_minimal.data import sources
from mpvg_minimal.runtime import distributed
from mpvg_minimal.runtime.errors import UserError, one_line_errors

SCRIPTS = {"train_cifar": train_cifar, "train_imagenet": train_imagenet}


def refused(capsys, script: str, *flags, opens_data: bool = False) -> str:
    """main() in this process: exit code 2 and one line on stderr, which is returned, before anything is built."""
    def too_late(*_, **__):
        raise AssertionError("data was opened or a model built before the flags were refused")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script}.py", *map(str, flags)])
        for name in ("build_model", "start_run", "make_batches"):
            patch.setattr(SCRIPTS[script], name, too_late)
        if not opens_data:
            patch.setattr(sources, "open_source", too_late)
        with pytest.raises(SystemExit) as end, one_line_errors():
            SCRIPTS[script].main()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


# What is wrong for each flag. A flag without an entry here fails test_every_flag_has_a_case.

WHOLE = ["-1", "0", "abc", "1.5", "", "nan", "1e3", "9" * 12, "9" * 400, "9" * 5000]
WHOLE_OR_ZERO = [value for value in WHOLE if value != "0"]
NAMES = ["", "\0", "x" * 300, "y/" * 3000, None]
CASES = {
    "--data-dir": NAMES, "--model": ["vit_huge", "", None], "--gap": ["=1"], "--mpvg": ["=1"], "--pvg": ["=1"],
    "--lape": ["=1"], "--no-pe": ["=1"], "--pe-init": ["zeros", "", None], "--epochs": [*WHOLE, None],
    "--batch-size": [*WHOLE, None], "--lr": ["-1", "0", "abc", "", "nan", "inf", None],
    "--ema": ["-0.1", "1", "1.5", "abc", "", "nan", None],
    "--seed": [*(value for value in WHOLE_OR_ZERO if value != "9" * 12), str(2 ** 63), None],
    "--limit": [*WHOLE, None], "--loader": ["gpu", None],
    "--workers": [*WHOLE_OR_ZERO, None],
    "--device": ["cuda", "cuda:0", "cpu:1", "meta", "gpu", "", "-1", None], "--amp": ["bf16", "fp16", "int8", None],
    "--compile": ["=1", "max-autotune", "reduce-overhead"],
    "--save-every": ["-1", "abc", "", "nan", "inf", None], "--out": NAMES, "--resume": ["=1"],
    "--dataset": ["mnist", None],
    "--image-size": [*WHOLE, None], "--accumulate": [*WHOLE, None], "--eval": ["nosuch.pt", *NAMES],
    "--init": ["nosuch.pt", *NAMES], "--cache": NAMES,
}


FLAGS = [(name, action.option_strings[-1]) for name, script in SCRIPTS.items() for parser in parsers_of(script)
         for action in parser._actions if action.dest != "help"]


@pytest.mark.promise("bad flags")
def test_every_flag_has_a_case():
    assert {flag for _, flag in FLAGS} == set(CASES)
    assert len(FLAGS) > 35


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("script, flag, value", [(*place, value) for place in FLAGS for value in CASES[place[1]]])
def test_a_wrong_value_is_refused(script, flag, value, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    given = [flag] if value is None else [flag + value] if value.startswith("=") else [flag, value]
    out = [] if flag in ("--out", "--eval") else ["--out", tmp_path / "out"]
    line = refused(capsys, script, *out, *given)
    assert ("cannot be read as a checkpoint" if value == "nosuch.pt" else flag) in line


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flags", [("--nosuch",), ("--mpvg", "--pvg"), ("--no-pe", "--lape"), ("stray",)])
def test_unknown_and_contradicting_flags(script, flags, capsys):
    assert flags[-1] in refused(capsys, script, *flags)


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("size", ["30", "4"])
def test_an_image_size_that_the_patch_does_not_divide(size, capsys, tmp_path):
    line = refused(capsys, "train_imagenet", "--model", "vit_nano", "--image-size", size, "--out", tmp_path)
    assert f"patch size 8 does not divide image size ({size}, {size})" in line


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("file", ["config.json", "checkpoint.pt", "checkpoint.previous.pt"])
def test_an_out_that_holds_another_run(script, file, capsys, tmp_path):
    (tmp_path / file).write_text("{}")
    assert "holds a run already: --resume" in refused(capsys, script, "--out", tmp_path)


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("place", ["file", "file/below", "forbidden"])
def test_an_out_that_cannot_be_written(script, place, capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    if place == "forbidden":                        # root may write everywhere, so the refusal is put in
        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")
        monkeypatch.setattr(type(tmp_path), "touch", refuse)
    line = refused(capsys, script, "--out", tmp_path / place)
    assert f"--out {tmp_path / place} cannot be written" in line


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("flags", [("train_imagenet",), ("train_cifar", "--dataset", "cifar10"),
                                   ("train_cifar", "--dataset", "cifar100")])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_data_dir_that_cannot_be(flags, place, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(capsys, *flags, "--data-dir", tmp_path / place, "--out", tmp_path / "out", opens_data=True)
    assert str(tmp_path / place) in line


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("script, flags", [
    ("train_cifar.py", ("--epochs", "-1")), ("train_imagenet.py", ("--data-dir", "nosuch", "--out", "out"))])
def test_as_processes(script, flags, tmp_path, monkeypatch):
    """The file as `python` executes it: the line is printed by itself, not by what surrounds it here."""
    monkeypatch.chdir(tmp_path)

    def execute():
        sys.argv = [script, *flags]
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except UserError as error:
            raise AssertionError("the script let it through") from error
    end = in_child(execute)
    one_line(end)
    assert end.out == ""


@pytest.mark.promise("bad flags")
def test_one_process_more_than_gpus(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="process 3 of this machine has no GPU, there are 2"):
        distributed.join(torch.device("cuda"))
    with pytest.raises(UserError, match="mps cannot be summed over processes: give --device cpu"):
        distributed.join(torch.device("mps"))


def test_the_card_that_was_named_is_the_current_one(monkeypatch):
    """What torch says of bfloat16 is about the current card."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("cpu", "cuda", "cuda:1"):
        assert distributed.join(torch.device(name)) == torch.device(name)
    assert chosen == [torch.device("cuda:1")]


@pytest.mark.promise("bad flags")
def test_a_mistake_of_ours_stays_a_traceback(tmp_path):
    """One line is for users' mistakes: anything else must not be hidden."""
    def fault():
        train_cifar.start_run = lambda *_, **__: 1 / 0
    end = run(*SHAPES, "--out", tmp_path, fault=fault)
    assert end.code == 1 and "Traceback" in end.err and "ZeroDivisionError" in end.err
