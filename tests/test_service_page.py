"""The routes of the live page: the file, machines with their state, rows and events."""

import base64
import datetime
import hashlib
import re
import time

import pytest
from service_client import BEARER, TOKEN, answered, rows_of

from kdjax.service import page

EVIL = "<img src=x onerror=alert(1)>"
ENTITIES = "/v1/detectors/plant/entities"
ROWS = "/v1/detectors/plant/rows"


def history(client, entity, **options):
    url = "/v1/detectors/plant/history"
    return client.get(url, params={"entity": entity}, **options)


def dates(count):
    begun = datetime.datetime(2026, 3, 1)
    seconds = (begun + datetime.timedelta(seconds=n) for n in range(count))
    return [one.isoformat() for one in seconds]


def test_the_page_runs_its_own_code_only(serve, moving_file):
    client = serve(moving_file, token=TOKEN)
    found = client.get("/")
    assert found.status_code == 200
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        part.split(" ", 1)
        for part in found.headers["content-security-policy"].split("; ")
    )
    for tag in ("script", "style"):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", found.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert policy.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'", "connect-src": "'self'", "img-src": "data:",
        "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
    }  # fmt: skip
    assert found.headers["x-content-type-options"] == "nosniff"
    # No address but that of SVG's names, no way from text to markup.
    assert {*re.findall(r"https?://[^\"'` ]+", found.text)} == {
        "http://www.w3.org/2000/svg"
    }
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(| on\w+=", found.text
    )
    for url in (ENTITIES, "/v1/detectors/plant/history?entity=a"):
        assert client.get(url).status_code == 401
    assert answered(client.get(ENTITIES, headers=BEARER))["entities"] == []


def test_rows_of_a_machine_are_those_that_were_answered(
    serve, moving_file, monkeypatch
):
    monkeypatch.setattr(page, "ROWS", 25)
    client = serve(moving_file, token=TOKEN)
    values, times = rows_of(40), dates(40)
    values[30] = [60.0, -60.0]
    url = "/v1/detectors/plant/streams/{}/rows"
    body = {"rows": values, "time": times}
    given = answered(client.post(url.format(EVIL), json=body, headers=BEARER))["rows"]
    client.post("/v1/detectors/plant/threshold", json={"tau": 9.5}, headers=BEARER)
    body = {"rows": [[1, 2]], "time": ["2026-03-01T00:00:40"]}
    given += answered(client.post(url.format(EVIL), json=body, headers=BEARER))["rows"]
    found = answered(history(client, EVIL, headers=BEARER))
    keys = ("row", "time", "score", "window_score", "alarm")
    wanted = [{key: row[key] for key in keys} for row in given[-25:]]
    taus = [one.pop("tau") for one in found["rows"]]
    assert found["rows"] == wanted and taus == [8.0] * 24 + [9.5]
    assert sum(one["alarm"] for one in wanted) > 3
    assert (found["entity"], found["row"], found["tau"]) == (EVIL, 40, 9.5)
    assert found["window_score"] == given[-1]["window_score"]
    assert found["severity"] == given[-1]["window_score"] / 9.5
    assert 0 <= found["age"] < 60
    # Its events are those of the list of all.
    events = answered(client.get("/v1/events", headers=BEARER))["events"]
    ids = [one["id"] for one in events if one.get("entity") == EVIL]
    assert [one["id"] for one in found["events"]] == ids and len(ids) > 0
    last = answered(client.get("/v1/events?latest=true&most=2", headers=BEARER))
    assert last["events"] == events[-2:] and last["next"] == events[-1]["number"]
    first = answered(client.get("/v1/events?latest=false&most=2", headers=BEARER))
    assert first["events"] == events[:2]


