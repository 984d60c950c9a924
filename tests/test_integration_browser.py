"""A run's report in headless Chromium: no console message, no network request."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from test_evaluation_report import RESULTS

from kdjax.detection.alarming import event_table, events
from kdjax.evaluation.intervals import interval_rows
from kdjax.evaluation.plots import Heat, Timeline, row_bins
from kdjax.evaluation.report import Decided, write_report
from kdjax.metrics.checks import runs

pytestmark = pytest.mark.integration

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FAULTY = """<!doctype html><html><body>
<script>console.error("from the page")</script>
<img src="http://pictures.invalid/a.png"></body></html>
"""


class Opened(NamedTuple):
    """What a page did: its DOM, console lines and requests."""

    dom: str
    console: list[str]
    requests: list[str]


@pytest.fixture
def browse(tmp_path):
    """Opens a file in Chromium, with no host reachable."""
    if CHROMIUM is None:
        pytest.skip("needs chromium (.ci/packages.txt)")

    def open_page(path: Path) -> Opened:
        log = tmp_path / "net.json"
        done = subprocess.run(
            [
                CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
                "--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}",
                "--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path}/user",
                "--virtual-time-budget=10000", "--dump-dom", path.absolute().as_uri(),
            ],
            capture_output=True, text=True, timeout=180, check=True,
        )  # fmt: skip
        console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        events = json.loads(log.read_text("utf-8"))["events"]
        params = [event.get("params", {}) for event in events]
        # Chromium's own requests have the initiator "not an origin".
        requests = [
            given["url"]
            for given in params
            if given.get("initiator", "not an origin") != "not an origin"
        ]
        return Opened(done.stdout, console, requests)

    return open_page


ROWS, CHANNELS = 100_000, 40


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The report on a large test file with eleven events and a gap of twenty days."""
    rng = np.random.default_rng(0)
    names = [f"sensor_{place:02d}" for place in range(CHANNELS)]
    values = np.cumsum(rng.normal(size=(ROWS, CHANNELS)), axis=0).astype(np.float32)
    passed = np.arange(ROWS) + 28_800 * (np.arange(ROWS) >= ROWS // 2)
    axis = np.datetime64("2024-03-01", "ns") + passed * np.timedelta64(1, "m")
    scores, tau = np.exp(rng.normal(size=ROWS // 10)).repeat(10), 100.0
    for first in range(3000, ROWS, 9000):
        scores[first : first + 60] = 200.0
    alarms = np.stack(runs(scores > tau), axis=1)
    starts = row_bins(ROWS, alarms)
    parts = rng.exponential(size=(len(starts), CHANNELS)) * scores[starts, None] / 40
    timeline = Timeline(
        entity="plant",
        time=axis,
        labels=scores > tau,
        scores={"student": scores},
        thresholds={"student": tau},
        alarms={"student": alarms},
        starts=starts,
        heat=Heat("student", names, parts, tau),
        signals=values,
        channels=names,
    )
    options = {"time": axis, "window_score": scores, "score": scores, "tau": tau}
    table = event_table(scores > tau, entity="plant", window=96, **options)
    first, stop = events(scores > tau, gap=96).T
    table = table.assign(first=first, stop=stop, kind="score")
    decided = Decided("student", "", [timeline], table)
    path = tmp_path_factory.mktemp("large") / "report.html"
    small = timeline._replace(heat=None, signals=None, channels=())
    # With intervals, which make the widest table.
    results = RESULTS | {"intervals": interval_rows(RESULTS["entities"])}
    write_report(path, results=results, decided=decided, timelines=[small])
    return path


def test_a_large_report_is_small_and_opens_soon(browse, large):
    assert large.stat().st_size < 8_000_000
    browse(large)  # so that Chromium has been read from the disk
    started = time.monotonic()
    opened = browse(large)
    seconds = time.monotonic() - started
    assert opened.console == [] and opened.requests == []
    drawn = opened.dom.split("<h2>Events")[1].split("</main>")[0]
    assert drawn.count('class="trace scatter') >= CHANNELS
    print(f"{large.stat().st_size / 1e6:.2f} MB, {seconds:.1f} s with Chromium's start")
    assert seconds < 30  # three on an idle machine


def test_a_line_of_the_events_leads_to_its_place(browse, large):
    """Only a copy may click: no other script runs in a report."""
    text = re.sub("<meta http-equiv.*?>", "", large.read_text("utf-8"), count=1)
    click = """<script>addEventListener("load", () => {
      document.querySelectorAll("a[data-range]")[3].click();
      const plot = document.querySelector("#plot-0 .plot").lastElementChild;
      setTimeout(() => console.log(plot.layout.xaxis.range, plot.layout.xaxis3.range), 1000);
    })</script>"""
    copy = large.with_name("clicked.html")
    copy.write_text(text.replace("</body>", f"{click}</body>"), "utf-8")
    (line,) = browse(copy).console
    # Row 30,000 on 21 March at 20:00; 30 rows before it, and 30 after its 60.
    assert line.count("2024-03-21 19:30:00,2024-03-21 21:30:00") == 2


def test_tables_and_figures_fit_the_screen(browse, large):
    """On a phone nothing but boxes that scroll is wider than the page; at 1280 no table."""
    wide = """<script>addEventListener("load", () => {
      document.querySelectorAll("details").forEach(fold => fold.open = true);
      const wide = box => box.scrollWidth > box.clientWidth;
      setTimeout(() => console.log("page", document.documentElement.scrollWidth, "wide",
        [...document.querySelectorAll(".scroll")].filter(wide).length), 2000);
    })</script>"""
    text = re.sub("<meta http-equiv.*?>", "", large.read_text("utf-8"), count=1)
    copy = large.with_name("inside.html")
    copy.write_text(text.replace("</body>", f"{wide}</body>"), "utf-8")
    frame = large.with_name("frame.html")
    for width in (390, 1280):
        # A window of Chromium has 500 pixels or more.
        frame.write_text(f'<iframe src="inside.html" width="{width}" height="900">')
        (line,) = browse(frame).console
        page, wide = map(int, re.search(r"page (\d+) wide (\d+)", line).groups())
        assert page <= width and (wide == 0 or width < 1280)


def test_console_messages_and_requests_are_seen(browse, tmp_path):
    (tmp_path / "faulty.html").write_text(FAULTY, "utf-8")
    opened = browse(tmp_path / "faulty.html")
    assert any("from the page" in line for line in opened.console)
    assert "http://pictures.invalid/a.png" in opened.requests


def test_the_report_of_a_run_makes_no_request_and_no_complaint(browse, finished):
    opened = browse(finished.workdir / "report.html")
    assert opened.console == [] and opened.requests == []
    for model in ("teacher", "student", "student_alone"):
        assert model in opened.dom
