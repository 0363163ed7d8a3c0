"""The assignments: their tests tell right from wrong, the grader survives what it grades, the archive holds no answer.

The instructor's check runs in this process, where torch is imported already. The grader's own faults are tried on
assignments of three functions that need no torch; only the archive is graded in full.
"""
import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from runs import in_child

from mpvg_minimal import vit_nano

ASSIGNMENTS = ROOT / "tutorials" / "assignments"
sys.path.append(str(ASSIGNMENTS / "instructor"))

import check  # noqa: E402
import grade  # noqa: E402
import handout  # noqa: E402
from check import SOLUTIONS  # noqa: E402
from mutants import MUTANTS  # noqa: E402

NAMES = ["a1_patchify", "a2_equivariance_and_pe", "a3_lape_delivery", "a4_mpvg", "a5_counterbalance", "a6_folding"]
each = pytest.mark.parametrize("assignment", NAMES)


def test_these_are_the_assignments():
    assert grade.assignments() == NAMES
    assert sorted(path.name for path in SOLUTIONS.iterdir()) == NAMES
    assert {mutant.file for mutant in MUTANTS} == {f"{name}/{grade.named_file(name)}" for name in NAMES}


# The instructor's check

@each
def test_solutions_pass_stubs_fail_and_every_mutant_is_found(assignment):
    wrong, killed = check.check(assignment)
    assert not wrong
    assert len(killed) >= 15
    assert len(list((check.STYLES / assignment).glob("*.py"))) >= 2
    for mutant, failed in killed:
        message = failed[mutant.test]
        assert re.fullmatch(r"got       .+\nexpected  .+\nhint      .+", message) or re.match(r"\w+Error: ", message)


A4 = list({mutant.test: mutant for mutant in MUTANTS if mutant.file == "a4_mpvg/last_norm.py"}.values())  # one a test
HARMLESS = A4[0]._replace(mistake="no mistake", wrong=f"{A4[0].right}  # the same")
UNNOTICED = A4[0]._replace(test="test_gap")
UNSAID = A4[0]._replace(says="something else")


@pytest.mark.parametrize("mutants, complaint", [
    ([*A4, HARMLESS], "'no mistake' passes"),
    ([*A4, UNNOTICED], f"'{UNNOTICED.mistake}' passes test_gap"),
    ([*A4, UNSAID], f"'{UNSAID.mistake}' fails {UNSAID.test} without 'something else'"),
    ([mutant for mutant in A4 if mutant.test != "test_gap"], "test_gap fails for no mutant")])
def test_the_check_complains(mutants, complaint, monkeypatch):
    monkeypatch.setattr(check, "MUTANTS", mutants)
    monkeypatch.setattr(check, "STYLES", Path("none"))
    wrong, _ = check.check("a4_mpvg")
    assert len(wrong) == 1 and complaint in wrong[0]


