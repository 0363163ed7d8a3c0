"""Every PE schedule on both dense tasks of the built-in shapes, with several seeds.

Is PE at the last norm worth anything there, where it differs from token to token and is no mere bias?

    python tutorials/dense_grid.py                  what is finished is skipped; stop it at any time and start it again
    python tutorials/dense_grid.py --table          only write the table, from the runs that are finished

Writes results/dense_shapes.json, every run with its settings and its metrics of each epoch, and from that file alone
results/dense_shapes.md. "zeroed": the same model tested with LN'_last(p) = 0, so without PE at the last norm.
"""
# The package first: from here on Ctrl-C is one line, also while torch is imported.
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mpvg_minimal.runtime.errors import one_line_errors

# isort: split
import json
from functools import partial
from typing import Any

import torch
from grid_jobs import in_children, one_thread, read_runs
from grid_report import mean_and_error, paired

from mpvg_minimal.data.loading import make_batches, normalizer
from mpvg_minimal.dense import __main__ as dense
from mpvg_minimal.dense import targets
from mpvg_minimal.dense.tasks import TASKS
from mpvg_minimal.runtime.device import autocast
from mpvg_minimal.runtime.files import write_text
from mpvg_minimal.tools import finished
from mpvg_minimal.training import checkpoint, flags
from mpvg_minimal.training.folder import read_config

SCHEDULES = {"none": ["--no-pe"], "once": [], "lape": ["--lape"], "pvg": ["--pvg"], "mpvg": ["--mpvg"]}
ROOT = Path(__file__).parents[1]
NEEDED = {"task": str, "pe": str, "seed": int, "score": float, "zeroed": (float, type(None)), "settings": dict,
          "environment": {"commit"}.issubset, "machine": str}
JSON, TABLE = ROOT / "results" / "dense_shapes.json", ROOT / "results" / "dense_shapes.md"


def train(threads: int, out: Path, task: str, schedule: str, seed: int) -> None:
    """One cell, as a user would run it; goes on where it was stopped."""
    torch.set_num_threads(threads)
    sys.argv = ["dense_grid.py", "--task", task, "--gap", *SCHEDULES[schedule], "--seed", str(seed), "--out", str(out),
                "--resume"]
    dense.main()


@torch.no_grad()
def zeroed(out: Path) -> float | None:
    """The score without PE at the last norm, on the run's device and in its precision; None where none is delivered."""
    saved, model = finished.load(out)
    settings = saved["settings"]
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
        own = [run for run in runs if run["task"] == task]
        scores = {(run["pe"], run["seed"]): run["score"] for run in own}
        lines += [f"### {task}: {of_task.score}, 0 to 1", "",
                  "| schedule | runs | mean ± s.e. | difference to `once` | zeroed | zeroed − as trained |",
                  "|---|---|---|---|---|---|"]
        for pe in SCHEDULES:
            of_pe = [run for run in own if run["pe"] == pe]
            tested = [run for run in of_pe if run["zeroed"] is not None]
            columns = [[run["score"] for run in of_pe], paired(scores, {pe: 1, "once": -1}) if pe != "once" else [],
                       [run["zeroed"] for run in tested], [run["zeroed"] - run["score"] for run in tested]]
            cells = " | ".join(mean_and_error(values, digits=4) for values in columns)
            lines.append(f"| `{pe}` | {len(of_pe)} | {cells} |")
        lines.append("")
    machines = sorted({f"{run['machine']}, commit {run['environment']['commit']}" for run in runs})
    return "\n".join([*lines, f"`python tutorials/dense_grid.py`; {'; '.join(machines)}.", ""])


def main() -> None:
    parser = flags.Parser(__doc__)
    parser.add_argument("--seeds", type=flags.number(int, least=1), default=3)
    parser.add_argument("--runs", type=flags.path, default=ROOT / "runs" / "dense_grid")
    parser.add_argument("--machine", help="what the table calls it (default: the device's name)")
    parser.add_argument("--table", action="store_true", help="train nothing")
    args = parser.parse_args()
    runs, threads = read_runs(JSON, NEEDED), one_thread()
    done = {(run["task"], run["pe"], run["seed"]) for run in runs}
    cells = [(task, pe, seed) for seed in range(args.seeds) for task in TASKS for pe in SCHEDULES]
    jobs = [(args.runs / "{}_{}_seed{}".format(*cell), *cell) for cell in cells if cell not in done]
    for out, *_ in in_children(partial(train, threads), [] if args.table else jobs):
        runs.append(record(out, args.machine))
        write_text(JSON, json.dumps(runs, indent=1) + "\n")
    text = table(runs)
    write_text(TABLE, text)
    missing = [cell for cell in cells if cell not in {(run["task"], run["pe"], run["seed"]) for run in runs}]
    print(text, *[f"missing: {cell}" for cell in missing], sep="\n")


if __name__ == "__main__":
    with one_line_errors():
        main()
