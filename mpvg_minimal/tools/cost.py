"""What each PE schedule costs: parameters, FLOPs, memory, images/s, each beside PE added once.

    python -m mpvg_minimal.tools.cost                         the three small models, eager
    python -m mpvg_minimal.tools.cost --compile --peers       compiled, and beside timm's and vit-pytorch's ViT

Machines are shared and noisy, so what counts is the ratio: each candidate takes turns with PE once, and its ratio is
the median over many rounds of PE-once's time by its own in the same round. What disturbs a machine lasts for seconds,
so many short rounds are worth more than few long ones: hence the small batches on CPU, and for inference half the batch
and four times as many rounds. A GPU gets batches that fill it, for inference four times as large. The ratio of PE once
to a copy of itself shows what noise is left. All train by `train_step`, peers included. Shapes: B images.
"""
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..fold import fold_last_pe
from ..runtime.device import autocast
from ..runtime.errors import UserError, one_line_errors
from ..training import flags
from ..training.loop import train_step
from ..training.models import refuse_more_than_fits
from ..training.recipes import CIFAR
from ..training.run import start_run
from ..vit import SIZES
from .measure import forward_flops, header, interleaved, kept_for_backward, peak_memory, table, write

SCHEDULES = ("once", "none", "lape", "pvg", "mpvg")         # the first is what the others are compared with
COPY = "once, a copy"                                       # its true ratio is 1
BATCH = {"vit_nano": (64, 1024), "vit_lite": (16, 1024), "deit_tiny": (4, 512), "deit_small": (2, 256)}     # CPU, CUDA


def peer_models(name: str) -> dict[str, nn.Module]:
    """timm's and vit-pytorch's ViT of the same size, with GAP. UserError if they are not installed."""
    try:
        from timm.models.vision_transformer import VisionTransformer
        from vit_pytorch import SimpleViT
    except ImportError as error:
        raise UserError(f"--peers needs {error.name}: pip install timm vit-pytorch") from error
    ours = SIZES[name](pe="once")
    size, patch = ours.patch_embed.image_size[0], ours.patch_embed.patch_size
    width, depth, heads = ours.head.in_features, len(ours.blocks), ours.blocks[0].attn.heads
    hidden = ours.blocks[0].mlp.fc1.out_features
    return {"timm": VisionTransformer(img_size=size, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads,
                                      mlp_ratio=hidden / width, qkv_bias=ours.blocks[0].attn.qkv.bias is not None,
                                      num_classes=ours.num_classes, global_pool="avg", class_token=False,
                                      fc_norm=False),
            "vit-pytorch": SimpleViT(image_size=size, patch_size=patch, num_classes=ours.num_classes, dim=width,
                                     depth=depth, heads=heads, mlp_dim=hidden, dim_head=width // heads)}


def candidates(name: str, device: torch.device, *, peers: bool) -> dict[str, nn.Module]:
    """All that are compared: the schedules, a copy of the first, the folded MPVG, the peers. Still on the CPU."""
    models = {schedule: SIZES[name](pe=schedule, pool="gap") for schedule in SCHEDULES}
    models[COPY] = SIZES[name](pe=SCHEDULES[0], pool="gap")
    models["mpvg, folded"] = fold_last_pe(models["mpvg"])
    if peers:
        models |= peer_models(name)
        peer = models["vit-pytorch"]
        peer.pos_embedding = peer.pos_embedding.to(device)      # its fixed PE is no buffer: else copied in every pass
    return models


def measure(name: str, device: torch.device, amp: torch.dtype | None, *, batch: int, rounds: int, compiled: bool,
            peers: bool) -> list[dict[str, Any]]:
    """A row for each of the candidates."""
    models = candidates(name, device, peers=peers)
    size = models["once"].patch_embed.image_size
    images, labels = torch.randn(batch, 3, *size, device=device), torch.randint(10, (batch,), device=device)
    tested = images.repeat(4, 1, 1, 1) if device.type == "cuda" else images[:(batch + 1) // 2]
    trains, infers, rows = {}, {}, []
    for label, model in models.items():
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        model.to(device)
        row = {"model": name, "variant": label, "compiled": compiled, "batch": batch,
               "parameters": sum(p.numel() for p in model.parameters()),
               "gflop_forward": forward_flops(model, images) / 1e9}
        if label != "mpvg, folded":
            row["kept_mb_per_image"] = kept_for_backward(model, images, autocast(device, amp)) / batch / 1e6
            run = start_run(model, CIFAR, out=Path(), device=device, amp=amp, compiled="default" if compiled else None)
            trains[label] = lambda run=run: (run.model.train(), train_step(run, images, labels, lr=1e-4))
            row["peak_mb"] = peak_memory(trains[label], device, before)
        elif compiled:
            model.compile(dynamic=False)
        infers[label] = lambda model=model: infer(model.eval(), tested, device, amp)
        rows.append(row)
    for what, calls, count, number in (("train", trains, batch, rounds),
                                       ("inference", infers, len(tested), 4 * rounds)):
        for row in rows:
            if row["variant"] in calls:
                turns = {name: calls[name] for name in (SCHEDULES[0], row["variant"])}
                seconds = interleaved(turns, rounds=number, device=device)
                row |= summary(what, seconds[row["variant"]], seconds[SCHEDULES[0]], count)
    return rows


@torch.no_grad()
def infer(model: nn.Module, images: Tensor, device: torch.device, amp: torch.dtype | None) -> Tensor:
    with autocast(device, amp):
        return model(images)


def summary(what: str, seconds: list[float], once: list[float], batch: int) -> dict[str, Any]:
    """Images/s, and the ratio to PE added once with its quartiles over the rounds."""
    ratios = [b / a for a, b in zip(seconds, once, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {f"{what}_images_per_second": batch / statistics.median(seconds), f"{what}_ratio": middle,
            f"{what}_ratio_quartiles": [low, high]}


def main() -> None:
    parser = flags.Parser(__doc__, prog="python -m mpvg_minimal.tools.cost")
    parser.add_argument("--models", nargs="+", choices=list(BATCH), default=["vit_lite", "deit_tiny", "deit_small"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", choices=["auto", "bf16", "fp16", "off"], default="auto")
    parser.add_argument("--batch-size", type=flags.number(int, least=1), help="default: by model")
    parser.add_argument("--rounds", type=flags.number(int, least=1), default=61)
    parser.add_argument("--compile", action="store_true", help="measure compiled models")
    parser.add_argument("--peers", action="store_true", help="beside timm's and vit-pytorch's ViT")
    parser.add_argument("--out", type=flags.path, default=Path("results"))
    args = parser.parse_args()
    device = flags.choose_device(args.device)
    amp = flags.choose_amp(args.amp, device)
    torch._dynamo.config.recompile_limit = 100          # all candidates share ViT.forward: past 8 it would run eagerly
    path = args.out / f"cost_{device.type}{'_compiled' if args.compile else ''}.json"
    refuse_more_than_fits((args.batch_size or 0) * 12 * 32 ** 2, device, f"--batch-size {args.batch_size}")
    result = header("mpvg_minimal.tools.cost", device) | {"rounds": args.rounds, "amp": str(amp), "rows": []}
    write(result, path)                                 # now: whoever cannot should not learn it in an hour
    for name in args.models:
        batch = args.batch_size or BATCH[name][device.type == "cuda"]
        new = measure(name, device, amp, batch=batch, rounds=args.rounds, compiled=args.compile, peers=args.peers)
        print(table(new), flush=True)
        result["rows"] += new
        write(result, path)
    print(f"written: {path}")


if __name__ == "__main__":
    with one_line_errors():
        main()
