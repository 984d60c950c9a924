"""The routes of `kdjax serve`, without a network: answers, refusals, limits."""

import hashlib
import json
import math
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from service_client import BEARER, JSON, TOKEN, answered, keys, rows_of

from kdjax.data.lines import Line
from kdjax.data.scaler import Scaler
from kdjax.data.series import Series
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.occurrences import json_number
from kdjax.detection.storage import save_detector
from kdjax.detection.tables import score_table
from kdjax.export.container import OUTPUTS, load_onnx
from kdjax.scoring.opening import open_streams
from kdjax.service import openapi
from kdjax.service.app import App
from kdjax.service.bodies import LONGEST_NAME, Body, RequestError
from kdjax.service.engine import Limits


def causal(detector, values, entity="a"):
    """What `score --causal` gives, as the answers of a stream have it."""
    time = np.datetime64("2024-01-01", "ns") + np.arange(len(values)) * np.timedelta64(
        1, "s"
    )
    series = Series(entity, np.float32(values), ("x", "y"), time)
    table = score_table(detector, series, entity="a", causal=True)
    return [
        (json_number(row.score), json_number(row.window_score), row.alarm, row.state)
        for row in table.itertuples()
    ]


def test_answers_are_those_of_score_causal_bit_for_bit_on_jax(serve, moving, tmp_path):
    save_detector(tmp_path / "plant", moving)
    client = serve(tmp_path / "plant")
    url, values = "/v1/detectors/plant/streams/a/rows", rows_of(40)
    wanted = causal(moving, values)
    times = [f"2024-01-01T00:00:{n:02d}" for n in range(40)]
    found = []
    for start, stop in ((0, 25), *((n, n + 1) for n in range(25, 40))):
        body = {"rows": values[start:stop], "time": times[start:stop]}
        found += answered(client.post(url, json=body))["rows"]
    assert keys(found) == wanted and any(row[2] for row in wanted)
    assert [row["entity"] for row in found] == ["a"] * 40
    assert [row["row"] for row in found] == [*range(40)]
    body = {"rows": values, "time": times}
    scored = answered(client.post("/v1/detectors/plant/score?entity=a", json=body))
    assert keys(scored["rows"]) == wanted and scored["events"]
    assert answered(client.get("/v1/detectors/plant"))["known_entities"] == 1


