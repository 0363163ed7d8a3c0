"""A2 with loops over images and numbers, and a class for the layer with PE."""
import math

import torch


def equivariance_error(layer, x, order):
    before, after = layer(x[:, order]), layer(x)
    worst = 0.0
    for image in range(len(x)):
        for n, old in enumerate(order.tolist()):
            worst = max(worst, (before[image, n] - after[image, old]).abs().max().item())
    return worst


def invariance_error(layer, x, order):
    a, b = layer(x.index_select(1, order)).mean(1), layer(x).mean(1)
    return max(abs(s - t) for s, t in zip(a.flatten().tolist(), b.flatten().tolist()))


def sincos2d(rows, columns, width, *, class_token=False):
    Q = width // 4
    table = [[0.0] * width] if class_token else []
    for r in range(rows):
        for c in range(columns):
            angles = [[place / 10000 ** (i / Q) for i in range(Q)] for place in (c, r)]
            table.append([f(angle) for four in angles for f in (math.sin, math.cos) for angle in four])
    return torch.tensor(table).unsqueeze(0)


class with_pe:
    def __init__(self, layer, pe):
        self.layer, self.pe = layer, pe

    def __call__(self, x):
        return self.layer(torch.stack([tokens + self.pe[0] for tokens in x]))
