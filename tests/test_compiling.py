"""Compiled models: one graph, compiled once for each size of batch; and what --compile refuses. No GPU is needed."""
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import SHAPES, difference, final, in_child, run
from torch import nn
from torch._dynamo.testing import CompileCounter

from mpvg_minimal import vit_nano
from mpvg_minimal.runtime.errors import UserError
from mpvg_minimal.tools.throughput_parts import Given
from mpvg_minimal.training import models
from mpvg_minimal.training.loop import train_step
from mpvg_minimal.training.models import check_compile
from mpvg_minimal.training.recipes import CIFAR
from mpvg_minimal.training.run import start_run
from mpvg_minimal.training.task import CLASSIFICATION

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("pe, pool", [
    ("lape", "cls"), ("mpvg", "gap"),
    *[pytest.param(*case, marks=pytest.mark.slow) for case in (("none", "gap"), ("once", "cls"), ("pvg", "gap"))]])
def test_training_is_compiled_once_and_testing_once_for_each_size(pe, pool):
    """In a child: a process that has compiled and differentiated cannot fork one that does, as later tests want to."""
    ended = in_child(lambda: count_compilations(pe, pool), timeout=120)
    assert ended.code == 0, ended.err


def count_compilations(pe, pool):
    """As `start_run` compiles, but for the backend, and with graph breaks refused."""
    counter, original = CompileCounter(), nn.Module.compile
    nn.Module.compile = lambda module, mode, dynamic: original(module, dynamic=dynamic, fullgraph=True, backend=counter)
    trained = start_run(vit_nano(pe=pe, pool=pool, stochastic_depth=0.1, attention_dropout=0.1), CIFAR, out=Path(),
                        device=CPU, compiled="default")
    tested = Given((torch.randn(size, 3, 32, 32), torch.zeros(size).long()) for size in (4, 4, 2))
    counts = []
    for epoch in range(2):
        trained.model.train()
        for step in range(2):
            train_step(trained, *tested[0], lr=1e-3)
        counts.append(counter.frame_count)
        CLASSIFICATION.evaluate(trained.model, tested, normalize=lambda images: images, device=CPU,
                                autocast=trained.autocast())
        counts.append(counter.frame_count)
    assert counts == [1, 3, 3, 3]


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_the_model_is_compiled_in_the_mode_that_is_asked_for(mode, monkeypatch):
    told, model = [], nn.Linear(1, 1)
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: told.append((module, options)))
    start_run(model, CIFAR, out=Path(), device=CPU)
    assert told == []
    start_run(model, CIFAR, out=Path(), device=CPU, compiled=mode)
    assert [options for _, options in told] == 2 * [{"mode": mode, "dynamic": False}]
    objective, tested = (module for module, _ in told)
    assert objective.model is tested is model


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("device, torchrun, accumulate, why", [
    (CPU, False, 1, "needs --device cuda"), (CUDA, True, 1, "cannot be used under torchrun"),
    (CUDA, False, 4, "cannot be used with --accumulate 4")])
def test_cuda_graphs_are_refused_where_old_outputs_may_be_needed(device, torchrun, accumulate, why, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: torchrun)
    recipe = replace(CIFAR, accumulate=accumulate)
    with pytest.raises(UserError, match=f"--compile reduce-overhead: it {why}; give --compile alone"):
        check_compile("reduce-overhead", recipe, device)
    check_compile("default", recipe, device)
    check_compile(None, recipe, device)
    monkeypatch.undo()
    check_compile("reduce-overhead", CIFAR, CUDA)               # allowed on one GPU


@pytest.mark.promise("bad flags")
@pytest.mark.parametrize("device, environment, found, missing", [
    (CUDA, {}, [], "a compiler, and gcc or clang or cc is not on the PATH: install one, or name it in CC;"),
    (CPU, {}, ["gcc"], "a compiler, and g++ is not on the PATH: install one, or name it in CXX;"),
    (CUDA, {"CC": "icx"}, ["gcc"], "a compiler, and icx is not on the PATH: install one, or name it in CC;"),
    (CUDA, {"CC": "icx"}, ["icx"], "/nowhere/Python.h, which is not there: install Python's headers")])
def test_what_compiling_lacks_is_said_in_one_line(device, environment, found, missing, monkeypatch):
    monkeypatch.setattr(models.shutil, "which", lambda name: name in found or None)
    monkeypatch.setattr(models.sysconfig, "get_path", lambda _: "/nowhere")
    monkeypatch.setattr(models.os, "environ", environment)
    for mode in ("default", "reduce-overhead"):
        with pytest.raises(UserError) as error:
            check_compile(mode, CIFAR, device)
        assert str(error.value).startswith(f"--compile needs {missing}")
        assert str(error.value).endswith("; or leave --compile out")
    check_compile(None, CIFAR, device)


def test_a_compiled_run_is_the_same_run(finished, tmp_path):
    """By a compiler that changes no arithmetic: what --compile itself adds moves no weight and no draw."""
    def harmless():
        original = nn.Module.compile
        nn.Module.compile = lambda module, mode, dynamic: original(module, dynamic=dynamic, backend="eager")

    compiled = run(*SHAPES, "--epochs", 1, "--out", tmp_path, "--compile", fault=harmless, timeout=120)
    assert compiled.code == 0, compiled.err
    assert difference(final(finished / "shapes"), final(tmp_path)) is None
