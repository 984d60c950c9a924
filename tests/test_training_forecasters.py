"""Forecasters as detectors and as components, from rows to files, streams and students."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import kdjax
from kdjax.cli import main
from kdjax.config import get_config, override, resolve
from kdjax.data.prepared import training_windows
from kdjax.data.series import Dataset, Series
from kdjax.detection.detector import score_batches, stream_detector
from kdjax.detection.storage import load_detector
from kdjax.detection.tables import score_table
from kdjax.experiment.jobs import job_targets, make_training_data, student_job
from kdjax.experiment.pipeline import count_networks, prepare_dataset
from kdjax.experiment.sweeps.members import student_name, teacher_name
from kdjax.export.container import load_onnx
from kdjax.export.stablehlo import load_stablehlo
from kdjax.models.forecasters import FORECASTERS, reconstruct
from kdjax.training.components import fit_components
from kdjax.training.fitting import fit_forecaster

OWN_DATA = Path(__file__).parents[1] / "configs" / "own_data.py"
CHANNELS = ("load", "heat", "flow")
L = 12
OPTIONS = {
    "window_size": L,
    "stride": 2,
    "false_alarm_rate": 0.1,
    "missing": "mask",
    "settings": {"forecast.units": 8, "forecast.steps": 300},
}
each_kind = pytest.mark.parametrize("kind", FORECASTERS)


def waves(rows, seed=0):
    rng = np.random.default_rng(seed)
    values = np.sin(np.arange(rows)[:, None] / 3 + np.arange(3)) * [1, 10, 100]
    values += rng.normal(0, [0.03, 0.3, 3], (rows, 3))
    return pd.DataFrame(values.astype("f"), columns=CHANNELS)


@pytest.fixture(scope="module")
def fitted():
    return {kind: kdjax.KDDetector(detector=kind, **OPTIONS).fit(waves(600))
            for kind in FORECASTERS}  # fmt: skip


@pytest.fixture(scope="module")
def faulty():
    """A spike in channel heat in row 110; cells and whole rows are missing later."""
    rows = waves(300, seed=1)
    rows.loc[110, "heat"] += 40
    rows.loc[200:204, "load"] = np.nan
    rows.loc[230:250] = np.nan
    return rows


def prepared_of(settings):
    rows = waves(600).to_numpy()
    return prepare_dataset(
        Dataset("rows", (Series("X", rows, CHANNELS),), ()), settings
    )


@each_kind
def test_it_learns_from_all_fit_windows(fitted, kind):
    detector = fitted[kind].detector_
    assert detector.model.kind == detector.card["model"]["name"] == kind
    prepared = prepared_of(fitted[kind]._settings())
    scaled, starts = training_windows(prepared, "fit", stride=1)
    windows = np.stack([scaled[start : start + L] for start in starts])
    wanted = fit_forecaster(kind, windows, units=8, steps=300, seed=0)
    np.testing.assert_array_equal(detector.model.params["mean"], wanted["mean"])
    for name, leaf in wanted["network"].items():
        np.testing.assert_array_equal(detector.model.params["network"][name], leaf)
    other = kdjax.KDDetector(detector=kind, **OPTIONS, random_state=1).fit(waves(600))
    assert other.threshold_ != fitted[kind].threshold_


@each_kind
def test_faults_alarm_and_their_channel_is_named(fitted, faulty, kind):
    events = fitted[kind].detect(faulty[:200])
    worst = events.loc[events["severity"].idxmax()]
    # The first row in alarm: with a stride of 2 the step in row 110 is seen then.
    assert worst["start"] == worst["peak"] == 111 and worst["severity"] > 20
    assert worst["channels"].startswith("heat;")
    assert fitted[kind].predict(faulty[:90]).mean() < 0.3


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs the extra onnx")
@each_kind
def test_saved_exported_and_streamed_alike(fitted, faulty, kind, tmp_path):
    fitted[kind].save(tmp_path / "detector")
    loaded = load_detector(tmp_path / "detector")
    rows = Series("X", faulty.to_numpy(), CHANNELS)
    wanted = score_table(fitted[kind].detector_, rows, entity="X", causal=True)
    found = score_table(loaded, rows, entity="X", causal=True)
    pd.testing.assert_frame_equal(found, wanted)
    assert wanted["score"][230:251].isna().all()
    assert wanted["score"][200:205].notna().all()
    stream = stream_detector(loaded, entity="X")
    streamed = [stream.update(row) for row in rows.values]
    close = {"rtol": 1e-3, "atol": 1e-4}
    scores = [np.nan if row.score is None else row.score for row in streamed]
    np.testing.assert_allclose(scores, wanted["score"], **close)
    assert [row.state for row in streamed[100:130]] == [*wanted["state"][100:130]]
    windows = np.stack([rows.values[start : start + L] for start in range(289)])
    pieces = [*score_batches(loaded, 0, rows.values, np.arange(289), explain=True)]
    points = np.concatenate([piece.points for piece in pieces])
    for export in (kdjax.export_onnx, kdjax.export_stablehlo):
        export(loaded, tmp_path / "file", entity="X")
        load = load_onnx if export is kdjax.export_onnx else load_stablehlo
        run = load(tmp_path / "file").run(windows)
        np.testing.assert_allclose(run.point_score, points, **close)


@each_kind
def test_a_student_is_distilled_from_its_forecasts(kind):
    changes = {
        "data.path": "x.csv",
        "data.window": L,
        "teacher.components": (kind, "difference"),
        "distill.alpha": 0.5,
        "threshold.false_alarm_rate": 0.3,
    }
    settings = resolve(override(get_config(), changes))
    prepared = prepared_of(settings)
    options = {"forecast": {"steps": 20, "units": 4, "seed": 0}}
    fits = {}
    teacher = fit_components((kind, "difference"), prepared, None, fits=fits, **options)
    data = make_training_data(prepared, settings["data"])
    targets = job_targets(student_job(data, settings, name="s", teacher=teacher), {})
    windows = np.stack([data.rows[start : start + L] for start in data.fit])
    wanted = reconstruct(teacher.params[kind], windows)
    np.testing.assert_allclose(targets, wanted, rtol=1e-4, atol=1e-5)
    # What is fitted already is taken; with other options it is another model.
    again = fit_components((kind,), prepared, None, fits=fits, **options)
    assert again.params is teacher.params[kind] and len(fits) == 2
    options = {"forecast": {"steps": 20, "units": 5, "seed": 0}}
    other = fit_components((kind,), prepared, None, fits=fits, **options)
    assert other.params["network"]["head"].shape == (5, 3) and len(fits) == 3


def test_names_of_sweeps_tell_forecasters_apart():
    def names(**changes):
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        changes |= {"data.path": "x.csv", "distill.alpha": 0.5}
        settings = resolve(override(get_config(), changes))
        return teacher_name(settings), student_name(settings)

    kinds = {"teacher__components": ("gru_forecast",)}
    for plain in ({}, {"teacher__components": ("pca",)}):
        assert names(**plain) == names(**plain, forecast__steps=7, classifier__steps=7)
    assert names(**kinds) == names(**kinds, classifier__steps=7)
    for change in ({"forecast__steps": 7}, {"forecast__units": 7}, {"seed": 7}):
        one, other = names(**kinds), names(**kinds, **change, teacher__seed=0)
        assert one[0] != other[0] and one[1] != other[1]


def test_the_program_trains_and_counts_them(tmp_path):
    waves(900).to_csv(tmp_path / "plant.csv", index=False)
    flags = {
        "data.path": tmp_path / "plant.csv",
        "data.window": L,
        "data.stride": 5,
        "threshold.false_alarm_rate": 0.1,
        "forecast.units": 4,
        "forecast.steps": 30,
        "teacher.components": "('cnn_forecast',)",
        "student.components": "('autoencoder','gru_forecast')",
        "student.hidden": "(2,)",
        "student.epochs": 1,
        "baselines": "('gru_forecast','cnn_forecast')",
    }
    command = ["kdjax", "run", f"--config={OWN_DATA}", f"--workdir={tmp_path / 'run'}"]
    assert main(command + [f"--config.{n}={value}" for n, value in flags.items()]) == 0
    models = {
        name: load_detector(tmp_path / "run" / "detectors" / name).model
        for name in ("teacher", "student")
    }
    assert models["teacher"].kind == "cnn_forecast"
    assert models["student"].kind == "autoencoder+gru_forecast"
    changes = {
        "data.path": str(tmp_path / "plant.csv"),
        "forecast.units": 4,
        "teacher.components": ("cnn_forecast",),
        "student.components": ("autoencoder", "gru_forecast"),
        "student.hidden": (2,),
    }
    counted = count_networks(resolve(override(get_config(), changes)))
    assert counted == {name: model.parameters for name, model in models.items()}
