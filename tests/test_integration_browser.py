"""A run's report in headless Chromium: no console message, no network request."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

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
