"""Grades submissions: `python tutorials/assignments/grade.py a4_mpvg --impl DIR --results results.json`.

Of DIR only the assignment's own file is taken; the tests are the ones that stand here. They run in a process of their
own. A test that does not end in time, or takes the process with it, gets 0 points and the reason, and the tests after
it run in a new process. What counts is the tests that reported a pass: exit codes and printed text do not.

This is NOT a sandbox: a submission is a program, and runs with the rights of whoever starts this. It can read files
and can, in a few lines, forge the report. Lines that no answer needs are printed, to be looked at by hand. Grade
strangers' code in a container (Gradescope's is one).
"""
import argparse
import ast
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
START = 120                                             # seconds to import pytest and torch
LARGEST_FILE = 2 ** 24                                  # bytes that a submission may print or write to one file
DIE_WITH_PARENT = 1                                     # prctl's PR_SET_PDEATHSIG
UNUSUAL = re.compile(r"sys\.modules|/proc|_getframe|__torch_(function|dispatch)__|atexit|solutions|mpvg_minimal|pytest|"
                     r"ASSIGNMENTS_REPORT|os\.environ|ctypes|\bgc\b|settrace|__subclasses__|__builtins__")


def assignments(folder: Path = HERE) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("a*/test_*.py"))


def tests_of(assignment: str, folder: Path = HERE) -> dict[str, dict]:
    """Test id -> its points and its first line. Read from the text: no submission has a say in it."""
    test_file, = (folder / assignment).glob("test_*.py")
    tests = {}
    for function in ast.parse(test_file.read_text()).body:
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
            mark, = (d for d in function.decorator_list if ast.unparse(d).startswith("pytest.mark.points("))
            tests[f"{assignment}/{test_file.name}::{function.name}"] = {
                "points": ast.literal_eval(mark.args[0]), "what": ast.get_docstring(function).splitlines()[0]}
    return tests


def named_file(assignment: str, folder: Path = HERE) -> str:
    """The name of the file that students hand in."""
    test_file, = (folder / assignment).glob("test_*.py")
    return test_file.name.removeprefix("test_")


def submitted(assignment: str, impl: Path, folder: Path = HERE) -> Path | None:
    """impl has the named file itself, or in a folder for each assignment."""
    file = named_file(assignment, folder)
    return next((path for path in (impl / file, impl / assignment / file) if path.is_file()), None)


def look_at(names: list[str], impl: Path, folder: Path = HERE) -> list[str]:
    """The lines of a submission that an answer has no use for, but whoever wants to deceive the tests has."""
    files = [file for name in names if (file := submitted(name, impl, folder))]
    return [f"{file.name}, line {number} mentions {found[0]}: {line.strip()[:100]}" for file in files
            for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1)
            if (found := UNUSUAL.search(line))]


def grade(names: list[str], impl: Path, *, timeout: float, folder: Path = HERE) -> dict[str, dict]:
    """Test id -> points, what, passed, output."""
    tests = {test: entry for name in names for test, entry in tests_of(name, folder).items()}
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as made:
        work = Path(made).resolve()         # on macOS a link leads there, and pytest names tests by the real path
        for name in ("conftest.py", "expect.py", "student.py"):
            shutil.copy(folder / name, work)
        for name in names:
            file, found = named_file(name, folder), submitted(name, impl, folder)
            (work / name).mkdir()
            shutil.copy(folder / name / f"test_{file}", work / name)
            if found:
                shutil.copyfile(found, work / name / file)
            else:
                results |= failed(tests_of(name, folder), f"no {file} in {impl}", f"the file that you wrote, {file}",
                                  "leave its name as it is")
        while len(results) < len(tests):
            results |= run([test for test in tests if test not in results], work, timeout)
    return {test: entry | results[test] for test, entry in tests.items()}


def run(tests: list[str], work: Path, timeout: float) -> dict[str, dict]:
    """What became of the tests up to the one that ended the process; at least one test gets a result."""
    report = work / "report"
    report.write_text("")
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={work}", *tests],
            env=os.environ | {"ASSIGNMENTS_REPORT": str(report), "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "",
                              "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            cwd=work, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
            preexec_fn=limit)
        why = wait(process, report, timeout)
        said.seek(0)
        last_words = said.read()[-2000:].decode(errors="replace")
    lines = list(read(report))
    results = {line["test"]: {"passed": line.get("passed") is True, "output": str(line.get("output"))}
               for line in lines if line.get("test") in tests}
    if len(tests) not in [line.get("ready") for line in lines]:         # a test file that does not import: no torch?
        return {test: {"passed": False, "output": f"the tests did not start: {why}\n{last_words}"} for test in tests}
    if len(results) < len(tests):
        begun = [line["begins"] for line in lines if line.get("begins") in tests]
        guilty = begun[-1] if begun and begun[-1] not in results else next(t for t in tests if t not in results)
        if {"loads": guilty} in lines and {"loaded": guilty} not in lines:
            assignment = guilty.split("/")[0]
            results |= failed([test for test in tests if test.startswith(f"{assignment}/") and test not in results],
                              f"{why}, while your file was loaded", "a file that Python comes to the end of",
                              "an endless loop outside all functions, or code there that ends the process?")
        else:
            results |= failed([guilty], why, "the test comes to its end",
                              "an endless loop, or code that ends the process?")
    return results