def test_answers_of_a_network_are_those_of_score_bit_for_bit(serve, tmp_path):
    """XLA rounds by the size of a batch: networks are scored in batches of a fixed size."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
    from timing import kdjax_side, work  # an untrained student of 16 units

    detector = kdjax_side._detector(work.WORKS["stream_row_16"])
    detector = detector._replace(window=50, step=1.0)
    save_detector(tmp_path / "plant", detector)
    values = np.random.default_rng(0).normal(size=(160, work.WIDTH)).round(4)
    series = Series("a", np.float32(values), detector.channels, np.arange(160.0))
    table = score_table(detector, series, entity=detector.entities[0], causal=True)
    client = serve(tmp_path / "plant")
    found = []
    for first, last in ((0, 60), (60, 61), (61, 63), (63, 160)):
        body = {"rows": values[first:last].tolist(), "time": [*range(first, last)]}
        url = "/v1/detectors/plant/streams/a/rows"
        found += answered(client.post(url, json=body))["rows"]
    for name in ("score", "window_score"):
        own = [math.nan if row[name] is None else row[name] for row in found]
        np.testing.assert_array_equal(np.float32(own), table[name])
    assert np.isfinite(table["score"]).sum() == 111


def test_missing_values_are_nulls(serve, moving, tmp_path):
    save_detector(tmp_path / "plant", moving)
    client = serve(tmp_path / "plant")
    values = np.array(rows_of(40))
    values[20, 0] = values[30] = np.nan
    cells = [[None if math.isnan(x) else x for x in row] for row in values.tolist()]
    url, times = "/v1/detectors/plant/streams/a/rows", [*range(40)]
    found = answered(client.post(url, json={"rows": cells, "time": times}))["rows"]
    # `score` takes another path for a table with missing cells, so not to the last bit.
    for row, wanted in zip(keys(found), causal(moving, values), strict=True):
        assert row[2:] == wanted[2:]
        numbers = [
            [math.nan if x is None else x for x in one[:2]] for one in (row, wanted)
        ]
        np.testing.assert_allclose(*numbers, rtol=1e-6)
    assert found[30]["score"] is None and found[30]["state"] == "unknown"


def test_many_entities_are_answered_as_single_streams(serve, moving_file, moving):
    client = serve(moving_file)
    streams = open_streams(moving_file, backend="onnxruntime")
    values = {name: rows_of(30, seed) for seed, name in enumerate("abcdef")}
    rng, sent = np.random.default_rng(1), dict.fromkeys(values, 0)
    for media in ("application/x-ndjson", "text/csv", "application/json") * 3:
        lines = []
        for name in rng.choice(list(values), 12):  # some twice in a request
            if sent[name] < 30:
                lines.append((name, sent[name], *values[name][sent[name]]))
                sent[name] += 1
        if media == "application/json":
            body = json.dumps(
                {
                    "rows": [[x, y] for *_, x, y in lines],
                    "entity": [name for name, *_ in lines],
                    "time": [t for _, t, *_ in lines],
                }
            )
        elif media == "text/csv":
            body = "time,entity,y,x\n" + "".join(
                f"{t},{name},{y!r},{x!r}\n" for name, t, x, y in lines
            )
        else:
            keys_ = ("entity", "time", "x", "y")
            body = "\n".join(json.dumps(dict(zip(keys_, row))) for row in lines)
        response = client.post(
            "/v1/detectors/plant/rows", content=body, headers={"content-type": media}
        )
        assert response.status_code == 200, response.text
        if media == "application/json":
            found = response.json()["rows"]
        else:
            found = [json.loads(line) for line in response.text.splitlines()]
            found = [row for row in found if "event" not in row]
        assert [row["entity"] for row in found] == [name for name, *_ in lines]
        for row, (name, time, x, y) in zip(found, lines, strict=True):
            one = streams[name].update([x, y], time)
            assert row["row"] == one.row and row["state"] == one.state
            assert row["alarm"] == one.alarm and row["time"] == time
            wanted = (json_number(one.score), json_number(one.window_score))
            assert (row["score"], row["window_score"]) == wanted
    assert sum(sent.values()) > 80


def test_a_row_at_fault_is_answered_with_its_fault(serve, moving_file):
    client = serve(moving_file)
    url = "/v1/detectors/plant/rows"
    lines = [
        {"entity": "a", "time": 0, "x": 1.0, "y": 2.0},
        {"entity": "a", "time": 1, "x": "n/k", "y": 2.0},
        {"entity": "", "time": 1, "x": 1.0, "y": 2.0},
        {"entity": "b", "time": 1, "x": 1.0},
        {"entity": "b", "time": 1, "x": 1.0, "y": None},
    ]
    text = "\n".join(map(json.dumps, lines))
    response = client.post(
        url, content=text, headers={"content-type": "application/x-ndjson"}
    )
    found = [json.loads(line) for line in response.text.splitlines()]
    assert ["error" in row for row in found] == [False, True, True, True, False]
    assert "'n/k'" in found[1]["error"] and found[1]["line"] == 2
    body = {"rows": [[1.0], ["x", 1.0], [1.0, 1e39], {"x": 1.0, "z": 2.0}, [1, None]]}
    body["rows"][:0] = [[10**400, 1]]
    found = answered(client.post("/v1/detectors/plant/streams/c/rows", json=body))
    assert ["error" in row for row in found["rows"]] == [True] * 5 + [False]
    line = '{"entity": "e", "x": 1, "y": 2, "x": 3}'
    headers = {"content-type": "application/x-ndjson"}
    assert "twice" in client.post(url, content=line, headers=headers).json()["error"]
    # Refused rows took no part: the next row of `a` is its second.
    body = {"rows": [[1, 2]], "time": [2]}
    found = answered(client.post("/v1/detectors/plant/streams/a/rows", json=body))
    assert found["rows"][0]["row"] == 1


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"rows": [[1, NaN]]}', 400, "NaN is not a JSON number"),
        (b'{"rows": [[1, -Infinity]]}', 400, "Infinity is not a JSON number"),
        (b'{"rows": [[1, 2]', 400, "the body is not JSON"),
        (b"\xff\xfe{}", 400, "not UTF-8"),
        (b"[" * 100_000, 400, "the body is not JSON"),
        (b"[]", 400, "give a JSON object"),
        (b'{"rows": [{"x": 1, "x": 2, "y": 3}]}', 400, "a key occurs twice"),
        (b"{}", 400, "`rows` is not a list"),
        (b'{"rows": []}', 400, "has no rows"),
        (b'{"rows": [[1, 2]], "time": [1, 2]}', 400, "`time` must be a list of 1"),
        (b'{"rows": [[1, 2]], "sequence": -1}', 400, "`sequence` must be a whole number"),
        (b'{"rows": [[1, 2]], "sequence": true}', 400, "`sequence` must be a whole number"),
        (b'{"rows": [[1, 2]], "other": 1}', 400, "keys of rows, time, sequence"),
        (json.dumps({"rows": [[1, 2]] * 51}).encode(), 413, "more than 50 rows"),
        (b'{"rows": [[1, 2]]}' + b" " * 5000, 413, "more than 4000 bytes"),
    ],
)  # fmt: skip
def test_faulty_bodies_are_refused(serve, moving_file, body, status, said):
    client = serve(moving_file, limits=Limits(rows=50, body=4000))
    if body.startswith(b"[[["):
        client = serve(moving_file, state="other")
    url = "/v1/detectors/plant/streams/a/rows"
    response = client.post(url, content=body, headers=JSON)
    assert response.status_code == status and said in response.json()["error"]
    assert answered(client.get("/v1/detectors"))["detectors"][0]["rows"] == 0


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "text/csv, not compressed"),
        ({"content-type": "text/plain"}, "send a body of"),
        ({"content-type": "application/json; charset=latin-1"}, "send UTF-8"),
        (JSON | {"content-encoding": "gzip"}, "not compressed"),
    ],
)  # fmt: skip
def test_other_media_are_refused(serve, moving_file, headers, said):
    client = serve(moving_file)
    url = "/v1/detectors/plant/streams/a/rows"
    response = client.post(url, content=b'{"rows": [[1, 2]]}', headers=headers)
    assert response.status_code == 415 and said in response.json()["error"]


def test_a_csv_without_line_ends_has_a_short_error(serve, moving_file):
    """As `curl -d @rows.csv` sends it: all cells are names of its header."""
    client, url = serve(moving_file), "/v1/detectors/plant/streams/a/rows"
    headers = {"content-type": "text/csv"}
    text = "x,y," + ",".join(str(n) * 100 for n in range(1000))
    error = client.post(url, content=text, headers=headers).json()["error"]
    assert "not expected: 0000" in error and "… and 960 more" in error
    assert len(error) < 4000


def test_names_in_paths_reach_no_file(serve, moving_file, tmp_path):
    client = serve(moving_file)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for name in ("..%2F..%2Fetc", "%2Fetc%2Fpasswd", "a%00b", "%0a", "x" * 300):
        url = f"/v1/detectors/plant/streams/{name}/rows"
        response = client.post(url, json={"rows": [[1, 2]]})
        assert response.status_code in (200, 400, 404), name
        assert client.get(f"/v1/detectors/{name}").status_code == 404
        assert client.post(f"/v1/events/{name}/ack", json={}).status_code in (403, 404)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_sequence_numbers_make_repeats_harmless(serve, moving_file):
    client = serve(moving_file)
    url, values = "/v1/detectors/plant/streams/a/rows", rows_of(12)
    first = answered(client.post(url, json={"rows": values[:6], "sequence": 0}))
    again = answered(client.post(url, json={"rows": values[3:9], "sequence": 3}))
    assert [row.get("repeated") for row in again["rows"]] == [True] * 3 + [None] * 3
    assert [row.get("sequence") for row in again["rows"][:3]] == [3, 4, 5]
    ahead = client.post(url, json={"rows": values[9:], "sequence": 10})
    assert ahead.status_code == 409 and ahead.json()["expected"] == 9
    rest = answered(client.post(url, json={"rows": values[9:], "sequence": 9}))
    found = first["rows"] + again["rows"][3:] + rest["rows"]
    plain = answered(client.post("/v1/detectors/plant/score", json={"rows": values}))
    assert keys(found) == keys(plain["rows"])
    # A row of many entities that jumps ahead refuses all of them.
    lines = [
        {"entity": "b", "x": 1, "y": 2, "sequence": 0},
        {"entity": "a", "x": 1, "y": 2, "sequence": 13},
    ]
    headers = {"content-type": "application/x-ndjson"}
    text = "\n".join(map(json.dumps, lines))
    refused = client.post("/v1/detectors/plant/rows", content=text, headers=headers)
    assert refused.status_code == 409
    assert refused.json()["expected"] == 12 and refused.json()["entity"] == "a"
    text = text.replace("13", "12")
    response = client.post("/v1/detectors/plant/rows", content=text, headers=headers)
    assert [json.loads(line)["row"] for line in response.text.splitlines()] == [0, 12]


def test_rows_sent_twice_with_times_count_once(serve, moving_file):
    client = serve(moving_file)
    url, values = "/v1/detectors/plant/streams/a/rows", rows_of(400)
    body = {"rows": values[:300], "time": [*range(300)]}
    answered(client.post(url, json=body))
    again = answered(client.post(url, json=body))
    assert all("answered before" in row["error"] for row in again["rows"])
    body = {"rows": values[300:], "time": [*range(300, 400)]}
    rest = answered(client.post(url, json=body))
    plain = answered(client.post("/v1/detectors/plant/score", json={"rows": values}))
    assert keys(rest["rows"]) == keys(plain["rows"][300:])
    url, text = "/v1/detectors/plant/rows", "x,y,entity\n" + "1,2,a\n" * 501
    csv = client.post(url, content=text, headers={"Content-Type": "text/csv"})
    as_json = client.post(url, json={"rows": [[1, 2]] * 501, "entity": ["a"] * 501})
    for many in (as_json, csv):
        assert many.status_code == 413
        assert many.json()["error"] == (
            "more than 500 rows of an entity at once: send fewer per request, or send "
            "JSON with `sequence`."
        )


def test_entities_and_the_queue_are_bounded(serve, moving_file):
    client = serve(moving_file, limits=Limits(entities=3, waiting=10, rows=50))
    url = "/v1/detectors/plant/rows"
    body = {"rows": [[1, 2]] * 3, "entity": ["a", "b", "c"]}
    answered(client.post(url, json=body))
    refused = client.post(url, json={"rows": [[1, 2]] * 2, "entity": ["a", "d"]})
    assert refused.status_code == 403 and "--max_entities" in refused.json()["error"]
    found = answered(client.post(url, json=body))
    assert [row["row"] for row in found["rows"]] == [1, 1, 1]  # nothing was taken
    # Rows that wait behind a call that goes on.
    engine, go = client.engines["plant"], threading.Event()
    held = engine.call(lambda: go.wait(20))
    waits = Body([Line(1, None, [1.0, 2.0], "", "a")] * 8, [None] * 8)
    first = engine.submit(waits)
    with pytest.raises(RequestError, match="8 rows wait") as error:
        engine.submit(waits)
    assert error.value.status == 429 and int(error.value.headers["Retry-After"]) >= 1
    refused = client.post(url, json=body)
    assert refused.status_code == 429 and refused.headers["retry-after"]
    text = client.get("/metrics").text
    assert 'refused_rows_total{detector="plant",reason="queue"} 11.0' in text
    go.set()
    assert held.result(5) and len(first.result(5).texts) == 8


def test_windows_are_scored_as_by_the_file(serve, moving_file, moving):
    client = serve(moving_file)
    windows = np.float32(np.random.default_rng(5).normal(size=(40, 4, 2)) * 3)
    found = answered(
        client.post(
            "/v1/detectors/plant/score?contributions=true",
            json={"windows": windows.astype(float).tolist()},
        )
    )
    wanted = load_onnx(moving_file).run(windows)
    np.testing.assert_array_equal(
        np.float32(found["window_score"]), wanted.window_score
    )
    np.testing.assert_array_equal(np.float32(found["point_score"]), wanted.point_score)
    np.testing.assert_array_equal(
        np.float32(found["contributions"]), wanted.contribution
    )
    assert found["alarm"] == wanted.alarm.tolist() and 0 < sum(found["alarm"]) < 40
    for bad in (
        [],
        [[[1, 2]]],
        [[[1, 2]] * 3 + [[1, "a"]]],
        [[[1, 2]] * 3 + [[1, 1e39]]],
    ):
        refused = client.post("/v1/detectors/plant/score", json={"windows": bad})
        assert refused.status_code == 400, bad


def test_windows_of_an_entity_have_its_values(serve, moving, tmp_path):
    each = [0, 1, 1]
    first, second = moving.thresholds
    detector = moving._replace(
        entities=("a", "b"),
        scalers=Scaler(*(array[each] for array in moving.scalers)),
        gaussians=Gaussian(*(array[each] for array in moving.gaussians)),
        thresholds=(first._replace(tau=1e9), second._replace(tau=0.1), second),
        calibration=(*moving.calibration, moving.calibration[1]),
    )
    save_detector(tmp_path / "plant", detector)
    client = serve(tmp_path / "plant")
    rows, url, scores = rows_of(4), "/v1/detectors/plant/score", list[float]()
    for name, alarm in (("a", 0), ("b", 1)):
        options = {"params": {"entity": name, "contributions": "true"}}
        row = answered(client.post(url, json={"rows": rows}, **options))["rows"][-1]
        found = answered(client.post(url, json={"windows": [rows]}, **options))
        assert found["window_score"] == [pytest.approx(row["window_score"], rel=1e-6)]
        assert found["point_score"][0][-1] == pytest.approx(row["score"], rel=1e-6)
        assert found["contributions"][0][-1] == pytest.approx(row["contributions"])
        assert found["alarm"] == [row["alarm"]] == [alarm]
        scores += found["window_score"]
    assert scores[1] > 1.3 * scores[0]
    for name in ("c", ""):
        refused = client.post(url, json={"windows": [rows]}, params={"entity": name})
        assert refused.status_code == 400


def test_contributions_of_rows(serve, moving_file, moving, tmp_path):
    save_detector(tmp_path / "folder", moving)
    client = serve(moving_file, tmp_path / "folder")
    values = rows_of(9)
    found = [
        answered(
            client.post(
                f"/v1/detectors/{name}/score?contributions=true",
                json={"rows": values},
            )
        )["rows"]
        for name in ("plant", "folder")
    ]
    assert all(row["contributions"] is None for row in found[0][:3])
    scorer = load_onnx(moving_file)
    for place in range(3, 9):
        window = np.float32(values[place - 3 : place + 1])[None]
        wanted = scorer.run(window).contribution[0, -1]
        for rows in found:
            np.testing.assert_allclose(rows[place]["contributions"], wanted, rtol=1e-5)


def test_tokens(serve, moving_file):
    client = serve(moving_file, token=TOKEN)
    url, body = "/v1/detectors/plant/streams/a/rows", {"rows": [[1, 2]]}
    for headers in (
        {}, {"authorization": TOKEN}, {"authorization": "Bearer wrong"},
        {"authorization": "Bearer "}, {"authorization": f"Basic {TOKEN}"},
    ):  # fmt: skip
        for method, path in (
            ("POST", url), ("GET", "/v1/events"), ("GET", "/v1/detectors"),
            ("POST", "/v1/detectors/plant/threshold"), ("POST", "/v2/models/plant/infer"),
        ):  # fmt: skip
            refused = client.request(method, path, headers=headers)
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == "Bearer"
    assert answered(client.post(url, json=body, headers=BEARER))["rows"]
    assert client.get("/v2/models/plant").status_code == 401
    for path in ("/healthz", "/readyz", "/metrics", "/v2", "/openapi.json"):
        assert client.get(path).status_code == 200
    # Without a token file nothing can be changed.
    client = serve(moving_file, state="other")
    for path in (
        "detectors/plant/threshold",
        "detectors/plant/promote",
        "events/x/ack",
    ):
        refused = client.post(f"/v1/{path}", json={"tau": 1}, headers=BEARER)
        assert refused.status_code == 403 and "--token_file" in refused.json()["error"]


def test_what_detectors_there_are(serve, moving_file, moving, tmp_path):
    save_detector(tmp_path / "folder", moving)
    client = serve(moving_file, tmp_path / "folder")
    found = answered(client.get("/v1/detectors"))["detectors"]
    assert [(one["name"], one["backend"]) for one in found] == [
        ("plant", "onnxruntime"), ("folder", "jax"),
    ]  # fmt: skip
    about = answered(client.get("/v1/detectors/folder"))
    assert about["channels"] == ["x", "y"] and about["window"] == 4
    assert about["card"] == moving.card and about["entities"] == ["a"]
    assert about["threshold"]["tau"] == moving.thresholds[0].tau
    digest = hashlib.sha256((tmp_path / "folder" / "MANIFEST.sha256").read_bytes())
    assert about["digest"] == digest.hexdigest()
    assert answered(client.get("/v1/detectors/plant"))["digest"] == (
        hashlib.sha256(moving_file.read_bytes()).hexdigest()
    )
    for path in ("/v1/detectors/none", "/nothing", "/v2/models/none"):
        refused = client.get(path)
        assert refused.status_code == 404 and refused.json()["error"]
    assert client.request("DELETE", "/v1/detectors").status_code == 405


def test_the_openapi_document_has_every_route(serve, moving_file):
    client = serve(moving_file)
    found = answered(client.get("/openapi.json"))
    assert found["openapi"].startswith("3.")
    path = found["paths"]["/v1/detectors/{name}"]["get"]["parameters"][0]
    assert path["schema"] == {"type": "string", "enum": ["plant"]}
    answers = found["paths"]["/v1/detectors/{name}/rows"]["post"]["responses"]["200"]
    assert [*answers["content"]] == ["application/json", "application/x-ndjson"]
    # What the schemas allow is accepted, but for what only rows can tell.
    post = {path: one["post"] for path, one in found["paths"].items() if "post" in one}
    bodies = {
        path: one["requestBody"] for path, one in post.items() if "promote" not in path
    }
    optional = [path for path, body in bodies.items() if not body["required"]]
    assert optional == ["/v1/events/{id}/ack", "/v1/events/{id}/shelve"]
    change, score = (
        bodies[f"/v1/detectors/{{name}}/{last}"]["content"]["application/json"][
            "schema"
        ]
        for last in ("threshold", "score")
    )
    assert [one["required"] for one in change["oneOf"]] == [["tau"], ["budget"]]
    assert [one["required"] for one in score["oneOf"]] == [["rows"], ["windows"]]
    gets = {path: one["get"] for path, one in found["paths"].items() if "get" in one}
    history, entities = (
        {
            one["name"]: one
            for one in gets[f"/v1/detectors/{{name}}/{last}"]["parameters"]
        }
        for last in ("history", "entities")
    )
    assert history["entity"]["required"] and not entities["find"]["required"]
    assert entities["most"]["schema"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 1000,
    }
    assert history["entity"]["schema"]["maxLength"] == LONGEST_NAME
    listed = {
        (method.upper(), path)
        for path, methods in found["paths"].items()
        for method in methods
    }
    assert listed == {(route.method, route.path) for route in openapi.ROUTES}
    text = (Path(__file__).parents[1] / "docs" / "serve.md").read_text("utf-8")
    assert all(f"`{route.path}`" in text for route in openapi.ROUTES)


def tensor(windows, kind="FP32", **more):
    data = windows.ravel().tolist()
    return {
        "name": "x",
        "shape": [*windows.shape],
        "datatype": kind,
        "data": data,
    } | more


def test_open_inference_protocol(serve, moving_file, moving, tmp_path):
    save_detector(tmp_path / "folder", moving)
    client = serve(moving_file, tmp_path / "folder")
    assert answered(client.get("/v2"))["extensions"] == ["binary_tensor_data"]
    assert answered(client.get("/v2/health/live")) and answered(
        client.get("/v2/health/ready")
    )
    about = answered(client.get("/v2/models/plant"))
    assert about["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4, 2]}]
    assert [one["name"] for one in about["outputs"]] == [*OUTPUTS]
    windows = np.float32(np.random.default_rng(6).normal(size=(5, 4, 2)) * 3)
    wanted = load_onnx(moving_file).run(windows)
    for name in ("plant", "folder"):
        url = f"/v2/models/{name}/infer"
        body = {"id": "7", "inputs": [tensor(windows.astype(float))]}
        found = answered(client.post(url, json=body))
        assert found["id"] == "7" and found["model_name"] == name
        for one, (output, values) in zip(
            found["outputs"], wanted._asdict().items(), strict=True
        ):
            assert one["name"] == output and one["shape"] == [*values.shape]
            np.testing.assert_allclose(
                np.array(one["data"], float), values.ravel(), rtol=1e-5
            )
    # Binary tensors, as tritonclient sends them.
    x = {"name": "x", "shape": [5, 4, 2], "datatype": "FP32"}
    x["parameters"] = {"binary_data_size": windows.nbytes}
    asked = [{"name": "window_score", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [x], "outputs": asked}).encode()
    response = client.post(
        "/v2/models/plant/infer",
        content=head + windows.tobytes(),
        headers={"content-type": "application/octet-stream",
                 "inference-header-content-length": str(len(head))},
    )  # fmt: skip
    length = int(response.headers["inference-header-content-length"])
    answer = json.loads(response.content[:length])
    assert [one["name"] for one in answer["outputs"]] == ["window_score"]
    scores = np.frombuffer(response.content[length:], "<f4")
    np.testing.assert_array_equal(scores, wanted.window_score)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": [1, 3, 2]}, "has shape"),
        ({"shape": [0, 4, 2]}, "has shape"),
        ({"shape": ["a"]}, "has shape"),
        ({"shape": None}, "has shape"),
        ({"datatype": "BYTES"}, "give FP32 or FP64"),
        ({"name": "y"}, "give one input"),
        ({"data": [1.0]}, "must have 8 numbers"),
        ({"data": [1e39] + [0.0] * 7}, "beyond float32"),
        ({"data": ["a"] + [0.0] * 7}, "must have 8 numbers"),
        ({"parameters": {"binary_data_size": 3}}, "is not that of"),
    ],
)  # fmt: skip
def test_faulty_inferences_are_refused(serve, moving_file, change, said):
    client = serve(moving_file)
    body = {"inputs": [tensor(np.zeros((1, 4, 2))) | change]}
    refused = client.post("/v2/models/plant/infer", json=body)
    assert refused.status_code == 400 and said in refused.json()["error"]
    for body in (
        [],
        {"inputs": 1},
        {"inputs": [tensor(np.zeros((1, 4, 2)))], "outputs": [{}]},
    ):
        assert client.post("/v2/models/plant/infer", json=body).status_code == 400


def test_metrics_name_what_was_done(serve, moving_file):
    client = serve(moving_file)
    url = "/v1/detectors/plant/streams/a%22%5C/rows"
    values = rows_of(20)
    values[10] = [50, -50]
    found = answered(client.post(url, json={"rows": values}))["rows"]
    client.post(url, json={"rows": [[1]]})
    client.post(url, content=b"{", headers=JSON)
    text = client.get("/metrics").text
    assert text.endswith("# EOF\n")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    plant, entity = ("detector", "plant"), ("entity", 'a"\\')
    assert samples["kdjax_rows_total", plant] == 21
    assert samples["kdjax_windows_total", plant] == 17
    alarms = sum(row["alarm"] for row in found)
    assert samples["kdjax_alarms_total", plant] == alarms > 0
    events = answered(client.get("/v1/events"))["events"]
    begun = sum(event["phase"] == "begin" for event in events)
    assert samples["kdjax_events_begun_total", plant] == begun > 0
    assert samples["kdjax_refused_rows_total", plant, ("reason", "row")] == 1
    assert samples["kdjax_score", plant, entity] == found[-1]["score"]
    assert samples["kdjax_threshold", plant, entity] == 8.0
    assert 0 <= samples["kdjax_last_row_age_seconds", plant, entity] < 60
    route = ("route", "/v1/detectors/{name}/streams/{entity}/rows")
    assert samples["kdjax_request_seconds_count", route] == 3
    assert samples["kdjax_requests_total", route, ("status", "400")] == 1
    assert ("kdjax_drift_distance", plant, entity) in samples


def test_entity_metrics_are_bounded(serve, moving_file, monkeypatch):
    monkeypatch.setattr("kdjax.service.metrics.MOST_LABELS", 2)
    client = serve(moving_file)
    body = {"rows": [[1, 2]] * 4, "entity": [*"abcd"]}
    answered(client.post("/v1/detectors/plant/rows", json=body))
    assert client.get("/metrics").text.count("\nkdjax_threshold{") == 2
    app = App(client.engines, entity_metrics=False)
    text = app.collected.text()[0].decode()
    assert "kdjax_threshold{" not in text
    assert 'kdjax_last_row_age_seconds{detector="plant",entity=""}' in text
