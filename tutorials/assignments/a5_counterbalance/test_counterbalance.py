"""A5. Expected values come from Python's statistics module and from loops over tokens and images."""
import math
import statistics

import pytest
import torch
from expect import Case, agree, calls, layer_norm, normal, randomize, same_state
from student import equal, fail
from torch import nn

SIZES = [(5, 8), (3, 6), (2, 12)]                       # N, D


def pair(N, D):
    a = normal(N, D) + 1                                # a mean that is not 0: Pearson is not the cosine
    return a, normal(N, D, seed=1) - 0.5 * a


def dot(a, b):
    return sum(s * t for s, t in zip(a.tolist(), b.tolist()))


def cosine(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def cosines(a, b):
    return statistics.mean(cosine(s, t) for s, t in zip(a, b))


def correlation(a, b):
    return statistics.correlation(a.flatten().tolist(), b.flatten().tolist())


@pytest.mark.points(2)
def test_mean_tokens(student):
    """part 1: every image counts the same, whatever batch it came in"""
    def case(N, D, images):
        def mean(*batches):
            together = [image for batch in batches for image in batch]
            return sum(together) / len(together)
        return Case(lambda *batches: student.mean_tokens(iter(batches)), mean,
                    [normal(B, N, D, seed=B) + B for B in images], [
            (lambda *batches: sum(batch.mean(0) for batch in batches) / len(batches),
             "this is the mean of the batches' means: an image of the smaller batch counts more"),
            (lambda *batches: sum(batch.mean(0) for batch in batches[:1]), "this is the first batch alone"),
            (lambda *batches: torch.cat(batches).mean(1).mean(0), "average over images, not over tokens")])
    agree(case, [(5, 8, (2, 3)), (3, 6, (1,)), (2, 4, (4, 1, 3, 4))], "the sum over all images, by their number",
          gradients=False)


@pytest.mark.points(2)
def test_pearson(student):
    """part 2: Pearson, over all entries"""
    def case(N, D):
        return Case(student.pearson, correlation, pair(N, D), [
            (lambda a, b: cosine(a.flatten(), b.flatten()), "this is the cosine: Pearson subtracts two means first"),
            (lambda a, b: statistics.mean(correlation(s, t) for s, t in zip(a, b)),
             "one list of N * D pairs, not one for each token"),
            (lambda a, b: abs(correlation(a, b)), "keep the sign: a counterbalance is negative")])
    agree(case, SIZES, "subtract each tensor's mean, then take the cosine of all entries", gradients=False,
          tolerance=1e-6)


@pytest.mark.points(2)
def test_mean_cosine(student):
    """part 3: one cosine for each token, then their mean"""
    def case(N, D):
        return Case(student.mean_cosine, cosines, pair(N, D), [
            (lambda a, b: cosine(a.flatten(), b.flatten()), "this is one cosine of all entries: one for each token"),
            (lambda a, b: cosines(a.T, b.T), "these are the columns' cosines: a token is a row"),
            (lambda a, b: cosines(a - a.mean(), b - b.mean()), "no means are subtracted here: that is Pearson")])
    agree(case, SIZES, "N cosines, one for each row", gradients=False, tolerance=1e-6)


class Model(nn.Module):
    """Tokens meet PE where `delivered` is true; dropout before, and a norm behind that is no such place."""

    def __init__(self, tokens=5, width=8, delivered=(False, True, True)):
        super().__init__()
        self.dropout, self.delivered = nn.Dropout(0.5), delivered
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in delivered)
        self.other_norm = nn.LayerNorm(width)
        self.pe = nn.Parameter(torch.zeros(len(delivered), 1, tokens, width))

    def pes(self):
        return [pe if delivered else None for pe, delivered in zip(self.pe, self.delivered)]

    def forward(self, x):
        for norm, pe in zip(self.norms, self.pes()):
            y = norm(self.dropout(self.other_norm(x)))
            x = x + torch.sin(y if pe is None else y + pe)
        return self.other_norm(x)


@pytest.mark.points(2)
def test_counterbalance(student):
    """part 4: LN(x), averaged over images in eval mode, against the PE that it meets"""
    def case(B, N, D, delivered):
        model = Model(N, D, delivered)

        def by_hand(images, inputs=False, image=slice(None)):
            rows, x = [], images[image]
            for norm, pe in zip(model.norms, model.pes()):
                y = layer_norm(layer_norm(x, model.other_norm), norm)
                tokens = sum(layer_norm(x, model.other_norm) if inputs else y) / len(y)
                rows.append(None if pe is None else (correlation(tokens, pe[0]), cosines(tokens, pe[0])))
                x = x + torch.sin(y if pe is None else y + pe)
            return rows
        return Case(lambda images: student.counterbalance(model.train(), images), by_hand, [normal(B, N, D, seed=3)], [
            (lambda images: by_hand(images, inputs=True), "this is the norm's input: PE meets its output"),
            (lambda images: by_hand(images, image=slice(1)),
             "these are the first image's tokens: average over all images"),
            (lambda images: [row for row in by_hand(images) if row], "put None where model.pes() has None")], [model])
    agree(case, [(4, 5, 8, (False, True, True)), (1, 3, 6, (True, True)), (9, 2, 8, (True, False, True, False))],
          "a list, for each norm of model.norms: switch dropout off (eval mode), compare what the norm gives, averaged "
          "over images, with PE", gradients=False, tolerance=1e-6)


@pytest.mark.points(1)
def test_counterbalance_runs_the_model_once(student):
    """part 4: one run, whatever the number of images and places"""
    for images in (1, 7):
        model = randomize(Model())
        with calls(model) as runs:
            student.counterbalance(model, normal(images, 5, 8, seed=3))
        equal([len(inputs[0]) for inputs in runs], [images], f"images in each run of the model, for {images} images",
              "one run with all images is enough: each norm has its own hook, and all of them fire in the same run")


class Broken(Model):
    def forward(self, x):
        super().forward(x)
        raise RuntimeError("the last layer is broken")


@pytest.mark.points(1)
def test_counterbalance_leaves_the_model_as_it_was(student):
    """part 4: same mode, same hooks, also if the run raises"""
    def own_hook(module, inputs, output):
        return None
    for mode, kind in ((True, Model), (False, Model), (True, Broken)):
        model = randomize(kind()).train(mode)
        model.norms[1].register_forward_hook(own_hook)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            student.counterbalance(model, normal(4, 5, 8, seed=3))
            raised = False
        except RuntimeError as error:
            if "the last layer is broken" not in str(error):
                raise
            raised = True
        where = ", for a model whose run raises" if kind is Broken else ""
        advice = ": put it into a finally-block" if kind is Broken else ""
        equal(raised, kind is Broken, f"whether an error came through{where}",
              "an error of the model is its owner's to see")
        equal(model.training, mode, f"model.training afterwards{where}",
              f"remember the mode that the model came in{advice}")
        hooks = [hook for module in model.modules()
                 for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())]
        left = [hook for hook in hooks if hook is not own_hook]
        equal(len(left), 0, f"hooks left on the model{where}",
              f"register_forward_hook returns a handle: call its remove(){advice}")
        equal(len(hooks), 1, f"the model's own hooks{where}", "remove the hooks that you made, and no others")
        same_state(model, before, "an instrument leaves what it measures as it was")
        if any("forward" in vars(module) for module in model.modules()):
            fail(f"a module with another `forward`{where}", "the modules as they were",
                 f"put back what you replaced{advice}")
