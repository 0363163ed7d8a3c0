"""What a tutorial is made of, when two texts count as the same, and the rules that every tutorial keeps.

A rule takes a `Page` and returns complaints, one line each; none: the page keeps it. tutorials/README.md says in words
what they ask for, tests/test_tutorials.py applies them and shows that each of them can complain.
"""
import ast
import codeop
import importlib
import inspect
import re
import shlex
import textwrap
from collections.abc import Callable, Iterable, Iterator
from functools import cache, reduce
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
VALUE = re.compile(r"<!-- = ([^\n]+?)(?: ± (\d+(?:\.\d+)?))? -->")
PUBLISHED = re.compile(r"<!-- published: \S[^\n]* -->")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?: ?%)?")
DECIMAL = r"[-+]?\d+\.\d+"
FLOAT = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
SHOWN_NUMBER = re.compile(rf"( *)≈ ({FLOAT}) ± ({FLOAT})( *)|( *)≤ ({FLOAT})( *)|({DECIMAL})")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
QUOTE_LABEL = re.compile(r"^From \[`([\w/.]+)`\]\(\.\./([\w/.]+)\), `([\w.]+)`:$")
LANGUAGES = ("python", "text", "py", "bash")
QUOTED_LINES = 15
CODE_WIDTH = 95             # more than that scrolls sideways on a code host
WORDS = 1700


class Fence(NamedTuple):
    language: str
    source: str
    line: int               # of the opening ```, from 1
    start: int              # its place in the file, and where it ends
    end: int


class Value(NamedTuple):
    """A number in the prose with the comment behind it that says where the number comes from."""

    before: str             # the line up to the comment
    expression: str
    tolerance: str | None   # of the number in it, as in <!-- = EXPRESSION ± 2 -->
    start: int
    end: int

    def differs(self, value: str) -> str | None:
        """The text before the comment must end in the value, as a whole: 0.5 is not the 2.5 of 12.5."""
        number = re.search(rf"({FLOAT})(\D*)$", value) if self.tolerance else None
        stated = number and re.search(rf"{FLOAT}{re.escape(number[2])}$", self.before)
        length = len(stated[0]) if stated else len(value)
        shown, rest = self.before[-length:], self.before[:-length]
        if re.search(r"[\w.\-−]$|\d,$", rest):
            return f"the comment gives {value!r}, but the prose has more before it: {self.before[-length - 12:]!r}"
        if stated:
            shown = re.sub(FLOAT, lambda digits: f"≈ {digits[0]} ± {self.tolerance}", shown, count=1)
        return differs(shown, value)


class Page(NamedTuple):
    path: Path
    text: str

    @property
    def prose(self) -> str:
        """The text with its fences blanked out, line for line."""
        return FENCE.sub(lambda fence: "\n" * fence.group().count("\n"), self.text)

    def fences(self, *languages: str) -> list[Fence]:
        return [fence for fence in fences(self.text) if fence.language in (languages or LANGUAGES)]


def fences(text: str) -> list[Fence]:
    return [Fence(f[1].strip(), f[2], text.count("\n", 0, f.start()) + 1, f.start(), f.end())
            for f in FENCE.finditer(text)]


def python_fences(text: str) -> Iterator[tuple[Fence, Fence | None]]:
    """Each python fence, with the text fence that follows it directly, if one does."""
    found = fences(text)
    for fence, following in zip(found, [*found[1:], None]):
        if fence.language == "python":
            shows = following and following.language == "text" and not text[fence.end:following.start].strip()
            yield fence, following if shows else None


def values(text: str) -> Iterator[Value]:
    inside = [(fence.start, fence.end) for fence in fences(text)]
    for comment in VALUE.finditer(text):
        if not any(start <= comment.start() < end for start, end in inside):
            before = text[text.rfind("\n", 0, comment.start()) + 1:comment.start()]
            yield Value(before, comment[1], comment[2], comment.start(), comment.end())


def head_end(text: str) -> int:
    """Where the opening of a page ends: at its first section. 0 if it has none."""
    return max(text.find("\n## "), 0)


def differs(shown: str, printed: str) -> str | None:
    """None if the two are the same: words and integers exactly, decimals to one unit in the last digit shown.

    Where "≈ 0.97 ± 0.03" is shown, any number from 0.94 to 1.00 may be printed; where "≤ 1e-12" is shown, any whose
    absolute value is at most that. Spaces beside those two count as one.
    """
    shown, printed = (re.sub(r"[ \t]+$", "", text.strip("\n"), flags=re.MULTILINE) for text in (shown, printed))
    pattern, end = "", 0
    for number in SHOWN_NUMBER.finditer(shown):
        before, after = number[1] or number[5], number[4] or number[7]
        tolerant = (" +" if before else "") + f"({FLOAT})" + (" +" if after else "")
        pattern += re.escape(shown[end:number.start()]) + (f"({DECIMAL})" if number[8] else tolerant)
        end = number.end()
    found = re.fullmatch(pattern + re.escape(shown[end:]), printed)
    same = found and all(map(within, SHOWN_NUMBER.finditer(shown), found.groups()))
    return None if same else f"shown:\n{shown}\ngot:\n{printed}"


