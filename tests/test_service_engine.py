"""State of the service: crashes, restarts, events, thresholds, other detectors."""

import asyncio
import json
import math
import shutil
import sqlite3
import time

import numpy as np
import pytest
from service_client import (
    BEARER,
    TOKEN,
    URL,
    answered,
    keys,
    rows_of,
    sent,
    until,
)

from kdjax.detection.storage import save_detector
from kdjax.errors import ArtifactError, ConfigError
from kdjax.export.onnx import onnx_file
from kdjax.notify.outbox import receivers
from kdjax.scoring.opening import open_streams
from kdjax.service import engine as engines
from kdjax.service.bodies import RequestError
from kdjax.service.engine import Limits
from kdjax.service.thresholds import budget_threshold


@pytest.fixture
def values():
    return {name: rows_of(60, seed) for seed, name in enumerate("abc")}


def wanted(path, values, count, **options):
    """The answers of streams that were never interrupted, in the order of `sent`."""
    streams = open_streams(path, backend="onnxruntime")
    found = []
    for n in range(count):
        for name in values:
            row = streams[name].update(values[name][n], n)
            found.append((row.score, row.window_score, row.alarm, row.state))
    return [
        (*(None if math.isnan(x) else x for x in row[:2]), *row[2:]) for row in found
    ]


@pytest.mark.parametrize("lag", [0, 7, 10_000])
def test_a_copy_of_the_state_at_any_moment_goes_on(
    serve, moving_file, values, tmp_path, monkeypatch, lag
):
    """What a SIGKILL leaves: the files as they are between two answers."""
    monkeypatch.setattr(engines, "LAG_ROWS", lag)
    monkeypatch.setattr(engines, "PUT_EACH", 0)
    every = wanted(moving_file, values, 60)
    client = serve(moving_file, limits=Limits(open=2))
    found = sent(client, values, 0, 3)
    for number, stop in enumerate((4, 9, 20, 21, 40, 60)):
        shutil.copytree(tmp_path / "state", tmp_path / f"killed{number}")
        other = serve(moving_file, state=f"killed{number}", limits=Limits(open=2))
        first = len(found) // 3
        assert other.engines["plant"].machines.rows == 3 * first
        found += sent(client, values, first, stop)
        assert keys(sent(other, values, first, stop)) == keys(found[3 * first :])
        again = sent(other, values, first, stop)
        assert all("answered before" in row["error"] for row in again)
        other.close()
    assert keys(found) == every
    assert [row["row"] for row in found] == [n for n in range(60) for _ in "abc"]
    client.close()
    with sqlite3.connect(tmp_path / "state" / "plant.sqlite") as store:
        assert store.execute("SELECT count(*) FROM journal").fetchone() == (0,)


def test_a_stop_leaves_one_file_without_a_log(serve, moving_file, values, tmp_path):
    client = serve(moving_file)
    sent(client, values, 0, 60)
    assert client.get("/v1/events").status_code == 200  # a reader of the database
    assert (tmp_path / "state" / "plant.sqlite-wal").stat().st_size > 0
    client.close()
    left = {path.name for path in (tmp_path / "state").iterdir()}
    assert left == {"plant.sqlite", "plant.sqlite.lock"}


def test_states_ahead_of_the_journal_take_no_row_twice(serve, moving_file, tmp_path):
    """Of three entities one left the memory, so that its state has the journal's rows."""
    client = serve(moving_file, limits=Limits(open=2))
    body = {"rows": rows_of(30), "entity": [*"abc"] * 10}  # without times
    answered(client.post(URL, json=body))
    shutil.copytree(tmp_path / "state", tmp_path / "killed")
    other = serve(moving_file, state="killed")
    for name in "abc":
        body = {"rows": [[1, 2]], "sequence": 10}
        url = f"/v1/detectors/plant/streams/{name}/rows"
        assert answered(other.post(url, json=body))["rows"][0]["row"] == 10


