"""Channels that float32 would blind score alike by every entry, in float64."""

import io
import json

import numpy as np
import pandas as pd
import pytest

from kdjax import KDDetector, load_detector
from kdjax.cli import main
from kdjax.data.prepared import channel_notes, value_notes
from kdjax.data.readers import load_files, read_table
from kdjax.data.series import Dataset, Series
from kdjax.detection.storage import save_detector
from kdjax.detection.tables import score_table
from kdjax.errors import ConfigError, DataError
from kdjax.experiment.pipeline import prepare_dataset
from kdjax.scoring.opening import open_stream
from kdjax.scoring.streams import stream_rows

OPTIONS = {
    "detector": "mahalanobis", "window_size": 20, "stride": 2,
    "false_alarm_rate": 0.05,
}  # fmt: skip
ROWS, FAULT = 300, slice(150, 170)
CHANNELS = ("c0", "c1", "c2")
# Level and unit of the last channel; `count` rises by about 1,000 a row.
UNITS = {"level": (1.7e9, 1.0), "below": (-3e8, 1e-3), "tiny": (0.0, 1e-60)}


def waves(rows=1200, seed=0):
    random, at = np.random.default_rng(seed), np.arange(rows)[:, None]
    return np.sin(at / [6, 8, 10]) + random.normal(0, 0.1, (rows, 3))


def faulty():
    rows = waves(ROWS, 1)
    rows[FAULT, 2] += 30
    return rows


def in_units(rows, name):
    """The rows with the last channel at another level, in another unit."""
    level, unit = UNITS[name]
    frame = pd.DataFrame(rows, columns=CHANNELS)
    return frame.assign(c2=level + unit * frame["c2"])


def causal(detector, rows):
    """Scores of rows, each in the window that ends there."""
    series = Series("a", rows, CHANNELS)
    entity = detector.entities[0]
    return score_table(detector, series, entity=entity, causal=True)["score"].to_numpy()


@pytest.fixture(scope="module")
def expected():
    """Scores of the faulty rows by a detector of plain units."""
    detector = KDDetector(**OPTIONS).fit(pd.DataFrame(waves(), columns=CHANNELS))
    assert detector.detector_.scalers.offset.dtype == np.float32
    scores = causal(detector.detector_, faulty())
    assert scores[FAULT].min() > 20 * detector.threshold_
    return scores


@pytest.fixture(scope="module", params=UNITS)
def plant(request, tmp_path_factory):
    """A saved detector of hard units and files of the faulty rows."""
    folder = tmp_path_factory.mktemp(request.param)
    fitted = KDDetector(**OPTIONS).fit(in_units(waves(), request.param))
    card = fitted.detector_.card
    card = {**card, "settings": {**card["settings"], "data": {"missing": "error"}}}
    save_detector(folder / "detector", fitted.detector_._replace(card=card))
    fault = in_units(faulty(), request.param)
    fault.to_csv(folder / "fault.csv", index=False)
    fault.to_parquet(folder / "fault.parquet")
    np.save(folder / "fault.npy", fault.to_numpy())
    return folder, fitted, fault


def near(found, expected):
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-3)


def test_the_estimator_and_score_tables(plant, expected):
    folder, fitted, fault = plant
    assert fitted.detector_.scalers.offset.dtype == np.float64
    assert fitted.predict(fault)[FAULT].mean() > 0.9
    near(causal(load_detector(folder / "detector"), fault.to_numpy()), expected)


def test_rows_in_float32_are_refused_where_they_are_given(plant, tmp_path):
    _, fitted, fault = plant
    narrow = fault.to_numpy().astype(np.float32)
    told = "rows are float32, but this detector needs float64: .*dtype='float64'"
    with pytest.raises(DataError, match=told):
        causal(fitted.detector_, narrow)
    for method in (fitted.predict, fitted.calibrate):
        with pytest.raises(DataError, match=told):
            method(fault.astype(np.float32))
    # A file that holds float32 has no further digits.
    np.save(tmp_path / "fault.npy", narrow)
    (series,) = read_table(tmp_path / "fault.npy", dtype=np.float64)
    assert series.values.dtype == np.float64
    np.testing.assert_array_equal(series.values, narrow)


@pytest.mark.parametrize("kind", ["csv", "parquet", "npy"])
def test_files(plant, expected, tmp_path, kind):
    folder, _, _ = plant
    command = ["score", f"{folder}/fault.{kind}", f"--detector={folder}/detector"]
    output = tmp_path / "scores.csv"
    assert main(["kdjax", *command, f"--output={output}", "--causal"]) == 0
    near(pd.read_csv(output)["score"].to_numpy(), expected)


def lines_of(folder, form):
    text = (folder / "fault.csv").read_text()
    if form == "csv":
        return io.StringIO(text)
    rows = pd.read_csv(folder / "fault.csv").to_dict("records")
    return [json.dumps(row) for row in rows]


