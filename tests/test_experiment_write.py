"""What the report of a run shows is what its saved detectors say."""

import base64
import json
import re

import numpy as np
import pandas as pd
import pytest
from test_evaluation_page import Page

from kdjax.data.readers import read_table
from kdjax.detection.detector import entity_index
from kdjax.detection.storage import load_detector
from kdjax.detection.tables import score_events, score_table
from kdjax.evaluation.plots import heat_bins
from kdjax.experiment.write import DRAWN, contribution_bins

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
def parts(finished):
    """The part of the report on each entity."""
    text = (finished.workdir / "report.html").read_text("utf-8")
    parts = re.findall(r"<summary>(.*?)</summary>(.*?)</details>", text, re.DOTALL)
    return dict(parts)


@pytest.fixture(scope="module")
def drawn(parts):
    """Entity -> type of trace -> name of trace -> the trace of its timeline."""
    found = {}
    for name, part in parts.items():
        traces = Page(part).figures[0]["data"]
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
    axis = array_of(traces["scatter"]["student"]["x"]).astype(np.int64)
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


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", DRAWN)
def test_bars_are_the_events_of_the_saved_detector(
    finished, drawn, tests, machine, name
):
    detector = load_detector(finished.workdir / "detectors" / name)
    series = tests[machine]
    table = score_table(detector, series, entity=machine)
    events = score_events(detector, series, table, entity=machine)
    row = {instant: place for place, instant in enumerate(table["time"])}
    expected = [
        (row[a], row[b] + 1)
        for a, b in zip(events["start"], events["end"], strict=True)
    ]
    assert rows_of(drawn[machine], name) == expected


def test_some_event_is_found_at_all(drawn):
    assert any(rows_of(traces, "student") for traces in drawn.values())


@pytest.mark.parametrize("machine", MACHINES)
def test_the_map_is_of_the_saved_student(finished, drawn, tests, machine):
    detector = load_detector(finished.workdir / "detectors" / "student")
    index, values = entity_index(detector, machine), tests[machine].values
    starts = np.arange(0, len(values) - detector.window + 1, detector.stride)
    bins = heat_bins(tests[machine].time, len(values))
    contributed = contribution_bins(detector, index, values, starts, bins)
    (trace,) = drawn[machine]["heatmap"].values()
    strength = array_of(trace["z"]).T
    assert strength.shape == contributed.shape
    hot = contributed == contributed.max()
    assert strength[hot] == pytest.approx(1)
    clear = contributed < detector.thresholds[index].tau / 100
    assert (strength[clear] < 0.01).all() and (strength[~clear] >= 0).all()
    order = np.argsort(contributed, axis=None)
    assert (np.diff(strength.ravel()[order]) >= 0).all()


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
