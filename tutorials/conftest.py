"""Runs the tutorials inside pytest: Sybil finds what can be checked in a Markdown file, the functions here check it.

Each tutorial has one namespace. Its python fences are executed in order, from the repository's root, on one thread and
seeded; the text fence after one has to be what it printed, and a number in the prose what its comment gives. What
counts as "the same", and the rules for the files themselves, are in tests/tutorial_rules.py.
"""
import io
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

if "-m cuda" not in " ".join(sys.argv):                         # as in tests/conftest.py: all on the CPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
import torch  # noqa: E402
from sybil import Document, Example, Region, Sybil  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("MPLBACKEND", "Agg")                      # figures are files, no windows

from tutorial_rules import differs, head_end, python_fences, values  # noqa: E402

collect_ignore = ["assignments"]                                # students' and instructors' own: run by their path


def find_fences(document: Document):
    for fence, shown in python_fences(document.text):
        yield Region(fence.start, (shown or fence).end, (fence, shown), run_fence)


def find_values(document: Document):
    end = len(document.text)
    for value in values(document.text):                         # those of the opening are known at the end only
        yield Region(*((value.start, value.end) if value.start > head_end(document.text) else (end, end)), value,
                     check_value)


def run_fence(example: Example) -> str | None:
    skip_after_failure(example)
    fence, shown = example.parsed
    example.document.broken = True                              # until this fence has run to its end
    code = compile("\n" * fence.line + fence.source, example.path, "exec")      # errors show the file's own lines
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, example.namespace)
    example.document.broken = False
    if shown is None:
        return f"printed, but no text fence shows it:\n{printed.getvalue()}" if printed.getvalue().strip() else None
    return differs(shown.source, printed.getvalue())


def check_value(example: Example) -> str | None:
    skip_after_failure(example)
    names = {"json": json, "Path": Path} | example.namespace    # so that results/*.json can be read right there
    return example.parsed.differs(str(eval(example.parsed.expression, names)))


def skip_after_failure(example: Example) -> None:
    if getattr(example.document, "broken", False):
        pytest.skip("an earlier fence of this tutorial failed")


def set_up(namespace: dict) -> None:
    namespace["__name__"], namespace["to restore"] = "__main__", (os.getcwd(), torch.get_num_threads())
    os.chdir(ROOT)
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tear_down(namespace: dict) -> None:
    folder, threads = namespace["to restore"]
    os.chdir(folder)
    torch.set_num_threads(threads)


pytest_collect_file = Sybil(parsers=[find_fences, find_values], pattern="[0-9][0-9]_*.md", setup=set_up,
                            teardown=tear_down).pytest()