@pytest.mark.parametrize("form", ["csv", "json"])
def test_streams(plant, expected, form):
    folder, _, _ = plant
    stream = open_stream(folder / "detector")
    answers = [
        json.loads(text)
        for text in stream_rows(stream, lines_of(folder, form))
        if '"event"' not in text
    ]
    near([answer["score"] or np.nan for answer in answers], expected)
    # A state keeps the digits.
    again = open_stream(folder / "detector")
    again.restore(stream.state())
    row = pd.read_csv(folder / "fault.csv").iloc[-1].to_dict()
    assert again.update(row) == stream.update(row)


def test_a_service_on_an_exported_file(plant, expected, tmp_path, capsys):
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    folder, _, _ = plant
    path = tmp_path / "plant.onnx"
    command = ["export", f"--detector={folder}/detector", f"--output={path}"]
    assert main(["kdjax", *command, "--format=onnx"]) == 0
    assert "input x is float64" in capsys.readouterr().out
    model = onnx.load(path)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.DOUBLE
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["input_dtype"] == "float64"
    stream = open_stream(path, backend="onnxruntime")
    answers = [
        json.loads(text)
        for text in stream_rows(stream, lines_of(folder, "csv"))
        if '"event"' not in text
    ]
    near([answer["score"] or np.nan for answer in answers], expected)


def test_stablehlo_says_to_export_onnx(plant, tmp_path):
    from kdjax.export.files import export_stablehlo

    with pytest.raises(ConfigError, match="centres rows in float64.*--format=onnx"):
        export_stablehlo(load_detector(plant[0] / "detector"), tmp_path / "a.hlo")


@pytest.mark.parametrize("kind", ["csv", "parquet", "npy"])
@pytest.mark.parametrize("memory", [1e9, 1e3])
def test_training_files_keep_the_digits_only_where_needed(tmp_path, kind, memory):
    if memory < 1e9 and kind == "csv":
        pytest.skip("text is read whole")
    for name in ("level", "plain"):
        frame = pd.DataFrame(waves(), columns=CHANNELS)
        if name == "level":
            frame = in_units(waves(), name)
        path = tmp_path / f"{name}.{kind}"
        if kind == "npy":
            np.save(path, frame.to_numpy())
        else:
            getattr(frame, f"to_{kind}")(path, index=False)
        options = {"test_path": path, "memory_bytes": memory}
        data = load_files(path, **options)
        dtype = np.float64 if name == "level" else np.float32
        for series in (*data.train, *data.test):
            assert series.values.dtype == dtype
            np.testing.assert_array_equal(series.values, frame.to_numpy().astype(dtype))
        (given,) = read_table(path, dtype=np.float64)
        np.testing.assert_array_equal(given.values, frame.to_numpy())


def test_columns_of_float32_stay_as_they_are(tmp_path):
    frame = in_units(waves(), "level").astype(np.float32)
    frame.to_parquet(tmp_path / "plant.parquet")
    (series,) = read_table(tmp_path / "plant.parquet")
    assert series.values.dtype == np.float32
    np.testing.assert_array_equal(series.values, frame.to_numpy())


def prepared(frame, **changes):
    series = Series("a", frame.to_numpy(), tuple(frame.columns))
    return prepared_from(Dataset("a", (series,), ()), **changes)


def prepared_from(dataset, **changes):
    settings = {
        "data": {
            "window": 20, "stride": 2, "max_gap": 5.0, "validation": 0.15,
            "calibration": 0.15, "scaler": "quantile", "step_seconds": 0, "context": (), **changes,
        },
        "threshold": {"method": "conformal", "false_alarm_rate": 0.1},
        "detection": {
            "count": 0, "floor": 0.03, "ridge": 0.1, "shrinkage": "none",
            "scope": "pooled", "trim": 0.0, "batch_size": 64,
        },
    }  # fmt: skip
    return prepare_dataset(dataset, settings)


@pytest.mark.parametrize("row", [300, 250, 700, 1100])
def test_an_outlier_blinds_no_channel_wherever_it_lies(row):
    """Rows that fit, validate and calibrate."""
    clean, rows = waves(), waves(ROWS, 1)
    rows[FAULT, 2] += 10
    spoilt = clean.copy()
    spoilt[row, 2] = 1000
    before = KDDetector(**OPTIONS).fit(clean)
    with pytest.warns(
        UserWarning,
        match=rf"far from all other values .*: channel_3 1000 in row {row} \(rows from 0",
    ):
        after = KDDetector(**OPTIONS).fit(spoilt)
    assert after.labels_[row : row + 3].any()
    assert after.threshold_ < 1.2 * before.threshold_
    # Each in units of its τ.
    first, second = (
        one.decision_function(rows) / one.threshold_ for one in (before, after)
    )
    assert first[FAULT].max() > 10
    np.testing.assert_allclose(second[FAULT], first[FAULT], rtol=0.2)


