"""Where the position embedding (PE) goes: once at the input, or to every layer through a LayerNorm of its own.

A ViT adds PE once, to the tokens. From then on every LayerNorm (LN) scales token and position together,
with one affine for both. LaPE gives PE an LN of its own in every block and hands it on from block to block:

    p_l = LN'_l(p_{l-1})              p_0 is the learnt PE itself, LN'_l has its own affine
    x   = x + MSA(LN_l(x) + p_l)      the block's part: see block.py

MPVG adds p_0 to the tokens at the input, delivers p_l from block 2 on, and also delivers PE to the last LN,
y = LN(x) + LN'_last(p_0): that part is balance.py.

Note the signature of `LayerwisePE.forward()`: it takes no image. PE is the same for every image, so all
p_l are computed once a step on (1, N, D) and broadcast, and delivering one costs a block one addition.

Sources: MPVG is Lee, Ham and Kim, AAAI 2025 (arXiv 2502.02919); "paper" means it. LaPE is Yu et al., ICCV 2023
(arXiv 2212.05262), as in its official code since commit e188f7e of March 2024 (before, it was not hierarchical).
Shapes: N tokens (with the class token, if any), D width, L blocks. The paper counts layers from 0, we count blocks
from 1: our block l is its layer l - 1.
"""
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


@dataclass(frozen=True)
class PESchedule:
    """Four switches that say where PE goes. `PESchedule.named("mpvg")` gives the paper's settings (Fig. 3 d).

    add_at_input: x = tokens + p_0 before block 1.
    first_block:  the first block, counted from 1, that receives PE; it and all later ones do. None: no block.
    hierarchical: each block normalizes what the block before it received (LaPE), else p_0 itself.
    at_last_norm: None; "initial": p_0; "delivered": p_L, what the last block received; or a block's number n: p_n,
                  what block n received (paper, Table 5: its layers 11, 8 and 5 are n = 12, 9 and 6).

    ValueError for a combination that contradicts itself; `check(depth)` also knows the number of blocks.
    """

    add_at_input: bool = True
    first_block: int | None = 2
    hierarchical: bool = True
    at_last_norm: str | int | None = "initial"

    def __post_init__(self):
        last, first = self.at_last_norm, self.first_block
        numbered = hasattr(last, "__index__") and type(last) is not bool        # a whole number; NumPy's too
        if last not in (None, "initial", "delivered") and not numbered:
            raise ValueError(f'at_last_norm is {last!r}, expected None, "initial", "delivered" or a block\'s number')
        if first is not None and first < 1:
            raise ValueError(f"first_block is {first}, but blocks are counted from 1 (None: no block)")
        if numbered and last < (first or 1):
            raise ValueError(f"at_last_norm is {last}, but first_block is {first}: block {last} receives no PE")
        if first is None and self.hierarchical:
            raise ValueError("hierarchical, but first_block is None: PE that no block receives cannot be handed on")
        if first is None and last not in (None, "initial"):
            raise ValueError(f"at_last_norm is {last!r}, but first_block is None: no block receives PE")

    @classmethod
    def named(cls, name: str) -> "PESchedule":
        """The settings that have names: "none", "once" (ViT), "lape", "pvg", "mpvg"."""
        named = {
            "none": cls(False, None, False, None),
            "once": cls(True, None, False, None),           # ViT
            "lape": cls(False, 1, True, None),              # LaPE, official code
            "pvg": cls(True, 2, True, None),                # paper, Fig. 3 c
            "mpvg": cls(True, 2, True, "initial"),          # paper, Fig. 3 d; Tables 5 and 6 vary one switch at a time
        }
        if name not in named:
            raise ValueError(f"no PE schedule is called {name!r}: choose one of {', '.join(named)}")
        return named[name]

    @property
    def uses_pe(self) -> bool:
        return self.add_at_input or self.first_block is not None or self.at_last_norm is not None

    def check(self, depth: int) -> None:
        """ValueError if the schedule names a block beyond the last of `depth` blocks."""
        for name in ("first_block", "at_last_norm"):
            block = getattr(self, name)
            if hasattr(block, "__index__") and block > depth:
                raise ValueError(f"{name} is {block}, but the model has {depth} blocks: choose one of them")


def sincos2d(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed 2-D sine-cosine PE, (1, rows * columns, D): half of D tells the column, half the row.

    Source: Chen et al. 2021 (MoCo v3). ValueError if 4 does not divide the width.
    """
    if width % 4:
        raise ValueError(f"2-D sine-cosine PE needs a width that 4 divides, got {width}")
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    frequency = 10000.0 ** (-torch.arange(width // 4) / (width // 4))           # (D / 4,)
    column, row = (place.flatten()[:, None] * frequency for place in (columns, rows))   # (N, D / 4) each
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)[None]   # (1, N, D)


class LayerwisePE(nn.Module):
    """PE as every layer receives it. A LayerNorm exists only where the schedule uses one.

    init: "learned" (a parameter, truncated normal of this std) or "sincos2d" (fixed). The class token has no place on
    the grid: its row of sincos2d is 0, and each block delivers 0 to it. LN'(0) would not do: its gradient is multiplied
    by 1 / sqrt(eps) = 1000 in every block that hands it on. The last norm hands nothing on and gives it LN'_last(0).
    """

    def __init__(self, schedule: PESchedule, *, grid: tuple[int, int], width: int, depth: int,
                 class_token: bool = False, init: str = "learned", std: float = 0.02):
        super().__init__()
        schedule.check(depth)
        if init not in ("learned", "sincos2d"):
            raise ValueError(f'pe_init is {init!r}, expected "learned" or "sincos2d"')
        self.schedule, self.depth = schedule, depth
        self.blank = int(class_token and init == "sincos2d")                    # first rows that get no PE
        self.pos_embed = None                                                   # p_0: (1, N, D)
        if schedule.uses_pe and init == "learned":
            tokens = grid[0] * grid[1] + class_token
            p = nn.init.trunc_normal_(torch.empty(1, tokens, width), std=0.02)  # whatever std is: the same draws
            self.pos_embed = nn.Parameter(p * (std / 0.02))
        elif schedule.uses_pe:
            fixed = pad(sincos2d(grid, width), (0, 0, self.blank, 0))
            del self.pos_embed
            self.register_buffer("pos_embed", fixed, persistent=False)          # computed, so never stored
        blocks = 0 if schedule.first_block is None else depth - schedule.first_block + 1
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(blocks))     # LN'_l

    def forward(self) -> tuple[Tensor | None, list[Tensor | None], Tensor | None]:
        """(PE for the input, [PE for block 1 ... L], PE for the last norm), each (1, N, D) or None.

        The last one is handed over as it is, p_0 or p_n: its LayerNorm belongs to the last norm (balance.py).
        """
        p, schedule = self.pos_embed, self.schedule
        block_pes: list[Tensor | None] = [None] * (self.depth - len(self.norms))
        for norm in self.norms:
            p = norm(p if schedule.hierarchical else self.pos_embed)            # p_l = LN'_l(p_{l-1})
            if self.blank:
                p = pad(p[:, self.blank:], (0, 0, self.blank, 0))
            block_pes.append(p)
        sources = {None: None, "initial": self.pos_embed, "delivered": p} | dict(enumerate(block_pes, start=1))
        return (self.pos_embed if schedule.add_at_input else None), block_pes, sources[schedule.at_last_norm]
