"""Pages to read: each tutorial beside the files that it reads, each file of the method beside its own prose.

    pip install .[site] && python tutorials/site.py         then open site/index.html; no server, no network

site/ mirrors the repository: A.md and A.py become A.html, every other file that a page links to is copied. Symbols are
found by parsing the package, so a file that moves asks for no change here. Looks and scrolling: site_template.html.
"""
import ast
import re
import shutil
import sys
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

try:
    from jinja2 import Environment, FileSystemLoader
    from markdown_it import MarkdownIt
    from markupsafe import Markup
    from mdit_py_plugins.anchors import anchors_plugin
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
except ImportError as error:
    print(f"tutorials/site.py needs {error.name}, which is not installed: pip install .[site]", file=sys.stderr)
    raise SystemExit(2)

ROOT = Path(__file__).parents[1]
METHOD = [f"mpvg_minimal/{name}.py" for name in ("patch_embed", "layerwise_pe", "block", "balance", "vit", "fold")]
ADDRESS = {"tutorials/README.md": "index.html"}                             # of the other pages: .html for .md and .py
PROSE = MarkdownIt("commonmark").enable("table").use(anchors_plugin, max_level=6, slug_func=lambda heading: re.sub(
    r"[^\w\- ]", "", heading.lower().strip()).replace(" ", "-"))            # a heading's anchor, as code hosts make it
STYLES = {"light": "friendly", "dark": "github-dark"}                       # Pygments'
DOCSTRING = MarkdownIt("commonmark").disable("emphasis")                    # p_l is no emphasis, *this* is: see below
DOCSTRING_RULES = [(r"(?<!\S)\*(\w+)\*(?!\w)", r"<em>\1</em>"),              # also a file, an argument, a new paragraph
    (r"^ .*|(?<![`\w/])(\w+\.py)\b", lambda found: f"`{found[1]}`" if found[1] else found[0]),
    (r"^([a-z_]+): ", r"\n- `\1`: "), (r"(^|(?<=\. ))(?=(Sources?|Shapes): |ValueError)", r"\n\n")]


def color(code: str, language: str) -> Markup:
    return Markup(highlight(code, get_lexer_by_name(language or "text", stripnl=False), HtmlFormatter(nowrap=True)))


def symbols(body: list[ast.stmt], owner: str = ""):
    """(name, syntax tree) of functions, classes, methods, constants, fields and attributes (`self.NAME = ...`)."""
    for node in body:
        if hasattr(node, "name"):
            yield owner + node.name, node
        for part in ast.walk(node) if owner or not hasattr(node, "name") else ():
            name = getattr(part, "attr" if hasattr(node, "name") else "id", None)
            if name and isinstance(part.ctx, ast.Store):
                yield owner + name, part
        if isinstance(node, ast.ClassDef):
            yield from symbols(node.body, f"{node.name}.")


class Source:
    """A Python file. `symbols`: name ("Block.forward") -> syntax tree, first line, last line."""

    def __init__(self, path: str):
        text = (ROOT / path).read_text().rstrip("\n")
        self.tree = ast.parse(text)
        self.symbols = {name: (node, min(part.lineno for part in [node, *getattr(node, "decorator_list", [])]),
                               node.end_lineno) for name, node in reversed([*symbols(self.tree.body)])}
        self.lines = [(n, line, [(name, last) for name, (_, first, last) in self.symbols.items() if first == n])
                      for n, line in enumerate(color(text, "python").splitlines(), start=1)]


