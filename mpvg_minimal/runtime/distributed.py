"""Many processes, one model: what training needs beyond DistributedDataParallel. With one process, all of it is free.

`torchrun` starts the processes and tells each one its place in environment variables. gloo sums tensors on the CPU and
NCCL tensors on a GPU, in one process group.
"""
import os
import platform
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import UserError


def join(device: torch.device) -> torch.device:
    """Join the process group if `torchrun` started this process. Returns the device of this process."""
    if "LOCAL_RANK" not in os.environ:
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)           # torch asks the current card what it can do
        return device
    if device.type == "mps":
        raise UserError("torchrun: tensors on mps cannot be summed over processes: give --device cpu, or no torchrun")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if device.index >= torch.cuda.device_count():
            raise UserError(f"process {device.index} of this machine has no GPU, there are {torch.cuda.device_count()}:"
                            " give torchrun as many processes as there are GPUs")
        torch.cuda.set_device(device)
    store, rank, world = next(dist.rendezvous("env://"))
    # torchrun's store outlives a restart: without a name of its own, a process may read a dead one's address there.
    store = dist.PrefixStore(f"start {restarts()}", store)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=store, rank=rank,
                            world_size=world)
    return device


def leave() -> None:
    """Leave the process group. DistributedDataParallel must have been freed before."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def restarts() -> int:
    """How often `torchrun --max-restarts` has started this process again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def launch() -> str:
    """A name of the `torchrun` that started this process, the same after a restart; empty without torchrun.

    It is --rdzv-id, if one was given, otherwise the number of torchrun's own process.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none") if "LOCAL_RANK" in os.environ else ""
    return name if name != "none" else f"{platform.node()} {os.getppid()}"


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of the processes' tensors, in every process."""
    if dist.is_initialized():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(number: int) -> int:
    """The largest of the processes' numbers, in every process. It is found on the CPU and waits for no GPU."""
    if not dist.is_initialized():
        return number
    tensor = torch.tensor(number)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


def all_gather(value: Any) -> list[Any]:
    """The processes' values in order, in every process: plain types, or tensors on the CPU."""
    if not dist.is_initialized():
        return [value]
    values = [None] * count()
    dist.all_gather_object(values, value)
    return values


def first_process_first(function: Callable[[], Any]) -> Any:
    """function(), first in process 0, then in one process of every other machine, then in all others.

    So files that it fetches or writes are made once on every disk. A UserError is raised in all before the next begin.
    """
    stage, result, error = 0 if is_first() else 1 if os.environ.get("LOCAL_RANK") == "0" else 2, None, None
    for number in range(3):
        if number == stage:
            try:
                result = function()
            except UserError as caught:
                error = caught
        if messages := [message for message in all_gather(error and str(error)) if message]:
            raise error or UserError(messages[0])
    return result
