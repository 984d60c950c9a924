"""The same rows have the same scores, whichever way they come in."""

import io
import json

import numpy as np
import pandas as pd
import pytest

from kdjax.cli import main
from kdjax.data.series import Series
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.tables import score_table
from kdjax.estimator import KDDetector
from kdjax.export.onnx import onnx_file

Y = np.random.default_rng(5).normal(size=12).round(3)
ENTRIES = ("csv", "parquet", "stream", "json", "onnx", "estimator", "table")


def masking(small):
    """`small` as trained with data.missing=mask."""
    data = {"path": "a.csv", "missing": "mask"}
    return small._replace(card={**small.card, "settings": {"data": data}})


def scores_by(entry, frame, detector, folder, monkeypatch, capsys):
    """The causal score of each row of entity `a`, NaN without one; and what was said."""
    if entry == "table":
        rows = frame.to_numpy(np.float64, na_value=np.nan).astype(np.float32)
        series = Series("a", rows, ("x", "y"))
        table = score_table(detector, series, entity="a", causal=True)
        return table["score"].to_numpy(), ""
    saved, output = folder / "detector", folder / "scores.csv"
    save_detector(saved, detector)
    if entry == "estimator":
        return KDDetector.load(saved).decision_function(frame), ""
    if entry in ("csv", "parquet"):
        path = folder / f"a.{entry}"
        write = {"csv": frame.to_csv, "parquet": frame.to_parquet}[entry]
        write(path, index=False)
        verb = [
            "score",
            str(path),
            f"--detector={saved}",
            f"--output={output}",
            "--causal",
        ]
        assert main(["kdjax", *verb]) == 0
        return pd.read_csv(output)["score"].to_numpy(), capsys.readouterr().out
    if entry == "onnx":
        (folder / "a.onnx").write_bytes(onnx_file(detector, 0))
        saved = folder / "a.onnx"
    text = frame.to_csv(index=False)
    if entry == "json":
        text = frame.to_json(orient="records", lines=True)
    source = io.TextIOWrapper(io.BufferedReader(io.BytesIO(text.encode())))
    monkeypatch.setattr("sys.stdin", source)
    code = main(["kdjax", "stream", f"--detector={saved}"])
    assert code == (2 if frame.isna().all(axis=None) else 0)
    answers = [
        json.loads(line)
        for line in capsys.readouterr().out.splitlines()
        if '"event"' not in line
    ]
    found = [one["score"] for one in answers if one["row"] is not None]
    return np.array(found, float), ""


@pytest.fixture
def scored(tmp_path, monkeypatch, capsys):
    def by(entry, frame, detector):
        return scores_by(entry, frame, detector, tmp_path, monkeypatch, capsys)

    return by


def assert_scores(entry, found, points):
    """`found` are the scores of 12 rows by an entry, given those of single rows."""
    if entry == "estimator":  # the largest of the latest of the windows 0, 3, 6, 8
        largest = [points[i : i + 4].max() for i in (0, 3, 6, 8)]
        points = np.repeat(largest, [6, 3, 2, 1])
    else:
        assert np.isnan(found[:3]).all()
        found, points = found[3:], points[3:]
    np.testing.assert_allclose(found, points, rtol=1e-5)


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_channel_without_a_value_is_missing_data(entry, small, scored):
    found, said = scored(entry, pd.DataFrame({"x": np.nan, "y": Y}), masking(small))
    # The least ‖W d‖² over the missing x, with W = [[2, 0], [1, 0.5]], is 0.2 y².
    expected = 0.2 * ((Y - 2) / 4 + 0.25) ** 2
    assert_scores(entry, found, expected)
    if entry in ("csv", "parquet"):
        assert said.count("a: no row has a value in 'x'\n") == 1


@pytest.mark.parametrize("entry", ENTRIES)
def test_rows_without_any_value_have_no_score(entry, small, scored):
    frame = pd.DataFrame({"x": np.full(12, np.nan), "y": np.nan})
    found, said = scored(entry, frame, masking(small))
    assert np.isnan(found).all() and len(found) == 12
    assert ("a: no row has a value in 'x', 'y'\n" in said) == bool(said)


@pytest.mark.parametrize("entry", ENTRIES)
def test_truth_values_are_0_and_1(entry, small, scored):
    x = np.arange(12) % 3 == 0
    found, _ = scored(entry, pd.DataFrame({"x": x, "y": Y}), small)
    # ‖W d‖² with d the scaled rows less their mean
    d = np.stack([(x - 1) / 2 - 0.5, (Y - 2) / 4 + 0.25])
    assert_scores(entry, found, ((np.array([[2, 0], [1, 0.5]]) @ d) ** 2).sum(0))


@pytest.mark.parametrize("entry", ["stream", "json", "onnx"])
def test_streams_score_rows_with_missing_cells_under_missing_error(
    entry, small, scored
):
    x = np.where(np.arange(12) == 7, np.nan, 1.0)
    found, _ = scored(entry, pd.DataFrame({"x": x, "y": Y}), small)
    assert found[7] == pytest.approx(0.2 * ((Y[7] - 2) / 4 + 0.25) ** 2, rel=1e-5)


def test_calibrate_takes_a_channel_without_a_value(small, tmp_path, capsys):
    y = np.random.default_rng(6).normal(size=100).round(3)
    path = tmp_path / "a.csv"
    pd.DataFrame({"x": np.nan, "y": y}).to_csv(path, index=False)
    save_detector(tmp_path / "old", masking(small))
    verb = ["kdjax", "calibrate", str(path), f"--detector={tmp_path / 'old'}"]
    verb += [f"--output={tmp_path / 'new'}", "--config.threshold.false_alarm_rate=0.1"]
    verb.append("--config.threshold.method=conformal")
    assert main(verb) == 0
    assert "a: no row has a value in 'x'\n" in capsys.readouterr().out
    points = 0.2 * ((y - 2) / 4 + 0.25) ** 2
    largest = np.sort([points[i : i + 4].max() for i in range(0, 97, 3)])
    tau = load_detector(tmp_path / "new").thresholds[0].tau
    assert tau == pytest.approx(largest[int(np.ceil(34 * 0.9)) - 1], rel=1e-5)