def within(shown: re.Match, printed: str) -> bool:
    """shown: a match of SHOWN_NUMBER."""
    if shown[2]:
        return abs(float(printed) - float(shown[2])) <= float(shown[3]) + 1e-9
    if shown[6]:
        return abs(float(printed)) <= float(shown[6])
    places = len(shown[8].split(".")[1])
    return places == len(printed.split(".")[1]) and abs(float(printed) - float(shown[8])) < 1.5 * 10.0 ** -places


def languages(page: Page) -> list[str]:
    """Only the four kinds of fences, closed and at the beginning of the line."""
    wrong = [f"line {fence.line}: a fence of language {fence.language!r}, expected one of {', '.join(LANGUAGES)}"
             for fence in fences(page.text) if fence.language not in LANGUAGES]
    wrong += [f"line {fence.line}: a fence that is not closed"
              for fence in page.fences() if "\n```" in f"\n{fence.source}"]
    return wrong + [f"line {number}: a fence that is indented, not closed or made of ~~~"
                    for number, line in enumerate(page.prose.split("\n"), start=1)
                    if re.match(r"\s*(>\s*)*(```|~~~)", line)]


def shown_output(page: Page) -> list[str]:
    """A text fence stands directly after the python fence that prints it."""
    paired = {shown for _, shown in python_fences(page.text)}
    return [f"line {fence.line}: a text fence with no python fence directly before it"
            for fence in page.fences("text") if fence not in paired]


def sourced_numbers(page: Page) -> list[str]:
    """A number in the prose with a decimal point or a % comes from code, or is labelled as published."""
    wrong = []
    for number, line in enumerate(page.prose.split("\n"), start=1):
        if PUBLISHED.search(line):
            continue
        line = COMMENT.sub("", VALUE.sub("\0", line))
        line = re.sub(r"`[^`]*`|\$[^$]+\$", "", LINK.sub("", line))
        wrong += [f"line {number}: {found[0]!r} has no comment <!-- = ... --> behind it"
                  for found in NUMBER.finditer(line)
                  if re.search("[.%]", found[0]) and line[found.end():found.end() + 1] != "\0"]
    return wrong


def comments(page: Page) -> list[str]:
    """No comment that looks like one of the two kinds and is not: it would be checked by nobody."""
    return [f"line {page.prose.count(chr(10), 0, c.start()) + 1}: {c.group()!r} is neither <!-- = EXPRESSION --> nor "
            "<!-- published: SOURCE -->"
            for c in COMMENT.finditer(page.prose) if not VALUE.fullmatch(c.group()) and not
            PUBLISHED.fullmatch(c.group())]


def quotes(page: Page) -> list[str]:
    """Quoted source: labelled, at most 15 lines, verbatim from that symbol of that file."""
    wrong = []
    for fence in page.fences("py"):
        label = QUOTE_LABEL.match(page.text[:fence.start].rstrip("\n").rsplit("\n", 1)[-1])
        quoted = textwrap.dedent(fence.source).rstrip("\n").split("\n")
        if len(quoted) > QUOTED_LINES:
            wrong.append(f"line {fence.line}: quotes {len(quoted)} lines, at most {QUOTED_LINES}")
        if label is None or label[1] != label[2]:
            wrong.append(f"line {fence.line}: no label 'From [`FILE`](../FILE), `SYMBOL`:' before the quoted source")
            continue
        lines = symbol_lines(label[1], label[3])
        windows = (lines[k:k + len(quoted)] for k in range(len(lines)))
        if not any(textwrap.dedent("\n".join(window)).split("\n") == quoted for window in windows):
            wrong.append(f"line {fence.line}: these lines do not stand like that in {label[1]}, {label[3]}")
    return wrong


def symbol_lines(file: str, symbol: str) -> list[str]:
    """The lines of a function, class or method; none if the file does not define it."""
    try:
        found = reduce(getattr, symbol.split("."), module_of(file))
    except (ImportError, AttributeError):
        return []
    found = getattr(found, "fget", found)                       # a property's function
    return inspect.getsource(found).split("\n") if Path(inspect.getsourcefile(found)) == ROOT / file else []


def module_of(file: str) -> ModuleType:
    return importlib.import_module(file.removesuffix(".py").replace("/", "."))


