"""The experiment's cells: which models grid.py compares, in which order, with how many seeds.

A cell is a few settings that differ from the recipe. All cells of one seed and one depth start from the same weights
wherever shapes agree, so differences between cells are paired.
"""
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from mpvg_minimal import PESchedule, ViT
from mpvg_minimal.training import recipes
from mpvg_minimal.training.models import build_model

# The built-in shapes: long enough for every schedule.
SHAPES = replace(recipes.SHAPES, epochs=8)
# Four blocks, no augmentation, in minutes: too small for the effect, and kept as a lesson about that.
REDUCED, REDUCED_LIMIT = replace(recipes.SHAPES, epochs=5), 20_000
# DeiT's depth on a CPU: about 12 minutes of one core a run. The rate was chosen on `once` and LaPE alone, on
# training images that were held out: results/pilot_twelve.json.
TWELVE = replace(recipes.SHAPES, model="deit_nano", epochs=8, warmup=1 / 16, label_smoothing=0.1, stochastic_depth=0.05,
                 augment=dict(scale=[0.8, 1.0]))


def gap(pe: str | dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"pool": "gap", "pe": pe, **more}


def mpvg(**changed: Any) -> dict[str, Any]:
    """MPVG with some switches set otherwise."""
    return gap(asdict(replace(PESchedule.named("mpvg"), **changed)))


GROUPS = {
    "main": {f"{pool} {pe}": {"pool": pool, "pe": pe}
             for pool in ("cls", "gap") for pe in ("none", "once", "lape", "pvg", "mpvg")},
    # `once` adds PE of size 0.02 to the tokens where a LayerNorm delivers size 1: larger at the start, for fairness
    "scale": {f"{pool} {pe}, PE std {std}": {"pool": pool, "pe": pe, "pe_std": std}
              for pool, pe, std in (("cls", "once", 0.2), ("cls", "once", 1.0), ("gap", "once", 0.2),
                                    ("gap", "once", 1.0), ("gap", "mpvg", 0.2), ("gap", "mpvg", 1.0))},
    "sincos": {f"gap {pe}, sin-cos": gap(pe, pe_init="sincos2d") for pe in ("once", "pvg", "mpvg")},
    # the paper's ablations, one switch at a time, and MPVG's last norm on top of LaPE
    "switches": {
        "gap mpvg, not at the input": mpvg(add_at_input=False), "gap mpvg, from block 1": mpvg(first_block=1),
        "gap mpvg, not hierarchical": mpvg(hierarchical=False),
        "gap mpvg, last norm: p_L": mpvg(at_last_norm="delivered"),
        "gap mpvg, no block": mpvg(first_block=None, hierarchical=False),
        "gap mpvg, LaPE with the last norm": mpvg(add_at_input=False, first_block=1)},
    "middle": {f"gap mpvg, last norm: p_{block}": mpvg(at_last_norm=block) for block in (9, 6)},
    # under GAP, PE at the last norm is exactly a bias: where could a gain come from? See `change_last_norm`
    "why": {f"gap mpvg, {last}": gap("mpvg", last=last) for last in ("free bias", "stopped gradient", "sign flipped")},
    # is the counterbalance about what all tokens share? See `OnePart`
    "parts": {f"gap mpvg, {part}": gap("mpvg", part=part)
              for part in ("without the shared part", "the shared part alone")},
    "depth": {f"gap {pe}, {depth} blocks": gap(pe, depth=depth) for depth in (4, 8, 16) for pe in ("lape", "mpvg")},
}
CELLS = {name: cell for group in GROUPS.values() for name, cell in group.items()}

# What `--twelve` trains: (cells, seeds), each finished before the next. The last line was added when the others
# had been seen: MAIN's differences were to have standard errors of at most 0.2 points, and depth a verdict.
MAIN = [cell for cell in GROUPS["main"] if not cell.endswith("none")]
CONFLICT = ["cls once", "gap once", "cls lape", "gap lape"]
ABLATIONS = [cell for cell in [*GROUPS["switches"], *GROUPS["middle"], *GROUPS["parts"]] if "LaPE" not in cell]
TWELVE_PLAN = [(MAIN, 5), (["cls once, PE std 0.2", "gap once, PE std 0.2"], 3), (list(GROUPS["why"]), 3),
               (ABLATIONS, 3), (list(GROUPS["depth"]), 2),
               (MAIN, 6), ([*CONFLICT, "gap pvg", "gap mpvg"], 12), (CONFLICT, 15), (list(GROUPS["depth"]), 3)]


class FreeBias(nn.Module):
    """A plain parameter vector (D,) in place of LN'_last(p): what it amounts to under GAP, without p behind it."""

    def __init__(self, start: Tensor):
        super().__init__()
        self.bias = nn.Parameter(start)

    def forward(self, pe: Tensor) -> Tensor:
        return self.bias.expand_as(pe)                                      # (D,) -> (1, N, D)


class StoppedGradient(nn.Module):
    """LN'_last(p), but what the last norm learns never reaches p."""

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        self.norm = norm

    def forward(self, pe: Tensor) -> Tensor:
        return self.norm(pe.detach())


class OnePart(nn.Module):
    """LN'(p), and of that only what all tokens share, its mean over tokens, or only the rest."""

    def __init__(self, norm: nn.LayerNorm, *, shared: bool):
        super().__init__()
        self.norm, self.shared = norm, shared

    def forward(self, pe: Tensor) -> Tensor:
        y = self.norm(pe)                                                   # (1, N, D)
        mean = y.mean(dim=1, keepdim=True)                                  # (1, 1, D)
        return mean.expand_as(y) if self.shared else y - mean


@torch.no_grad()
def build(settings: dict[str, Any]) -> ViT:
    """A cell's model. Weights that `gap once` has too start as they do there; a class token's PE row is its own."""
    model = build_model(settings)
    shared = build_model(settings | {"pe": "once", "pool": "gap", "pe_init": "learned"}).state_dict()
    own = model.state_dict()
    for name in own.keys() & shared.keys():
        if name == "pe.pos_embed":
            own[name][:, -shared[name].shape[1]:] = shared[name]
        else:
            own[name].copy_(shared[name])
    if settings.get("last"):
        change_last_norm(model, settings["last"])
    if settings.get("part"):
        one = {"shared": settings["part"] == "the shared part alone"}
        model.pe.norms = nn.ModuleList(OnePart(norm, **one) for norm in model.pe.norms)
        model.last_norm.pe_norm = OnePart(model.last_norm.pe_norm, **one)
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