def test_rows_in_one_body_are_those_that_come_one_by_one(serve, moving_file):
    """Late and repeated rows, gaps, clocks set back: copies that go ahead change nothing."""
    rng, url = np.random.default_rng(3), "/v1/detectors/plant/streams/{}/rows"
    values = rows_of(400, 7)
    times = [*range(100), *range(60, 90), *range(100, 150), *range(200, 230), 500]
    times += [
        *range(230, 250),
        *range(20, 60),
        *rng.permutation(40).tolist(),
        None,
        "x",
    ]
    rows = [values[n] for n in range(len(times))]
    rows[100:130] = rows[60:90]  # came before
    rows[140] = [math.nan, 1e39]
    lines = [[None if math.isnan(x) else x for x in row] for row in rows]
    client, found = serve(moving_file), {"one": [], "many": []}
    for row, time_ in zip(lines, times, strict=True):
        body = {"rows": [row], "time": [time_]}
        found["one"] += answered(client.post(url.format("one"), json=body))["rows"]
    for first in range(0, len(times), 75):
        part = slice(first, first + 75)
        body = {"rows": lines[part], "time": times[part]}
        found["many"] += answered(client.post(url.format("many"), json=body))["rows"]
    for one, many in zip(*found.values(), strict=True):
        for key in ("score", "window_score"):
            assert (one[key] is None) == (many[key] is None)
            assert one[key] == many[key] or one[key] == pytest.approx(many[key], 1e-5)
        skipped = ("score", "window_score", "entity", "line")
        assert {k: v for k, v in one.items() if k not in skipped} == {
            k: v for k, v in many.items() if k not in skipped
        }
    assert sum("answered before" in row.get("error", "") for row in found["one"]) >= 30


def test_the_journal_stays_short(serve, moving_file, values, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "LAG_ROWS", 20)
    client = serve(moving_file)
    for n in range(60):
        sent(client, values, n, n + 1)
    with sqlite3.connect(tmp_path / "state" / "plant.sqlite") as store:
        batches = store.execute("SELECT count(*) FROM journal").fetchone()[0]
    assert batches <= 8  # of three rows each


def test_a_state_in_use_and_a_damaged_one_are_refused(
    serve, moving_file, values, tmp_path
):
    client = serve(moving_file)
    sent(client, values, 0, 5)
    with pytest.raises(ArtifactError, match="in use by another"):
        serve(moving_file)
    client.close()
    path = tmp_path / "state" / "plant.sqlite"
    with sqlite3.connect(path) as store:
        store.execute(
            "UPDATE entities SET state = replace(state, '\"rows\": 5', '\"rows\": 6')"
        )
    store.close()
    client = serve(moving_file)
    refused = client.post(URL, json={"rows": [[1, 2]], "entity": ["a"], "time": [5]})
    assert refused.status_code in (500, 503)
    client.close()
    path.write_bytes(b"no database" * 100)
    with pytest.raises(ArtifactError, match="can't be used as the state"):
        serve(moving_file)


def test_a_full_disk_takes_a_batch_back(serve, moving_file, values, monkeypatch):
    every = wanted(moving_file, values, 30)
    client = serve(moving_file)
    found = sent(client, values, 0, 10)
    engine = client.engines["plant"]
    store = engine.machines.store
    full = [True]

    def commit(whole):
        if full.pop() if full else False:
            raise ArtifactError("database or disk is full")
        type(store).commit(store, whole)

    monkeypatch.setattr(store, "commit", commit)
    body = {
        "rows": [values["a"][10]],
        "entity": ["a"],
        "time": [10],
    }
    refused = client.post(URL, json=body)
    assert refused.status_code == 503 and "disk is full" in refused.json()["error"]
    assert client.get("/readyz").status_code == 200
    found += sent(client, values, 10, 30)
    assert keys(found) == every
    text = client.get("/metrics").text
    assert 'kdjax_refused_rows_total{detector="plant",reason="disk"} 1.0' in text


def test_open_events_are_those_of_what_was_saved(
    serve, moving_file, tmp_path, monkeypatch
):
    """After a batch was taken back, and after a restart that has no row to answer again."""
    monkeypatch.setattr(engines, "LAG_ROWS", 0)

    def open_of(client):
        found = answered(client.get("/v1/detectors/plant/entities"))["entities"]
        return {one["entity"]: one["open"] for one in found}

    client = serve(moving_file)
    values = {name: [[0.1, 0.2]] * 30 for name in "abc"}
    values["b"] = values["b"][:8] + [[90.0, -90.0]] + values["b"][9:]
    values["c"] = values["c"][:10] + [[90.0, -90.0]] + values["c"][11:]
    sent(client, values, 0, 10)
    before = {"a": [], "b": ["score"], "c": []}
    assert open_of(client) == before
    with monkeypatch.context() as patch:
        full = ArtifactError("database or disk is full")
        store = client.engines["plant"].machines.store
        patch.setattr(store, "commit", lambda whole: (_ for _ in ()).throw(full))
        body = {"rows": [values["c"][10]], "entity": ["c"], "time": [10]}
        assert client.post(URL, json=body).status_code == 503
    assert open_of(client) == before
    client.close()
    shutil.copytree(tmp_path / "state", tmp_path / "killed")
    client = serve(moving_file, state="killed")
    assert open_of(client) == before
    sent(client, values, 10, 12)
    assert open_of(client) == {"a": [], "b": ["score"], "c": ["score"]}


