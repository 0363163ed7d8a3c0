"""The pages that tutorials/site.py writes: whole, without dead links or a network, and moving with the reader.

Needs `pip install .[site]`; the tests in a browser also need `pip install playwright` and a Chromium or Chrome that the
system has. What is not there is skipped.
"""
import ast
import html
import posixpath
import re
import shutil

import pytest
from conftest import ROOT

for library in ("jinja2", "markdown_it", "mdit_py_plugins", "pygments"):
    pytest.importorskip(library)

from tutorials import site  # noqa: E402

TUTORIALS = sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.md"))
METHOD = [path.replace(".py", ".html") for path in site.METHOD]
LABEL = re.compile(r"^From \[`([\w/.]+)`\]\(\S+\), `([\w.]+)`:$", re.MULTILINE)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
each_tutorial = pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """(folder, address -> HTML) of all pages."""
    out = tmp_path_factory.mktemp("site")
    site.Site().build(out)
    return out, {path.relative_to(out).as_posix(): path.read_text() for path in out.rglob("*.html")}


def ids(page):
    return re.findall(r' id="([^"]+)"', page)


def links(page):
    return [html.unescape(link) for link in re.findall(r' (?:href|src)="([^"]+)"', page)]


def article(page):
    return page.split("<article>")[1].split("</article>")[0]


def around(page):
    return re.sub("<article>.*</article>|<pre .*</pre>", "", page, flags=re.DOTALL)


def letters(text):
    return "".join(re.findall(r"\w", text))


def plain(page):
    return html.unescape(re.sub("<[^>]+>", "", page))


def code(page):
    """The lines of the file that a page of code shows."""
    lines = plain(page.split('<pre class="file">')[1].split("</pre>")[0]).splitlines(keepends=True)
    return "".join(line[5:] for line in lines)


def prose(text):
    return FENCE.sub("", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))


def defined():
    """Name -> files that define it at their top, by the text of the package alone."""
    found = {}
    for path in (ROOT / "mpvg_minimal").rglob("*.py"):
        for name in re.findall(r"^(?:def|class) (\w+)", path.read_text(), re.MULTILINE):
            found.setdefault(name, []).append(path.relative_to(ROOT).as_posix())
    return found


def named(text):
    """(what a tutorial quotes or names as inline code, what it imports), as pairs of file and symbol."""
    known = defined()
    names = {code.split("(")[0] for code in re.findall(r"`([^`\n]+)`", prose(text))}
    places = {(*known[name.split(".")[0]], name) for name in names if len(known.get(name.split(".")[0], ())) == 1}
    imports = re.findall(r"^from (mpvg_minimal\S*) import (.*)$", text, re.MULTILINE)
    imported = {(file, name) for module, names in imports for name in names.split(", ")
                for file in known.get(name, ()) if file.startswith(module.replace(".", "/"))}
    return {*LABEL.findall(text)} | places, imported


def complaints(text, page, pages):
    """What of `named` has no link, or no anchor at its definition."""
    leads, (places, imported) = {link.removeprefix("../") for link in links(page)}, named(text)
    wrong = [f"no link to {symbol}" for file, symbol in places if f"{file}.html#{symbol}" not in leads]
    wrong += [f"no tab of {file}" for file, _ in imported if f"{file}.html" not in leads]
    for file, symbol in places | imported:
        line = re.search(rf'id="{symbol}">(.*)', pages.get(f"{file}.html", ""))
        if not line or not re.search(rf"(def|class) {symbol.split('.')[-1]}\b|@", plain(line[1])):
            wrong.append(f"no anchor of {symbol}")
    return wrong


@each_tutorial
def test_every_symbol_that_a_tutorial_names_is_anchored_in_its_file(built, tutorial):
    text, page = tutorial.read_text(), built[1][f"tutorials/{tutorial.stem}.html"]
    assert complaints(text, page, built[1]) == []
    gone = LABEL.sub(r"From [`\1`](../\1), `Gone.forward`:", text, count=1)
    assert complaints(gone, page, built[1]) == ["no link to Gone.forward", "no anchor of Gone.forward"]


@each_tutorial
def test_every_name_in_code_exists_somewhere(tutorial):
    """A name that the prose gives as code and that is no link is at least a word of the code: not one of long ago."""
    text = tutorial.read_text()
    code = [body for _, body in FENCE.findall(text)]
    code += [path.read_text() for path in [*(ROOT / "mpvg_minimal").rglob("*.py"), *ROOT.glob("*.py")]]
    words = {*re.findall(r"\w+", "\n".join(code))}
    names = re.findall(r"`([A-Za-z]\w*_\w+|[A-Z]\w*[a-z]\w*)(?:\([^`]*\))?`", prose(text))
    assert [each for each in names if each not in words and not any((ROOT / "results").glob(f"{each}*"))] == []


