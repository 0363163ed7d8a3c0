"""In which precision a GPU computes what is kept in float32."""
from contextlib import contextmanager

import torch


@contextmanager
def full_float32():
    """Inside, no product or convolution rounds its factors to TF32, which a run allows for its model."""
    product, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(product)
        torch.backends.cudnn.allow_tf32 = convolution
