"""The built book in a browser that can reach nothing else.

Chromium is driven without a window; a server on the loopback address serves ``_build/html``.
"""

import base64
import gzip
import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import stamp
from conftest import serving

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parent.parent
AXE = ROOT / "tests" / "vendor" / "axe" / "axe.min.js"
SITE = ROOT / "_build" / "html"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
WEIGHT = 1_500_000
PATIENCE = 30  # Seconds until a page that does not answer counts as broken.


def pages() -> list[str]:
    """The pages of the book, in the order of its contents."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter for part in contents.get("parts", []) for chapter in part["chapters"]]
    return [contents["root"], *(chapter["file"] for chapter in chapters)]


PAGES = pages()
# The theme leaves templates of its own in _static.
FILES = sorted(
    name
    for name in (path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
    if not name.startswith("_static/")
)
built = pytest.mark.skipif(
    not (SITE / f"{PAGES[0]}.html").exists(), reason="the book is not built: run make book"
)
pytestmark = [pytest.mark.browser, built]
in_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium and chromedriver: install them to run these tests"
)


class Assets(HTMLParser):
    """What a page loads by itself: scripts, style sheets, pictures, frames."""

    def __init__(self, page: Path):
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in {"script", "img", "iframe", "source", "video", "audio", "embed"}:
            self.found.append(given.get("src"))
        elif tag == "link" and given.get("rel") not in {"canonical", "next", "prev", "search"}:
            self.found.append(given.get("href"))

    def local(self) -> list[str]:
        """Addresses of files, without inline data."""
        return [address for address in self.found if address and not address.startswith("data:")]


@pytest.fixture(scope="module")
def origin():
    """The address of the served book."""
    with serving(SITE) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a window and without a way out."""
    if not (BROWSER and DRIVER):
        pytest.skip("no chromium and chromedriver: install them to run these tests")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-default-apps",
        "--disable-sync",
        "--no-first-run",
        "--window-size=1280,900",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(PATIENCE)
    driver.set_script_timeout(PATIENCE)
    yield driver
    driver.quit()


def screen(browser, width: int, height: int, scripts: bool = True, media: str = "") -> None:
    """Set the size of the screen, whether scripts run, and whether it is paper."""
    for command, given in (
        (
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        ),
        ("Emulation.setScriptExecutionDisabled", {"value": not scripts}),
        ("Emulation.setEmulatedMedia", {"media": media}),
    ):
        browser.execute_cdp_cmd(command, given)


def visit(browser, address: str) -> None:
    """Open a page and wait until its explorers can be used."""
    browser.get(address)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        waiting = browser.execute_script(
            "const views = document.querySelectorAll('script[type$=\"widget-view+json\"]').length;"
            "return document.readyState !== 'complete'"
            " || document.querySelectorAll('.ckd-explorer .ckd-status').length < views;"
        )
        if not waiting:
            return
        time.sleep(0.05)
    pytest.fail(f"{address}: the explorers did not appear within {PATIENCE} s")


