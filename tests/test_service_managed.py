"""What people decide while the service runs: planned spans, shelving; events that end."""

import json
import math
import os
import shutil
import time

import numpy as np
import pytest
from service_client import BEARER, TOKEN, URL, answered, sent, until

from kdjax.data.series import Series
from kdjax.detection.tables import score_table
from kdjax.errors import ConfigError
from kdjax.export.onnx import onnx_file
from kdjax.notify.outbox import receivers
from kdjax.scoring import managed
from kdjax.scoring.managed import Spans
from kdjax.scoring.streams import run_stream
from kdjax.service.engine import Limits

SPIKE = [90.0, -90.0]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(managed, "LOOK_EVERY", 0.0)
    monkeypatch.setattr("kdjax.service.engine.TICK", 0.05)


def write(path, text):
    """A changed file, whatever the clock of the file system."""
    path.write_text(text)
    write.stamps = getattr(write, "stamps", 0) + 1
    os.utime(path, ns=(write.stamps, write.stamps))
    return path


def quiet(count=60, spikes=()):
    """Rows of the entities a, b and c; those of a have spikes."""
    rows = {name: [[0.1, 0.2] for _ in range(count)] for name in "abc"}
    for row in spikes:
        rows["a"][row] = SPIKE
    return rows


def phases(path):
    """What was sent, without order among entities."""
    if not path.exists():
        return []
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [(e["entity"], e["start"], e["phase"]) for e in found]


def open_service(serve, *paths, **options):
    """Whose requests have a token."""
    client = serve(*paths, token=TOKEN, **options)
    plain = client.request
    client.request = lambda method, url, **more: plain(
        method, url, **{"headers": BEARER, **more}
    )
    return client


def test_spans_are_left_out_as_by_score_and_stream(
    serve, moving_file, moving, tmp_path
):
    spans = write(tmp_path / "spans.csv", "start,end,entity\n20,24,a\n")
    values = quiet(spikes=(10, 22, 40))
    client = serve(moving_file, excluded=Spans(spans, print))
    found = sent(client, values, 0, 30)
    assert [(r["entity"], r["time"]) for r in found if r.get("excluded")] == [
        ("a", n) for n in range(20, 25)
    ]
    write(spans, "start,end,entity\n20,24,a\n35,45,\n")  # while it runs
    found += sent(client, values, 30, 60)
    for name in "abc":
        lines = ["time,x,y", *(f"{n},{x},{y}" for n, (x, y) in enumerate(values[name]))]
        run_stream(
            lines, tmp_path / name, detector=moving_file, backend="onnxruntime",
            entity=None, exclude=_own(spans, name, tmp_path),
        )  # fmt: skip
        wanted = [
            json.loads(line) for line in (tmp_path / name).read_text().splitlines()
        ]
        own = [
            {k: v for k, v in r.items() if k != "entity"}
            for r in found
            if r["entity"] == name
        ]
        assert own == [row for row in wanted if "event" not in row]
    # The table that `score --causal --exclude` writes.
    left_out = np.array([[20, 25], [35, 46]])
    series = Series(
        "a", np.float32(values["a"]), ("x", "y"), np.arange(60.0), excluded=left_out
    )
    table = score_table(moving, series, entity="a", causal=True)
    scores = [
        math.nan if r["score"] is None else r["score"]
        for r in found
        if r["entity"] == "a"
    ]
    np.testing.assert_allclose(scores, table["score"], rtol=1e-5)
    # Nothing that is scored without a state differs.
    body = {"rows": values["a"][:30], "time": [*range(30)]}
    scored = answered(client.post("/v1/detectors/plant/score?entity=a", json=body))
    assert sum(bool(row.get("excluded")) for row in scored["rows"]) == 5


def _own(spans, name, folder):
    """The spans of an entity, for a stream that knows no entities."""
    lines = spans.read_text().splitlines()
    own = [line.rpartition(",") for line in lines[1:]]
    kept = [span for span, _, owner in own if owner in ("", name)]
    return write(folder / f"{name}.csv", "\n".join(["start,end", *kept]) + "\n")


