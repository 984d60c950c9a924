"""`kdjax serve` as it is deployed: Prometheus, an image's lines, a unit, nginx, Ray Serve."""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY, wave
from service_client import rows_of
from test_service_deploy import command_of, lines_of

from kdjax.export.onnx import onnx_file
from kdjax.scoring.opening import open_streams

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
    """Starts a program and waits until a URL, or a function that asks, answers 200."""
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
                return (url() if callable(url) else fetch(url)[0]) == 200
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
    # This service has no source; test_integration_sources.py reads their metrics.
    own = {name for name in documented if not name.startswith("kdjax_source_")}
    assert own == exported
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


class Machine:
    """A folder in the place of `/`, and a user who is not root."""

    def __init__(self, root):
        self.root = root
        ours = ("PIP_", "SSL_", "REQUESTS_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
        kept = {k: v for k, v in os.environ.items() if k.upper().startswith(ours)}
        self.options = {"cwd": root, "env": {**kept, "HOME": str(root)}}
        if os.getuid() == 0:
            root.chmod(0o755)
            os.chown(root, 65534, 65534)
            self.options |= {"user": 65534, "group": 65534, "extra_groups": []}
        asked = "import sys, ensurepip; sys.exit(sys.version_info < (3, 11))"
        for python in (sys._base_executable, "/usr/bin/python3"):
            if self.run([python, "-c", asked]) == 0:
                path = f"{Path(python).parent}:/usr/bin:/bin"
                self.options["env"]["PATH"] = path
                return
        pytest.skip("needs a Python that another user may run (python3-venv)")

    def run(self, command):
        """The exit code of a command."""
        try:
            done = subprocess.run(command, check=False, **self.options)
        except PermissionError:
            return 126
        return done.returncode

    def inside(self, text):
        """A text whose paths of the image or unit lie in the folder."""
        return re.sub(
            r"(?<![\w./])(?=/(opt|state|build|detectors|var)\b)", str(self.root), text
        )

    def path(self, text):
        return Path(self.inside(text))


def adapted(machine, command, port):
    return [machine.inside(word.replace("8080", str(port))) for word in command]


@pytest.fixture(scope="module")
def machine():
    """What the lines of the Dockerfile make, but for its libraries of the system."""
    root = Path(tempfile.mkdtemp(prefix="kdjax-image-"))
    try:
        machine = Machine(root)
        work = root
        text = (ROOT / "Dockerfile").read_text("utf-8")
        for word, rest in re.findall(r"^([A-Z]+) (.*)$", text, flags=re.MULTILINE):
            if word == "WORKDIR":
                work = machine.path(rest)
                machine.run(["mkdir", "-p", work])
            elif word == "COPY" and "--from=" in rest:
                _, source, target = rest.split()
                assert source == target and machine.path(source).is_dir()
            elif word == "COPY":
                *names, target = rest.split()
                for name in names:
                    to = work / (target if target != "./" else Path(name).name)
                    if (ROOT / name).is_dir():
                        ignore = shutil.ignore_patterns("__pycache__")
                        shutil.copytree(ROOT / name, to, ignore=ignore)
                    else:
                        shutil.copy(ROOT / name, to)
            elif word == "RUN":
                shell = f"umask 022; cd {work}; {machine.inside(rest)}"
                assert machine.run(["bash", "-euc", shell]) == 0, rest
        yield machine
    finally:
        shutil.rmtree(root)


def put(machine, file, target):
    target = machine.path(target)
    machine.run(["mkdir", "-p", target.parent])
    shutil.copy(file, target)
    target.chmod(0o644)


def test_the_image_answers_rows_without_jax(machine, start, moving_file):
    put(machine, moving_file, "/detectors/plant.onnx")
    python = machine.path("/opt/kdjax/bin/python")
    assert machine.run([python, "-c", "import kdjax, starlette, onnxruntime"]) == 0
    assert machine.run([python, "-c", "import jax"]) == 1
    path, port = ROOT / "Dockerfile", free_port()
    (health,) = lines_of(path, "HEALTHCHECK")
    health = adapted(machine, json.loads(health.partition(" CMD ")[2]), port)
    command = adapted(machine, command_of(path), port)
    assert machine.run(health) == 1
    url = f"http://127.0.0.1:{port}"
    process = start(command, f"{url}/healthz", **machine.options)
    owner = Path(f"/proc/{process.pid}").stat().st_uid
    assert owner == machine.options.get("user", os.getuid()) != 0
    assert machine.run(health) == 0
    values = rows_of(20)
    status, _, text = fetch(
        f"{url}/v1/detectors/plant/streams/a/rows", {"rows": values, "sequence": 0}
    )
    assert status == 200
    rows = json.loads(text)["rows"]
    status, _, text = fetch(f"{url}/v1/detectors/plant/score", {"rows": values})
    assert [row["score"] for row in json.loads(text)["rows"]] == [
        row["score"] for row in rows
    ]
    status, _, text = fetch(
        f"{url}/v1/detectors/plant/score", {"windows": [values[:4]]}
    )
    assert status == 200 and json.loads(text)["window_score"] == [
        rows[3]["window_score"]
    ]
    for page in ("metrics", "v1/events", "openapi.json", "v2/models/plant"):
        assert fetch(f"{url}/{page}")[0] == 200
    process.terminate()
    assert process.wait(10) == 0
    assert machine.run(health) == 1
    assert machine.path("/state/plant.sqlite").stat().st_size > 0


@needs("systemd-analyze")
def test_the_unit_runs_and_goes_on_after_a_kill(machine, start, moving_file, tmp_path):
    put(machine, moving_file, "/var/lib/kdjax/plant.onnx")
    unit, port = HERE / "kdjax-serve.service", free_port()
    copy = tmp_path / unit.name
    copy.write_text(machine.inside(unit.read_text("utf-8")))
    done = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    command = adapted(machine, command_of(unit), port)
    url = f"http://127.0.0.1:{port}"
    rows = f"{url}/v1/detectors/plant/streams/a/rows"
    values, found = rows_of(40), []
    for first in (0, 20):
        process = start(command, f"{url}/readyz", **machine.options)
        body = {"rows": values[first : first + 20], "sequence": first}
        found += json.loads(fetch(rows, body)[2])["rows"]
        if first == 0:
            process.kill()
            process.wait()
    assert [row["row"] for row in found] == [*range(40)]
    _, _, text = fetch(f"{url}/v1/detectors/plant/score", {"rows": values})
    wanted = [row["window_score"] for row in json.loads(text)["rows"]]
    assert [row["window_score"] for row in found] == wanted
    process.terminate()
    assert process.wait(int(lines_of(unit, "TimeoutStopSec")[0])) == 0
    alarms = machine.path("/var/lib/kdjax/alarms.jsonl").read_text("utf-8")
    begun = [json.loads(line) for line in alarms.splitlines()]
    assert {message["phase"] for message in begun} == {"begin", "end"}


@pytest.fixture
def phone():
    """A server in the place of ntfy: the requests that came."""
    came = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            came.append((self.path, dict(self.headers), text))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", came
    server.shutdown()
    server.server_close()


@needs("curl")
def test_from_zero_to_an_alarm_on_a_phone(start, phone, tmp_path):
    """The page's lines as they stand there, but for addresses and the size of networks."""
    page = (ROOT / "docs" / "serve.md").read_text("utf-8")
    section = page.partition("## From zero")[2].partition("\n## ")[0]
    lines = re.findall(r"^    (.*)$", section, flags=re.MULTILINE)
    assert "pip install" in lines[0] and len(lines) == 8
    values = wave(np.random.default_rng(0), 900)
    times = pd.date_range("2026-01-01", periods=900, freq="s")
    table = pd.DataFrame({"time": times, "load": values[:, 0], "heat": values[:, 1]})
    table.to_csv(tmp_path / "plant.csv", index=False)
    changes = TINY | {"baselines": "classifier", "classifier.steps": 300}
    small = [f"--config.{key}={value}" for key, value in changes.items()]
    (tmp_path / "bin").mkdir()
    kdjax = tmp_path / "bin" / "kdjax"
    kdjax.write_text(
        f'#!/bin/bash\n[ "$1" = run ] && set -- "$@" {shlex.join(small)}\n'
        f'exec {sys.executable} {ROOT / "launch.py"} "$@"\n'
    )
    kdjax.chmod(0o755)
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    address, came = phone
    url = f"http://127.0.0.1:{free_port()}"
    environment = os.environ | {"PATH": f"{kdjax.parent}:{os.environ['PATH']}"}
    options = {"cwd": tmp_path, "env": environment}
    for line in lines[1:]:
        line = line.replace("https://ntfy.sh", address)
        line = line.replace("http://127.0.0.1:8080", url)
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            environment[name] = value
        elif line.startswith("kdjax serve"):
            words = shlex.split(line.removesuffix(" &"))
            port = url.rpartition(":")[2]
            start([*words, f"--port={port}"], f"{url}/readyz", **options)
        else:
            subprocess.run(["bash", "-euc", line], check=True, timeout=60, **options)
    # The last rows, perhaps behind a false alarm of so small a network.
    end = "\n2026-01-01 00:14:40"
    eventually(lambda: came and came[-1][2].endswith(end))
    path, headers, text = came[-1]
    assert path == "/plant-4f1c8a7e2b"
    assert headers["Title"] == "pump: score begin" and headers["Priority"] == "high"
    assert float(text.partition(" × its threshold: load 9")[0]) > 10


@needs("curl")
def test_lines_that_change_something(start, moving, moving_file, tmp_path):
    """Those of the page's section on security, but for the address and the first two."""
    page = (ROOT / "docs" / "serve.md").read_text("utf-8")
    section = page.partition("\n## Security")[2].partition("\n## ")[0]
    make, begin, names, *lines = re.findall(r"^    (.*)$", section, flags=re.MULTILINE)
    assert len(lines) == 7 and make.startswith("openssl")
    subprocess.run(["bash", "-euc", make], check=True, cwd=tmp_path)
    new = moving._replace(thresholds=(moving.thresholds[0]._replace(tau=4.0),) * 2)
    (tmp_path / "new.onnx").write_bytes(onnx_file(new, 0))
    port = free_port()
    words = shlex.split(begin.removesuffix(" &"))[2:]
    url = f"http://127.0.0.1:{port}"
    start([*SERVE, *words, f"--port={port}"], f"{url}/readyz", cwd=tmp_path)
    rows = json.dumps({"rows": [[0.1, 0.2]] * 20 + [[90.0, -90.0], [0.1, 0.2]]})
    send = f'curl -fsS -H "$auth" -H "$json" $url/detectors/plant/streams/pump/rows -d {shlex.quote(rows)}'
    names = names.replace("http://127.0.0.1:8080", url)
    script = [names, send, *(line.replace("curl ", "curl -fsS ") for line in lines)]
    script = [
        f"{line} || [ $? = 28 ]" if "--max-time" in line else line for line in script
    ]
    done = subprocess.run(
        ["bash", "-euc", "; echo; ".join(script)],
        check=True, cwd=tmp_path, timeout=40, capture_output=True, text=True,
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if line.strip()]
    answered, change, seen, shelved = map(json.loads, found[:4])
    (event,) = [e for e in answered["events"] if e["kind"] == "score"]
    assert (change["tau"], change["before"], change["entity"]) == (7.5, 8.0, "pump")
    assert seen["id"] == shelved["id"] == event["id"]
    assert seen["acknowledged"]["by"] == "eve"
    assert shelved["shelved"]["until"] == 1772431200  # 2026-03-02T06:00:00Z
    assert any(f'"id":"{event["id"]}"' in line for line in found if line[:5] == "data:")
    compared, promoted = map(json.loads, found[-2:])
    assert compared["rows"] == 22 and compared["digest"] == promoted["digest"]


@pytest.fixture
def process_of():
    """The function of the page that chooses a process."""
    page = (ROOT / "docs" / "serve.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(def process_of.*?)```", page, flags=re.DOTALL)
    names = {"hashlib": hashlib}
    exec(code, names)  # noqa: S102 - our own page
    return names["process_of"]


def test_a_process_more_takes_its_share_only(process_of):
    names = [f"pump {n}" for n in range(3000)]
    before = [process_of(name, ("a", "b", "c")) for name in names]
    after = [process_of(name, ("a", "b", "c", "d")) for name in names]
    moved = [new for old, new in zip(before, after, strict=True) if new != old]
    assert {*moved} == {"d"} and len(moved) == pytest.approx(750, rel=0.1)
    assert all(before.count(name) == pytest.approx(1000, rel=0.1) for name in "abc")


@needs("nginx")
def test_two_processes_answer_as_one(start, process_of, moving_file, tmp_path):
    """Rows of some entities come by nginx, those of others by the client's own choice."""
    ports = [free_port() for _ in range(4)]

    def begin(place):
        state = f"--state={tmp_path / f'state{place}'}"
        return served(start, ports[place], f"--detector={moving_file}", state)

    started, (*urls, alone) = zip(*map(begin, range(3)), strict=True)
    text = (HERE / "nginx.conf").read_text("utf-8")
    for port, own in ((8081, ports[0]), (8082, ports[1]), (8080, ports[3])):
        text, count = re.subn(rf"127\.0\.0\.1:{port}\b", f"127.0.0.1:{own}", text)
        assert count == 1
    folders = "".join(
        f"{name}_temp_path {tmp_path / name}; "
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = tmp_path / "nginx.conf"
    user = "user root; " if os.getuid() == 0 else ""
    config.write_text(
        f"{user}daemon off; pid {tmp_path / 'pid'}; error_log stderr; events {{}} "
        f"http {{ access_log off; {folders}{text} }}"
    )
    detector = "/v1/detectors/plant"
    proxy = f"http://127.0.0.1:{ports[3]}{detector}"
    start(
        ["nginx", "-p", tmp_path, "-e", "stderr", "-c", config],
        lambda: fetch(f"{proxy}/score", {"rows": [[1, 2]]})[0],
    )

    by_proxy, by_client = (
        [f"pump {n}" for n in range(8)],
        [f"fan/{n}" for n in range(8)],
    )
    values = {name: rows_of(30, n) for n, name in enumerate(by_proxy + by_client)}
    found = {name: [] for name in values}
    wanted = {name: [] for name in values}

    def keep(into, answer):
        for row in answer["rows"]:
            into[row["entity"]].append(row)
        for event in answer["events"]:
            into[event["entity"]].append(event)

    def send(url, body):
        """Status and answer; 502 where nobody listens, as a proxy says."""
        try:
            status, _, text = fetch(url, body)
        except OSError:
            return 502, None
        return status, json.loads(text) if status == 200 else None

    def of_stream(name, first):
        body = {"rows": values[name][first : first + 5], "sequence": first}
        return f"streams/{urllib.parse.quote(name)}/rows", body

    def of_many(names, first):
        rows = [
            {"entity": n, "x": x, "y": y, "sequence": first + place}
            for n in names
            for place, (x, y) in enumerate(values[n][first : first + 5])
        ]
        return "rows", {"rows": rows}

    for first in range(0, 30, 5):
        for work in (
            *(of_stream(n, first) for n in by_proxy),
            of_many(by_client, first),
        ):
            status, answer = send(f"{alone}{detector}/{work[0]}", work[1])
            assert status == 200
            keep(wanted, answer)
        shares = [[n for n in by_client if process_of(n, urls) == url] for url in urls]
        works = [(f"{proxy}/{path}", body) for path, body in
                 (of_stream(name, first) for name in by_proxy)]  # fmt: skip
        for url, share in zip(urls, shares, strict=True):
            path, body = of_many(share, first)
            works.append((f"{url}{detector}/{path}", body))
        if first == 15:
            started[1].kill()
            started[1].wait()
            failed = []
            for work in works:
                status, answer = send(*work)
                assert status in (200, 502)
                if status == 200:
                    keep(found, answer)
                else:
                    failed.append(work)
            # Rows of the entities of one process went nowhere else.
            assert 1 < len(failed) < len(works) and works[-1] in failed
            begin(1)
            works = failed
        for work in works:
            status, answer = send(*work)
            assert status == 200
            keep(found, answer)
    assert found == wanted
    assert sum("id" in line for lines in found.values() for line in lines) > 10
    known = []
    for url in (*urls, alone):
        about = json.loads(fetch(f"{url}{detector}")[2])
        known.append((about["known_entities"], about["rows"]))
    assert known[2] == (16, 480) and [a + b for a, b in zip(*known[:2])] == [16, 480]
    assert min(known[0][0], known[1][0]) >= 4
    # What was answered is known after all.
    path, body = of_stream(by_proxy[0], 0)
    answer = send(f"{proxy}/{path}", body)[1]
    assert all(row["repeated"] for row in answer["rows"])


def holders(file):
    """Processes that have a file open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == file:
                found.add(int(link.parts[2]))
        except OSError:  # it ended, or is another user's
            continue
    return found


def test_ray_serve_runs_the_same_application(start, process_of, moving_file, tmp_path):
    pytest.importorskip("ray.serve", reason="needs ray[serve], the extra ray")
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        sys.executable, HERE / "ray_serve.py", moving_file, f"--state={tmp_path / 'state'}",
        f"--port={url.rpartition(':')[2]}",
    ]  # fmt: skip
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    ready = f"{url}/1/readyz"
    process = start(command, ready, seconds=180.0, env=environment)
    names = [f"pump {n}" for n in range(6)]
    places = {name: process_of(name, (0, 1)) for name in names}
    assert {*places.values()} == {0, 1}
    streams = open_streams(moving_file, backend="onnxruntime")

    def send(name, first):
        target = f"{url}/{places[name]}/v1/detectors/plant/streams"
        target = f"{target}/{urllib.parse.quote(name)}/rows"
        body = {"rows": rows_of(20, names.index(name))[first : first + 10]}
        status, _, text = fetch(target, body | {"sequence": first})
        assert status == 200, text
        wanted = [streams[name].update(row) for row in body["rows"]]
        found = json.loads(text)["rows"]
        assert [row["row"] for row in found] == [row.row for row in wanted]
        scores = [row["window_score"] for row in found if row["window_score"]]
        assert scores == [
            r.window_score for r in wanted if r.window_score == r.window_score
        ]

    for name in names:
        send(name, 0)
    database = tmp_path / "state" / "1" / "plant.sqlite"
    (replica,) = before = holders(database)
    os.kill(replica, signal.SIGKILL)
    eventually(lambda: holders(database) - before, 30.0)
    eventually(lambda: fetch(ready)[0] == 200)
    for name in names:
        send(name, 10)
    process.terminate()
    assert process.wait(30) == 0
    eventually(lambda: not holders(database))
