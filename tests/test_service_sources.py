"""Sources without servers: URLs and files, messages, dead letters, waits, places."""

import http.server
import json
import math
import threading
import time
import urllib.parse
from types import SimpleNamespace

import numpy as np
import pytest
from service_client import rows_of

from kdjax.cli import main
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.notify import brokers
from kdjax.notify.brokers import Broker
from kdjax.notify.outbox import Receiver, receivers
from kdjax.scoring.opening import open_streams
from kdjax.service import clients, sources
from kdjax.service.clients import File, entity_of, read_series, read_source
from kdjax.service.engine import Limits
from kdjax.service.metrics import Metrics
from kdjax.service.sources import (
    DeadLetters,
    Message,
    Spec,
    StopError,
    media_by,
    open_sources,
)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(sources, "FIRST_PAUSE", 0.01)


@pytest.fixture
def libraries(monkeypatch):
    """As if every client library were installed."""
    monkeypatch.setattr(brokers, "library", lambda *_: SimpleNamespace())
    monkeypatch.setattr(clients, "library", lambda *_: SimpleNamespace())


@pytest.fixture
def source(serve, moving_file, tmp_path):
    """Opens a service with a source that doesn't run."""

    def opened(follow=None, *, spec=("test", "", ()), scores=(), **options):
        said = []
        client = serve(moving_file, **options)
        (found,) = open_sources(
            [Spec(*spec, follow or (lambda source: None))],
            client.engines,
            dead=DeadLetters(tmp_path / "dead", said.append),
            scores=scores,
            kept="kept",
            most=10_000,
            log=said.append,
        )
        found.said, found.client = said, client
        return found

    return opened


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def letters(tmp_path):
    path = tmp_path / "dead"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def body(rows, first=0, **more):
    times = [*range(first, first + len(rows))]
    return json.dumps({"rows": rows, "time": times, **more}).encode()


def scored(path, rows, first=0):
    """The last window score of a stream of its own."""
    stream = open_streams(path, backend="onnxruntime")["wanted"]
    found = [stream.update(row, n) for n, row in enumerate(rows, start=first)]
    return found[-1].window_score


def test_urls_of_brokers(libraries):
    found = read_source("mqtt://eve@[::1]/plant/%2B/a/#?detector=plant&entity=pump")
    assert found[:3] == ("mqtt://[::1]:1883/plant/+/a/#", "plant", ())
    broker = brokers.read_broker("mqtts://eve@host/a", flag="x")
    assert broker == Broker("mqtts", "host:8883", "a", "eve", {})
    assert read_source("kafka://a:1,b:2/rows?key=entity").name == "kafka://a:1,b:2/rows"
    several = "kafka://a:1,kafka:2/t,mqtt://h/t,file:x,mqtts://h:1/a,b"
    assert [one.name for one in receivers([several])] == [
        "kafka://a:1,kafka:2/t", "mqtt://h:1883/t", "file:x", "mqtts://h:1/a,b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("amqp://host/topic", "'amqp' is unknown: give mqtt://"),
        ("mqtt://host", "needs a scheme, a host and a topic"),
        ("mqtt:///topic", "needs a scheme, a host and a topic"),
        ("mqtt://eve:secret@host/t", "a password: put it into KDJAX_MQTT_PASSWORD"),
        ("kafka://eve@host/t", "of Kafka into the file of ?config="),
        ("mqtt://host:http/t", "is not a topic of a broker"),
        ("mqtt://host/t?key=entity", "unknown option 'key'"),
        ("kafka://host/t?key=name", "key= can be entity only"),
        ("kafka://host/t?config=none", "config=none can't be read"),
        ("none.toml", "--source=none.toml is not a TOML file"),
    ],
)
def test_faulty_sources_are_refused(libraries, text, said):
    with pytest.raises((ArtifactError, ConfigError)) as caught:
        read_source(text)
    assert said in str(caught.value) and "secret" not in str(caught.value)


def test_what_can_not_be_published_to_is_refused(libraries):
    with pytest.raises(ConfigError, match="from the topic of messages"):
        receivers(["mqtt://host/plant/+"])


