"""Whether the tests' own instruments see what they are for."""
import os

import pytest
import torch
from pretend_cuda import CUDA, Kernels, PretendCuda
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException


def test_the_card_is_hidden_from_all_tests_that_do_not_ask_for_it():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not torch.cuda.is_available()


def test_kernels_are_counted_and_views_are_not():
    x = torch.randn(4, 6, requires_grad=True)
    with Kernels() as kernels:
        y = x.view(6, 4).transpose(0, 1)[1:].detach()               # views
        torch.empty(3)                                              # memory that nobody fills
        y = torch.relu(y @ y.T).sum()                               # 3 kernels
        (x * 2).sum().backward()                                    # forward 2; backward 1 of ones, 1 to double them
    assert sum(kernels.count.values()) == 7, kernels.count


def test_on_a_pretended_card_shapes_types_and_devices_are_as_on_a_real_one():
    model = torch.nn.Linear(3, 5)
    with PretendCuda() as pretended:
        model.to(CUDA, non_blocking=True)
        x = torch.ones(2, 3).to(CUDA, non_blocking=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = model(x)
        y.float().sum().backward()
        on_cpu = torch.arange(4)[torch.arange(4) > 1]               # tensors on the CPU stay real
    assert y.device == torch.device("cuda:0") and y.shape == (2, 5) and y.dtype == torch.bfloat16
    assert model.weight.grad.shape == (5, 3) and model.weight.grad.device == y.device
    assert on_cpu.tolist() == [2, 3] and pretended.copies == {"in the background": 3}


@pytest.mark.parametrize("wait", [
    lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: bool((x > 0).all()),
    lambda x: x.cpu(), lambda x: x + torch.ones(3), lambda x: x.copy_(torch.ones(3)), lambda x: x.tolist(),
    lambda x: torch.tensor([1.0], device=CUDA)])
def test_whatever_waits_for_the_card_is_an_error(wait):
    with PretendCuda():
        x = torch.ones(3, device=CUDA)
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException, AssertionError, RuntimeError)):
            wait(x)
