"""`kdjax serve` as it is deployed: Prometheus, an image's lines, a unit, nginx, Ray Serve."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml
from service_client import rows_of

from kdjax.export.onnx import onnx_file

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent
HERE = ROOT / "examples" / "serve"
SERVE = [sys.executable, str(ROOT / "launch.py"), "serve"]
METRIC = re.compile(r"\bkdjax_[a-z_]+")
PANELS = json.loads((HERE / "grafana.json").read_text("utf-8"))["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
VARIABLES = {"$__rate_interval": "1m", "$detector": ".*", "$entity": ".*"}
RULES = [
    rule
    for group in yaml.safe_load((HERE / "rules.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]


def needs(program):
    """A mark for tests that need a program of `.ci/packages.txt`."""
    return pytest.mark.skipif(not shutil.which(program), reason=f"needs {program}")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def fetch(url, body=None, *, media="application/json"):
    """Status, headers and text of an answer; `body` is posted, as JSON unless a text."""
    if body is not None:
        body = (body if isinstance(body, str) else json.dumps(body)).encode()
    request = urllib.request.Request(url, body, {"content-type": media})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


def eventually(look, seconds=15.0):
    """What `look` gives once it is true."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.05)
    return found


@pytest.fixture
def start(tmp_path):
    """Starts a program and waits until a URL answers 200; all are ended at the end."""
    started = []

    def begin(command, url, *, seconds=30.0, **options):
        log = (tmp_path / f"log{len(started)}").open("w+")
        process = subprocess.Popen(
            [*map(str, command)], stdout=log, stderr=log, **options
        )
        started.append((process, log))

        def answers():
            assert process.poll() is None, Path(log.name).read_text("utf-8")
            try:
                return fetch(url)[0] == 200
            except OSError:
                return False

        eventually(answers, seconds)
        return process

    yield begin
    for process, log in reversed(started):
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        log.close()


def served(start, port, *flags):
    """A process of `kdjax serve`, and its URL."""
    url = f"http://127.0.0.1:{port}"
    return start([*SERVE, f"--port={port}", *flags], f"{url}/readyz"), url


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url):
        self.url = url

    def ask(self, path, **query):
        query = urllib.parse.urlencode(query)
        status, _, text = fetch(f"{self.url}/api/v1/{path}?{query}")
        found = json.loads(text)
        assert (status, found["status"]) == (200, "success"), text
        return found["data"]

    def query(self, expression):
        """Values by labels without those that Prometheus adds."""
        found = self.ask("query", query=expression)["result"]
        return {
            tuple(
                sorted(
                    (key, value)
                    for key, value in series["metric"].items()
                    if key not in ("__name__", "job", "instance")
                )
            ): float(series["value"][1])
            for series in found
        }


@pytest.fixture
def scraped(start, moving, moving_file, tmp_path):
    """The service with a shadow, and the Prometheus of the example that scrapes it."""
    second = tmp_path / "shadow.onnx"
    lower = [one._replace(tau=1.0) for one in moving.thresholds]
    second.write_bytes(onnx_file(moving._replace(thresholds=tuple(lower)), 0))
    port, own = free_port(), free_port()
    flags = (f"--detector={moving_file}", f"--shadow={second}")
    _, url = served(start, port, *flags, f"--state={tmp_path / 'state'}")
    config = (HERE / "prometheus.yml").read_text("utf-8")
    config = config.replace("kdjax:8080", f"127.0.0.1:{port}").replace("15s", "200ms")
    (tmp_path / "prometheus.yml").write_text(config)
    shutil.copy(HERE / "rules.yml", tmp_path)
    command = [
        "prometheus", f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{own}",
    ]  # fmt: skip
    prometheus = f"http://127.0.0.1:{own}"
    start(command, f"{prometheus}/-/ready")
    return url, Prometheus(prometheus)


