"""Many processes, one model: what training needs beyond DistributedDataParallel. With one process, all of it is free.

`torchrun` starts the processes and tells each its place in environment variables. Tensors on CPU are reduced by
gloo and tensors on a GPU by NCCL, in one process group.
"""
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import UserError


def start(device: torch.device) -> torch.device:
    """Joins the group if `torchrun` started this process. Returns the device of this process."""
    if "LOCAL_RANK" not in os.environ:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if device.index >= torch.cuda.device_count():
            raise UserError(f"process {device.index} of this machine has no GPU, there are {torch.cuda.device_count()}:"
                            " give torchrun as many processes as there are GPUs")
        torch.cuda.set_device(device)
    store, rank, world = next(dist.rendezvous("env://"))
    # torchrun's store outlives a restart: without a name of its own, a process may read a dead one's address there.
    store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=store, rank=rank,
                            world_size=world)
    return device


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def on_this_machine() -> tuple[int, int]:
    """This process's number among those of its machine, and how many these are."""
    if not dist.is_initialized():
        return 0, 1
    return int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", count()))


def was_restarted() -> bool:
    """Whether `torchrun --max-restarts` started this process again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, in every process."""
    if dist.is_initialized():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def gathered(value: Any) -> list[Any]:
    """The processes' values, plain or tensors on CPU, in every process."""
    if not dist.is_initialized():
        return [value]
    values = [None] * count()
    dist.all_gather_object(values, value)
    return values


def one_first(function: Callable[[], Any]) -> Any:
    """function(), which may write files: first in the first process, then in one of each machine, then in the others.

    So what is missing is fetched once, and once on every machine that has a disk of its own. A UserError of one
    process is raised in all of them, before the next ones begin.
    """
    stage, result, error = 0 if is_first() else 1 if os.environ.get("LOCAL_RANK") == "0" else 2, None, None
    for number in range(3):
        if number == stage:
            try:
                result = function()
            except UserError as caught:
                error = caught
        messages = [message for message in gathered(error and str(error)) if message]
        if messages:
            raise error or UserError(messages[0])
    return result


def agree(number: int) -> int:
    """The largest of the processes' numbers, in every process. On CPU, so it does not wait for a GPU."""
    if not dist.is_initialized():
        return number
    tensor = torch.tensor(number)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)
