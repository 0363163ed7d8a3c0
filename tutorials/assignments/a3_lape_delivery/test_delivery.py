"""A3. Expected values come from the equations, in float64, with random weights in every LayerNorm."""
import pytest
import torch
from expect import Case, agree, layer_norm, normal, plain_norm
from student import equal
from torch import nn

SIZES = [(2, 5, 8), (1, 3, 6), (4, 1, 8)]       # B, N, D
DEPTHS = [(5, 8, 3), (3, 6, 1), (4, 8, 5)]      # N, D, L


class Mix(nn.Module):
    """Stands in for attention, and for the MLP: a map that mixes tokens and is not linear."""

    def __init__(self, tokens):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(tokens, tokens))

    def forward(self, x):
        return torch.sin(self.weight @ x)


def handed_on(delivery):
    """p_1 ... p_L by the equation."""
    chain = [delivery.pe]
    for norm in delivery.norms:
        chain.append(layer_norm(chain[-1], norm))
    return chain[1:]


def delivered(student, mistakes):
    """What agree() takes: a Delivery of the student's against the equation."""
    def case(N, D, L):
        delivery = student.Delivery(N, D, L)
        return Case(delivery, lambda: handed_on(delivery), [], mistakes(delivery), [delivery])
    return case


@pytest.mark.points(1)
def test_each_layer_has_a_norm_of_its_own(student):
    """part 1: p_0, and L LayerNorms, no two of them the same"""
    for N, D, L in DEPTHS:
        delivery = student.Delivery(N, D, L)
        equal((type(delivery.pe).__name__, tuple(delivery.pe.shape)), ("Parameter", (1, N, D)), "type and shape of pe",
              "the stub makes it: leave that line as it is")
        equal(type(delivery.norms).__name__, "ModuleList", "type of norms",
              "PyTorch finds no parameters in a plain list")
        equal(len(delivery.norms), L, "number of norms", "one LayerNorm for each block")
        equal(len({id(norm.weight) for norm in delivery.norms}), L, "number of different norms",
              "[norm] * L is L times the SAME norm: make a new one for each layer")
        for number, norm in enumerate(delivery.norms):
            plain_norm(norm, D, f"norms[{number}]")
        equal(sum(weight.numel() for weight in delivery.parameters()), N * D + L * 2 * D, "number of parameters",
              "pe has N * D, each norm 2 * D, and there are no others")


@pytest.mark.points(2)
def test_pe_is_handed_on(student):
    """part 1: p_l = LN'_l(p_{l-1})"""
    case = delivered(student, lambda delivery: [
        (lambda: [layer_norm(delivery.pe, norm) for norm in delivery.norms],
         "every layer normalizes p_0 here; it has to normalize what the layer before it delivered"),
        (lambda: [delivery.pe, *handed_on(delivery)[:-1]], "this is p_0 ... p_{L-1}: normalize before you deliver"),
        (lambda: [delivery.pe, *handed_on(delivery)], "p_0 comes along: the first block gets p_1"),
        (lambda: handed_on(delivery)[-1:] * len(delivery.norms), "each of these is p_L: keep every p on the way")])
    agree(case, DEPTHS, "a list: start from p_0, normalize, deliver, and go on with what you delivered",
          gradients=False)


@pytest.mark.points(1)
def test_pe_learns_through_every_norm(student):
    """part 1: every delivered PE has its gradient for p_0 and all norms before it"""
    agree(delivered(student, lambda delivery: []), DEPTHS, "p_l = LN'_l(p_{l-1})")