def test_events_are_listed_acknowledged_and_shelved(
    serve, moving_file, values, tmp_path
):
    messages = tmp_path / "messages.jsonl"
    to = receivers([f"file:{messages}"])
    client = serve(moving_file, token=TOKEN, to=to)
    client.request = lambda method, url, _=client.request, **o: _(
        method, url, **{"headers": BEARER, **o}
    )
    spikes = {name: [list(row) for row in rows] for name, rows in values.items()}
    for row in spikes["a"]:
        row[:] = [0.1, 0.2]
    spikes["b"] = spikes["c"] = spikes["a"]
    spikes["a"] = [list(row) for row in spikes["a"]]
    spikes["a"][10] = [90.0, -90.0]
    spikes["a"][30] = [90.0, -90.0]
    sent(client, spikes, 0, 12)
    found = answered(client.get("/v1/events"))
    (begun,) = [e for e in found["events"] if e["kind"] == "score"]
    assert (begun["entity"], begun["detector"], begun["phase"]) == (
        "a",
        "plant",
        "begin",
    )
    assert begun["start"] == 10 and begun["acknowledged"] is None
    assert begun["shelved"] is None and found["next"] == found["events"][-1]["number"]
    assert answered(client.get(f"/v1/events?since={found['next']}"))["events"] == []
    url = f"/v1/events/{begun['id']}"
    assert answered(client.post(f"{url}/ack"))["acknowledged"]["by"] == ""
    form = {"headers": BEARER | {"content-type": "text/csv"}, "content": "by\neve"}
    refused = client.post(f"{url}/ack", **form)
    assert refused.status_code == 415
    assert "content-type application/json, not" in refused.json()["error"]
    seen = answered(client.post(f"{url}/ack", json={"by": "eve", "note": "seen"}))
    assert seen["acknowledged"]["by"] == "eve"
    until(lambda: messages.exists() and messages.read_text("utf-8").count("\n") == 2)
    body = {"reason": "maintenance"}  # for good
    assert answered(client.post(f"{url}/shelve", json=body))["shelved"]["reason"]
    sent(client, spikes, 12, 40)  # the event ends, another one begins and ends
    body = {"until": time.time() - 1}
    answered(client.post(f"{url}/shelve", json=body))
    spikes["a"][50] = [90.0, -90.0]
    sent(client, spikes, 40, 55)
    client.close()
    events = [json.loads(line) for line in messages.read_text("utf-8").splitlines()]
    assert [(e["start"], e["phase"]) for e in events] == [
        (10, "begin"), (10, "acknowledged"), (10, "end"), (50, "begin"),
    ]  # fmt: skip
    assert [e.get("acknowledged") for e in events] == [None, True, True, None]
    assert len(events[0]["detector"]) == 64
    client = serve(moving_file, to=to)
    found = answered(client.get("/v1/events"))["events"]
    score = [e for e in found if e["kind"] == "score"]
    assert [(e["start"], e["phase"]) for e in score] == [
        (10, "begin"), (10, "end"), (30, "begin"), (30, "end"), (50, "begin"),
    ]  # fmt: skip
    assert [bool(e["acknowledged"]) for e in score] == [True, True, False, False, False]
    assert all(e["shelved"] for e in score)
    numbers = [e["number"] for e in found]
    assert numbers == sorted(set(numbers))
    middle = answered(client.get(f"/v1/events?since={score[2]['received']:.6f}"))
    assert len(middle["events"]) in (1, 2, 3)
    for query in ("since=x", "since=-1", "most=0", "most=x", "most=100000"):
        assert client.get(f"/v1/events?{query}").status_code == 400


