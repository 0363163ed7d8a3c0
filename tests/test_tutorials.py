"""The rules of tests/tutorial_rules.py hold for every tutorial, and each of them, and each check of
tutorials/conftest.py, can fail. The tutorials themselves are executed where they stand: `pytest tutorials`."""
import re
import shutil
import subprocess
import sys

import pytest
import tutorial_rules
from conftest import ROOT
from sybil import Document
from sybil.example import SybilFailure
from tutorial_rules import RULES, Page, differs

from tutorials.conftest import find_fences, find_values

FOLDER = ROOT / "tutorials"


def page_of(path):
    return Page(path, path.read_text())


TUTORIALS = [page_of(path) for path in sorted(FOLDER.glob("[0-9][0-9]_*.md"))]
OTHERS = ("README.md", "tests/README.md", "tutorials/README.md", "tutorials/glossary.md",
          "mpvg_minimal/adapt/README.md")
PAGES = TUTORIALS + [page_of(ROOT / name) for name in OTHERS]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.path.stem)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_tutorial_keeps_every_rule(rule, page):
    assert rule(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert tutorial_rules.links(page) == []


def test_the_syllabus_lists_all_nine_in_order():
    listed = re.findall(r"\]\((\d\d_\w+\.md)\)", (FOLDER / "README.md").read_text())
    assert [name[:2] for name in listed] == [f"{number:02}" for number in range(1, 10)]
    assert {page.path.name for page in TUTORIALS} == set(listed)


def test_every_figure_is_shown():
    pages = PAGES + [page_of(path) for path in sorted(FOLDER.glob("assignments/**/*.md"))]
    assert tutorial_rules.orphans(pages, sorted(FOLDER.glob("figures/*"))) == []


# Each rule can complain. GOOD keeps all of them; each case below breaks one thing of it.

GOOD = '''# 8. Good

**Which half?** It is 50 %<!-- = f"{half:.0%}".replace("%", " %") ± 1 --> of it.

**You will learn** something.

**Read first:** [block.py](../mpvg_minimal/block.py).

**Time on a laptop:** 5 minutes.

A half is 0.5<!-- = f"{half:.1f}" --> or 50 %<!-- = f"{half:.0%}".replace("%", " %") -->, not `0.7`.
The paper says 72.14 and 3 %. <!-- published: Lee et al. 2025 -->

```python
half = 0.5


def twice(x):
    return 2 * x

print(half, half, twice(half) - 1)
```

```text
0.5 ≈ 0.4 ± 0.2 ≤ 1e-12
```

![scheme](figures/mpvg.svg)

<details><summary>The code of this figure</summary>

```python
import matplotlib.pyplot as plt
plt.close()
```

</details>

From [`mpvg_minimal/block.py`](../mpvg_minimal/block.py), `Block.forward`:

```py
if pe is not None:
    y = y + pe                                                      # (B, N, D) + (1, N, D)
```

```bash
OMP_NUM_THREADS=1 python train_cifar.py --gap --mpvg --dataset shapes  # a comment
torchrun --nproc-per-node 8 train_imagenet.py --gap
python -m mpvg_minimal.dense --task detection && python -m mpvg_minimal.tools.plots runs/NAME
```

## Questions

''' + "".join(f"{number}. Why?\n\n<details><summary>Answer</summary>\n\nSo.\n\n</details>\n\n" for number in (1, 2, 3)
            ) + "Next: [Elsewhere](09_elsewhere.md)\n"
BAD = [
    ("languages", "```python", "```pycon", "language 'pycon'"),
    ("languages", "1e-12\n```", "1e-12", "not closed"),
    ("languages", "```text\n0.5 ≈ 0.4 ± 0.2 ≤ 1e-12\n```", "  ```text\n  0.5\n  ```", "indented"),
    ("shown_output", "```text", "Words.\n\n```text", "no python fence directly before"),
    ("sourced_numbers", '0.5<!-- = f"{half:.1f}" -->', "0.5", "'0.5' has no comment"),
    ("sourced_numbers", '0.5<!-- = f"{half:.1f}" -->', '0.5 <!-- = f"{half:.1f}" -->', "'0.5' has no comment"),
    ("sourced_numbers", ' %<!-- = f"{half:.0%}".replace("%", " %") -->', " %", "'50 %' has no comment"),
    ("sourced_numbers", " <!-- published: Lee et al. 2025 -->", "", "'72.14' has no comment"),
    ("comments", '<!-- = f"{half:.1f}" -->', '<!--= f"{half:.1f}" -->', "is neither"),
    ("comments", "<!-- published: Lee et al. 2025 -->", "<!-- published: -->", "is neither"),
    ("quotes", "if pe is not None:\n", "if pe is None:\n", "do not stand like that"),
    ("quotes", "`Block.forward`", "`Mlp.forward`", "do not stand like that"),
    ("quotes", "`Block.forward`", "`Block.backward`", "do not stand like that"),
    ("quotes", "if pe is not None:\n", "if pe is not None:\n\n", "do not stand like that"),
    ("quotes", "(../mpvg_minimal/block.py), `Block", "(../mpvg_minimal/vit.py), `Block", "no label"),
    ("quotes", "block.py`](../mpvg_minimal/block.py), `B", "vit.py`](../mpvg_minimal/vit.py), `B", "do not stand like"),
    ("quotes", "From [", "In [", "no label"),
    ("quotes", "```py\n", "```py\n" + 14 * "x\n", "quotes 16 lines"),
    ("nothing_redefined", "half = 0.5", "class Block: pass\nhalf = 0.5", "Block is the package's"),
    ("nothing_redefined", "half = 0.5", "def pearson(): pass\nhalf = 0.5", "pearson is the package's"),
    ("commands", "train_cifar.py", "train_cifer.py", "train_cifer.py does not exist"),
    ("commands", "--mpvg", "--mvpg", "has no flag --mvpg"),
    ("commands", "--dataset shapes", "--dataset shape", "not 'shape'"),
    ("commands", "train_imagenet.py --gap", "train_imagenet.py --gep", "has no flag --gep"),
    ("commands", "mpvg_minimal.tools.plots", "mpvg_minimal.plot", "mpvg_minimal.plot does not exist"),
    ("commands", "runs/NAME", "runs/NAME --image 3", "has no flag --image"),
    ("commands", "--task detection", "--task direction", "not 'direction'"),
    ("commands", "python -m", "python3 -m", "python3 is neither"),
    ("written_figures", "figures/mpvg.svg)", "figures/other.png)", "no python fence here writes"),
    ("opening", "# 8.", "# 7.", "no line # 8. TITLE"),
    ("opening", "**Which half?**", "**Half.**", "**QUESTION?**"),
    ("opening", ' It is 50 %<!-- = f"{half:.0%}".replace("%", " %") ± 1 --> of it.', "", "no picture and no number"),
    ("opening", "**You will learn**", "You will learn", "**You will learn**"),
    ("opening", "**Read first:**", "**Read:**", "**Read first:**"),
    ("opening", "5 minutes", "some minutes", "**Time on a laptop:**"),
    ("ending", "## Questions", "## Question", "no section ## Questions"),
    ("ending", "2. Why?", "Why?", "numbered [1, 3]"),
    ("ending", "So.\n\n</details>\n\nNext", "\n\n</details>\n\nNext", "2 answers"),
    ("ending", "(09_elsewhere.md)", "(07_training.md)", "the last line is"),
    ("tolerances", "0.4 ± 0.2", "0.4 ± 0.3", "± 0.3 is more than half of 0.4"),
    ("tolerances", "± 1 -->", "± 26 -->", "± 26 is more than half of 50"),
    ("tolerances", "≤ 1e-12", "≤ 0.1", "≤ 0.1 is no rounding error"),
    ("verdicts", "```text\n", "```text\nabove 90 %: True\n", "'above 90 %: True'"),
    ("folded_plumbing", "<details><summary>The code of this figure</summary>", "", "draws a figure in the open"),
    ("pasteable", "    return 2 * x\n\n", "    return 2 * x\n", "pasted into a REPL"),
    ("pasteable", "    return 2 * x", "    x *= 2\n\n    return x", "pasted into a REPL"),
    ("narrow", "half = 0.5\n", "half = 0.5" + 90 * " " + "#\n", "101 characters, at most 95"),
    ("short", "So.", 1700 * "So. ", "words, at most 1700"),
    ("links", "[block.py](../mpvg_minimal/block.py)", "[block.py](../mpvg_minimal/blocks.py)", "does not exist"),
    ("links", "(figures/mpvg.svg", "(figures/mvpg.svg", "does not exist"),
    ("links", "![scheme]", "![]", "without a description"),
    ("links", "[block.py](../mpvg_minimal/block.py)", "[questions](#answers)", "no such heading"),
    ("links", "[block.py](../mpvg_minimal/block.py)", "[read me](../README.md#cost)", "no such heading"),
]


def test_a_good_page_keeps_all_rules():
    page = Page(FOLDER / "08_good.md", GOOD)
    assert [complaint for rule in RULES for complaint in rule(page)] == []
    assert tutorial_rules.links(page) == []
    headed = GOOD.replace("[block.py](../mpvg_minimal/block.py)", "[read me](../README.md#what-we-found)")
    assert tutorial_rules.links(Page(page.path, headed)) == []


@pytest.mark.parametrize("rule, old, new, complaint", BAD)
def test_every_rule_can_complain(rule, old, new, complaint):
    assert GOOD.count(old) >= 1
    page = Page(FOLDER / "08_good.md", GOOD.replace(old, new, 1))
    complaints = getattr(tutorial_rules, rule)(page)
    assert complaints and complaint in complaints[0], complaints


def test_every_rule_has_a_case():
    assert {rule.__name__ for rule in RULES} | {"links"} == {rule for rule, *_ in BAD}


def test_orphans_are_found(tmp_path):
    page, figures = Page(tmp_path / "01_x.md", "![a](figures/a.png)"), [tmp_path / "figures" / f"{c}.png" for c in "ab"]
    assert tutorial_rules.orphans([page], figures) == ["b.png is shown by no page"]


@pytest.mark.parametrize("shown, printed, same", [
    ("a 1 0.50\n", "a 1 0.50\n", True),
    ("a 1 0.50", "a 1 0.51  \n\n", True),
    ("0.50", "0.52", False),
    ("0.50", "0.5", False),
    ("0.50", "0.499", False),
    ("12", "13", False),
    ("1.0e-07", "1.1e-07", True),
    ("1.0e-07", "1.0e-06", False),
    ("-0.5", "0.5", False),
    ("a 0.50", "b 0.50", False),
    ("0.50 0.50", "0.50", False),
    ("a\nb", "a\nb\nc", False),
    ("", "x", False),
    ("a ≈ 0.97 ± 0.03 b", "a 0.941 b", True),
    ("a ≈ 0.97 ± 0.03 b", "a   1.0 b", True),
    ("a ≈ 0.97 ± 0.03 b", "a 0.939 b", False),
    ("a ≈ 0.97 ± 0.03 b", "a 0.97", False),
    ("≈ 97 ± 3 %", "99.6 %", True),
    ("≈ 97 ± 3 %", "99.6", False),
    ("≈ -0.5 ± 0.2", "0.5", False),
    ("44.15 ± 0.25", "44.15 ± 0.20", False),
    ("≤ 1e-12", "-3.1e-13", True),
    ("≤ 1e-12", "3.1e-12", False),
])
def test_what_counts_as_the_same_output(shown, printed, same):
    assert (differs(shown, printed) is None) == same


# What executes the tutorials.

def document_of(text):
    document = Document(text, "page.md")
    for region in (*find_fences(document), *find_values(document)):
        document.add(region)
    return document


def execute(text):
    document = document_of(text)
    for example in document.examples():
        example.evaluate()
    return document.namespace


def test_fences_share_a_namespace_and_values_are_taken_at_their_place():
    text = ("```python\nx = 1.5\nprint(x)\n```\n\n```text\n1.5\n```\n\n1.5<!-- = x -->\n\n```python\nx = 2.5\n```\n\n"
            "**2.5 %**, 2.5 %<!-- = f'{x} %' -->\n\n```py\nraise ValueError\n```\n\n```bash\nexit 1\n```\n")
    assert execute(text)["x"] == 2.5


def test_the_numbers_of_the_opening_are_taken_at_the_end():
    page = "2.5<!-- = x -->\n\n## Part\n\n```python\nx = 1.5\n```\n\n1.5<!-- = x -->\n\n```python\nx = {}\n```\n"
    execute(page.format(2.5))
    with pytest.raises(SybilFailure, match="shown:\n2.5\ngot:\n3.5"):
        execute(page.format(3.5))


@pytest.mark.parametrize("text, error", [
    ("```python\nprint(1)\n```\n", "printed, but no text fence shows it:\n1"),
    ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "shown:\n2\ngot:\n1"),
    ("```python\nx = 1\n```\n\n```text\n1\n```\n", "shown:\n1\ngot:\n"),
    ("```python\nx = 0.7\n```\n\n0.5<!-- = x -->", "shown:\n0.5\ngot:\n0.7"),
    ("12.5<!-- = 2.5 -->", "more before it: '12.5'"),
    ("-2.5<!-- = 2.5 -->", "more before it: '-2.5'"),
    ("1,002<!-- = '002' -->", "more before it: '1,002'"),
    ("3 %<!-- = '4 %' -->", "shown:\n3 %\ngot:\n4 %"),
    ("3 %<!-- = '5.5 %' ± 2 -->", "shown:\n≈ 3 ± 2 %\ngot:\n5.5 %"),
    ("13 %<!-- = '4.0 %' ± 2 -->", "shown:\n≈ 13 ± 2 %\ngot:\n4.0 %"),
    ("-3 %<!-- = '4 %' ± 2 -->", "shown:\n≈ -3 ± 2 %\ngot:\n4 %"),
    ("3<!-- = '4 %' ± 2 -->", "shown:\n3\ngot:\n4 %"),
])
def test_a_false_page_fails(text, error):
    with pytest.raises(SybilFailure) as failure:
        execute(text)
    assert error in str(failure.value)


