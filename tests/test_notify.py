"""Alarms go to receivers: in order, at least once, over restarts, and never in the way."""

import contextlib
import http.server
import io
import json
import os
import shlex
import shutil
import signal
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from kdjax.cli import flags_of, main
from kdjax.detection.occurrences import Peak, joined
from kdjax.detection.storage import save_detector
from kdjax.errors import ArtifactError, ConfigError
from kdjax.export.onnx import onnx_file
from kdjax.io import signals
from kdjax.io.files import MANIFEST, load_state, save_state, sha256
from kdjax.notify import outbox
from kdjax.notify.outbox import receivers
from kdjax.scoring.streams import run_stream

QUIET, SPIKE = (2.0, 1.0), (10.0, 1.0)  # a_t of `small`: 0 and 80, at a τ of 8
EVENTS = ((10, 15), (25, 28))  # rows of the first spike, and of the last alarm


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(outbox, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(outbox, "LAST_WAIT", 5.0)


@pytest.fixture
def timed(small):
    return small._replace(
        step=1.0, no_data=True, calibration=(np.arange(20.0), np.arange(40.0))
    )


@pytest.fixture
def file(timed, tmp_path):
    path = tmp_path / "detector.onnx"
    path.write_bytes(onnx_file(timed, 0))
    return path


def row_lines(form="csv", rows=40, spikes=(10, 12, 25)):
    """Rows a second apart; the first event has two spikes, the second one."""
    values = [SPIKE if row in spikes else QUIET for row in range(rows)]
    times = [f"2026-05-01T00:00:{row:02d}" for row in range(rows)]
    if form == "json":
        return [
            json.dumps({"time": stamp, "x": x, "y": y})
            for stamp, (x, y) in zip(times, values, strict=True)
        ]
    cells = zip(times, values, strict=True)
    return ["time,x,y", *(f"{stamp},{x},{y}" for stamp, (x, y) in cells)]


def streamed(lines, file, *, log=None, **options):
    """The objects that a stream wrote."""
    output = io.StringIO()
    options = {"backend": "onnxruntime"} | options
    said = [] if log is None else log
    run_stream(lines, output, detector=file, log=said.append, **options)
    return [json.loads(line) for line in output.getvalue().splitlines()]


def messages(text):
    return [json.loads(line) for line in text.splitlines()]


def phases(found):
    return [(message["id"], message["phase"]) for message in found]


@pytest.fixture
def receiver():
    """A loopback server: what it takes lies in `taken`; `answer(number)` is what it does."""
    servers = []

    def start(answer=lambda number: 204, *, context=None):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.seen.append(body)
                status = answer(len(server.seen))
                if status is None:
                    return  # it hangs up
                if status < 300:
                    server.taken.append(json.loads(body))
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def do_GET(self):
                server.seen.append(b"GET")
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.seen, server.taken = [], []
        server.url = f"http{'s' * bool(context)}://127.0.0.1:{server.server_port}/hook"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("backend", "form"), [("onnxruntime", "csv"), ("jax", "json")])
def test_a_message_has_all_that_is_known_of_an_event(
    timed, file, tmp_path, backend, form
):
    if backend == "jax":
        file = tmp_path / "detector"
        save_detector(file, timed)
    target = tmp_path / "alarms" / "pump.jsonl"
    lines = row_lines(form)
    found = streamed(
        lines, file, backend=backend, entity="a", on_alarm=(f"file:{target}",)
    )
    sent = messages(target.read_text())
    digest = sha256(file / MANIFEST if file.is_dir() else file)
    told = [line["event"] for line in found if line["row"] is None]
    assert sent == [
        event | {"detector": digest, "phase": "end" if event["end"] else "begin"}
        for event in told
    ]
    assert [message["phase"] for message in sent] == ["begin", "end"] * 2
    assert sent[0]["id"] == sent[1]["id"] != sent[2]["id"] == sent[3]["id"]
    rows = [line for line in found if line["row"] is not None]
    # Shares by hand: (R^(−1/2) S⁻¹ d)² of Garthwaite and Koch.
    whiten = timed.gaussians.whiten[0].astype(float)
    covariance = np.linalg.inv(whiten.T @ whiten)
    scale = np.sqrt(np.diag(covariance))
    inverse = np.linalg.inv(covariance / np.outer(scale, scale))
    parts = (scipy.linalg.sqrtm(inverse) @ (np.array([4.0, 0.0]) / scale)) ** 2
    assert parts.sum() == pytest.approx(80)
    for (start, end), message in zip(EVENTS, sent[1::2], strict=True):
        assert message["entity"] == "a" and message["kind"] == "score"
        assert message["start"] == message["peak"] == f"2026-05-01T00:00:{start}"
        assert message["end"] == f"2026-05-01T00:00:{end}"
        assert message["score"] == pytest.approx(80)
        largest = max(row["window_score"] for row in rows[start : end + 1])
        assert message["window_score"] == largest and message["tau"] == 8
        assert message["severity"] == pytest.approx(largest / 8)
        assert message["channels"] == ["x", "y"]
        assert message["shares"] == pytest.approx(parts / parts.sum(), abs=1e-4)


