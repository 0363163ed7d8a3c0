"""Runs the tests that prove a promise and writes the table in tests/README.md: `python tests/make_table.py`."""
import sys
from collections import defaultdict
from pathlib import Path

import pytest

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
PROMISES = {                                        # the mark's name -> what is promised
    "atomic": "A kill at any moment of a save leaves a whole checkpoint; the last two are kept",
    "exact resume": "`--resume` after a kill ends bit for bit as a run that nothing disturbed",
    "preemption": "SIGTERM, SIGINT, SIGHUP, SIGUSR1 save after the current step in all processes; exit code 129 and up",
    "last good": "A damaged checkpoint is found and named, and the one before it is used",
    "nothing hostile": "No checkpoint can run code; only plain types are saved",
    "non-finite": "A NaN or infinite loss moves no weight and is never saved; fp32 and bf16 stop, fp16 after 20",
    "mismatch": "Resuming or testing with another model, data set or schedule is refused, with key and values",
    "bad data": "A bad file, folder, label or image size is named in one line; exit code 2",
    "bad flags": "A wrong flag is one line on stderr, before data is opened or a model built; exit code 2",
    "disk full": "A full disk is named, and the last checkpoint stays intact",
    "output": "A reader that goes away, a full disk under stdout, Ctrl-C during imports: no traceback, the run goes on",
    "fuzz": "Flags and values drawn at random for all commands: no traceback, no hang, one line and exit code 1 or 2",
    "lost process": "A killed loading process or rank ends the run within 15 s with its cause; torchrun restarts it",
}


class Counter:
    """A pytest plugin: for each promise, its test files, and how many cases ran and passed."""

    def __init__(self):
        self.promise, self.files = {}, defaultdict(set)
        self.ran, self.passed = defaultdict(int), defaultdict(int)

    def pytest_collection_modifyitems(self, config, items):
        marked = [item for item in items if item.get_closest_marker("promise")]
        config.hook.pytest_deselected(items=[item for item in items if item not in marked])
        items[:] = marked
        for item in marked:
            self.promise[item.nodeid] = item.get_closest_marker("promise").args[0]
            self.files[self.promise[item.nodeid]].add(item.path.name)

    def pytest_runtest_logreport(self, report):
        name = self.promise[report.nodeid]
        self.ran[name] += report.when == "call" or report.failed and report.when == "setup"
        self.passed[name] += report.when == "call" and report.passed

    def table(self) -> str:
        lines = ["| promise | tests | cases passed |", "|---|---|---|"]
        for name, text in PROMISES.items():
            files = ", ".join(f"`{file}`" for file in sorted(self.files[name]))
            lines.append(f"| {text} | {files}, `{name}` | {self.passed[name]} of {self.ran[name]} |")
        return "\n".join([*lines, f"| all | | {sum(self.passed.values())} of {sum(self.ran.values())} |"])


def main() -> int:
    counter = Counter()
    code = pytest.main(["-q", "-m", "not cuda", str(README.parent), *sys.argv[1:]], plugins=[counter])
    if code == pytest.ExitCode.INTERNAL_ERROR or code == pytest.ExitCode.INTERRUPTED:
        return code
    unknown = set(counter.promise.values()) ^ set(PROMISES)
    if unknown:
        raise SystemExit(f"marks and table do not fit: {', '.join(sorted(unknown))}")
    before, rest = README.read_text().split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{counter.table()}\n{END}{rest.split(END)[1]}")
    return code


if __name__ == "__main__":
    sys.exit(main())
