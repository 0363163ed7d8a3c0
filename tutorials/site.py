"""Pages to read: each tutorial beside the files that it reads, each file of the method beside its own prose.

    pip install .[site] && python tutorials/site.py         then open site/index.html; no server, no network

site/ mirrors the repository: A.md and A.py become A.html, every other file that a page links to is copied. Symbols are
found by parsing the package, so a file that moves asks for no change here. Looks and scrolling: site_template.html.
"""
import ast
import re
import shutil
import sys
from html import escape
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from string import Template

try:
    from markdown_it import MarkdownIt
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
DOCSTRING = MarkdownIt("commonmark", {"html": False}).disable("emphasis")   # p_l and 3 * N are no emphasis


def color(code: str, language: str) -> str:
    return highlight(code, get_lexer_by_name(language or "text", stripnl=False), HtmlFormatter(nowrap=True))


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
        self.tree, self.lines = ast.parse(text), color(text, "python").split("\n")
        self.symbols = {name: (node, min(n.lineno for n in [node, *getattr(node, "decorator_list", [])]), node.end_lineno)
                        for name, node in reversed([*symbols(self.tree.body)])}

    def html(self, prefix: str, first: int, last: int, doc: range = range(0)) -> str:
        """The lines in color, each symbol with the anchor prefix + name; the lines in `doc` are a docstring."""
        anchors = {n: "".join(f'<a id="{prefix}{name}" data-last="{end}"></a>' for name, (_, start, end)
                              in self.symbols.items() if start == n) for n in range(first, last + 1)}
        return '<pre class="code" tabindex="0">' + "".join(
            f'<span class="line{" doc" * (n in doc)}" data-n="{n}">{anchor}{self.lines[n - 1]}\n</span>'
            for n, anchor in anchors.items()) + "</pre>"