def test_the_check_finds_a_false_alarm_a_wrong_solution_and_a_written_stub(monkeypatch, tmp_path):
    solution = (SOLUTIONS / "a4_mpvg" / "last_norm.py").read_text()
    styles, solutions, stubs = (tmp_path / name / "a4_mpvg" for name in ("styles", "solutions", "stubs"))
    shutil.copytree(ASSIGNMENTS, stubs.parent)
    for folder, file, text in ((styles, "strange.py", solution.replace('if how == "gap"', 'if how == "mean"')),
                               (solutions, "last_norm.py", solution.replace("y.mean(dim=1)", "y.mean(dim=0)")),
                               (stubs, "last_norm.py", solution)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    monkeypatch.setattr(check, "STYLES", styles.parent)
    with monkeypatch.context() as patch:
        patch.setattr(check, "SOLUTIONS", solutions.parent)
        patch.setattr(check, "MUTANTS", [])
        assert [problem.split(":")[0] for problem in check.check("a4_mpvg")[0][:4]] == [
            f"{answer} fails {test}" for answer in ("the solution", "the right answer strange.py")
            for test in ("test_gap", "test_classify")]
    monkeypatch.setattr(check, "ASSIGNMENTS", stubs.parent)
    assert len(check.written("a4_mpvg")) == 7 and not check.written("a5_counterbalance")
    monkeypatch.setattr(sys, "argv", ["handout.py", str(tmp_path / "out.zip")])
    with pytest.raises(SystemExit, match="2"):
        handout.main()
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize("right", ["no such text", "self"])
def test_a_mutant_has_exactly_one_place(right):
    with pytest.raises(ValueError, match="places with"):
        check.mutated(MUTANTS[-1]._replace(file="a4_mpvg/last_norm.py", right=right))


@each
def test_points_are_those_of_the_readme(assignment):
    readme = (ASSIGNMENTS / assignment / "README.md").read_text()
    promised = {part: int(points) for part, points in re.findall(r"^\| (\d) \|.*\| (\d+) \|$", readme, re.MULTILINE)}
    given = dict.fromkeys(promised, 0)
    for entry in grade.tests_of(assignment).values():
        given[re.match(r"part (\d): ", entry["what"])[1]] += entry["points"]
    assert given == promised and sum(given.values()) == 10
    assert readme.count("<details>") == readme.count("</details>") >= 3


@each
def test_a_stub_is_its_solution_without_the_answers(assignment):
    """Names, arguments, docstrings: a student's file is called as the solution is."""
    def outline(file: Path) -> list[str]:
        return [f"{node.name} {ast.unparse(getattr(node, 'args', ast.Pass()))} {ast.get_docstring(node)}"
                for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    file = f"{assignment}/{grade.named_file(assignment)}"
    assert outline(ASSIGNMENTS / file) == outline(SOLUTIONS / file)


# The capstone

@pytest.fixture
def capstone(monkeypatch):
    """The instructor's, loaded as it loads itself: with the solutions' files on the path."""
    for name in ("delivery", "last_norm", "patchify"):
        monkeypatch.delitem(sys.modules, name, raising=False)               # a mutant's, from a test before
    monkeypatch.setattr(sys, "path", sys.path[:])
    spec = importlib.util.spec_from_file_location("capstone", ASSIGNMENTS / "instructor" / "capstone.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in ("delivery", "last_norm", "patchify"):
        sys.modules.pop(name, None)


THEIR_NAMES = {"weight": "patch_embed.proj.weight", "bias": "patch_embed.proj.bias", "p_0": "pe.pos_embed",
               "attention.heads.in_proj_": "attn.qkv.", "attention.heads.out_proj": "attn.proj", "mlp.0": "mlp.fc1",
               "mlp.2": "mlp.fc2", "norms": "pe.norms"}


@pytest.mark.parametrize("schedule", ["pvg", "mpvg"])
def test_the_capstone_of_the_solutions_is_the_packages_vit(capstone, schedule):
    model, theirs = capstone.ViT(schedule).double().eval(), vit_nano(pe=schedule).double().eval()
    for norm in (module for module in theirs.modules() if isinstance(module, torch.nn.LayerNorm)):
        norm.eps = 1e-5
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    weights = theirs.state_dict()
    if schedule == "pvg":
        weights = {name.replace("last_norm.token_norm", "last_norm"): weight for name, weight in weights.items()}
    for name, weight in model.state_dict().items():
        start = next((start for start in THEIR_NAMES if re.search(rf"^(blocks.\d.)?{re.escape(start)}", name)), None)
        weight.copy_(weights.pop(name.replace(start, THEIR_NAMES[start], 1) if start else name))
    assert not weights                                                      # each has found its place
    images = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(images), theirs(images))


def test_the_capstone_trains_and_compares(capstone, monkeypatch, capsys):
    shapes = capstone.given.Shapes
    monkeypatch.setattr(capstone.given, "Shapes", lambda split: shapes(split, size=64))
    capstone.given.main(capstone.ViT, ["--steps", "2", "--seeds", "2"])
    said = capsys.readouterr().out
    assert re.fullmatch(r"((pvg |mpvg)  seed [01]     2 steps, then +\d+\.\d % of new images\n){4}"
                        r"mpvg - pvg: \+0\.0 steps, standard error 0\.0; chance 6\.2 %\n", said), said


# The archive

@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The archive, unpacked as a student would."""
    folder = tmp_path_factory.mktemp("handout")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["handout.py", str(folder / "out.zip")])
        handout.main()
    with zipfile.ZipFile(folder / "out.zip") as packed:
        packed.extractall(folder / "unpacked")
    return folder / "unpacked"


def text_without_spaces(text: str) -> str:
    return re.sub(r"\s+", "", text)


def answers() -> set[str]:
    """Every line of a solution that its stub does not have, without spaces and comment."""
    lines = set()
    for name in NAMES:
        stub, solution = ((folder / name / grade.named_file(name)).read_text() for folder in (ASSIGNMENTS, SOLUTIONS))
        lines |= {text_without_spaces(line.split("  #")[0]) for line in solution.splitlines()
                  if line.split("  #")[0].strip() not in stub}
    return {line for line in lines if len(line) >= 15}


def test_the_archive_holds_no_answer(archive):
    files = {path.relative_to(archive).as_posix(): path for path in archive.rglob("*") if path.is_file()}
    expected = {"LICENSE", "requirements.txt", "pytest.ini", *(f"tutorials/assignments/{file}" for file in (
        "README.md", "conftest.py", "expect.py", "grade.py", "student.py",
        *(f"{name}/{file}" for name in NAMES for file in ("README.md", grade.named_file(name),
                                                          f"test_{grade.named_file(name)}"))))}
    assert set(files) == expected
    assert len(answers()) > 50
    for name, path in files.items():
        text = text_without_spaces(path.read_text())
        assert not [line for line in answers() if line in text], name
        assert not re.search(r"^\s*(from|import) (mpvg_minimal|check|mutants)", path.read_text(), re.MULTILINE), name
    assert re.fullmatch(r"torch>=\S+\npytest>=\S+\n", files["requirements.txt"].read_text())


def shell(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True,
                          text=True, timeout=300)


def test_solutions_get_full_marks_in_the_archive(archive, tmp_path):
    done = shell("tutorials/assignments/grade.py", "--impl", SOLUTIONS, "--results",
                 tmp_path / "results.json", cwd=archive)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == " 60 of 60   in all", done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["score"] == sum(test["max_score"] for test in results["tests"]) == 60
    assert all(test["status"] == "passed" and test["output"] == "" for test in results["tests"])


def test_pytest_in_an_assignments_own_folder_of_the_archive(archive):
    done = shell("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=archive / "tutorials/assignments/a4_mpvg")
    assert done.returncode == 1 and "  0 of 10   in all" in done.stdout, done.stdout


def test_a_student_starts_with_0_points_and_no_crash():
    """In the repository, by the path; that a run without a path leaves the stubs out is shown in test_tutorials.py."""
    def start():
        for name in ("conftest", "expect", "student"):
            sys.modules.pop(name, None)
        sys.exit(int(pytest.main(["-p", "no:cacheprovider", f"--rootdir={ROOT}", str(ASSIGNMENTS)])))

    done = in_child(start)
    assert done.code == 1 and "Traceback" not in done.out
    tests = {name: grade.tests_of(name) for name in NAMES}
    assert re.findall(r"^not written yet: (part \d): ", done.out, re.MULTILINE) == [
        entry["what"][:6] for name in NAMES for entry in tests[name].values()]
    tables = re.split(r"points of (a\d_\w+)", done.out)[1:]
    assert tables[::2] == NAMES
    for name, table in zip(NAMES, tables[1::2]):
        rows = table.splitlines()[1:len(tests[name]) + 2]
        assert rows[-1] == "  0 of 10   in all"
        assert all(re.match(r"  0 of  [12]   part \d: ", row) for row in rows[:-1])


# The grader

NUMBERS = {"one": (1, 1), "two": (2, 2), "three": (3, 4)}             # what a function returns, and its test's points
TESTS = "import pytest\nfrom student import equal\n" + "".join(f'''
@pytest.mark.points({points})
def test_{name}(student):
    """part {number}: {name}"""
    equal(student.{name}(), {number}, "{name}()", "count")
''' for name, (number, points) in NUMBERS.items())
ANSWERS = "\n".join(f"def {name}():\n    return {number}\n" for name, (number, _) in NUMBERS.items())


def make_course(tmp_path, files=("count",)):
    """A folder with an assignment for each file, that needs no torch; their submissions go to tmp_path/submission."""
    (tmp_path / "course").mkdir()
    (tmp_path / "submission").mkdir()
    for name in ("conftest.py", "grade.py", "student.py"):
        shutil.copy(ASSIGNMENTS / name, tmp_path / "course")
    (tmp_path / "course" / "expect.py").write_text("# what measures is not needed here, and would import torch\n")
    for name in files:
        (tmp_path / "course" / f"a0_{name}").mkdir()
        (tmp_path / "course" / f"a0_{name}" / f"test_{name}.py").write_text(TESTS)
    return tmp_path / "course"


@pytest.fixture
def course(tmp_path):
    return make_course(tmp_path)


def graded(course: Path, submission: str | None, timeout: float = 60) -> tuple[list[int], list[str]]:
    """(points for the three tests, what is said of them)."""
    impl = course.parent / "submission"
    if submission is not None:
        (impl / "count.py").write_text(submission)
    return points_and_words(grade.grade(["a0_count"], impl, timeout=timeout, folder=course).values())


def points_and_words(results) -> tuple[list[int], list[str]]:
    return [entry["points"] * entry["passed"] for entry in results], [entry["output"] for entry in results]


def two(body: str) -> str:
    """All right, but for what two() does."""
    return ANSWERS.replace("    return 2\n", f"    {body}\n")


SUBMISSIONS = {                                     # name: (the file, points, what is said of test_two)
    "right": (ANSWERS, [1, 2, 4], ""),
    "wrong": (two("return 3"), [1, 0, 4], "got       two(): 3\nexpected  2\nhint      count"),
    "error": (two("return 1 / 0"), [1, 0, 4], "Error: division by zero\n          FILE.py, line 5: return 1 / 0"),
    "not written": (two("raise NotImplementedError('part 2: two')"), [1, 0, 4], "not written yet: part 2: two"),
    "renamed": (ANSWERS.replace("two", "zwei"), [1, 0, 4], "no two in FILE.py"),
    "sys.exit": (two("import sys; sys.exit(0)"), [1, 0, 4], "SystemExit: 0"),
    "os._exit": (two("import os; os._exit(0)"), [1, 0, 4], "the process ended by itself, exit code 0"),
    "crash": (two("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"), [1, 0, 4], "exit code -11"),
    "kills its group": (two("import os, signal; os.killpg(0, signal.SIGTERM)"), [1, 0, 4], "exit code -15"),
    "KeyboardInterrupt": (two("raise KeyboardInterrupt"), [1, 0, 4], "the process ended by itself, exit code 2"),
    "pytest.exit": (two("import pytest; pytest.exit('enough', 0)"), [1, 0, 4], "ended by itself, exit code 0"),
    "pytest.skip": (two("import pytest; pytest.skip('too hard')"), [1, 0, 4], "too hard"),
    "pytest.xfail": (two("import pytest; pytest.xfail('too hard')"), [1, 0, 4], "too hard"),
    "says it passed": (two("print('= 3 passed =' * 10 ** 6)"), [1, 0, 4], "two(): None"),
    "prints on and on": (two("while True: print('no end ' * 1000)"), [1, 0, 4], "without end\n          FILE.py, l"),
    "prints at once": ("while True: print('no end ' * 1000)\n", [0, 0, 0], "prints, or writes to a file, without end"),
    "recursion": (two("return two()"), [1, 0, 4], "RecursionError"),
    "replaces pytest.fail": ("import pytest\npytest.fail = print\n" + two("return 3"), [1, 0, 4], "two(): 3"),
    "replaces the comparison": ("import student\nstudent.equal = student.fail = print\n" + two("return 3"), [1, 0, 4],
                                "two(): 3"),
    "no file": (None, [0, 0, 0], "got       no FILE.py in /submission\n"),
    "syntax": (ANSWERS.replace("one()", "one("), [0, 0, 0], "FILE.py does not import: SyntaxError"),
    "no text": ("\0" + ANSWERS, [0, 0, 0], "FILE.py does not import: SyntaxError"),
    "import": ("import no_such_module\n" + ANSWERS, [0, 0, 0], "does not import: ModuleNotFoundError"),
    "sys.exit at once": ("import sys\nsys.exit()\n" + ANSWERS, [0, 0, 0], "does not import: SystemExit"),
    "os._exit at once": ("import os\nos._exit(0)\n" + ANSWERS, [0, 0, 0], "exit code 0, while your file was loaded"),
    "skip at once": ("import pytest\npytest.skip('no', allow_module_level=True)\n", [0, 0, 0], "no"),
}


@pytest.fixture(scope="module")
def all_graded(tmp_path_factory):
    """The results of all submissions, graded at once: none of them may touch those of another."""
    files = {name: f"case{number:02}" for number, name in enumerate(SUBMISSIONS)}
    course = make_course(tmp_path_factory.mktemp("all"), files.values())
    for name, (text, *_) in SUBMISSIONS.items():
        if text is not None:
            (course.parent / "submission" / f"{files[name]}.py").write_text(text)
    assignments = [f"a0_{file}" for file in files.values()]
    results = grade.grade(assignments, course.parent / "submission", timeout=60, folder=course)
    return {name: (file, *points_and_words([results[test] for test in results if test.startswith(f"a0_{file}/")]))
            for name, file in files.items()}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_whatever_a_submission_does_the_other_tests_count(all_graded, name):
    _, points, said = SUBMISSIONS[name]
    file, got, outputs = all_graded[name]
    assert got == points, outputs
    assert said.replace("FILE", file) in re.sub("/.*/submission", "/submission", outputs[1])
    assert all(output for output, score in zip(outputs, got) if not score)


def test_the_temporary_folder_may_be_a_link(course, tmp_path, monkeypatch):
    """As on macOS."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setattr(grade.tempfile, "tempdir", str(tmp_path / "link"))
    assert graded(course, ANSWERS)[0] == [1, 2, 4]


def test_an_endless_loop_is_stopped_and_the_other_tests_count(course):
    points, outputs = graded(course, two("import time\n    while True: time.sleep(0.1)"), timeout=3)
    assert points == [1, 0, 4] and "still running after 3 s\n" in outputs[1]


def test_an_endless_loop_at_import_is_waited_for_once(course, monkeypatch):
    runs, run = [], grade.run
    monkeypatch.setattr(grade, "run", lambda tests, *rest: runs.append(tests) or run(tests, *rest))
    points, outputs = graded(course, ANSWERS + "while True: pass\n", timeout=2)     # nothing else runs in this process
    assert points == [0, 0, 0] and len(runs) == 1
    assert all("still running after 2 s, while your file was loaded" in output for output in outputs)


def test_tests_that_do_not_start_say_why(course):
    """By a Python that has no torch, say: pytest runs, and collects nothing."""
    test_file = course / "a0_count" / "test_count.py"
    test_file.write_text("import no_such_torch\n" + test_file.read_text())
    points, outputs = graded(course, ANSWERS)
    assert points == [0, 0, 0]
    assert all("the tests did not start" in said and "No module named 'no_such_torch'" in said for said in outputs)


def test_nothing_that_a_submission_started_goes_on(course, tmp_path):
    left = two(f"import subprocess; subprocess.Popen(['sh', '-c', 'sleep 2; touch {tmp_path}/alive']); return 2")
    assert graded(course, left)[0] == [1, 2, 4]
    time.sleep(2.5)
    assert not (tmp_path / "alive").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_an_endless_submission_ends_with_a_killed_grader(course, tmp_path):
    place = tmp_path / "pid"
    endless = two(f"import os; open('{place}', 'w').write(f'{{os.getpid()}} ')\n    while True: pass")
    (course.parent / "submission" / "count.py").write_text(endless)
    grader = subprocess.Popen([sys.executable, course / "grade.py", "a0_count", "--impl", course.parent / "submission"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: place.exists() and place.read_text().endswith(" "))
    state = Path("/proc") / place.read_text().strip() / "stat"
    assert state.read_text().split()[2] in "RS"
    grader.kill()
    grader.wait()
    wait_until(lambda: not state.exists() or state.read_text().split()[2] == "Z")


def wait_until(condition) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 60
        time.sleep(0.05)


def test_only_the_named_file_is_taken(course):
    impl = course.parent / "submission"
    (impl / "conftest.py").write_text("raise SystemExit('a conftest.py of the submission')\n")
    (impl / "test_count.py").write_text("raise SystemExit('tests of the submission')\n")
    (impl / "expect.py").write_text("def equal(*_): pass\n")
    (impl / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    assert graded(course, two("return 3"))[0] == [1, 0, 4]
    (impl / "count.py").unlink()
    (impl / "a0_count").mkdir()
    (impl / "a0_count" / "count.py").write_text(ANSWERS)              # a folder for each assignment will do as well
    assert graded(course, None)[0] == [1, 2, 4]


def test_what_no_answer_needs_is_to_be_looked_at_by_hand(course):
    unusual = ("import sys; sys.modules", "open('/proc/self/status')", "sys._getframe()", "import atexit",
               "import ctypes", "def __torch_function__(): pass", "import solutions.count", "import pytest",
               "from mpvg_minimal import fold")
    for line in unusual:
        (course.parent / "submission" / "count.py").write_text(f"{ANSWERS}\n{line}\n")
        found, = grade.look_at(["a0_count"], course.parent / "submission", course)
        assert found.startswith("count.py, line 10 mentions ") and found.endswith(f": {line}")
    for answers in (ASSIGNMENTS, SOLUTIONS):
        assert grade.look_at(NAMES, answers) == []                          # no false alarm
    for style in check.STYLES.glob("*/*.py"):
        assert not grade.UNUSUAL.search(style.read_text()), style


def test_results_in_gradescopes_format_also_if_the_file_does_not_import(course, tmp_path):
    (course.parent / "submission" / "count.py").write_text("import no_such_module\nimport atexit\n")
    done = shell(course / "grade.py", "a0_count", "--impl", course.parent / "submission", "--results",
                 tmp_path / "results.json", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.endswith(
        "look at this by hand: count.py, line 2 mentions atexit: import atexit\n  0 of  7   in all\n"), done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["score"] == 0 and isinstance(results["execution_time"], int)
    assert results["tests"].pop() == {
        "name": "look at this by hand", "score": 0, "max_score": 0, "visibility": "hidden",
        "output": "count.py, line 2 mentions atexit: import atexit"}
    assert [(test["name"], test["score"], test["max_score"], test["status"]) for test in results["tests"]] == [
        (f"a0_count, part {n}: {word}", 0, points, "failed") for n, word, points in
        ((1, "one", 1), (2, "two", 2), (3, "three", 4))]
    assert all("No module named 'no_such_module'" in test["output"] for test in results["tests"])


@pytest.mark.parametrize("arguments, message", [
    (["a9_none"], "no assignment is called a9_none: choose from a1_patchify, "),
    (["a4_mpvg", "--impl", "no_such_folder"], "--impl no_such_folder is no folder"),
    (["a4_mpvg", "--results", "no_such_folder/results.json"], "its folder does not exist")])
def test_a_wrong_argument_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        grade.main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err
