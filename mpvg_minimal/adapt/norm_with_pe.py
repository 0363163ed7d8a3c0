"""A norm that also delivers PE, in the place of a norm that a model has already; adapt.py puts it there.

`NormWithPE` adds the delivered PE to what the norm gives; that is all there is to x + MSA(LN(x) + p_l) and to
y = LN(x) + LN'_last(p_0). A norm has to know where its PE comes from, and a copy of the model must look in the copy.
So each keeps a `Source`: a module and the name of what to read there, the parameter p_0 or the norm before.
`copy.deepcopy`, and with it an averaged model, carries such a reference over into the copy. Nothing is remembered
between layers: each reads its chain anew, L (L - 1) / 2 LayerNorms on (1, N, D), small beside a block on (B, N, D).

Source: equations as in layerwise_pe.py; the rest is ours. Shapes: B inputs, N tokens, D width.
"""
from torch import Tensor, nn

Source = tuple[nn.Module, str]      # in a tuple, so that it is a reference and does not become a submodule


class NormWithPE(nn.Module):
    """x (B, N, D) -> LN(x) + LN'(p), with p read from `source`; in any layout that p broadcasts to.

    gate: begin with LN(x) + 0 * LN'(p). The gate (D,) is not in the chain that later layers read: affines of zero
    would hand on zeros, and starve them. eps is NaN on purpose: in eval mode `nn.TransformerEncoderLayer` has a
    fused path that reads the norm's weights and never calls it, so PE would be lost without a word. It compares
    the eps of its two norms first, and NaN equals nothing.
    """

    eps = float("nan")

    def __init__(self, norm: nn.Module, source: Source, *, gate: bool):
        super().__init__()
        p = getattr(*source)
        self.norm, self.source = norm, source
        self.pe_norm = nn.LayerNorm(p.shape[-1], eps=1e-6, device=p.device, dtype=p.dtype)
        self.gate = nn.Parameter(p.new_zeros(p.shape[-1])) if gate else None

    @property
    def delivered(self) -> Tensor:
        """p_l = LN'_l(p_{l-1}), (1, N, D)."""
        return self.pe_norm(getattr(*self.source))

    def forward(self, x: Tensor) -> Tensor:
        return _add(self.norm(x), self.delivered, self.gate)


class PEAtInput(nn.Module):
    """x (B, N, D) -> x + p: before the first block of a model that has no PE of its own."""

    def __init__(self, source: Source, *, gate: bool):
        super().__init__()
        p = getattr(*source)
        self.source, self.gate = source, nn.Parameter(p.new_zeros(p.shape[-1])) if gate else None

    def forward(self, x: Tensor) -> Tensor:
        return _add(x, getattr(*self.source), self.gate)


def _add(x: Tensor, p: Tensor, gate: Tensor | None) -> Tensor:
    if x.ndim != p.ndim or any(size not in (1, of_x) for size, of_x in zip(p.shape, x.shape)):
        raise ValueError(f"tokens of shape {tuple(x.shape)} do not fit PE of shape {tuple(p.shape)}: give the model "
                         "inputs of the size that it was adapted for")
    return x + (p if gate is None else gate * p)


def add_pe_first(block: nn.Module, inputs: tuple) -> tuple:
    """A forward pre-hook: a plain function of its block, so that copies of the model share nothing."""
    return block.pe_at_input(inputs[0]), *inputs[1:]