def test_an_error_is_raised_and_what_comes_after_it_is_skipped():
    first, *rest = document_of("```python\n1 / 0\n```\n\n5<!-- = 5 -->\n\n```python\n```\n").examples()
    with pytest.raises(ZeroDivisionError):
        first.evaluate()
    for example in rest:
        with pytest.raises(pytest.skip.Exception):
            example.evaluate()


def test_only_the_tutorials_are_collected_and_a_false_one_fails_the_run(tmp_path):
    """In a repository of its own, with files beside the tutorials that must not be touched."""
    for name in ("tests/tutorial_rules.py", "tutorials/__init__.py", "tutorials/conftest.py", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    tutorials = tmp_path / "tutorials"
    (tutorials / "01_true.md").write_text("```python\nimport os, torch\nprint(os.path.isdir('tutorials'), "
                                          "torch.get_num_threads())\n```\n\n```text\nTrue 1\n```\n")
    (tutorials / "02_false.md").write_text("```python\nprint(1)\n```\n\n```text\n2\n```\n\n3<!-- = 3 -->\n")
    (tutorials / "README.md").write_text("```python\n1 / 0\n```\n")
    (tutorials / "grid.py").write_text('"""\n>>> 1 / 0\n"""\n1 / 0\n')
    (tutorials / "assignments").mkdir()
    (tutorials / "assignments" / "test_stub.py").write_text("def test_stub():\n    raise NotImplementedError\n")
    both = "import pytest\nfor path in ('tutorials', 'tutorials/assignments'): print('exit', int(pytest.main([path])))"
    run = subprocess.run([sys.executable, "-c", both], cwd=tmp_path, capture_output=True, text=True)
    whole, by_path = run.stdout.split("exit 1\n")[:2]                            # both have a failure
    assert "1 failed, 2 passed" in whole and "shown:\n2\ngot:\n1" in whole, run.stdout
    assert "1 failed" in by_path and "NotImplementedError" in by_path, run.stdout
