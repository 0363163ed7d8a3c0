"""The experiment: does global average pooling conflict with layer-wise PE, and does MPVG resolve it?

    python tutorials/grid.py --dataset cifar10 --twelve --jobs 2         twelve blocks on a CPU: many hours
    python tutorials/grid.py --dataset cifar10 --reduced                 four blocks, 20,000 images: a lesson in scale
    python tutorials/grid.py --dataset shapes --name mine --jobs 2       small images; nothing to download
    python tutorials/grid.py --dataset cifar10 --jobs 4 --compile        ViT-Lite, the published recipe, 100 epochs
    python tutorials/grid.py --dataset cifar10 --groups main why         only these groups of cells
    python tutorials/grid.py --dataset shapes --tiny --name tiny         every cell for one epoch of 256 images

All other flags are train_cifar.py's. The cells: grid_cells.py. Finished runs are skipped: stop the command at any time
and start it again. It writes results/grid_NAME.json, every run with its settings and measurements, and from that file
alone results/grid_NAME.md and the figures; and maps of tokens and PE for two trained models. The runs of
results/grid_shapes.json are of an older commit and can't be paired with new ones: give yours a NAME of their own.
"""
# The package first: from here on Ctrl-C is one line, also while torch is imported.
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mpvg_minimal.runtime.errors import UserError, one_line_errors

# isort: split
import argparse
import itertools
import json
import re
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from grid_cells import CELLS, GROUPS, REDUCED, REDUCED_LIMIT, SHAPES, TWELVE, TWELVE_PLAN, build
from grid_figures import draw, draw_depth, draw_development
from grid_jobs import in_child, in_children, one_thread, read_runs
from grid_report import table
from torch import Tensor
from torch.utils.data import Subset

from mpvg_minimal import ViT, balance
from mpvg_minimal.data import sources
from mpvg_minimal.data.loading import choose_loader, first_images, make_batches, normalizer
from mpvg_minimal.runtime.device import autocast
from mpvg_minimal.runtime.files import write_text
from mpvg_minimal.runtime.provenance import device_name
from mpvg_minimal.tools import plots
from mpvg_minimal.training import checkpoint, flags, recipes
from mpvg_minimal.training.folder import choose_out, read_config, write_config
from mpvg_minimal.training.loop import fit
from mpvg_minimal.training.models import check_compile, load_model
from mpvg_minimal.training.run import start_run
from mpvg_minimal.training.task import CLASSIFICATION

ROOT = Path(__file__).parents[1]
MEASURES = ("correlation", "cosine", "stream_correlation", "stream_cosine", "shared_correlation", "place_correlation")
MAY_DIFFER = {"seed", "cell", *(key for cell in CELLS.values() for key in cell)}          # between runs of one file
NEEDED = {                      # of every run, with its type or a test
    "cell": CELLS.__contains__, "seed": int, "top1": (int, float), "zeroed": (dict, float, type(None)), "machine": str,
    "data": str, "settings": {"model", "limit", "epochs", "batch_size"}.issubset, "environment": {"commit"}.issubset,
    "epochs": lambda epochs: epochs and all({"correlation"}.issubset(line) for line in epochs)}
HELD_OUT = 5000         # training images that --validation tests on


def rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


def variance(shift: Tensor) -> float:
    return rounded(shift.var(correction=0).item())


def measures(found: list[balance.Balance]) -> dict[str, Any]:
    """For every place where tokens can meet PE, in order: numbers, or None where no PE is delivered."""
    delivered = [place.pe for place in found[:-1] if place.pe is not None]
    return {key: [rounded(getattr(place, key)) for place in found] for key in MEASURES} | {
        "beta_variance": [variance(place.beta) for place in found],
        "shift_variance": [variance(place.shift) for place in found],
        "norm_cosine": rounded(found[-1].norm_cosine),
        "last_tokens_with_p_L": rounded(balance.pearson(found[-1].tokens, delivered[-1])) if delivered else None}