def test_numbers_of_events_grow_where_the_clock_jumps(
    serve, moving_file, values, monkeypatch
):
    """A day ahead and back: who asks from the last number on misses none."""
    client, seen, now, since = serve(moving_file), [], time.time_ns, 0
    for number, days in enumerate((0, 1, 0, -1, 0)):
        monkeypatch.setattr(
            "kdjax.service.journal.time.time_ns",
            lambda d=days: now() + d * 86_400 * 10**9,
        )
        first = 12 * number
        rows = {name: [[0.1, 0.2]] * 60 for name in "abc"}
        rows["a"] = [[90.0, -90.0] if n == first + 4 else [0.1, 0.2] for n in range(60)]
        sent(client, rows, first, first + 12)
        if number == 3:
            client.close()
            client = serve(moving_file)
        found = answered(client.get(f"/v1/events?since={since}"))
        seen, since = seen + found["events"], found["next"]
    assert [e["phase"] for e in seen if e["kind"] == "score"] == ["begin", "end"] * 5
    numbers = [e["number"] for e in seen]
    assert numbers == sorted({*numbers})


def test_events_come_as_server_sent_events(serve, moving_file, values):
    client = serve(moving_file)
    app = client.app

    async def listen():
        app._loop = asyncio.get_running_loop()
        told = app._told(0)
        texts = [await anext(told)]
        task = asyncio.ensure_future(anext(told))
        await asyncio.sleep(0.05)
        assert not task.done()
        rows = [[0.1, 0.2]] * 5 + [[90.0, -90.0]]
        body = {"rows": rows, "time": [*range(6)]}
        request = client._client.post("/v1/detectors/plant/streams/a/rows", json=body)
        assert (await request).status_code == 200
        texts.append(await asyncio.wait_for(task, 5))
        app.end()
        assert [text async for text in told] == [] and app._listening == 0
        return texts

    begun, event = client.run(listen())
    assert begun.startswith(": ")
    head, name, data, *_ = event.split("\n")
    assert head.startswith("id: ") and name == "event: event"
    assert json.loads(data.removeprefix("data: "))["start"] == 5


def test_silence_is_an_event(serve, moving, tmp_path, values):
    save_detector(tmp_path / "plant", moving)
    client = serve(tmp_path / "plant")
    engine = client.engines["plant"]
    times = [f"2024-01-01T00:00:{n:02d}" for n in range(3)]
    body = {"rows": rows_of(3), "time": times}
    answered(client.post("/v1/detectors/plant/streams/a/rows", json=body))
    engine.call(lambda: engine.machines._since.update(a=time.monotonic() - 60)).result(
        5
    )
    until(lambda: answered(client.get("/v1/events"))["events"])
    (event,) = answered(client.get("/v1/events"))["events"]
    assert (event["kind"], event["entity"], event["end"]) == ("no_data", "a", None)
    # It is begun once, whatever happens.
    shutil.copytree(tmp_path / "state", tmp_path / "killed")
    other = serve(tmp_path / "plant", state="killed")
    for one in (client, other):
        found = answered(one.get("/v1/detectors/plant/entities"))["entities"]
        assert [entity["open"] for entity in found] == [["no_data"]]
    engine = other.engines["plant"]
    since = engine.machines._since
    engine.call(lambda: since.update(a=time.monotonic() - 60)).result(5)
    until(lambda: "a" not in since)
    assert len(answered(other.get("/v1/events"))["events"]) == 1


