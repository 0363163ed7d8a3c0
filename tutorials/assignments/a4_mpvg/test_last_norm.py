"""A4. Expected values come from the equations, in float64, with random weights in every LayerNorm."""
import pytest
import torch
from expect import Case, agree, layer_norm, normal, plain_norm
from student import equal
from torch import nn

SIZES = [(2, 5, 8), (1, 3, 6), (4, 2, 8)]               # B, N, D
DEPTHS = [(5, 8, 4), (3, 6, 1), (2, 8, 6)]              # N, D, L


def made_norms(width, count):
    return nn.ModuleList(nn.LayerNorm(width) for _ in range(count))


def handed_on(p_0, norms):
    """[None, p_2, ..., p_L], by the equation."""
    chain = [p_0]
    for ln in norms:
        chain.append(layer_norm(chain[-1], ln))
    return [None, *chain[1:]]


def mean(y):
    return sum(y.unbind(1)) / y.shape[1]


@pytest.mark.points(1)
def test_tokens_and_pe_have_norms_of_their_own(student):
    """part 1: two LayerNorms, and without PE y = LN(x)"""
    for _, _, D in SIZES:
        module = student.LastNorm(D)
        equal(module.token_norm.weight is module.pe_norm.weight, False, "token_norm and pe_norm share their weights",
              "make two LayerNorms: PE's own affine is what balances it against the tokens")
        plain_norm(module.token_norm, D, "token_norm")
        plain_norm(module.pe_norm, D, "pe_norm")
        equal(len(list(module.parameters())), 4, "number of parameters", "a weight and a bias for each of two norms")

    def case(B, N, D, given):
        module = student.LastNorm(D)
        return Case((lambda x: module(x, None)) if given else module, lambda x: layer_norm(x, module.token_norm),
                    [normal(B, N, D)], [], [module])
    agree(case, [(*size, given) for size in SIZES for given in (False, True)],
          "without PE the last norm is an ordinary LayerNorm: token_norm")


@pytest.mark.points(2)
def test_last_norm(student):
    """part 1: y = LN(x) + LN'_last(p_0)"""
    def case(B, N, D):
        module = student.LastNorm(D)

        def tokens(x):
            return layer_norm(x, module.token_norm)

        def pe(p):
            return layer_norm(p, module.pe_norm)
        return Case(module, lambda x, p_0: tokens(x) + pe(p_0), [normal(B, N, D), normal(1, N, D, seed=1)], [
            (lambda x, p_0: tokens(x + p_0), "this is LN(x + p): normalize first, add afterwards"),
            (lambda x, p_0: tokens(x) + p_0, "PE is added as it is: it goes through pe_norm first"),
            (lambda x, p_0: tokens(x) + tokens(p_0), "PE went through the tokens' norm: it has its own, pe_norm"),
            (lambda x, p_0: tokens(x), "PE has no effect: is it added to anything?")], [module])
    agree(case, SIZES, "normalize the tokens, normalize PE, each by its own norm, then add")


@pytest.mark.points(1)
def test_gap(student):
    """part 2: "gap" is the mean over tokens"""
    def case(B, N, D):
        return Case(lambda y: student.pool(y, "gap"), mean, [normal(B, N, D)], [
            (lambda y: y.mean(0), "this is the mean over images: B is axis 0, N is axis 1"),
            (lambda y: y.sum(1), "this is the sum: divide by N"),
            (lambda y: y[:, 1:].mean(1), "with GAP there is no class token: token 0 counts as well")])
    agree(case, SIZES, "(B, N, D) -> (B, D): average over N")


@pytest.mark.points(1)
def test_class_token(student):
    """part 2: "cls" is token 0"""
    def case(B, N, D):
        return Case(lambda y: student.pool(y, "cls"), lambda y: torch.stack([image[0] for image in y]),
                    [normal(B, N, D)], [
            (lambda y: y.mean(1), 'this is the mean over tokens, for "cls" as well'),
            (lambda y: y[:, -1], "this is the last token"),
            (lambda y: y[:, :1], "(B, 1, D): the axis of tokens has to go")])
    agree(case, SIZES, "the class token is the first of the N")


