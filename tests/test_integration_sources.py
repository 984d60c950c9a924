"""Sources and receivers against servers: mosquitto, Kafka's mock, Prometheus, OPC UA."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from service_client import rows_of

from kdjax.notify import brokers, outbox
from kdjax.notify.outbox import receivers
from kdjax.scoring.opening import open_streams
from kdjax.service import clients, sources
from kdjax.service.clients import read_source
from kdjax.service.sources import DeadLetters, open_sources

pytestmark = [
    pytest.mark.integration,
    # paho leaves its socket pair to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(sources, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(outbox, "FIRST_PAUSE", 0.1)


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def daemon(tmp_path):
    """Starts a program, and waits until a port of it answers."""
    started = []

    def start(command, port):
        path = shutil.which(command[0]) or f"/usr/sbin/{command[0]}"
        if not Path(path).exists():
            pytest.skip(f"needs {command[0]} (.ci/packages.txt)")
        log = (tmp_path / f"{command[0]}.log").open("ab")
        process = subprocess.Popen(
            [path, *command[1:]], stdout=log, stderr=log, cwd=tmp_path
        )
        started.append((process, log))
        until(lambda: answers(port))
        return process

    yield start
    for process, log in started:
        process.kill()
        process.wait()
        log.close()


@pytest.fixture
def follow(serve, moving_file, tmp_path):
    """Starts a service with a source; gives its client, the source and what it says."""
    started = []

    def start(text, *, scores=(), kept="kept", **options):
        client = serve(moving_file, **options)
        said = []
        (source,) = open_sources(
            [read_source(text)],
            client.engines,
            dead=DeadLetters(tmp_path / "dead", said.append),
            scores=receivers(scores, flag="scores"),
            kept=kept,
            most=10_000,
            log=said.append,
        )
        source.start()
        started.append(source)
        return client, source, said

    yield start
    for source in started:
        source.close(10)


def dead_letters(tmp_path):
    return [json.loads(line) for line in (tmp_path / "dead").read_text().splitlines()]


def wanted(path, values, times=None):
    """The last row of a stream of its own."""
    stream = open_streams(path, backend="onnxruntime")["wanted"]
    times = range(len(values)) if times is None else times
    return [stream.update(row, at) for row, at in zip(values, times, strict=True)][-1]


def scores_of(source):
    return {n: last.row for n, last in source.engine.latest.items()}


@pytest.fixture
def mosquitto(daemon, tmp_path):
    """Starts the broker at a port, on which it remembers sessions over restarts."""

    def start(port, *lines):
        (tmp_path / "broker").mkdir(exist_ok=True)
        text = [
            f"listener {port} 127.0.0.1", "allow_anonymous true", "persistence true",
            f"persistence_location {tmp_path}/broker/", "user root", *lines,
        ]  # fmt: skip
        path = tmp_path / "mosquitto.conf"
        path.write_text("\n".join(text))
        return daemon(["mosquitto", "-c", str(path)], port)

    return start


def publish(port, topic, payload, **options):
    broker = brokers.read_broker(f"mqtt://127.0.0.1:{port}/{topic}", flag="test")
    client = brokers.mqtt_client(broker)
    brokers.connect_mqtt(client, broker)
    sent = client.publish(topic, payload, qos=1, **options)
    while not sent.is_published():
        brokers.step_mqtt(client, 0.1)
    client.disconnect()


def test_mqtt_rows_come_in_and_survive_restarts(
    follow, mosquitto, moving_file, tmp_path
):
    port = free_port()
    process = mosquitto(port)
    values = {name: rows_of(30, seed) for seed, name in enumerate("ab")}
    text = f"mqtt://127.0.0.1:{port}/plant/+/rows"

    def send(first, last):
        for n in range(first, last):
            for name, rows in values.items():
                x, y = rows[n]
                payload = {"x": x, "y": y, "time": n}
                publish(port, f"plant/{name}/rows", json.dumps(payload))

    publish(port, "plant/a/rows", b"old", retain=True)  # is passed over
    client, source, said = follow(text)
    until(lambda: source.up)
    publish(port, "plant/a/rows", b'{"x": 1, "y": "high"}')
    publish(port, "plant/a/rows", b"\xff{")
    send(0, 10)
    until(lambda: source.rows == 20)
    # The broker keeps what comes while the service is down, and while it is down itself.
    source.close(10)
    assert not source.up
    client.close()
    send(10, 20)
    process.send_signal(signal.SIGTERM)
    process.wait()
    client, source, said = follow(text)
    until(lambda: source.errors["connection"] > 1)
    mosquitto(port)
    until(lambda: source.up)
    send(20, 30)
    until(lambda: source.rows == 40)
    for name, rows in values.items():
        one, last = wanted(moving_file, rows), scores_of(source)[name]
        # Two lines of `a` were at fault; they are no rows of its stream.
        assert (last.row, last.window_score) == (one.row, one.window_score)
    letters = {letter["text"]: letter for letter in dead_letters(tmp_path)}
    assert len(letters) == 2
    assert "is not a number" in letters['{"x": 1, "y": "high"}']["reason"]
    assert "not UTF-8" in letters["\\xff{"]["reason"]
    assert {letter["source"] for letter in letters.values()} == {text}
    (line,) = [line for line in said if "trying again" in line]  # once a minute
    assert "Connection refused" in line


def test_mqtt_with_tls_and_a_password_and_its_answers(
    follow, mosquitto, tmp_path, monkeypatch, moving_file
):
    port = free_port()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    passwords = tmp_path / "passwords"
    subprocess.run(
        ["mosquitto_passwd", "-b", "-c", passwords, "eve", "secret"], check=True
    )
    mosquitto(
        port, f"certfile {tmp_path}/cert.pem", f"keyfile {tmp_path}/key.pem",
        f"password_file {passwords}", "allow_anonymous false",
    )  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    monkeypatch.setenv(brokers.PASSWORD, "wrong")
    base = f"mqtts://eve@127.0.0.1:{port}/plant"
    out = tmp_path / "scores"
    _, source, said = follow(
        f"{base}/rows?entity=pump", scores=[f"{base}/scores", f"file:{out}"]
    )
    until(lambda: source.errors["connection"])
    assert "Not authorized" in said[0] and "wrong" not in said[0]
    monkeypatch.setenv(brokers.PASSWORD, "secret")
    until(lambda: source.up)
    listener = brokers.mqtt_client(
        broker := brokers.read_broker(f"{base}/scores", flag="test")
    )
    heard = []
    listener.on_message = lambda *given: heard.append(given[2].payload)
    brokers.connect_mqtt(listener, broker)
    listener.subscribe(broker.topic, 1)
    brokers.step_mqtt(listener, 1)
    rows = rows_of(6)
    body = json.dumps({"rows": rows, "time": [*range(6)]})
    (sender,) = receivers([f"{base}/rows"])
    sender.deliver(body.encode())
    end = time.monotonic() + 10
    while not any(b'"row": 5,' in line for line in heard) and time.monotonic() < end:
        brokers.step_mqtt(listener, 0.1)
    listener.disconnect()
    told = [json.loads(line) for line in heard]
    found = [line for line in told if line["row"] is not None]  # the others are events
    assert [row["row"] for row in found] == [0, 1, 2, 3, 4, 5]
    assert found[-1]["window_score"] == wanted(moving_file, rows).window_score
    assert found[-1]["entity"] == "pump"
    until(out.exists)
    assert out.read_bytes().splitlines()[: len(heard)] == heard


def test_alarms_go_to_mqtt_from_a_stream(mosquitto, moving_file, tmp_path):
    """The program; the broker comes up while alarms wait."""
    port = free_port()
    values = np.zeros((20, 2))
    values[10:12] = 100.0
    rows = "\n".join(f"{n},{x},{y}" for n, (x, y) in enumerate(values))
    process = subprocess.Popen(
        [sys.executable, ROOT / "launch.py", "stream", f"--detector={moving_file}",
         "--backend=onnxruntime", f"--output={tmp_path}/answers",
         f"--on_alarm=mqtt://127.0.0.1:{port}/alarms"],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        mosquitto(port)
        broker = brokers.read_broker(f"mqtt://127.0.0.1:{port}/alarms", flag="test")
        listener, heard = brokers.mqtt_client(broker), []
        listener.on_message = lambda *given: heard.append(given[2].payload)
        brokers.connect_mqtt(listener, broker)
        listener.subscribe(broker.topic, 1)
        brokers.step_mqtt(listener, 1)
        _, said = process.communicate(f"time,x,y\n{rows}\n", timeout=60)
        assert process.returncode == 0, said
        for _ in range(20):
            brokers.step_mqtt(listener, 0.1)
        listener.disconnect()
    finally:
        process.kill()
        process.wait()
    phases = [json.loads(line)["phase"] for line in heard]
    assert phases[:2] == ["begin", "end"] and len(phases) % 2 == 0


@pytest.fixture
def kafka(monkeypatch):
    """A cluster that librdkafka makes up, with a topic of two partitions; its address."""
    library = pytest.importorskip("confluent_kafka")
    admin = library.Producer(
        {"test.mock.num.brokers": 2, "log_level": 0, "partitioner": "murmur2"}
    )
    cluster = ",".join(
        f"{one.host}:{one.port}" for one in admin.list_topics().brokers.values()
    )
    yield cluster, admin
    admin.purge()


def test_kafka_loses_and_doubles_no_row(follow, kafka, moving_file, tmp_path):
    """Rows without times; offsets of the last part are not committed before a restart."""
    cluster, producer = kafka
    names = ["a", "b", "c"]
    values = {name: rows_of(40, seed) for seed, name in enumerate(names)}

    def send(first, last):
        for n in range(first, last):
            for name in names:
                x, y = values[name][n]
                line = json.dumps({"x": x, "y": y, "entity": name})
                producer.produce("rows", line, key=name)
        assert producer.flush(10) == 0

    # The cluster takes a member that has left for one that is away.
    path = tmp_path / "client.properties"
    path.write_text("session.timeout.ms=3000\nheartbeat.interval.ms=500\n")
    text = f"kafka://{cluster}/rows?config={path}"
    send(0, 10)
    producer.produce("rows", b"12;", key="a")
    client, source, _ = follow(text)
    until(lambda: source.rows == 30 and source.errors["row"] == 1)

    def lost(*_):
        raise library.KafkaException("the connection is lost")

    library = pytest.importorskip("confluent_kafka")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdjax.service.clients._commit", lost)
        send(10, 20)
        # It comes again, and is answered once.
        until(lambda: source.rows == 60 and source.errors["connection"])
        source.close(10)
    assert source.rows == 60
    client.close()
    send(20, 40)
    _, source, _ = follow(text)
    until(lambda: source.rows == 60)
    for name in names:
        stream = open_streams(moving_file, backend="onnxruntime")["wanted"]
        one = [stream.update(row) for row in values[name]][-1]
        last = scores_of(source)[name]
        assert (last.row, last.window_score) == (39, one.window_score)
    # Dead letters are written at least once.
    assert {letter["text"] for letter in dead_letters(tmp_path)} == {"12;"}
    source.close(10)
    # All is committed by now: another member of the group has nothing to read.
    group = library.Consumer(
        {"bootstrap.servers": cluster, "group.id": "kdjax-plant", "log_level": 0}
    )
    parts = [library.TopicPartition("rows", n) for n in range(4)]
    done = sum(max(0, one.offset) for one in group.committed(parts, timeout=10))
    group.close()
    assert done == 121


def test_kafka_takes_alarms_and_answers(follow, kafka, tmp_path):
    cluster, producer = kafka
    path = tmp_path / "client.properties"
    path.write_text("# as of librdkafka\ngroup.id = of-the-file\n")
    _, source, _ = follow(
        f"kafka://{cluster}/rows?key=entity&config={path}",
        scores=[f"kafka://{cluster}/scores"],
        to=receivers([f"kafka://{cluster}/alarms"]),
    )
    for n in range(12):
        x = 100.0 if n in (8, 9) else 0.0
        producer.produce("rows", json.dumps({"x": x, "y": 0.0, "time": n}), key="pump")
    assert producer.flush(10) == 0
    library = pytest.importorskip("confluent_kafka")
    consumer = library.Consumer(
        {"bootstrap.servers": cluster, "group.id": "other", "log_level": 0,
         "auto.offset.reset": "earliest"}
    )  # fmt: skip
    until(lambda: source.rows == 12)
    found = {"scores": [], "alarms": []}
    consumer.subscribe([*found])

    def read():
        for one in consumer.consume(100, 0.1):
            if not one.error():
                found[one.topic()].append((one.key(), json.loads(one.value())))
        return len(found["scores"]) >= 12 and len(found["alarms"]) >= 1

    until(read)
    consumer.close()
    assert {key for several in found.values() for key, _ in several} == {b"pump"}
    rows = [row["row"] for _, row in found["scores"] if row["row"] is not None]
    assert rows == [*range(12)]
    assert found["alarms"][0][1]["phase"] == "begin"


def test_prometheus_is_asked_for_ranges(follow, daemon, moving_file, tmp_path):
    """Samples by promtool; a row a step, over a restart, with NaN where one is missing."""
    step, count = 1, 60
    begun = int(time.time() // step - 2 * count) * step
    values = {name: rows_of(count, seed) for seed, name in enumerate(("a", "b"))}
    lines = []
    for channel, metric in enumerate(("load", "heat")):
        lines.append(f"# TYPE {metric} gauge")
        for name, rows in values.items():
            for n, row in enumerate(rows):
                if (name, n, metric) != ("b", 30, "heat"):
                    stamp = begun + n * step
                    lines.append(
                        f'{metric}{{machine="{name}"}} {row[channel]!r} {stamp}'
                    )
    (tmp_path / "samples").write_text("\n".join([*lines, "# EOF\n"]))
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs prometheus (.ci/packages.txt)")
    subprocess.run(
        [promtool, "tsdb", "create-blocks-from", "openmetrics", "samples", "data"],
        check=True, capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    (tmp_path / "prometheus.yml").write_text("")
    port = free_port()
    process = daemon(
        ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data",
         f"--web.listen-address=127.0.0.1:{port}", "--query.lookback-delta=500ms"],
        port,
    )  # fmt: skip
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun))
    file = tmp_path / "plant.toml"
    file.write_text(
        f'url = "http://127.0.0.1:{port}"\nstep = {step}\nentity_label = "machine"\n'
        f'since = {since}\n[channels]\nx = "load"\ny = "heat"\n'
    )
    client, source, said = follow(str(file))
    until(lambda: source.rows == 2 * count)
    values["b"][30][1] = float("nan")
    times = [begun + n * step for n in range(count)]
    for name, rows in values.items():
        stream = open_streams(moving_file, backend="onnxruntime")["wanted"]
        found = [
            stream.update(row, f"{np.datetime64(at, 's')}+00:00")
            for row, at in zip(rows, times, strict=True)
        ]
        last = scores_of(source)[name]
        assert last.row == count - 1
        assert last.window_score == found[-1].window_score
    assert source.up and not source.errors["row"]
    # It goes on behind the last row, and tells what Prometheus refuses.
    source.close(10)
    client.close()
    client, source, said = follow(str(file))
    until(lambda: source.up)
    time.sleep(0.5)  # for rows that must not come
    assert source.rows == 0
    file.write_text(file.read_text().replace('"load"', '"load{"'))
    _, faulty, said = follow(str(file), state="other")
    until(lambda: faulty.errors["connection"])
    assert not faulty.up and "'load{': 400 1:6: parse error" in said[-1]
    process.kill()
    process.wait()
    until(lambda: source.errors["connection"])
    assert not source.up


class OpcServer:
    """An OPC UA server in a thread, with two machines."""

    def __init__(self, port, folder=None):
        self.port, self.nodes, self.folder = port, {}, folder
        self._stop, self._ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), daemon=True
        )
        self._thread.start()
        assert self._ready.wait(60)

    async def _serve(self):
        import asyncua

        server = asyncua.Server(user_manager=self if self.folder else None)
        await server.init()
        if self.folder:
            await server.load_certificate(self.folder / "server.der")
            await server.load_private_key(self.folder / "server.pem")
            policy = asyncua.ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt
            server.set_security_policy([policy])
        server.set_endpoint(f"opc.tcp://127.0.0.1:{self.port}")
        space = await server.register_namespace("plant")
        for name in ("pump", "saw"):
            for channel in "xy":
                node = asyncua.ua.NodeId(f"{name}.{channel}", space)
                self.nodes[name, channel] = await server.nodes.objects.add_variable(
                    node, f"{name}.{channel}", 1.5 if channel == "x" else 2
                )
        await server.nodes.objects.add_variable(
            asyncua.ua.NodeId("saw.text", space), "saw.text", "warm"
        )
        self.space = space
        async with server:
            self.server = server
            self._ready.set()
            while not self._stop.is_set():
                await asyncio.sleep(0.05)

    def get_user(self, server, username=None, password=None, certificate=None):
        """Of asyncua's `UserManager`."""
        from asyncua.crypto.permission_rules import User, UserRole

        known = (username, password) == ("eve", "secret")
        return User(UserRole.User, name="eve") if known else None

    def close(self):
        self._stop.set()
        self._thread.join(20)


