"""The program `kdjax serve` in a process of its own: start, signals, clients at fault."""

import contextlib
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from service_client import TOKEN, rows_of

from kdjax.cli import main
from kdjax.export.container import load_onnx
from kdjax.scoring.machines import Store
from kdjax.scoring.opening import open_streams
from kdjax.service.journal import Clock, Journal

ROOT = Path(__file__).parent.parent
URL = "/v1/detectors/plant/streams/{}/rows"


@pytest.fixture
def start(tmp_path):
    """Starts the program on a file; gives the process and its port."""
    started = []

    def begin(*flags, file=tmp_path / "plant.onnx"):
        log = (tmp_path / f"log{len(started)}").open("w+")
        command = [sys.executable, str(ROOT / "launch.py"), "serve", "--port=0"]
        process = subprocess.Popen([*command, f"--detector={file}", *flags], stderr=log)
        started.append((process, log))
        end = time.monotonic() + 60
        while True:
            text = Path(log.name).read_text("utf-8")
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", text):
                process.log = log.name
                return process, int(found[1])
            assert process.poll() is None and time.monotonic() < end, text
            time.sleep(0.02)

    yield begin
    for process, log in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        log.close()


def post(port, url, body, **headers):
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    link.request(
        "POST", url, json.dumps(body), {"content-type": "application/json", **headers}
    )
    response = link.getresponse()
    found = response.status, json.loads(response.read())
    link.close()
    return found


def get(port, url):
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    link.request("GET", url)
    response = link.getresponse()
    text = response.read().decode()
    link.close()
    return response.status, text


def memory_of(process):
    text = Path(f"/proc/{process.pid}/status").read_text("utf-8")
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) * 1024


def cpu_of(process):
    """Seconds of the processor's time that a process has had."""
    text = Path(f"/proc/{process.pid}/stat").read_text("utf-8").rpartition(")")[2]
    return sum(map(int, text.split()[11:13])) / os.sysconf("SC_CLK_TCK")