def test_score_and_severity_are_of_their_own_rows(file, tmp_path):
    """With a τ that moves the largest severity need not be at the largest score."""
    target = tmp_path / "alarms"
    rows = streamed(row_lines(), file, adaptive_step=0.05, on_alarm=(f"file:{target}",))
    rows = [row for row in rows if row["row"] is not None and row["alarm"]]
    (first, *_) = [m for m in messages(target.read_text()) if m["phase"] == "end"]
    own = [row for row in rows if first["start"] <= row["time"] <= first["end"]]
    best = max(own, key=lambda row: row["window_score"] / float(row["tau"]))
    assert first["tau"] == best["tau"] != 8
    assert first["window_score"] == best["window_score"]
    assert first["score"] == max(row["score"] for row in own)
    high = Peak(9.0, "b", ("x",), severity=1.5, window_score=9.0, tau=6.0, own=9.0)
    severe = Peak(8.0, "a", ("y",), severity=4.0, window_score=8.0, tau=2.0, own=8.0)
    expected = Peak(9.0, "b", ("x",), severity=4.0, window_score=8.0, tau=2.0, own=9.0)
    assert joined(high, severe) == joined(severe, high) == expected


def test_a_message_names_the_cause_that_its_window_saw(file, tmp_path):
    """Row 0 is abnormal; the first window ends at row 3, so that the event begins there."""
    target = tmp_path / "alarms"
    lines = row_lines(spikes=(0,))
    lines[4] = lines[4].replace("2.0,1.0", "2.0,3.0")  # y moves in row 3, a little
    rows = streamed(lines, file, on_alarm=(f"file:{target}",))
    first = next(row for row in rows if row["row"] == 3)
    begun, ended = messages(target.read_text())
    assert (first["alarm"], first["channels"][0]) == (1, "x")
    for message in (begun, ended):
        assert message["channels"] == first["channels"]
        assert message["score"] == message["window_score"] == 80
        assert message["start"] == message["peak"] == "2026-05-01T00:00:03"


def test_other_kinds_have_no_score(file, tmp_path):
    lines = row_lines()
    del lines[20:32]
    streamed(lines, file, on_alarm=(f"file:{tmp_path / 'alarms'}",))
    sent = messages((tmp_path / "alarms").read_text())
    begun, ended = [message for message in sent if message["kind"] == "no_data"]
    assert begun["kind"] == "no_data" and begun["text"].startswith("no data since")
    for name in ("severity", "score", "window_score", "tau"):
        assert begun[name] is None and ended[name] is None
    assert begun["shares"] == [] and ended["end"] == "2026-05-01T00:00:31"


def test_what_is_refused_comes_again_in_order(receiver, file):
    statuses = {1: 500, 2: None, 4: 429, 5: 302, 6: 307}
    server = receiver(lambda number: statuses.get(number, 201))
    log = []
    found = streamed(row_lines(), file, log=log, on_alarm=(f"webhook:{server.url}",))
    told = [line["event"]["id"] for line in found if line["row"] is None]
    assert [message["id"] for message in server.taken] == told
    assert [message["phase"] for message in server.taken] == ["begin", "end"] * 2
    assert len(server.seen) == 4 + len(statuses)
    assert b"GET" not in server.seen  # a redirection is not followed
    (line,) = [line for line in log if "did not accept" in line]  # once a minute
    assert line.startswith(f"webhook:{server.url.removesuffix('/hook')} did not accept")
    assert "HTTP Error 500" in line