def failed(tests: Iterable[str], got: str, expected: str, hint: str) -> dict[str, dict]:
    output = f"got       {got}\nexpected  {expected}\nhint      {hint}"
    return {test: {"passed": False, "output": output} for test in tests}


def wait(process: subprocess.Popen, report: Path, timeout: float) -> str:
    """Until the process ends, or reports nothing for too long; says how it ended. Leaves nothing of it running."""
    size, since, why = 0, time.monotonic(), None
    while process.poll() is None:
        if report.stat().st_size != size:
            size, since = report.stat().st_size, time.monotonic()
        limit = timeout if size else max(START, timeout)
        if time.monotonic() - since > limit:
            why = f"still running after {limit:g} s"
            break
        time.sleep(0.02)
    try:
        os.killpg(process.pid, signal.SIGKILL)          # the process, and what it may have started
    except ProcessLookupError:
        pass
    code = process.wait()
    return why or f"the process ended by itself, exit code {code}"


def read(report: Path) -> Iterator[dict]:
    """Its lines, without what is no JSON object: the last line of a killed process may be half a line."""
    for line in report.read_text(errors="replace").splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            yield content


def limit() -> None:
    """In the tests' process: no large files, and on Linux it is killed when the grader itself is."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def gradescope(results: dict[str, dict], by_hand: list[str], seconds: float) -> dict:
    """Gradescope's format, https://gradescope-autograders.readthedocs.io/en/latest/specs/. by_hand: for instructors."""
    tests = [{"name": f"{test.split('/')[0]}, {entry['what']}", "score": entry["points"] * entry["passed"],
              "max_score": entry["points"], "status": "passed" if entry["passed"] else "failed",
              "output": entry["output"]} for test, entry in results.items()]
    score = sum(test["score"] for test in tests)
    if by_hand:
        tests.append({"name": "look at this by hand", "score": 0, "max_score": 0, "visibility": "hidden",
                      "output": "\n".join(by_hand)})
    return {"score": score, "execution_time": round(seconds), "tests": tests}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Grade one or several assignments, by default all of them.")
    parser.add_argument("assignment", nargs="*", help=f"any of {', '.join(assignments())}")
    parser.add_argument("--impl", type=Path, default=HERE, metavar="DIR",
                        help="the submission: a folder with the file (last_norm.py), or with a4_mpvg/last_norm.py")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write Gradescope's results.json here")
    parser.add_argument("--timeout", type=float, default=30, metavar="SECONDS", help="for each test (default: 30)")
    options = parser.parse_args(arguments)
    names = [Path(name).name for name in options.assignment] or assignments()
    for name in names:
        if name not in assignments():
            parser.error(f"no assignment is called {name}: choose from {', '.join(assignments())}")
    if not options.impl.is_dir():
        parser.error(f"--impl {options.impl} is no folder: give the one that holds the submission's files")
    if options.results and not options.results.resolve().parent.is_dir():
        parser.error(f"--results {options.results}: its folder does not exist, make it first")

    began = time.monotonic()
    results, by_hand = grade(names, options.impl.resolve(), timeout=options.timeout), look_at(names, options.impl)
    if options.results:
        report = gradescope(results, by_hand, time.monotonic() - began)
        options.results.write_text(json.dumps(report, indent=1) + "\n")
    for test, entry in results.items():
        print(f"{entry['points'] * entry['passed']:3} of {entry['points']:2}   {test.split('/')[0]}, {entry['what']}")
        if not entry["passed"]:
            print("".join(f"            {line}\n" for line in entry["output"].splitlines()), end="")
    print("".join(f"look at this by hand: {line}\n" for line in by_hand), end="")
    print(f"{sum(entry['points'] * entry['passed'] for entry in results.values()):3} of "
          f"{sum(entry['points'] for entry in results.values()):2}   in all")


if __name__ == "__main__":
    main()
