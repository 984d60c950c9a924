"""The live page of `kdjax serve` in headless Chromium, with rows from a real process."""

import datetime
import time

import numpy as np
import pytest
import test_service_program as program
from chromium import CHROMIUM, Browser
from service_client import TOKEN

from kdjax.export.onnx import onnx_file

pytestmark = pytest.mark.integration
start = program.start  # a fixture

EVIL = "<img src=x onerror=alert(1)>"
NAMES = (*(f"pump {n:03d}" for n in range(997)), EVIL, "fan", "late")
HEADERS = {"authorization": f"Bearer {TOKEN}"}
TEXT = "document.querySelector('{}').textContent"


@pytest.fixture
def browser(tmp_path):
    if CHROMIUM is None:
        pytest.skip("needs chromium (.ci/packages.txt)")
    found = Browser(tmp_path)
    yield found
    found.close()


class Feed:
    """Sends rows of all machines, one a second of their own clock."""

    def __init__(self, port, headers):
        self.port, self.headers, self.rows = port, headers, 0
        self.rng = np.random.default_rng(0)
        self.begun = datetime.datetime.now(datetime.UTC).replace(microsecond=0)

    def send(self, count, names=NAMES, high=()):
        for _ in range(count):
            self.rows += 1
            time = (self.begun + datetime.timedelta(seconds=self.rows)).isoformat()
            for first in range(0, len(names), 1000):
                part = names[first : first + 1000]
                values = 0.3 * self.rng.normal(size=(len(part), 2)) + [1, 2]
                for place, name in enumerate(part):
                    values[place] += 9 * (name in high) * self.rng.normal(size=2)
                body = {
                    "rows": values.tolist(),
                    "entity": part,
                    "time": [time] * len(part),
                }
                status, answer = program.post(
                    self.port, "/v1/detectors/plant/rows", body, **self.headers
                )
                assert status == 200, answer


def width_of(browser):
    """The page's width; its list must not be wider than its place."""
    assert browser.run("$('list').scrollWidth <= $('list').clientWidth")
    return browser.run("document.documentElement.scrollWidth")


def chosen(browser, name):
    browser.until(f"document.querySelector('#name').textContent === {name!r}")