def test_a_receiver_that_hangs_holds_up_nobody_else(
    receiver, file, tmp_path, monkeypatch
):
    free = threading.Event()
    server = receiver(lambda number: free.wait(60) and 204)
    monkeypatch.setattr(outbox, "LAST_WAIT", 0.3)
    log, target = [], tmp_path / "alarms"
    begun = time.monotonic()
    found = streamed(
        row_lines(), file, log=log, on_alarm=(f"webhook:{server.url}", f"file:{target}")
    )
    took = time.monotonic() - begun
    free.set()
    assert sum(line["row"] is not None for line in found) == 40
    assert took < 10 and not server.taken and len(server.seen) == 1
    assert len(messages(target.read_text())) == 4  # the other one has them all
    assert any(line.startswith("without a state, alarm messages") for line in log)
    assert log[-2].endswith(
        "not accept 4 alarm messages: lost, since there is no --state."
    )


def test_a_stream_keeps_pace_while_a_receiver_hangs(receiver, file, tmp_path):
    """Rows are answered, and events told, before the first message is taken."""
    free = threading.Event()
    server = receiver(lambda number: free.wait(60) and 204)
    output, seen = io.StringIO(), []

    def lines():
        for line in row_lines():
            yield line
            seen.append((output.getvalue().count("\n"), len(server.taken)))
        free.set()

    run_stream(
        lines(), output, detector=file, backend="onnxruntime",
        state=tmp_path / "state", on_alarm=(f"webhook:{server.url}",),
    )  # fmt: skip
    assert seen[-1] == (40 + 4, 0)
    assert len(server.taken) == 4


def test_what_was_not_delivered_comes_after_a_restart(
    receiver, file, tmp_path, monkeypatch
):
    monkeypatch.setattr(outbox, "LAST_WAIT", 0.1)
    with http.server.HTTPServer(
        ("127.0.0.1", 0), http.server.BaseHTTPRequestHandler
    ) as s:
        closed = f"webhook:http://127.0.0.1:{s.server_port}/"
    options = {"state": tmp_path / "state", "entity": None}
    log, lines = [], row_lines()
    streamed(lines[:13], file, log=log, on_alarm=(closed,), **options)
    assert log[-2].endswith(
        "not accept 1 alarm message: sent again by the next run with this state."
    )
    streamed(lines[:20], file, **options)  # without receivers they wait; so no end
    log.clear()
    streamed(lines[:20], file, log=log, on_alarm=(closed,), **options)
    assert "1 alarm message waits; trying again" in " ".join(log)
    # With the address put right, another receiver has what waited.
    server = receiver()
    streamed(lines, file, on_alarm=(f"webhook:{server.url}",), **options)
    assert [m["phase"] for m in server.taken] == ["begin", "end"] * 2
    assert load_state(tmp_path / "state")["alarms"] == {"length": 0, "taken": {}}
    streamed(lines, file, on_alarm=(f"webhook:{server.url}",), **options)
    assert len(server.taken) == 4  # nothing comes again after a clean end


def test_a_spool_that_is_not_the_states_is_refused(file, tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "LAST_WAIT", 0.1)
    state = tmp_path / "state"
    options = {"state": state, "on_alarm": (f"command:{shutil.which('false')}",)}
    streamed(row_lines(), file, **options)
    spool = tmp_path / "state.alarms"
    whole = spool.read_bytes()
    assert len(messages(whole.decode())) == 4
    spool.write_bytes(whole + b"{never released")
    streamed(row_lines(), file, **options)
    assert spool.read_bytes() == whole
    spool.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match=r"state\.alarms has .* restore it, or rem"):
        streamed(row_lines(), file, **options)
    save_state(state, load_state(state) | {"alarms": {"length": "long"}})
    with pytest.raises(ArtifactError, match="not written by `stream`"):
        streamed(row_lines(), file, **options)