def requests(browser) -> list[str]:
    """The addresses asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def complaints(browser) -> list[str]:
    """Errors and warnings in the console since the last call."""
    return [e["message"] for e in browser.get_log("browser") if e["level"] in {"SEVERE", "WARNING"}]


def outside(addresses: list[str], origin: str) -> list[str]:
    """The addresses that lie outside the served folder."""
    inside = (f"{origin}/", "data:", "blob:", "about:")
    return [address for address in addresses if not address.startswith(inside)]


def explorers_in(page: str) -> int:
    """How many explorers the cells of a chapter display."""
    chapter = ROOT / f"{page}.ipynb"
    if not chapter.exists():
        return 0
    cells = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
    code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return sum(source.count("widgets.explorer(") for source in code)


def first_page_with(words: str) -> str:
    """The first page whose source holds some words."""
    return next(page for page in PAGES if words in (SITE / f"{page}.html").read_text("utf-8"))


SHOWN = """
const explorer = document.querySelectorAll('.ckd-explorer')[arguments[0]];
const shown = [...explorer.querySelectorAll('img')].filter((picture) => picture.offsetParent);
return shown.map((picture) => [picture.alt, picture.src]);
"""

# From the key to the first frame drawn after the picture changed, in the page's own clock.
WATCH = """
const explorer = document.querySelectorAll('.ckd-explorer')[arguments[0]];
const visible = () => [...explorer.querySelectorAll('img')].find((picture) => picture.offsetParent);
window.ckdLatency = [];
explorer.addEventListener('keydown', (event) => {
  const before = visible(), pressed = event.timeStamp;
  const look = () => {
    if (visible() !== before) window.ckdLatency.push(performance.now() - pressed);
    else if (performance.now() - pressed < 2000) requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}, true);
"""


@in_browser
@pytest.mark.parametrize("page", PAGES)
def test_every_slider_moves_by_keyboard(browser, origin, page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    screen(browser, 1280, 900)
    browser.get("about:blank")
    requests(browser), complaints(browser)
    visit(browser, f"{origin}/{page}.html")
    explorers = browser.find_elements(By.CSS_SELECTOR, ".ckd-explorer")
    assert len(explorers) == explorers_in(page)
    for number, explorer in enumerate(explorers):
        browser.execute_script(WATCH, number)
        for handle in explorer.find_elements(By.CSS_SELECTOR, "[role=slider]"):
            assert handle.get_attribute("aria-label"), f"{page}: a slider has no name"
            steps = float(handle.get_attribute("aria-valuemax"))
            if steps == 0:
                continue
            browser.execute_script("arguments[0].focus()", handle)
            assert browser.switch_to.active_element == handle
            for key in (Keys.HOME, Keys.ARROW_RIGHT, Keys.END, Keys.ARROW_LEFT, Keys.HOME):
                before = browser.execute_script(SHOWN, number)
                told = handle.get_attribute("aria-valuetext")
                moving = moves(key, float(handle.get_attribute("aria-valuenow")), steps)
                handle.send_keys(key)
                after = settled(browser, number, before if moving else None)
                assert len(before) == len(after) == 1, f"{page}: not one picture but {len(after)}"
                if moving:
                    assert before[0][0] != after[0][0], f"{page}: {key!r} left the text as it was"
                    assert before[0][1] != after[0][1], f"{page}: {key!r} left the picture"
                    assert told != handle.get_attribute("aria-valuetext")
        times = sorted(browser.execute_script("return window.ckdLatency"))
        if times:
            print(
                f"{page}, explorer {number}: {len(times)} keys, median "
                f"{times[len(times) // 2]:.0f} ms, slowest {times[-1]:.0f} ms"
            )
    asked = requests(browser)
    assert asked, "the log of requests is empty"
    assert outside(asked, origin) == []
    assert complaints(browser) == []


def moves(key, at: float, steps: float) -> bool:
    """Whether a key changes a slider that stands at ``at`` of ``steps``."""
    from selenium.webdriver.common.keys import Keys

    return at > 0 if key in (Keys.HOME, Keys.ARROW_LEFT) else at < steps


def settled(browser, number: int, old):
    """What an explorer shows, once it is no longer ``old``."""
    until = time.monotonic() + 5
    while (shown := browser.execute_script(SHOWN, number)) == old and time.monotonic() < until:
        time.sleep(0.02)
    return shown


@in_browser
@pytest.mark.parametrize("page", [*PAGES, "search", "genindex"])
def test_nothing_is_asked_of_anyone_else_and_the_console_is_clean(browser, origin, page):
    screen(browser, 1280, 900)
    browser.get("about:blank")
    requests(browser), complaints(browser)
    visit(browser, f"{origin}/{page}.html")
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    time.sleep(0.3)
    asked = requests(browser)
    assert asked, "the log of requests is empty"
    assert outside(asked, origin) == []
    assert complaints(browser) == []

    files = {urlsplit(address).path for address in asked if address.startswith(origin)}
    sizes = [(SITE / unquote(path).lstrip("/")).read_bytes() for path in files]
    compressed = sum(len(gzip.compress(size)) for size in sizes)
    print(f"{page}: {len(files)} files, {sum(map(len, sizes)):,} bytes, {compressed:,} compressed")
    assert compressed <= WEIGHT


@in_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_no_sideways_scrolling_on_a_phone(browser, origin, page, theme):
    screen(browser, 390, 844)
    visit(browser, f"{origin}/{page}.html")
    browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
    wide, screen_width = browser.execute_script(
        "return [document.scrollingElement.scrollWidth, window.innerWidth]"
    )
    assert screen_width == 390, f"{page}: the page made the screen {screen_width} pixels wide"
    assert wide <= 390
    cut = browser.execute_script(
        "return [...document.querySelectorAll('.cell_output .stream pre')]"
        ".filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.textContent)"
    )
    assert cut == [], f"{page}: what a cell printed is cut at the right"


STILLS = """
return [...document.querySelectorAll('.ckd-static img')].map((picture) => {
  const box = picture.getBoundingClientRect();
  return box.width > 0 && box.height > 0;
});
"""


@in_browser
@pytest.mark.parametrize("page", PAGES)
def test_still_picture_stands_in_on_paper(browser, origin, page):
    screen(browser, 1280, 900)
    visit(browser, f"{origin}/{page}.html")
    stills = browser.execute_script(STILLS)
    assert len(stills) == explorers_in(page)
    assert not any(stills), "on screen the explorer alone is shown"
    screen(browser, 1280, 900, media="print")
    assert all(browser.execute_script(STILLS))
    assert not browser.execute_script(
        "return [...document.querySelectorAll('.ckd-explorer')].some((e) => e.offsetParent)"
    )


@in_browser
@pytest.mark.parametrize("page", PAGES)
def test_still_picture_stands_in_without_scripts(browser, origin, page):
    screen(browser, 1280, 900, scripts=False)
    try:
        browser.get(f"{origin}/{page}.html")
        # Scripts are off in the page; the document is asked through the browser's own tools.
        root = browser.execute_cdp_cmd("DOM.getDocument", {})["root"]["nodeId"]
        stills = browser.execute_cdp_cmd(
            "DOM.querySelectorAll", {"nodeId": root, "selector": ".ckd-static img"}
        )["nodeIds"]
        assert len(stills) == explorers_in(page)
        for still in stills:
            box = browser.execute_cdp_cmd("DOM.getBoxModel", {"nodeId": still})["model"]
            assert box["width"] > 100 and box["height"] > 50
    finally:
        screen(browser, 1280, 900)


@pytest.mark.parametrize("page", PAGES)
def test_page_is_light(page):
    path = SITE / f"{page}.html"
    pictures = {
        (path.parent / unquote(urlsplit(address).path)).resolve()
        for address in Assets(path).local()
        if re.search(r"\.(png|jpe?g|gif|svg|webp)(\?|$)", address)
    }
    weight = path.stat().st_size + sum(picture.stat().st_size for picture in pictures)
    print(f"{page}: {weight:,} bytes with its pictures")
    assert weight <= WEIGHT


@pytest.mark.parametrize("page", FILES)
def test_page_names_no_file_elsewhere(page):
    named = Assets(SITE / page).local()
    assert [address for address in named if urlsplit(address).scheme or address[:2] == "//"] == []
    missing = [
        address
        for address in named
        if not ((SITE / page).parent / unquote(urlsplit(address).path)).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_no_equation_was_left_unread(page):
    source = (SITE / f"{page}.html").read_text(encoding="utf-8")
    blocks = re.findall(r'class="math notranslate nohighlight"[^>]*>\s*(.{5})', source, re.DOTALL)
    assert all(start in {"<math", "<span"} for start in blocks)


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_says_what_it_shows(page):
    source = (SITE / f"{page}.html").read_text(encoding="utf-8")
    # Inside the state of the explorers the quotes are escaped.
    for tag in re.findall(r"<img\b[^>]*>", source.replace('\\"', '"')):
        assert re.search(r'alt="[^"]+"', tag), f"{page}: {tag[:200]}"
        packed = re.search(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", tag)
        assert not packed or base64.b64decode(packed.group(1))[8:12] == b"WEBP"


# Everything is opened, and at rest: what fades in has other colours on its way.
AT_REST = """
document.head.insertAdjacentHTML('beforeend',
  '<style>* { animation: none !important; transition: none !important; }</style>');
for (const fold of document.querySelectorAll('details')) fold.open = true;
document.documentElement.dataset.mode = arguments[0];
document.documentElement.dataset.theme = arguments[0];
"""
FINDINGS = """
const done = arguments[arguments.length - 1];
axe.run(document, { resultTypes: ['violations'] }).then(
  (found) => done(found.violations),
  (error) => done([{ id: 'axe itself', impact: 'critical', help: String(error), nodes: [] }]),
);
"""


def findings(browser, theme: str) -> list[dict]:
    """What axe-core finds on the page that is open."""
    browser.execute_script(AT_REST, theme)
    browser.execute_script(AXE.read_text(encoding="utf-8"))
    return browser.execute_async_script(FINDINGS)


def told(found: list[dict]) -> str:
    """Findings as a person reads them: the rule, then up to five places."""
    lines = []
    for finding in found:
        nodes = finding["nodes"]
        lines.append(
            f"{finding['impact']}: {finding['help']} ({finding['id']}, {len(nodes)} places)"
        )
        for node in nodes[:5]:
            why = " ".join((node.get("failureSummary") or "").split())
            lines.append(f"    {' '.join(map(str, node['target']))}\n        {node['html'][:160]}")
            lines.append(f"        {why[:300]}")
    return "\n".join(lines)


def grave(found: list[dict]) -> list[dict]:
    """The findings that keep somebody out."""
    return [finding for finding in found if finding["impact"] in {"serious", "critical"}]


@in_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", [*PAGES, "search", "genindex"])
def test_axe_finds_no_barrier(browser, origin, page, theme):
    screen(browser, 1280, 900)
    visit(browser, f"{origin}/{page}.html")
    found = findings(browser, theme)
    print(told(found))
    assert not grave(found), f"{page}, {theme}\n{told(grave(found))}"


@in_browser
def test_axe_would_find_one(browser, origin):
    screen(browser, 1280, 900)
    visit(browser, f"{origin}/search.html")
    browser.execute_script(
        "document.querySelector('main').insertAdjacentHTML('beforeend',"
        '\'<img src="_static/favicon.svg"><p style="color:#aaa;background:#fff">Pale</p>\')'
    )
    found = {finding["id"]: finding for finding in findings(browser, "light")}
    assert {"image-alt", "color-contrast"} <= found.keys()
    assert "Pale" in told(grave(list(found.values())))


# Where the focus is, in words; the picture before it, if it is a slider.
FOCUS = """
const at = document.activeElement;
const explorer = at.closest('.ckd-explorer');
const shown = explorer
  && [...explorer.querySelectorAll('img')].find((picture) => picture.offsetParent);
return [at.getAttribute('role') || at.tagName, shown && shown.alt,
  at.tagName === 'SUMMARY' && Boolean(at.closest('.tag_hide-cell'))];
"""


def tab_to(browser, wanted):
    """Press the tabulator from the top of the page until the focus is where it is wanted."""
    from selenium.webdriver.common.keys import Keys

    for _ in range(400):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if wanted(*browser.execute_script(FOCUS)):
            return browser.switch_to.active_element
    pytest.fail("400 tabulators did not reach it")


@in_browser
def test_a_slider_is_reached_and_moved_with_keys_alone(browser, origin):
    from selenium.webdriver.common.keys import Keys

    screen(browser, 1280, 900)
    page = next(page for page in PAGES if explorers_in(page))
    visit(browser, f"{origin}/{page}.html")
    slider = tab_to(browser, lambda role, shown, _fold: role == "slider" and shown)
    before = browser.execute_script(FOCUS)[1]
    low = slider.get_attribute("aria-valuenow") == "0.0"
    slider.send_keys(Keys.ARROW_RIGHT if low else Keys.ARROW_LEFT)
    until = time.monotonic() + 5
    while (after := browser.execute_script(FOCUS)[1]) == before and time.monotonic() < until:
        time.sleep(0.02)
    assert after and after != before


@in_browser
def test_a_folded_answer_is_opened_and_closed_with_keys_alone(browser, origin):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    screen(browser, 1280, 900)
    visit(browser, f"{origin}/{first_page_with('tag_hide-cell')}.html")
    summary = tab_to(browser, lambda _role, _shown, fold: fold)
    code = summary.find_element(By.XPATH, "..").find_element(By.TAG_NAME, "pre")
    assert not code.is_displayed()
    for key, shown in ((Keys.ENTER, True), (Keys.ENTER, False), (Keys.SPACE, True)):
        summary.send_keys(key)
        until = time.monotonic() + 5  # it fades in
        while code.is_displayed() != shown:
            assert time.monotonic() < until, f"{key!r} did not {'open' if shown else 'shut'} it"
            time.sleep(0.02)


@in_browser
@pytest.mark.parametrize("words", ["surrogate", "Grad-CAM", "firing rate"])
def test_search_finds(browser, origin, words):
    from selenium.webdriver.common.by import By

    screen(browser, 1280, 900)
    visit(browser, f"{origin}/search.html?q={words.replace(' ', '+')}")
    until = time.monotonic() + PATIENCE
    while not (found := browser.find_elements(By.CSS_SELECTOR, "ul.search > li > a")):
        assert time.monotonic() < until, f"nothing is found for {words!r}"
        time.sleep(0.05)
    pages = {urlsplit(link.get_attribute("href")).path.strip("/") for link in found}
    assert pages <= {f"{page}.html" for page in PAGES}
    assert any(words.lower() in (SITE / page).read_text("utf-8").lower() for page in pages)


@in_browser
def test_search_says_when_there_is_nothing(browser, origin):
    screen(browser, 1280, 900)
    visit(browser, f"{origin}/search.html?q=xylophone")
    until = time.monotonic() + PATIENCE
    while "did not match" not in browser.page_source:
        assert time.monotonic() < until
        time.sleep(0.05)


# Runs after the page's own listener, and so sees what is going to be printed.
WITNESS = """
addEventListener('beforeprint', () => {
  window.ckdPrinted = {
    theme: document.documentElement.dataset.theme,
    shut: document.querySelectorAll('.tag_hide-cell > details:not([open])').length,
    answers: document.querySelectorAll('.tag_hide-cell > details').length,
  };
});
document.documentElement.dataset.theme = 'dark';
"""


@in_browser
def test_on_paper_the_theme_is_light_and_answers_are_open(browser, origin):
    screen(browser, 1280, 900)
    visit(browser, f"{origin}/{first_page_with('tag_hide-cell')}.html")
    browser.execute_script(WITNESS)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    seen = browser.execute_script("return window.ckdPrinted")
    assert seen["theme"] == "light" and seen["shut"] == 0 and seen["answers"] > 0
    # Afterwards the page is as the reader had it.
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    shut = "return document.querySelectorAll('.tag_hide-cell > details:not([open])').length"
    assert browser.execute_script(shut) == seen["answers"]


ON_PAPER = """
dispatchEvent(new Event('beforeprint'));
const seen = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true });
const article = document.querySelector('.bd-article');
const found = {
  cut: [...article.querySelectorAll('pre')].filter((e) => seen(e)
    && e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent),
  missing: [...article.querySelectorAll('h2, h3, p, li, table, figure img, .tag_hide-cell pre')]
    .filter((e) => !e.closest('summary, .ckd-explorer, .tag_hide-input > details') && !seen(e))
    .map((e) => e.outerHTML.slice(0, 200)),
  folds: [...article.querySelectorAll('summary')].filter(seen).length,
  around: [...document.querySelectorAll('.bd-sidebar-primary, .bd-sidebar-secondary, .bd-header')]
    .filter(seen).length,
};
dispatchEvent(new Event('afterprint'));
return found;
"""


@in_browser
@pytest.mark.parametrize("page", PAGES)
def test_a_printed_page_is_whole(browser, origin, page):
    visit(browser, f"{origin}/{page}.html")
    # A4 with the browser's own margins, in CSS pixels.
    screen(browser, 718, 1046, media="print")
    try:
        found = browser.execute_script(ON_PAPER)
    finally:
        screen(browser, 1280, 900)
    assert found == {"cut": [], "missing": [], "folds": 0, "around": 0}


@pytest.mark.parametrize("page", PAGES)
def test_buttons_follow_from_the_address(page):
    url, branch = stamp.setting(ROOT)
    source = (SITE / f"{page}.html").read_text(encoding="utf-8")
    there = url.replace("https://github.com/", "https://colab.research.google.com/github/")
    there = f'href="{there}/blob/{branch}/{page}.ipynb"'
    known = url.startswith("https://github.com/") and (ROOT / f"{page}.ipynb").exists()
    assert (there in source) == known
    assert ("Open in Colab" in source) == known
    # Without an address there is no button that leads nowhere.
    assert ("colab.research.google.com" in source) == known
    assert "@title Setup" not in source