@cache
def package_names() -> frozenset[str]:
    """What the package's files define at their top: functions and classes."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "mpvg_minimal").glob("*.py"))
    return frozenset(node.name for tree in trees for node in tree.body
                     if isinstance(node, ast.FunctionDef | ast.ClassDef))


def nothing_redefined(page: Page) -> list[str]:
    """The tutorials import the package's functions and classes and never write their own of that name."""
    return [f"line {fence.line + node.lineno}: {node.name} is the package's: import it"
            for fence in page.fences("python") for node in ast.walk(ast.parse(fence.source))
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in package_names()]


def commands(page: Page) -> list[str]:
    """A bash fence has commands that run Python: with a script or module that exists, and flags that it has."""
    return [f"line {fence.line}: {problem}" for fence in page.fences("bash")
            for part in re.split(r"\n|&&|\|\||;|\|", fence.source.replace("\\\n", " "))
            for problem in command(shlex.split(part, comments=True))]


def command(words: list[str]) -> list[str]:
    while words and re.fullmatch(r"\w+=\S*", words[0]):         # VARIABLE=value before the command
        words = words[1:]
    if not words:
        return []
    program, words = words[0], words[1:]
    if program not in ("python", "torchrun"):
        return [f"{program} is neither python nor torchrun"]
    if program == "torchrun":                                   # its own flags come before the script
        words = words[next((k for k, word in enumerate(words) if word.endswith(".py")), len(words)):]
    as_module = words[0] == "-m"
    name, *flags = words[as_module:]
    paths = (f"{name.replace('.', '/')}.py", f"{name.replace('.', '/')}/__main__.py") if as_module else (name,)
    file = next((path for path in paths if (ROOT / path).is_file()), None)
    if file is None:
        return [f"{name} does not exist"]
    known, wrong = flags_of(file), []
    for word, following in zip(flags, [*flags[1:], ""]):
        flag, _, given = word.partition("=")
        if not re.match(r"--?[a-zA-Z]", word):
            continue
        if flag not in known:
            wrong.append(f"{name} has no flag {flag}")
        elif known[flag] and (given or following) not in map(str, known[flag]):
            wrong.append(f"{name} {flag} takes one of {', '.join(map(str, known[flag]))}, not {given or following!r}")
    return wrong


@cache
def flags_of(file: str) -> dict[str, Iterable | None]:
    """A command's flags, each with the values that it may take; None: any."""
    from runs import parsers_of  # `pytest tutorials` can do without

    return {flag: action.choices for parser in parsers_of(module_of(file)) for action in parser._actions
            for flag in action.option_strings}


def links(page: Page) -> list[str]:
    """Relative links lead to files and headings that exist; images have a description."""
    wrong = []
    for image, words, target in LINK.findall(re.sub(r"`[^`\n]*`", "", page.prose)):
        if re.match(r"https?://", target):
            continue
        file, _, heading = target.partition("#")
        path = page.path.parent / file if file else page.path
        if file and not path.exists():
            wrong.append(f"{target} does not exist")
        elif heading and heading not in headings(page.text if path == page.path else path.read_text()):
            wrong.append(f"{target}: no such heading")
        if image and not words.strip():
            wrong.append(f"{target}: an image without a description")
    return wrong


