"""The parts that throughput.py measures. In each, two candidates take turns. Shapes: B images."""
import argparse
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..data import cache, sources
from ..data.loading import make_batches, normalizer
from ..runtime import distributed
from ..runtime.signals import Interrupt
from ..training import recipes
from ..training.loop import train_epoch, train_step
from ..training.models import build_model
from ..training.run import Run, start_run
from .measure import forward_flops, interleaved, synchronize


class Setup(NamedTuple):
    """What all parts measure: one recipe and model, on one device, in one precision."""

    args: argparse.Namespace
    recipe: recipes.Recipe
    settings: dict[str, Any]
    device: torch.device
    amp: torch.dtype | None

    def new_run(self) -> Run:
        return start_run(build_model(self.settings), self.recipe, out=Path(), device=self.device, amp=self.amp,
                         compiled=self.args.compile)

    def random_batch(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.settings["image_size"]
        images = torch.randn(batch, 3, size, size, device=self.device)
        return images, torch.randint(10, (batch,), device=self.device)


def limit(setup: Setup) -> dict[str, Any]:
    """Model FLOP/s as a share of a large matrix product's. A training step counts as three forward passes."""
    cuda = setup.device.type == "cuda"
    n, kind = (8192, setup.amp or torch.float32) if cuda else (setup.args.matrix, torch.float32)
    a, b = (torch.randn(n, n, device=setup.device, dtype=kind) for _ in range(2))
    run, (images, labels) = setup.new_run(), setup.random_batch(setup.recipe.batch_size)
    flops = {"product": 2 * n ** 3, "step": 3 * forward_flops(run.model, images) * len(images)}
    run.model.train()
    seconds = interleaved({"product": lambda: a @ b, "step": lambda: train_step(run, images, labels, lr=1e-4)},
                          rounds=setup.args.rounds, device=setup.device)
    rate = {name: flops[name] / statistics.median(seconds[name]) for name in flops}
    shares = [flops["step"] / s / (flops["product"] / p) for s, p in zip(*(seconds[k] for k in ("step", "product")))]
    return {"matrix": n, "product_gflop_per_second": rate["product"] / 1e9, "step_gflop_per_second": rate["step"] / 1e9,
            "images_per_second": len(images) / statistics.median(seconds["step"]), "share": statistics.median(shares)}


class Given(list):
    """Batches in a list, in place of a loader."""

    def epoch(self, epoch: int = 0, start: int = 0):
        return iter(self[start:])


def real_over_synthetic(setup: Setup) -> dict[str, Any]:
    """A real epoch of `limit` images, then the same number of steps on one batch; the loader is warmed up first."""
    args, recipe, settings = setup.args, setup.recipe, setup.settings
    source = sources.open_source(args.dataset, args.data_dir, settings["image_size"])
    if args.cache:
        source = cache.cached(source, args.cache)
    real = make_batches(source, train=True, batch_size=recipe.batch_size, device=setup.device, augment=recipe.augment,
                        seed=recipe.seed, limit=args.limit, loader=settings["loader"], workers=args.workers)
    batch = tuple(part.to(setup.device) for part in next(iter(real.epoch())))
    run, mix = setup.new_run(), sources.mixing(settings["num_classes"], mixup=recipe.mixup, cutmix=recipe.cutmix)
    options = dict(normalize=normalizer(source, setup.device), mix=mix, interrupt=Interrupt())

    def epoch(batches: Any) -> None:
        run.step = 0
        run.totals.zero_()
        train_epoch(run, batches, **options)

    seconds = interleaved({"real": lambda: epoch(real), "synthetic": lambda: epoch(Given([batch] * len(real)))},
                          rounds=args.rounds, device=setup.device)
    ratio = statistics.median(s / r for s, r in zip(seconds["synthetic"], seconds["real"]))
    return {"loader": settings["loader"], "steps": len(real), "real_over_synthetic": ratio,
            "images_per_second": len(real) * recipe.batch_size / statistics.median(seconds["real"])}


def by_batch_size(setup: Setup) -> dict[str, float]:
    """Images/s for each of --sizes."""
    run = setup.new_run()
    run.model.train()
    batches = {str(size): setup.random_batch(size) for size in setup.args.sizes}
    calls = {size: lambda batch=batch: train_step(run, *batch, lr=1e-4) for size, batch in batches.items()}
    seconds = interleaved(calls, rounds=setup.args.rounds, device=setup.device)
    return {size: int(size) / statistics.median(times) for size, times in seconds.items()}


def processes(setup: Setup) -> dict[str, Any]:
    """All processes together, each with its share of a batch that grows with them, against the first one alone."""
    torch.set_num_threads(1)
    together, alone = setup.new_run(), setup.new_run()
    alone.wrapped = alone.objective
    images, labels = setup.random_batch(setup.recipe.batch_size)
    times = {"alone": [], "together": []}
    for _ in range(setup.args.rounds + 1):
        for name, run in (("alone", alone), ("together", together)):
            distributed.barrier()                                # all begin at once
            began = time.perf_counter()
            if name == "together" or distributed.is_first():
                run.model.train()
                train_step(run, images, labels, lr=1e-4)
            synchronize(setup.device)
            times[name].append(time.perf_counter() - began)
            distributed.barrier()
    ratios = [a / b for a, b in zip(times["alone"][1:], times["together"][1:])]
    return {"count": distributed.count(), "efficiency": statistics.median(ratios),
            "images_per_second": distributed.count() * len(images) / statistics.median(times["together"][1:])}


PARTS = {"limit": limit, "data": real_over_synthetic, "batch": by_batch_size, "processes": processes}
