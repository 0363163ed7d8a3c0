"""A2. Layers whose errors are known are measured; the sine-cosine PE is computed number by number."""
import math

import pytest
import torch
from expect import close, normal

ORDER = torch.tensor([2, 0, 3, 1, 4])           # not its own inverse
X = normal(3, 5, 8)                             # B = 3, N = 5, D = 8


def attention(x):
    """Each token becomes a mean of all tokens, weighted by likeness: equivariant, and no function of one token."""
    return torch.softmax(x @ x.mT / 3, dim=-1) @ torch.tanh(x)


def numbered(x):
    """Token n times n + 1: this layer knows where a token stands."""
    return x * torch.arange(1.0, 6.0)[:, None]


def largest_difference(a, b):
    return max(abs(s - t) for s, t in zip(a.flatten().tolist(), b.flatten().tolist()))


def reordered(x):
    return torch.stack([x[:, n] for n in ORDER.tolist()], dim=1)


@pytest.mark.points(1)
def test_attention_is_equivariant(student):
    """part 1: 0 for attention"""
    unordered = largest_difference(attention(reordered(X)), attention(X))
    close(student.equivariance_error(attention, X, ORDER), 0.0, "reorder the input of one call and the output of the "
          "other", (unordered, "the second output has to be reordered too"), tolerance=1e-9)


@pytest.mark.points(2)
def test_equivariance_error(student):
    """part 1: the exact error for a layer that knows positions"""
    a, b = numbered(reordered(X)), reordered(numbered(X))
    close(student.equivariance_error(numbered, X, ORDER), largest_difference(a, b), "the largest absolute difference, "
          "over images, tokens and features", ((a - b).max().item(), "take absolute values first"),
          ((a - b).abs().mean().item(), "this is the mean difference, not the largest"), tolerance=1e-9)


@pytest.mark.points(2)
def test_invariance_error(student):
    """part 2: 0 for attention and GAP, the exact error for a layer that knows positions"""
    def gap(x):
        return sum(x[:, n] for n in range(5)) / 5

    a, b = numbered(reordered(X)), numbered(X)
    close(student.invariance_error(numbered, X, ORDER), largest_difference(gap(a), gap(b)), "pool both outputs over "
          "the N tokens, then compare",
          (largest_difference(a.mean(0), b.mean(0)), "this is the mean over images: tokens are axis 1"),
          (largest_difference(a, b), "compare after pooling, not before"), tolerance=1e-9)
    close(student.invariance_error(attention, X, ORDER), 0.0, "GAP makes an equivariant layer invariant",
          tolerance=1e-9)


@pytest.mark.points(2)
def test_sincos2d(student):
    """part 3: sines and cosines of a token's column and row"""
    frequencies = [10000 ** (-i / 3) for i in range(3)]

    def expected(order):
        return torch.tensor([[f(place * w) for place in order(r, c) for f in (math.sin, math.cos) for w in frequencies]
                             for r in range(2) for c in range(4)])[None]
    swapped = expected(lambda r, c: (r, c))
    close(student.sincos2d(2, 4, 12), expected(lambda r, c: (c, r)), "for each token four groups of D / 4 numbers, sin "
          "and cos of its column, then sin and cos of its row",
          (swapped, "row and column are swapped: the first half of D tells the column"), tolerance=1e-5)


@pytest.mark.points(1)
def test_class_token_of_sincos2d(student):
    """part 3: a first row of zeros for the class token"""
    grid = student.sincos2d(2, 4, 12)
    expected = torch.zeros(1, 9, 12)
    expected[:, 1:] = grid
    at_end = expected.roll(-1, dims=1)
    close(student.sincos2d(2, 4, 12, class_token=True), expected, "N grows by one, and the grid's rows stay as they "
          "are: the class token takes no place of the grid",
          (at_end, "the class token is the first token, not the last"), tolerance=1e-5)


@pytest.mark.points(2)
def test_pe_breaks_the_symmetry(student):
    """part 4: with PE attention knows positions, also after GAP"""
    pe = normal(1, 5, 8, seed=1)
    behind = "PE is added behind the layer: then GAP moves by one vector for every image, and is as blind as before"
    close(student.with_pe(attention, pe)(X), attention(torch.stack([x + pe[0] for x in X])),
          "add PE to the tokens, then call the layer", (attention(X) + pe, behind), (attention(X), "PE has no effect"))
