"""A6. Folding is exact, so a model is held against its own logits before; the parts against the equations."""
import copy

import pytest
import torch
from expect import close, equal, layer_norm, normal, randomise
from torch import nn


class PE(nn.Module):
    """p_0 to the input and to the last norm, LN'_2(p_0) to block 2 of 2."""

    def __init__(self):
        super().__init__()
        self.pos_embed, self.norm = nn.Parameter(torch.zeros(1, 5, 8)), nn.LayerNorm(8)

    def forward(self):
        return self.pos_embed, [None, self.norm(self.pos_embed)], self.pos_embed


class LastNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_norm, self.pe_norm = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x, last_pe):
        tokens = self.token_norm(x)
        return tokens if last_pe is None else torch.add(self.pe_norm(last_pe), tokens)


class Model(nn.Module):
    """Tokens (B, N, D) -> logits (B, K): MPVG with two blocks that are as small as can be."""

    def __init__(self, how):
        super().__init__()
        self.how, self.pe, self.last_norm, self.head = how, PE(), LastNorm(), nn.Linear(8, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        input_pe, (_, second), last_pe = self.pe()
        x = self.dropout(x + input_pe)
        x = torch.sin(x) + x.flip(1)
        y = self.last_norm(torch.sin(x + second), last_pe)
        return self.head(y[:, 0] if self.how == "cls" else y.mean(1))


X = normal(4, 5, 8, seed=9)


@pytest.mark.points(2)
def test_mean_of_the_normalised_pe(student):
    """part 1: c for GAP: normalise, then average over tokens"""
    norm, p_0 = randomise(nn.LayerNorm(8)), normal(1, 5, 8, seed=1) * 3 + 1
    rows = [layer_norm(row, norm) for row in p_0[0]]
    close(student.pooled_pe(norm, p_0, "gap"), sum(rows) / 5, "what the last norm adds to a token is LN'_last(p_0); "
          "GAP averages that over the 5 tokens", (p_0[0].mean(0), "PE was not normalised: it goes through LN'_last"),
          (layer_norm(p_0[0].mean(0), norm), "average after the norm: the norm of a mean is not the mean of the norms"))


@pytest.mark.points(1)
def test_class_token_of_the_normalised_pe(student):
    """part 1: c for a class token: its row alone"""
    norm, p_0 = randomise(nn.LayerNorm(8)), normal(1, 5, 8, seed=1)
    rows = torch.stack([layer_norm(row, norm) for row in p_0[0]])
    close(student.pooled_pe(norm, p_0, "cls"), rows[0], "the head sees token 0 alone, so only its row of PE",
          (rows.mean(0), 'this is the mean over tokens, for "cls" as well'))


@pytest.mark.points(2)
def test_bias_is_added(student):
    """part 2: b + W c, in a new head"""
    head, f, c = randomise(nn.Linear(8, 3)), normal(4, 8), normal(8, seed=1)
    before = copy.deepcopy(head)
    folded = student.fold_into_head(head, c)
    for name, got, expected in (("bias", head.bias, before.bias), ("weight", head.weight, before.weight)):
        close(got, expected, f"the head that came in has another {name} now: change a copy of it")
    replaced = f @ before.weight.T + before.weight @ c
    close(folded(f), (f + c) @ before.weight.T + before.bias, "W (f + c) + b = W f + (W c + b)",
          (replaced, "the old bias b is lost: add W c to it"), (before(f), "W c is missing"),
          (before(f) + c.sum(), "c has D entries, the bias has K: multiply by W"))


@pytest.mark.points(2)
def test_constants(student):
    """part 3: the same PE, as buffers"""
    input_pe, block_pe = nn.Parameter(normal(1, 5, 8).float()), normal(1, 5, 8, seed=1).float()
    module = student.ConstantPE(input_pe, [None, block_pe], None)
    equal(len(list(module.parameters())), 0, "number of parameters", "constants are buffers: register_buffer")
    equal([value.shape for value in module.state_dict().values()], [block_pe.shape] * 2, "tensors in the state_dict",
          "a plain attribute or a list is not saved: register_buffer, also for each block's PE")
    got_input, got_blocks, got_last = module.double()()
    equal([pe is None for pe in (*got_blocks, got_last)], [True, False, True], "None for block 1, block 2, last norm",
          "give back None where None came in")
    for name, got, expected in (("input", got_input, input_pe), ("block 2", got_blocks[1], block_pe)):
        close(got, expected, f"the {name}'s PE has to come out as it went in")
        equal((str(got.dtype), got.requires_grad), ("torch.float64", False), "dtype after .double() and requires_grad "
              f"of the {name}'s PE", "give the buffers themselves, detached: no copy from before, no gradient")


@pytest.mark.points(2)
def test_folding_keeps_the_logits(student):
    """part 4: the same logits, with GAP and with a class token"""
    for how in ("gap", "cls"):
        model = randomise(Model(how)).eval()
        expected = model(X)
        without = copy.deepcopy(model)
        without.last_norm.forward = lambda x, last_pe: model.last_norm.token_norm(x)
        twice = 2 * expected - without(X)
        folded = student.fold(model.train())
        close(folded(X), expected, f"how={how!r}: eval mode, c by `how`, c into the head's bias",
              (without(X), "PE at the last norm is lost: its c belongs into the head's bias"),
              (twice, "PE at the last norm counts twice: give the last norm None"), tolerance=1e-8)
        equal((type(folded.pe).__name__, folded.last_norm.pe_norm, folded.training), ("ConstantPE", None, False),
              "type of the copy's pe, its pe_norm, its training mode", "replace the parts that are not needed any more")


@pytest.mark.points(1)
def test_folding_leaves_the_model_as_it_was(student):
    """part 4: the model itself does not change"""
    model = randomise(Model("gap"))
    before = copy.deepcopy(model.state_dict())
    folded = student.fold(model)
    equal(folded is model, False, "the copy is the model itself", "copy.deepcopy first")
    equal((type(model.pe).__name__, model.training), ("PE", True), "type of the model's pe, its training mode",
          "work on a copy: copy.deepcopy first")
    equal(sorted(model.state_dict()), sorted(before), "names in the state_dict", "work on a copy: copy.deepcopy first")
    for name, expected in before.items():
        close(model.state_dict()[name], expected, f"{name} of the model has changed: work on a copy")
