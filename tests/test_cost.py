"""What the measurements compute, where it can be known; never how fast this machine is."""
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from pretend_cuda import CUDA, PretendCuda
from test_provenance import make_repository
from torch import nn

from mpvg_minimal import vit_lite, vit_nano
from mpvg_minimal.runtime import provenance
from mpvg_minimal.runtime.errors import UserError
from mpvg_minimal.tools import cost, measure
from mpvg_minimal.tools.throughput_parts import Given

CPU = torch.device("cpu")


@pytest.mark.parametrize("pool", ["gap", "cls"])
def test_flops_are_those_of_the_matrix_products(pool):
    D, L, N, patches, K, hidden = 256, 7, 64 + (pool == "cls"), 64, 10, 512
    embed = patches * D * 3 * 4 * 4
    block = N * D * 3 * D + 2 * N * N * D + N * D * D + 2 * N * D * hidden
    assert measure.forward_flops(vit_lite(pool=pool), torch.randn(3, 3, 32, 32)) == 2 * (embed + L * block + D * K)


def test_kept_for_backward_counts_each_tensor_once_and_no_parameter():
    """On a pretended card too, in the precision of the step: bfloat16 inputs, and none of the weights' copies."""
    two, x = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 2)), torch.randn(4, 8)
    assert measure.kept_for_backward(two, x) == (4 * 8 + 4 * 16) * 4      # the sigmoid's output is the next one's input
    with PretendCuda():
        two, x = two.to(CUDA, non_blocking=True), torch.randn(4, 8, device=CUDA)
        kept = measure.kept_for_backward(two, x, torch.autocast("cuda", dtype=torch.bfloat16))
    assert kept == (4 * 8 + 4 * 16) * 2


def test_a_peak_is_what_one_step_needs_beside_what_was_there(monkeypatch):
    """With the caching allocator's counters made up: 5 MB were there before the model, the step's peak is at 12 MB."""
    calls = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 12_000_000)
    assert measure.peak_memory(lambda: calls.append("step"), CUDA, before=5_000_000) == 7.0
    assert calls == ["step", "reset", "step"]                       # the first one makes the optimizer's moments
    assert measure.peak_memory(lambda: calls.append("none"), CPU, before=0) is None and len(calls) == 3


def test_no_candidate_brings_tensors_from_the_cpu_into_a_pass():
    """All models of a row on a pretended card, peers too where they are installed."""
    peers = all(map(importlib.util.find_spec, ("timm", "vit_pytorch")))
    with PretendCuda(waits_allowed=True) as pretended:
        models = cost.candidates("vit_nano", CUDA, peers=peers)
        images = torch.randn(2, 3, 32, 32, device=CUDA)
        for model in models.values():
            model.to(CUDA)
        pretended.waits_allowed = False
        pretended.copies.clear()
        for model in models.values():
            cost.infer(model.eval(), images, CUDA, torch.bfloat16)
    assert len(models) == 7 + 2 * peers and not pretended.copies


def test_what_mpvg_keeps_for_backward_does_not_grow_with_the_batch():
    """p_1 ... p_(L-2), a mean and a deviation of each row for L LayerNorms; p_0 is a parameter."""
    N, D, L = 64, 256, 7
    once, mpvg = vit_lite(pe="once"), vit_lite(pe="mpvg")
    for batch in (1, 3):
        images = torch.randn(batch, 3, 32, 32)
        more = measure.kept_for_backward(mpvg, images) - measure.kept_for_backward(once, images)
        assert more == 4 * ((L - 2) * N * D + L * 2 * N)


