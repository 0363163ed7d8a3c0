"""A norm that also delivers PE. It stands in the place of a norm that a model has already; deliver.py puts it there.

`NormWithPE` adds the delivered PE to the output of the norm: x + MSA(LN(x) + p_l), and y = LN(x) + LN'_last(p_0).
Each one reads its PE from a `Source`: p_0 or the norm before. `copy.deepcopy` carries these references into the copy,
so a copy or an averaged model reads its own PE. Nothing is stored between layers: each norm computes its chain anew,
L (L - 1) / 2 LayerNorms on (1, N, D) in a forward pass. That is little beside the blocks, which work on (B, N, D).

Source: equations as in layerwise_pe.py; the rest is ours. Shapes: B inputs, N tokens, D width.
"""
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class Source(NamedTuple):
    """Where a norm reads its PE: attribute `name` of `module`, then through the modules in `through`, in order.

    A tuple, because a module kept in a tuple is a reference and does not become a submodule.
    """

    module: nn.Module
    name: str
    through: tuple[nn.Module, ...] = ()         # a Swin's patch mergings, which take PE from stage to stage

    def then(self, module: nn.Module) -> "Source":
        return self._replace(through=(*self.through, module))

    def read(self) -> Tensor:
        p = getattr(self.module, self.name)
        for module in self.through:
            p = module.forward(p)               # not module(p): its hooks are meant for tokens and must not see PE
        return p


class _Adding(nn.Module):
    """What adds PE to tokens. gate: zeros of the width of PE that multiply it, to begin as without PE; or no gate.

    batch_dim: the dimension of the inputs, where PE has size 1. prefix: as in `add_layerwise_pe` (deliver.py).
    """

    def __init__(self, source: Source, width: int, *, gate: bool, batch_dim: int = 0, prefix: int = 0, **factory):
        super().__init__()
        self.source, self.batch_dim, self.prefix = source, batch_dim, prefix
        self.gate = nn.Parameter(torch.zeros(width, **factory)) if gate else None

    def add(self, x: Tensor, p: Tensor) -> Tensor:
        if self.prefix:
            p = pad(p, (0, 0) * (1 + self.batch_dim) + (self.prefix, 0))        # (1, N, D) -> (1, prefix + N, D)
        if not fits(x.shape, p.shape, self.batch_dim):
            raise ValueError(f"tokens of shape {tuple(x.shape)} do not fit PE of shape {tuple(p.shape)}: give the "
                             "model inputs of the size that it was adapted for (resize_swin_pe gives a Swin another)")
        return x + (p if self.gate is None else self.gate * p)


class NormWithPE(_Adding):
    """x (B, N, D) -> LN(x) + LN'(p), with p read from `source`; for Swin in the layout (B, H, W, D).

    gate: begin with LN(x) + 0 * LN'(p). Later layers read LN'(p) without the gate: LN' with weights of zero would
    give them zeros to normalize, and no gradient. eps is NaN on purpose: in eval mode `nn.TransformerEncoderLayer`
    has a fused path that reads the norm's weights and never calls the norm, so PE would be lost without an error.
    The layer takes that path only if the eps of its two norms are equal, and NaN equals nothing.
    """

    eps = float("nan")

    def __init__(self, norm: nn.Module, source: Source, width: int, *, device: torch.device | None = None,
                 dtype: torch.dtype | None = None, **options):
        super().__init__(source, width, device=device, dtype=dtype, **options)
        self.norm, self.pe_norm = norm, nn.LayerNorm(width, eps=1e-6, device=device, dtype=dtype)

    @property
    def delivered(self) -> Tensor:
        """p_l = LN'_l(p_{l-1}), (1, N, D)."""
        return self.pe_norm(self.source.read())

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.norm(x), self.delivered)


class PEAtInput(_Adding):
    """x (B, N, D) -> x + p: before the first block of a model that has no PE of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.source.read())


def add_pe_first(block: nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
    """A forward pre-hook: a plain function of its block, so that copies of the model share nothing."""
    if inputs:
        return (block.pe_at_input(inputs[0]), *inputs[1:]), named
    first = next(iter(named))
    return inputs, {**named, first: block.pe_at_input(named[first])}


def fits(tokens: torch.Size, pe: torch.Size, batch_dim: int) -> bool:
    """True if PE of this shape is one PE for each token: all sizes are equal but for the number of inputs."""
    same = [size == of_pe for dim, (size, of_pe) in enumerate(zip(tokens, pe)) if dim != batch_dim]
    return len(tokens) == len(pe) and all(same)