class Site:
    """All pages. `mentions`: place ("file" or "file:Symbol") -> the tutorials' sections that name it."""

    def __init__(self, out: Path):
        found = {p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("mpvg_minimal/**/*.py"), *ROOT.glob("*.py")]}
        self.sources = {path: Source(path) for path in [*METHOD, *sorted(found - {*METHOD})]}
        self.tutorials = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("tutorials/[0-9][0-9]_*.md"))
        self.out, self.pages, self.mentions = out, [*self.tutorials, *ADDRESS, *METHOD], {}

    def build(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        template = Template((ROOT / "tutorials/site_template.html").read_text())
        light, dark = (HtmlFormatter(style=name).get_style_defs(".code") for name in ("friendly", "github-dark"))
        shown = dict.fromkeys(ADDRESS, "MPVG") | {p: Path(p).name for p in METHOD} | {p: p[11] for p in self.tutorials}
        for page in self.pages:                                 # the list grows by what the pages link to
            target = self.out / self.href(page, "")
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix != ".html":
                shutil.copy(ROOT / page, target)
                continue
            body = self.code_page(page) if page.endswith(".py") else self.markdown_page(page)
            nav = " ".join(f'<a href="{self.href(p, page)}"{" aria-current=page" * (p == page)}>{name}</a>'
                           for p, name in shown.items())
            target.write_text(template.substitute(title=page, nav=nav, body=body, light=light, dark=dark))

    def href(self, path: str, page: str) -> str:
        """The address of a file of the repository as seen from a page; the file becomes a page too, or is copied."""
        path += "/README.md" if (ROOT / path).is_dir() else ""
        self.pages += [path] if path not in self.pages else []
        path, page = (ADDRESS.get(p) or re.sub(r"\.(md|py)$", ".html", p) for p in (path, page))
        return relpath(path, dirname(page) or ".")

    def find(self, name: str, reads, own=()) -> str | None:
        """The place that prose calls `name`; None if the package has no such thing, or several.

        A symbol by its whole name, or with its module's before it; a method or an attribute by its last name alone, if
        it is in one of the files that the page reads. `own`: the names that a tutorial gives to things of its own.
        """
        name = name.split("(")[0]
        places = [(path, symbol) for path, source in self.sources.items() for symbol in source.symbols]
        whole = [place for place in places if name in (place[1], f"{Path(place[0]).stem}.{place[1]}")]
        near = [place for place in whole if place[0] in reads]
        part = [place for place in places if place[0] in reads and place[1].endswith(f".{name}")]
        files = [(path,) for path in self.sources if name.endswith(".py") and f"/{path}".endswith(f"/{name}")]
        found = files or near or whole or part
        return ":".join(found[0]) if len(found) == 1 and name.split(".")[0] not in own else None

    def markdown_page(self, page: str) -> str:
        """A tutorial gets a pane with the files that it links to, imports or names; these links lead there."""
        text, heading, tutorial = (ROOT / page).read_text(), None, page in self.tutorials
        if page in ADDRESS:
            title, opening, rest = text.split("\n\n", 2)
            method = "\n".join(f"1. [`{Path(p).name}`](../{p}): {ast.get_docstring(self.sources[p].tree).splitlines()[0]}"
                               for p in METHOD)
            text = f"{title}\n\n{opening}\n\nThe method, each file beside its prose:\n\n{method}\n\n{rest}"
        tokens, names, own = PROSE.parse(text), {}, set()
        reads = {p: None for p in re.findall(r"\]\(\.\./(\S+\.py)\)", text) if tutorial and p in self.sources}
        code = "".join(token.content for token in tokens if token.info == "python") if tutorial else ""
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            if isinstance(node, ast.ImportFrom) and node.module.startswith("mpvg_minimal"):
                base = node.module.replace(".", "/")
                names |= {alias.name: self.find(alias.name, [f"{base}.py"]) or self.find(f"{base}/{alias.name}.py", [])
                          for alias in node.names}
        reads |= {place.split(":")[0]: None for place in names.values() if place}
        for token, after in zip(tokens, [*tokens[1:], None]):
            if token.type == "heading_open":
                heading = token.attrs["id"], after.content
            elif token.type == "fence":
                code = re.sub(r'(?<!<span class="o">\.</span>)<span class="n">(\w+)</span>', lambda found: (
                    f'<a href="#{names[found[1]]}">{found[0]}</a>' if names.get(found[1]) else found[0]),
                    color(token.content, token.info))
                token.type, token.content = "html_block", f'<pre class="code {token.info}" tabindex="0">{code}</pre>'
            for place in self.link(token.children or [], page, reads if tutorial else None, own - {*names}):
                reads[place.split(":")[0]] = None
                self.mentions.setdefault(place, {})[page, *heading] = None
        return f"<article>{PROSE.renderer.render(tokens, PROSE.options, {})}</article>" + self.pane(reads, page)

    def link(self, tokens: list, page: str, reads: dict | None, own: set[str]) -> list[str]:
        """Make the links of a line of Markdown lead to pages or, if the page `reads` files, into its pane: the places named.

        Inline code that names a symbol or a file becomes a link, too.
        """
        named = []
        for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None]):
            place, linked = None, before is not None and before.type == "link_open"
            for key in {"href", "src"} & {*token.attrs}:
                file, mark, heading = token.attrs[key].partition("#")
                path = normpath(join(dirname(page), file))
                if path in (reads or ()):
                    inside = self.find(after.content, [path]) or ""
                    place = inside if inside.startswith(f"{path}:") else path
                    token.attrs[key] = f"#{place}"
                elif file and not re.match("[a-z]+:", file):
                    token.attrs[key] = self.href(path, page) + mark + heading
            if token.type == "code_inline" and not linked and reads is not None:
                place = self.find(token.content, reads, own)
                if place:
                    token.type, token.content = "html_inline", f'<a href="#{place}"><code>{escape(token.content)}</code></a>'
            named += [place] if place else []
        return named

    def pane(self, reads: dict[str, None], page: str) -> str:
        tabs = " ".join(f'<a href="#{path}">{Path(path).name}</a>' for path in reads)
        files = "".join(f'<section id="{p}"><h2><a href="#{p}">{p}</a> <a href="{self.href(p, page)}">with its prose</a></h2>'
                        f'{self.sources[p].html(f"{p}:", 1, len(self.sources[p].lines))}</section>' for p in reads)
        return reads and (f'<details class="pane" open><summary>Code: <span></span></summary><div><nav aria-label="Files">{tabs}'
                f'<label><input type="checkbox" checked> follow the text</label></nav>{files}</div></details>') or ""

    def code_page(self, page: str) -> str:
        """A whole file in parts, each beside its docstring and the sections of the tutorials that name it."""
        source, rows = self.sources.get(page) or Source(page), ""
        parts = [(name, node, first) for name, (node, first, _) in source.symbols.items() if hasattr(node, "body")]
        parts = [("", source.tree, 1), *sorted(parts, key=lambda part: part[2]), ("", None, len(source.lines) + 1)]
        for (name, node, first), (_, _, following) in zip(parts, parts[1:]):
            doc, text = node.body[0], ast.get_docstring(node) or ""
            lines = [line if line.startswith(" ") else re.sub(r"(?<![`\w/])(\w+\.py)\b", r"`\1`", line)
                     for line in re.sub(r"(?m)^([a-z_]+): ", r"\n- `\1`: ", text).split("\n")]
            tokens = DOCSTRING.parse(re.sub(r"(^|(?<=\. ))(?=(Sources?|Shapes): |ValueError)", "\n\n", "\n".join(lines), flags=re.M))
            for token in (child for token in tokens for child in token.children or () if child.type == "code_inline"):
                path, _, symbol = (self.find(token.content, [page]) or "").partition(":")
                if path and (path, symbol) != (page, name):
                    token.type, token.content = "html_inline", (
                        f'<a href="{self.href(path, page)}{"#" * bool(symbol)}{symbol}"><code>{escape(token.content)}</code></a>')
            seen = "".join(f'<br><a href="{self.href(tutorial, page)}#{anchor}">{tutorial[11]}: {escape(heading.lstrip("0123456789. "))}</a>'
                           for tutorial, anchor, heading in self.mentions.get(f"{page}:{name}".strip(":"), ()))
            rows += (f'<div class="row"><div><h2>{name or page}</h2>{DOCSTRING.renderer.render(tokens, DOCSTRING.options, {})}'
                     + f'<p class="seen">In the tutorials: {seen}</p>' * bool(seen) + "</div>"
                     + source.html("", first, following - 1, range(doc.lineno, doc.end_lineno + 1) if text else range(0)) + "</div>")
        return rows


if __name__ == "__main__":
    Site(ROOT / "site").build()
    print("wrote site/index.html")
