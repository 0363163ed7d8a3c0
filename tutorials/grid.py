"""The experiment: does global average pooling conflict with layer-wise PE, and does MPVG resolve it?

    python tutorials/grid.py --dataset shapes                            minutes; nothing to download
    python tutorials/grid.py --dataset cifar10 --reduced                 for CPU: a small model, 20,000 images, 5 epochs
    python tutorials/grid.py --dataset cifar10 --jobs 4 --compile        ViT-Lite, the published recipe, 100 epochs
    python tutorials/grid.py --dataset cifar10 --groups main why         only these groups of cells
    python tutorials/grid.py --dataset shapes --tiny --name tiny         every cell for one epoch of 256 images

All other flags are train_cifar.py's. A cell is one setting, trained as that script would, from the same initial weights
wherever shapes agree. What is finished is skipped: stop it at any time and start it again. It writes
results/grid_NAME.json, every run with its settings and metrics, and from that file alone results/grid_NAME.md, .png
(accuracies) and _balance.png (how tokens and PE come to correlate); and maps of both for two trained models.
"""
import argparse
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tutorials")]

from grid_report import draw, draw_development, table  # noqa: E402

from mpvg_minimal import PESchedule, ViT, balance  # noqa: E402
from mpvg_minimal.data import sources  # noqa: E402
from mpvg_minimal.runtime.errors import UserError, one_line_errors  # noqa: E402
from mpvg_minimal.tools import plots  # noqa: E402
from mpvg_minimal.training import assemble, checkpoint, flags, recipes  # noqa: E402
from mpvg_minimal.training.classification import CLASSIFICATION  # noqa: E402

# What a CPU can do in minutes. No augmentation: in five epochs there is nothing to protect from.
REDUCED = recipes.SHAPES | dict(epochs=5, limit=20_000)
SWITCHES = dict(add_at_input=True, first_block=2, hierarchical=True, at_last_norm="initial")       # MPVG


def gap(pe: str | dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"pool": "gap", "pe": pe, **more}


GROUPS = {
    "main": {f"{pool} {pe}": {"pool": pool, "pe": pe}
             for pool in ("cls", "gap") for pe in ("none", "once", "lape", "pvg", "mpvg")},
    # `once` adds PE of size 0.02 to the tokens where a LayerNorm delivers size 1: larger at the start, for fairness
    "scale": {f"{pool} {pe}, PE std {std}": {"pool": pool, "pe": pe, "pe_std": std}
              for pool, pe, std in (("cls", "once", 0.2), ("cls", "once", 1.0), ("gap", "once", 0.2),
                                    ("gap", "once", 1.0), ("gap", "mpvg", 0.2), ("gap", "mpvg", 1.0))},
    "sincos": {f"gap {pe}, sin-cos": gap(pe, pe_init="sincos2d") for pe in ("once", "pvg", "mpvg")},
    # the switches that the public record leaves open, one at a time, and MPVG's last norm on top of LaPE
    "switches": {f"gap mpvg, {name}": gap(SWITCHES | changed) for name, changed in {
        "not at the input": dict(add_at_input=False), "from block 1": dict(first_block=1),
        "not hierarchical": dict(hierarchical=False), "last norm: p_L": dict(at_last_norm="delivered"),
        "no block": dict(first_block=None, hierarchical=False),
        "LaPE with the last norm": dict(add_at_input=False, first_block=1)}.items()},
    # under GAP, PE at the last norm is exactly a bias: where could a gain come from? See `at_last_norm`
    "why": {f"gap mpvg, {last}": gap("mpvg", last=last) for last in ("free bias", "stopped gradient", "sign flipped")},
}
CELLS = {name: cell for group in GROUPS.values() for name, cell in group.items()}


class FreeBias(nn.Module):
    """A plain parameter vector (D,) in place of LN'_last(p): what it amounts to under GAP, without p behind it."""

    def __init__(self, start: Tensor):
        super().__init__()
        self.bias = nn.Parameter(start)

    def forward(self, pe: Tensor) -> Tensor:
        return self.bias                                                    # (D,), added to (B, N, D)


class StoppedGradient(nn.Module):
    """LN'_last(p), but what the last norm learns never reaches p."""

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        self.norm = norm

    def forward(self, pe: Tensor) -> Tensor:
        return self.norm(pe.detach())


