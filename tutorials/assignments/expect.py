"""What the tests of the assignments measure with. None of it comes from mpvg_minimal.

`agree` holds a student's function against a reference: at several sizes, in two dtypes, with its gradients, called
again with new inputs and new parameters, and with a look at whether it changed what it was given. `calls` counts how
often a module runs, `operations` which operations of torch run, `same_memory` whether two models share a tensor.
"""
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from student import equal, fail, shown
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

IN_PLACE = "what ends in _ (add_), and x += ... or x[...] = ..., writes into the tensor that came in: make a new one"
CUT = "something cuts the graph: detach, no_grad, .data, .item() or numpy"
Mistake = tuple[Callable, str]      # a wrong function of the same inputs, and the hint for whoever gets just its result


class Case(NamedTuple):
    """One size: the student's function, ours, what both are called with, and the modules whose parameters they use."""
    call: Callable
    reference: Callable             # the names of its arguments are those that a failure speaks of
    inputs: Sequence[Any]
    mistakes: Sequence[Mistake] = ()
    modules: Sequence[nn.Module] = ()


def agree(case: Callable[..., Case], sizes: Iterable[tuple], hint: str, *, gradients: bool = True,
          tolerance: float = 1e-9) -> None:
    """The student's function gives what the reference gives, for case(*size) of every size. If not, the test fails."""
    first = None
    for size in sizes:
        made = case(*size)
        where = ", ".join(f"{name} = {value}" for name, value in zip(inspect.signature(case).parameters, size))
        hint = f"right for {first}: is a size fixed in your code, or a special case?" if first else hint
        _round(made, hint, 0, torch.float64, tolerance, where)
        if gradients:
            _gradients(made, where)
        made = made._replace(mistakes=())                   # it did not make them at the first call
        again = "right at the first call, not with other inputs and parameters and in eval mode: compute it anew"
        _round(made, again, 1, torch.float64, tolerance, where)
        _round(made, "right in float64, but not in float32: is a dtype fixed in your code?", 1, torch.float32, 1e-4,
               where)
        first = first or where


def _round(case: Case, hint: str, number: int, dtype: torch.dtype, tolerance: float, where: str) -> None:
    """One call, with inputs and parameters that no other round has; the second round is in eval mode."""
    for module in case.modules:
        randomize(module, seed=1000 * number).to(dtype).train(number == 0)
    inputs = [to(x + number * normal(*x.shape, seed=77) if is_real(x) else x, dtype) for x in case.inputs]
    given = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in case.modules]
    try:
        got = case.call(*given)
    except Exception as error:
        error.add_note(f"called for {where}" + (f"; {hint}" if hint.startswith("right ") else ""))
        raise
    for name, old, new in zip(names(case), inputs, given):
        if isinstance(old, Tensor) and not torch.equal(old, new):
            fail(f"your function changed {name}", f"{name} as it came in", IN_PLACE)
    for module, old in zip(case.modules, before):
        same_state(module, old, f"your function changed its {type(module).__name__}: {IN_PLACE}")
    expected = case.reference(*inputs)
    if not same(got, expected, tolerance):
        hint = next((said for mistake, said in case.mistakes if same(got, mistake(*inputs), tolerance)), hint)
    close(got, expected, hint, tolerance=tolerance, where=where)


def _gradients(case: Case, where: str) -> None:
    """Of a random sum of the results, with respect to the inputs and to the modules' parameters."""
    leaves = [x.clone().requires_grad_() if is_real(x) else x for x in case.inputs]
    wanted = [(name, x) for name, x in zip(names(case), leaves) if is_real(x)]
    wanted += [(f"{type(module).__name__}.{name}", weight)
               for module in case.modules for name, weight in module.named_parameters()]

    def gradients(function: Callable) -> Sequence[Tensor | None]:
        results = flat(function(*(x.clone() if is_real(x) else x for x in leaves)))      # so that x += 1 can be tried
        total = sum((x * normal(*x.shape, seed=n)).sum() for n, x in enumerate(results) if isinstance(x, Tensor))
        if not wanted or not total.requires_grad:
            return [None] * len(wanted)
        return torch.autograd.grad(total, [x for _, x in wanted], allow_unused=True)
    for (name, _), got, expected in zip(wanted, gradients(case.call), gradients(case.reference)):
        nothing = got is None or not got.any()
        if expected is not None and expected.any() and nothing:
            fail(f"no gradient for {name}, for {where}", "a gradient, as the result depends on it", CUT)
        if not nothing:
            expected = torch.zeros_like(got) if expected is None else expected
            close(got, expected, f"the result is right, but not its gradient for {name}: {CUT}, on a part of the way",
                  where=where)


def names(case: Case) -> list[str]:
    """What the inputs are called: as the arguments of the reference, the last one for all that are left (*batches)."""
    arguments = list(inspect.signature(case.reference).parameters)
    return arguments + arguments[-1:] * len(case.inputs)


def close(got: Any, expected: Any, hint: str, *mistakes: tuple[Any, str], tolerance: float = 1e-9,
          where: str = "") -> None:
    """Same type, shape, dtype and, to `tolerance`, values. mistakes: (a wrong result, the hint for just that one)."""
    if got is None and expected is not None:
        hint = "it returned nothing: is there a way through your function without `return`?"
    elif not same(got, expected, tolerance):
        hint = next((said for wrong, said in mistakes if same(got, wrong, tolerance)), hint)
    _close(got, expected, hint, tolerance, f", for {where}" if where else "")


