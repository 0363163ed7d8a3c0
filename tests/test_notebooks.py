"""Each tutorial as a notebook, by the command in tutorials/README.md, prints in a real kernel what the Markdown says.

Needs `pip install .[notebooks]`. Minutes in all, so `pytest -m slow tests/test_notebooks.py` runs the kernels.
"""
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from tutorial_rules import differs, fences, python_fences

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
for library in ("jupytext", "ipykernel"):
    pytest.importorskip(library)

TUTORIALS = sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.md"))
COMMAND = re.search(r"^    sed .*?(?=\n\n)", (ROOT / "tutorials/README.md").read_text(), re.MULTILINE | re.DOTALL)[0]


def notebook_of(tutorial, folder):
    """What the documented command makes of a tutorial; the notebook is written to the folder."""
    source, = re.findall(r"tutorials/\d\d_\w+\.md", COMMAND)
    output, = re.findall(r"--output (\S+)", COMMAND)
    command = COMMAND.replace(output, shlex.quote(f"{folder}/it.ipynb")).replace(source, f"tutorials/{tutorial.name}")
    paths = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])      # also if nobody activated it
    subprocess.run(command, shell=True, check=True, cwd=ROOT, capture_output=True, timeout=60,
                   env=os.environ | {"PATH": paths})
    return nbformat.read(folder / "it.ipynb", as_version=4)


def cells(notebook, kind):
    return [cell for cell in notebook.cells if cell.cell_type == kind]


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_a_notebook_runs_the_python_blocks_and_nothing_else(tutorial, tmp_path):
    notebook, text = notebook_of(tutorial, tmp_path), tutorial.read_text()
    expected = [fence.source.strip("\n") for fence in fences(text) if fence.language == "python"]
    assert [cell.source for cell in cells(notebook, "code")] == expected        # no shell command, no quoted source
    for link in re.findall(r"\]\(((?:tutorials|mpvg_minimal|results)/[^)#]+)", "\n".join(
            cell.source for cell in cells(notebook, "markdown"))):
        assert (ROOT / link).exists(), link
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", "\n".join(cell.source for cell in cells(notebook, "markdown")))
    assert len(images) == len(re.findall(r"!\[[^\]]*\]\(", text)) and all((ROOT / image).is_file() for image in images)


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_the_markdown_says(tutorial, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook, root = notebook_of(tutorial, tmp_path), tmp_path / "root"
    shutil.copytree(ROOT / "tutorials", root / "tutorials", ignore=shutil.ignore_patterns("assignments"))
    for path in ROOT.iterdir():                                 # what the cells write into figures/ stays in the copy
        if path.name != "tutorials":
            (root / path.name).symlink_to(path)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(root)}}).execute()
    shown = [shown.source if shown else "" for _, shown in python_fences(tutorial.read_text())]
    printed = ["".join(output.text for output in cell.outputs if output.get("name") == "stdout")
               for cell in cells(notebook, "code")]
    assert len(shown) == len(printed)
    assert [problem for problem in map(differs, shown, printed) if problem] == []