def test_silence_goes_to_receivers_while_it_lasts(timed, tmp_path, monkeypatch):
    monkeypatch.setattr("kdjax.scoring.streams.TELL_EVERY", 0.02)
    path, target = tmp_path / "fast.onnx", tmp_path / "alarms"
    path.write_bytes(onnx_file(timed._replace(step=0.04), 0))
    seen = []

    def lines():
        yield "time,x,y"
        for place in range(6):
            if place == 5:
                deadline = time.monotonic() + 20
                while not target.exists() and time.monotonic() < deadline:
                    time.sleep(0.02)
                seen.extend(messages(target.read_text()))
            yield f"2026-05-01T00:00:00.{40 * place:03d},2,1"

    streamed(lines(), path, on_alarm=(f"file:{target}",))
    (begun,) = seen
    assert begun["kind"] == "no_data" and begun["phase"] == "begin"
    assert phases(messages(target.read_text()))[1] == (begun["id"], "end")


SHOUTS = """
import json, sys
message = json.load(sys.stdin)
print("this is no answer")
with open(sys.argv[1], "a") as file:
    print(*sys.argv[2:], message["phase"], file=file)
if open(sys.argv[1]).read().count("\\n") == 1:
    print("the table is locked", file=sys.stderr)
    sys.exit(3)
"""


def test_a_program_gets_messages_as_its_input(file, tmp_path, capfd):
    script, notes = tmp_path / "it's.py", tmp_path / "notes"
    script.write_text(SHOUTS)
    command = f'command:{sys.executable} "{script}" {notes} "a b" ;echo $HOME, > x'
    log = []
    streamed(row_lines(rows=22), file, log=log, on_alarm=[command])
    lines = notes.read_text().splitlines()
    # As they are, without a shell; the first one failed.
    assert lines == [f"a b ;echo $HOME, > x {p}" for p in ("begin", "begin", "end")]
    assert "exit code 3: the table is locked" in " ".join(log)
    assert "no answer" not in capfd.readouterr().out


def test_a_program_that_hangs_is_ended_with_all_it_started(file, tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "TIMEOUT", 0.5)
    script, notes = tmp_path / "hang.py", tmp_path / "pids"
    script.write_text(
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(notes)!r}, 'a').write(f'{{os.getpid()}} {{child.pid}}\\n')\n"
        "time.sleep(600 if open(sys.argv[1]).read().count('\\n') == 1 else 0)\n"
        "child.kill()\n"
    )
    log = []
    command = f"command:{sys.executable} {script} {notes}"
    streamed(row_lines(rows=14), file, log=log, on_alarm=(command,))
    assert "it did not end within 0.5 s" in " ".join(log)
    for number in notes.read_text().splitlines()[0].split():
        ps = subprocess.run(
            ["ps", "-o", "stat=", number], check=False, capture_output=True, text=True
        )
        assert ps.stdout.strip()[:1] in ("", "Z")


def test_a_file_that_ends_inside_a_line(file, tmp_path):
    target = tmp_path / "alarms"
    target.write_text('{"id": "cut o')
    streamed(row_lines(), file, on_alarm=(f"file:{target}",))
    first, *rest = target.read_text().splitlines()
    assert first == '{"id": "cut o' and len(messages("\n".join(rest))) == 4