def test_spans_on_another_clock_are_a_fault_of_each_row(serve, moving_file, tmp_path):
    spans = write(tmp_path / "spans.csv", "start,end\n2026-01-01,2026-01-02\n")
    client = serve(moving_file, excluded=Spans(spans, print))
    body = {"rows": [SPIKE], "entity": ["a"], "time": [1]}
    assert "need numbers" in answered(client.post(URL, json=body))["rows"][0]["error"]
    body["time"] = ["2026-01-01T12:00"]
    assert answered(client.post(URL, json=body))["rows"][0]["excluded"]
    with pytest.raises(ConfigError, match=r"none\.csv"):
        Spans(tmp_path / "none.csv", print)


def test_a_shelved_event_begins_once_it_is_shelved_no_longer(
    serve, moving_file, tmp_path
):
    """As in a stream (test_scoring_managed.py), and over restarts."""
    log = tmp_path / "log"
    to = receivers([f"file:{log}"])
    client = open_service(serve, moving_file, to=to)
    values = quiet(spikes=(10, 20, 30, 40))

    def shelve(until, client=client):
        (name,) = {
            e["id"]
            for e in answered(client.get("/v1/events"))["events"]
            if e["start"] == 10
        }
        answered(client.post(f"/v1/events/{name}/shelve", json={"until": until}))

    sent(client, values, 0, 18)  # begins and ends
    shelve(None)
    sent(client, values, 18, 28)  # likewise, shelved
    sent(client, values, 28, 32)
    time.sleep(0.2)
    assert phases(log) == [("a", 10, "begin"), ("a", 10, "end")]
    client.close()
    client = open_service(serve, moving_file, to=to)
    shelve(time.time() + 1.0, client)
    assert len(phases(log)) == 2
    until(lambda: len(phases(log)) == 3)  # by time alone
    assert phases(log)[2:] == [("a", 30, "begin")]
    shelve(None, client)  # an event whose begin was sent has its end
    sent(client, values, 32, 38)
    until(lambda: len(phases(log)) == 4)
    sent(client, values, 38, 42)
    shelve(1, client)  # at once
    sent(client, values, 42, 50)
    client.close()
    assert phases(log)[3:] == [("a", 30, "end"), ("a", 40, "begin"), ("a", 40, "end")]


@pytest.mark.parametrize("way", ["swap", "restart", "killed"])
def test_events_end_where_windows_start_anew(serve, moving, moving_file, tmp_path, way):
    """Those of entities too that have no further row, or are not in memory."""
    log = tmp_path / "log"
    to = receivers([f"file:{log}"])
    client = serve(moving_file, to=to, limits=Limits(open=2))
    values = quiet()
    values["a"][10] = values["c"][11] = SPIKE
    sent(client, values, 0, 12)
    new, state = onnx_file(moving._replace(window=6), 0), "state"
    if way == "killed":  # rows that came last are in the journal only
        state = shutil.copytree(tmp_path / "state", tmp_path / "killed").name
    if way != "swap":
        client.close()
    moving_file.write_bytes(new)
    if way != "swap":
        client = serve(moving_file, to=to, state=state)
    engine = client.engines["plant"]

    def events():
        return answered(client.get("/v1/events"))["events"]

    until(lambda: [e for e in events() if e["kind"] == "detector"])
    (note,) = [e for e in events() if e["kind"] == "detector"]
    assert "windows start again" in note["text"]
    found = (
        [e for e in events() if e.get("phase") == "end"] if way != "killed" else None
    )
    if found is not None:
        assert [(e["entity"], e["start"], e["end"], e["reason"]) for e in found] == [
            ("a", 10, 11, "detector"), ("c", 11, 11, "detector"),
        ]  # fmt: skip
        assert all(e["severity"] > 1 and e["channels"] for e in found)
        until(lambda: phases(log).count(("a", 10, "end")) == 1)
        assert sorted({*phases(log)}) == [  # each at least once
            ("a", 10, "begin"), ("a", 10, "end"), ("c", 11, "begin"), ("c", 11, "end"),
        ]  # fmt: skip
    # What is told to be open is what streams have open.
    now = {
        e.id for name in "abc" for e in engine.call(
            lambda name=name: engine.machines.of(name).stream.open_events
        ).result(5)
    }  # fmt: skip
    phase = {e["id"]: e["phase"] for e in events() if e.get("id")}
    assert {name for name, last in phase.items() if last == "begin"} == now
    sent(client, values, 12, 30)
    assert {e["phase"] for e in events() if e.get("id")} >= {"begin", "end"}
    client.close()
    before = len(phases(log))
    serve(
        moving_file, to=to, state=state
    ).close()  # the same detector again: nothing more
    assert len(phases(log)) == before
