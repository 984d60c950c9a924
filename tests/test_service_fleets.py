"""The service on a fleet: rows of each machine go to its own detector."""

import json
import shutil

import numpy as np
import pytest
from service_client import BEARER, JSON, TOKEN, answered, rows_of, until

from kdjax.cli import main
from kdjax.detection import fleet as fleets
from kdjax.notify.outbox import receivers
from kdjax.scoring.opening import open_streams
from kdjax.service.engine import Limits
from kdjax.service.sources import DeadLetters, Message, Spec, open_sources

URL = "/v1/detectors/plants.fleet"
MACHINES = ("m1", "m2", "few")


@pytest.fixture
def values():
    """Rows of each machine, and of two that the fleet has no detector of."""
    return {n: rows_of(30, seed) for seed, n in enumerate((*MACHINES, "m9", "bad"))}


def posted(client, values, first, last, names=MACHINES, **more):
    """Rows of several machines in turn; the answer."""
    lines = [(name, n) for n in range(first, last) for name in names]
    body = {
        "rows": [values[name][n] for name, n in lines],
        "entity": [name for name, _ in lines],
        "time": [n for _, n in lines],
    }
    return client.post(f"{URL}/rows", json=body | more)


def of(answers, name):
    keys = ("row", "score", "window_score", "alarm", "state")
    return [tuple(one[key] for key in keys) for one in answers if one["entity"] == name]


def wanted(folder, name, rows):
    """Scores and alarms of the rows by a detector alone."""
    stream = open_streams(folder, entity=name)[name]
    found = [stream.update(row, n) for n, row in enumerate(rows)]
    numbers = [(row.score, row.window_score) for row in found]
    return np.array(numbers, float), [(int(row.alarm), row.state) for row in found]


def check(answers, folder, name, rows, own=None):
    scores, states = wanted(folder, own or name, rows)
    found = of(answers, name)
    given = np.array([row[1:3] for row in found], float)  # NaN for None
    np.testing.assert_allclose(given, scores, rtol=1e-5)
    assert [row[3:] for row in found] == states


@pytest.mark.parametrize("most", [1, 1000])
def test_rows_go_to_the_detectors_of_their_machines(serve, fleet, values, most):
    client = serve(fleet.path, limits=Limits(open=most))
    found = answered(posted(client, values, 0, 20))["rows"]
    for name in MACHINES:
        more = [
            {"rows": [row], "time": [20 + n]} for n, row in enumerate(values[name][20:])
        ]
        for body in more:
            url = f"{URL}/streams/{name}/rows"
            found += answered(client.post(url, json=body))["rows"]
    for name in ("m1", "m2"):
        check(found, fleet.of(name), name, values[name])
    check(found, fleet.of("few"), "few", values["few"], "pooled")
    assert any(row[3] for row in of(found, "m1"))
    taus = {n: client.get(f"{URL}/history?entity={n}").json()["rows"][0]["tau"]
            for n in MACHINES}  # fmt: skip
    assert taus == {"m1": 3.0, "m2": 5.0, "few": 12.0}


def test_rows_of_several_machines_take_one_call_a_detector(serve, fleet, values):
    client = serve(fleet.path)
    posted(client, values, 0, 10)
    engine, calls = client.engines["plants.fleet"], []
    for name in MACHINES:
        source = engine.machines.of(name).stream.source
        real = source.score
        source.score = lambda names, windows, real=real: (
            calls.append([*names]) or real(names, windows)
        )
    posted(client, values, 10, 15)
    assert sorted(calls) == [["m1"] * 5, ["m2"] * 5, ["pooled"] * 5]


def test_machines_without_a_detector_spoil_no_others(serve, fleet, values):
    client = serve(fleet.path)
    names = ("m1", "m9", "m2", "bad", "few")
    found = answered(posted(client, values, 0, 30, names))["rows"]
    check(found, fleet.of("m1"), "m1", values["m1"])
    assert [one["entity"] for one in found] == [*names] * 30
    for name, status, words in (
        ("m9", 404, "m9: the fleet"),
        (
            "bad",
            409,
            "bad: its detector failed (3 rows, fewer than a window of 4): correct",
        ),
    ):
        faults = [one for one in found if one["entity"] == name]
        assert {one["status"] for one in faults} == {status}
        assert all(one["error"].startswith(words) for one in faults)
        for response in (
            client.post(f"{URL}/streams/{name}/rows", json={"rows": values[name][:2]}),
            posted(client, values, 0, 3, [name]),
            client.post(f"{URL}/score?entity={name}", json={"rows": values[name][:2]}),
            client.get(f"{URL}?entity={name}"),
        ):
            assert response.status_code == status
            assert response.json()["error"].startswith(words)
    engine = client.engines["plants.fleet"]
    assert {*engine.machines.names} == {*MACHINES}
    text = client.get("/metrics").text
    assert (
        'kdjax_refused_rows_total{detector="plants.fleet",reason="machine"} 70.0'
        in text
    )


