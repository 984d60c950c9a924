"""The site of mkdocs.yml: built strictly, complete, and looked at in headless Chromium."""

import http.server
import os
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
from chromium import CHROMIUM, Browser

import kdjax

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent
NOTEBOOKS = "source/examples/notebooks"
PAGES = (
    "", "guides/own_data/", "results/tsbad/", "reference/training/", "thresholds/",
    "cheatsheet/", "glossary/", f"{NOTEBOOKS}/own_data/",
)  # fmt: skip
# Elements that the page does not scroll, and that are cut off at the right.
CUT = """[...document.querySelectorAll('.md-content *')].filter(e =>
    e.getBoundingClientRect().right > innerWidth + 1 &&
    !e.closest('pre, .md-typeset__scrollwrap')).map(e => e.outerHTML.slice(0, 80))"""
FAINT = """(() => {
    const grey = c => { const [r, g, b, a = 1] = c.match(/[\\d.]+/g).map(Number);
        return [(r + g + b) / 3, a]; };
    const [paper] = grey(getComputedStyle(document.body).backgroundColor);
    const [ink, part] = grey(getComputedStyle(document.querySelector('p')).color);
    return part * Math.abs(paper - ink);
})()"""


class Names(HTMLParser):
    """The ids of a page's elements."""

    def __init__(self, page):
        super().__init__()
        self.ids = set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.ids |= {value for name, value in attrs if name == "id"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        folder,
    ]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_public_name_has_its_place(site):
    ids = set()
    for page in (site / "reference").rglob("index.html"):
        ids |= Names(page).ids
    homes = [h for group in kdjax.GROUPS.values() for h in group.items()]
    wanted = {f"{home}.{name}" for home, names in homes for name in names.split()}
    assert len(wanted) == len(kdjax.__all__)
    for name in vars(kdjax.metrics):
        home = getattr(getattr(kdjax.metrics, name), "__module__", None) or ""
        if home.startswith("kdjax.metrics."):
            wanted.add(f"{home}.{name}")
    assert "kdjax.metrics.volumes.vus_pr" in wanted
    assert wanted - ids == set()


def test_links_to_files_of_the_repository_have_pages(site):
    for path in ("SECURITY", "CHANGELOG", "examples/functional.py", "configs"):
        assert (site / "source" / path / "index.html").exists(), path
    assert not (site / "build_site.py").exists()


def test_notebooks_have_pages_with_their_output(site):
    for path in (ROOT / "examples" / "notebooks").glob("*.ipynb"):
        page = site / NOTEBOOKS / path.stem / "index.html"
        text = page.read_text("utf-8")
        assert text.count('src="data:image/png;base64,') >= 1, path
        assert f'href="../{path.name}"' in text
        assert (site / NOTEBOOKS / path.name).read_bytes() == path.read_bytes()
    own = (site / NOTEBOOKS / "own_data" / "index.html").read_text("utf-8")
    assert "<table>" in own and "<style scoped>" not in own


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=site)
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_pages_fit_and_ask_no_other_host(address, tmp_path, width, dark):
    if CHROMIUM is None:
        pytest.skip("needs chromium (.ci/packages.txt)")
    browser = Browser(tmp_path)
    try:
        browser.size(width, 850, dark=dark)
        for page in PAGES:
            browser.open(address + page)
            scheme = "slate" if dark else "default"
            browser.until(f"document.body.dataset.mdColorScheme === '{scheme}'")
            assert browser.run("document.documentElement.scrollWidth") <= width, page
            assert browser.run(CUT) == [], page
            assert browser.run(FAINT) > 100, page
        asked = [url for url in browser.requests if not url.startswith("data:")]
        assert asked and all(url.startswith(address) for url in asked), asked
        assert browser.complaints == []
    finally:
        browser.close()


def test_search_finds_a_page(address, tmp_path):
    if CHROMIUM is None:
        pytest.skip("needs chromium (.ci/packages.txt)")
    browser = Browser(tmp_path)
    try:
        browser.size(1280, 850)
        browser.open(address)
        browser.run(
            "document.querySelector('[data-md-component=search-query]').focus()"
        )
        browser.type("conformal_threshold")
        browser.until("document.querySelector('.md-search-result__link') !== null")
        found = browser.run("document.querySelector('.md-search-result__link').href")
        assert found.startswith(address)
    finally:
        browser.close()