def test_a_measurement_names_its_command_and_how_memory_is_kept(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/cost.py", "--rounds", "3"])
    told = {"MALLOC_MMAP_MAX_": "0", "PYTORCH_ALLOC_CONF": "a:1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    monkeypatch.setattr(os, "environ", {"HOME": "/home", "PATH": os.environ["PATH"], **told})
    header = measure.header("mpvg_minimal.tools.cost", CPU)
    assert header["command"] == "python -m mpvg_minimal.tools.cost --rounds 3"
    assert header["threads"] == torch.get_num_threads()
    assert header["memory"] == told


def test_results_that_an_earlier_command_wrote_are_no_change(tmp_path, monkeypatch):
    """test_provenance.py has all others. Without git training and measuring go on."""
    for name in ("mpvg_minimal/vit.py", "results/cost.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("old")
    monkeypatch.setattr(provenance, "ROOT", tmp_path.resolve())
    make_repository(tmp_path)
    clean = provenance.commit()
    (tmp_path / "results" / "cost.json").write_text("new")
    assert provenance.commit() == clean and re.fullmatch("[0-9a-f]{7,}", clean)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.environment(CPU)["commit"] == "unknown"


def test_rounds_take_turns_both_ways_after_two_to_warm_up():
    calls = []
    seconds = measure.interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, device=CPU)
    assert calls == list("ab" "ba" "ab" "ba" "ab")
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_call_is_timed_to_its_end_on_the_device(device, monkeypatch):
    calls = []
    monkeypatch.setattr(getattr(torch, device), "synchronize", lambda *_: calls.append("waits"))
    measure.interleaved({"a": lambda: calls.append("a")}, rounds=1, device=torch.device(device))
    assert calls == ["waits", "a", "waits"] * 3


def test_the_ratio_is_the_median_of_the_rounds_ratios():
    row = cost.summary("train", [2.0, 1.0, 4.0], once=[1.0, 1.0, 1.0], batch=8)
    assert row["train_ratio"] == 0.5 and row["train_images_per_second"] == 4.0
    assert row["train_ratio_quartiles"] == [0.25, 1.0]


def test_a_repeated_batch_stands_in_for_a_loader():
    batches = Given([("images", "labels")] * 5)
    assert len(batches) == 5 and list(batches.epoch(3, start=2)) == [("images", "labels")] * 3


def test_a_peak_is_shown_where_the_device_tells_it():
    row = {"model": "vit_nano", "variant": "once", "compiled": False, "parameters": 1, "gflop_forward": 1.0}
    shown = [measure.table([row | peak]).splitlines()[-1].split(" | ")[5] for peak in ({}, {"peak_mb": 1234.4})]
    assert shown == ["–", "1,234"]


def test_a_folder_of_results_that_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sys.argv", ["", "--out", str(tmp_path / "file" / "results")])
    with pytest.raises(UserError, match="cannot be written .*: name another folder by --out"):
        cost.main()


@pytest.mark.parametrize("flags, name", [
    ([], "cost_cpu.json"), pytest.param(["--compile"], "cost_cpu_compiled.json", marks=pytest.mark.slow)])
def test_the_command_measures_every_schedule_and_the_folded_model(tmp_path, flags, name):
    command = [sys.executable, *"-m mpvg_minimal.tools.cost --models vit_nano --batch-size 3 --rounds 1".split()]
    done = subprocess.run([*command, *flags, "--out", tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=600,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "recompile_limit" not in done.stderr             # past it, candidates would run eagerly
    result = json.loads((tmp_path / name).read_text())
    assert all(row["compiled"] == bool(flags) for row in result["rows"])
    rows = {row["variant"]: row for row in result["rows"]}
    assert set(rows) == {*cost.SCHEDULES, cost.COPY, "mpvg, folded"}
    assert rows["once"]["train_ratio"] == rows["once"]["inference_ratio"] == 1.0
    assert rows[cost.COPY]["train_ratio"] != 1.0 and rows[cost.COPY]["parameters"] == rows["once"]["parameters"]
    assert all(row["inference_images_per_second"] > 0 for row in rows.values())
    assert rows["mpvg"]["parameters"] == sum(p.numel() for p in vit_nano(pe="mpvg").parameters())
    assert "train_ratio" not in rows["mpvg, folded"]
    kept = measure.kept_for_backward(vit_nano(pe="mpvg"), torch.randn(3, 3, 32, 32))
    assert rows["mpvg"]["kept_mb_per_image"] == pytest.approx(kept / 3e6)
    assert measure.table(result["rows"]) in done.stdout
