"""The parts that throughput.py measures. In each, two candidates take turns. Shapes: B images."""
import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import cache, sources
from ..data.loading import make_batches, normalizer
from ..runtime import distributed
from ..runtime.signals import Interrupt
from ..training import recipes
from ..training.loop import train_epoch, train_step
from ..training.models import build_model
from ..training.run import Run, start_run
from .measure import forward_flops, interleaved


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

    def random_batch(self, count: int) -> tuple[Tensor, Tensor]:
        size = self.settings["image_size"]
        images = torch.randn(count, 3, size, size, device=self.device)
        return images, torch.randint(10, (count,), device=self.device)

    def seconds(self, **calls: Callable) -> dict[str, list[float]]:
        return interleaved(calls, rounds=self.args.rounds, device=self.device)


def median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def limit(setup: Setup) -> dict[str, Any]:
    """Model FLOP/s as a share of a large matrix product's. A training step counts as three forward passes."""
    cuda, count = setup.device.type == "cuda", setup.recipe.batch_size
    n, kind = (8192, setup.amp or torch.float32) if cuda else (setup.args.matrix, torch.float32)
    a, b = (torch.randn(n, n, device=setup.device, dtype=kind) for _ in range(2))
    run, batch = setup.new_run(), setup.random_batch(count)
    gflop = {"product": 2 * n ** 3 / 1e9, "step": 3 * forward_flops(run.model, batch[0]) * count / 1e9}
    seconds = setup.seconds(product=lambda: a @ b, step=partial(train_step, run, *batch, lr=1e-4))
    rate = {f"{name}_gflop_per_second": gflop[name] / statistics.median(seconds[name]) for name in gflop}
    return {"matrix": n, **rate, "images_per_second": count / statistics.median(seconds["step"]),
            "share": gflop["step"] / gflop["product"] * median_ratio(seconds["product"], seconds["step"])}


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

    seconds = setup.seconds(real=lambda: epoch(real), synthetic=lambda: epoch(Given([batch] * len(real))))
    return {"loader": settings["loader"], "steps": len(real),
            "real_over_synthetic": median_ratio(seconds["synthetic"], seconds["real"]),
            "images_per_second": len(real) * recipe.batch_size / statistics.median(seconds["real"])}


def by_batch_size(setup: Setup) -> dict[str, float]:
    """Images/s for each of --sizes."""
    run, batches = setup.new_run(), {str(size): setup.random_batch(size) for size in setup.args.sizes}
    seconds = setup.seconds(**{size: partial(train_step, run, *batch, lr=1e-4) for size, batch in batches.items()})
    return {size: int(size) / statistics.median(times) for size, times in seconds.items()}


def processes(setup: Setup) -> dict[str, Any]:
    """All processes together, each with its share of a batch that grows with them, against the first one alone."""
    torch.set_num_threads(1)
    together, alone, batch = setup.new_run(), setup.new_run(), setup.random_batch(setup.recipe.batch_size)
    alone.wrapped = alone.objective                                 # without DistributedDataParallel
    seconds = setup.seconds(alone=lambda: distributed.is_first() and train_step(alone, *batch, lr=1e-4),
                            together=partial(train_step, together, *batch, lr=1e-4))
    images = distributed.count() * setup.recipe.batch_size
    return {"count": distributed.count(), "efficiency": median_ratio(seconds["alone"], seconds["together"]),
            "images_per_second": images / statistics.median(seconds["together"])}


PARTS = {"limit": limit, "data": real_over_synthetic, "batch": by_batch_size, "processes": processes}