def test_opcua_with_a_password_and_encryption(
    follow, moving_file, tmp_path, monkeypatch
):
    pytest.importorskip("asyncua")
    for name in ("server", "client"):
        subject = f"urn:{name}" if name == "client" else "urn:freeopcua:python:server"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
             "-subj", f"/CN={name}", "-addext", f"subjectAltName=URI:{subject}",
             "-keyout", tmp_path / f"{name}.pem", "-outform", "der",
             "-out", tmp_path / f"{name}.der"],
            check=True, capture_output=True,
        )  # fmt: skip
    port, file = free_port(), tmp_path / "plant.toml"
    file.write_text(
        f'url = "opc.tcp://127.0.0.1:{port}"\nstep = 0.25\nentity = "pump"\n'
        f'user = "eve"\nsecurity = "Basic256Sha256,SignAndEncrypt,'
        f'{tmp_path}/client.der,{tmp_path}/client.pem"\n'
        '[channels]\nx = "ns=2;s=pump.x"\ny = "ns=2;s=pump.y"\n'
    )
    server = OpcServer(port, tmp_path)
    try:
        monkeypatch.setenv(clients.OPCUA_PASSWORD, "wrong")
        _, source, said = follow(str(file))
        until(lambda: source.errors["connection"])
        assert source.rows == 0 and "wrong" not in said[0], said
        monkeypatch.setenv(clients.OPCUA_PASSWORD, "secret")
        until(lambda: source.rows >= 4)
        assert {*scores_of(source)} == {"pump"}
        source.close(10)
    finally:
        server.close()