PROMETHEUS = 'url = "http://h:9090"\nentity = "a"\n[channels]\nx = "load"\ny = "heat"'
OPCUA = 'url = "opc.tcp://h"\nentity = "a"\n[channels]\nx = "i=1"\ny = "i=2"'


@pytest.mark.parametrize(
    ("base", "change", "said"),
    [
        (PROMETHEUS, ("http:", "ftp:"), "url must be of Prometheus"),
        (PROMETHEUS, ("//h", "//eve:secret@h"), "environment variable KDJAX_PROMETHEUS_T"),
        (OPCUA, ("//h", "//eve:secret@h"), "environment variable KDJAX_OPCUA_PASSWORD"),
        (PROMETHEUS, ("entity", "entitee"), "'entitee' is not a key: use channels, "),
        (PROMETHEUS, ('entity = "a"', "step = 0"), "step = 0 is wrong"),
        (PROMETHEUS, ('entity = "a"', "delay = true"), "delay = True is wrong"),
        (PROMETHEUS, ('entity = "a"', "since = 2026-01-01T00:00:00"), "since = "),
        (PROMETHEUS, ('"load"', "3"), "channels = "),
        (PROMETHEUS, ('[channels]\nx = "load"\ny = "heat"', ""), "give [channels]"),
        (PROMETHEUS, ('entity = "a"', ""), "give entity or entity_label"),
        (OPCUA, ('entity = "a"', 'entities = ["a"]'), "nodes with {entity}"),
        (OPCUA, ('entity = "a"', ""), "give entity, or entities"),
        (OPCUA, ('entity = "a"', "delay = 3"), "'delay' is not a key"),
    ],
)  # fmt: skip
def test_faulty_files_are_refused(libraries, tmp_path, base, change, said):
    path = tmp_path / "plant.toml"
    path.write_text(base)
    assert read_source(str(path)).channels == ("x", "y")
    assert change[0] in base
    path.write_text(base.replace(*change, 1))
    with pytest.raises(ConfigError) as caught:
        read_source(str(path))
    assert said in str(caught.value) and "secret" not in str(caught.value)


