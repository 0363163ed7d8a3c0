"""What must hold before a model is adapted. Every refusal is a ValueError, raised before anything is changed.

Names of classes tell little: `ResPostBlock` and Swin V2's block have a `norm1` too, but it comes after the attention,
and PE added there would land in the residual stream. So `check_forward` watches one forward pass and looks at what is
true: a pre-attention norm receives the very tensor that enters its block, and its shape is that of PE. The pass runs on
torch's meta device, in training mode: shapes only, no arithmetic, no memory, no random draw, in any data type.

Source: ours. Shapes: B inputs, N tokens, D width.
"""
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..layerwise_pe import PESchedule
from .norm_with_pe import NormWithPE, PEAtInput, fits


def check_not_adapted(model: nn.Module) -> None:
    if any(isinstance(module, (NormWithPE, PEAtInput)) for module in model.modules()):
        raise ValueError("this model has layer-wise PE already: adapt a model as its library builds it")


def check_parts(model: nn.Module, norms: list[nn.Module], last_norm: nn.Module | None, pe: nn.Parameter,
                schedule: PESchedule, carry: dict[int, nn.Module]) -> None:
    """The schedule has sense for this model, and each part is in the model once and as wide as PE."""
    schedule.check(len(norms))
    if not schedule.uses_pe:
        raise ValueError('the schedule delivers no PE ("none"): there is nothing to add')
    if not isinstance(pe, nn.Parameter):
        raise ValueError(f"pe is a {type(pe).__name__}, expected an nn.Parameter such as (1, N, D): a model without a "
                         "learnt PE has to be built with one, or be given a new one")
    modules = [module for _, module in model.named_modules(remove_duplicate=False)]
    for norm in [*norms, *([] if last_norm is None else [last_norm])]:
        times, width = sum(module is norm for module in modules), getattr(norm, "normalized_shape", pe.shape[-1:])
        if times != 1:
            raise ValueError(f"a norm of width {tuple(width)} is in the model {times} times, expected once")
        if not carry and tuple(width) != tuple(pe.shape[-1:]):
            raise ValueError(f"a norm is for width {tuple(width)}, but pe has shape {tuple(pe.shape)}: layer-wise PE "
                             "needs one width in all blocks")


def check_pe(model: nn.Module, schedule: PESchedule, start: str, last_norm: nn.Module | None, own: bool,
             add_before: nn.Module | None) -> None:
    """PE is added at the input once: by the model itself if PE is its own, else before `add_before`."""
    if schedule.at_last_norm is not None and last_norm is None:
        raise ValueError("the schedule delivers PE to the last norm, but the model has none on all tokens: give it one "
                         '(timm: fc_norm=False) or choose schedule="pvg"')
    if start not in ("fresh", "same"):
        raise ValueError(f'start is {start!r}, expected "fresh" or "same"')
    if own and add_before is not None:
        raise ValueError("pe is in the model already, which adds it by itself: leave add_before out")
    if not own and hasattr(model, "pos_embed"):
        raise ValueError(f"{type(model).__name__} has an attribute pos_embed already, and would add a new pe a second "
                         "time: adapt the model's own (pe=model.pos_embed), built with a learnt one if it is None")
    if not own and schedule.add_at_input and add_before is None:
        raise ValueError("a new pe has to be added at the input: name the first block as add_before")
    if isinstance(add_before, nn.Sequential) or add_before not in (None, *model.modules()):
        raise ValueError("add_before has to be one block of the model, not a sequence of blocks")
    if own and not schedule.add_at_input and start == "same":
        raise ValueError('start="same" needs a schedule that keeps PE at the input, where the model has it')


def check_forward(model: nn.Module, example: Tensor, norms: list[nn.Module], last_norm: nn.Module | None,
                  pe_shape: torch.Size, *, schedule: PESchedule, prefix: int, batch_dim: int,
                  carry: dict[int, nn.Module]) -> None:
    """One forward pass: each norm that receives PE is a pre-attention norm and sees one token for each row of PE."""
    first = len(norms) + 1 if schedule.first_block is None else schedule.first_block
    last = [] if schedule.at_last_norm is None or last_norm is None else [last_norm]
    paths = {module: path for path, module in model.named_modules()}
    blocks = {norm: model.get_submodule(paths[norm].rpartition(".")[0]) for norm in norms}
    seen = watch(model, example, {*norms, *last, *blocks.values(), *carry.values()})
    shape, order = pe_shape, [module for module in seen if module in blocks]
    for number, norm in enumerate([*norms, *last], 1):
        if number in carry:                                         # as wide and as many as the tokens become
            shape = torch.Size([1, *seen[carry[number]][0][1][1:]])
        if number < first:
            continue
        if len(seen[norm]) != 1:
            raise ValueError(f"{paths[norm]} is called {len(seen[norm])} times in a forward pass, expected once")
        tokens = seen[norm][0][0]
        if norm in blocks and not any(tokens is given for given, _ in seen[blocks[norm]]):
            raise ValueError(f"{paths[norm]} does not receive what enters its {type(blocks[norm]).__name__}: it is no "
                             "pre-attention norm (norm_first=False, post-norm, V2), and PE would land in the residual "
                             "stream. Layer-wise PE needs pre-norm blocks, x + attention(norm(x))")
        with_prefix = torch.Size([*shape[:-2], shape[-2] + prefix, shape[-1]])
        if not fits(tokens.shape, with_prefix, batch_dim):
            raise ValueError(f"tokens of shape {tuple(tokens.shape)} arrive at {paths[norm]}, but PE has shape "
                             f"{tuple(with_prefix)}: layer-wise PE needs one row for each token, in training too")
    if order != [norm for norm in norms if norm in order]:
        raise ValueError("the norms are not called in the order given: give them in the order of the forward pass")


def watch(model: nn.Module, example: Tensor, modules: Iterable[nn.Module]) -> dict[nn.Module, list[tuple]]:
    """{module: [(its first input, the shape of its output), ...]} of one forward pass on the meta device."""
    seen, modes = defaultdict(list), {module: module.training for module in model.modules()}

    def before(module, inputs, keywords):
        seen[module].append([*inputs, *keywords.values()][:1])

    def after(module, _, output):
        seen[module][-1].append(getattr(output, "shape", None))

    hooks = [hook for module in modules for hook in (module.register_forward_pre_hook(before, with_kwargs=True),
                                                     module.register_forward_hook(after))]
    state = {name: torch.empty_like(value, device="meta") for named in (model.named_parameters, model.named_buffers)
             for name, value in named(remove_duplicate=False)}
    try:
        for module in modes:
            module.training = True
        with torch.no_grad():
            functional_call(model, state, (torch.empty_like(example, device="meta"),))
    except Exception as error:                                      # whatever the model raises, the answer is one
        raise ValueError(f"a forward pass of {type(model).__name__} on an input of shape {tuple(example.shape)} fails "
                         f"({str(error).partition(chr(10))[0]}): give the model what it takes") from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return seen