def _close(got: Any, expected: Any, hint: str, tolerance: float, where: str) -> None:
    if isinstance(expected, (list, tuple)):
        if not isinstance(got, type(expected)) or len(got) != len(expected):
            fail(f"{outline(got)}{where}", outline(expected), hint)
        for number, (g, e) in enumerate(zip(got, expected)):
            _close(g, e, hint, tolerance, f", entry {number}{where}")
    elif not isinstance(got, Tensor if isinstance(expected, Tensor) else type(expected)):
        floats = isinstance(expected, float) and isinstance(got, Tensor) and same(got, expected, tolerance)
        fail(f"{outline(got)}{where}", outline(expected), "the number is right: .item() makes a float of it" if floats
             else hint)
    elif isinstance(expected, Tensor) and got.shape != expected.shape:
        fail(f"{shown(got)}{where}", shown(expected), hint)
    elif isinstance(expected, Tensor) and got.dtype != expected.dtype:
        fail(f"numbers of dtype {got.dtype}{where}", f"{expected.dtype}", "the result has the dtype of what came in: "
             "which operation makes another one of it?")
    elif expected is not None and not same(got, expected, tolerance):
        got, expected = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (got, expected))
        wrong = (got - expected).abs() <= bound(expected, tolerance)
        place = tuple(wrong.logical_not().nonzero()[0].tolist())                # NaN is wrong too
        at = f" at {list(place)}, the first of {int((~wrong).sum())} wrong entries of {wrong.numel()}" if place else ""
        nearly = same(got, expected, 1e-5)
        fail(f"{got[place].item():.{10 if nearly else 6}g}{at}{where}",
             f"{expected[place].item():.{10 if nearly else 6}g}",
             f"{hint} (right to five digits only: another eps, or float32 on the way?)" if nearly else hint)


def same(a: Any, b: Any, tolerance: float) -> bool:
    """Equal in structure and, to `tolerance`, in values; a number and a tensor without axes may be equal."""
    if isinstance(b, (list, tuple)):
        return isinstance(a, (list, tuple)) and len(a) == len(b) and all(same(s, t, tolerance) for s, t in zip(a, b))
    if not isinstance(a, (Tensor, float, int)) or not isinstance(b, (Tensor, float, int)):
        return a is None and b is None
    a, b = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (a, b))
    return a.shape == b.shape and bool(((a - b).abs() <= bound(b, tolerance)).all())


def bound(expected: Tensor, tolerance: float) -> float:
    return tolerance * max([1.0, *expected.abs().flatten().tolist()])


def outline(x: Any) -> str:
    """The types in it, as the stubs write them."""
    if isinstance(x, (list, tuple)):
        return f"{type(x).__name__} of {len(x)}: {', '.join(outline(entry) for entry in x)}"[:150]
    return shown(x) if x is None or isinstance(x, Tensor) else f"{shown(x)}, of type {type(x).__name__}"


def flat(x: Any) -> list:
    return [leaf for entry in x for leaf in flat(entry)] if isinstance(x, (list, tuple)) else [x]


def is_real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def to(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if is_real(x) else x


# Modules

@contextmanager
def calls(module: nn.Module) -> Iterator[list]:
    """The inputs of every call of `module`, or of a copy, inside the with-block; len() is how often it was called."""
    kind, seen = type(module), []

    class Counted(kind):                        # a function put on `module` itself would keep a copy's calls from it
        def forward(self, *inputs, **named):
            seen.append(inputs)
            return super().forward(*inputs, **named)
    module.__class__ = Counted
    try:
        yield seen
    finally:
        module.__class__ = kind


def operations(call: Callable[[], Any]) -> Counter:
    """How often each operation of torch ran in call(): "mm", "convolution", "view", as the dispatcher names them."""
    class Count(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls):
            return False                        # else its first use imports the compiler: 1.6 s

        def __torch_dispatch__(self, function, types, inputs=(), options=None):
            counts[function.overloadpacket.__name__] += 1
            return function(*inputs, **(options or {}))
    counts: Counter = Counter()
    with Count():
        call()
    return counts


def same_memory(a: nn.Module, b: nn.Module) -> list[str]:
    """The names in b's state_dict whose numbers lie in the memory of a."""
    memory = {value.untyped_storage().data_ptr() for value in a.state_dict().values()}
    return [name for name, value in b.state_dict().items() if value.untyped_storage().data_ptr() in memory]


def same_state(module: nn.Module, before: dict[str, Tensor], hint: str) -> None:
    after = module.state_dict()
    equal(sorted(after), sorted(before), f"names in the state_dict of {type(module).__name__}", hint)
    for name, value in after.items():
        if not torch.equal(value, before[name]):
            fail(f"{name} of {type(module).__name__} has changed", f"{name} as it was", hint)


def plain_norm(norm: Any, width: int, name: str) -> None:
    """It is nn.LayerNorm(width), nothing more and nothing less."""
    hint = "nn.LayerNorm(D) and no other argument; eps = 1e-6 is the package's, not the assignments'"
    equal(type(norm).__name__, "LayerNorm", f"type of {name}", hint)
    equal((tuple(norm.normalized_shape), norm.eps, norm.weight is not None, norm.bias is not None),
          ((width,), 1e-5, True, True), f"{name}: shape, eps, whether it has a weight and a bias", hint)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers in float64, the same every time."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """In float64, with every parameter drawn anew: with fresh affines (1, 0) many mistakes would go unseen."""
    with torch.no_grad():
        for number, weight in enumerate(module.double().parameters()):
            weight.copy_(normal(*weight.shape, seed=seed + number + 100))
    return module


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """nn.LayerNorm by its equation, with the weights of `norm`."""
    centered = x - x.mean(-1, keepdim=True)
    return centered / ((centered ** 2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias
