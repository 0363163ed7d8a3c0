"""A4. Expected values come from the equations, in float64, with random weights in every LayerNorm."""
import pytest
import torch
from expect import close, equal, layer_norm, normal, randomise
from torch import nn

X, P_0 = normal(2, 5, 8), normal(1, 5, 8, seed=1)           # B = 2, N = 5, D = 8


def norms(count):
    return [randomise(nn.LayerNorm(8)) for _ in range(count)]


@pytest.mark.points(1)
def test_tokens_and_pe_have_norms_of_their_own(student):
    """part 1: two LayerNorms, and without PE y = LN(x)"""
    module = student.LastNorm(8)
    equal(module.token_norm.weight is module.pe_norm.weight, False, "token_norm and pe_norm share their weights",
          "make two LayerNorms: PE's own affine is what balances it against the tokens")
    module = randomise(module)
    close(module(X), layer_norm(X, module.token_norm), "without PE the last norm is an ordinary LayerNorm: token_norm")


@pytest.mark.points(2)
def test_last_norm(student):
    """part 1: y = LN(x) + LN'_last(p_0)"""
    module = randomise(student.LastNorm(8))
    with torch.no_grad():
        module.pe_norm.weight.add_(1)                       # so that the two norms differ, shared or not
    tokens, pe = layer_norm(X, module.token_norm), layer_norm(P_0, module.pe_norm)
    close(module(X, P_0), tokens + pe, "normalise the tokens, normalise PE, each by its own norm, then add",
          (layer_norm(X + P_0, module.token_norm), "this is LN(x + p): normalise first, add afterwards"),
          (tokens + P_0, "PE is added as it is: it goes through pe_norm first"),
          (tokens, "PE has no effect: is it added to anything?"))


@pytest.mark.points(1)
def test_gap(student):
    """part 2: "gap" is the mean over tokens"""
    close(student.pool(X, "gap"), sum(X[:, n] for n in range(5)) / 5, "(B, N, D) -> (B, D): average over N",
          (X.mean(0), "this is the mean over images: B is axis 0, N is axis 1"),
          (X[:, 1:].mean(1), "with GAP there is no class token: token 0 counts as well"))


@pytest.mark.points(1)
def test_class_token(student):
    """part 2: "cls" is token 0"""
    close(student.pool(X, "cls"), torch.stack([image[0] for image in X]), "the class token is the first of the N",
          (X.mean(1), 'this is the mean over tokens, for "cls" as well'), (X[:, -1], "this is the last token"))


@pytest.mark.points(2)
def test_blocks_get_pe_from_the_second_on(student):
    """part 3: p_0 to the input, nothing to block 1, then p_l = LN'_l(p_{l-1})"""
    ln = norms(3)
    for number, norm in enumerate(ln):
        norm.weight.data += number                          # all different
    p_2 = layer_norm(P_0, ln[0])
    p_3 = layer_norm(p_2, ln[1])
    p_4 = layer_norm(p_3, ln[2])
    input_pe, block_pes, _ = student.deliver(P_0, ln)
    close(input_pe, P_0, "MPVG adds p_0 to the tokens before block 1")
    equal(len(block_pes), 4, "number of blocks", "L = len(norms) + 1: block 1 has no norm for PE")
    equal(block_pes[0], None, "PE of block 1", "the blocks from the second on get PE; p_0 is in the tokens already")
    flat = torch.stack([layer_norm(P_0, norm) for norm in ln])
    close(torch.stack(block_pes[1:]), torch.stack([p_2, p_3, p_4]), "block 2 gets LN'_2(p_0), block 3 LN'_3 of that, "
          "and so on", (flat, "every block normalises p_0 here: hand on what the block before received"),
          (torch.stack([P_0, p_2, p_3]), "block l gets p_{l-1} here: normalise first, then deliver"))


@pytest.mark.points(1)
def test_last_norm_gets_the_initial_pe(student):
    """part 3: p_0 to the last norm, as it is"""
    ln = norms(2)
    p_3 = layer_norm(layer_norm(P_0, ln[0]), ln[1])
    close(student.deliver(P_0, ln)[2], P_0, "the last norm gets p_0 and normalises it itself",
          (p_3, "this is p_L, what the last block received; MPVG goes back to the initial PE, p_0"),
          (layer_norm(P_0, ln[1]), "this is normalised already: LN'_last is in LastNorm, not in norms"))


@pytest.mark.points(2)
def test_classify(student):
    """part 4: tokens to logits"""
    ln, last, head = norms(2), [randomise(nn.LayerNorm(8)) for _ in range(2)], randomise(nn.Linear(8, 3))
    p_2 = layer_norm(P_0, ln[0])
    p_3 = layer_norm(p_2, ln[1])

    def block(x, pe):
        return torch.sin(x) + (x.flip(1) if pe is None else pe * x)

    def by_hand(z, last_pe, pooled):
        for pe in (None, p_2, p_3):
            z = block(z, pe)
        y = layer_norm(z, last[0]) + layer_norm(last_pe, last[1])
        return pooled(y) @ head.weight.T + head.bias
    parts = (P_0, ln, [block] * 3, lambda x, pe: last[0](x) + last[1](pe), head)
    hint = "p_0 to the tokens, the blocks each with its PE, the last norm with its PE, pool, head"
    close(student.classify(X, *parts), by_hand(X + P_0, P_0, lambda y: y.mean(1)), hint,
          (by_hand(X, P_0, lambda y: y.mean(1)), "the tokens lack p_0: MPVG adds it at the input"),
          (by_hand(X + P_0, p_3, lambda y: y.mean(1)), "the last norm got p_L: it gets p_0"))
    close(student.classify(X, *parts, how="cls"), by_hand(X + P_0, P_0, lambda y: y[:, 0]), hint,
          (by_hand(X + P_0, P_0, lambda y: y.mean(1)), "`how` has to reach pool"))
