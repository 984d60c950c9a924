"""What the report of a run shows is what its saved detectors say."""

import base64
import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from test_evaluation_page import Page

from kdjax.cli import main
from kdjax.data.readers import read_table
from kdjax.detection.detector import entity_index
from kdjax.detection.storage import load_detector
from kdjax.detection.tables import score_events, score_table
from kdjax.evaluation.page import SAME_X
from kdjax.experiment.write import DRAWN, contribution_bins
from kdjax.metrics.checks import runs
from kdjax.scoring.files import score_file

MACHINES = {"press": 160, "saw": 120}  # and their test rows


@pytest.fixture(scope="module")
def tests(finished):
    """The test series by entity, as the run read them."""
    series = read_table(
        finished.plant.test,
        time_column="",
        entity_column="machine",
        label_column="fault",
        exclude="",
        missing="error",
        order="strict",
        duplicates="error",
    )
    return {one.entity: one for one in series}


@pytest.fixture(scope="module")
def page(finished):
    """What stands before and after the heading of all entities' figures."""
    text = (finished.workdir / "report.html").read_text("utf-8")
    return text.split("<h2>Entities")


def details(text):
    """Entity -> its part of the page."""
    found = re.findall(r"<summary>(\w+)</summary>(.*?)</details>", text, re.DOTALL)
    return dict(found)


@pytest.fixture(scope="module")
def parts(page):
    """The part of the report on each entity."""
    return details(page[1])


@pytest.fixture(scope="module")
def drawn(parts):
    """Entity -> type of trace -> name of trace -> the trace of its timeline."""
    return traces_of(parts)


@pytest.fixture(scope="module")
def decided(page):
    """The same of the recommended model."""
    return traces_of(details(page[0]))


@pytest.fixture(scope="module")
def best(finished):
    """The recommended model."""
    return finished.results["recommendation"]["model"] or "student"


def traces_of(parts):
    found = {}
    for name, part in parts.items():
        traces = Page(part).figures[0]["data"]
        for before, trace in itertools.pairwise(traces):
            if trace.get("x") == SAME_X:
                trace["x"] = before["x"]
        types = {trace["type"] for trace in traces}
        found[name] = {
            kind: {t.get("name"): t for t in traces if t["type"] == kind}
            for kind in types
        }
    return found


def array_of(values):
    """An array of a figure: numbers stand there as base64, times as text."""
    if isinstance(values, list):
        return np.array(values, "datetime64[ms]" if "T" in str(values) else None)
    data = np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
    shape = values.get("shape", str(len(data)))
    return data.reshape([int(size) for size in shape.split(",")])


def rows_of(traces, name):
    """The spans of rows below the bars of a name."""
    axis = array_of(traces["scatter"]["student"]["x"])[::2].astype(np.int64)
    starts = array_of(traces["bar"][name]["base"]).astype(np.int64)
    ends = starts + array_of(traces["bar"][name]["x"]).astype(np.int64)
    return [
        (int(np.searchsorted(axis, a)), int(np.searchsorted(axis, b)))
        for a, b in zip(starts, ends, strict=True)
    ]


@pytest.mark.parametrize("machine", MACHINES)
def test_bars_are_the_labelled_events(drawn, tests, machine):
    labels = tests[machine].labels
    ((first, last),) = rows_of(drawn[machine], "true events")
    assert labels[first:last].all() and labels.sum() == last - first


def table_of(finished, tests, name, machine, **options):
    """The score table of a saved detector."""
    detector = load_detector(finished.workdir / "detectors" / name)
    series = tests[machine]
    return detector, series, score_table(detector, series, entity=machine, **options)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", DRAWN)
def test_bars_and_curves_are_those_of_the_saved_detector(
    finished, drawn, tests, machine, name
):
    *_, table = table_of(finished, tests, name, machine)
    starts, stops = runs(table["alarm"].to_numpy() > 0)
    assert rows_of(drawn[machine], name) == [*zip(starts, stops, strict=True)]
    curve = array_of(drawn[machine]["scatter"][name]["y"])
    np.testing.assert_allclose(curve[::2], table["window_score"], rtol=1e-4)
    np.testing.assert_array_equal(curve[::2], curve[1::2])
    tau = table["tau"][0]
    above = np.nan_to_num(curve[::2]) > tau
    assert np.array_equal(above, table["alarm"] > 0)


def test_some_alarm_is_raised_at_all(drawn):
    assert any(rows_of(traces, "student") for traces in drawn.values())


@pytest.mark.parametrize("machine", MACHINES)
def test_the_recommended_model_is_drawn_with_signals(decided, tests, machine, best):
    traces, series = decided[machine], tests[machine]
    assert set(traces["bar"]) == {"true events", best}
    assert set(traces["scatter"]) == {best, "τ", *series.channels}
    for place, name in enumerate(series.channels):
        line = traces["scatter"][name]
        np.testing.assert_array_equal(
            array_of(line["customdata"]), series.values[:, place]
        )
        np.testing.assert_array_equal(
            array_of(line["x"]), series.time.astype("datetime64[ms]")
        )


@pytest.mark.parametrize("machine", MACHINES)
def test_the_map_is_of_the_saved_detector(finished, decided, tests, machine, best):
    detector = load_detector(finished.workdir / "detectors" / best)
    index, values = entity_index(detector, machine), tests[machine].values
    starts = np.arange(0, len(values) - detector.window + 1, detector.stride)
    bins = np.arange(len(values))
    contributed = contribution_bins(detector, index, values, starts, bins)
    (trace,) = decided[machine]["heatmap"].values()
    strength = array_of(trace["z"]).T
    assert strength.shape == contributed.shape
    hot = contributed == contributed.max()
    assert (strength[hot] == 100).all()
    clear = contributed < detector.thresholds[index].tau / 100
    assert (strength[clear] <= 1).all()
    assert ((strength == -100) == np.isnan(contributed)).all()
    order = np.argsort(contributed, axis=None)[: np.isfinite(contributed).sum()]
    assert (np.diff(strength.ravel()[order].astype(int)) >= 0).all()