def test_machines_are_watched_by_keyboard(
    start, browser, moving, moving_file, tmp_path
):
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "next.onnx").write_bytes(onnx_file(moving._replace(card={}), 0))
    _, port = start(
        f"--token_file={tmp_path / 'token'}", f"--shadow={tmp_path / 'next.onnx'}"
    )
    feed = Feed(port, HEADERS)
    feed.send(12)
    browser.size(1280, 800)
    browser.open(f"http://127.0.0.1:{port}/")
    # Without the token there is nothing but its field.
    browser.until("!document.querySelector('#login').hidden")
    assert browser.run("document.activeElement.id") == "token"
    assert browser.run("document.querySelector('#main').hidden")
    # The refusals of a page without a token, and no other.
    refused = "Failed to load resource: the server responded with a status of 401 (Unauthorized)"
    browser.type("a-wrong-token-of-16-or-more")
    browser.key("Enter")
    browser.until(
        "document.querySelector('#refused').textContent === 'The token was refused.'"
    )
    browser.type(TOKEN)
    browser.key("Enter")
    browser.until("document.querySelectorAll('.option').length === 1000")
    assert {*browser.complaints} == {refused}
    browser.complaints.clear()
    assert browser.run("sessionStorage.getItem('kdjax.token')") == TOKEN
    # 1,000 machines are built and drawn in a moment.
    seconds = browser.run("""(async () => {
      options.clear(); document.querySelector('#list').replaceChildren();
      const begun = performance.now(); await update();
      document.body.offsetHeight; return (performance.now() - begun) / 1000 })()""")
    print(f"1,000 machines in {seconds:.2f} s")
    assert seconds < 2
    # A machine in alarm comes first.
    feed.send(6, high={EVIL, "fan"})
    browser.until("document.querySelector('.option .state').textContent === 'alarm'")
    names = "[...document.querySelectorAll('.option .name')].slice(0, 2).map(n => n.textContent)"
    browser.until(f"{names}.sort().join() === {','.join(sorted((EVIL, 'fan')))!r}")
    # By keyboard: filter, list, machine, and back.
    browser.run("document.querySelector('#find').focus()")
    browser.type("IMG src")
    browser.until("document.querySelectorAll('.option').length === 1")
    browser.key("Tab")
    assert browser.run("document.activeElement.id") == "list"
    assert (
        browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    )
    browser.key("Enter")
    chosen(browser, EVIL)
    browser.until("document.querySelectorAll('#chart .dot').length > 0")
    assert browser.run("document.images.length") == 0
    assert "x, y" in browser.run(
        "document.querySelector('#own').innerText"
    ) or browser.run("document.querySelectorAll('.bars .bar').length")
    # New rows move it on without a touch.
    before = browser.run(TEXT.format("#facts"))
    feed.send(3, high={EVIL})
    browser.until(
        f"document.querySelector('#facts').textContent.startsWith('last row {feed.rows - 1},')"
    )
    assert before != browser.run(TEXT.format("#facts"))
    # Acknowledge and shelve, found by Tab from the list.
    for _ in range(12):
        browser.key("Tab")
        if browser.run("document.activeElement.textContent") == "Acknowledge":
            break
    browser.key("Enter")
    browser.until("document.querySelector('#own').innerText.includes('seen')")
    browser.until("document.activeElement.textContent === 'Shelve'")
    browser.key("Enter")
    browser.until("document.querySelector('#own').innerText.includes('shelved until')")
    browser.until("document.querySelector('#shadow').innerText.includes('next.onnx')")
    browser.key("Escape")
    browser.until("document.querySelector('#machine').hidden")
    assert browser.run("document.activeElement.id") == "list"
    browser.run("document.querySelector('#find').focus()")
    browser.key("Escape")
    browser.until("document.querySelectorAll('.option').length === 1000")
    browser.key("ArrowDown")
    browser.key("Home")
    for name in ("ArrowDown", "ArrowDown", "ArrowUp", "Enter"):
        browser.key(name)
    second = browser.run("document.querySelectorAll('.option')[1].dataset.name")
    chosen(browser, second)
    assert width_of(browser) <= 1280
    browser.shot(tmp_path / "desktop_light.png")
    # A machine that no longer sends is silent.
    rest = [name for name in NAMES if name != "late"]
    end = time.monotonic() + 20
    browser.run("document.querySelector('#find').value = 'late'")
    while (
        browser.run("document.querySelector('.option .state').textContent") != "silent"
    ):
        assert time.monotonic() < end
        feed.send(1, rest, high={"fan"})
        time.sleep(0.5)
    browser.size(360, 740)
    browser.run(f"go('plant', {EVIL!r})")
    chosen(browser, EVIL)
    assert width_of(browser) <= 360
    browser.shot(tmp_path / "phone_token.png")
    assert browser.complaints == []
    # Nothing but the service was asked.
    assert all(
        url.startswith((f"http://127.0.0.1:{port}/", "data:"))
        for url in browser.requests
    )


def test_it_fits_a_phone_and_the_dark(start, browser, moving_file, tmp_path):
    process, port = start()
    feed = Feed(port, {})
    long = "compressor-" + "9" * 180
    names = (*NAMES[:30], EVIL, long)
    feed.send(60, names)
    feed.send(10, names, high={long, EVIL, "pump 003"})
    browser.size(360, 740)
    browser.open(f"http://127.0.0.1:{port}/#plant/{long}")
    browser.until("document.querySelectorAll('#chart .dot').length > 0")
    assert width_of(browser) <= 360
    assert browser.run("[...document.querySelectorAll('button, input, select, .option')].every("
                       "e => !e.offsetWidth || e.getBoundingClientRect().right <= 360)")  # fmt: skip
    # Without a token in the service nothing can be changed, and the page says so.
    assert "--token_file" in browser.run("document.querySelector('#machine').innerText")
    for dark in (False, True):
        for width, height in ((360, 740), (1280, 800)):
            browser.size(width, height, dark=dark)
            browser.run("new Promise(done => setTimeout(done, 200))")
            assert width_of(browser) <= width
            browser.shot(tmp_path / f"{width}_{'dark' if dark else 'light'}.png")
    colour = "getComputedStyle(document.body).backgroundColor"
    assert browser.run(colour) == "rgb(16, 18, 22)"
    assert browser.complaints == []
    process.terminate()
    process.wait()
    browser.until(
        "document.querySelector('#status').textContent.startsWith('No connection')"
    )