def test_outliers_are_named_with_their_time_and_kept_by_other_scalers(tmp_path):
    frame = pd.DataFrame(waves(), columns=CHANNELS)
    frame.loc[300, "c2"] = 1000
    frame.loc[301, "c1"] = np.nan
    found = prepared(frame)
    values = found.entities[0].train.values
    assert values[300, 2] == (frame["c2"][299] + frame["c2"][301]) / 2
    changed = values != frame.to_numpy()
    assert changed.sum() == 2 and np.isnan(values[301, 1])
    (note,) = channel_notes(found)
    assert note == (
        "a: far from all other values of the channel, so interpolated in training: c2 1000 "
        "in row 300 (rows from 0). Correct them, or exclude the rows"
    )
    many = pd.DataFrame(waves(2400), columns=CHANNELS)
    many.loc[300, "c2"] = 1000
    many.loc[[400, 500], "c1"] = 900, 950
    for column, name in enumerate(("c4", "c5", "c3")):
        many.insert(3, name, waves(2400, column + 1)[:, 0])
        many.loc[600 + column, name] = -800
    (note,) = channel_notes(prepared(many))
    named = (
        "c1 900 in row 400 and 1 other; c2 1000 in row 300; c3 -800 in row 602; and 2"
    )
    assert f"{named} other channels (rows from 0)" in note
    frame.insert(
        0, "time", pd.date_range("2026-01-01", periods=len(frame), freq="1min")
    )
    path = tmp_path / "a.csv"
    frame.to_csv(path, index=False)
    timed = prepared_from(Dataset("a", (read_table(path, missing="mask")[0],), ()))
    assert "c2 1000 in row 300, 2026-01-01T05:00:00 (rows" in channel_notes(timed)[0]
    frame = frame.drop(columns="time")
    kept = prepared(frame, scaler="minmax")
    np.testing.assert_array_equal(kept.entities[0].train.values, frame.to_numpy())
    assert channel_notes(kept) == []


def test_counters_and_lost_digits_are_named():
    at = np.arange(1200)
    frame = pd.DataFrame(waves(), columns=CHANNELS).assign(
        count=5.0 + at + at // 7,
        left=2000.0 - at,
        again=at % 1000 * 1.0,  # begins anew once
        saw=at % 100 * 1.0,
        id=2.0**54 + at,
    )
    first, second = value_notes(prepared(frame))
    assert first.startswith("a: only rising or only falling in the training rows: ")
    assert ": count, left, again, id; later values lie outside" in first
    assert second.startswith("a: id: the values are so large that float64 rounds away")


# Signals of whole numbers at 2**62, where float64 numbers are 1,024 apart.
SWINGS = {"one value": (10, 2), "two values": (100, 512), "few values": (20_000, 0)}


@pytest.mark.parametrize("swing", SWINGS)
@pytest.mark.parametrize(
    "kind", ["csv", "gap.csv", "parquet", "npy", "long.csv", "array", "frame", "text"]
)
def test_whole_numbers_that_float64_rounds_away_are_named(tmp_path, kind, swing):
    size, shift = SWINGS[swing]
    at, (wave, noise) = np.arange(600), waves(600).T[:2]
    exact = 2**62 + shift + (size * np.sin(at / 5)).astype(np.int64)
    fine = (1e15 * wave).astype(np.int64)  # 2**50: all are kept
    wild = 2**61 + (2.0**50 * noise).astype(np.int64)  # steps of 512 are nothing to it
    rows = pd.DataFrame({"big": exact, "fine": fine, "wild": wild})
    assert rows["big"].nunique() > 2 * rows["big"].astype(float).nunique()
    if kind in ("array", "frame", "text"):
        X = {"array": rows.to_numpy(), "frame": rows, "text": rows.astype(str)}[kind]
        with pytest.warns(UserWarning, match="rounds away") as found:
            KDDetector(**OPTIONS).fit(X)
        notes = [str(one.message) for one in found]
    else:
        path, options = tmp_path / f"a.{kind}", {}
        if kind == "npy":
            np.save(path, rows.to_numpy())
        elif kind == "parquet":
            rows.to_parquet(path, index=False)
        elif kind == "long.csv":
            long = rows.assign(time=at).melt("time", var_name="tag")
            long.to_csv(path, index=False)
            options = {"layout": "long", "step": 1}
        else:
            gap = 9 if kind == "gap.csv" else []
            text = rows.astype(object)
            text.loc[gap] = None
            text.to_csv(path, index=False)
            options = {"missing": "ffill"}
        notes = channel_notes(prepared_from(load_files(path, **options)))
    (note,) = [note for note in notes if "rounds away" in note]
    name = "channel_1" if kind in ("npy", "array") else "big"
    assert (
        f": {name}: the values are so large that float64 rounds away small changes"
        in note
    )
    assert "subtract a constant before writing them" in note
    assert note.rstrip(".").endswith("or put such columns in data.ignore")