class Site:
    """All pages. `mentions`: place ("file" or "file:Symbol") -> the tutorials' sections that name it."""

    def __init__(self, out: Path):
        found = {p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("mpvg_minimal/**/*.py"), *ROOT.glob("*.py")]}
        self.sources = {path: Source(path) for path in [*METHOD, *sorted(found - {*METHOD})]}
        self.places = [(path, symbol) for path, source in self.sources.items() for symbol in source.symbols]
        self.tutorials = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("tutorials/[0-9][0-9]_*.md"))
        self.out, self.pages, self.mentions = out, [*self.tutorials, *ADDRESS, *METHOD], {}

    def build(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        loader = FileSystemLoader(ROOT / "tutorials")
        template = Environment(loader=loader, autoescape=True).get_template("site_template.html")
        styles = {name: HtmlFormatter(style=style).get_style_defs(".code") for name, style in STYLES.items()}
        names = dict.fromkeys(ADDRESS, "MPVG") | {p: Path(p).name for p in METHOD} | {p: p[11] for p in self.tutorials}
        for page in self.pages:                                 # the list grows by what the pages link to
            target = self.out / self.href(page, "")
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix == ".html":
                parts = self.code_page(page) if page.endswith(".py") else self.markdown_page(page)
                nav = [(self.href(path, page), name, path == page) for path, name in names.items()]
                target.write_text(template.render(title=page, nav=nav, **parts, **styles))
            else:
                shutil.copy(ROOT / page, target)

    def href(self, path: str, page: str) -> str:
        """The address of a file of the repository as seen from a page; the file becomes a page too, or is copied."""
        path += next((name for name in ("/README.md", "/__init__.py") if (ROOT / (path + name)).is_file()), "")
        self.pages += [path] if path not in self.pages and (ROOT / path).is_file() else []   # a test names dead links
        path, page = (ADDRESS.get(p) or re.sub(r"\.(md|py)$", ".html", p) for p in (path, page))
        return relpath(path, dirname(page) or ".")

    def find(self, name: str, reads, own=()) -> str | None:
        """The place that prose calls `name`; None if the package has no such thing, or several.

        A symbol by its whole name, or with its module's before it; a method or an attribute by its last name alone, if
        it is in one of the files that the page reads. `own`: the names that a tutorial gives to things of its own.
        """
        name = name.split("(")[0]
        whole = [place for place in self.places if name in (place[1], f"{Path(place[0]).stem}.{place[1]}")]
        part = [place for place in self.places if place[0] in reads and place[1].endswith(f".{name}")]
        files = [(path,) for path in self.sources if name.endswith(".py") and f"/{path}".endswith(f"/{name}")]
        found = [place for place in files or whole if place[0] in reads] or files or whole or part
        return ":".join(found[0]) if len(found) == 1 and name.split(".")[0] not in own else None

    def link(self, tokens: list, page: str, reads=(), own=()) -> list[str]:
        """Lead links to pages, in tutorials to the pane beside them; make links of code that names places: these."""
        places, inside = [], 0
        for token, after in zip(tokens, [*tokens[1:], None]):
            key, place = {"link_open": "href", "image": "src"}.get(token.type), None
            inside += token.nesting if token.type.startswith("link") else 0
            if key and not re.match("[a-z]+:|#", token.attrs[key]):
                file, mark, heading = token.attrs[key].partition("#")
                path = normpath(join(dirname(page), file))
                if path in self.sources:
                    symbol = self.find(after.content, [path]) or ""
                    place = symbol if symbol.startswith(f"{path}:") else path
                token.attrs[key] = self.lead(place, page) if place else self.href(path, page) + mark + heading
            elif token.type == "code_inline" and reads and not inside:
                place = self.find(token.content, reads, own)
                if place:
                    code = Markup('<a href="{}"><code>{}</code></a>').format(self.lead(place, page), token.content)
                    token.type, token.content = "html_inline", code
            places += [place] if place else []
        return places

    def lead(self, place: str, page: str) -> str:
        path, _, symbol = place.partition(":")
        return f"#{place}" if page in self.tutorials else f"{self.href(path, page)}#{symbol}".rstrip("#")

    def markdown_page(self, page: str) -> dict:
        """A Markdown file. A tutorial has `files` beside it, those that it links to, imports or names."""
        text, heading, reads, names, own = (ROOT / page).read_text(), None, {}, {}, set()
        if page in ADDRESS:
            title, opening, rest = text.split("\n\n", 2)
            first = {path: ast.get_docstring(self.sources[path].tree).splitlines()[0] for path in METHOD}
            method = "\n".join(f"1. [`{Path(path).name}`](../{path}): {line}" for path, line in first.items())
            text = "\n\n".join([title, opening, "The method, each file beside its prose:", method, rest])
        tokens = PROSE.parse(text)
        if page in self.tutorials:
            reads = {path: None for path in re.findall(r"\]\(\.\./(\S+\.py)\)", text) if path in self.sources}
            for node in ast.walk(ast.parse("".join(token.content for token in tokens if token.info == "python"))):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    own.add(node.id)
                elif isinstance(node, ast.ImportFrom) and node.module.startswith("mpvg_minimal"):
                    base = node.module.replace(".", "/")
                    for alias in node.names:
                        names[alias.asname or alias.name] = (self.find(f"{base}/{alias.name}.py", [])
                                                             or self.find(alias.name, [f"{base}.py"]))
            reads |= {place.split(":")[0]: None for place in names.values() if place}
        for token, after in zip(tokens, [*tokens[1:], None]):
            if token.type == "heading_open":
                heading = token.attrs["id"], after.content.lstrip("0123456789. ")
            elif token.type == "fence":
                code = re.sub(r'(?<!<span class="o">\.</span>)<span class="n">(\w+)</span>', lambda found: (
                    f'<a href="#{names[found[1]]}">{found[0]}</a>' if names.get(found[1]) else found[0]),
                    color(token.content, token.info))
                token.type, token.content = "html_block", f'<pre class="code {token.info}" tabindex="0">{code}</pre>'
            places = self.link(token.children or [], page, reads, own - {*names})
            for place in places if page in self.tutorials else ():
                reads.setdefault(place.split(":")[0])
                self.mentions.setdefault(place, {})[page, *heading] = None
        files = [(path, path.removeprefix("mpvg_minimal/"), self.href(path, page), self.sources[path].lines)
                 for path in reads]
        return dict(prose=Markup(PROSE.renderer.render(tokens, PROSE.options, {})), files=files)

    def code_page(self, page: str) -> dict:
        """A whole file in `rows`: a part, its docstring and the tutorials' sections that name it."""
        source, rows = self.sources.get(page) or Source(page), []
        parts = [(name, node, first) for name, (node, first, _) in source.symbols.items() if hasattr(node, "body")]
        parts = [("", source.tree, 1), *sorted(parts, key=lambda part: part[2]), ("", None, len(source.lines) + 1)]
        for (name, node, first), (_, _, following) in zip(parts, parts[1:]):
            text, doc = ast.get_docstring(node) or "", node.body[0]
            for pattern, markdown in DOCSTRING_RULES:
                text = re.sub(pattern, markdown, text, flags=re.MULTILINE)
            tokens = DOCSTRING.parse(text)
            for token in tokens:
                self.link(token.children or [], page, [page])
            seen = [(f"{self.href(tutorial, page)}#{anchor}", f"{tutorial[11]}: {heading}")
                    for tutorial, anchor, heading in self.mentions.get(f"{page}:{name}".strip(":"), ())]
            rows.append((name or page, Markup(DOCSTRING.renderer.render(tokens, DOCSTRING.options, {})), seen,
                         source.lines[first - 1:following - 1], range(doc.lineno, doc.end_lineno + 1) if text else ()))
        return dict(rows=rows)


if __name__ == "__main__":
    Site(ROOT / "site").build()
    print("wrote site/index.html")
