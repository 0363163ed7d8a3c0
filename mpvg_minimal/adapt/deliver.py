"""Layer-wise PE and MPVG in a transformer that exists already: nothing but its norms is touched.

Every pre-attention LayerNorm that is to receive PE, and the last norm, is replaced by `NormWithPE` (norm_with_pe.py).
What happens to the names in `state_dict`:
- a norm's NAME.weight becomes NAME.norm.weight (bias likewise); new are NAME.pe_norm.weight and NAME.pe_norm.bias;
- with start="same" new are also NAME.gate and, where a new p_0 is added, BLOCK.pe_at_input.gate;
- a new p_0 is `pos_embed` of the model itself;
- where the model adds its own PE and the schedule does not ("lape"), NAME becomes NAME_delivered.
All other names stay. If the model has timm's `no_weight_decay()`, that list names p_0 as well.

Source: equations as in layerwise_pe.py; `start` and all of this file are ours. Shapes: B inputs, N tokens, D width.
"""
from functools import partial

import torch
from torch import Tensor, nn

from ..layerwise_pe import PESchedule
from .check import check_forward, check_parts, check_pe
from .norm_with_pe import NormWithPE, PEAtInput, Source, add_pe_first


def add_layerwise_pe(model: nn.Module, *, norms: list[nn.Module], last_norm: nn.Module | None, pe: nn.Parameter,
                     schedule: str | PESchedule = "mpvg", add_before: nn.Module | None = None, start: str = "fresh",
                     example: Tensor | None = None, prefix: int = 0, batch_dim: int = 0,
                     carry: dict[int, nn.Module] | None = None) -> nn.Module:
    """The same model, in place, with PE delivered as the schedule says. Make the optimizer afterwards.

    norms: its own pre-attention norms, in order. last_norm: its final one, on all tokens. pe: its own position
    parameter, which it adds to the tokens by itself, or a new one, such as nn.Parameter(0.02 * torch.randn(1, N, D)).
    add_before: the first block, where a new PE is added.
    start: "fresh" (PE's affines begin at (1, 0), as in `ViT`) or "same" (a pretrained model begins with its old
    logits, by gates of zero; every new parameter has a gradient from the second step on).
    example: an input. Only its shape is used: one forward pass on the meta device shows that the norms are what they
    should be. prefix: tokens before those that pe is for; they are given no PE. batch_dim: 1 for (N, B, D).
    carry: {block: module}: PE goes through the model's own module before this block, as the tokens do (Swin).
    ValueError, before anything is changed, if something is not part of the model, has another size, or contradicts
    the schedule. A model that resamples its PE to each input's size cannot be adapted: pe is delivered as it is.
    """
    schedule, carry = PESchedule.named(schedule) if isinstance(schedule, str) else schedule, carry or {}
    check_parts(model, norms, last_norm, pe, schedule, carry)
    path = next((path for path, parameter in model.named_parameters() if parameter is pe), None)    # None: a new one
    if example is not None:
        check_forward(model, example, norms, last_norm, pe.shape, schedule=schedule, prefix=prefix,
                      batch_dim=batch_dim, carry=carry)
    check_pe(model, schedule, start, last_norm, path is not None, add_before)
    options = dict(gate=start == "same", batch_dim=batch_dim, prefix=prefix, device=pe.device, dtype=pe.dtype)
    source = _place(model, path, pe, schedule)
    if path is None and schedule.add_at_input:
        add_before.pe_at_input = PEAtInput(source, pe.shape[-1], **options)
        add_before.register_forward_pre_hook(add_pe_first, with_kwargs=True)
    _deliver(model, norms, last_norm, source, schedule, carry, options)
    return model


def _place(model: nn.Module, path: str | None, pe: nn.Parameter, schedule: PESchedule) -> Source:
    """p_0 where it belongs: a new one on the model; its own where it is, or beside zeros if it must not add it."""
    path = path or "pos_embed"
    owner, name = model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
    if hasattr(owner, name) and not schedule.add_at_input:
        delattr(owner, name)
        owner.register_buffer(name, torch.zeros_like(pe.detach()), persistent=False)
        path, name = f"{path}_delivered", f"{name}_delivered"
    setattr(owner, name, pe)
    if hasattr(model, "no_weight_decay") and path not in model.no_weight_decay():       # timm's, for its optimizers
        model.no_weight_decay = partial(set, frozenset({*model.no_weight_decay(), path}))      # copies, pickles
    return Source(owner, name)


def _deliver(model: nn.Module, norms: list[nn.Module], last_norm: nn.Module | None, source: Source,
             schedule: PESchedule, carry: dict[int, nn.Module], options: dict) -> None:
    path_of = {module: path for path, module in model.named_modules()}

    def replaced(norm: nn.Module, source: Source) -> NormWithPE:
        width = norm.normalized_shape[-1] if hasattr(norm, "normalized_shape") else source.read().shape[-1]
        wrapped = NormWithPE(norm, source, width, **options)
        model.set_submodule(path_of[norm], wrapped)
        return wrapped

    last = source                                                   # what the last norm will read
    for number, norm in enumerate(norms, 1):
        if number in carry:
            source, last = source.then(carry[number]), last.then(carry[number])
        if schedule.first_block is None or number < schedule.first_block:
            continue
        delivered = Source(replaced(norm, source), "delivered")     # p_l
        source = delivered if schedule.hierarchical else source
        if schedule.at_last_norm in ("delivered", number):
            last = delivered
    if schedule.at_last_norm is not None:
        replaced(last_norm, last)
