"""What the tests of the assignments are written with: the student's file, and comparisons that explain themselves.

A failure reads: what was got, what was expected, a hint. Nothing here comes from mpvg_minimal, and torch is imported
where it is needed only, so that the grader can be tested without it.
"""
import linecache
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from pytest import fail as pytest_fail


class Student:
    """`student.NAME` is NAME in the student's file, read at the first use; an error there is a failure of the test."""

    def __init__(self, file: Path):
        self._file = file

    def __getattr__(self, name: str) -> Any:
        if "_module" not in self.__dict__:
            self._module = load(self._file)
        if not hasattr(self._module, name):
            fail(f"no {name} in {self._file.name}", f"{name}, as in the stub", "keep the names that the stub came with")
        return getattr(self._module, name)


def load(file: Path) -> Any:
    module = sys.modules[file.stem] = ModuleType(file.stem)         # not by an import: no bytecode that could be stale
    module.__file__ = str(file)
    linecache.checkcache(str(file))
    try:
        exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        fail(f"{file.name} does not import: {describe(error, file)}", "a file that Python can import",
             f"`python {file.name}` shows the place; what it imports must be installed, not another file of yours")
    return module


def fail(got: str, expected: str, hint: str) -> None:
    pytest_fail(f"got       {got}\nexpected  {expected}\nhint      {hint}", pytrace=False)


def describe(error: BaseException, file: Path) -> str:
    """An exception, the line of the student's file that it passed last, and what that line had to work with."""
    line, variables = (error.lineno if isinstance(error, SyntaxError) else None), {}
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == str(file):
            line, variables = number, frame.f_locals if frame.f_code.co_name != "<module>" else {}
    text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
    if line:
        text += f"\n          {file.name}, line {line}: {linecache.getline(str(file), line).strip()}"
    known = [f"{name} = {shown(value)}" for name, value in variables.items()
             if value is None or isinstance(value, (int, float, str)) or hasattr(value, "shape")]
    return text + (f"\n          there {', '.join(known)}" if known else "")


def equal(got: Any, expected: Any, what: str, hint: str) -> None:
    """For anything that is no tensor."""
    if type(got) is not type(expected) or got != expected:
        fail(f"{what}: {shown(got)}", shown(expected), hint)


def close(got: Any, expected: Any, hint: str, *mistakes: tuple[Any, str], tolerance: float = 1e-4) -> None:
    """Tensors or numbers that agree to `tolerance`. mistakes: (a wrong result, the hint for whoever gets just that)."""
    import torch

    expected = torch.as_tensor(expected, dtype=torch.float64)
    if isinstance(got, (int, float)) and expected.ndim == 0:
        got = torch.tensor(got, dtype=torch.float64)
    if got is None:
        hint = "it returned nothing: is there a way through your function without `return`?"
    if not isinstance(got, torch.Tensor):
        fail(f"{shown(got)}, of type {type(got).__name__}", shown(expected), hint)
    got = got.detach().double()
    if got.shape != expected.shape:
        fail(shown(got), shown(expected), next((h for m, h in mistakes if same(got, m, tolerance)), hint))
    if same(got, expected, tolerance):
        return
    hint = next((h for mistake, h in mistakes if same(got, mistake, tolerance)), hint)
    wrong = ((got - expected).abs() <= tolerance).logical_not()             # NaN is wrong too
    place = tuple(wrong.nonzero()[0].tolist())
    at = f" at {list(place)}, the first of {int(wrong.sum())} wrong entries of {wrong.numel()}" if place else ""
    fail(f"{got[place].item():.6g}{at}", f"{expected[place].item():.6g}", hint)


def same(a: Any, b: Any, tolerance: float) -> bool:
    import torch

    b = torch.as_tensor(b, dtype=torch.float64)
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance).all())


def shown(x: Any) -> str:
    if hasattr(x, "shape"):
        return f"tensor {tuple(x.shape)}" if x.ndim else "one number"
    return repr(x)[:100]


def normal(*shape: int, seed: int = 0) -> Any:
    """Normal random numbers in float64, the same every time."""
    import torch

    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomise(module: Any) -> Any:
    """In float64, with every parameter drawn anew: with fresh affines (1, 0) many mistakes would go unseen."""
    import torch

    with torch.no_grad():
        for number, weight in enumerate(module.double().parameters()):
            weight.copy_(normal(*weight.shape, seed=number + 100))
    return module


def layer_norm(x: Any, norm: Any) -> Any:
    """nn.LayerNorm by its equation, with the weights of `norm`."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / ((centred ** 2).mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