def test_a_file_needs_no_jax(moving_file, tmp_path):
    code = f"""
import sys
from pathlib import Path
from kdjax.service.app import App
from kdjax.service.engine import Engine, Limits
from kdjax.service.server import serve_until_signal
app = App({{}})
engine = Engine("plant", Path({str(moving_file)!r}), Path({str(tmp_path)!r}), limits=Limits(), clock=app.clock)
engine.close()
print(*[name for name in ("jax", "scipy", "sklearn", "onnx") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "serve needs --detector"),
        (["--detector=none"], "none"),
        (["--detector=none.onnx"], "none.onnx is no file: give the folder"),
        (["--detector={file}", "--token_file=none"], "--token_file: none can't be read"),
        (["--detector={file}", "--token_file={short}"], "has no token of 16"),
        (["--detector={file}", "--max_rows=0"], "--max_rows=0: give 1 or more"),
        (["--detector={file}", "--detector={file}"], "two detectors are named 'plant'"),
        (["--detector={file}", "--detector=x", "--shadow={file}"], "give one --detector"),
        (["--detector={file}", "--port={busy}"], "can't listen there"),
        (["--detector={file}", "--state={file}"], "is not a folder"),
        (["--detector={short}"], "short is damaged or is no ONNX detector of kdjax"),
        (["--detector={file}", "--on_alarm=mail:x"], "is not a receiver"),
        (["--detector={file}", "--exclude=none.csv"], "--exclude=none.csv is not a file"),
        (["--detector={file}", "--exclude={short}"], "unknown ending"),
        (["--detector={file}", "rows.csv"], "serve takes flags only"),
    ],
)  # fmt: skip
def test_faulty_commands_are_refused(moving_file, tmp_path, capsys, flags, said):
    (tmp_path / "short").write_text("short")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        names = {"file": moving_file, "short": tmp_path / "short"}
        names["busy"] = busy.getsockname()[1]
        flags = [flag.format(**names) for flag in flags]
        if not any("--port" in flag for flag in flags):
            flags.append("--port=0")
        (tmp_path / "x").mkdir()
        code = main(["kdjax", "serve", *flags])
    assert code == 2
    assert said in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(moving_file, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert main(["kdjax", "serve", f"--detector={moving_file}"]) == 2
    assert 'needs starlette: pip install "kdjax[serve]"' in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_starts_at_once_and_small(start, moving_file):
    process, port = start()
    assert get(port, "/readyz")[0] == 200
    # The processor's time: other programs may be busy.
    assert cpu_of(process) < 2 and memory_of(process) < 250e6


@pytest.mark.slow
def test_kills_lose_and_double_no_row(start, moving_file, tmp_path):
    """Two programs send; each sends a body again until it is answered."""
    values = {name: rows_of(400, seed) for seed, name in enumerate("ab")}
    found, ports = {name: [] for name in values}, [0]

    def send(name):
        place = 0
        while place < 400:
            body = {"rows": values[name][place : place + 5], "sequence": place}
            try:
                status, answer = post(ports[0], URL.format(name), body)
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.02)
                continue
            assert status == 200 or status == 503, answer
            if status == 200:
                found[name].append(answer["rows"])
                place += 5

    state = f"--state={tmp_path / 'state'}"
    process, ports[0] = start(state)
    senders = [threading.Thread(target=send, args=(name,)) for name in values]
    for sender in senders:
        sender.start()
    rng = np.random.default_rng(0)
    kills = 0
    while any(sender.is_alive() for sender in senders) and kills < 6:
        time.sleep(rng.uniform(0.02, 0.25))
        process.kill()
        process.wait()
        kills += 1
        process, ports[0] = start(state)
    for sender in senders:
        sender.join(60)
    assert kills >= 2
    streams = open_streams(moving_file, backend="onnxruntime")
    for name, rows in values.items():
        wanted = [streams[name].update(row) for row in rows]
        given = [row for answers in found[name] for row in answers]
        assert len(given) == 400
        for row, one in zip(given, wanted, strict=True):
            # A body whose answer a kill lost is answered as repeated.
            assert row.get("repeated") or (row["row"], row["state"]) == (
                one.row,
                one.state,
            )
        assert sum("repeated" in row for row in given) <= 5 * kills
        status, answer = post(
            ports[0], URL.format(name), {"rows": [[1, 2]], "sequence": 401}
        )
        assert status == 409 and answer["expected"] == 400
        last = post(ports[0], URL.format(name), {"rows": [[1.0, 2.0]], "sequence": 400})
        one = streams[name].update([1.0, 2.0])
        assert last[1]["rows"][0]["window_score"] == one.window_score


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_answers_what_waits_and_ends(start, moving_file, tmp_path, number):
    state = f"--state={tmp_path / 'state'}"
    process, port = start(state)
    values, answers = rows_of(2000), []

    def send(n):
        answers.append(post(port, URL.format(f"m{n}"), {"rows": values, "sequence": 0}))

    listener = socket.create_connection(("127.0.0.1", port))
    listener.sendall(
        b"GET /v1/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
    )
    half = socket.create_connection(("127.0.0.1", port))
    half.sendall(b"POST /v1/detectors/plant/rows HTTP/1.1\r\nHost: x\r\ncontent-type: "
                 b"application/json\r\nContent-Length: 100\r\n\r\n{")  # fmt: skip
    sender = threading.Thread(target=send, args=(0,))
    sender.start()
    time.sleep(0.2)
    begun = time.monotonic()
    process.send_signal(number)
    assert process.wait(10) == 0
    seconds = time.monotonic() - begun
    assert seconds < 5
    sender.join()
    assert answers[0][0] == 200 and len(answers[0][1]["rows"]) == 2000
    listener.close()
    half.close()
    process, port = start(state)
    status, answer = post(port, URL.format("m0"), {"rows": [[1, 2]], "sequence": 2000})
    assert (status, answer["rows"][0]["row"]) == (200, 2000)


@pytest.mark.slow
def test_slow_and_broken_clients_are_dropped(start, moving_file, monkeypatch):
    process, port = start("--request_seconds=1")
    sockets = []
    body = (
        b"POST /v1/detectors/plant/rows HTTP/1.1\r\nHost: x\r\n"
        b"content-type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    for head in (b"", b"POST /v1/", body):
        link = socket.create_connection(("127.0.0.1", port), timeout=10)
        link.sendall(head)
        sockets.append(link)
    status, _ = post(port, URL.format("a"), {"rows": [[1, 2]]})
    assert status == 200
    ends = [link.recv(10_000) for link in sockets]  # ends once the service closes
    assert ends[:2] == [b"", b""] and b" 408 " in ends[2].split(b"\r\n")[0]
    for garbage in (b"\x00\xff" * 100, b"GET " + b"a" * 200_000):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
            link.sendall(garbage)
            assert b" 400 " in (link.recv(10_000) + b"\n").split(b"\n")[0]
    # A chunked body that never ends is cut at the limit of bytes.
    with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
        link.sendall(b"POST /v1/detectors/plant/rows HTTP/1.1\r\nHost: x\r\ncontent-type: "
                     b"application/json\r\nTransfer-Encoding: chunked\r\n\r\n")  # fmt: skip
        answer = b""
        try:
            for _ in range(200):
                link.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        except OSError:
            pass
        try:
            answer = link.recv(10_000)
        except OSError:
            answer = b" 413 "
        assert b" 413 " in answer
    for link in sockets:
        link.close()
    assert get(port, "/healthz")[0] == 200 and process.poll() is None


@pytest.mark.slow
def test_clients_that_never_read_are_dropped(start, moving_file, tmp_path):
    """Of an answer, and of events that follow: with a bounded buffer, and not for ever."""
    state = tmp_path / "state"
    state.mkdir()
    store = Store(state / "plant.sqlite")
    event = {"id": "x" * 12, "kind": "score", "entity": "e", "text": "x" * 2000}
    Journal(store, Clock()).add_events([event] * 10_000)  # 20 MB
    store.commit({"schema": 1, "kdjax_version": "0"})
    store.close()
    process, port = start("--request_seconds=2", f"--state={state}")
    body = json.dumps({"rows": rows_of(5000)}).encode()
    asked = [
        b"GET /v1/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n",
        b"GET /v1/events?most=1000 HTTP/1.1\r\nHost: x\r\n\r\n" * 20,
        b"POST /v1/detectors/plant/score HTTP/1.1\r\nHost: x\r\ncontent-type: "
        b"application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body),
    ]  # fmt: skip
    links, before = [], memory_of(process)
    for text in asked:
        link = socket.socket()
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect(("127.0.0.1", port))
        link.settimeout(30)
        link.sendall(text)
        links.append(link)
    descriptors = Path(f"/proc/{process.pid}/fd")

    def connected():
        return sum("socket" in os.readlink(one) for one in descriptors.iterdir())

    assert post(port, URL.format("a"), {"rows": [[1, 2]]})[0] == 200
    end = time.monotonic() + 60
    idle = None
    while idle is None or connected() > idle:
        assert time.monotonic() < end, "a client that doesn't read is kept"
        time.sleep(0.2)
        idle = idle or connected() - len(links)
    assert memory_of(process) < before + 60e6
    for link in links[:2]:  # what was under way comes, not all of it
        size = 0
        with contextlib.suppress(ConnectionResetError):
            while part := link.recv(2**16):
                size += len(part)
        assert size < 15e6
        link.close()
    links[2].close()
    # One that reads is served.
    found = json.loads(get(port, "/v1/events?most=1000")[1])
    assert len(found["events"]) == 1000


@pytest.mark.slow
def test_a_million_entities_are_bounded(start, moving_file, tmp_path):
    flags = f"--state={tmp_path / 'state'}", "--max_entities=3000", "--most_open=100"
    process, port = start(*flags)
    url, first = "/v1/detectors/plant/rows", 0

    def send(place, count):
        names = [f"m{n}" for n in range(place, place + count)]
        return post(port, url, {"rows": [[1, 2]] * count, "entity": names})[0]

    assert [send(place, 500) for place in range(0, 3000, 500)] == [200] * 6
    used = cpu_of(process)
    for place in range(3000, 1_003_000, 5000):
        assert send(place, 5000) == 403
        first = first or memory_of(process)
    assert memory_of(process) < first + 30e6
    assert (cpu_of(process) - used) / 1e6 < 50e-6  # seconds of a row's refusal
    assert send(0, 500) == 200
    _, text = get(port, "/metrics")
    assert text.count("\nkdjax_threshold{") == 1000
    assert 'kdjax_entities{detector="plant"} 3000.0' in text


@contextlib.contextmanager
def small_disk(folder):
    """A disk of 1 MB in memory; skips where it can't be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("mounting a disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["limit", "disk"])
