"""What only a GPU can show: `pytest -m cuda tests/test_cuda.py`. Without one, the same tests run on the CPU.

There they show that they work, and what they compare is the same thing twice. Scripts are started from a shell: a
process that has asked for a GPU cannot fork one that uses it.
"""
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT

from mpvg_minimal import ViT, vit_nano
from mpvg_minimal.data.device_batches import DeviceBatches
from mpvg_minimal.data.shapes import Shapes
from mpvg_minimal.data.sources import SHAPES_STATS, Source
from mpvg_minimal.dense.detection import Detector
from mpvg_minimal.runtime.device import autocast, prepare
from mpvg_minimal.training import checkpoint, flags, recipes
from mpvg_minimal.training.loop import read_running_loss, train_step
from mpvg_minimal.training.run import start_run

pytestmark = pytest.mark.cuda
CUDA, CPU = torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.device("cpu")
ON_CARD = CUDA.type == "cuda"
AMP = flags.choose_amp("auto", CUDA)
SCRIPT = ["train_cifar.py", "--gap", "--mpvg", "--dataset", "shapes", "--limit", "512", "--batch-size", "32",
          "--epochs", "3", "--device", CUDA.type, "--loader", "device", "--save-every", "0"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def script(out, *more, start=()):
    """The metrics of a run of train_cifar.py, a line for each epoch."""
    done = subprocess.run([sys.executable, *start, *SCRIPT, "--out", str(out), *more], cwd=ROOT, text=True, timeout=180,
                          capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_close(run, other, tolerance):
    """By the root of the mean square: single weights move by as much as the learning rate where gradients are noise."""
    ours, theirs = (torch.cat([weight.flatten() for weight in checkpoint.newest(out)["model"].values()])
                    for out in (run, other))
    assert (ours - theirs).norm() <= tolerance * theirs.norm()


def losses(amp, steps=40, **changed):
    """The running loss after so many steps on one batch of shapes, and the run."""
    torch.manual_seed(0)
    shapes, recipe = Shapes(size=64), replace(recipes.SHAPES, batch_size=64, **changed)
    run = start_run(vit_nano(pe="mpvg"), recipe, out=None, device=CUDA, amp=amp)
    images, labels = (shapes.images.float() / 255 - 0.25).to(CUDA), shapes.labels.to(CUDA)
    for _ in range(steps):
        train_step(run, images, labels, lr=1e-3, clip_grad=1.0)
    return read_running_loss(run)[0], run


def test_bf16_learns_as_float32_does():
    (mixed, run), (full, _) = losses(AMP), losses(None)
    assert run.model.head.weight.dtype == torch.float32
    assert 0.1 < full < 2.5 and mixed == pytest.approx(full, rel=0.03)


def test_fp16_skips_a_step_that_overflows_and_goes_on():
    _, run = losses(torch.float16 if ON_CARD else None, steps=3)
    run.scaler = torch.amp.GradScaler(CUDA.type, init_scale=1024.0)
    before, images = run.model.head.weight.clone(), torch.randn(8, 3, 32, 32, device=CUDA)
    labels = torch.zeros(8, dtype=torch.int64, device=CUDA)
    train_step(run, images * torch.inf, labels, lr=1e-3)
    assert (run.skipped, run.updates, run.scaler.get_scale()) == (1, 3, 512.0)
    assert torch.equal(run.model.head.weight, before)
    train_step(run, images, labels, lr=1e-3)
    assert (run.skipped, run.updates) == (0, 4) and not torch.equal(run.model.head.weight, before)


def augmented(device, together):
    shapes = Shapes(size=600)
    source = Source(shapes, shapes, shapes.classes, 32, *SHAPES_STATS)
    batches = DeviceBatches(shapes, source, recipes.CIFAR.augment, device, batch_size=20, train=True)
    batches.together = together
    return torch.cat([images for images, _ in batches.epoch(1)]).cpu()


def test_images_augmented_on_the_card_are_the_cpus_whatever_is_augmented_together():
    prepare(CUDA)                                                           # TF32 is allowed, as in a run
    card = augmented(CUDA, 600)
    assert torch.equal(card, augmented(CUDA, 20)) and torch.equal(card, augmented(CUDA, 100))
    different = (card.int() - augmented(CPU, 600).int()).abs()
    assert (different > 0).float().mean() < 1e-3                            # a rotated pixel may come from its neighbor


def test_detections_boxes_are_not_rounded_to_bfloat16():
    torch.manual_seed(0)
    vit = ViT(image_size=224, patch_size=16, width=64, depth=2, heads=2)
    model = Detector(vit, 3, channels=32, levels=[2, 1], convs=1, padding="zeros").to(CUDA)
    model.fcos.score_thresh = 0.0
    torch.nn.init.constant_(model.fcos.head.regression_head.bbox_reg.bias, 1.37)       # sides that are no whole numbers
    images, objects = torch.randn(2, 3, 224, 224, device=CUDA), torch.full((2, 4, 6), -1.0, device=CUDA)
    objects[:, 0] = torch.tensor([1.0, 20.0, 30.0, 90.0, 100.0, 0.0])
    with autocast(CUDA, AMP):
        losses = model.train()(images, objects)
        with torch.no_grad():
            found = model.eval()(images)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    boxes = torch.cat([image["boxes"] for image in found])
    inside = boxes[(boxes > 130) & (boxes < 223)]                           # where bfloat16 has whole numbers alone
    assert len(inside) > 50 and (inside != inside.round()).float().mean() > 0.9


def test_detection_trains_and_is_scored(tmp_path):
    words = ["--task", "detection", "--gap", "--mpvg", "--limit", "64", "--epochs", "1", "--batch-size", "16",
             "--workers", "0", "--device", CUDA.type, "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "mpvg_minimal.dense", *words], cwd=ROOT, text=True, timeout=180,
                          capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 0 and "test AP: " in done.stdout, done.stderr


def test_a_run_that_is_resumed_ends_as_one_that_is_not(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    process = subprocess.Popen([sys.executable, *SCRIPT, "--out", str(stopped)], cwd=ROOT, env=ENVIRONMENT)
    while not (stopped / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert len(script(whole)) == len(script(stopped, "--resume")) == 3
    assert_close(stopped, whole, 0.02 if ON_CARD else 0.0)


@pytest.mark.skipif(not ON_CARD, reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_run_with_a_test_between_replays_is_the_eager_run(tmp_path, mode):
    eager, compiled = script(tmp_path / "eager"), script(tmp_path / "compiled", "--compile", mode)
    for ours, theirs in zip(compiled, eager, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.02)
        assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=0.05)
    assert_close(tmp_path / "compiled", tmp_path / "eager", 0.05)


def test_one_process_under_torchrun_is_the_run_without_it(tmp_path):
    """NCCL on a GPU, gloo on a CPU."""
    alone = script(tmp_path / "alone")
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
    torchrun = script(tmp_path / "torchrun", start=start)
    assert torchrun[-1]["train_loss"] == pytest.approx(alone[-1]["train_loss"], rel=0.02)
    assert_close(tmp_path / "torchrun", tmp_path / "alone", 0.05)
