from collections import Counter

import pytest
import torch
from equations import HEADS, WIDTH, attention, layer_norm, mlp, randomize
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import StochasticDepth

from mpvg_minimal.block import Attention, Block, DropPath


def block(**options) -> Block:
    return randomize(Block(WIDTH, HEADS, mlp_ratio=2, **options).double().eval())


def tokens(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 7, WIDTH, dtype=torch.float64)


def equations(module: Block, x: torch.Tensor, pe: torch.Tensor | float = 0.0) -> torch.Tensor:
    w = module.state_dict()
    x = x + attention(layer_norm(x, w, "norm1") + pe, w, "attn")
    return x + mlp(layer_norm(x, w, "norm2"), w, "mlp")


def test_a_block_is_its_two_equations():
    module, x, pe = block(), tokens(), tokens(1)
    torch.testing.assert_close(module(x), equations(module, x), rtol=0, atol=1e-10)
    torch.testing.assert_close(module(x, pe), equations(module, x, pe), rtol=0, atol=1e-10)


@pytest.mark.parametrize("heads, bias", [(1, True), (2, False), (6, True)])
def test_attention_head_by_head(heads, bias):
    module, y = randomize(Attention(WIDTH, heads, qkv_bias=bias).double()), tokens()
    weights = {f"a.{key}": weight for key, weight in module.state_dict().items()}
    assert ("a.qkv.bias" in weights) == bias
    torch.testing.assert_close(module(y), attention(y, weights, "a", heads), rtol=0, atol=1e-10)


class Count(TorchDispatchMode):
    """Counts the operations that torch runs, the backward pass included."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[str(function)] += 1
        return function(*args, **kwargs or {})


def test_delivering_is_one_addition():
    module, x, pe = block(), tokens(), tokens(1)
    with torch.no_grad(), Count() as without:
        module(x)
    with torch.no_grad(), Count() as with_pe:
        module(x, pe)
    assert with_pe.calls - without.calls == {"aten.add.Tensor": 1} and not without.calls - with_pe.calls


def test_attention_copies_once_and_only_in_the_backward_pass():
    """The three gradients become one, for the linear map; the rest, forwards and backwards, is read where it lies."""
    module, x = Attention(WIDTH, HEADS), torch.randn(2, 7, WIDTH, requires_grad=True)
    with Count() as counter:
        module(x).sum().backward()
    assert {name: number for name, number in counter.calls.items()
            if name.split(".")[1] in ("cat", "stack", "clone", "copy_")} == {"aten.cat.default": 1}


def test_the_hidden_layer_may_be_narrower_than_the_width():
    module = Block(WIDTH, HEADS, mlp_ratio=0.5).mlp
    assert module.fc1.weight.shape == (WIDTH // 2, WIDTH) and module.fc2.weight.shape == (WIDTH, WIDTH // 2)


def test_stochastic_depth_drops_branches_image_by_image():
    module, x = block(stochastic_depth=0.5).train(), tokens(64)
    w = module.state_dict()
    kept = x + 2 * attention(layer_norm(x, w, "norm1"), w, "attn")              # kept at 1/2, so doubled
    outcomes = [y for start in (x, kept) for y in (start, start + 2 * mlp(layer_norm(start, w, "norm2"), w, "mlp"))]
    output = module(x)
    distance = torch.stack([(output - outcome).abs().amax((1, 2)) for outcome in outcomes])         # (4, B)
    assert distance.amin(0).max() < 1e-9
    assert distance.argmin(0).bincount(minlength=4).min() >= 6                  # 16 expected of each


@pytest.mark.parametrize("p", [0.0, 0.1, 0.7])
def test_stochastic_depth_draws_as_torchvisions(p):
    ours, theirs, x = DropPath(p), StochasticDepth(p, mode="row"), tokens(64)
    outputs = []
    for module in (ours, theirs):
        torch.manual_seed(5)
        outputs.append(module(x))
    assert torch.equal(*outputs) and torch.equal(ours.eval()(x), x)


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_stochastic_depth_refuses_what_is_no_probability_to_keep_something(p):
    with pytest.raises(ValueError, match=f"probability {p}, expected at least 0 and below 1"):
        Block(WIDTH, HEADS, stochastic_depth=p)