@pytest.mark.points(2)
def test_blocks_get_pe_from_the_second_on(student):
    """part 3: p_0 to the input, nothing to block 1, then p_l = LN'_l(p_{l-1})"""
    def case(N, D, L):
        norms = made_norms(D, L - 1)

        def call(p_0):
            got = student.deliver(p_0, list(norms) if L == 4 else norms)
            equal((type(got).__name__, len(got)), ("tuple", 3), "type and length of what deliver returns",
                  "return three things: for the input, for the blocks (a list), for the last norm")
            equal(type(got[1]).__name__, "list", "type of what the blocks get", "a list, with None for block 1")
            equal(len(got[1]), L, "number of blocks", "L = len(norms) + 1: block 1 has no norm for PE")
            equal(got[1][0], None, "PE of block 1", "the blocks from the second on get PE; p_0 is in x already")
            return got[:2]
        return Case(call, lambda p_0: (p_0, handed_on(p_0, norms)), [normal(1, N, D)], [
            (lambda p_0: (p_0, [None, *(layer_norm(p_0, norm) for norm in norms)]),
             "every block normalizes p_0 here: hand on what the block before received"),
            (lambda p_0: (p_0, [None, p_0, *handed_on(p_0, norms)[1:-1]]),
             "block l gets p_{l-1} here: normalize first, then deliver"),
            (lambda p_0: (None, handed_on(p_0, norms)), "MPVG adds p_0 to the tokens before block 1")], [norms])
    agree(case, DEPTHS, "p_0 for the input; block 2 gets LN'_2(p_0), block 3 LN'_3 of that, and so on")


@pytest.mark.points(1)
def test_last_norm_gets_the_initial_pe(student):
    """part 3: p_0 to the last norm, as it is"""
    def case(N, D, L):
        norms = made_norms(D, L - 1)
        return Case(lambda p_0: student.deliver(p_0, norms)[2], lambda p_0: p_0, [normal(1, N, D)], [
            (lambda p_0: handed_on(p_0, norms)[-1],
             "this is p_L, what the last block received; MPVG goes back to the initial PE, p_0"),
            (lambda p_0: handed_on(p_0, norms[-1:])[-1], "this is normalized already: LN'_last is in LastNorm")],
            [norms])
    agree(case, DEPTHS, "the last norm gets p_0 and normalizes it itself")


class Block(nn.Module):
    """As little as tells one block from another, and whether PE came."""

    def __init__(self):
        super().__init__()
        self.number = nn.Parameter(torch.zeros(1))

    def forward(self, x, pe=None):
        return torch.sin(self.number * x) + (x.flip(1) if pe is None else pe * x)


class Last(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.token_norm, self.pe_norm = (nn.LayerNorm(width) for _ in range(2))

    def forward(self, x, pe=None):
        y = layer_norm(x, self.token_norm)
        return y if pe is None else y + layer_norm(pe, self.pe_norm)


def whole(student, how, first):
    """What agree() takes: `classify` against all lines of A4, pooled by the function `first`."""
    def case(B, N, D, L):
        norms, blocks = made_norms(D, L - 1), nn.ModuleList(Block() for _ in range(L))
        last, head, given = Last(D), nn.Linear(D, 3), {"how": how} if how else {}

        def by_hand(tokens, p_0, start=True, to_last=lambda p_0, pes: p_0, pooled=first):
            pes, z = handed_on(p_0, norms), tokens + p_0 if start else tokens
            for block, pe in zip(blocks, pes):
                z = block(z, pe)
            return pooled(last(z, to_last(p_0, pes))) @ head.weight.T + head.bias
        mistakes = [
            (lambda *inputs: by_hand(*inputs, start=False), "the tokens lack p_0: MPVG adds it at the input"),
            (lambda *inputs: by_hand(*inputs, to_last=lambda p_0, pes: pes[-1]), "the last norm got p_L: it gets p_0"),
            (lambda *inputs: by_hand(*inputs, pooled=mean if how == "cls" else lambda y: y[:, 0]),
             "`how` has to reach pool"),
            (lambda *inputs: by_hand(*inputs, to_last=lambda p_0, pes: None), "the last norm got no PE: it gets p_0")]
        parts = (list(norms) if L == 3 else norms, blocks, last, head)
        return Case(lambda tokens, p_0: student.classify(tokens, p_0, *parts, **given),
                    lambda tokens, p_0: by_hand(tokens, p_0), [normal(B, N, D), normal(1, N, D, seed=1)], mistakes,
                    [norms, blocks, last, head])
    return case


@pytest.mark.points(2)
def test_classify(student):
    """part 4: tokens to logits"""
    hint = "p_0 to the tokens, the blocks each with its PE, the last norm with its PE, pool, head"
    for how, pooled in ((None, mean), ("gap", mean), ("cls", lambda y: y[:, 0])):
        agree(whole(student, how, pooled), [(2, 5, 8, 3), (1, 3, 6, 1), (3, 2, 8, 4)], hint)
