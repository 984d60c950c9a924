"""Readings that the service puts on a grid, as `kdjax stream` does."""

import io
import json
import shutil

import numpy as np
import pytest
from service_client import URL, answered

from kdjax.export.onnx import onnx_file
from kdjax.scoring.streams import run_stream
from kdjax.service import engine as engines
from kdjax.service.engine import Limits

NAMES = ("a", "p", "q")


@pytest.fixture(params=["long", "wide"])
def readings(request, moving, tmp_path):
    """A detector's file, its layout and readings of three machines, mixed."""
    data = {"layout": request.param, "step": "10s", "fill_limit": 3, "missing": "mask"}
    data |= {"tag_column": "sensor", "value_column": "level", "ignore": ["z"]}
    card = {"title": "by hand", "settings": {"data": data}, "data": {"dated": True}}
    file = tmp_path / "plant.onnx"
    file.write_bytes(onnx_file(moving._replace(step=10.0, card=card), 0))
    rng, every = np.random.default_rng(5), []
    for number, name in enumerate(NAMES):
        at = np.cumsum(rng.uniform(1, 5, 200)) + 1000 * number
        at[120:] += 200  # a pause
        moments = np.datetime64("2026-01-01") + (1000 * at).astype("m8[ms]")
        own = []
        for moment in moments:
            values = dict.fromkeys("xy")
            if request.param == "long":
                tag = "xyz"[int(rng.choice(3, p=[0.45, 0.45, 0.1]))]
                values = {"sensor": tag, "level": round(float(rng.normal(0, 4)), 3)}
            else:
                values = {n: round(float(rng.normal(0, 4)), 3) for n in "xy"}
                values["y"] = None if rng.random() < 0.3 else values["y"]
            own.append({"time": str(moment), "entity": name, **values})
        own.insert(90, own[10])  # late
        own.insert(50, own[49])  # repeated
        every.append(own)
    order = rng.permutation([n for n, own in enumerate(every) for _ in own])
    return file, request.param, [every[n].pop(0) for n in order]


def texts_of(rows, layout, entity=True):
    """Readings as CSV, with one that is ignored as a column where rows are wide."""
    names = ["time", "entity"] if entity else ["time"]
    names += ["sensor", "level"] if layout == "long" else ["x", "y", "z"]
    rows = [row | ({} if layout == "long" else {"z": 7}) for row in rows]
    cell = lambda value: "" if value is None else str(value)
    return [",".join(names), *(",".join(cell(row[n]) for n in names) for row in rows)]


def wanted(file, layout, rows):
    """The answers of a stream for each machine."""
    found = {}
    for name in NAMES:
        own, said = [row for row in rows if row["entity"] == name], io.StringIO()
        run_stream(
            texts_of(own, layout, entity=False), said, detector=file,
            backend="onnxruntime",
        )  # fmt: skip
        answers = [json.loads(line) for line in said.getvalue().splitlines()]
        found[name] = [alike(row) for row in answers if "event" not in row]
    return found


def same(found, every):
    for name in NAMES:
        for one, other in zip(found[name], every[name], strict=True):
            assert one.keys() == other.keys()
            for key, value in other.items():  # batches are rounded by their size
                is_score = isinstance(value, float)
                value = pytest.approx(value, rel=1e-5) if is_score else value
                assert one[key] == value, (one, other)


def alike(row):
    return {k: v for k, v in row.items() if k not in ("entity", "line")}


def by_name(answers):
    found = {name: [] for name in NAMES}
    for row in answers:
        found[row["entity"]].append(alike(row))
    return found


def post(client, rows, layout, media="application/json"):
    """The answers to readings in one request."""
    if media == "text/csv":
        text = "\n".join(texts_of(rows, layout))
    elif media == "application/x-ndjson":
        text = "\n".join(map(json.dumps, rows))
    else:
        return answered(client.post(URL, json={"rows": rows}))["rows"]
    response = client.post(URL, content=text, headers={"content-type": media})
    assert response.status_code == 200, response.text
    found = [json.loads(line) for line in response.text.splitlines()]
    return [row for row in found if "event" not in row]


