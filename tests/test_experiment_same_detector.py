"""`KDDetector` and `run` give the same detector for the same data and settings."""

import json

import jax
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from kdjax.config import get_config, override, resolve
from kdjax.detection.storage import load_detector
from kdjax.estimator import FIELDS, KDDetector
from kdjax.experiment.pipeline import run

pytestmark = pytest.mark.slow

PARAMETERS = {
    "window_size": 8,
    "stride": 2,
    "teacher_hidden": (4,),
    "student_hidden": (3,),
    "teacher_epochs": 3,
    "student_epochs": 2,
    "alpha": 0.6,
    "temperature": 1.5,
    "scaler": "zscore",
    "false_alarm_rate": 0.1,
    "random_state": 5,
}
FURTHER = {
    "data.calibration": 0.2,
    "detection.count": 1,
    "detection.ridge": 0.2,
    "train.learning_rate": 1e-2,
    "teacher.components": ("autoencoder", "pca"),
}


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    load = np.sin(np.arange(500) / 5) + 0.05 * rng.normal(size=500)
    values = np.stack([load, 20 + 3 * load + 0.2 * rng.normal(size=500)], axis=1)
    index = pd.date_range("2026-01-01", periods=500, freq="min", name="time")
    return pd.DataFrame(values, index, columns=["load", "heat"])


@pytest.fixture(scope="module")
def detectors(frame, tmp_path_factory):
    """Student and teacher of a `KDDetector`, and those of `run` on the same file."""
    estimator = KDDetector(detector="student", **PARAMETERS, settings=FURTHER).fit(
        frame
    )
    folder = tmp_path_factory.mktemp("same")
    frame.to_csv(folder / "X.csv", float_format="%.17g")
    changes = {FIELDS[name]: value for name, value in PARAMETERS.items()} | FURTHER
    changes["data.path"] = str(folder / "X.csv")
    settings = resolve(override(get_config(), changes))
    run(settings, folder / "run", console=Console(quiet=True))
    return {
        name: (own, load_detector(folder / "run" / "detectors" / name))
        for name, own in (
            ("student", estimator.detector_), ("teacher", estimator.teacher_),
        )
    }  # fmt: skip


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_parameters_gaussians_and_thresholds_are_equal(detectors, name):
    ours, theirs = detectors[name]
    arrays = ("scalers", "gaussians", "ranges", "calibration", "reference")
    for field in arrays:
        found, expected = getattr(ours, field), getattr(theirs, field)
        jax.tree.map(np.testing.assert_array_equal, tuple(found), tuple(expected))
    jax.tree.map(np.testing.assert_array_equal, ours.model.params, theirs.model.params)
    held = ("constant", "unchanged")
    for field in held:
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    for field in {*ours._fields} - {*arrays, *held, "model", "card"}:
        assert getattr(ours, field) == getattr(theirs, field), field
    assert ours.model.kind == theirs.model.kind
    assert ours.model.architecture == theirs.model.architecture


def test_cards_differ_in_names_and_results_only(detectors):
    for ours, theirs in detectors.values():
        cards = [json.loads(json.dumps(one.card)) for one in (ours, theirs)]
        for card in cards:
            del card["title"], card["results"]
            card["data"].pop("name")
            for name in ("named", "time_column", "dated"):  # of a frame or of a file
                card["data"].pop(name, None)
            card["settings"]["data"].pop("path")
        assert cards[0] == cards[1]