@needs("prometheus")
def test_prometheus_reads_what_was_done(scraped, moving, moving_file):
    url, prometheus = scraped
    rows = f"{url}/v1/detectors/plant/rows"

    eventually(lambda: prometheus.query('up{job="kdjax"}') == {(): 1})
    # A changed detector, then one that is none.
    moving_file.write_bytes(onnx_file(moving._replace(max_gap=6.0), 0))
    plant = (("detector", "plant"),)
    eventually(lambda: prometheus.query("kdjax_reloads_total") == {plant: 1})
    good = moving_file.read_bytes()
    moving_file.write_bytes(b"none")
    eventually(lambda: prometheus.query("kdjax_refused_reloads_total") == {plant: 1})
    moving_file.write_bytes(good)
    values = {name: rows_of(60, seed) for seed, name in enumerate("ab")}
    answers = []
    for first in range(0, 60, 10):
        part = range(first, first + 10)
        body = {
            "rows": [values[name][n] for n in part for name in "ab"],
            "entity": ["a", "b"] * 10,
            "time": [n for n in part for _ in "ab"],
        }
        status, _, text = fetch(rows, body)
        assert status == 200, text
        answers.append(json.loads(text))
    late = fetch(rows, {"rows": [[1, 2]], "entity": ["a"], "time": [0]})
    assert "error" in json.loads(late[2])["rows"][0]
    one = f"{url}/v1/detectors/plant/streams/a/rows"
    assert fetch(one, {"rows": [[1, 2]], "sequence": 99})[0] == 409
    assert fetch(rows, '{"rows": [[NaN]]}')[0] == 400

    found = [row for answer in answers for row in answer["rows"]]
    events = [event for answer in answers for event in answer["events"]]
    ended = sum(event["end"] is not None for event in events)
    last = {row["entity"]: row for row in found}
    entities = {name: (*plant, ("entity", name)) for name in "ab"}
    wanted = {
        "kdjax_rows_total": {plant: 121},
        "kdjax_windows_total": {plant: sum(r["window_score"] is not None for r in found)},
        "kdjax_alarms_total": {plant: sum(row["alarm"] for row in found)},
        "kdjax_events_begun_total": {plant: len(events) - ended},
        "kdjax_events_ended_total": {plant: ended},
        "kdjax_entities": {plant: 2},
        "kdjax_ready": {plant: 1},
        "kdjax_waiting_rows": {plant: 0},
        "kdjax_score": {entities[n]: last[n]["score"] for n in "ab"},
        "kdjax_window_score": {entities[n]: last[n]["window_score"] for n in "ab"},
        "kdjax_threshold": {entities[n]: 8.0 for n in "ab"},
        'kdjax_refused_rows_total{reason=~"row|sequence|queue"}': {
            (*plant, ("reason", "row")): 1,
            (*plant, ("reason", "sequence")): 1,
            (*plant, ("reason", "queue")): 0,
        },
        "kdjax_refused_requests_total": {(("reason", "400"),): 1},
        'kdjax_requests_total{route=~".*/plant.*|.*/rows"}': {
            (("route", "/v1/detectors/{name}/rows"), ("status", "200")): 7,
            (("route", "/v1/detectors/{name}/rows"), ("status", "400")): 1,
            (("route", "/v1/detectors/{name}/streams/{entity}/rows"), ("status", "409")): 1,
        },
        'kdjax_request_seconds_count{route="/v1/detectors/{name}/rows"}': {
            (("route", "/v1/detectors/{name}/rows"),): 8
        },
    }  # fmt: skip
    assert min(*wanted["kdjax_alarms_total"].values(), ended) > 0
    eventually(lambda: prometheus.query("kdjax_rows_total") == {plant: 121})
    for expression, values in wanted.items():
        assert prometheus.query(expression) == pytest.approx(values), expression
    ages = prometheus.query("kdjax_last_row_age_seconds")
    assert ages.keys() == {plant, *entities.values()}
    assert all(0 <= age < 60 for age in ages.values())
    assert prometheus.query("kdjax_drift_distance").keys() == {*entities.values()}
    by = prometheus.query("kdjax_shadow_alarms")
    assert sum(by.values()) >= wanted["kdjax_alarms_total"][plant] and len(by) == 3
    (about,) = prometheus.query("kdjax_detector_info")
    digest = hashlib.sha256(good).hexdigest()
    assert about == (
        ("backend", "onnxruntime"),
        ("detector", "plant"),
        ("digest", digest),
    )

    (target,) = prometheus.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert fetch(f"{url}/metrics")[1]["content-type"].startswith(
        "application/openmetrics-text"
    )
    # Only OpenMetrics has the type `info`: it was read as such.
    kinds = {n: m[0]["type"] for n, m in prometheus.ask("metadata").items()}
    assert kinds["kdjax_detector"] == "info"
    assert kinds["kdjax_request_seconds"] == "histogram"
    names = {n for n in prometheus.ask("label/__name__/values") if n[:6] == "kdjax_"}
    exported = {
        re.sub("_(bucket|sum|count)$", "", n) for n in names if n[-8:] != "_created"
    }
    table = (ROOT / "docs" / "serve.md").read_text("utf-8").partition("## Metrics")[2]
    documented = re.findall(r"`(kdjax_[a-z_]+)`", table.partition("\n## ")[0])
    assert {*documented} == exported
    # The dashboard and the rules.
    assert len(EXPRESSIONS) > 15
    for expression in EXPRESSIONS:
        assert {*METRIC.findall(expression)} <= names, expression
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        eventually(lambda filled=expression: prometheus.query(filled))
    groups = prometheus.ask("rules")["groups"]
    health = {rule["name"]: rule["health"] for g in groups for rule in g["rules"]}
    assert health == {rule["alert"]: "ok" for rule in RULES}
    for rule in RULES:
        assert {*METRIC.findall(rule["expr"])} <= names, rule["alert"]

    def firing():
        alerts = prometheus.ask("alerts")["alerts"]
        return {a["labels"]["alertname"] for a in alerts if a["state"] == "firing"}

    fired = {"KdjaxEvents", "KdjaxRowsRefused", "KdjaxReloadRefused"}
    assert eventually(lambda: firing() >= fired)


@needs("promtool")
def test_rules_alert_when_they_should(tmp_path):
    def promtool(*arguments, code=0):
        done = subprocess.run(
            ["promtool", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    promtool("check", "rules", HERE / "rules.yml")
    promtool("check", "config", HERE / "prometheus.yml")
    promtool("test", "rules", HERE / "rules_test.yml")
    tested = (HERE / "rules_test.yml").read_text("utf-8")
    assert {rule["alert"] for rule in RULES} == {
        *re.findall(r"alertname: (\w+)\n +exp_alerts", tested)
    }
    # A rule that never fires is seen.
    (tmp_path / "rules_test.yml").write_text(tested)
    text = (HERE / "rules.yml").read_text("utf-8")
    (tmp_path / "rules.yml").write_text(text.replace("> 300", "> 3000"))
    assert "FAILED" in promtool("test", "rules", tmp_path / "rules_test.yml", code=1)
