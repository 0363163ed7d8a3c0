"""A2. Layers whose errors are known are measured; the sine-cosine PE is computed number by number."""
import math

import pytest
import torch
from expect import Case, agree, normal
from student import equal
from torch import nn

SIZES = [(3, 5, 8), (1, 4, 6), (2, 3, 1)]       # B, N, D


def tokens_and_order(B, N, D):
    return normal(B, N, D), torch.arange(N).roll(1)             # an order that is not its own inverse


def attention(x):
    """Each token becomes a mean of all tokens, weighted by likeness: equivariant, and no function of one token."""
    return torch.softmax(x @ x.mT / 3, dim=-1) @ torch.tanh(x)


def numbered(x):
    """Token n times -(n + 1): this layer knows where a token stands."""
    return -x * torch.arange(1, x.shape[1] + 1).to(x)[:, None]


def reordered(x, order):
    return torch.stack([x[:, n] for n in order.tolist()], dim=1)


def largest(a):
    return max(abs(number) for number in a.flatten().tolist())


def gap(x):
    return sum(x.unbind(1)) / x.shape[1]


@pytest.mark.points(1)
def test_attention_is_equivariant(student):
    """part 1: 0 for attention"""
    def case(B, N, D):
        mistakes = [(lambda x, order: largest(attention(reordered(x, order)) - attention(x)),
                     "the second output has to be reordered too")]
        return Case(lambda x, order: student.equivariance_error(attention, x, order), lambda x, order: 0.0,
                    tokens_and_order(B, N, D), mistakes)
    agree(case, SIZES, "reorder the input of one call and the output of the other", gradients=False)


@pytest.mark.points(2)
def test_equivariance_error(student):
    """part 1: the exact error for a layer that knows positions"""
    def difference(x, order):
        return numbered(reordered(x, order)) - reordered(numbered(x), order)

    def case(B, N, D):
        return Case(lambda x, order: student.equivariance_error(numbered, x, order),
                    lambda x, order: largest(difference(x, order)), tokens_and_order(B, N, D), [
            (lambda *inputs: difference(*inputs).max().item(), "take absolute values first"),
            (lambda *inputs: difference(*inputs).abs().mean().item(), "this is the mean difference, not the largest"),
            (lambda *inputs: largest(difference(*inputs)[:1]), "this is the first image alone")])
    agree(case, SIZES, "the largest absolute difference, over images, tokens and features", gradients=False)


@pytest.mark.points(2)
def test_invariance_error(student):
    """part 2: 0 for attention and GAP, the exact error for a layer that knows positions"""
    def pooled(x, order, pool=gap):
        return pool(numbered(reordered(x, order))) - pool(numbered(x))

    def case(B, N, D):
        return Case(lambda x, order: student.invariance_error(numbered, x, order),
                    lambda x, order: largest(pooled(x, order)), tokens_and_order(B, N, D), [
            (lambda *inputs: largest(pooled(*inputs, lambda x: x.mean(0))),
             "this is the mean over images: tokens are axis 1"),
            (lambda *inputs: largest(pooled(*inputs, lambda x: x)), "compare after pooling, not before"),
            (lambda *inputs: largest(pooled(*inputs)) * inputs[0].shape[1],
             "this is the sum over tokens: GAP is their mean"),
            (lambda *inputs: pooled(*inputs).max().item(), "take absolute values first"),
            (lambda *inputs: pooled(*inputs).abs().mean().item(), "this is the mean difference, not the largest")])
    agree(case, SIZES, "pool both outputs over the N tokens, then compare", gradients=False)

    def blind(B, N, D):
        return Case(lambda x, order: student.invariance_error(attention, x, order), lambda x, order: 0.0,
                    tokens_and_order(B, N, D))
    agree(blind, SIZES, "GAP makes an equivariant layer invariant: 0 for attention", gradients=False)


def place(rows, columns, width, numbers=lambda r, c: (c, r), base=10000):
    """The grid's PE, number by number: for each token sines and cosines of the numbers that tell its place."""
    frequencies = [base ** (-i / (width // 4)) for i in range(width // 4)]
    return torch.tensor([[f(number * w) for number in numbers(r, c) for f in (math.sin, math.cos) for w in frequencies]
                         for r in range(rows) for c in range(columns)])[None]


@pytest.mark.points(2)
def test_sincos2d(student):
    """part 3: sines and cosines of a token's column and row"""
    def case(rows, columns, width):
        return Case(lambda: student.sincos2d(rows, columns, width), lambda: place(rows, columns, width), [], [
            (lambda: place(rows, columns, width, lambda r, c: (r, c)),
             "row and column are swapped: the first half of D tells the column"),
            (lambda: place(rows, columns, width, lambda r, c: (c + 1, r + 1)), "rows and columns are counted from 0")])
    agree(case, [(2, 4, 12), (3, 3, 8), (1, 5, 16), (4, 2, 4)],
          "for each token four groups of D / 4 numbers, sin and cos "
          "of its column, then sin and cos of its row", tolerance=1e-5)
    equal(student.sincos2d(2, 4, 12).requires_grad, False, "requires_grad", "this PE is fixed: a tensor, no parameter")


@pytest.mark.points(1)
def test_class_token_of_sincos2d(student):
    """part 3: a first row of zeros for the class token"""
    def with_zeros(grid):
        return torch.cat([torch.zeros(1, 1, grid.shape[2]), grid], dim=1)

    def case(rows, columns, width):
        def grid():
            return student.sincos2d(rows, columns, width)
        return Case(lambda: student.sincos2d(rows, columns, width, class_token=True), lambda: with_zeros(grid()), [],
                    [(lambda: with_zeros(grid()).roll(-1, dims=1), "the class token is the first token, not the last")])
    agree(case, [(2, 4, 12), (3, 3, 8), (1, 5, 16)], "N grows by one, and the grid's rows stay as they are: the class "
          "token takes no place of the grid", tolerance=1e-5)


class Learnt(nn.Module):
    def __init__(self, tokens, width):
        super().__init__()
        self.pe = nn.Parameter(torch.ones(1, tokens, width))


@pytest.mark.points(2)
def test_pe_breaks_the_symmetry(student):
    """part 4: attention with PE, which may be learnt"""
    def case(B, N, D):
        learnt = Learnt(N, D)
        start = learnt.pe.detach().clone()
        mistakes = [
            (lambda x: attention(x) + learnt.pe, "PE is added behind the layer: then GAP moves by one vector for every "
             "image, and is as blind as before"),
            (lambda x: attention(x + start), "this is PE as it was when with_pe was called: it has learnt since then"),
            (lambda x: attention(x), "PE has no effect")]
        return Case(student.with_pe(attention, learnt.pe),
                    lambda x: attention(torch.stack([y + learnt.pe[0] for y in x])), [normal(B, N, D)], mistakes,
                    [learnt])
    agree(case, SIZES, "add PE to the tokens, then call the layer")
