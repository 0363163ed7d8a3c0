"""Compiled models: one graph, compiled once; and which mode `--compile` takes, by given times: no GPU is needed."""
import copy
from pathlib import Path

import pytest
import torch
from runs import difference, final, in_child, run
from torch import nn
from torch._dynamo.testing import CompileCounter

from mpvg_minimal import vit_nano
from mpvg_minimal.runtime import distributed
from mpvg_minimal.training import compiling
from mpvg_minimal.training.classification import CLASSIFICATION
from mpvg_minimal.training.compiling import GRAPHS, choose_mode
from mpvg_minimal.training.loop import train_step
from mpvg_minimal.training.recipes import CIFAR
from mpvg_minimal.training.run import start

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SETTINGS = CIFAR | dict(batch_size=4, image_size=32, num_classes=16, accumulate=1, seed=0)


class Tested:
    """Test images (4, 4 and 2), and nothing else of a loader."""

    def __len__(self):
        return 3

    def epoch(self):
        return ((torch.randn(size, 3, 32, 32), torch.zeros(size).long()) for size in (4, 4, 2))


@pytest.mark.parametrize("pool", ["gap", "cls"])
@pytest.mark.parametrize("pe", ["none", "once", "lape", "pvg", "mpvg"])
def test_training_is_compiled_once_and_testing_once_for_each_size(pe, pool):
    """In a child: a process that has compiled and differentiated cannot fork one that does, as later tests want to."""
    ended = in_child(lambda: count_compilations(pe, pool), timeout=120)
    assert ended.code == 0, ended.err


def count_compilations(pe, pool):
    """As `start` compiles, but for the backend, and with graph breaks refused."""
    counter, original = CompileCounter(), nn.Module.compile
    nn.Module.compile = lambda module, mode, dynamic: original(module, dynamic=dynamic, fullgraph=True, backend=counter)
    trained = start(vit_nano(pe=pe, pool=pool, stochastic_depth=0.1, attention_dropout=0.1), SETTINGS, out=Path(),
                    device=CPU, compiled="default")
    counts = []
    for epoch in range(3):
        trained.model.train()
        for step in range(3):
            train_step(trained, torch.randn(4, 3, 32, 32), torch.zeros(4).long(), lr=1e-3)
        counts.append(counter.frame_count)
        CLASSIFICATION.test(trained.model, Tested(), prepare=lambda images: images, device=CPU,
                            autocast=trained.autocast())
        counts.append(counter.frame_count)
    assert counts == [1, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("seconds, mode", [((1.0, 0.5), GRAPHS), ((1.0, 0.96), GRAPHS), ((1.0, 0.98), "default"),
                                           ((1.0, 1.5), "default"), ((1.0, None), "default"), ((None, 0.5), "default"),
                                           ((None, None), "default")])
def test_the_faster_mode_is_taken_if_it_is_clearly_faster(seconds, mode, monkeypatch, capsys):
    """None: that mode fails."""
    def given(model, settings, device, amp, mode):
        taken = seconds[mode == GRAPHS]
        if taken is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return taken
    monkeypatch.setattr(compiling, "step_seconds", given)
    assert choose_mode(nn.Linear(1, 1), SETTINGS, CUDA, None) == mode
    said = capsys.readouterr().out
    assert said.startswith(f"compiling in the mode {mode} (") and said.count("\n") == 1
    assert ("failed: OutOfMemoryError: CUDA out of memory" in said) == (None in seconds)


@pytest.mark.parametrize("change, device, processes", [({}, CPU, 1), ({"accumulate": 2}, CUDA, 1), ({}, CUDA, 2),
                                                       ({"task": "detection"}, CUDA, 1)])
def test_in_doubt_the_default_mode_is_taken_without_a_trial(change, device, processes, monkeypatch, capsys):
    monkeypatch.setattr(compiling, "step_seconds", lambda *_: pytest.fail("tried"))
    monkeypatch.setattr(distributed, "count", lambda: processes)
    assert choose_mode(nn.Linear(1, 1), SETTINGS | change, device, None) == "default"
    assert capsys.readouterr().out == ""


def test_the_trial_trains_a_copy_and_leaves_weights_and_draws_as_they_were(monkeypatch):
    """Real steps, on CPU and with a compiler that does nothing."""
    model, modes = vit_nano(stochastic_depth=0.5), []
    monkeypatch.setattr(nn.Module, "compile", lambda module, mode, dynamic: modes.append((module, mode, dynamic)))
    monkeypatch.setattr(compiling, "may_replay", lambda *_: True)
    before, draws = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    choose_mode(model, SETTINGS, CPU, None)
    assert difference(dict(model.state_dict()), dict(before)) is None and torch.equal(torch.get_rng_state(), draws)
    copies, tried, dynamic = zip(*modes)
    assert tried == ("default", GRAPHS) and dynamic == (False, False) and model not in copies
    assert all(difference(dict(each.state_dict()), dict(before)) for each in copies)        # they were trained


def test_a_compiled_run_is_the_same_run(tmp_path):
    """By a compiler that changes no arithmetic: what --compile itself adds moves no weight and no draw."""
    def harmless():
        original = nn.Module.compile
        nn.Module.compile = lambda module, mode, dynamic: original(module, dynamic=dynamic, backend="eager")
        compiling.may_replay = lambda *_: True
        compiling.TIMED = 2

    flags = ("train_cifar", "--dataset", "shapes", "--gap", "--mpvg", "--batch-size", 16, "--workers", 0, "--epochs", 1)
    plain, compiled = run(*flags, "--out", tmp_path / "a"), run(*flags, "--out", tmp_path / "b", "--compile",
                                                               fault=harmless, timeout=120)
    assert plain.code == compiled.code == 0 and "compiling in the mode" in compiled.out, compiled.err
    assert difference(final(tmp_path / "a"), final(tmp_path / "b")) is None
