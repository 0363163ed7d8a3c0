"""A training step on a GPU, before there is one: that nothing waits for the device, and how many kernels it takes."""
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretend_cuda import CUDA, Kernels, PretendCuda
from torch._subclasses.fake_tensor import DataDependentOutputException

from mpvg_minimal import vit_lite
from mpvg_minimal.data import sources
from mpvg_minimal.data.loading import make_batches, normalizer
from mpvg_minimal.data.shapes import Shapes
from mpvg_minimal.runtime.signals import Interrupt
from mpvg_minimal.training import loop
from mpvg_minimal.training.loop import train_step
from mpvg_minimal.training.recipes import CIFAR
from mpvg_minimal.training.run import start_run

CPU = torch.device("cpu")
BATCH, STEPS = 4, 3
KERNELS = {"plain": 464, "EMA": 465, "clip": 472}           # operations of one step, counted on the CPU


@pytest.fixture(scope="module")
def source():
    train, test = Shapes("train", size=STEPS * BATCH), Shapes("test", size=10)
    return sources.Source(train, test, train.classes, 32, *sources.SHAPES_STATS)


def parts(source, device, loader, **changed):
    """ViT-Lite by CIFAR's recipe, with mixup and cutmix, as train_cifar.py puts it together; and steps as it takes."""
    recipe = replace(CIFAR, batch_size=BATCH, **changed)
    amp = torch.bfloat16 if device.type == "cuda" else None
    run = start_run(vit_lite(16, pe="mpvg", stochastic_depth=0.1, attention_dropout=0.1), recipe, out=Path(),
                    device=device, amp=amp)
    batches = make_batches(source, train=True, batch_size=BATCH, device=device, augment=recipe.augment, loader=loader)
    mix = sources.mixing(16, mixup=recipe.mixup, cutmix=recipe.cutmix)
    return run, batches, dict(normalize=normalizer(source, device), mix=mix, interrupt=Interrupt())


@pytest.mark.parametrize("changed", [{"ema": 0.999}, {"clip_grad": 1.0, "accumulate": 2}], ids=str)
def test_no_step_waits_for_the_device(source, monkeypatch, changed):
    """An epoch but for the reading of the running loss: from its first batch on nothing is copied, nothing is read."""
    steps = []
    monkeypatch.setattr(loop, "read_running_loss", lambda run: (0.0, 0.0))
    with PretendCuda(waits_allowed=True) as pretended:
        run, batches, options = parts(source, CUDA, "device", **changed)
        epoch = batches.epoch

        def watched(*position):
            for batch in epoch(*position):
                pretended.waits_allowed = False
                pretended.copies.clear()
                steps.append(1)
                yield batch
        batches.epoch = watched
        loop.train_epoch(run, batches, **options)
        assert len(steps) == run.step == run.updates == STEPS and not pretended.copies
        assert next(iter(run.optimizer.state.values()))["step"].device.type == "cuda"


def test_the_reading_of_the_running_loss_is_where_it_waits(source):
    """The other side of the test above: it would see a wait."""
    with PretendCuda(waits_allowed=True) as pretended:
        run, batches, options = parts(source, CUDA, "device")
        with pytest.raises(DataDependentOutputException):
            loop.train_epoch(run, batches, **options)
        assert run.step == STEPS                                    # at the epoch's end
        assert pretended.copies["waiting"]                          # the images, before the first step
        pretended.waits_allowed = False
        with pytest.raises(AssertionError, match="waits for a copy"):
            run.totals.cpu()


@pytest.mark.parametrize("name, changed", [("plain", {}), ("EMA", {"ema": 0.999}), ("clip", {"clip_grad": 1.0})])
def test_a_step_takes_no_more_kernels_than_measured(source, name, changed):
    """Five per cent more fail. Launches are what a small model costs on a GPU: some microseconds of the CPU each."""
    run, batches, options = parts(source, CPU, "workers", **changed)
    run.model.train()
    images, labels = next(iter(batches.epoch()))
    images, labels = options["mix"](options["normalize"](images), labels)
    counts = []
    for _ in range(3):                                              # the first one makes the optimizer's moments
        with Kernels() as kernels:
            train_step(run, images, labels, lr=1e-3, label_smoothing=0.1, clip_grad=run.recipe.clip_grad)
        counts.append(sum(kernels.count.values()))
    assert 0.95 * KERNELS[name] <= counts[1] == counts[2] <= 1.05 * KERNELS[name], kernels.count.most_common()


def test_on_a_gpu_the_test_takes_larger_batches(source):
    with PretendCuda(waits_allowed=True):
        sizes = [make_batches(source, train=train, batch_size=size, device=device, loader="device").batch_size
                 for train, size, device in ((False, 4, CUDA), (False, 2048, CUDA), (True, 4, CUDA), (False, 4, CPU))]
    assert sizes == [1024, 2048, 4, 4]


def test_a_run_on_a_gpu_takes_tf32_and_no_attention_by_cudnn(monkeypatch):
    told = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", told.append)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", told.append)
    start_run(torch.nn.Linear(1, 1), CIFAR, out=Path(), device=CPU)
    assert told == []
    with PretendCuda(waits_allowed=True):
        start_run(torch.nn.Linear(1, 1), CIFAR, out=Path(), device=CUDA)
    assert told == ["high", False]
