"""Two parts of gpu_day.py that train by train_cifar.py: `python tutorials/gpu_parts.py waits`, or epochs.

Nothing is downloaded: where CIFAR-10 is not there, the images are random, of the same shape and number.
"""
import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import train_cifar  # noqa: E402
from mpvg_minimal.data import sources  # noqa: E402
from mpvg_minimal.runtime.errors import one_line_errors  # noqa: E402
from mpvg_minimal.runtime.files import write_text  # noqa: E402
from mpvg_minimal.runtime.provenance import environment  # noqa: E402
from mpvg_minimal.training import flags, loop  # noqa: E402

STEPS = 71      # the first one may wait: it begins with the augmentation of the whole epoch


def synthetic(size: int) -> TensorDataset:
    """Random images of CIFAR-10's shape, and labels."""
    return TensorDataset(torch.randint(256, (size, 3, 32, 32), dtype=torch.uint8), torch.arange(size) % 10)


def train(args: argparse.Namespace, out: str, *more: str) -> str:
    """train_cifar.py as a user would start it, on synthetic images if CIFAR-10 is not there. Returns what it was."""
    there = (Path(args.data_dir) / "cifar-10-batches-py").exists()
    if args.tiny or not there:
        sizes = (4 * STEPS, 8) if args.tiny else (50_000, 10_000)
        source = sources.Source(*map(synthetic, sizes), list("0123456789"), 32, *sources.CIFAR_STATS["cifar10"])
        sources.open_source = lambda *_: source
    small = ["--batch-size", "4", "--model", "vit_nano"] if args.tiny else []
    sys.argv = ["train_cifar.py", "--gap", "--mpvg", "--loader", "device", "--device", args.device, "--out", out,
                "--data-dir", str(args.data_dir), *small, *more]
    train_cifar.main()
    return "synthetic images of CIFAR-10's shape" if args.tiny or not there else "CIFAR-10"


def waits(args: argparse.Namespace, cuda: bool) -> dict[str, Any]:
    """A run of STEPS steps. From its second step on, whatever waits for the device raises RuntimeError."""
    make_batches, limit = train_cifar.make_batches, str(STEPS * (4 if args.tiny else 128))

    def watched(source: sources.Source, *, train: bool, **options: Any):
        batches = make_batches(source, train=train, **options)
        if train:
            epoch = batches.epoch
            batches.epoch = lambda *position: watch(epoch(*position), cuda)
        return batches
    train_cifar.make_batches, loop.read_running_loss = watched, lambda run: (0.0, 0.0)      # reading it may wait
    with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as averaged:
        train(args, plain, "--epochs", "1", "--limit", limit)
        train(args, averaged, "--epochs", "1", "--limit", limit, "--ema", "0.999")
    return {"steps": STEPS - 1, "waits": 0 if cuda else None}           # on a CPU nothing can be seen


def watch(batches: Any, cuda: bool):
    for number, batch in enumerate(batches):
        if cuda and number == 1:
            torch.cuda.set_sync_debug_mode("error")
        yield batch
    if cuda:
        torch.cuda.set_sync_debug_mode("default")


def epochs(args: argparse.Namespace, cuda: bool) -> dict[str, Any]:
    """The seconds of each epoch with its test, and from them and all else the minutes of 300."""
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        data = train(args, out, "--epochs", "3" if args.tiny else "10", *["--compile", "reduce-overhead"] * cuda)
        whole = time.perf_counter() - began
        lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines]
    minutes = (whole + (300 - len(seconds)) * statistics.median(seconds[1:])) / 60
    return {"data": data, "seconds": seconds, "seconds_in_all": round(whole, 1), "minutes_of_300": round(minutes, 2),
            "images_per_second": lines[-1]["images_per_second"], "top1": lines[-1]["top1"]}


def main() -> None:
    parser = flags.Parser(__doc__)
    parser.add_argument("part", choices=["waits", "epochs"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data-dir", type=flags.path, default="data")
    parser.add_argument("--out", type=flags.path, required=True)
    args = parser.parse_args()
    device = flags.choose_device(args.device)
    result = {"waits": waits, "epochs": epochs}[args.part](args, device.type == "cuda")
    write_text(args.out / f"{args.part}.json", json.dumps(result | {"environment": environment(device)}, indent=1))


if __name__ == "__main__":
    with one_line_errors():
        main()
