"""A3. Expected values come from the equations, in float64, with random weights in every LayerNorm."""
import pytest
import torch
from expect import close, equal, fail, layer_norm, normal, randomise
from torch import nn


class Mix(nn.Module):
    """Stands in for attention, and for the MLP: a map that mixes tokens and is not linear."""

    def __init__(self, tokens, seed):
        super().__init__()
        self.weight = nn.Parameter(normal(tokens, tokens, seed=seed))

    def forward(self, x):
        return torch.sin(self.weight @ x)


def handed_on(delivery):
    """p_1 ... p_L by the equation."""
    chain = [delivery.pe]
    for norm in delivery.norms:
        chain.append(layer_norm(chain[-1], norm))
    return chain[1:]


@pytest.mark.points(1)
def test_each_layer_has_a_norm_of_its_own(student):
    """part 1: L LayerNorms, no two of them the same"""
    delivery = student.Delivery(5, 8, 3)
    equal(len(delivery.norms), 3, "number of norms", "one LayerNorm for each block")
    equal(len({id(norm.weight) for norm in delivery.norms}), 3, "number of different norms",
          "[norm] * L is L times the SAME norm: make a new one for each layer")


@pytest.mark.points(2)
def test_pe_is_handed_on(student):
    """part 1: p_l = LN'_l(p_{l-1})"""
    delivery = randomise(student.Delivery(5, 8, 3))
    expected, got = torch.stack(handed_on(delivery)), delivery()
    equal(len(got), 3, "number of PEs", "one PE for each block")
    flat = torch.stack([layer_norm(delivery.pe, norm) for norm in delivery.norms])
    early = torch.stack([delivery.pe, *expected[:-1]])
    close(torch.stack(list(got)), expected, "start from p_0, normalise, deliver, and go on with what you delivered",
          (flat, "every layer normalises p_0 here; it has to normalise what the layer before it delivered"),
          (early, "this is p_0 ... p_{L-1}: normalise before you deliver"))


@pytest.mark.points(1)
def test_pe_learns_through_every_norm(student):
    """part 1: the gradient of the last block's PE reaches p_0 and all norms"""
    delivery = randomise(student.Delivery(5, 8, 3))
    (list(delivery())[-1] * normal(1, 5, 8, seed=1)).sum().backward()
    for name, weight in delivery.named_parameters():
        if weight.grad is None or not weight.grad.abs().sum() > 0:
            fail(f"no gradient for {name}", "a gradient for each of the parameters", "PE is learnt: nothing on its way "
                 "may cut the graph (detach, no_grad, .data)")


@pytest.mark.points(2)
def test_block(student):
    """part 2: x + MSA(LN(x) + p), then x + MLP(LN(x))"""
    block, x, p = randomise(student.Block(8, Mix(5, 1), Mix(5, 2))), normal(2, 5, 8), normal(1, 5, 8, seed=3)

    def by_hand(y, residual):
        z = residual + block.attention(y)
        return z + block.mlp(layer_norm(z, block.norm2))
    n = layer_norm(x, block.norm1)
    close(block(x, p), by_hand(n + p, x), "normalise x, add p to that, and only then call attention",
          (by_hand(n + p, x + p), "p went into the residual stream x as well: it belongs to attention's input alone"),
          (by_hand(layer_norm(x + p, block.norm1), x), "this is LN(x + p): add p after the norm"),
          (by_hand(layer_norm(x + p, block.norm1), x + p), "p went into the residual stream x: it belongs to "
           "attention's input alone"),
          (by_hand(n, x), "p has no effect: is it added to anything?"))


@pytest.mark.points(1)
def test_block_without_pe(student):
    """part 2: with pe=None an ordinary block"""
    block, x = randomise(student.Block(8, Mix(5, 1), Mix(5, 2))), normal(2, 5, 8)
    z = x + block.attention(layer_norm(x, block.norm1))
    close(block(x), z + block.mlp(layer_norm(z, block.norm2)), "leave out the addition if pe is None, and nothing else")


@pytest.mark.points(2)
def test_encode(student):
    """part 3: block l gets p_l, and the tokens get no PE"""
    pes, tokens = [normal(1, 5, 8, seed=seed) for seed in (1, 2, 3)], normal(2, 5, 8)
    blocks = [lambda x, pe, n=n: torch.sin(n * x) + pe * x for n in (1, 2, 3)]

    def by_hand(x, delivered):
        for n, pe in zip((1, 2, 3), delivered):
            x = torch.sin(n * x) + pe * x
        return x

    def delivery():
        return list(pes)
    delivery.pe = normal(1, 5, 8, seed=4)
    close(student.encode(tokens, blocks, delivery), by_hand(tokens, pes), "go through blocks and PEs side by side",
          (by_hand(tokens + delivery.pe, pes), "p_0 was added to the tokens: that is ViT's way, not LaPE's"),
          (by_hand(tokens, pes[-1:] * 3), "every block got the last PE: block l gets p_l"),
          (by_hand(tokens, pes[:1] * 3), "every block got the first PE: block l gets p_l"))


@pytest.mark.points(1)
def test_qkv_bias(student):
    """part 4: a delivered PE is a bias on queries, keys and values"""
    qkv, y, pe = randomise(nn.Linear(8, 24)), normal(2, 5, 8), normal(1, 5, 8, seed=1)
    expected = qkv(y + pe) - qkv(y)
    close(student.qkv_bias(qkv, pe).expand(2, -1, -1), expected, "what is left of qkv(y + pe) without qkv(y)?",
          (qkv(pe).expand(2, -1, -1), "qkv's own bias is in it, so it would be counted twice"))
