"""A5. Expected values come from Python's statistics module and from loops over tokens and images."""
import math
import statistics

import pytest
import torch
from expect import close, equal, normal, randomise
from torch import nn

A = normal(5, 8) + 1                                    # a mean that is not 0: Pearson is not the cosine
B = normal(5, 8, seed=1) - 0.5 * A


def dot(a, b):
    return sum(s * t for s, t in zip(a.tolist(), b.tolist()))


def cosine(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def correlation(a, b):
    return statistics.correlation(a.flatten().tolist(), b.flatten().tolist())


class Model(nn.Module):
    """Two places where tokens meet PE, one where they meet none; dropout before all of them."""

    def __init__(self, tokens=5, width=8):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.pe = nn.Parameter(torch.zeros(2, 1, tokens, width))

    def pes(self):
        return [None, self.pe[0], self.pe[1]]

    def forward(self, x):
        for norm, pe in zip(self.norms, self.pes()):
            y = norm(self.dropout(x))
            x = x + torch.sin(y if pe is None else y + pe)
        return x


@pytest.mark.points(2)
def test_mean_tokens(student):
    """part 1: every image counts the same, whatever batch it came in"""
    batches = [normal(2, 5, 8), normal(3, 5, 8, seed=1) + 2]
    images = [image for batch in batches for image in batch]
    unequal = (batches[0].mean(0) + batches[1].mean(0)) / 2
    close(student.mean_tokens(iter(batches)), sum(images) / 5, "the sum over all images, by their number",
          (unequal, "this is the mean of the batches' means: an image of the smaller batch counts more"),
          (torch.stack([batch.mean(1).mean(0) for batch in batches]).mean(0), "average over images, not over tokens"))


@pytest.mark.points(2)
def test_pearson(student):
    """part 2: Pearson, over all entries"""
    close(student.pearson(A, B), correlation(A, B), "subtract each tensor's mean, then take the cosine of all entries",
          (cosine(A.flatten(), B.flatten()), "this is the cosine: Pearson subtracts the two means first"),
          (statistics.mean(correlation(a, b) for a, b in zip(A, B)), "one list of N * D pairs, not one for each token"),
          tolerance=1e-6)


@pytest.mark.points(2)
def test_mean_cosine(student):
    """part 3: one cosine for each token, then their mean"""
    close(student.mean_cosine(A, B), statistics.mean(cosine(a, b) for a, b in zip(A, B)), "N cosines, one for each row",
          (cosine(A.flatten(), B.flatten()), "this is one cosine of all entries: take one for each token"),
          (statistics.mean(cosine(a, b) for a, b in zip(A.T, B.T)), "these are the columns' cosines: a token is a row"),
          tolerance=1e-6)


@pytest.mark.points(3)
def test_counterbalance(student):
    """part 4: LN(x), averaged over images in eval mode, against the PE that it meets"""
    model, images = randomise(Model()).eval(), normal(4, 5, 8, seed=3)
    expected, x = [None], images
    before = []
    for norm, pe in zip(model.norms, model.pes()):
        y = norm(x)
        if pe is not None:
            tokens = sum(y) / 4
            expected.append((correlation(tokens, pe), statistics.mean(cosine(a, b) for a, b in zip(tokens, pe[0]))))
            before.append(correlation(sum(x) / 4, pe))
        x = x + torch.sin(y if pe is None else y + pe)
    got = student.counterbalance(model.train(), images)
    equal(len(got), 3, "number of places", "one entry for each norm")
    equal(got[0], None, "where no PE is delivered", "put None where model.pes() has None")
    for place in (1, 2):
        for value, want, what in zip(got[place], expected[place], ("Pearson", "mean cosine")):
            close(value, want, f"{what} at place {place}: switch dropout off (eval mode), compare what the norm gives, "
                  "averaged over images, with PE",
                  (before[place - 1], "this is x, the norm's input: PE meets its output"), tolerance=1e-6)


@pytest.mark.points(1)
def test_counterbalance_leaves_the_model_as_it_was(student):
    """part 4: same mode, no hooks left"""
    model = randomise(Model())
    for mode in (True, False):
        student.counterbalance(model.train(mode), normal(4, 5, 8, seed=3))
        equal(model.training, mode, "model.training afterwards", "remember the mode that the model came in")
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    equal(hooks, 0, "hooks left on the model", "register_forward_hook returns a handle: call its remove()")
