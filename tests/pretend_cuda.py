"""CUDA before there is CUDA: kernels counted and waits found on a machine without a GPU.

`Kernels` counts the operations that a GPU would launch kernels for. `PretendCuda` gives tensors on device "cuda" that
have shapes, types and a device but no values, while tensors on the CPU stay real. What needs a value from the device,
which is where the CPU would wait for it, is an error, and so is a copy between the two without `non_blocking=True`.
"""
import contextlib
from collections import Counter
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

CUDA = torch.device("cuda")
NO_KERNEL = ("empty", "detach", "_local_scalar_dense", "alias", "lift_fresh", "is_pinned", "_pin_memory", "set_",
             "_unsafe_view", "unsqueeze_", "new_empty")


def launches(op) -> bool:
    """Whether a GPU would launch a kernel: not for a view, nor for memory that is only reserved."""
    view = any(result.alias_info is not None and not result.alias_info.is_write for result in op._schema.returns)
    kind, name = op._schema.name.split("::")
    return kind == "aten" and not view and not name.startswith(NO_KERNEL)


class Kernels(TorchDispatchMode):
    """Inside, `count[name]` counts the operations. One may be several kernels on a GPU: a lower bound."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count[op._schema.name] += launches(op)
        return op(*args, **kwargs or {})


def backward(loss: torch.Tensor) -> None:
    """Gradients of the right shape for all that the loss depends on: autograd's engine wants a real card."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [function for function, _ in node.next_functions]
            if hasattr(node, "variable"):
                node.variable.grad = torch.empty_like(node.variable)


class PretendCuda(TorchDispatchMode):
    """Inside, device "cuda" exists, see the top of this file. `copies` counts what crossed between it and the CPU."""

    def __init__(self, *, waits_allowed: bool = False):
        super().__init__()
        self.fake, self.patches = FakeTensorMode(allow_non_fake_inputs=True), contextlib.ExitStack()
        self.waits_allowed, self.copies = waits_allowed, Counter()

    def __enter__(self):
        for name, value in (("torch.cuda._lazy_init", None), ("torch.cuda.current_device", 0),
                            ("torch.cuda.is_bf16_supported", True),
                            ("torch.cuda.mem_get_info", (2 ** 36, 2 ** 36)),
                            ("torch.cuda.amp.common.amp_definitely_not_available", False)):
            self.patches.enter_context(mock.patch(name, lambda *_, value=value, **__: value))
        self.patches.enter_context(mock.patch("torch.Tensor.backward", backward))
        self.patches.enter_context(mock.patch("torch.cuda.default_generators", (torch.Generator(),)))
        torch._C._ensureCUDADeviceGuardSet()                    # without a GPU: a guard that does nothing
        torch._C._set_only_lift_cpu_tensors(True)               # so that torch.tensor(..., device=) comes by
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(False)
        self.patches.close()
        return super().__exit__(*error)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_flatten((args, kwargs))[0]
        fake = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        to_cuda = any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves)
        if not fake and not to_cuda:
            return op(*args, **kwargs)
        self.note_copy(op, args, kwargs)
        with self.fake:
            return op(*args, **kwargs)

    def note_copy(self, op, args, kwargs):
        name = op._schema.name.removeprefix("aten::")
        if name == "copy_":
            places, blocking = (args[1].device.type, args[0].device.type), not (len(args) > 2 and args[2])
        elif name == "_to_copy":
            places = args[0].device.type, kwargs.get("device", args[0].device).type
            blocking = not kwargs.get("non_blocking", False)
        else:
            return
        if places[0] != places[1]:
            self.copies["waiting" if blocking else "in the background"] += 1
            assert self.waits_allowed or not blocking, f"waits for a copy of {tuple(args[0].shape)} {places}"