def test_all_pages_are_there_and_the_index_leads_to_them(built):
    expected = {f"tutorials/{path.stem}.html" for path in TUTORIALS} | {*METHOD}
    assert len(expected) == 15 and expected <= {*built[1]}
    assert expected <= {*links(article(built[1]["index.html"]))}


def test_no_link_is_dead_and_no_page_needs_the_network(built):
    out, pages = built
    known = {address: set(ids(page)) for address, page in pages.items()}
    dead = []
    for address, page in pages.items():
        assert len(ids(page)) == len(known[address]), f"{address}: an id twice"
        assert not re.search(r"<a [^>]*>(?:(?!</a>).)*<a ", page), f"{address}: a link inside a link"
        assert not re.search(r'<(?!a )[^>]*(?:href|src)="(\w+:|//)', page), f"{address}: loads something"
        assert not re.search(r"@import|url\(|<link|<base|fetch\(|\bimport\b|XMLHttp", around(page)), address
        for link in links(page):
            file, _, anchor = link.partition("#")
            target = posixpath.normpath(posixpath.join(posixpath.dirname(address), file)) if file else address
            if not re.match("https?:", link) and not (out / target).is_file() or anchor and anchor not in known[target]:
                dead.append(f"{address}: {link}")
    assert dead == []


@pytest.mark.parametrize("path", site.METHOD)
def test_a_method_file_stands_whole_beside_its_prose(built, path):
    source, page = (ROOT / path).read_text(), built[1][path.replace(".py", ".html")]
    assert code(built[1][f"{path}.html"]) == source
    assert f'<nav id="{path}"><a href="#{path}"' in built[1][f"{path}.html"], "a link to itself"
    shown = letters(plain(article(page)))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            name = path if isinstance(node, ast.Module) else node.name
            assert letters(name) + letters(ast.get_docstring(node)) in shown


def test_a_file_that_moves_is_found_in_its_new_place(tmp_path, monkeypatch):
    leave = shutil.ignore_patterns("0*.md", "assignments", "__py*")
    for folder in ("mpvg_minimal", "tutorials"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=leave)
    moved = tmp_path / "mpvg_minimal/wing/deep/moved.py"
    moved.parent.mkdir(parents=True)
    moved.write_text("class Moved:\n    @property\n    def here(self):\n        return 1\n")
    (tmp_path / "tutorials/README.md").write_text("# Tutorials\n\n[one](01_one.md)\n")
    (tmp_path / "tutorials/01_one.md").write_text(
        "# 1. One\n\n`Moved.here` and `here()`, `moved.py`, but not `Block.nowhere`.\n\n```python\n"
        "from mpvg_minimal.wing.deep.moved import Moved\nfrom mpvg_minimal import fold_last_pe\n```\n")
    monkeypatch.setattr(site, "ROOT", tmp_path)
    site.Site().build(tmp_path / "site")
    page, place = (tmp_path / "site/tutorials/01_one.html").read_text(), "../mpvg_minimal/wing/deep/moved.py.html"
    assert links(article(page)) == [f"{place}#Moved.here", f"{place}#Moved.here", f"{place}#{place[3:-5]}"]
    assert [link for link in links(page) if link.endswith(".py.html")] == [place, "../mpvg_minimal/fold.py.html"]
    shown = (tmp_path / "site" / place[3:]).read_text()
    assert plain(shown.split('id="Moved.here">')[1]).startswith("   2     @property\n   3     def here")


# In a browser: what a reader does.

WIDTHS = {"desktop": (1400, 900), "phone": (390, 844)}
each_width = pytest.mark.parametrize("width", WIDTHS)


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
        tab = browser.new_page(viewport=dict(zip(("width", "height"), WIDTHS[width])), **options)
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.on("request", lambda request: None if request.url.startswith("file:") else trouble.append(request.url))
        tab.goto((built[0] / address).as_uri())
        opened.append(tab)
        return tab

    yield open_page
    for tab in opened:
        tab.close()
    assert trouble == []