def test_a_threshold_changes_from_the_next_row_on(
    serve, moving, moving_file, values, tmp_path
):
    save_detector(tmp_path / "plant", moving)
    before = {path: path.read_bytes() for path in (tmp_path / "plant").iterdir()}
    client = serve(tmp_path / "plant", token=TOKEN)
    client.request = lambda method, url, _=client.request, **o: _(
        method, url, **{"headers": BEARER, **o}
    )
    sent(client, values, 0, 10)
    url = "/v1/detectors/plant/threshold"
    change = answered(client.post(url, json={"tau": 0.5, "note": "try"}))
    assert change["tau"] == 0.5 and change["before"] == 8.0
    found = sent(client, values, 10, 20)
    assert all(row["alarm"] == (row["window_score"] > 0.5) for row in found)
    one = answered(client.post(url, json={"tau": 1e9, "entity": "b"}))
    assert one["before"] == 0.5
    found = sent(client, values, 20, 30)
    assert {row["entity"] for row in found if row["alarm"]} == {"a", "c"}
    score = "/v1/detectors/plant/score"
    scored = answered(client.post(score, json={"rows": values["a"]}))["rows"]
    assert any(row["alarm"] for row in scored[4:])
    windows = [values["a"][n - 3 : n + 1] for n in range(4, 60)]
    alarms = answered(client.post(score, json={"windows": windows}))["alarm"]
    assert alarms == [int(row["window_score"] > 0.5) for row in scored[4:]]
    assert alarms != [int(row["window_score"] > 8.0) for row in scored[4:]]
    client.close()
    client = serve(tmp_path / "plant")
    found = sent(client, values, 30, 40)
    assert {row["entity"] for row in found if row["alarm"]} == {"a", "c"}
    about = answered(client.get("/v1/detectors/plant"))["threshold"]
    assert [(c["tau"], c["entity"]) for c in about["changes"]] == [
        (0.5, None),
        (1e9, "b"),
    ]
    assert (about["tau"], about["of_detector"]) == (0.5, 8.0)
    assert before == {
        path: path.read_bytes() for path in (tmp_path / "plant").iterdir()
    }
    client.close()
    client = serve(moving_file, token=TOKEN, state="other")
    for body, status in (
        ({}, 400), ({"tau": 1, "budget": "1/day"}, 400), ({"tau": -1}, 400),
        ({"tau": True}, 400), ({"tau": 10**400}, 400), ({"budget": "x"}, 400),
        ({"tau": 1, "entity": ""}, 400), ({"tau": 1, "entity": 0}, 400),
        ({"tau": 1, "entity": False}, 400), ({"tau": 1, "entity": "z"}, 404), ({"budget": "1/day"}, 409), ({"tau": "1"}, 400),
    ):  # fmt: skip
        refused = client.post(url, json=body, headers=BEARER)
        assert refused.status_code == status, (body, refused.text)


def test_a_budget_is_a_share_of_windows(moving):
    from kdjax.detection.stream_rules import plan_of

    plan = plan_of(moving._replace(step=600.0), 0)._replace(disjoint=400)
    # 144 rows a day are 36 windows of four; two events a day are 2 of 36 windows.
    tau, detail = budget_threshold(plan, 2.0)
    scores = np.sort(moving.calibration[0])
    assert len(plan.calibration) == 400
    assert tau == pytest.approx(scores[int(np.ceil(401 * (1 - 2 / 36))) - 1])
    assert "2 events a day" in detail
    with pytest.raises(RequestError, match="too few for 0.01 events a day"):
        budget_threshold(plan, 0.01)
    with pytest.raises(RequestError, match="more than the rows of a day allow"):
        budget_threshold(plan, 1000.0)


def other_of(moving):
    """A detector of the same form with another Gaussian and threshold."""
    first = moving.thresholds[0]._replace(tau=4.0)
    gaussians = moving.gaussians._replace(mean=moving.gaussians.mean + 0.3)
    return moving._replace(
        thresholds=(first, moving.thresholds[1]), gaussians=gaussians
    )


def test_a_changed_detector_is_taken_between_two_rows(
    serve, moving, moving_file, values, tmp_path
):
    old = moving_file.read_bytes()
    new = onnx_file(other_of(moving), 0)
    client = serve(moving_file)
    engine = client.engines["plant"]
    before = engine.loaded.digest
    found = sent(client, values, 0, 20)
    # A damaged one is refused, the old one answers.
    moving_file.write_bytes(new[:-10])
    until(lambda: engine.counts["refused_reloads"])
    found += sent(client, values, 20, 22)
    assert engine.loaded.digest == before
    # A threshold was set for the old one only.
    engine.call(lambda: engine.set_threshold(1e-3, None, None, "")).result(5)
    moving_file.write_bytes(new)
    until(lambda: engine.loaded.digest != before)
    later = sent(client, values, 22, 40)
    # Rows carried over: the first score is of a window with rows from before.
    assert keys(later) == wanted(moving_file, values, 40)[66:]
    assert [row["row"] for row in later[:3]] == [22, 22, 22]
    kinds = [e["kind"] for e in answered(client.get("/v1/events"))["events"]]
    assert kinds.count("detector") == 1
    assert "kdjax_reloads_total" in client.get("/metrics").text
    client.close()
    # A restart with another detector carries over too; this one has its threshold again.
    moving_file.write_bytes(old)
    client = serve(moving_file)
    last = sent(client, values, 40, 50)
    scores = [row[:2] for row in wanted(moving_file, values, 50)[120:]]
    assert [row[:2] for row in keys(last)] == scores
    assert all(row["alarm"] == 1 for row in last)
    client.close()
    # Of another window: streams start anew, and count on.
    moving_file.write_bytes(onnx_file(moving._replace(window=6), 0))
    client = serve(moving_file)
    last = sent(client, values, 50, 60)
    assert [row["score"] is None for row in last] == [True] * 15 + [False] * 15
    assert [row["row"] for row in last[::3]] == [*range(50, 60)]
    body = {"rows": values["a"][:1], "sequence": 59}
    again = client.post("/v1/detectors/plant/streams/a/rows", json=body)
    assert answered(again)["rows"][0]["repeated"]


