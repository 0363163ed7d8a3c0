"""A first day with a GPU: all that only a card can show, by one command and in at most nine minutes.

    python tutorials/gpu_day.py                     every part, into results/gpu_day/
    python tutorials/gpu_day.py --parts waits cost  only these
    python tutorials/gpu_day.py --tiny              the same in a minute, on a CPU too: does the command work?

    waits             70 training steps in which a wait for the device is an error, without and with an averaged copy
    tests             the tests that need a GPU: pytest -m cuda
    cost, compiled    what each PE schedule costs, beside timm's and vit-pytorch's ViT
    speed             ViT-Lite's share of the card's FLOP/s, and its images/s by batch size
    graphs, small     the share of ViT-Lite with CUDA graphs; of DeiT-S
    epochs            ten epochs of CIFAR-10 by the recipe, with CUDA graphs, and the minutes that 300 would take

Each part is a process with a time limit of its own, so that one that fails or hangs costs only itself. What it prints
goes to PART.txt while it runs, its numbers into JSON files beside it, and summary.md is written anew after each part.
"""
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tutorials")]

from gpu_summary import summary  # noqa: E402

from mpvg_minimal.runtime.errors import UserError, one_line_errors  # noqa: E402
from mpvg_minimal.runtime.files import write_text  # noqa: E402
from mpvg_minimal.runtime.provenance import environment  # noqa: E402
from mpvg_minimal.training import flags  # noqa: E402

COST = "-m mpvg_minimal.tools.cost --models vit_lite deit_small --rounds 11"
SPEED, PARTS = "-m mpvg_minimal.tools.throughput --model", "tutorials/gpu_parts.py"
COMMANDS = {    # part: its seconds, its command, and what --tiny runs in its place (None: nothing)
    "waits": (40, f"{PARTS} waits", f"{PARTS} waits --tiny"),
    "tests": (100, "-m pytest -m cuda tests/test_cuda.py -v", "-m pytest -m cuda tests/test_cuda.py -v -k boxes"),
    "cost": (70, COST, "-m mpvg_minimal.tools.cost --models vit_nano --batch-size 2 --rounds 1"),
    "compiled": (110, f"{COST} --compile", None),
    "speed": (45, f"{SPEED} vit_lite --dataset cifar10 --parts limit batch",
              f"{SPEED} vit_nano --parts limit batch --batch-size 2 --sizes 2 3 --matrix 64 --rounds 1"),
    "graphs": (35, f"{SPEED} vit_lite --dataset cifar10 --parts limit --compile reduce-overhead", None),
    "small": (20, f"{SPEED} deit_small --dataset imagenet --parts limit --batch-size 256", None),
    "epochs": (120, f"{PARTS} epochs", f"{PARTS} epochs --tiny")}


def start(words: list[str], file: Path, limit: float) -> str:
    """Run a command in a process of its own, its output into the file. Returns how it ended."""
    began = time.monotonic()
    with open(file, "w") as output:
        print("python", *words, file=output, flush=True)
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=output, stderr=output,
                                   start_new_session=True)
        try:
            code = process.wait(limit)
            end = "ended well" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)                          # with the processes that it started
            process.wait()
            end = f"stopped after its {limit:.0f} s"
    return f"{end}, {time.monotonic() - began:.0f} s"


def main() -> None:
    parser = flags.Parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--tiny", action="store_true", help="small things in their place: does the command work?")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data-dir", type=flags.path, default="data", help="CIFAR-10, if it is there")
    parser.add_argument("--minutes", type=flags.number(float, above=0), default=9.0)
    parser.add_argument("--out", type=flags.path, default=ROOT / "results" / "gpu_day")
    args = parser.parse_args()
    device = flags.choose_device(args.device)
    if device.type != "cuda" and not args.tiny:
        raise UserError(f"there is no GPU here, the device is {device}: --tiny shows whether the command works")
    peers = ["--peers"] * all(map(importlib.util.find_spec, ("timm", "vit_pytorch")))
    args.out.mkdir(parents=True, exist_ok=True)
    ends, last = {}, time.monotonic() + 60 * args.minutes
    for part in args.parts:
        seconds, *commands = COMMANDS[part]
        words = (commands[args.tiny] or "").split()
        if not words:
            continue
        words += [] if part == "tests" else ["--device", args.device, "--out", str(args.out.resolve())]
        words += ["--data-dir", str(args.data_dir)] if PARTS in words else []
        words += peers if "mpvg_minimal.tools.cost" in words else []
        limit = min(seconds, last - time.monotonic())
        ends[part] = "no time was left" if limit < 1 else start(words, args.out / f"{part}.txt", limit)
        print(f"{part}: {ends[part]}", flush=True)
        write_text(args.out / "summary.md", summary(args.out, environment(device), ends, tiny=args.tiny))
    print((args.out / "summary.md").read_text())


if __name__ == "__main__":
    with one_line_errors():
        main()