def test_opcua_nodes_are_read_at_the_pace_of_the_detector(
    follow, moving_file, tmp_path
):
    pytest.importorskip("asyncua")
    port = free_port()
    file = tmp_path / "plant.toml"
    text = (
        f'url = "opc.tcp://127.0.0.1:{port}"\nstep = 0.25\n'
        'entities = ["pump", "saw"]\n[channels]\n'
        'x = "ns=2;s={entity}.x"\ny = "ns=2;s={entity}.y"\n'
    )
    file.write_text(text)
    server = OpcServer(port)
    try:
        assert server.space == 2
        _, source, _ = follow(str(file))
        until(lambda: source.rows >= 16)
        rows = scores_of(source)
        assert {*rows} == {"pump", "saw"} and source.up
        assert abs(rows["pump"].row - rows["saw"].row) <= 1
        assert not source.errors["row"]
        # The same values in each row: those of a stream that gets them.
        stream = open_streams(moving_file, backend="onnxruntime")["wanted"]
        one = [stream.update([1.5, 2.0], n / 4) for n in range(8)][-1]
        assert rows["pump"].window_score == pytest.approx(one.window_score)
        # A node that isn't there is a missing value; one with a text is refused.
        file.write_text(text.replace("{entity}.y", "{entity}.text"))
        _, other, said = follow(str(file), state="other")
        until(lambda: other.errors["value"] and other.errors["row"])
        until(lambda: any("BadNodeIdUnknown" in line for line in said))
        until(lambda: any("'warm' is not a number" in line for line in said))
    finally:
        server.close()
    until(lambda: not source.up and source.errors["connection"])


