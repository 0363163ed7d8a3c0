"""The house: which folder may import which, and how long things may be. The source is read, nothing is run."""
import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "mpvg_minimal"
METHOD = ("patch_embed", "layerwise_pe", "block", "balance", "vit", "fold")       # in reading order
MAY_IMPORT = {                                      # room -> the other rooms that it may import
    "method": set(), "runtime": set(), "adapt": {"method"}, "data": {"runtime"}, "training": {"method", "runtime"},
    "dense": {"method", "runtime", "data", "training"},
    "tools": {"method", "runtime", "data", "training", "dense"}}
FILES = sorted(path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
FILES = {".".join(path.parts): path for path in FILES}
FILE_LINES, FUNCTION_LINES, PACKAGE_LINES = 150, 40, 4794         # the last may be lowered, and never raised
TREES = {name: ast.parse((PACKAGE / path).with_suffix(".py").read_text()) for name, path in FILES.items()}


def imports(name: str) -> set[str]:
    """The package's files that this one imports, by name: "vit", "data.batches"; a folder means its __init__."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert PACKAGE.name not in ast.unparse(node), "the package imports its own files by dots"
        if isinstance(node, ast.ImportFrom) and node.level:
            place = [*name.split(".")[:-node.level], *(node.module or "").split(".")]
            found |= {file_of(".".join(filter(None, [*place, alias.name]))) for alias in node.names}
    return found


def file_of(target: str) -> str:
    """"data.batches" for "data.batches" and for "data.batches.Batches"."""
    while target and target not in FILES:
        if f"{target}.__init__" in FILES:
            return f"{target}.__init__"
        target = target.rpartition(".")[0]
    return target or "__init__"


def room(name: str) -> str:
    return name.split(".")[0] if "." in name else "method"


@pytest.mark.parametrize("name", TREES)
def test_a_file_imports_only_rooms_that_it_may(name):
    rooms = {room(target) for target in imports(name)} - {room(name)}
    assert rooms <= MAY_IMPORT[room(name)]


def test_the_ground_floor_is_the_method_and_no_file_imports_a_later_one():
    assert {name for name in FILES if room(name) == "method"} == {*METHOD, "__init__"}
    for number, name in enumerate(METHOD):
        assert imports(name) <= set(METHOD[:number])
    assert imports("vit") == {"balance", "block", "layerwise_pe", "patch_embed"}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert rooms == MAY_IMPORT.keys() - {"method"}


def test_the_method_needs_nothing_but_torch():
    for name in METHOD:
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.ImportFrom) and not node.level or isinstance(node, ast.Import):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {n.split(".")[0] for n in names} <= {"torch", "copy", "dataclasses", "typing", "math"}, name


def test_no_circle_of_imports():
    """prepare() raises CycleError otherwise. Imports inside functions count too."""
    TopologicalSorter({name: imports(name) - {name} for name in TREES}).prepare()


def test_matplotlib_is_imported_where_something_is_drawn():
    """At the top of a file it would cost every --help and every training run a second."""
    for name, tree in TREES.items():
        tops = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not any("matplotlib" in ast.unparse(node) for node in tops), name


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


@pytest.mark.parametrize("name", [str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.py"), *PACKAGE.rglob("*.py")]])
def test_files_and_functions_are_short(name):
    assert lines(ROOT / name) <= FILE_LINES
    functions = [node for node in ast.walk(ast.parse((ROOT / name).read_text())) if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in functions if node.end_lineno - node.lineno >= FUNCTION_LINES] == []


def test_the_package_is_short():
    assert sum(map(lines, PACKAGE.rglob("*.py"))) <= PACKAGE_LINES
