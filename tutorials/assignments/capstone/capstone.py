"""Capstone: your A1, A3 and A4 assembled into a ViT that finds the odd shape. Optional: no points, no tests.

    python tutorials/assignments/capstone/capstone.py                   # pvg and mpvg, three seeds each

Yours is `ViT`; all the rest is there. Shapes: B images, N tokens, D width, L blocks, K classes.
"""
import argparse
import sys
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

ASSIGNMENTS = Path(__file__).resolve().parents[1]
sys.path += [str(ASSIGNMENTS / name) for name in ("a1_patchify", "a3_lape_delivery", "a4_mpvg")]
sys.path += [str(ASSIGNMENTS.parents[1])]                                   # mpvg_minimal, for the images alone

from delivery import Block  # noqa: E402, F401
from last_norm import LastNorm, classify  # noqa: E402, F401
from patchify import embed  # noqa: E402, F401

from mpvg_minimal.data.shapes import Shapes  # noqa: E402

PATCH, N, D, L, HEADS, K = 8, 16, 96, 4, 3, 16


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, D) -> (B, N, D)."""

    def __init__(self):
        super().__init__()
        self.heads = nn.MultiheadAttention(D, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(x, x, x, need_weights=False)[0]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))


class ViT(nn.Module):
    """Images (B, 3, 32, 32) -> logits (B, K), by `embed`, `Block`, `LastNorm` and `classify`; GAP, no class token.

    schedule: "mpvg", all lines of A4; or "pvg", the same without PE at the last norm. p_0 and the weight of the patch
    embedding start as normal numbers of standard deviation 0.02; everything else starts as PyTorch has it.
    """

    def __init__(self, schedule: str):
        super().__init__()
        raise NotImplementedError("capstone: ViT.__init__")

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError("capstone: ViT.forward")


def pixels(images: Tensor) -> Tensor:
    """uint8 -> float32 with mean and standard deviation of about 0 and 1."""
    return (images.float() - 75) / 70


def learn(model: nn.Module, train: Shapes, most: int, seed: int, *, batch: int = 128) -> int:
    """Train until 9 of 10 images of a batch are right; the number of steps that it took, or `most`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    order = torch.Generator().manual_seed(seed)
    for step in range(1, most + 1):
        index = torch.randint(len(train), (batch,), generator=order)
        logits, labels = model(pixels(train.images[index])), train.labels[index]
        if accuracy(logits, labels) >= 0.9:
            break
        optimizer.param_groups[0]["lr"] = 1e-3 * min(step / 50, 1)              # warm-up
        optimizer.zero_grad()
        cross_entropy(logits, labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return step


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()


def main(model: type[nn.Module] = ViT, arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="of training, at most (default: 1000)")
    parser.add_argument("--seeds", type=int, default=3, help="models for each schedule (default: 3)")
    options = parser.parse_args(arguments)
    found, train, test = {"pvg": [], "mpvg": []}, Shapes("train"), Shapes("test")
    for seed in range(options.seeds):
        for schedule, steps in found.items():
            torch.manual_seed(seed)                         # the same start for both, but for the last norm's LN'
            vit = model(schedule)
            steps.append(learn(vit, train, options.steps, seed))
            with torch.no_grad():
                right = accuracy(vit.eval()(pixels(test.images)), test.labels)
            print(f"{schedule:4}  seed {seed}  {steps[-1]:4} steps, then {100 * right:5.1f} % of new images")
    differences = [m - p for p, m in zip(*found.values())]
    error = stdev(differences) / len(differences) ** 0.5 if options.seeds > 1 else float("nan")
    print(f"mpvg - pvg: {mean(differences):+.1f} steps, standard error {error:.1f}; chance {100 / K:.1f} %")


if __name__ == "__main__":
    main()