def test_missing_libraries_are_named(monkeypatch, tmp_path, moving_file, capsys):
    for name in ("paho", "paho.mqtt", "paho.mqtt.client", "confluent_kafka", "asyncua"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    path = tmp_path / "plant.toml"
    path.write_text(OPCUA)
    for text, package, extra in (
        ("mqtt://host/t", "paho-mqtt", "serve"),
        ("kafka://host/t", "confluent-kafka", "kafka"),
        (str(path), "asyncua", "opcua"),
    ):
        said = f'{package} is not installed: pip install "kdjax[{extra}]"'
        code = main(["kdjax", "serve", f"--detector={moving_file}", f"--source={text}"])
        assert code == 2 and said in capsys.readouterr().err
    with pytest.raises(ConfigError, match="paho-mqtt is not installed"):
        receivers(["mqtt://host/alarms"])


def test_flags_without_a_source_are_refused(moving_file, capsys):
    for flag in ("--scores=file:x", "--dead_letters=x"):
        assert main(["kdjax", "serve", f"--detector={moving_file}", flag]) == 2
        assert "--dead_letters need --source" in capsys.readouterr().err


def test_the_detector_and_its_channels_are_checked(source):
    with pytest.raises(
        ConfigError, match="test: give its detector as detector=, one of plant"
    ):
        source(spec=("test", "other", ()))
    with pytest.raises(ConfigError, match="test lacks y: give the channels of 'plant'"):
        source(spec=("test", "", ("x",)), state="second")
    with pytest.raises(ConfigError, match="test has z too"):
        source(spec=("test", "", ("x", "y", "z")), state="third")


@pytest.mark.parametrize(
    ("pattern", "topic", "entity"),
    [
        ("plant/rows", "plant/rows", ""),
        ("plant/#", "plant/pump/rows", ""),
        ("+/rows", "pump/rows", "pump"),
        ("site/+/+/rows", "site/north/pump/rows", "north/pump"),
        ("$share/group/plant/+", "plant/pump", "pump"),
        ("+/#", "pump/a/b", "pump"),
    ],
)
def test_entities_from_topics(pattern, topic, entity):
    assert entity_of(pattern, topic) == entity


@pytest.mark.parametrize(
    ("data", "media"),
    [
        (b'{"rows": [[1, 2]]}', "application/json"),
        (b'\xef\xbb\xbf {"rows": [[1, 2]]}', "application/json"),
        (b'{"rows": [[1, 2]', "application/json"),
        (b'{"x": 1, "y": 2}', "application/x-ndjson"),
        (b'{"x": 1}\n{"x": 2, "z": "\\"rows\\""}', "application/x-ndjson"),
        (b"[1, 2]", "application/x-ndjson"),
        (b"x,y\n1,2", "text/csv"),
        (b"\xff", "text/csv"),
        (b"", "text/csv"),
    ],
)
def test_media_by_content(data, media):
    plan = SimpleNamespace(channels=("x", "y"))
    assert media_by(data, plan) == media
    plan = SimpleNamespace(channels=("rows", "y"))
    assert media_by(b'{"rows": 1, "y": 2}', plan) == "application/x-ndjson"


def test_messages_are_answered_as_a_stream(source, moving_file, tmp_path):
    """Bodies, lines, CSV and plain numbers; what is at fault becomes a dead letter."""
    feed, rows = source(), rows_of(12)
    lines = "\n".join(
        json.dumps({"time": n, "x": rows[n][0], "y": rows[n][1]}) for n in range(4, 8)
    )
    csv = "time,y,x\n" + "\n".join(f"{n},{rows[n][1]},{rows[n][0]}" for n in (8, 9))
    faulty = json.dumps(
        {"rows": [rows[10], ["a", 1], rows[11]], "time": [10, 10.5, 11]}
    )
    feed.put(
        [
            Message(body(rows[:4], entity=["pump"] * 4)),
            Message(lines.encode(), "pump"),
            Message(b'{"x": 1', "pump"),
            Message(csv.encode(), "pump"),
            Message(faulty.encode(), "pump"),
            Message(b'{"x": 1, "y": 2}'),
            Message(b'{"x": 1, "y": 2}', "p\n"),
            Message(b"x" * 10_001, "pump"),
            Message(body(rows[:2]), "pump"),  # again: repeated rows are no fault
        ]
    )
    latest = feed.engine.latest
    assert {*latest} == {"pump"} and latest["pump"].row.row == 11
    assert latest["pump"].row.window_score == scored(moving_file, rows)
    assert feed.rows == 14 and feed.errors["row"] == 5
    reasons = {letter["text"]: letter["reason"] for letter in letters(tmp_path)}
    assert len(reasons) == 4  # one text is there twice
    assert "is not a number" in reasons[faulty] and "row 2: " in reasons[faulty]
    assert "more than 10000 bytes" in reasons["x" * 10_001]
    assert "name must have 1 to 200 printable characters" in reasons['{"x": 1, "y": 2}']
    assert '{"x": 1' in reasons
    assert {letter["source"] for letter in letters(tmp_path)} == {"test"}
    assert all(abs(letter["time"] - time.time()) < 60 for letter in letters(tmp_path))
    assert len(feed.said) == 1  # once a minute
    metrics = Metrics(feed.client.engines, entities=False)
    metrics.sources.append(feed)
    text = metrics.text()[0].decode()
    assert 'kdjax_source_rows_total{detector="plant",source="test"} 14.0' in text
    assert (
        'kdjax_source_errors_total{detector="plant",reason="row",source="test"} 5.0'
        in text
    )
    assert 'kdjax_source_up{detector="plant",source="test"} 0.0' in text


def test_long_messages_are_parts(source, moving_file):
    """More rows of an entity than the service takes at once without numbers."""
    feed, rows = source(), rows_of(1203)
    feed._most = 10**6
    feed.put([Message(body(rows), "pump")])
    assert feed.rows == 1203
    assert feed.engine.latest["pump"].row.window_score == scored(moving_file, rows)


def test_dead_letters_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DEAD_BYTES", 1000)
    monkeypatch.setattr(sources, "DEAD_TEXT", 300)
    said, path = [], tmp_path / "dead"
    dead = DeadLetters(path, said.append)
    for n in range(20):
        dead.add("test", [(f"reason {n}", b"\xff" + b"x" * 400)])
    old = tmp_path / "dead.1"
    for file in (path, old):
        assert 0 < file.stat().st_size <= 1000
    (*_, last) = letters(tmp_path)
    assert last["reason"] == "reason 19"
    assert last["text"] == "\\xff" + "x" * 296 and last["characters"] == 404
    assert len(said) == 9 and f"{path} was full and is {old} now" in said[0]
    DeadLetters(None, said.append).add("test", [("reason", b"x")])


def test_dead_letters_that_can_not_be_written_are_said(source, tmp_path):
    feed = source()
    (tmp_path / "dead").mkdir()
    feed.put([Message(b"{", "pump"), Message(body([[1, 2]]), "pump")])
    assert feed.rows == 1 and feed.errors["dead_letters"] == 1
    assert any("can't be written" in line for line in feed.said)


def test_a_full_queue_makes_a_source_wait(source, moving_file):
    feed = source(limits=Limits(waiting=3))
    free, idle = threading.Event(), []
    held = feed.engine.call(lambda: free.wait(30))
    until(lambda: not feed.engine._queue)
    first = feed.engine.submit(sources.read_rows(
        body([[1, 2]] * 3), "application/json", feed.plan, most=9, entity="saw"
    ))  # fmt: skip
    rows = rows_of(6)
    sender = threading.Thread(
        target=feed.put, args=([Message(body(rows), "pump")], lambda: idle.append(1))
    )
    sender.start()
    until(lambda: len(idle) > 2)
    assert feed.engine.waiting == 3 and feed.rows == 0
    free.set()
    sender.join(60)
    assert held.result() and len(first.result().texts) == 3 and feed.rows == 6
    assert feed.engine.latest["pump"].row.window_score == scored(moving_file, rows)


def test_rows_that_are_refused_leave_the_others(source, moving_file, tmp_path):
    """Too many entities, and a sequence that jumps ahead."""
    feed = source(limits=Limits(entities=2))
    rows = rows_of(8)
    feed.put(
        [
            Message(body([rows[n // 3]], n // 3), name)
            for n, name in enumerate(("pump", "saw", "mill") * 8)
        ]
    )
    assert feed.rows == 16 and feed.errors["row"] == 8
    assert {*feed.engine.latest} == {"pump", "saw"}
    for last in feed.engine.latest.values():
        assert last.row.window_score == scored(moving_file, rows)
    assert all("more than 2 entities" in one["reason"] for one in letters(tmp_path))
    feed.put([Message(body([[1, 2]], 8, sequence=9), "pump")])
    assert "has the sequence 8, not 9" in letters(tmp_path)[-1]["reason"]


def test_a_full_disk_makes_a_source_wait(source, moving_file, monkeypatch):
    feed, rows = source(), rows_of(9)
    feed.put([Message(body(rows[:4]), "pump", {"place": 4})])
    real, calls = sources.Engine._note, []

    def full(engine, pairs):
        calls.append(1)
        if len(calls) < 3:
            raise OSError("no space left")
        real(engine, pairs)

    monkeypatch.setattr(sources.Engine, "_note", full)
    seen = []
    feed.put(
        [Message(body(rows[4:], 4), "pump", {"place": 9})],
        lambda: seen.append(feed.engine.marks["place"]),
    )
    assert len(calls) == 3 and seen == [4, 4] and feed.engine.marks == {"place": 9}
    assert feed.errors["state"] == 2 and feed.rows == 9
    assert feed.engine.latest["pump"].row.window_score == scored(moving_file, rows)


def test_places_are_kept_with_the_rows(source, moving):
    """A message's place is that of its last row, and lasts over a restart."""
    feed = source()
    feed._most = 10**6
    rows, seen = rows_of(700), []
    real = feed.engine.submit

    def submit(body):
        seen.append((len(body.lines), dict(body.marks)))
        return real(body)

    feed.engine.submit = submit
    feed.put(
        [
            Message(body(rows[:600]), "pump", {"a": 1, "b": [1, 2]}),
            Message(body(rows[600:], 600), "pump", {"a": 2}),
        ]
    )
    assert seen == [(500, {}), (200, {"a": 2, "b": [1, 2]})]
    feed.client.close()
    assert source().engine.marks == {"a": 2, "b": [1, 2]}


def test_an_end_leaves_what_is_not_confirmed(source):
    feed = source()
    feed.stop()
    with pytest.raises(StopError):
        feed.put([Message(body([[1, 2]]), "pump", {"place": 1})])
    assert feed.rows == 0 and feed.engine.marks == {}
    assert feed.errors["row"] == 0


def test_connections_are_tried_again(source, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST_PAUSE", 0.04)
    begun = []

    def follow(source):
        begun.append(time.monotonic())
        if len(begun) < 5:
            raise ValueError("no connection" if len(begun) < 4 else "")
        source.up = True
        source.put([Message(body([[1, 2]]), "pump")])
        source.wait(60)

    feed = source(follow)
    assert not feed.up
    feed.start()
    until(lambda: feed.up and feed.rows)
    assert feed.errors["connection"] == 4
    pauses = np.diff(begun)
    assert (pauses >= (0.01, 0.02, 0.04, 0.04)).all() and pauses.sum() < 5
    (line,) = [line for line in feed.said if "trying again" in line]
    assert line == "test: no connection; trying again."
    feed.close()
    assert not feed._thread.is_alive() and not feed.up


def test_answers_go_to_receivers_in_order(source, tmp_path, monkeypatch):
    taken, tries = [], []

    def deliver(lines):
        tries.append(lines)
        if len(tries) < 3:
            raise OSError("away")
        taken.append(lines)

    feed = source(scores=(Receiver("key", "shop", deliver),))
    feed.put([Message(body([[1, 2]] * 3), "pump"), Message(b"1", "pump")])
    answers = [json.loads(line) for line in b"".join(taken).splitlines()]
    assert [row["row"] for row in answers[:3]] == [0, 1, 2]
    assert all(row["entity"] == "pump" for row in answers)
    assert len(tries) == 3 and feed.errors["scores"] == 2
    assert any("shop refuses answers (away)" in line for line in feed.said)
    # One that stays away holds up the source until the service ends.
    del tries[:]
    sender = threading.Thread(
        target=feed.put, args=([Message(body([[1, 2]], 3), "pump")],)
    )
    sender.start()
    until(lambda: tries)
    feed.stop()
    sender.join(60)
    assert not sender.is_alive()
    assert len(tries) > 2 or feed.said[-1] == "shop did not accept 1 answer: lost."


# Kafka.


def record(offset, stamp, line="", *, part=0, key=None):
    return SimpleNamespace(
        partition=lambda: part,
        offset=lambda: offset,
        timestamp=lambda: (1, stamp),
        key=lambda: key,
        value=lambda: line.encode() or None,
    )


def test_records_that_were_answered_are_passed_over(source):
    feed = source()
    broker = Broker("kafka", "a:1", "rows", "", {"key": "entity"})
    line = '{"x": 1, "y": 2}'
    first = [record(n, 100 + n, line, key=b"pump") for n in range(5)]
    clients._take_records(broker, feed, first)
    assert feed.rows == 5 and feed.engine.latest["pump"].row.row == 4
    place = "kafka://a:1/rows 0"
    assert {name: [*mark] for name, mark in feed.engine.marks.items()} == {
        place: [4, 104]
    }
    clients._take_records(broker, feed, first)  # their offsets were not committed
    assert feed.rows == 5
    # The other partition, and a topic that was made anew, begin at 0.
    clients._take_records(broker, feed, [record(0, 50, line, part=1, key=b"saw")])
    clients._take_records(broker, feed, [record(0, 200, line, key=b"pump")])
    clients._take_records(broker, feed, [record(1, 201, line, key=b"pump")])
    assert feed.rows == 8 and feed.engine.latest["pump"].row.row == 6
    clients._take_records(broker, feed, [record(2, 202)])
    assert feed.errors["row"] == 1


# Prometheus.


def series(entity, values, label="machine"):
    return {"metric": {label: entity}, "values": values}


FILE = File("http://h", {"x": "load", "y": "heat"}, entity_label="machine")


def test_rows_of_range_queries():
    asked = []

    def ask(query):
        asked.append(query)
        if query["query"] == "load":
            return [
                series("a", [[30, "1.5"], [45, "NaN"], [60, "3e2"]]),
                series("b", [[30, "7"], [45, "NaN"]]),
            ]
        return [series("a", [[45, "-1"], [60, "+Inf"]])]

    found = list(read_series(FILE, 2, 3, 15.0, ask))
    assert asked[0] == {
        "query": "load", "start": "30.000", "end": "60.000", "step": "15.000",
    }  # fmt: skip
    rows = [
        (at, entity, {k: v for k, v in row.items() if not math.isnan(v)})
        for at, entity, row in found
    ]
    assert rows == [
        (30.0, "a", {"x": 1.5}),
        (30.0, "b", {"x": 7.0}),
        (45.0, "a", {"y": -1.0}),
        (60.0, "a", {"x": 300.0, "y": math.inf}),
    ]
    with pytest.raises(DataError, match="several series for 'a': aggregate them$"):
        list(read_series(FILE, 0, 1, 1.0, lambda _: [series("a", [])] * 2))
    one = FILE._replace(entity="pump", entity_label="")
    with pytest.raises(DataError, match="or give entity_label"):
        list(read_series(one, 0, 1, 1.0, lambda _: [series("a", [])] * 2))


def test_prometheus_is_asked_with_a_token(monkeypatch):
    """A form that is posted; its refusal is told in its words."""
    taken = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            size = int(self.headers["Content-Length"])
            query = urllib.parse.parse_qs(self.rfile.read(size).decode())
            taken.append((self.path, self.headers["Authorization"], query))
            status = 200 if query["query"] == ["load"] else 400
            self.send_response(status)
            self.end_headers()
            answer = (
                {"data": {"result": [1]}} if status == 200 else {"error": 'so "bad'}
            )
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        file = FILE._replace(url=f"http://127.0.0.1:{server.server_port}/prometheus/")
        monkeypatch.setenv(clients.TOKEN, "secret")
        assert clients._ask(file, {"query": "load", "step": "1"}) == [1]
        with pytest.raises(DataError, match="'loud': 400 so .*bad"):
            clients._ask(file, {"query": "loud"})
        monkeypatch.setattr(clients, "QUERY_BYTES", 10)
        with pytest.raises(DataError, match="an answer of more than 10 bytes"):
            clients._ask(file, {"query": "load"})
        server.shutdown()
    path, token, query = taken[0]
    assert path == "/prometheus/api/v1/query_range" and token == "Bearer secret"
    assert query == {"query": ["load"], "step": ["1"]}


def test_prometheus_is_asked_no_later_than_late_samples(
    source, monkeypatch, moving_file, tmp_path
):
    """Each time is asked for once, `delay` after it; infinity is a dead letter."""
    values = {}

    def ask(file, query):
        first, last = float(query["start"]), float(query["end"])
        assert last <= time.time() - 0.2
        if not mark:
            assert first <= time.time() - 0.2 - 2 * 0.1  # the first window's rows
            mark.append(round(first / 0.1) + 8)
        times = np.arange(round(first / 0.1), round(last / 0.1) + 1) * 0.1
        found = []
        for at in times:
            place = round(at / 0.1)
            values.setdefault((query["query"], place), []).append(at)
            found.append([at, "+Inf" if place == mark[0] else str(place % 7)])
        return [series("a", found)]

    mark = []
    monkeypatch.setattr(clients, "_ask", ask)
    file = FILE._replace(step=0.1, delay=0.2)
    feed = source(lambda source: clients._follow_prometheus(file, source))
    feed.start()
    until(lambda: feed.rows > 10 and feed.errors["row"])
    feed.close()
    assert feed.up is False and feed.errors["connection"] == 0
    # Another one goes on from the mark.
    dead, before = DeadLetters(None, feed.said.append), len(values)
    (second,) = open_sources(
        [feed._spec], feed.client.engines, dead=dead, most=10_000, log=feed.said.append
    )
    second.start()
    until(lambda: len(values) > before + 4)
    second.close()
    asked = sorted(place for name, place in values if name == "load")
    assert all(len(times) == 1 for times in values.values())
    assert asked == [*range(asked[0], asked[-1] + 1)]
    assert "'inf' is not a number" in letters(tmp_path)[0]["reason"]
    (place,) = feed.engine.marks.values()
    assert round(place / 0.1) in asked
