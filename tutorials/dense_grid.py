"""Every PE schedule on both dense tasks of the built-in shapes, with several seeds.

Is PE at the last norm worth anything there, where it differs from token to token and is no mere bias?

    python tutorials/dense_grid.py                  what is finished is skipped; stop it at any time and start it again
    python tutorials/dense_grid.py --table          only write the table, from the runs that are finished

Writes results/dense_shapes.json, every run with its settings and its metrics of each epoch, and from that file alone
results/dense_shapes.md. "zeroed": the same model tested with LN'_last(p) = 0, so without PE at the last norm.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tutorials")]

from grid_report import mean_and_error  # noqa: E402

from mpvg_minimal.data.loading import make_batches, normalizer  # noqa: E402
from mpvg_minimal.dense import targets  # noqa: E402
from mpvg_minimal.dense.tasks import TASKS, load_dense  # noqa: E402
from mpvg_minimal.runtime.files import write_text  # noqa: E402
from mpvg_minimal.runtime.precision import autocast  # noqa: E402
from mpvg_minimal.training import checkpoint, flags  # noqa: E402
from mpvg_minimal.training.folder import read_config  # noqa: E402

SCHEDULES = {"none": ["--no-pe"], "once": [], "lape": ["--lape"], "pvg": ["--pvg"], "mpvg": ["--mpvg"]}
JSON, TABLE = ROOT / "results" / "dense_shapes.json", ROOT / "results" / "dense_shapes.md"


def train(out: Path, task: str, schedule: str, seed: int) -> None:
    """One cell, as a user would run it; goes on where it was stopped."""
    command = [sys.executable, "-m", "mpvg_minimal.dense", "--task", task, "--gap", *SCHEDULES[schedule],
               "--seed", str(seed), "--out", str(out)]
    resume = ["--resume"] if (out / "config.json").exists() else []
    subprocess.run(command + resume, cwd=ROOT, check=True)


@torch.no_grad()
def zeroed(out: Path) -> float | None:
    """The score without PE at the last norm, on the run's device and in its precision; None where none is delivered."""
    model, settings = load_dense(out)
    if model.vit.last_norm.pe_norm is None:
        return None
    model.vit.last_norm.pe_norm.weight.zero_()
    model.vit.last_norm.pe_norm.bias.zero_()
    source, task = targets.open_shapes(settings["task"]), TASKS[settings["task"]]
    device = flags.choose_device("auto")                                    # as the run that is started above
    amp = getattr(torch, settings["amp"]) if settings["amp"] else None
    batches = make_batches(source, train=False, batch_size=settings["batch_size"], limit=settings["limit"],
                           device=device)
    return task.evaluate(model.to(device), batches, normalize=normalizer(source, device), device=device,
                         autocast=autocast(device, amp))[task.score]


def record(out: Path, machine: str | None) -> dict[str, Any]:
    config = read_config(out)
    history = checkpoint.newest(out)["history"]
    return {"task": config["settings"]["task"], "pe": config["settings"]["pe"], "seed": config["settings"]["seed"],
            "score": history[-1][TASKS[config["settings"]["task"]].score], "zeroed": zeroed(out),
            "seconds": round(sum(line["seconds"] for line in history), 1),
            "machine": machine or config["environment"]["device"],
            "environment": config["environment"], "settings": config["settings"], "epochs": history}


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: mean ± standard error over seeds; differences are paired, seed by seed."""
    lines = []
    for task, of_task in TASKS.items():
        cell = {(run["pe"], run["seed"]): run for run in runs if run["task"] == task}
        once = {seed: run["score"] for (pe, seed), run in cell.items() if pe == "once"}
        lines += [f"### {task}: {of_task.score}, 0 to 1", "",
                  "| schedule | runs | mean ± s.e. | difference to `once` | zeroed | zeroed − as trained |",
                  "|---|---|---|---|---|---|"]
        for pe in SCHEDULES:
            of_pe = {seed: run for (name, seed), run in cell.items() if name == pe}
            tested = [run for run in of_pe.values() if run["zeroed"] is not None]
            columns = [[run["score"] for run in of_pe.values()],
                       [run["score"] - once[seed] for seed, run in of_pe.items() if seed in once and pe != "once"],
                       [run["zeroed"] for run in tested], [run["zeroed"] - run["score"] for run in tested]]
            cells = " | ".join(mean_and_error(values, digits=4) for values in columns)
            lines.append(f"| `{pe}` | {len(of_pe)} | {cells} |")
        lines.append("")
    machines = sorted({f"{run['machine']}, commit {run['environment']['commit']}" for run in runs})
    return "\n".join([*lines, f"`python tutorials/dense_grid.py`; {'; '.join(machines)}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "dense_grid")
    parser.add_argument("--machine", help="what the table calls it (default: the device's name)")
    parser.add_argument("--table", action="store_true", help="train nothing")
    args = parser.parse_args()
    JSON.parent.mkdir(exist_ok=True)
    runs = json.loads(JSON.read_text()) if JSON.exists() else []
    done = {(run["task"], run["pe"], run["seed"]) for run in runs}
    cells = [(task, pe, seed) for seed in range(args.seeds) for task in TASKS for pe in SCHEDULES]
    for task, pe, seed in [] if args.table else cells:
        if (task, pe, seed) not in done:
            out = args.runs / f"{task}_{pe}_seed{seed}"
            train(out, task, pe, seed)
            runs.append(record(out, args.machine))
            write_text(JSON, json.dumps(runs, indent=1) + "\n")
    TABLE.write_text(table(runs))
    missing = [cell for cell in cells if cell not in {(run["task"], run["pe"], run["seed"]) for run in runs}]
    print(TABLE.read_text(), *[f"missing: {cell}" for cell in missing], sep="\n")


if __name__ == "__main__":
    main()