def shown(tab):
    """(address of what the frame shows, its marked lines, whether the first of them is in view)."""
    tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    chosen = tab.locator(":is(article, .pane) [aria-current=true]").first       # in the prose, else a tab
    frame = tab.frame("code")
    frame.wait_for_url(chosen.evaluate("link => link.href"), timeout=5000)
    return frame.url, *frame.evaluate("""() => {
        const marked = document.querySelector("pre :target"), box = marked?.getBoundingClientRect();
        return [marked?.textContent ?? "", !!marked && box.top >= 0 && box.top < innerHeight - 20];
    }""")


def defines(marked, symbol):
    return re.search(rf"(def|class) {symbol.split('.')[-1]}\b", marked) is not None


@pytest.mark.parametrize("tutorial", TUTORIALS[::6], ids=lambda path: path.stem)
def test_the_frame_follows_while_the_page_scrolls(visit, tutorial):
    tab = visit(f"tutorials/{tutorial.stem}.html")
    labels = LABEL.findall(tutorial.read_text())
    for pixels, expected in ((250, labels), (-250, labels[::-1])):
        seen = []
        for _ in range(0, tab.evaluate("document.body.scrollHeight"), 250):
            tab.evaluate(f"scrollBy(0, {pixels})")
            seen.append(shown(tab))
        assert all(in_view for _, marked, in_view in seen if marked)
        for file, symbol in expected:               # in the order of the text
            while seen and not (seen[0][0].endswith(f"{file}.html#{symbol}") and defines(seen[0][1], symbol)):
                seen.pop(0)
            assert seen, f"{file}, {symbol} was not shown in its turn"
        box = tab.locator(".pane").bounding_box()
        assert -1 < box["y"] < 50 and box["height"] < 901, "the frame stays in the window"


@pytest.mark.parametrize("how", ["mouse", "keyboard"])
@each_width
def test_a_symbol_is_marked_when_chosen(visit, width, how):
    tab = visit(f"tutorials/{TUTORIALS[-1].stem}.html", width)
    assert tab.locator("iframe").is_visible() == (width == "desktop"), "on a phone the code is folded away"
    file, symbol = LABEL.findall(TUTORIALS[-1].read_text())[-1]
    link = tab.locator("article a", has_text=re.compile(f"^{re.escape(symbol)}$")).first
    link.scroll_into_view_if_needed()               # the frame follows that, so choose only after it has
    shown(tab)
    link.click() if how == "mouse" else link.press("Enter")
    place, marked, in_view = shown(tab)
    assert place.endswith(f"{file}.html#{symbol}") and defines(marked, symbol) and in_view
    assert tab.locator("iframe").is_visible() and tab.url.endswith(f"{TUTORIALS[-1].stem}.html")


@pytest.mark.parametrize("tutorial, width", [*((path, "phone") for path in TUTORIALS), (TUTORIALS[6], "desktop")])
def test_tabs_answers_and_width(visit, tutorial, width):
    tab = visit(f"tutorials/{tutorial.stem}.html", width)
    answer = tab.locator("article details").last
    assert not answer.locator("p").first.is_visible()
    answer.locator("summary").click()
    assert answer.locator("p").first.is_visible()
    if width == "phone":
        tab.click(".pane summary")
    last = tab.locator(".pane nav a").last
    last.press("Enter")
    assert shown(tab)[0] == last.evaluate("tab => tab.href") and last.get_attribute("aria-current") == "true"
    assert tab.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width][0], "the page scrolls sideways"


@each_width
@pytest.mark.parametrize("address", METHOD[1::2])
def test_a_method_file_follows_its_prose(visit, address, width):
    tab = visit(address, width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width][0]
    tab.evaluate("scrollTo(0, document.body.scrollHeight)")
    symbol = tab.locator("article a[href*='.py.html#']").last.inner_text()
    if width == "phone":
        tab.click(".pane summary")
    place, marked, in_view = shown(tab)
    assert place.endswith(f"#{symbol}") and defines(marked, symbol) and in_view


def test_dark_and_printed(visit):
    address = f"tutorials/{TUTORIALS[0].stem}.html"
    light, dark = (visit(address, color_scheme=scheme).evaluate("""["body", "pre .k", "pre"].map(each => {
        const style = getComputedStyle(document.querySelector(each));
        return each === "pre" ? style.backgroundColor : style.color;
    })""") for scheme in ("light", "dark"))
    assert all(one != other for one, other in zip(light, dark))
    tab = visit(address)
    tab.emulate_media(media="print")
    assert tab.locator("article details p").last.is_visible() and not tab.locator(".pane").is_visible()