def test_a_full_disk_refuses_rows_until_there_is_room(
    start, moving_file, tmp_path, way
):
    """A limit of the size of files, which anyone can set, or a disk that another file fills."""
    state, stack = tmp_path / "state", contextlib.ExitStack()
    with stack:
        if way == "disk":
            stack.enter_context(small_disk(state))
        _fill_up(start, moving_file, state, way)


def _fill_up(start, moving_file, state, way):
    process, port = start(f"--state={state}")
    values, found = rows_of(400), []

    def send(place, count=10):
        body = {"rows": values[place : place + count], "sequence": place}
        return post(port, URL.format("a"), body)

    def answer(place):
        status, body = send(place)
        assert status == 200, body
        found.extend(body["rows"])

    for place in range(0, 100, 10):
        answer(place)
    limits = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    if way == "limit":
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, limits[1]))
    else:
        with contextlib.suppress(OSError), (state / "filler").open("wb", 0) as filler:
            while True:
                filler.write(b"x" * 1000)
    for _ in range(3):
        status, body = send(100)
        assert status == 503 and "the state can't be" in body["error"]
    assert get(port, "/healthz")[0] == 200
    if way == "limit":
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)
    else:
        (state / "filler").unlink()
    end = time.monotonic() + 30
    while get(port, "/readyz")[0] != 200:
        assert time.monotonic() < end
        time.sleep(0.05)
    for place in range(100, 400, 10):
        answer(place)
    process.terminate()
    assert process.wait(10) == 0
    stream = open_streams(moving_file, backend="onnxruntime")["a"]
    for row, values_ in zip(found, values, strict=True):
        one = stream.update(values_)
        assert (row["row"], row["state"]) == (one.row, one.state)


@pytest.mark.slow
def test_tokens_come_from_a_file(start, moving_file, tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    _, port = start(f"--token_file={tmp_path / 'token'}")
    body = {"tau": 3.0}
    assert post(port, "/v1/detectors/plant/threshold", body)[0] == 401
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert post(port, "/v1/detectors/plant/threshold", body, **bearer)[0] == 200


@pytest.mark.integration
def test_tritonclient_speaks_to_it(start, moving_file):
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(f"127.0.0.1:{start()[1]}")
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("plant")
    assert client.get_model_metadata("plant")["inputs"][0]["shape"] == [-1, 4, 2]
    windows = np.float32(np.random.default_rng(0).normal(size=(5, 4, 2)))
    wanted = load_onnx(moving_file).run(windows)._asdict()
    for binary in (True, False):
        x = triton.InferInput("x", [5, 4, 2], "FP32")
        x.set_data_from_numpy(windows, binary_data=binary)
        for outputs in (
            None,
            [triton.InferRequestedOutput("alarm", binary_data=binary)],
        ):
            found = client.infer("plant", [x], outputs=outputs)
            for name in ("alarm",) if outputs else wanted:
                np.testing.assert_array_equal(found.as_numpy(name), wanted[name])