def test_a_certificate_that_nobody_signed_is_refused(
    receiver, file, tmp_path, monkeypatch
):
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    command = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    paths = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    subprocess.run(
        ["openssl", *command.split(), "-addext", "subjectAltName=IP:127.0.0.1", *paths],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server = receiver(context=context)
    monkeypatch.setattr(outbox, "LAST_WAIT", 0.3)
    log, options = [], {"state": tmp_path / "s", "on_alarm": (f"webhook:{server.url}",)}
    streamed(row_lines(), file, log=log, **options)
    assert not server.seen and "CERTIFICATE_VERIFY_FAILED" in " ".join(log)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
    streamed(row_lines(), file, **options)
    assert len({*phases(server.taken)}) == 4


def test_receivers_and_their_names():
    texts = [
        "webhook:https://u.example/secret?a=1,2,command:true --x=1,2",
        "file:a,b.jsonl",
        "file:a,b.jsonl",
    ]
    found = receivers(texts)
    names = ["webhook:https://u.example", "command:true", "file:a,b.jsonl"]
    assert [one.name for one in found] == names
    assert len({one.key for one in found}) == 3
    assert receivers(["", " "]) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "https://host/path",
            "'https://host/path' is not a receiver: give webhook",
        ),
        ("mail:me", "is not a receiver"),
        ("file:", "is not a receiver"),
        ("webhook:ftp://host/path", "it is not an http or https URL"),
        ("webhook:file:///etc/passwd", "it is not an http or https URL"),
        ("webhook:http:///path", "it is not an http or https URL"),
        ("webhook:http://host:99999/", "can't post to this URL"),
        ("webhook:http://host/a b", "characters that a URL can't have"),
        ("webhook:http://host/\r\nX: y", "characters that a URL can't have"),
        ("webhook:http://me:secret@host/", "it has a user"),
        (
            "command:no-such-program --x",
            "is not a program that can be run",
        ),
        ("command:echo 'a", "No closing quotation"),
        ("command: ", "is not a receiver"),
        ("file:/", "is a folder: give a file"),
        ("file:state", "would replace state, which is needed"),
        ("file:state.alarms", "would replace state.alarms, which is needed"),
    ],
)
def test_what_can_be_no_receiver(file, tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        streamed(row_lines(), file, state="state", on_alarm=(text,))
    assert said in str(caught.value) and "secret@" not in str(caught.value)


def test_the_flag_may_be_repeated(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(row_lines())))
    first, second, third = (tmp_path / name for name in "abc")
    flags = [f"--on_alarm=file:{first},file:{second}", f"--on_alarm=file:{third}"]
    arguments = ["kdjax", "stream", f"--detector={file}", "--backend=onnxruntime"]
    assert main([*arguments, *flags]) == 0
    assert len(messages(first.read_text())) == 4
    assert first.read_text() == second.read_text() == third.read_text()
    capsys.readouterr()
    assert main([*arguments, "--on_alarm=mail:me"]) == 2
    assert "is not a receiver" in capsys.readouterr().err


@pytest.mark.parametrize("fails", [True, False])
def test_a_delivery_may_end_after_the_stream(fails):
    begun, free = threading.Event(), threading.Event()

    def deliver(message):
        begun.set()
        assert free.wait(60)
        if fails:
            raise OSError("no connection")

    before, log = {*threading.enumerate()}, []
    box = outbox.Outbox((outbox.Receiver("k", "name", deliver),), log=log.append)
    (thread,) = {*threading.enumerate()} - before
    box.add(["1", "2"])
    assert not begun.wait(0.1)  # not before the state is saved
    box.release(box.state())
    assert begun.wait(60)
    box.close()
    free.set()
    thread.join(60)
    assert not thread.is_alive() and not log


EXAMPLES = Path(__file__).parent.parent / "examples" / "alarms"


def test_the_examples_take_messages_and_drop_repeats(receiver, file, tmp_path):
    lines = row_lines()
    del lines[30:41]  # the second event has not ended
    server = receiver()
    environment = os.environ | {"CHAT_URL": server.url}

    def run(script, message, *arguments):
        command = [sys.executable, EXAMPLES / script, *arguments]
        text = json.dumps(message)
        subprocess.run(command, input=text, text=True, check=True, env=environment)

    target = tmp_path / "alarms"
    streamed(lines, file, state=tmp_path / "s", on_alarm=(f"file:{target}",))
    sent = messages(target.read_text())
    assert [message["phase"] for message in sent] == ["begin", "end", "begin"]
    for message in sent:
        run("chat.py", message)
    silence = sent[2] | {"kind": "no_data", "channels": [], "text": "no data since 1"}
    run("chat.py", silence)
    texts = [message["text"] for message in server.taken]
    start = sent[0]["start"]
    assert texts[0].startswith(f"a: score begin {start}; 10.0 × its threshold; x ")
    assert f"a: score end {sent[1]['end']}; " in texts[1]
    assert texts[3] == f"a: no_data begin {sent[2]['start']}; no data since 1"
    database, metrics = tmp_path / "alarms.db", tmp_path / "kdjax.prom"
    for message in (*sent, sent[0], sent[1], sent[2]):
        run("insert.py", message, database)
        run("prometheus.py", message, metrics)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute('SELECT id, "end", channels FROM events').fetchall()
    assert rows == [
        (sent[0]["id"], sent[1]["end"], "x;y"),
        (sent[2]["id"], None, "x;y"),
    ]
    found = [line for line in metrics.read_text().splitlines() if line[0] != "#"]
    assert found == [
        'kdjax_alarms_total{entity="a",kind="score"} 2',
        'kdjax_alarms_open{entity="a",kind="score"} 1',
    ]