def test_the_table_has_the_events_of_the_saved_detector(finished, page, tests, best):
    cells = Page(
        page[0].split("<h2>Events</h2>")[1].split("</div>")[0] + "</div>"
    ).cells
    heads = ["Start", "End", "Entity", "Kind", "Severity", "Peak", "Channels"]
    assert cells[:7] == heads
    expected = []
    for machine in tests:
        detector, series, table = table_of(finished, tests, best, machine)
        for event in score_events(detector, series, table, entity=machine).itertuples():
            severity = f"{event.severity:.3g}"
            times = [str(time) for time in (event.start, event.end, event.peak)]
            names = event.channels.replace(";", ", ")
            expected += [*times[:2], machine, event.kind, severity, times[2], names]
    assert cells[7:] == expected and expected


@pytest.mark.slow
def test_the_table_has_events_of_all_kinds(finished, plant_changes, tmp_path, capsys):
    """Frozen rows, a moved constant and a gap, as `score` of the same file lists them."""
    train, test = (pd.read_csv(path) for path in finished.plant)
    train["level"] = test["level"] = 3.5  # constant
    channels = test.columns.difference(["time", "machine", "fault"])
    test.loc[40:90, channels] = test.loc[40, channels].to_numpy()
    test.loc[100:104, "level"] = 9.0
    test = test.drop(index=range(120, 140))
    paths = {"data.path": train, "data.test_path": test}
    for name, frame in paths.items():
        paths[name] = tmp_path / f"{name[5:]}.csv"
        frame.to_csv(paths[name], index=False)
    flags = [f"--config.{k}={v}" for k, v in (TINY | plant_changes | paths).items()]
    flags = [flag.replace("(", "").replace(",)", "") for flag in flags]
    assert main(["kdjax", "run", *flags, f"--workdir={tmp_path / 'run'}"]) == 0
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    model = results["recommendation"]["model"] or "student"
    detector = tmp_path / "run" / "detectors" / model
    score_file(
        paths["data.test_path"], detector=detector, output=tmp_path / "scores.csv",
        entity_column="machine", ignore=("fault",),
    )  # fmt: skip
    listed = pd.read_csv(tmp_path / "scores.csv.events.csv")
    assert {"frozen", "constant_moved", "no_data"} <= set(listed["kind"])
    text = (tmp_path / "run" / "report.html").read_text("utf-8")
    cells = Page(text.split("<h2>Events</h2>")[1].split("</div>")[0] + "</div>").cells
    found = [tuple(cells[place : place + 4]) for place in range(7, len(cells), 7)]
    wanted = listed[["start", "end", "entity", "kind"]].astype(str)
    assert sorted(found) == sorted(wanted.itertuples(index=False, name=None))
    (line,) = re.findall("<p>(Expect about .*?)</p>", text)
    assert line in " ".join(out.split())


def test_the_first_lines_are_what_an_engineer_needs(finished, page, best):
    lines = re.findall("<p>(.*?)</p>", page[0].split('<div class="summary">')[1])[:3]
    recommendation = finished.results["recommendation"]
    named = f"Recommended: {best}" if recommendation["model"] else "No detector"
    assert lines[0].startswith(named)
    assert lines[1].startswith("Threshold (conformal): an alarm where the window score")
    assert re.match(
        r"Expect about [\d.,]+ events a day \([\d.,]+–[\d.,]+\) of student in ",
        lines[2],
    )


def test_precision_and_recall_of_networks_the_best_control_and_random(parts):
    for part in parts.values():
        _, _, curves = Page(part).figures
        names = [
            t["name"].split(" (")[0] for t in curves["data"] if t["mode"] == "lines"
        ]
        assert {"teacher", "student", "student_alone", "random"} < set(names)


def test_digests_and_numbers_are_written_beside_the_page(finished):
    results = finished.results
    data = json.loads((finished.workdir / "data.json").read_text("utf-8"))
    assert results["data"]["sha256"] == data
    text = (finished.workdir / "report.html").read_text("utf-8")
    for name, digest in data.items():
        assert re.search(f"<td>{name}</td>\\s*<td>{digest}</td>", text)
    rows = pd.read_csv(finished.workdir / "results.csv")
    assert len(rows) == len(results["rows"])
    entities = pd.read_csv(finished.workdir / "entities.csv")
    assert len(entities) == len(results["entities"])
    for name in ("report.md", "results.tex"):
        assert "student" in (finished.workdir / name).read_text("utf-8")


def test_the_report_measures_the_events_of_its_table(finished):
    """Both machines, of 160 and 120 rows a second apart, are one operator's."""
    text = (finished.workdir / "report.html").read_text("utf-8")
    cells = Page(text).cells
    first, start = cells.index("Start"), cells.index("Measure")
    told = dict(zip(cells[start::3], cells[start + 1 :: 3], strict=False))
    events = sum(name in MACHINES for name in cells[first:start:1])
    assert events and told["Events"] == told["Most in 10 minutes"] == str(events)
    assert told["Events a day"] == f"{events * 86_400 / 159:.3g}"
    assert told["Standing, over 24 hours"] == "0"