@torch.no_grad()
def build(settings: dict[str, Any]) -> ViT:
    """A cell's model. Weights that `gap once` has too start as they do there; a class token's PE row is its own."""
    pe = settings["pe"] if isinstance(settings["pe"], str) else PESchedule(**settings["pe"])
    model = assemble.build_model(settings | {"pe": pe})
    shared = assemble.build_model(settings | {"pe": "once", "pool": "gap", "pe_init": "learned"}).state_dict()
    own = model.state_dict()
    for name in own.keys() & shared.keys():
        if name == "pe.pos_embed":
            own[name][:, -shared[name].shape[1]:] = shared[name]
        else:
            own[name].copy_(shared[name])
    if settings.get("pe_std"):
        model.pe.pos_embed *= settings["pe_std"] / 0.02                     # it is drawn with std 0.02
    if settings.get("last"):
        change_last_norm(model, settings["last"])
    return model


@torch.no_grad()
def change_last_norm(model: ViT, last: str) -> None:
    norm, p = model.last_norm.pe_norm, model.pe.pos_embed
    if last == "free bias":                                                 # it starts where MPVG's does: same logits
        model.last_norm.pe_norm = FreeBias(norm(p).mean(dim=(0, 1)))
    elif last == "stopped gradient":
        model.last_norm.pe_norm = StoppedGradient(norm)
    else:                                                                   # y = LN(x) - LN'(p), at the start
        norm.weight.neg_()


