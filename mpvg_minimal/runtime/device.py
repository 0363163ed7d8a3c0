"""How tensors come to a device, in which precision it computes, and by which kernels."""
from contextlib import contextmanager

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on that device. The CPU waits for the copy, but not if it goes to CUDA."""
    # A copy to MPS would read memory that may have been freed meanwhile (pytorch issue 189690).
    return tensor.to(device, non_blocking=device.type == "cuda")


def prepare(device: torch.device) -> None:
    """Before training on a GPU: TF32 for the products that stay in float32, and no attention by cuDNN.

    An H100 would take cuDNN's attention where there is no dropout. Its backward pass in bfloat16 gave others NaN
    (pytorch issue 196678, with a mask; kyutai-labs/pocket-tts pull request 264); flash attention was as fast there.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cuda.enable_cudnn_sdp(False)


def autocast(device: torch.device, amp: torch.dtype | None) -> torch.autocast:
    """Mixed precision in the type `amp`; None: float32 throughout."""
    return torch.autocast(device.type, dtype=amp or torch.bfloat16, enabled=amp is not None)


@contextmanager
def full_float32():
    """Inside, no product or convolution rounds its factors to TF32, which `prepare` allows."""
    product, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(product)
        torch.backends.cudnn.allow_tf32 = convolution
