"""Do the tests tell right from wrong? `python tutorials/assignments/instructor/check.py`

Every test of every assignment is held against the solution and right answers in other styles (all pass), the stub (all
fail, and name the part) and every mutant (the named test fails, and says why). Prints the matrix, mutants x tests: x
where the test fails, X where it must.
"""
import importlib.util
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

INSTRUCTOR = Path(__file__).resolve().parent
ASSIGNMENTS, SOLUTIONS, STYLES = INSTRUCTOR.parent, INSTRUCTOR / "solutions", INSTRUCTOR / "styles"
sys.path[:0] = [str(ASSIGNMENTS), str(INSTRUCTOR)]

from grade import assignments, named_file  # noqa: E402
from mutants import MUTANTS, Mutant  # noqa: E402
from student import Student  # noqa: E402


def tests_of(assignment: str) -> dict[str, Callable[[Student], None]]:
    spec = importlib.util.spec_from_file_location("tests", ASSIGNMENTS / assignment / f"test_{named_file(assignment)}")
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)        # conftest.py knows the mark `points`
        spec.loader.exec_module(module)
    return {name: test for name, test in vars(module).items() if name.startswith("test_")}


def failures(tests: dict[str, Callable[[Student], None]], file: Path) -> dict[str, str]:
    """The tests that this file fails, and what they say. Only for files that we wrote: it runs in this process."""
    failed = {}
    for name, test in tests.items():
        try:
            test(Student(file))
        except pytest.fail.Exception as failure:
            failed[name] = str(failure)
        except (Exception, SystemExit) as error:
            failed[name] = f"{type(error).__name__}: {error}"
    return failed


def mutated(mutant: Mutant) -> str:
    text = (SOLUTIONS / mutant.file).read_text()
    if text.count(mutant.right) != 1:
        raise ValueError(f"{mutant.file}, {mutant.mistake}: {text.count(mutant.right)} places with {mutant.right!r}")
    return text.replace(mutant.right, mutant.wrong)


def written(assignment: str) -> list[str]:
    """What is wrong with the stub: each of its tests has to fail and to name the part that is not written."""
    stub = failures(tests_of(assignment), ASSIGNMENTS / assignment / named_file(assignment))
    return [f"the stub should say in {name} which part is not written, but: {stub.get(name, 'the test passes')}"
            for name in tests_of(assignment) if not re.match(r"NotImplementedError: part \d: ", stub.get(name, ""))]


def check(assignment: str, *, matrix: bool = False) -> tuple[list[str], list[tuple[Mutant, dict[str, str]]]]:
    """(what is wrong, each mutant with the tests that it fails). matrix: all tests for each mutant, else its own."""
    tests, file = tests_of(assignment), named_file(assignment)
    answers = {"the solution": SOLUTIONS / assignment / file,
               **{f"the right answer {path.name}": path for path in sorted((STYLES / assignment).glob("*.py"))}}
    wrong = [f"{answer} fails {name}: {why}" for answer, path in answers.items()
             for name, why in failures(tests, path).items()]
    wrong += written(assignment)
    killed = []
    with tempfile.TemporaryDirectory() as work:
        for mutant in (m for m in MUTANTS if m.file == f"{assignment}/{file}"):
            path = Path(work, file)
            path.write_text(mutated(mutant))
            failed = failures(tests if matrix else {mutant.test: tests[mutant.test]}, path)
            killed.append((mutant, failed))
            if mutant.test not in failed:
                wrong.append(f"the mistake '{mutant.mistake}' passes {mutant.test}")
            elif mutant.says not in failed[mutant.test]:
                wrong.append(f"the mistake '{mutant.mistake}' fails {mutant.test} without '{mutant.says}': "
                             f"{failed[mutant.test]}")
    wrong += [f"{name} fails for no mutant: what is it for?" for name in tests
              if not any(mutant.test == name for mutant, _ in killed)]
    return wrong, killed


def main() -> int:
    wrong = []
    for assignment in assignments():
        problems, killed = check(assignment, matrix=True)
        wrong += [f"{assignment}: {problem}" for problem in problems]
        names = list(tests_of(assignment))
        print(assignment, *(f"  {number}: {name}" for number, name in enumerate(names, 1)), sep="\n")
        for mutant, failed in killed:
            cells = [("X" if name == mutant.test else "x") if name in failed else "." for name in names]
            print("  ", *cells, "", mutant.mistake)
    print(f"{len(MUTANTS)} mutants", *(wrong or ["all as it should be"]), sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