def test_the_unit_has_flags_that_exist():
    unit = (EXAMPLES / "kdjax-stream.service").read_text("utf-8")
    (line,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    _, _, script = shlex.split(line.removeprefix("ExecStart="))
    _, verb, *flags = shlex.split(script.partition("exec ")[2])
    names = {flag.partition("=")[0].removeprefix("--") for flag in flags}
    assert names <= flags_of(verb).keys()
    texts = [f.partition("=")[2] for f in flags if f.startswith("--on_alarm")]
    ways = [text.partition(":")[0] for text in texts]
    assert ways == ["webhook", "file"]


def test_a_dead_receiver_costs_a_stream_no_memory(file, tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "LAST_WAIT", 0.0)
    command = f"command:{shutil.which('false')}"
    box = outbox.Outbox(receivers([command]), spool=tmp_path / "spool")
    for _ in range(200):
        box.add(["x" * 10_000])
        box.release(box.state())
    assert len(json.dumps(box.state())) < 200
    assert (tmp_path / "spool").stat().st_size == 200 * 10_001
    box.close()


PROGRAM = """
import sys, time
from kdjax.io import signals
from kdjax.notify import outbox
from kdjax.scoring.streams import run_stream
signals.install_handlers()
outbox.FIRST_PAUSE = 0.01
detector, output, state, receiver, *lines = sys.argv[1:]
def slowly():
    for line in lines:
        if line == "wait":
            time.sleep(600)  # until the kill
        yield line
run_stream(
    slowly(), output, detector=detector, backend="onnxruntime", state=state,
    on_alarm=(receiver,),
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["sent", "waits"])
@pytest.mark.parametrize("source", ["goes on", "again"])
def test_a_kill_between_begin_and_end(receiver, file, tmp_path, way, source):
    """The end has the id of the begin, whether that was delivered before or not."""
    up = threading.Event()
    if way == "sent":
        up.set()
    server = receiver(lambda number: 204 if up.is_set() else 503)
    arguments = [file, tmp_path / "out", tmp_path / "state", f"webhook:{server.url}"]
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    lines = row_lines()
    with subprocess.Popen([*command, *lines[:13], "wait"]) as child:
        deadline = time.monotonic() + 120
        while (
            not (server.taken or len(server.seen) > 2) and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert phases(server.taken) == (phases(server.taken)[:1] if up.is_set() else [])
    up.set()
    rest = [lines[0], *lines[13:]] if source == "goes on" else lines
    subprocess.run([*command, *rest], check=True)
    found = [*dict.fromkeys(phases(server.taken))]
    streamed(lines, file, on_alarm=(f"file:{tmp_path / 'whole'}",))
    assert found == phases(messages((tmp_path / "whole").read_text()))
    by_name = {}
    for message in server.taken:  # a message that comes again is the same
        assert by_name.setdefault((message["id"], message["phase"]), message) == message


@pytest.mark.slow
def test_a_signal_does_not_wait_for_a_receiver_that_hangs(receiver, file, tmp_path):
    free = threading.Event()
    server = receiver(lambda number: free.wait(60) and 204)
    arguments = [file, tmp_path / "out", tmp_path / "state", f"webhook:{server.url}"]
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    lines = row_lines()
    with subprocess.Popen([*command, *lines[:13], "wait"]) as child:
        deadline = time.monotonic() + 120
        while not server.seen and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert child.wait(60) == 0
        assert time.monotonic() - begun < signals.GRACE
    free.set()
    subprocess.run([*command, *lines], check=True)
    expected = [
        line["event"]["id"] for line in streamed(lines, file) if "event" in line
    ]
    assert [m["id"] for m in server.taken][-4:] == expected
