"""What the report of a run shows is what its saved detectors say."""

import base64
import io
import json
import re

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from kdjax.evaluation.strips import WIDTH

from kdjax.data.readers import read_table
from kdjax.detection.detector import entity_index
from kdjax.detection.storage import load_detector
from kdjax.detection.tables import score_events, score_table
from kdjax.evaluation.heatmap import contribution_bins
from kdjax.evaluation.plots import heat_bins
from kdjax.experiment.write import DRAWN

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


def rows_of(part, style, rows):
    """The spans of rows below the bars of a class."""
    (path,) = re.findall(rf'<path class="{style}" d="([^"]*)"/>', part)
    found = re.findall(r"M(\d+) \d+H(\d+)v", path)
    return [
        (round(int(a) * rows / WIDTH), round(int(b) * rows / WIDTH)) for a, b in found
    ]


@pytest.mark.parametrize("machine", MACHINES)
def test_bars_are_the_labelled_events(parts, tests, machine):
    labels = tests[machine].labels
    ((first, last),) = rows_of(parts[machine], "event true", MACHINES[machine])
    assert labels[first:last].all() and labels.sum() == last - first


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("number", range(len(DRAWN)))
def test_bars_are_the_events_of_the_saved_detector(
    finished, parts, tests, machine, number
):
    detector = load_detector(finished.workdir / "detectors" / DRAWN[number])
    series = tests[machine]
    table = score_table(detector, series, entity=machine)
    events = score_events(detector, series, table, entity=machine)
    row = {instant: place for place, instant in enumerate(table["time"])}
    expected = [
        (row[a], row[b] + 1)
        for a, b in zip(events["start"], events["end"], strict=True)
    ]
    assert rows_of(parts[machine], f"event c{number}", len(table)) == expected


def test_some_event_is_found_at_all(parts):
    found = [rows_of(part, "event c1", MACHINES[name]) for name, part in parts.items()]
    assert any(found)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_map_is_of_the_saved_student(finished, parts, tests, machine):
    detector = load_detector(finished.workdir / "detectors" / "student")
    index, values = entity_index(detector, machine), tests[machine].values
    starts = np.arange(0, len(values) - detector.window + 1, detector.stride)
    bins = heat_bins(tests[machine].time, len(values))
    contributed = contribution_bins(detector, index, values, starts, bins)
    (source,) = re.findall(r'class="heat".*?base64,([^"]+)"', parts[machine])
    image = matplotlib.image.imread(io.BytesIO(base64.b64decode(source)), "png")
    strength = image[..., 3].T
    assert strength.shape == contributed.shape
    hot = contributed == contributed.max()
    assert strength[hot] == pytest.approx(1)
    clear = contributed < detector.thresholds[index].tau / 100
    assert (strength[clear] < 0.01).all() and (strength[~clear] >= 0).all()
    order = np.argsort(contributed, axis=None)
    assert (np.diff(strength.ravel()[order]) >= 0).all()


def test_precision_and_recall_of_networks_the_best_control_and_random(parts):
    for part in parts.values():
        assert part.count('alt="Precision and recall on') == 1


def test_digests_and_numbers_are_written_beside_the_page(finished):
    results = finished.results
    data = json.loads((finished.workdir / "data.json").read_text("utf-8"))
    assert results["data"]["sha256"] == data
    text = (finished.workdir / "report.html").read_text("utf-8")
    for name, digest in data.items():
        assert f"<th>{name}</th><td>{digest}</td>" in text
    rows = pd.read_csv(finished.workdir / "results.csv")
    assert len(rows) == len(results["rows"])
    entities = pd.read_csv(finished.workdir / "entities.csv")
    assert len(entities) == len(results["entities"])
    for name in ("report.md", "results.tex"):
        assert "student" in (finished.workdir / name).read_text("utf-8")
