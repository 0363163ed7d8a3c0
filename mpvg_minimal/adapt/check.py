"""What must hold before a model is adapted. Every refusal is a ValueError, raised before anything is changed.

Names of classes tell little: `ResPostBlock` and Swin V2's block have a `norm1` too, but it comes after the attention,
and PE added there would land in the residual stream. So `check_forward` watches one forward pass and looks at what is
true: a pre-attention norm receives the very tensor that enters its block, and its shape is that of PE. The pass runs on
torch's meta device, in training mode: shapes only, no arithmetic, no memory, no random draw, in any data type.

Source: ours. Shapes: B inputs, N tokens, D width.
"""
import copy
from collections import defaultdict
from functools import partial

import torch
from torch import Tensor, nn

from ..layerwise_pe import PESchedule
from .norm_with_pe import NormWithPE, PEAtInput, fits


def check_not_adapted(model: nn.Module) -> None:
    if any(isinstance(module, (NormWithPE, PEAtInput)) for module in model.modules()):
        raise ValueError("this model has layer-wise PE already: adapt a model as its library builds it")


def check_parts(model: nn.Module, norms: list[nn.Module], last_norm: nn.Module | None, pe: nn.Parameter,
                schedule: PESchedule, carry: dict[int, nn.Module]) -> None:
    """The schedule has sense for this model, and each part is in the model once and as wide as PE."""
    check_not_adapted(model)
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
    path_of, seen, shape = {module: path for path, module in model.named_modules()}, watch(model, example), pe_shape
    for number, norm in enumerate([*norms, *last], 1):
        path = path_of[norm]
        if number in carry:                                         # as wide and as many as the tokens become
            shape = torch.Size([1, *seen[path_of[carry[number]]][0][1][1:]])
        if number < first:
            continue
        if len(seen[path]) != 1:
            raise ValueError(f"{path} is called {len(seen[path])} times in a forward pass, expected once")
        tokens, block = seen[path][0][0], path.rpartition(".")[0]
        if number <= len(norms) and not any(tokens is given for given, _ in seen[block]):
            raise ValueError(f"{path} does not receive what enters its {type(model.get_submodule(block)).__name__}: it "
                             "is no pre-attention norm (norm_first=False, post-norm, V2), and PE would land in the "
                             "residual stream. Layer-wise PE needs pre-norm blocks, x + attention(norm(x))")
        of_tokens = len(shape) - 2 - batch_dim                      # the dimension
        with_prefix = torch.Size(size + prefix * (dim == of_tokens) for dim, size in enumerate(shape))
        if not fits(tokens.shape, with_prefix, batch_dim):
            raise ValueError(f"tokens of shape {tuple(tokens.shape)} arrive at {path}, but PE has shape "
                             f"{tuple(with_prefix)}: layer-wise PE needs one row for each token, in training too")
    given = [path_of[norm] for norm in norms if path_of[norm] in seen]
    if given != [path for path in seen if path in given]:
        raise ValueError("the norms are not called in the order given: give them in the order of the forward pass")


def watch(model: nn.Module, example: Tensor) -> dict[str, list[list]]:
    """{path of a module: [[its first input, the shape of its output], ...]}, in the order of one forward pass.

    It is a copy of the model that runs, with every parameter and buffer on the meta device: nothing has to be undone.
    """
    seen = defaultdict(list)

    def before(path, _, inputs, keywords):
        seen[path].append([next(iter([*inputs, *keywords.values()]), None)])

    def after(path, *inputs_and_output):
        seen[path][-1].append(getattr(inputs_and_output[-1], "shape", None))

    meta = {id(value): torch.empty_like(value, device="meta") for value in (*model.parameters(), *model.buffers())}
    try:
        twin = copy.deepcopy(model, meta).train()                   # what deepcopy finds in `meta` it does not copy
        for path, module in twin.named_modules():
            module.register_forward_pre_hook(partial(before, path), with_kwargs=True)
            module.register_forward_hook(partial(after, path))
        with torch.no_grad():
            twin(torch.empty_like(example, device="meta"))
    except Exception as error:                                      # whatever the model raises, the answer is one
        raise ValueError(f"a forward pass of {type(model).__name__} on an input of shape {tuple(example.shape)} fails "
                         f"({str(error).partition(chr(10))[0]}): give the model what it takes") from error
    return seen