@pytest.mark.points(2)
def test_block(student):
    """part 2: x + MSA(LN(x) + p), then x + MLP(LN(x))"""
    def case(B, N, D):
        block = student.Block(D, Mix(N), Mix(N))

        def after(y, residual):
            z = residual + block.attention(y)
            return z + block.mlp(layer_norm(z, block.norm2))

        def ln(x):
            return layer_norm(x, block.norm1)
        mistakes = [
            (lambda x, p: after(ln(x) + p, x + p),
             "p went into the residual stream x as well: it belongs to attention's input alone"),
            (lambda x, p: after(ln(x + p), x), "this is LN(x + p): add p after the norm"),
            (lambda x, p: after(ln(x + p), x + p), "p went into x before the norm: it is for attention's input alone"),
            (lambda x, p: after(ln(x), x), "p has no effect: is it added to anything?")]
        return Case(block, lambda x, p: after(ln(x) + p, x), [normal(B, N, D), normal(1, N, D, seed=3)], mistakes,
                    [block])
    agree(case, SIZES, "normalize x, add p to that, and only then call attention")


@pytest.mark.points(1)
def test_block_without_pe(student):
    """part 2: with pe=None an ordinary block"""
    def case(B, N, D, given):
        block = student.Block(D, Mix(N), Mix(N))

        def ordinary(x):
            z = x + block.attention(layer_norm(x, block.norm1))
            return z + block.mlp(layer_norm(z, block.norm2))
        call = (lambda x: block(x, None)) if given else block
        return Case(call, ordinary, [normal(B, N, D)], [], [block])
    agree(case, [(*size, given) for size in SIZES for given in (True, False)],
          "leave out the addition if pe is None, and nothing else")


class Delivery(nn.Module):
    def __init__(self, tokens, width, depth):
        super().__init__()
        self.pe = nn.Parameter(torch.zeros(1, tokens, width))
        self.norms = nn.ModuleList(map(nn.LayerNorm, [width] * depth))

    def forward(self):
        return handed_on(self)


class Block(nn.Module):
    """As little as tells one block from another, and where PE came from."""

    def __init__(self):
        super().__init__()
        self.number = nn.Parameter(torch.zeros(1))

    def forward(self, x, pe=None):
        return torch.sin(self.number * x) + pe * x


@pytest.mark.points(2)
def test_encode(student):
    """part 3: block l gets p_l, and the tokens get no PE"""
    def case(B, N, D, L):
        blocks, delivery = nn.ModuleList(Block() for _ in range(L)), Delivery(N, D, L)

        def all_blocks(tokens, pes):
            for block, pe in zip(blocks, pes):
                tokens = torch.sin(block.number * tokens) + pe * tokens
            return tokens
        mistakes = [
            (lambda tokens: all_blocks(tokens + delivery.pe, handed_on(delivery)),
             "p_0 was added to the tokens: that is ViT's way, not LaPE's"),
            (lambda tokens: all_blocks(tokens, handed_on(delivery)[-1:] * L),
             "every block got the last PE: block l gets p_l"),
            (lambda tokens: all_blocks(tokens, handed_on(delivery)[:1] * L),
             "every block got the first PE: block l gets p_l"),
            (lambda tokens: all_blocks(tokens, [delivery.pe, *handed_on(delivery)]),
             "block l got p_{l-1}: it gets p_l")]
        return Case(lambda tokens: student.encode(tokens, list(blocks) if L == 3 else blocks, delivery),
                    lambda tokens: all_blocks(tokens, handed_on(delivery)), [normal(B, N, D)], mistakes,
                    [blocks, delivery])
    agree(case, [(2, 5, 8, 3), (1, 3, 6, 1), (3, 4, 8, 5)], "go through blocks and PEs side by side")


@pytest.mark.points(1)
def test_qkv_bias(student):
    """part 4: a delivered PE is a bias on queries, keys and values"""
    def case(B, N, D):
        qkv, y = nn.Linear(D, 3 * D), normal(B, N, D)
        return Case(lambda pe: student.qkv_bias(qkv, pe), lambda pe: (qkv(y.to(pe) + pe) - qkv(y.to(pe)))[:1],
                    [normal(1, N, D, seed=1)],
                    [(lambda pe: qkv(pe), "qkv's own bias is in it, so it would be counted twice")], [qkv])
    agree(case, SIZES, "what is left of qkv(y + pe) without qkv(y)?")
