"""The instruments: seconds in turns, FLOPs, bytes; the head of a results file, and its table. Shapes: B images."""
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..runtime import distributed
from ..runtime.files import write_text
from ..runtime.provenance import environment


def header(module: str, device: torch.device) -> dict[str, Any]:
    """The beginning of a results file: command, environment, threads, memory settings. module: of the command."""
    allocators = ("MALLOC_", "PYTORCH_ALLOC_", "PYTORCH_CUDA_ALLOC_")       # of glibc, torch, and torch before 2.9
    memory = {name: value for name, value in os.environ.items() if name.startswith(allocators)}
    return {"command": " ".join([f"python -m {module}", *sys.argv[1:]]), "environment": environment(device),
            "threads": torch.get_num_threads(), "memory": memory}


def write(result: dict[str, Any], path: Path) -> None:
    """Write a measurement as JSON. UserError if it cannot be written."""
    write_text(path, json.dumps(result, indent=1) + "\n", advice="name another folder by --out")


def interleaved(candidates: dict[str, Callable], *, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call in each round; two rounds before the first one counted warm everything up.

    Every second round goes backwards, so no candidate always follows the same one. Processes begin each call together.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    forward, backward = list(candidates.items()), list(candidates.items())[::-1]
    for number in range(rounds + 2):
        for name, call in backward if number % 2 else forward:
            distributed.all_reduce_max(0)                   # a barrier
            synchronize(device)
            began = time.perf_counter()
            call()
            synchronize(device)
            if number >= 2:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def forward_flops(model: nn.Module, images: Tensor) -> int:
    """Floating-point operations of one image's forward pass; a multiply-add counts as two."""
    # Attention as plain matrix products, because older counters do not know every fused kernel. With gradients, because
    # without them the counter fails where a model takes a part of a parameter.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images[:1])
    return counter.get_total_flops()


def kept_for_backward(model: nn.Module, images: Tensor, autocast: Any = nullcontext()) -> int:
    """Bytes of activations kept for the backward pass, without parameters and their copies in autocast's type."""
    storages = {p.untyped_storage()._cdata: 0 for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        size = 0 if copies_parameter(tensor.grad_fn) else tensor.untyped_storage().nbytes()
        storages.setdefault(tensor.untyped_storage()._cdata, size)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        output = model(images)
    del output
    return sum(storages.values())


def copies_parameter(function: Any) -> bool:
    """Whether a tensor with this grad_fn was computed from one parameter alone, without anything else."""
    while function is not None and not hasattr(function, "variable"):
        function = function.next_functions[0][0] if len(function.next_functions) == 1 else None
    return function is not None


def peak_memory(call: Callable, device: torch.device, before: int) -> float | None:
    """MB that one training step needs at its peak; None where the device does not tell (CPU).

    before: the bytes allocated before the model was put there, so that other models that are alive do not count.
    """
    if device.type != "cuda":
        return None
    call()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


COLUMNS = {                     # heading -> key of a row, format
    "parameters": ("parameters", ","), "GFLOP forward": ("gflop_forward", ".3f"),
    "MB kept for backward, an image": ("kept_mb_per_image", ".2f"), "peak MB of a step": ("peak_mb", ",.0f"),
    "training images/s": ("train_images_per_second", ",.0f"), "to `once`": ("train_ratio", ".3f"),
    "inference images/s": ("inference_images_per_second", ",.0f"), "to `once` ": ("inference_ratio", ".3f")}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of cost.py as a Markdown table; – for what was not measured."""
    lines = [f"| model | PE | {' | '.join(map(str.strip, COLUMNS))} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for row in rows:
        cells = [format(row[key], form) if row.get(key) else "–" for key, form in COLUMNS.values()]
        lines.append(f"| {row['model']}{', compiled' * row['compiled']} | {row['variant']} | {' | '.join(cells)} |")
    return "\n".join(lines)
