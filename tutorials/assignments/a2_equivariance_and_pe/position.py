"""A2: measure that attention does not know where a token stands, and give it a position embedding (PE).

Shapes: B images, N tokens, D width. A layer is a function (B, N, D) -> (B, N, D).
"""
from collections.abc import Callable

import torch
from torch import Tensor

Layer = Callable[[Tensor], Tensor]


def equivariance_error(layer: Layer, x: Tensor, order: Tensor) -> float:
    """How far `layer` is from permutation equivariance: 0.0 if reordering before or after it is the same.

    x (B, N, D); order (N,) is a permutation, and x[:, order] are the tokens in that order. The largest
    absolute difference, over all entries, of reordering first and reordering afterwards.
    """
    raise NotImplementedError("part 1: equivariance_error")


def invariance_error(layer: Layer, x: Tensor, order: Tensor) -> float:
    """How much reordering the tokens changes what global average pooling (GAP, the mean over tokens) makes of them.

    The largest absolute difference of the pooled features (B, D), with the tokens reordered and as they were.
    """
    raise NotImplementedError("part 2: invariance_error")


def sincos2d(rows: int, columns: int, width: int, *, class_token: bool = False) -> Tensor:
    """Fixed 2-D sine-cosine PE, (1, N, D) in float32, N = rows * columns, row by row.

    With Q = D / 4 frequencies w_i = 10000 ** (-i / Q), i = 0 ... Q - 1, the token in row r and column c has
    [sin(c w_i) for all i, cos(c w_i) for all i, sin(r w_i) for all i, cos(r w_i) for all i], rows and columns
    counted from 0. class_token: one more token, the first; it stands nowhere, so all of its entries are 0.
    """
    raise NotImplementedError("part 3: sincos2d")


def with_pe(layer: Layer, pe: Tensor) -> Layer:
    """A layer that is no longer blind to position: a function of x (B, N, D) that gives `layer` tokens with PE.

    pe (1, N, D) may be learnt, and so change between two calls. It has to come in before the layer mixes the tokens.
    """
    raise NotImplementedError("part 4: with_pe")
