"""`pytest tutorials/assignments/a4_mpvg`: for each failure got, expected and a hint; at the end the points.

Every test has a mark, points(n), and takes `student`, the student's file. `grade.py` runs the same tests. In the
repository they run only if their path is given (tutorials/conftest.py ignores this folder): the stubs would all fail.
"""
import json
import os
import sys
from pathlib import Path

import pytest

os.environ["CUDA_VISIBLE_DEVICES"] = ""                # before torch is imported: the tests run on the CPU
from student import Student, describe  # noqa: E402

REPORT = os.environ.pop("ASSIGNMENTS_REPORT", None)     # grade.py reads this file; no submission is imported yet
FAILED = pytest.fail.Exception                          # now, not later: a submission might put something else there
ROWS: dict[str, dict] = {}                              # test -> what became of it
BROKEN: dict[Path, BaseException] = {}                  # a file that does not load -> why; it is not tried twice


def pytest_configure(config):
    config.addinivalue_line("markers", "points(n): what a test of an assignment is worth")


def file_of(test_file: Path) -> Path:
    """The file that students write: test_last_norm.py tests last_norm.py beside it."""
    return test_file.with_name(test_file.name.removeprefix("test_"))


@pytest.fixture
def student(request) -> Student:
    file = file_of(request.path)
    if file in BROKEN:
        raise BROKEN[file]
    tell({"loads": request.node.nodeid})
    try:
        return Student(file)
    except FAILED as failure:
        BROKEN[file] = failure
        raise
    finally:
        tell({"loaded": request.node.nodeid})           # never, if the file loops or ends the process


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Three lines instead of a traceback, and a row for the table."""
    report = yield
    points, what = item.get_closest_marker("points").args[0], item.function.__doc__.splitlines()[0]
    error = call.excinfo.value if call.excinfo else None
    if report.failed and isinstance(error, NotImplementedError):
        report.longrepr = f"not written yet: {error}"
    elif report.failed and not isinstance(error, FAILED):
        report.longrepr = (f"got       {describe(error, file_of(item.path))}\nexpected  {what}\n"
                           "hint      an error stopped the test at the line above; if there is none, compare the names "
                           "and arguments with the stub")
    elif report.failed:
        report.longrepr = str(error)
    if report.when == "call" or not report.passed:
        ROWS[item.nodeid] = {"test": item.nodeid, "points": points, "what": what, "passed": report.passed,
                             "output": str(report.longrepr or "")}
        tell(ROWS[item.nodeid])
    return report


def pytest_collection_finish(session):
    for name in ("expect", "student"):
        sys.modules.pop(name, None)                     # a submission that imports it gets a copy, not ours
    tell({"ready": len(session.items)})


def pytest_runtest_logstart(nodeid):
    tell({"begins": nodeid})


def tell(line: dict) -> None:
    if REPORT:
        with open(REPORT, "a") as file:
            file.write(json.dumps(line) + "\n")


def pytest_terminal_summary(terminalreporter):
    terminalreporter.reportchars = ""                   # the table says it better than pytest's list of failures
    for folder in dict.fromkeys(test.split("::")[0] for test in ROWS):
        rows = [row for test, row in ROWS.items() if test.startswith(f"{folder}::")]
        terminalreporter.section(f"points of {Path(folder).parent.name}")
        for row in rows:
            terminalreporter.line(f"{row['points'] * row['passed']:3} of {row['points']:2}   {row['what']}")
        score, full = sum(row["points"] * row["passed"] for row in rows), sum(row["points"] for row in rows)
        terminalreporter.line(f"{score:3} of {full:2}   in all")