def test_the_worst_machine_comes_first(serve, moving_file):
    client = serve(moving_file)
    times = dates(20)
    for n in range(20):
        lines = {"calm": [1.0, 2.0], "high": [1.0, 2.0], "Higher": [1.0, 2.0]}
        lines |= {"short": [1.0, 2.0]} if n > 17 else {}
        if n > 17:
            lines |= {"high": [9.0 + n, 2.0], "Higher": [90.0 * n, 2.0]}
        body = {
            "rows": [*lines.values()],
            "entity": [*lines],
            "time": [times[n]] * len(lines),
        }
        answers = answered(client.post(ROWS, json=body))["rows"]
    body = {"rows": [[1, 2]], "entity": ["idle"], "time": [times[0]]}
    answered(client.post(ROWS, json=body))
    engine = client.engines["plant"]
    last = engine.latest["idle"]
    engine.latest["idle"] = last._replace(received=time.time() - 5.5)  # 5 steps of 1 s
    found = answered(client.get(ENTITIES))
    states = {one["entity"]: one["state"] for one in found["entities"]}
    assert list(states.items()) == [
        ("Higher", "alarm"), ("high", "alarm"), ("idle", "silent"),
        ("short", "unknown"), ("calm", "normal"),
    ]  # fmt: skip
    assert found["states"] == {"alarm": 2, "silent": 1, "unknown": 1, "normal": 1}
    high = next(one for one in found["entities"] if one["entity"] == "high")
    answer = next(row for row in answers if row["entity"] == "high")
    assert high["channels"] == answer["channels"] and high["open"] == ["score"]
    some = answered(client.get(ENTITIES, params={"find": "HIGH", "most": 1}))
    assert some["entities"][0]["entity"] == "Higher" and len(some["entities"]) == 1
    assert some["states"] == {"alarm": 2, "silent": 0, "unknown": 0, "normal": 0}
    for bad in ("most=0", "most=1001", "most=x", "most=" + "9" * 5000):
        assert client.get(f"{ENTITIES}?{bad}").status_code == 400
    assert history(client, "none").status_code == 404
    assert history(client, "").status_code == 400
    assert client.get("/v1/events?latest=yes").status_code == 400
    events = answered(history(client, "high"))["events"]
    assert events and {one["entity"] for one in events} == {"high"}
    # A start knows the machines, but no row of them.
    client.close()
    again = serve(moving_file)
    found = answered(again.get(ENTITIES))
    assert found["states"] == {"alarm": 0, "silent": 0, "unknown": 5, "normal": 0}
    one = answered(history(again, "high"))
    assert one["rows"] == [] and one["age"] is None and one["events"]
    again.engines["plant"].begun -= 6
    assert answered(again.get(ENTITIES))["states"]["silent"] == 5


def test_open_events_are_shown_as_they_are_now(serve, moving_file):
    client = serve(moving_file)
    for n, x in enumerate([1.0, 1.0, 1.0, 1.0, 12.0, 300.0]):
        body = {"rows": [[x, 2.0]], "entity": ["a"], "time": [n]}
        answers = answered(client.post(ROWS, json=body))["rows"]
    (event,) = answered(history(client, "a"))["events"]
    (begun,) = answered(client.get("/v1/events"))["events"]
    assert event["id"] == begun["id"] and event["end"] is None
    assert event["severity"] == answers[0]["window_score"] / 8.0 > begun["severity"]
    assert event["number"] == begun["number"] and event["acknowledged"] is None


@pytest.mark.parametrize("machines", [2, 5])
def test_rows_in_memory_are_bounded(serve, moving_file, monkeypatch, machines):
    monkeypatch.setattr(page, "ROWS", 8)
    monkeypatch.setattr(page, "ALL_ROWS", 20)
    client = serve(moving_file)
    names = [f"m{n}" for n in range(machines)]
    for _ in range(12):
        body = {"rows": [[1, 2]] * machines, "entity": names}
        answered(client.post(ROWS, json=body))
    kept = [len(answered(history(client, name))["rows"]) for name in names]
    assert kept == [8 if machines == 2 else 4] * machines
