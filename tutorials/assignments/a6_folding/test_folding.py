"""A6. Folding is exact, so a model is held against its own logits before; the parts against the equations."""
import copy

import pytest
import torch
from expect import Case, agree, close, layer_norm, normal, operations, randomize, same_memory, same_state
from student import equal, fail
from torch import nn

SIZES = [(5, 8), (3, 6), (1, 4)]                        # N, D
LEFT = "the result shares memory with it: change a copy, and make new tensors"


class PE(nn.Module):
    """p_0 to the input and to the last norm, LN'_l to the blocks from the second on, each handed on to the next."""

    def __init__(self, tokens, width, depth):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.handed_on = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth - 1))

    def forward(self):
        received = [self.pos_embed]
        for ln in self.handed_on:
            received.append(layer_norm(received[-1], ln))
        return self.pos_embed, [None, *received[1:]], self.pos_embed


class LastNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.token_norm, self.pe_norm = (nn.LayerNorm(width, eps=eps) for eps in (1e-5, 1e-2))

    def forward(self, x, last_pe):
        tokens = self.token_norm(x)
        return tokens if last_pe is None else torch.add(self.pe_norm(last_pe), tokens)


class Model(nn.Module):
    """Tokens (B, N, D) -> logits (B, K): MPVG with blocks that are as small as can be."""

    def __init__(self, how="gap", tokens=5, width=8, depth=2, classes=3, bias=True):
        super().__init__()
        self.how, self.pe, self.last_norm = how, PE(tokens, width, depth), LastNorm(width)
        self.head, self.dropout = nn.Linear(width, classes, bias), nn.Dropout(0.5)

    def forward(self, x):
        input_pe, block_pes, last_pe = self.pe()
        x = self.dropout(x if input_pe is None else x + input_pe)
        for pe in block_pes:
            x = torch.sin(x if pe is None else x + pe) + x.flip(1)
        y = self.last_norm(x, last_pe)
        return self.head(y[:, 0] if self.how == "cls" else y.mean(1))


def rows(p_0, norm):
    return torch.stack([layer_norm(row, norm) for row in p_0[0]])


@pytest.mark.points(2)
def test_mean_of_the_normalized_pe(student):
    """part 1: c for GAP: normalize, then average over tokens"""
    def case(N, D):
        norm = nn.LayerNorm(D, eps=1e-2)
        return Case(lambda p_0: student.pooled_pe(norm, p_0, "gap"), lambda p_0: sum(rows(p_0, norm)) / N,
                    [normal(1, N, D, seed=1) * 3 + 1], [
            (lambda p_0: p_0[0].mean(0), "PE was not normalized: it goes through LN'_last"),
            (lambda p_0: layer_norm(p_0[0].mean(0), norm),
             "average after the norm: the norm of a mean is not the mean of the norms"),
            (lambda p_0: rows(p_0, norm).sum(0), "this is the sum: GAP divides by N"),
            (lambda p_0: rows(p_0, norm).mean(0)[None], "(1, D): c has no axis of images")], [norm])
    agree(case, SIZES, "the last norm adds LN'_last(p_0) to a token, by pe_norm; GAP averages that over the tokens",
          gradients=False)


@pytest.mark.points(1)
def test_class_token_of_the_normalized_pe(student):
    """part 1: c for a class token: its row alone"""
    def case(N, D):
        norm = nn.LayerNorm(D, eps=1e-2)
        return Case(lambda p_0: student.pooled_pe(norm, p_0, "cls"), lambda p_0: layer_norm(p_0[0, 0], norm),
                    [normal(1, N, D, seed=1)], [
            (lambda p_0: rows(p_0, norm).mean(0), 'this is the mean over tokens, for "cls" as well'),
            (lambda p_0: rows(p_0, norm)[-1], "this is the last token: the class token is token 0")], [norm])
    agree(case, SIZES, "the head sees token 0 alone, so only its row of PE", gradients=False)


@pytest.mark.points(2)
def test_bias_is_added(student):
    """part 2: b + W c, in a new head"""
    def case(D, K, bias):
        head = nn.Linear(D, K, bias)

        def linear(f, c, with_bias=True):
            return f @ head.weight.T + (head.bias if bias and with_bias else 0)
        return Case(lambda f, c: student.fold_into_head(head, c)(f), lambda f, c: linear(f + c, c),
                    [normal(4, D), normal(D, seed=1)], [
            (lambda f, c: linear(f + c, c, with_bias=False), "the old bias b is lost: add W c to it"),
            (linear, "W c is missing"),
            (lambda f, c: linear(f, c) + c.sum(), "c has D entries, the bias has K: multiply by W")], [head])
    agree(case, [(8, 3, True), (6, 1, True), (4, 9, False)], "W (f + c) + b = W f + (W c + b)", gradients=False)
    head = randomize(nn.Linear(8, 3))
    folded = student.fold_into_head(head, normal(8))
    equal(type(folded).__name__, "Linear", "type of the new head", "a head is an nn.Linear before and after")
    equal(same_memory(head, folded), [], "of the old head's, what the new head also uses", LEFT)