@pytest.mark.parametrize(
    "media", ["application/json", "application/x-ndjson", "text/csv"]
)
def test_readings_are_answered_as_by_stream(serve, readings, media):
    file, layout, rows = readings
    every = wanted(file, layout, rows)
    client, found = serve(file), []
    for first in range(0, len(rows), 97):
        found += post(client, rows[first : first + 97], layout, media)
    same(by_name(found), every)
    assert all(len(own) > 40 for own in every.values())
    assert sum("late reading" in row.get("error", "") for row in found) >= 2
    assert any(row["alarm"] for row in found)
    # Nothing is kept of readings that are only scored.
    own = [
        {k: v for k, v in row.items() if k != "entity"}
        for row in rows
        if row["entity"] == "a"
    ]
    scored = answered(client.post("/v1/detectors/plant/score", json={"rows": own}))[
        "rows"
    ]
    same({**every, "a": [*map(alike, scored)]}, every)


@pytest.mark.parametrize("lag", [0, 50, 10_000])
def test_open_steps_survive_a_kill(serve, readings, tmp_path, monkeypatch, lag):
    monkeypatch.setattr(engines, "LAG_ROWS", lag)
    monkeypatch.setattr(engines, "PUT_EACH", 0)
    file, layout, rows = readings
    every = wanted(file, layout, rows)
    client, found, first, state = serve(file, limits=Limits(open=2)), [], 0, "state"
    for number, stop in enumerate((7, 100, 303, len(rows))):
        found += post(client, rows[first:stop], layout)
        shutil.copytree(tmp_path / state, tmp_path / f"killed{number}")
        state = f"killed{number}"
        client = serve(file, state=state, limits=Limits(open=2))
        first = stop
    same(by_name(found), every)


def test_a_sequence_counts_readings(serve, readings):
    file, layout, rows = readings
    whole = wanted(file, layout, rows)
    own = [row for row in rows if row["entity"] == "p"]
    numbered = [row | {"sequence": n} for n, row in enumerate(own)]
    client = serve(file)
    found = post(client, numbered[:120], layout)
    again = post(client, numbered[100:], layout)
    assert [row["sequence"] for row in again[:20]] == [*range(100, 120)]
    assert all(row["repeated"] for row in again[:20])
    same({**whole, "p": [*map(alike, found + again[20:])]}, whole)


def test_readings_at_fault(serve, readings):
    file, layout, rows = readings
    client = serve(file)
    time = rows[0]["time"]
    cases = [
        ({"time": None}, "a reading needs a time"),
        ({"time": time, "level": 1e39} if layout == "long" else {"time": time, "x": 1e39}, "beyond float32"),
    ]  # fmt: skip
    if layout == "long":
        cases += [
            ({"sensor": "w"}, "the tag 'w' is none of the 2 channels"),
            ({"sensor": None}, "the tag is missing"),
        ]
        refused = answered(client.post(URL, json={"rows": [[1, 2]], "entity": ["a"]}))
        assert "not an object with a tag" in refused["rows"][0]["error"]
    base = {"time": time, "entity": "a"}
    base |= {"sensor": "x", "level": 1.0} if layout == "long" else {"x": 1.0, "y": 2.0}
    for change, said in cases:
        (row,) = post(client, [base | change], layout)
        assert said in row["error"], row


def test_a_detector_of_rows_follows_one_of_readings(serve, readings, moving):
    """Open steps are of no use to it; streams go on with the rows that came."""
    file, layout, rows = readings
    client = serve(file)
    post(client, rows[:300], layout)
    client.close()
    file.write_bytes(onnx_file(moving._replace(step=10.0), 0))
    client = serve(file)
    body = {"rows": [[1.0, 2.0]], "entity": ["a"], "time": ["2027-01-01T00:00:00"]}
    assert answered(client.post(URL, json=body))["rows"][0]["state"] == "unknown"
    client.close()
    data = {"layout": layout, "step": "10s", "missing": "mask", "fill_limit": 3}
    data |= {"tag_column": "sensor", "value_column": "level"}
    card = {"title": "by hand", "settings": {"data": data}, "data": {"dated": True}}
    file.write_bytes(onnx_file(moving._replace(step=10.0, card=card), 0))
    client = serve(file)
    later = [row | {"time": row["time"].replace("2026", "2028")} for row in rows]
    assert len(post(client, later, layout)) > 100