def test_new_machines_and_detectors_need_no_restart(serve, fleet, values, tmp_path):
    """Rows carry over to a new detector; a machine that fails is refused from then on."""
    file = tmp_path / "messages"
    client = serve(fleet.path, to=receivers([f"file:{file}"]))
    found = answered(posted(client, values, 0, 15))["rows"]
    old = fleet.digest("m1")
    assert posted(client, values, 0, 15, ["m9"]).status_code == 404
    fleet.add("m9", tau=4.0)
    fleet.add("m1", tau=1000.0)  # so that its event ends
    fleet.add("m2", state="failed", reason="its file is empty")
    new = answered(posted(client, values, 0, 30, ["m9"]))["rows"]
    check(new, fleet.of("m9"), "m9", values["m9"])
    found += answered(posted(client, values, 15, 30, ["m1", "few"]))["rows"]
    scores, states = wanted(fleet.of("m1"), "m1", values["m1"])
    given = np.array([row[1:3] for row in of(found, "m1")], float)
    np.testing.assert_allclose(given[15:], scores[15:], rtol=1e-5)
    assert [row[3:] for row in of(found, "m1")][15:] == states[15:]
    assert [row[0] for row in of(found, "m1")] == [*range(30)]
    check(found, fleet.of("few"), "few", values["few"], "pooled")
    assert posted(client, values, 15, 16, ["m2"]).status_code == 409
    entries = client.get("/v1/events").json()["events"]
    (note,) = [one for one in entries if one["kind"] == "detector"]
    assert note["text"].startswith("another detector is used for m")
    until(lambda: file.exists() and fleet.digest("m1") in file.read_text(), 20)
    digests = [(one["entity"], one["detector"])
               for one in map(json.loads, file.read_text().splitlines())]  # fmt: skip
    assert {(n, d) for n, d in digests if n in ("m1", "m9")} == {
        ("m1", old), ("m1", fleet.digest("m1")), ("m9", fleet.digest("m9")),
    }  # fmt: skip
    ends = [one for one in entries if one.get("reason") == "detector"]
    begun = {
        one["id"]
        for one in entries
        if one.get("phase") == "begin" and one["entity"] == "m2"
    }
    ended = {
        one["id"]
        for one in entries
        if one.get("phase") == "end" and one["entity"] == "m2"
    }
    assert begun == ended and all(one["entity"] == "m2" for one in ends)


def test_states_outlast_a_restart(serve, fleet, values):
    client = serve(fleet.path)
    found = answered(posted(client, values, 0, 15))["rows"]
    client.close()
    fleet.add("m2", state="failed", reason="its file is empty")
    client = serve(fleet.path)
    found += answered(posted(client, values, 15, 30, ["m1", "m2", "few"]))["rows"]
    check(found, fleet.of("m1"), "m1", values["m1"])
    assert [("error" in one) for one in found if one["entity"] == "m2"] == [
        False
    ] * 15 + [True] * 15


def test_a_journal_of_a_machine_that_left_is_passed_over(
    serve, fleet, values, tmp_path
):
    """What a kill leaves: rows in the journal that no state has yet."""
    client = serve(fleet.path)
    found = answered(posted(client, values, 0, 15))["rows"]
    shutil.copytree(tmp_path / "state", tmp_path / "killed")
    fleet.add("m2", state="failed", reason="its file is empty")
    other = serve(fleet.path, state="killed")
    found += answered(posted(other, values, 15, 30, ["m1", "few"]))["rows"]
    check(found, fleet.of("m1"), "m1", values["m1"])


def test_the_summary_of_a_fleet_and_cards_of_its_machines(serve, fleet):
    client = serve(fleet.path)
    about = answered(client.get(URL))
    assert about["fleet"] == {
        "machines": 4, "ready": 3, "failed": 1, "with_fleets_values": 1,
        "failures": {"bad": "3 rows, fewer than a window of 4."},
    }  # fmt: skip
    assert about["channels"] == ["x", "y"] and about["window"] == 4
    one = answered(client.get(f"{URL}?entity=m2"))
    assert one["entity"] == "m2" and one["digest"] == fleet.digest("m2")
    assert one["threshold"]["tau"] == 5.0 and one["card"]["title"] == "by hand"
    assert answered(client.get(f"{URL}?entity=few"))["threshold"]["tau"] == 12.0
    fleet.add("m3", tau=4.0)
    assert answered(client.get(URL))["fleet"]["machines"] == 5


