"""ImageNet on 1, 8 and 32 GPUs, worked out on paper: how many hours, and what limits.

    python -m mpvg_minimal.tools.scaling              the table, from results/images_cpu.json and what is assumed below
    python -m mpvg_minimal.tools.scaling --measure    measure first what a photograph costs a core, into that file

An epoch takes as long as the slowest of three: the GPUs' arithmetic, the cores that read and augment photographs, and
the sum of all gradients over the network (a ring: each GPU sends nearly twice its gradients, in float32, every step).
They run at the same time, so what is worked out is a lower bound; start-up, tests and latency are left out.

The photographs of the measurement are made of noise with the spectrum of photographs, as large as ImageNet's usually
are. PIL can decode a JPEG at half its size (`Image.draft`), but the shorter side of 375 has no room for that: a crop
would have less than the 224 pixels that it needs. So `--cache` is what helps.
"""
import argparse
import io
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from ..data.cache import shrunk
from ..data.sources import IMAGENET_STATS, Source, augmentation, shorter_side
from ..runtime.errors import UserError, one_line_errors
from ..training import flags
from ..training.recipes import IMAGENET
from ..vit import SIZES
from .measure import forward_flops, header, write

MODELS, GPUS = ("deit_tiny", "deit_small", "deit_base"), (1, 8, 32)
EPOCHS, IMAGES, BATCH, SIZE = IMAGENET["epochs"], 1_281_167, IMAGENET["batch_size"], 224
PEAK, UTILISATION = 989e12, 0.2         # FLOP/s of an H100 in bfloat16, by its data sheet; the share is assumed
CORES = 16                              # for each GPU: assumed
MACHINE = 8                             # GPUs in a machine, and what each can send a second, in bytes: assumed are
INSIDE, BETWEEN = 225e9, 25e9           # the half of NVLink's 450 GB/s and, between machines, of 400 Gbit/s
HEIGHT, WIDTH, QUALITY = 375, 500, 90   # of the measured photographs


def hours(flops: float, gradients: float, gpus: int, seconds: float) -> tuple[float, str]:
    """For all epochs, and what limits. flops: to train on an image; gradients: bytes; seconds: of a core an image."""
    sent = 2 * (gpus - 1) / gpus * gradients
    limits = {"GPU": flops / (gpus * PEAK * UTILISATION), "images": seconds / (gpus * CORES),
              "network": sent / (INSIDE if gpus <= MACHINE else BETWEEN) / BATCH}            # seconds for an image
    limit = max(limits, key=limits.get)
    return EPOCHS * IMAGES * limits[limit] / 3600, limit


def table(milliseconds: dict[str, float]) -> str:
    """As Markdown. milliseconds: of a core for an image, "original" and "cached"."""
    lines = ["| model | GFLOP an image | gradients | " + " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in GPUS) + " |",
             "|---" * (3 + len(GPUS)) + "|"]
    for name in MODELS:
        with torch.device("meta"):
            model = SIZES[name](pe="mpvg", pool="gap")
            flops = 3 * forward_flops(model, torch.empty(1, 3, SIZE, SIZE))
        gradients = 4 * sum(p.numel() for p in model.parameters())
        for key, label in (("original", f"`{name}`"), ("cached", f"`{name}`, `--cache`")):
            cells = ["{:.2g} h, {}".format(*hours(flops, gradients, n, milliseconds[key] / 1000)) for n in GPUS]
            lines.append(f"| {label} | {flops / 1e9:.3g} | {gradients / 1e6:.0f} MB | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def photograph(number: int) -> Image.Image:
    """Noise whose amplitude falls with the frequency, as a photograph's does, and a little that does not."""
    g = torch.Generator().manual_seed(number)
    frequency = (torch.fft.fftfreq(HEIGHT)[:, None] ** 2 + torch.fft.rfftfreq(WIDTH) ** 2).sqrt()
    frequency[0, 0] = 1 / WIDTH

    def noise(*shape: int, power: float) -> torch.Tensor:
        white = torch.fft.rfft2(torch.randn(*shape, HEIGHT, WIDTH, generator=g))
        x = torch.fft.irfft2(white / frequency ** power, (HEIGHT, WIDTH))
        return x / x.std()

    pixels = 120 + 50 * noise(1, power=1.1) + 18 * noise(3, power=1.5) + 6 * noise(1, power=0)      # (3, H, W)
    return to_pil_image(pixels.clamp(0, 255).to(torch.uint8))


def measure(count: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of one core for an image, medians over rounds in which all candidates take turns."""
    torch.set_num_threads(1)
    files: dict[str, list[bytes]] = {"original": [], "cached": []}
    for number in range(count):
        content = io.BytesIO()
        photograph(number).save(content, "JPEG", quality=QUALITY)
        files["original"].append(content.getvalue())
        files["cached"].append(shrunk(Image.open(content).convert("RGB"), shorter_side(SIZE)))
    augment = augmentation(Source(None, None, [], SIZE, *IMAGENET_STATS), **IMAGENET["augment"])
    steps = {"decoded": lambda image: image, "cropped": augment.transforms[0], "augmented": augment}
    seconds = {(kind, name): [] for kind in files for name in steps}
    for _ in range(rounds):
        for kind, name in seconds:
            began = time.process_time()
            for content in files[kind]:
                steps[name](Image.open(io.BytesIO(content)).convert("RGB"))
            seconds[kind, name].append((time.process_time() - began) / count)
    medians = {kind: {name: 1000 * statistics.median(seconds[kind, name]) for name in steps} for kind in files}
    return {"kilobytes": {kind: sum(map(len, files[kind])) / count / 1000 for kind in files}, "milliseconds": medians}


def main() -> None:
    parser = flags.Parser(prog="python -m mpvg_minimal.tools.scaling", description=__doc__.split("\n")[0],
                        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="first measure what a photograph costs a core")
    parser.add_argument("--images", type=flags.number(int, least=1), default=40)
    parser.add_argument("--rounds", type=flags.number(int, least=1), default=7)
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args()
    path = args.out / "images_cpu.json"
    if args.measure:
        measured = {"images": args.images, "rounds": args.rounds} | measure(args.images, args.rounds)
        write(header("mpvg_minimal.tools.scaling", torch.device("cpu")) | measured, path)
    if not path.exists():
        raise UserError(f"{path} is not there: --measure makes it")
    print(table({kind: times["augmented"] for kind, times in json.loads(path.read_text())["milliseconds"].items()}))


if __name__ == "__main__":
    with one_line_errors():
        main()