@pytest.mark.points(2)
def test_constants(student):
    """part 3: the same PE, whatever is None in it"""
    for pattern in ((1, 0, 1, 1, 1), (1, 0, 1, 0), (0, 1, 1), (0, 0, 0), (1, 1), (0, 0, 1)):
        source = [nn.Parameter(normal(1, 5, 8, seed=n).float()) if there else None for n, there in enumerate(pattern)]
        pes = [None if p is None else p if n % 2 else 2 * p for n, p in enumerate(source)]
        expected = (pes[0], pes[1:-1], pes[-1])
        where = f"input, blocks, last norm: {', '.join('PE' if there else 'None' for there in pattern)}"
        with torch.no_grad():
            kept = copy.deepcopy([None if p is None else p.detach() for p in pes])
            module = student.ConstantPE(*expected)
            got = module()
            close(got, expected, "(input_pe, a list for the blocks, last_pe), as they came in, None where None came in",
                  where=where)
            for p in (p for p in pes if p is not None):
                p.add_(1)                                           # as if the model was trained on
            close(module(), (kept[0], kept[1:-1], kept[-1]), "the PE that came in was trained on, and the constants "
                  "with it: they share its memory, so clone it", where=where)
        wants = [pe.requires_grad for pe in (got[0], *got[1], got[2]) if pe is not None]
        equal(any(wants), False, f"whether a constant needs a gradient, {where}", "detach what you register")


@pytest.mark.points(1)
def test_constants_are_buffers(student):
    """part 3: no parameters, nothing computed; saved and moved with the module"""
    def made(seed):
        return student.ConstantPE(normal(1, 5, 8, seed=seed).float(), [None, normal(1, 5, 8, seed=seed + 1).float()],
                                  None)
    module, other = made(1), made(7)
    equal(len(list(module.parameters())), 0, "number of parameters", "constants are buffers: register_buffer")
    computed = [name for name in operations(module) if name not in VIEWS]
    equal(computed, [], "operations in a call", "compute everything in __init__, and give the buffers themselves")
    other.load_state_dict(module.state_dict())
    close(other(), module(), "saved and loaded, it is another one: a plain attribute or a list is not saved; "
          "register_buffer, also for each block's PE")
    input_pe, block_pes, _ = module.double()()
    equal([str(pe.dtype) for pe in (input_pe, block_pes[1])], ["torch.float64"] * 2, "dtypes after .double()",
          "give the buffers themselves, no copy from before")
    input_pe, block_pes, _ = module.to("meta")()
    equal([str(pe.device) for pe in (input_pe, block_pes[1])], ["meta"] * 2, 'devices after .to("meta")',
          "give the buffers themselves, no copy from before")


VIEWS = {"view", "select", "slice", "unbind", "split", "split_with_sizes", "unsqueeze", "squeeze", "detach", "alias",
         "clone", "expand", "permute", "transpose", "t", "as_strided", "narrow", "_unsafe_view"}


def folded_logits(student, how):
    """What agree() takes: a folded model against its own logits."""
    def case(N, D, L, K, bias):
        model = Model(how, N, D, L, K, bias)

        def call(x):
            folded = student.fold(model)
            equal((type(folded.pe).__name__, folded.last_norm.pe_norm, folded.training), ("ConstantPE", None, False),
                  "type of the copy's pe, its pe_norm, its training mode",
                  "replace the parts that are not needed any more")
            return folded(x)

        def logits(x, times=1):
            twin = copy.deepcopy(model).eval()
            last = twin.last_norm
            last.forward = lambda x, last_pe: last.token_norm(x) + times * last.pe_norm(last_pe)
            return twin(x)
        return Case(call, lambda x: logits(x), [normal(4, N, D, seed=9)], [
            (lambda x: logits(x, 0), "PE at the last norm is lost: its c belongs into the head's bias"),
            (lambda x: logits(x, 2), "PE at the last norm counts twice: give the last norm None")], [model])
    return case


@pytest.mark.points(1)
def test_folding_keeps_the_logits(student):
    """part 4: the same logits, with GAP and with a class token"""
    for how in ("gap", "cls"):
        agree(folded_logits(student, how), [(5, 8, 2, 3, True), (3, 6, 1, 4, True), (4, 8, 5, 1, False)],
              f"how = {how!r}: eval mode, c by `how`, c into the head's bias", gradients=False, tolerance=1e-8)


@pytest.mark.points(1)
def test_folding_leaves_the_model_as_it_was(student):
    """part 4: the model itself does not change, and can be trained on"""
    for mode in (True, False):
        model = randomize(Model()).train(mode)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        folded = student.fold(model)
        equal(folded is model, False, "whether the copy is the model itself", "copy.deepcopy first")
        equal((type(model.pe).__name__, model.training), ("PE", mode), "type of the model's pe, its training mode",
              "work on a copy: copy.deepcopy first")
        same_state(model, before, "work on a copy: copy.deepcopy first")
        equal(same_memory(model, folded), [], "tensors that the copy shares with the model", LEFT)
        x = normal(4, 5, 8, seed=9)
        expected = folded(x)
        randomize(model, seed=500)
        close(folded(x), expected, "the model was trained on, and the copy with it: nothing may be shared")
        if not all(weight.requires_grad for weight in model.parameters()):
            fail("weights of the model that need no gradient any more", "a model that can be trained on",
                 "freeze the copy")