def evaluate(model: ViT, batches: Any, **options: Any) -> dict[str, Any]:
    """After every epoch: loss and top-1, and the balance of tokens and PE at each place (512 test images or so)."""
    metrics = CLASSIFICATION.evaluate(model, batches, **options)
    few = list(itertools.islice(batches.epoch(), -(-512 // batches.batch_size)))
    images = options["normalize"](torch.cat([images for images, _ in few]).to(options["device"]))
    return metrics | measures(balance.counterbalance(model, images))


def recipe_of(args: argparse.Namespace, seed: int) -> recipes.Recipe:
    full = SHAPES if args.dataset == "shapes" else replace(recipes.CIFAR, epochs=100)
    recipe = flags.adjust(REDUCED if args.reduced else TWELVE if args.twelve else full, args)
    return replace(recipe, seed=seed)


def settings_of(args: argparse.Namespace, recipe: recipes.Recipe, cell: str, device: torch.device) -> dict[str, Any]:
    limit = args.limit or (REDUCED_LIMIT if args.reduced else None)
    more = {"limit": limit, **({"held_out": HELD_OUT} if args.validation else {}), **CELLS[cell], "cell": cell}
    return flags.settings_of(args, recipe, amp=flags.choose_amp(args.amp, device), dataset=args.dataset,
                             loader=choose_loader(args.loader, device, args.dataset), **more)


def folder(args: argparse.Namespace, cell: str, seed: int) -> Path:
    return args.runs / args.name / f"{re.sub('[^A-Za-z0-9.]+', '_', cell)}_seed{seed}"


def open_data(args: argparse.Namespace) -> sources.Source:
    source = sources.open_source(args.dataset, args.data_dir)
    if not args.validation:
        return source
    kept = len(source.train) - HELD_OUT
    return source._replace(train=Subset(source.train, range(kept)),
                           test=Subset(source.train, range(kept, len(source.train))))


def train(args: argparse.Namespace, cell: str, seed: int) -> None:
    """One run of the grid, to its result.json; goes on where it was stopped."""
    torch.set_num_threads(args.threads)
    device, out, recipe = flags.choose_device(args.device), folder(args, cell, seed), recipe_of(args, seed)
    amp, settings = flags.choose_amp(args.amp, device), settings_of(args, recipe, cell, device)
    check_compile(args.compile, recipe, device)
    choose_out(out, settings, resume=(out / "config.json").exists())
    source = open_data(args)
    settings |= source.identity()
    print(f"--- {cell}, seed {seed}", flush=True)
    options = dict(batch_size=recipe.batch_size, device=device, augment=recipe.augment, seed=seed,
                   limit=settings["limit"], loader=settings["loader"], workers=args.workers)
    batches = [make_batches(source, train=split, **options) for split in (True, False)]
    mix = sources.mixing(len(source.classes), mixup=recipe.mixup, cutmix=recipe.cutmix)
    run = start_run(build(settings), recipe, out=out, device=device, amp=amp, compiled=args.compile, settings=settings,
                    task=CLASSIFICATION._replace(evaluate=evaluate))
    run.resume()
    write_config(out, settings, data_dir=args.data_dir, device=device)
    history = fit(run, *batches, normalize=normalizer(source, device), mix=mix, save_every=args.save_every)
    saved = checkpoint.newest(out)
    result = {"cell": cell, "seed": seed, "top1": history[-1]["top1"], **after_training(saved, source, device, amp),
              "seconds": round(sum(line["seconds"] for line in history), 1),
              "machine": args.machine or device_name(device), "data": args.data_name,
              "environment": read_config(out)["environment"], "settings": saved["settings"], "epochs": history}
    write_text(out / "result.json", json.dumps([result]))


def without(places: set[str]):
    """A forward hook for `LayerwisePE`: nothing is delivered to these places."""
    def hook(_, __, delivered):
        input_pe, block_pes, last_pe = delivered
        blocks = [None if f"block {number}" in places else pe for number, pe in enumerate(block_pes, start=1)]
        return None if "input" in places else input_pe, blocks, None if "last norm" in places else last_pe
    return hook


@torch.no_grad()
def after_training(saved: dict[str, Any], source: sources.Source, device: torch.device,
                   amp: torch.dtype | None) -> dict[str, Any]:
    """Of the trained model: top-1 with PE taken away at one place, and at all, on up to 2,000 test images; and how much
    of each place's shift (beta and the shared part of PE) was learnt, its variance without the value at the start."""
    settings = saved["settings"]
    few = make_batches(source, train=False, batch_size=settings["batch_size"], device=device,
                       limit=min(settings["limit"] or 2000, 2000), loader=settings["loader"])
    options = dict(normalize=normalizer(source, device), device=device, autocast=autocast(device, amp))
    model, images = load_model(saved, build).to(device), first_images(source, 512)
    found = balance.counterbalance(model, images.to(device))
    start = balance.counterbalance(build(settings).to(device), images[:1].to(device))
    reached = [place.place for place in found if place.pe is not None]
    zeroed = {}
    for name, places in {"nothing": set(), **{place: {place} for place in reached}, "all": set(reached)}.items():
        handle = model.pe.register_forward_hook(without(places))
        zeroed[name] = CLASSIFICATION.evaluate(model, few, **options)["top1"]
        handle.remove()
    return {"zeroed": zeroed if reached else None, "start_shift_variance": [variance(place.shift) for place in start],
            "learnt_shift_variance": [variance(now.shift - then.shift) for now, then in zip(found, start)]}


def as_json(runs: list[dict[str, Any]]) -> str:
    """A line for each run: what changes between two commits is readable, and the file is small."""
    return "[\n" + ",\n".join(json.dumps(run, separators=(",", ":")) for run in runs) + "\n]\n"


def draw_maps(args: argparse.Namespace, cell: str, path: Path) -> None:
    """Tokens and PE of the first seed's trained model at every place, as the paper draws them, if its run is here."""
    if (folder(args, cell, 0) / "result.json").exists():
        saved = checkpoint.newest(folder(args, cell, 0))
        found = balance.counterbalance(load_model(saved, build), first_images(open_data(args), 512))
        plots.draw_counterbalance(found, path)


def prepare(args: argparse.Namespace, job: tuple[str, int], runs: list[dict[str, Any]], file: Path) -> None:
    """Before the first run: see that it can be compared with those in the file, and fetch the data, once."""
    cell, seed = job
    settings = settings_of(args, recipe_of(args, seed), cell, flags.choose_device(args.device))
    for run in runs:
        for key in sorted(settings.keys() - MAY_DIFFER):
            if run["settings"].get(key) != settings[key]:
                raise UserError(f"{file} holds runs with {key} = {run['settings'].get(key)!r}, now it is "
                                f"{settings[key]!r}: give the same, or another --name")
    open_data(args)


def parse() -> argparse.Namespace:
    parser = flags.Parser(__doc__, allow_abbrev=False, epilog="All other flags are train_cifar.py's.")
    parser.add_argument("--dataset", choices=["cifar10", "cifar100", "shapes"], default="cifar10")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--twelve", action="store_true", help="twelve blocks and the cells of its plan, for CPU")
    size.add_argument("--reduced", action="store_true", help="four blocks and little data, for CPU")
    size.add_argument("--tiny", action="store_true", help="two seeds, one epoch of 256 images: does it work?")
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), help="default: all but depth, middle and parts")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), metavar="CELL", help="only these, by name")
    parser.add_argument("--seeds", type=flags.number(int, least=1), help="default: 3, or the plan's")
    parser.add_argument("--first-seed", type=flags.number(int, least=0), default=0)
    parser.add_argument("--validation", action="store_true",
                        help=f"test on {HELD_OUT:,} training images that are held out: to choose a recipe")
    parser.add_argument("--jobs", type=flags.number(int, least=1, most=flags.MOST_PROCESSES), default=1,
                        help="runs at a time")
    parser.add_argument("--name", type=flags.path, help="of the files in results/ (default: the data set's)")
    parser.add_argument("--data-name", help="what the tables call the data, for instance CIFAR-10 (JPEG)")
    parser.add_argument("--runs", type=flags.path, default=ROOT / "runs" / "grid")
    parser.add_argument("--results", type=flags.path, default=ROOT / "results")
    parser.add_argument("--machine", help="what the tables call it (default: the device's name)")
    parser.add_argument("--table", action="store_true", help="train nothing, write table and figure again")
    own, rest = parser.parse_known_args()
    training = flags.Parser(prog=parser.prog)
    flags.add_flags(training, models=["vit_lite", "vit_nano", "deit_nano"])
    args = training.parse_args(rest + (["--limit", "256", "--epochs", "1", "--model", "vit_nano"] if own.tiny else []))
    for flag in ("pool", "pe", "pe_init", "seed", "out", "resume"):
        if getattr(args, flag) != training.get_default(flag):
            raise UserError(f"the grid chooses {flag} itself, got {getattr(args, flag)}: see --cells, --seeds, --runs")
    own.name = own.name or own.dataset + ("_twelve" if own.twelve else "")
    own.data_name = own.data_name or own.dataset
    if own.twelve and args.loader == "auto":
        args.loader = "device"                              # augments in batches: faster than images one by one
    return argparse.Namespace(**vars(args), **vars(own), threads=max(1, one_thread() // own.jobs))


def planned(args: argparse.Namespace) -> list[tuple[str, int]]:
    """(cell, seed) of every run, in the order in which they are trained."""
    if args.cells or args.groups or not args.twelve:
        groups = args.groups or [name for name in GROUPS if name not in ("middle", "parts", "depth")]
        plan = [(args.cells or [cell for group in groups for cell in GROUPS[group]], 2 if args.tiny else 3)]
    else:
        plan = TWELVE_PLAN
    jobs = [(cell, args.first_seed + seed) for cells, seeds in plan for seed in range(args.seeds or seeds)
            for cell in cells]
    return list(dict.fromkeys(jobs))                        # a later line of the plan may add seeds to an earlier one


def main() -> None:
    args = parse()
    file = args.results / f"grid_{args.name}.json"
    runs = read_runs(file, NEEDED)
    done = {(run["cell"], run["seed"]) for run in runs}
    jobs = [job for job in planned(args) if job not in done]
    if not args.table:
        in_child(prepare, args, (jobs or planned(args))[0], runs, file)
    if jobs and not args.table:
        write_text(file, as_json(runs))                     # who cannot should not learn it in an hour
        for job in in_children(partial(train, args), jobs, at_once=args.jobs):
            runs += read_runs(folder(args, *job) / "result.json", NEEDED)
            runs.sort(key=lambda run: (list(CELLS).index(run["cell"]), run["seed"]))
            write_text(file, as_json(runs))
    if not runs:
        raise UserError(f"{file} holds no run yet: leave out --table")
    preset = " --reduced" if args.reduced else " --twelve" if args.twelve else ""
    text = table(runs, GROUPS, command=f"python tutorials/grid.py --dataset {args.dataset}{preset}")
    write_text(file.with_suffix(".md"), text)
    draw(runs, file.with_suffix(".png"))
    draw_development(runs, file.with_name(f"{file.stem}_balance.png"))
    if any(run["cell"] in GROUPS["depth"] for run in runs):
        draw_depth(runs, file.with_name(f"{file.stem}_depth.png"))
    for cell in ("gap pvg", "gap mpvg"):
        draw_maps(args, cell, file.with_name(f"{file.stem}_maps_{cell.split()[1]}.png"))
    print(text)


if __name__ == "__main__":
    with one_line_errors():
        main()
