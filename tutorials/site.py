"""Pages to read: each tutorial beside the files that it reads, each file of the method beside its own prose.

    pip install .[site] && python tutorials/site.py         then open site/index.html; no server, no network

site/ mirrors the repository: A.md becomes A.html (site_template.html), A.py becomes A.py.html, where every symbol is an
anchor. Any other file that a page links to is copied.
"""
import ast
import re
import shutil
import sys
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

try:
    from jinja2 import Template
    from markdown_it import MarkdownIt
    from mdit_py_plugins.anchors import anchors_plugin
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
except ImportError as error:
    print(f"tutorials/site.py needs {error.name}, which is not installed: pip install .[site]", file=sys.stderr)
    raise SystemExit(2)

ROOT = Path(__file__).parents[1]
INDEX = "tutorials/README.md"
METHOD = [f"mpvg_minimal/{name}.py" for name in ("patch_embed", "layerwise_pe", "block", "balance", "vit", "fold")]


def color(code: str, language: str, *_) -> str:
    """HTML of code; `language` and more as markdown-it calls it for a fence."""
    return highlight(code, get_lexer_by_name(language or "text", stripnl=False), HtmlFormatter(nowrap=True))


def address(path: str) -> str:
    return "index.html" if path == INDEX else re.sub(r"\.md$", ".html", re.sub(r"\.py$", ".py.html", path))


def symbols(path: str) -> dict[str, ast.AST]:
    """Name -> syntax tree, in order: the file itself, functions, classes, methods ("Block.forward")."""
    found = {path: ast.parse((ROOT / path).read_text())}
    for node in found[path].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
            found |= {f"{node.name}.{each.name}": each for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


def docstrings(path: str) -> str:
    """Markdown: the docstrings of a file, each below its symbol's name; "argument: ..." becomes a list."""
    found = {name: ast.get_docstring(node) for name, node in symbols(path).items()}
    return "\n\n".join(f"## `{name}`\n\n" + re.sub(r"^(?=\w+: |ValueError)", "- ", text, flags=re.MULTILINE)
                       for name, text in found.items() if text)


def code_page(path: str) -> str:
    """The lines of a file, numbered. A symbol is an element around its lines, so a link to it marks them all."""
    lines = [f'<span class="number">{number:4} </span>{line}\n' for number, line in
             enumerate(color((ROOT / path).read_text(), "python").splitlines(), start=1)]
    for name, node in reversed([*symbols(path).items()][1:]):
        first = min(part.lineno for part in [node, *getattr(node, "decorator_list", [])])
        lines[first - 1] = f'<span id="{name}">{lines[first - 1]}'
        lines[node.end_lineno - 1] += "</span>"
    return "".join(lines)


class Site:
    def __init__(self):
        tutorials, package = (sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))
                              for pattern in ("tutorials/[0-9][0-9]_*.md", "mpvg_minimal/**/*.py"))
        self.places = [(path, symbol) for path in package for symbol in symbols(path)]
        self.prose = {path.replace(".py", ".md"): docstrings(path) for path in METHOD}
        self.framed = {page: Path(page).stem for page in self.prose} | {page: page[11] for page in tutorials}
        self.nav = {INDEX: "MPVG"} | self.framed
        self.pages = [*self.nav]                                    # grows by what the pages link to

    def build(self, out: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)
        template = Template((ROOT / "tutorials/site_template.html").read_text())
        light, dark = (HtmlFormatter(style=style).get_style_defs("pre") for style in ("friendly", "github-dark"))
        for page in self.pages:
            target = out / address(page)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix != ".html":
                shutil.copy(ROOT / page, target)
                continue
            parts = {"code": code_page(page)} if page.endswith(".py") else self.prose_page(page)
            target.write_text(template.render(title=page, site=self, light=light, dark=dark, **parts))

    def href(self, url: str, page: str) -> str:
        """A link of a page as the site has it. The file that it leads to becomes a page too, or is copied."""
        file, mark, anchor = url.partition("#")
        if not file or re.match("[a-z]+:", file):
            return url
        path = normpath(join("/", dirname(page), file))[1:]
        if path in METHOD and page not in self.framed:
            path = path.replace(".py", ".md")
        if path not in self.pages and (ROOT / path).is_file():      # a test finds dead links
            self.pages.append(path)
        return relpath(address(path), dirname(address(page)) or ".") + mark + anchor

    def find(self, name: str, reads) -> tuple[str, str] | None:
        """(file, symbol) that prose calls `name`. None if the package has no such thing, or several."""
        whole = [place for place in self.places if f"/{place[1]}".endswith(f"/{name}")]
        read = [place for place in self.places if place[0] in reads]        # there, a method's last name is enough
        found = [place for place in whole if place in read] or whole or [p for p in read if p[1].endswith(f".{name}")]
        return found[0] if len(found) == 1 else None

    def prose_page(self, page: str) -> dict:
        """A Markdown file as HTML, and the files in its frame. A tutorial has one, and a method file."""
        text = self.prose.get(page) or (ROOT / page).read_text()
        markdown = MarkdownIt("commonmark", {"highlight": color}).enable("table").use(anchors_plugin, max_level=6)
        markdown.normalizeLink = lambda url: self.href(url, page)
        html = markdown.render(text)
        if page not in self.framed:
            return {"prose": html}
        imports = re.findall(r"\w+", " ".join(re.findall(r"^from mpvg_minimal.*", text, re.MULTILINE)))
        names = [page.replace(".md", ".py"), *re.findall(r"\]\(\.\./(\S+\.py)\)", text),
                 *(name for word in imports for name in (f"{word}.py", word))]
        reads = {place[0]: None for place in [self.find(name, ()) for name in names] if place}

        def link(code: re.Match) -> str:                            # inline code, perhaps in a link to its file
            if not (place := self.find(code[2].split("(")[0], reads)):
                return code[0]
            reads[place[0]] = None
            href = self.href("/{}#{}".format(*place), page)
            return f'<a href="{href}"><code>{code[2]}</code>' + ("" if code[1] else "</a>")

        html = re.sub(r"(<a [^>]*>)?<code>([^<]*)</code>", link, html)
        return {"prose": html, "files": reads}


if __name__ == "__main__":
    Site().build(ROOT / "site")
    print("wrote site/index.html")