def test(model: ViT, batches: Any, **options: Any) -> dict[str, Any]:
    """After every epoch: loss and top-1, and the correlation of tokens and PE at each place (512 test images or so)."""
    metrics = CLASSIFICATION.test(model, batches, **options)
    few = list(itertools.islice(batches.epoch(), -(-512 // batches.batch_size)))
    images = options["prepare"](torch.cat([images for images, _ in few]).to(options["device"]))
    found = balance.counterbalance(model, images)
    delivered = [place.pe for place in found[:-1] if place.pe is not None]
    last = balance.pearson(found[-1].tokens, delivered[-1]) if delivered else None
    return metrics | {"correlation": [rounded(place.correlation) for place in found],
                      "stream_correlation": [rounded(place.stream_correlation) for place in found],
                      "last_tokens_with_p_L": rounded(last)}                # also where the last norm gets no PE


def rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 5)


def settings_of(args: argparse.Namespace, cell: str, seed: int, device: torch.device) -> dict[str, Any]:
    full = recipes.SHAPES if args.dataset == "shapes" else recipes.CIFAR | {"epochs": 100}
    recipe = REDUCED if args.reduced else full
    args = argparse.Namespace(**{**vars(args), "seed": seed})
    limit = {"limit": args.limit or recipe.get("limit")}
    return flags.settings_of(args, device, recipe, dataset=args.dataset) | limit | CELLS[cell] | {"cell": cell}


def folder(args: argparse.Namespace, cell: str, seed: int) -> Path:
    return args.runs / args.name / f"{re.sub('[^A-Za-z0-9.]+', '_', cell)}_seed{seed}"


def train(args: argparse.Namespace, cell: str, seed: int) -> None:
    """One run of the grid, to its result.json; goes on where it was stopped."""
    torch.set_num_threads(args.threads)
    device, out = flags.choose_device(args.device, args.amp), folder(args, cell, seed)
    args = argparse.Namespace(**{**vars(args), "out": out, "resume": (out / "config.json").exists()})
    settings = settings_of(args, cell, seed, device)
    flags.choose_out(args, settings)
    source = sources.open_source(args.dataset, args.data_dir)
    print(f"--- {cell}, seed {seed}", flush=True)
    task = CLASSIFICATION._replace(test=test)
    assemble.train(args, settings | source.identity(), source, out, device, build=build, task=task)
    saved = checkpoint.newest(out)
    history = saved["history"]
    without = zeroed(saved, source, device, flags.choose_amp(args.amp, device))
    result = {"cell": cell, "seed": seed, "top1": history[-1]["top1"], "zeroed": without,
              "seconds": round(sum(line["seconds"] for line in history), 1), "machine": args.machine,
              "data": args.data_name, "environment": checkpoint.read_config(out)["environment"],
              "settings": saved["settings"], "epochs": history}
    checkpoint.write_text(out / "result.json", json.dumps(result))


def train_in_child(args: argparse.Namespace, cell: str, seed: int) -> None:
    with one_line_errors():
        train(args, cell, seed)


def results(args: argparse.Namespace, jobs: list[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """The results of all jobs as they come, `args.jobs` at a time, each in a process of its own.

    UserError at the end if any of them failed: it has said why, and the others went on.
    """
    fork, waiting, running, failed = multiprocessing.get_context("fork"), list(jobs), {}, []
    while waiting or running:
        while waiting and len(running) < args.jobs:
            job = waiting.pop(0)
            process = fork.Process(target=train_in_child, args=(args, *job))
            process.start()
            running[process.sentinel] = process, job
        for sentinel in multiprocessing.connection.wait(list(running)):
            process, job = running.pop(sentinel)
            process.join()
            if process.exitcode:
                failed.append(f"{job[0]}, seed {job[1]}")
            else:
                yield json.loads((folder(args, *job) / "result.json").read_text())
    if failed:
        raise UserError(f"these runs did not end well, see above: {'; '.join(failed)}. The same command goes on")


def draw_maps(args: argparse.Namespace, cell: str, path: Path) -> None:
    """Tokens and PE of the first seed's trained model at every place, as the paper draws them, if its run is here."""
    if (folder(args, cell, 0) / "result.json").exists():
        saved = checkpoint.newest(folder(args, cell, 0))
        images = assemble.first_images(sources.open_source(args.dataset, args.data_dir), saved["settings"], 512)
        plots.draw_counterbalance(balance.counterbalance(assemble.load_model(saved, build), images), path)


@torch.no_grad()
def zeroed(saved: dict[str, Any], source: sources.Source, device: torch.device,
           amp: torch.dtype | None) -> float | None:
    """Top-1 of the trained model without PE at the last norm, in the run's precision; None where there is none."""
    model = assemble.load_model(saved, build)
    if model.pe.schedule.at_last_norm is None:
        return None
    model.pe.schedule = replace(model.pe.schedule, at_last_norm=None)
    return assemble.test(model, source, saved["settings"], device, amp=amp)["top1"]


def parse() -> argparse.Namespace:
    parser = flags.Parser(description=__doc__.split("\n")[0], allow_abbrev=False,
                        epilog="All other flags are train_cifar.py's.")
    parser.add_argument("--dataset", choices=["cifar10", "cifar100", "shapes"], default="cifar10")
    parser.add_argument("--reduced", action="store_true", help="a small model and little data, for CPU")
    parser.add_argument("--tiny", action="store_true", help="two seeds, one epoch of 256 images: does it work?")
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), metavar="CELL", help="only these, by name")
    parser.add_argument("--seeds", type=flags.number(int, least=1), default=3)
    parser.add_argument("--jobs", type=flags.number(int, least=1), default=1, help="runs at a time")
    parser.add_argument("--name", help="of the files in results/ (default: the data set's)")
    parser.add_argument("--data-name", help="what the tables call the data, for instance CIFAR-10 (JPEG)")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "grid")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPU cores")
    parser.add_argument("--table", action="store_true", help="train nothing, write table and figure again")
    own, rest = parser.parse_known_args()
    training = flags.Parser(prog=parser.prog)
    flags.add_flags(training, models=["vit_lite", "vit_nano"])
    args = training.parse_args(rest + (["--limit", "256", "--epochs", "1", "--model", "vit_nano"] if own.tiny else []))
    for flag in ("pool", "pe", "pe_init", "seed", "out", "resume"):
        if getattr(args, flag) != training.get_default(flag):
            raise UserError(f"the grid chooses {flag} itself, got {getattr(args, flag)}: see --cells, --seeds, --runs")
    own.name, own.data_name = own.name or own.dataset, own.data_name or own.dataset
    own.seeds = 2 if own.tiny else own.seeds
    return argparse.Namespace(**vars(args), **vars(own), threads=max(1, torch.get_num_threads() // own.jobs))


def main() -> None:
    args = parse()
    args.results.mkdir(parents=True, exist_ok=True)
    file = args.results / f"grid_{args.name}.json"
    runs = json.loads(file.read_text()) if file.exists() else []
    cells = args.cells or [cell for group in args.groups for cell in GROUPS[group]]
    done = {(run["cell"], run["seed"]) for run in runs}
    jobs = [(cell, seed) for seed in range(args.seeds) for cell in cells if (cell, seed) not in done]
    if jobs and not args.table:
        for run in results(args, jobs):
            runs.append(run)
            runs.sort(key=lambda run: (list(CELLS).index(run["cell"]), run["seed"]))
            checkpoint.write_text(file, json.dumps(runs, indent=1) + "\n")
    if not runs:
        raise UserError(f"{file} holds no run yet: leave out --table")
    command = f"python tutorials/grid.py --dataset {args.dataset}{' --reduced' if args.reduced else ''}"
    text = table(runs, GROUPS, command=command)
    checkpoint.write_text(file.with_suffix(".md"), text)
    draw(runs, GROUPS, file.with_suffix(".png"))
    draw_development(runs, file.with_name(f"{file.stem}_balance.png"))
    for cell in ("gap pvg", "gap mpvg"):
        draw_maps(args, cell, file.with_name(f"{file.stem}_maps_{cell.split()[1]}.png"))
    print(text)


if __name__ == "__main__":
    with one_line_errors():
        main()
