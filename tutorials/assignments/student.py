"""The student's file, loaded for a test; and failures that explain themselves: what was got, what was expected, a hint.

Nothing here comes from mpvg_minimal, and nothing needs torch, so that the grader can be tested without it.
"""
import errno
import linecache
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from pytest import fail as pytest_fail


class Student:
    """`student.NAME` is NAME in the student's file. A file that does not load is a failure of the test."""

    def __init__(self, file: Path):
        self._file, self._module = file, load(file)

    def __getattr__(self, name: str) -> Any:
        if not hasattr(self._module, name):
            fail(f"no {name} in {self._file.name}", f"{name}, as in the stub", "keep the names that the stub came with")
        return getattr(self._module, name)


def load(file: Path) -> ModuleType:
    if not file.is_file():
        fail(f"no {file.name} in {file.parent}", f"the file that you wrote, {file.name}", "leave its name as it is")
    module = sys.modules[file.stem] = ModuleType(file.stem)         # not by an import: no bytecode that could be stale
    module.__file__ = str(file)
    linecache.checkcache(str(file))
    try:
        exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        fail(f"{file.name} does not import: {describe(error, file)}", "a file that Python can import",
             f"`python {file.name}` shows the place; what it imports must be installed, not another file of yours")
    return module


def fail(got: str, expected: str, hint: str) -> NoReturn:
    pytest_fail(f"got       {got}\nexpected  {expected}\nhint      {hint}", pytrace=False)


def describe(error: BaseException, file: Path) -> str:
    """An exception, the line of the student's file that it passed last, and what that line had to work with."""
    line, variables = (error.lineno if isinstance(error, SyntaxError) else None), {}
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == str(file):
            line, variables = number, frame.f_locals if frame.f_code.co_name != "<module>" else {}
    text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:           # the grader's limit on a file's size
        text = "it prints, or writes to a file, without end"
    if line:
        text += f"\n          {file.name}, line {line}: {linecache.getline(str(file), line).strip()}"
    known = [f"{name} = {shown(value)}" for name, value in variables.items()
             if value is None or isinstance(value, (int, float, str)) or hasattr(value, "shape")]
    notes = "".join(f"\n          {note}" for note in getattr(error, "__notes__", []))
    return text + (f"\n          there {', '.join(known)}" if known else "") + notes


def equal(got: Any, expected: Any, what: str, hint: str) -> None:
    """For anything that is no tensor."""
    if type(got) is not type(expected) or got != expected:
        fail(f"{what}: {shown(got)}", shown(expected), hint)


def shown(x: Any) -> str:
    if hasattr(x, "shape"):
        return f"tensor {tuple(x.shape)}" if x.ndim else "one number"
    return repr(x)[:100]
