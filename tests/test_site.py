"""The pages that tutorials/site.py writes: whole, without dead links or a network, and moving with the reader.

Needs `pip install .[site]`; the tests in a browser also need `pip install playwright` and a Chromium or Chrome that the
system has. What is not there is skipped.
"""
import ast
import html
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from conftest import ROOT

for library in ("jinja2", "markdown_it", "mdit_py_plugins", "pygments"):
    pytest.importorskip(library)

from tutorials import site  # noqa: E402

TUTORIALS = sorted(path.stem for path in (ROOT / "tutorials").glob("[0-9][0-9]_*.md"))
LABEL = re.compile(r"^From \[`([\w/.]+)`\]\(\S+\), `([\w.]+)`:$", re.MULTILINE)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Page(HTMLParser):
    """What a page holds: ids, links (tag, address), the lines of code and the line in which each id stands."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.lines, self.line_of, self.depth = [], [], [], {}, 0
        self.text = path.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if "line" in given.get("class", "").split():
            self.lines.append("")
        if "id" in given:
            self.ids.append(given["id"])
            self.line_of[given["id"]] = len(self.lines) - 1
        self.links += [(tag, given[key]) for key in ("href", "src") if key in given]
        self.depth += tag == "a"
        assert self.depth < 2, f"a link inside a link: {self.get_starttag_text()}"

    def handle_endtag(self, tag):
        self.depth -= tag == "a"

    def handle_data(self, data):
        if self.lines and not self.lines[-1].endswith("\n"):
            self.lines[-1] += data


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """(folder, address -> Page) of all pages."""
    out = tmp_path_factory.mktemp("site")
    site.Site(out).build()
    return out, {path.relative_to(out).as_posix(): Page(path) for path in out.rglob("*.html")}


def package():
    """Name -> files that define it at their top, by the text of the package alone."""
    found = {}
    for path in (ROOT / "mpvg_minimal").rglob("*.py"):
        for name in re.findall(r"^(?:def|class) (\w+)", path.read_text(), re.MULTILINE):
            found.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())
    return found


def named(text):
    """(name, file or None) of all symbols that a tutorial quotes, imports or names as inline code, and what it calls
    its own."""
    blocks = [body for language, body in FENCE.findall(text) if language == "python"]
    prose = FENCE.sub("", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    names = [(symbol, file) for file, symbol in LABEL.findall(prose)]
    own = set()
    for node in ast.walk(ast.parse("\n".join(blocks))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "mpvg_minimal":
            folder = ROOT / node.module.replace(".", "/")
            names += [(alias.name, None) for alias in node.names
                      if not any((folder / name).exists() for name in (alias.name, alias.name + ".py"))]
    known = package()
    for code in re.findall(r"`([^`\n]+)`", prose):
        name = code.split("(")[0]
        if len(known.get(name.split(".")[0], ())) == 1 and name.split(".")[0] not in own:
            names.append((name, None))
    return list(dict.fromkeys(names))


def complaints(text, page):
    """What of `named` has no link in the page to a line that defines it."""
    places = {unquote(address[1:]) for _, address in page.links if address.startswith("#")} & {*page.ids}
    wrong = []
    for name, file in named(text):
        last = name.split(".")[-1]
        lines = [page.lines[page.line_of[place]] for place in places
                 if place.endswith((f":{name}", "/" + name.replace(".", ".py:", 1))) and place.startswith(file or "")]
        if not any(re.search(rf"(def|class) {last}\b|\b{last}\b *[:=]|@", line) for line in lines):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("name", TUTORIALS)
def test_every_symbol_that_a_tutorial_names_is_anchored_in_its_file(built, name):
    text, page = (ROOT / f"tutorials/{name}.md").read_text(), built[1][f"tutorials/{name}.html"]
    assert complaints(text, page) == []
    assert named(text)


def test_a_symbol_that_is_gone_is_named(built):
    name = next(name for name in TUTORIALS if LABEL.search((ROOT / f"tutorials/{name}.md").read_text()))
    text, page = (ROOT / f"tutorials/{name}.md").read_text(), built[1][f"tutorials/{name}.html"]
    label = LABEL.search(text)
    assert complaints(text.replace(f", `{label[2]}`:", ", `Gone.forward`:"), page) == ["Gone.forward"]
    assert complaints(text + "\n```python\nfrom mpvg_minimal.vit import gone\n```\n", page) == ["gone"]


@pytest.mark.parametrize("name", TUTORIALS)
def test_every_name_in_code_exists_somewhere(name):
    """A name that the prose gives as code and that is no link is at least a word of the code: not one of long ago."""
    text = (ROOT / f"tutorials/{name}.md").read_text()
    code = "\n".join(body for _, body in FENCE.findall(text)) + "\n".join(
        path.read_text() for path in [*(ROOT / "mpvg_minimal").rglob("*.py"), *ROOT.glob("*.py")])
    words = {*re.findall(r"\w+", code)}
    prose = FENCE.sub("", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    names = re.findall(r"`([A-Za-z]\w*_\w+|[A-Z]\w*[a-z]\w*)(?:\([^`]*\))?`", prose)
    assert [each for each in names if each not in words and not any((ROOT / "results").glob(f"{each}*"))] == []


def test_all_pages_are_there_and_the_index_leads_to_them(built):
    expected = {f"tutorials/{name}.html" for name in TUTORIALS} | {path.replace(".py", ".html") for path in site.METHOD}
    assert len(TUTORIALS) == 9 and len(site.METHOD) == 6
    assert expected <= {*built[1]}
    article = built[1]["index.html"].text.split("<article>")[1].split("</article>")[0]
    assert expected <= {*re.findall(r'href="([^"#]+)', article)}


def test_no_link_is_dead(built):
    out, pages = built
    dead = []
    for address, page in pages.items():
        assert len(page.ids) == len({*page.ids}), f"{address}: an id twice"
        for _, link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https"):
                continue
            target = (out / address).parent.joinpath(unquote(parts.path)).resolve() if parts.path else out / address
            known = pages.get(target.relative_to(out.resolve()).as_posix()) if parts.path else page
            if not target.is_file() or parts.fragment and unquote(parts.fragment) not in (known.ids if known else ()):
                dead.append(f"{address}: {link}")
    assert dead == []


def test_no_page_needs_the_network(built):
    for address, page in built[1].items():
        loaded = [link for tag, link in page.links if tag != "a"]
        assert [link for link in loaded if re.match(r"\w+:|//", link)] == [], address
        head, *_, script = re.split(r"</?(?:body|script)>", page.text.removesuffix("</script>\n"))
        assert not re.search(r"@import|url\(|<link|<base|fetch\(|\bimport\b|XMLHttp|https?:", head + script), address


def letters(text):
    return "".join(re.findall(r"\w", text))


@pytest.mark.parametrize("path", site.METHOD)
def test_a_method_file_stands_whole_beside_its_prose(built, path):
    source, page = (ROOT / path).read_text(), built[1][path.replace(".py", ".html")]
    assert [line.rstrip("\n") for line in page.lines] == source.rstrip("\n").split("\n")
    tree = ast.parse(source)
    owned = {method: f"{node.name}." for node in tree.body if isinstance(node, ast.ClassDef) for method in node.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            name = path if node is tree else owned.get(node, "") + node.name
            row = page.text.split(f"<h2>{name}</h2>")[1].split('<pre class="code"')[0]
            assert letters(ast.get_docstring(node)) in letters(html.unescape(re.sub("<[^>]+>", "", row))), name
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert page.lines[page.line_of[node.name]].startswith((f"def {node.name}", f"class {node.name}", "@"))


def test_a_method_file_leads_to_the_sections_that_name_its_symbols(built):
    text = (ROOT / "tutorials" / f"{TUTORIALS[2]}.md").read_text()
    file, symbol = LABEL.search(text).groups()
    page = built[1][file.replace(".py", ".html")].text
    row = page.split(f"<h2>{symbol}</h2>")[1].split('<div class="row">')[0]
    assert f"../tutorials/{TUTORIALS[2]}.html#" in row


def test_every_shown_file_links_to_itself(built):
    for name in TUTORIALS:
        page = built[1][f"tutorials/{name}.html"]
        shown = re.findall(r'<section id="([^"]+)"', page.text)
        assert shown and all(page.text.count(f'<h2><a href="#{file}">{file}</a>') == 1 for file in shown)


def test_a_file_that_moves_is_found_in_its_new_place(tmp_path, monkeypatch):
    leave = shutil.ignore_patterns("0*.md", "assignments", "__py*")
    for folder in ("mpvg_minimal", "tutorials"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=leave)
    moved = tmp_path / "mpvg_minimal/wing/deep/moved.py"
    moved.parent.mkdir(parents=True)
    moved.write_text("class Moved:\n    def here(self):\n        self.kept = 1\n")
    (tmp_path / "tutorials/README.md").write_text("# Tutorials\n\nWords.\n\n[one](01_one.md)\n")
    (tmp_path / "tutorials/01_one.md").write_text(
        "# 1. One\n\n`Moved.here` and `kept`, `moved.py`, but not `mine` or `Block.nowhere`.\n\n```python\n"
        "from mpvg_minimal.wing.deep.moved import Moved\nfrom mpvg_minimal import fold_last_pe\nmine = Moved()\n```\n")
    monkeypatch.setattr(site, "ROOT", tmp_path)
    site.Site(tmp_path / "site").build()
    page = Page(tmp_path / "site/tutorials/01_one.html")
    article = page.text.split("<article>")[1].split("</article>")[0]
    place = "mpvg_minimal/wing/deep/moved.py"
    assert re.findall(r'href="#([^"]+)"', article) == [
        f"{place}:Moved.here", f"{place}:Moved.kept", place, f"{place}:Moved", "mpvg_minimal/fold.py:fold_last_pe",
        f"{place}:Moved"]
    assert page.lines[page.line_of[f"{place}:Moved.kept"]].strip() == "self.kept = 1"
    assert (tmp_path / "site/mpvg_minimal/wing/deep/moved.html").is_file()


# In a browser: what a reader does.

WIDTHS = {"desktop": (1400, 900), "phone": (390, 844)}
QUOTING = [name for name in TUTORIALS if LABEL.search((ROOT / f"tutorials/{name}.md").read_text())]


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if path is None:
        pytest.skip("no Chromium or Chrome")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, built):
    """Opens a page of the site from its file at one of the widths; complains of script errors and of the network."""
    opened, trouble = [], []

    def open_page(address, width="desktop", **options):
        size = dict(zip(("width", "height"), WIDTHS[width]))
        tab = browser.new_page(viewport=size, **options)
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.on("request", lambda request: None if request.url.startswith("file:") else trouble.append(request.url))
        file, mark, place = address.partition("#")
        tab.goto((built[0] / file).as_uri() + mark + place)
        opened.append(tab)
        return tab

    yield open_page
    for tab in opened:
        tab.close()
    assert trouble == []


SHOWN = """() => {
    const file = [...document.querySelectorAll(".pane section")].find(each => each.checkVisibility());
    const marked = file ? [...file.querySelectorAll(".marked")] : [];
    const box = file?.querySelector("pre").getBoundingClientRect(), line = marked[0]?.getBoundingClientRect();
    return [file?.id, marked.map(each => each.textContent).join(""),
            !!line && line.top >= box.top && line.bottom <= Math.min(box.bottom, innerHeight)];
}"""


def shown(tab):
    """(file in the pane, its marked lines, whether the first of them is in view)."""
    tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")     # let events come
    return tab.evaluate(SHOWN)


def scroll(tab, pixels):
    """From end to end in steps of so many pixels: what `shown` says after each, once for each change."""
    return tab.evaluate("""async ([shown, pixels]) => {
        const seen = [];
        for (let y = scrollY; y + pixels >= 0 && y < document.body.scrollHeight; y += pixels) {
            scrollTo(0, y);
            await new Promise(done => requestAnimationFrame(done));
            const now = eval(shown)();
            if (JSON.stringify(now) !== JSON.stringify(seen.at(-1))) seen.push(now);
        }
        return seen;
    }""", [SHOWN, pixels])


def defines(marked, symbol):
    return re.search(rf"(def|class) {symbol.split('.')[-1]}\b", marked) is not None


@pytest.mark.parametrize("name", QUOTING[::3])
def test_the_pane_follows_while_the_page_scrolls(visit, name):
    tab = visit(f"tutorials/{name}.html")
    labels = LABEL.findall((ROOT / f"tutorials/{name}.md").read_text())
    for pixels, expected in ((60, labels), (-60, labels[::-1])):
        seen = scroll(tab, pixels)
        assert all(in_view for _, marked, in_view in seen if marked)
        for file, symbol in expected:               # in the order of the text
            while seen and not (seen[0][0] == file and defines(seen[0][1], symbol)):
                seen.pop(0)
            assert seen, f"{file}, {symbol} was not shown in its turn"
        box = tab.evaluate("document.querySelector('.pane').getBoundingClientRect().toJSON()")
        assert box["height"] <= 900


def test_without_follow_the_pane_stays(visit):
    name = QUOTING[0]
    tab = visit(f"tutorials/{name}.html")
    tab.uncheck(".pane nav input")
    assert len(scroll(tab, 200)) == 1
    tab.check(".pane nav input")
    assert len(scroll(tab, -200)) > 1


@pytest.mark.parametrize("how", ["mouse", "keyboard"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [QUOTING[0], QUOTING[-1]])
def test_a_symbol_is_marked_when_chosen(visit, name, width, how):
    tab = visit(f"tutorials/{name}.html", width)
    file, symbol = LABEL.findall((ROOT / f"tutorials/{name}.md").read_text())[-1]
    assert (shown(tab)[0] is None) == (width == "phone"), "on a phone the code is folded away, elsewhere open"
    link = tab.locator("article p a", has_text=re.compile(f"^{re.escape(symbol)}$")).first
    link.click() if how == "mouse" else link.press("Enter")
    place, marked, in_view = shown(tab)
    assert place == file and in_view and defines(marked, symbol)
    assert unquote(urlsplit(tab.url).fragment) == f"{file}:{symbol}"
    again = visit(f"tutorials/{name}.html#{urlsplit(tab.url).fragment}")
    assert shown(again)[:2] == [place, marked], "the address leads there, too"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", TUTORIALS)
def test_tabs_answers_and_width(visit, name, width):
    tab = visit(f"tutorials/{name}.html", width)
    answers = tab.locator("article details")
    assert answers.count() >= 3 and not answers.last.locator("p").first.is_visible()
    tab.locator("article summary").last.click()
    assert answers.last.locator("p").first.is_visible()
    if width == "phone":
        assert not tab.locator(".pane nav").is_visible()
        tab.click(".pane summary")
    tabs = tab.locator(".pane nav a")
    tabs.last.press("Enter")
    assert shown(tab)[0] == tabs.last.get_attribute("href")[1:] and tabs.last.get_attribute("aria-current") == "true"
    assert tab.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width][0], "the page scrolls sideways"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", site.METHOD)
def test_a_method_file_beside_its_prose(visit, path, width):
    tab = visit(path.replace(".py", ".html"), width)
    boxes = tab.evaluate("""[...document.querySelectorAll(".row")].map(row =>
        [...row.children].map(each => each.getBoundingClientRect().toJSON()))""")
    for prose, code in boxes:
        assert abs(prose["top"] - code["top"]) < 1 and prose["right"] <= code["left"] + 1 if width == "desktop" else (
            prose["bottom"] <= code["top"] + 1)
    assert tab.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width][0]
    docstring = tab.locator(".doc").first
    assert not docstring.is_visible()
    tab.check(".doc-shown")
    assert docstring.is_visible()


def test_dark_and_printed(visit):
    address = f"tutorials/{TUTORIALS[0]}.html"
    colors = {scheme: visit(address, color_scheme=scheme).evaluate(
        "['body', '.code .k', '.code'].map(each => getComputedStyle(document.querySelector(each)).color)"
        ".concat(getComputedStyle(document.body).backgroundColor)") for scheme in ("light", "dark")}
    assert all(light != dark for light, dark in zip(colors["light"], colors["dark"]))
    tab = visit(address)
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    tab.emulate_media(media="print")
    assert tab.locator("article details p").last.is_visible() and not tab.locator(".pane").is_visible()