def test_the_program_is_killed_and_loses_no_row(mosquitto, moving_file, tmp_path):
    """SIGKILL while rows come, twice, then SIGTERM; rows have times."""
    broker_port, port = free_port(), free_port()
    mosquitto(broker_port)
    topic = "plant/pump/rows"
    command = [
        sys.executable, ROOT / "launch.py", "serve", f"--detector={moving_file}",
        f"--port={port}", f"--state={tmp_path}/state",
        f"--source=mqtt://127.0.0.1:{broker_port}/plant/+/rows",
        f"--dead_letters={tmp_path}/dead",
    ]  # fmt: skip
    (sender,) = receivers([f"mqtt://127.0.0.1:{broker_port}/{topic}"])
    values = rows_of(600)

    def metric(name):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return 0.0
        return next((float(x.split()[-1]) for x in lines if x.startswith(name)), 0.0)

    def run():
        return subprocess.Popen(command, stderr=subprocess.PIPE)

    process = run()
    try:
        until(lambda: metric("kdjax_source_up"))
        for part in range(2):
            rows = enumerate(values[part * 300 : part * 300 + 300], start=part * 300)
            sender.deliver(
                "\n".join(
                    json.dumps({"x": x, "y": y, "time": n}) for n, (x, y) in rows
                ).encode()
            )
            until(lambda: metric("kdjax_source_rows_total"))
            process.kill()
            process.communicate()
            process = run()
            until(lambda: metric("kdjax_source_up"))
        url = f"http://127.0.0.1:{port}/v1/detectors/plant"

        def known():
            with urllib.request.urlopen(url) as answer:
                return json.loads(answer.read())["rows"]

        until(lambda: known() == 600)
        body = json.dumps({"rows": [[1, 2]], "time": [600]}).encode()
        request = urllib.request.Request(
            f"{url}/streams/pump/rows", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            (row,) = json.loads(answer.read())["rows"]
        one = wanted(moving_file, [*values, [1, 2]])
        assert (row["row"], row["window_score"]) == (600, one.window_score)
        begun = time.monotonic()
        process.terminate()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0 and time.monotonic() - begun < 5, said
    finally:
        process.kill()
        process.communicate()
    assert not (tmp_path / "dead").exists()