def headings(text: str) -> set[str]:
    """The anchors that a code host makes of the headings."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", COMMENT.sub("", title).lower().strip()).replace(" ", "-") for title in titles}


def written_figures(page: Page) -> list[str]:
    """A tutorial's .png is written by one of the tutorial's own python fences."""
    code = "".join(fence.source for fence in page.fences("python"))
    return [f"{target}: no python fence here writes tutorials/{target}" for image, _, target in LINK.findall(page.prose)
            if image and target.endswith(".png") and f"tutorials/{target}" not in code]


def opening(page: Page) -> list[str]:
    """Title with the tutorial's number; one question, with a picture or a number that has a source, before anything
    else; then what you will learn, what to read first, minutes on a laptop."""
    number = int(page.path.name[:2])
    head = page.prose[:head_end(page.prose)]
    expected = {f"# {number}. TITLE": rf"\A# {number}\. \S",
                "**QUESTION?** below the title": r"\A# .+\n\n\*\*[^*]+\?\*\*(\s|$)",
                "**You will learn** ...": r"^\*\*You will learn\*\* \S",
                "**Read first:** ...": r"^\*\*Read first:\*\* \S",
                "**Time on a laptop:** N minutes ...": r"^\*\*Time on a laptop:\*\* \d+ minutes"}
    wrong = [f"the opening has no line {words}" for words, pattern in expected.items()
             if not re.search(pattern, head, re.MULTILINE)]
    before = head.partition("**You will learn**")[0]
    if not (VALUE.search(before) or PUBLISHED.search(before) or re.search(r"!\[", before)):
        wrong.append("the opening has no picture and no number with a source before **You will learn**")
    return wrong


def tolerances(page: Page) -> list[str]:
    """A tolerance must leave something to check: at most half of its number; "≤" is for rounding errors alone."""
    stated = [(fence.line, m[2], m[3], m[6]) for fence in page.fences("text")
              for m in SHOWN_NUMBER.finditer(fence.source)]
    for value in values(page.text):
        number = re.search(rf"({FLOAT})\D*$", value.before)
        stated.append((page.text.count("\n", 0, value.start) + 1, number and number[1], value.tolerance, None))
    wrong = [f"line {line}: ± {allowed} is more than half of {number}" for line, number, allowed, _ in stated
             if number and allowed and float(allowed) > abs(float(number)) / 2]
    return wrong + [f"line {line}: ≤ {bound} is no rounding error" for line, *_, bound in stated
                    if bound and float(bound) > 1e-3]


def verdicts(page: Page) -> list[str]:
    """What is measured is printed as a number. "above 90 %: True" hides it; what must hold exactly is an assert."""
    return [f"line {fence.line}: prints {found[0].strip()!r}: print the number, or assert"
            for fence in page.fences("text") for found in re.finditer(r"^.*: +(True|False)\b", fence.source, re.M)]


def folded_plumbing(page: Page) -> list[str]:
    """Code that draws a figure is folded away: it teaches nothing of the method."""
    return [f"line {fence.line}: draws a figure in the open: put it into <details>"
            for fence in page.fences("python") if "plt." in fence.source
            and page.text.count("<details>", 0, fence.start) == page.text.count("</details>", 0, fence.start)]


def pasteable(page: Page) -> list[str]:
    """Every python fence can be pasted into the plain REPL of Python 3.11: there a blank line ends a function, and only
    a blank line does."""
    wrong = []
    for fence in page.fences("python"):
        typed = []
        for number, line in enumerate(fence.source.split("\n"), start=fence.line + 1):     # the last line is empty
            typed.append(line)
            try:
                if codeop.compile_command("\n".join(typed), symbol="single") is not None:
                    typed = []
            except SyntaxError as error:
                wrong.append(f"line {number}: pasted into a REPL: {error.msg}")
                break
    return wrong


def narrow(page: Page) -> list[str]:
    """No line of code or output is wider than a code host shows; quoted source is as wide as it is."""
    return [f"line {fence.line + number}: {len(line)} characters, at most {CODE_WIDTH}"
            for fence in page.fences("python", "text", "bash")
            for number, line in enumerate(fence.source.split("\n"), start=1) if len(line) > CODE_WIDTH]


def short(page: Page) -> list[str]:
    """A page is read in one sitting."""
    words = len(page.text.split())
    return [f"{words} words, at most {WORDS}"] if words > WORDS else []


def ending(page: Page, last: int = 9) -> list[str]:
    """A section of exactly three questions, each with its answer folded away; the last line links to the next one."""
    _, found, section = page.prose.rpartition("\n## Questions\n")
    if not found:
        return ["no section ## Questions"]
    wrong = []
    asked = [int(number) for number in re.findall(r"^(\d+)\. \S", section, re.MULTILINE)]
    if asked != [1, 2, 3]:
        wrong.append(f"questions are numbered {asked}, expected [1, 2, 3]")
    answers = re.findall(r"^<details><summary>Answer</summary>\n\n\S.*?\n\n</details>$", section,
                         re.MULTILINE | re.DOTALL)
    if len(answers) != 3 or section.count("<details>") != 3:
        wrong.append(f"{len(answers)} answers of the form <details><summary>Answer</summary>, blank line, text, blank "
                     "line, </details>, expected 3")
    number = int(page.path.name[:2])
    following = rf"{number + 1:02}_\w+\.md" if number < last else r"README\.md"
    end = page.text.rstrip().rsplit("\n", 1)[-1]
    if not re.fullmatch(rf"Next: \[[^\]]+\]\({following}\)\.?", end):
        wrong.append(f"the last line is {end!r}, expected 'Next: [TITLE]({following})'")
    return wrong


RULES: tuple[Callable[[Page], list[str]], ...] = (
    languages, shown_output, sourced_numbers, comments, quotes, nothing_redefined, commands, written_figures, opening,
    ending, tolerances, verdicts, folded_plumbing, pasteable, narrow, short)


def orphans(pages: list[Page], figures: list[Path]) -> list[str]:
    """Figures that no page shows."""
    shown = {(page.path.parent / target.partition("#")[0]).resolve()
             for page in pages for _, _, target in LINK.findall(page.prose)}
    return [f"{figure.name} is shown by no page" for figure in figures if figure.resolve() not in shown]