def test_stateless_scores_are_of_one_machine(serve, fleet, values):
    client = serve(fleet.path)
    body = {"rows": values["m1"], "time": [*range(30)]}
    assert client.post(f"{URL}/score", json=body).status_code == 400
    for name in MACHINES:
        rows = answered(client.post(f"{URL}/score?entity={name}", json=body))["rows"]
        own = "pooled" if name == "few" else name
        check(rows, fleet.of(name), name, values["m1"], own)
    windows = {"windows": [values["m1"][:4]]}
    found = answered(client.post(f"{URL}/score?entity=m2", json=windows))
    score, _ = wanted(fleet.of("m2"), "m2", values["m1"][:4])
    assert found["window_score"] == pytest.approx([score[-1, 1]], rel=1e-5)


def test_a_threshold_is_of_one_machine_and_its_detector(serve, fleet, values):
    client = serve(fleet.path, token=TOKEN)
    options = {"headers": {**BEARER, **JSON}}
    rows = {
        "rows": values["m1"][:10] + values["m2"][:10],
        "entity": ["m1"] * 10 + ["m2"] * 10,
        "time": [*range(10)] * 2,
    }
    answered(client.post(f"{URL}/rows", json=rows, **options))
    refused = client.post(f"{URL}/threshold", json={"tau": 1.5}, **options)
    assert refused.status_code == 400 and "give the entity" in refused.json()["error"]
    given = {"tau": 1.5, "entity": "m1"}
    change = answered(client.post(f"{URL}/threshold", json=given, **options))
    assert (change["before"], change["digest"]) == (3.0, fleet.digest("m1"))

    def tau(name, n):
        body = {"rows": [values[name][n]], "time": [n]}
        url = f"{URL}/streams/{name}/rows"
        answered(client.post(url, json=body, **options))
        rows = client.get(f"{URL}/history?entity={name}", headers=BEARER).json()["rows"]
        return rows[-1]["tau"]

    assert (tau("m1", 10), tau("m2", 10)) == (1.5, 5.0)
    fleet.add("m2", tau=6.0)
    until(lambda: not client.engines["plants.fleet"].machines.stale())
    assert (tau("m1", 11), tau("m2", 11)) == (1.5, 6.0)
    fleet.add("m1", tau=7.0)  # for which the change was not made
    until(lambda: not client.engines["plants.fleet"].machines.stale())
    assert tau("m1", 12) == 7.0


def test_routes_of_one_model_say_that_it_is_a_fleet(serve, fleet, capsys):
    client = serve(fleet.path)
    for response in (
        client.get("/v2/models/plants.fleet"),
        client.post("/v2/models/plants.fleet/infer", json={"inputs": []}),
    ):
        assert response.status_code == 400
        assert "is a fleet, whose machines have models" in response.json()["error"]
    assert answered(client.get("/v2/models/plants.fleet/ready"))["ready"]
    assert client.get(f"{URL}/shadow").status_code == 404
    arguments = ["kdjax", "serve", f"--detector={fleet.path}"]
    assert main([*arguments, f"--shadow={fleet.of('m1')}"]) == 2
    assert "--shadow compares single detectors" in capsys.readouterr().err


def test_a_damaged_catalogue_leaves_the_old_one_in_force(
    serve, fleet, values, monkeypatch
):
    client = serve(fleet.path)
    answered(posted(client, values, 0, 5))
    (fleet.path / fleets.CATALOGUE).write_bytes(b"PAR1")
    engine = client.engines["plants.fleet"]
    until(lambda: not engine.machines.stale())
    assert len(answered(posted(client, values, 5, 10))["rows"]) == 15


def test_rows_of_a_source_without_a_detector_are_dead_letters(
    serve, fleet, values, tmp_path
):
    client, said = serve(fleet.path), []
    (source,) = open_sources(
        [Spec("test", "", (), lambda source: None)],
        client.engines,
        dead=DeadLetters(tmp_path / "dead", said.append),
        most=10_000,
        log=said.append,
    )
    source.put([
        Message(json.dumps({"rows": values["m1"][:9]}).encode(), "m1"),
        Message(json.dumps({"rows": values["m9"][:1]}).encode(), "m9"),
        Message(json.dumps({"rows": values["m2"][:9]}).encode(), "m2"),
    ])  # fmt: skip
    letters = [*map(json.loads, (tmp_path / "dead").read_text().splitlines())]
    assert [letter["reason"].split(":")[0] for letter in letters] == ["m9"]
    machines = client.engines["plants.fleet"].machines
    assert {name: machines.of(name).stream.rows for name in machines.names} == {
        "m1": 9, "m2": 9
    }  # fmt: skip