def test_ids_of_events_are_new_where_windows_start_anew(serve, moving, moving_file):
    """Of rows without times too: a mark is of one event."""
    client = serve(moving_file, token=TOKEN)

    def begun(count):
        rows = [[0.1, 0.2]] * 10 + [[90.0, -90.0]] + [[0.1, 0.2]]
        url = "/v1/detectors/plant/streams/a/rows"
        answered(client.post(url, json={"rows": rows}, headers=BEARER))
        found = answered(client.get("/v1/events", headers=BEARER))["events"]
        found = [e for e in found if (e["kind"], e.get("phase")) == ("score", "begin")]
        assert len(found) == count
        return found[-1]

    first = begun(1)
    url = f"/v1/events/{first['id']}/ack"
    answered(client.post(url, json={"by": "eve"}, headers=BEARER))
    client.close()
    moving_file.write_bytes(onnx_file(moving._replace(window=6), 0))
    client = serve(moving_file, token=TOKEN)
    second = begun(2)
    assert (first["start"], second["start"]) == (10, 22)
    assert second["id"] != first["id"] and second["acknowledged"] is None


def test_a_shadow_is_compared_and_promoted(
    serve, moving, moving_file, values, tmp_path
):
    new = tmp_path / "new.onnx"
    new.write_bytes(onnx_file(other_of(moving), 0))
    client = serve(moving_file, token=TOKEN, shadow=new)
    client.request = lambda method, url, _=client.request, **o: _(
        method, url, **{"headers": BEARER, **o}
    )
    first = sent(client, values, 0, 40)
    assert keys(first) == wanted(moving_file, values, 40)
    found = answered(client.get("/v1/detectors/plant/shadow"))
    shadow = wanted(new, values, 40)
    pairs = [(bool(a[2]), bool(b[2])) for a, b in zip(keys(first), shadow, strict=True)]
    assert found["rows"] == 120
    assert found["alarms"] == {
        "both": pairs.count((True, True)),
        "first_only": pairs.count((True, False)),
        "shadow_only": pairs.count((False, True)),
    }
    assert found["alarms"]["shadow_only"] > 0 and found["events"] > 0
    severity = [row[1] / 4.0 for row in shadow if row[1] is not None]
    assert found["severity"]["shadow"] == pytest.approx(
        np.quantile(severity, found["severity"]["shares"]), rel=1e-5
    )
    assert (
        'kdjax_shadow_alarms{by="shadow_only",detector="plant"}'
        in client.get("/metrics").text
    )
    answered(client.post("/v1/detectors/plant/promote"))
    assert client.get("/v1/detectors/plant/shadow").status_code == 404
    assert client.post("/v1/detectors/plant/promote").status_code == 409
    assert keys(sent(client, values, 40, 50)) == wanted(new, values, 50)[120:]
    client.close()
    # The same command goes on with it.
    client = serve(moving_file, shadow=new)
    assert keys(sent(client, values, 50, 60)) == wanted(new, values, 60)[150:]


def test_a_shadow_of_other_channels_is_refused(serve, moving, moving_file, tmp_path):
    new = tmp_path / "new.onnx"
    new.write_bytes(onnx_file(moving._replace(channels=("x", "z")), 0))
    with pytest.raises(ConfigError, match="can't be a shadow of .*other channels"):
        serve(moving_file, shadow=new)
