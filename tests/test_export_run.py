"""The verb `export`: what it says, what it refuses, and a file that runs without kdjax."""

import csv
import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdjax.data.readers import match_channels, read_table
from kdjax.data.scaler import Scaler
from kdjax.detection.detector import Detector
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.scores import window_scores
from kdjax.detection.storage import save_detector
from kdjax.detection.thresholds import Threshold
from kdjax.errors import ArtifactError, ConfigError
from kdjax.export import files as check
from kdjax.export import files as run
from kdjax.export.container import Scored, load_onnx
from kdjax.export.files import check_export, export_file
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.residual import ResidualModel

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

EXAMPLE = Path(__file__).parents[1] / "examples" / "score_csv.py"


@pytest.fixture
def plain(small):
    """Makes a folder with the detector `small`, and says what its rows are."""

    def make(folder, **changes):
        save_detector(folder, small._replace(**changes))
        return folder

    return make


@pytest.fixture
def table(tmp_path):
    """A CSV file with a time column, channels in another order and an empty cell."""
    path = tmp_path / "rows.csv"
    values = np.random.default_rng(0).normal(size=(30, 2)).round(3)
    lines = [f"{100 + number},{y},{x}" for number, (x, y) in enumerate(values)]
    lines[9] = "109,,0.5"
    path.write_text("time,y,x\n" + "\n".join(lines) + "\n")
    values[9] = 0.5, np.nan
    return path, values.astype(np.float32)


def by_hand(values, tau=8.0):
    """Scores of the detector `small` for entity a, in float64: e = x, W and μ known."""
    scaled = (values.astype(np.float64) - [1, 2]) / [2, 4]
    whiten = np.array([[2.0, 0.0], [1.0, 0.5]])
    points = (((scaled - [0.5, -0.25]) @ whiten.T) ** 2).sum(axis=1)
    # Without y: the distance under the marginal Normal of x.
    variance = np.linalg.inv(whiten.T @ whiten)[0, 0]
    alone = (scaled[:, 0] - 0.5) ** 2 / variance
    points = np.where(np.isnan(points), alone, points)
    largest = np.lib.stride_tricks.sliding_window_view(points, 4).max(axis=1)
    return points, largest, largest > tau


def test_a_file_is_checked_on_rows_and_scores_as_computed_by_hand(
    plain, table, tmp_path
):
    path, values = table
    folder, output = plain(tmp_path / "d"), tmp_path / "d.onnx"
    lines = list(export_file(folder, format="onnx", output=output, data=path))
    assert lines[0] == "scaler, Gaussian and threshold of a"
    assert lines[1].startswith(
        f"checked on 27 of 27 windows of {path}: scores differ by"
    )
    assert lines[1].endswith("(relative), 0 decisions differ")
    assert lines[2] == "input x is float32"
    assert lines[3] == f"{output}: {output.stat().st_size:,} bytes"
    windows = np.lib.stride_tricks.sliding_window_view(values, 4, 0).swapaxes(1, 2)
    scored = load_onnx(output).run(windows)
    points, largest, alarm = by_hand(values)
    assert alarm.any() and not alarm.all()
    np.testing.assert_allclose(scored.point_score[:, -1], points[3:], rtol=1e-5)
    np.testing.assert_allclose(scored.window_score, largest, rtol=1e-5)
    np.testing.assert_array_equal(scored.alarm, alarm)


def as_it_is(text):
    return text, [str(100 + row) for row in range(30)]


def in_europe(text):
    """Semicolons, decimal commas, other names and markers, and a zone."""
    times = [f"2026-03-01T00:{row:02}:00+02:00" for row in range(30)]
    lines = [line.split(",") for line in text.splitlines()]
    lines[10][1] = "N/A"
    rows = [[time, *row[1:]] for time, row in zip(times, lines[1:], strict=True)]
    text = "\n\n".join(";".join(row).replace(".", ",") for row in rows)
    return f"\ufeffZeitpunkt; y;x\n{text}\n", times


def without_times(text):
    rows = [line.split(",")[1:] for line in text.splitlines()]
    return "\n".join("\t".join(row) for row in rows), [str(row) for row in range(30)]


def without_a_header(text):
    rows = [line.split(",")[:0:-1] for line in text.splitlines()[1:]]
    rows[9][1] = "nan"
    return "\n".join(",".join(row) for row in rows), [str(row) for row in range(30)]


@pytest.mark.parametrize("form", [as_it_is, in_europe, without_times, without_a_header])
def test_the_example_scores_a_csv_without_kdjax_and_jax(plain, table, tmp_path, form):
    path, values = table
    text, times = form(path.read_text())
    path.write_text(text, encoding="utf-8")
    np.testing.assert_array_equal(
        match_channels(read_table(path, missing="mask")[0], ("x", "y")).values, values
    )
    output = tmp_path / "d.onnx"
    list(export_file(plain(tmp_path / "d"), format="onnx", output=output, data=path))
    if form is without_times:
        packed = path.with_name("rows.csv.gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    code = (
        "import runpy, sys\n"
        "for name in ('kdjax', 'jax', 'jaxlib', 'flax', 'onnx', 'pandas'):\n"
        "    sys.modules[name] = None\n"
        "script, *sys.argv[1:] = sys.argv[1:]\n"
        "runpy.run_path(script, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, EXAMPLE, output, path],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = list(csv.DictReader(done.stdout.splitlines()))
    assert [line["time"] for line in lines] == times[3:]
    points, largest, alarm = by_hand(values)
    found = [[float(line[key]) for line in lines] for key in ("score", "window_score")]
    np.testing.assert_allclose(found, [points[3:], largest], rtol=1e-5)
    assert [int(line["alarm"]) for line in lines] == alarm.astype(int).tolist()
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 80


def test_the_rows_that_the_detector_keeps_serve_by_default(
    small, rows, tmp_path, monkeypatch
):
    kept = small._replace(entities=("a", "b"), reference=rows(50).values)
    three = [np.concatenate([field, field[:1]]) for field in small.scalers]
    kept = kept._replace(
        scalers=Scaler(*three),
        gaussians=Gaussian(*(np.concatenate([f, f[:1]]) for f in small.gaussians)),
        thresholds=(*small.thresholds, small.thresholds[0]),
    )
    monkeypatch.setattr(run, "load_detector", lambda folder: kept)
    lines = export_file("d", format="onnx", output=tmp_path / "d.onnx")
    assert (tmp_path / "d.onnx").exists()  # without a loop over the lines
    assert lines[0].startswith("pooled scaler") and lines[0].endswith("of a, b")
    assert "47 of 47 windows of the reference rows of the detector" in lines[1]
    lines = list(
        export_file("d", format="stablehlo", output=tmp_path / "d.shlo", entity="b")
    )
    assert lines[0] == "scaler, Gaussian and threshold of b"


def test_nothing_to_check_on_asks_for_rows(plain, tmp_path):
    output = tmp_path / "d.onnx"
    with pytest.raises(ConfigError, match="no window of 4 rows.*--data=FILE"):
        list(export_file(plain(tmp_path / "d"), format="onnx", output=output))
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "pt"}, "--format='pt' is unknown: use one of onnx, stablehlo"),
        ({"quantize": "int4"}, "--quantize='int4' is unknown: use one of none, int8"),
        ({"format": "stablehlo", "quantize": "int8"}, "is for --format=onnx"),
    ],
)
def test_unknown_options_are_refused(options, message, tmp_path):
    options = {"format": "onnx", "output": tmp_path / "d.onnx"} | options
    with pytest.raises(ConfigError, match=message):
        list(export_file(tmp_path, **options))


def shifted(exact, by):
    """A scorer whose window scores are off by a factor, and its alarms with them."""

    def scores(windows):
        scored = exact(windows)
        largest = scored.window_score * by
        return scored._replace(window_score=largest, alarm=(largest > 8).astype(int))

    return scores


def test_flips_near_the_threshold_are_rounding_and_others_are_not(small):
    def exact(windows):
        points = windows.sum(axis=2) * 0 + windows[..., 0]
        largest = window_scores(points, count=0)
        return Scored(points, largest, (largest > 8).astype(int), windows)

    # e = x with W = 1 and μ = 0 on one channel in use: scores are squares.
    detector = small._replace(
        scalers=Scaler(np.zeros((2, 2), "f"), np.ones((2, 2), "f")),
        gaussians=Gaussian(np.zeros((2, 2), "f"), np.stack([np.eye(2, dtype="f")] * 2)),
    )
    values = np.zeros((12, 2), np.float32)
    values[3, 0] = np.sqrt(8 * 1.00005)  # alarms in the 4 windows that hold it
    values[9, 0] = np.sqrt(8 * 1.01)  # in the 3 that there are

    def run_(windows):
        squares = windows**2
        return exact(np.stack([squares[..., 0], squares[..., 1]], axis=-1))

    agreed = check_export(detector, 0, run_, [values])
    assert agreed[:2] == (9, 9) and agreed.max_difference < 1e-6
    assert (agreed.flips, agreed.flips_beyond_rounding) == (0, 0)
    near = check_export(detector, 0, shifted(run_, 1 - 1e-4), [values])
    assert (near.flips, near.flips_beyond_rounding) == (4, 0)
    far = check_export(detector, 0, shifted(run_, 0.98), [values[:6], values[6:]])
    # The first half has 3 windows with the first spike, the second 3 with the other.
    assert far.windows == 6 and (far.flips, far.flips_beyond_rounding) == (6, 3)
    assert far.max_shift == pytest.approx(0.02)
    unknown = check_export(detector, 0, shifted(run_, np.nan), [values])
    assert unknown.flips_beyond_rounding == 5 and unknown.max_difference == np.inf


def test_only_so_many_windows_are_compared_evenly(small, monkeypatch):
    monkeypatch.setattr(check, "WINDOWS", 5)
    seen = []

    def run_(windows):
        seen.extend(windows[:, 0, 0])
        zeros = np.zeros(windows.shape[:2], np.float32)
        return Scored(zeros, zeros[:, 0], zeros[:, 0].astype(int), windows)

    values = np.arange(48, dtype=np.float32).reshape(24, 2) / 2
    parity = check_export(small, 0, run_, [values[:14], values[14:]])
    assert parity.windows == 5 and parity.available == 11 + 7
    assert seen == [0, 4, 8, 16, 20]


def test_a_file_that_decides_otherwise_is_not_written(
    plain, table, tmp_path, monkeypatch
):
    def wrong(content, **options):
        scorer = load_onnx(content, **options)
        return scorer._replace(run=shifted(scorer.run, 0.1))

    monkeypatch.setattr(run, "load_onnx", wrong)
    output = tmp_path / "out" / "d.onnx"
    with pytest.raises(ArtifactError, match=r"not written: \d+ of 27 decisions differ"):
        folder = plain(tmp_path / "d")
        list(export_file(folder, format="onnx", output=output, data=table[0]))
    assert not output.parent.exists()


@pytest.mark.slow
def test_the_effect_of_8_bits_is_measured_and_said(tmp_path, monkeypatch):
    import jax

    architecture = Architecture(2, (24,))
    init = network(architecture).init(jax.random.key(0))
    tau = Threshold(3.0, "conformal", 0.1, 20, 19, "own")
    values = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    detector = Detector(
        ResidualModel("autoencoder", init, architecture),
        ("x", "y"),
        6,
        1,
        0,
        5.0,
        ("a",),
        Scaler(np.zeros((2, 2), "f"), np.ones((2, 2), "f")),
        Gaussian(np.zeros((2, 2), "f"), np.stack([np.eye(2, dtype="f")] * 2)),
        (tau, tau),
        {},
        reference=values,
    )
    monkeypatch.setattr(run, "load_detector", lambda folder: detector)
    whole, output = tmp_path / "whole.onnx", tmp_path / "small.onnx"
    list(export_file("d", format="onnx", output=whole))
    lines = list(export_file("d", format="onnx", output=output, quantize="int8"))
    windows = np.lib.stride_tricks.sliding_window_view(values, 6, 0).swapaxes(1, 2)
    before, after = (load_onnx(p).run(windows).window_score for p in (whole, output))
    shifts = np.abs(after - before) / np.maximum(1, before)
    flips = ((before > 3) != (after > 3)).sum()
    assert shifts.max() > 1e-4
    assert lines[3] == (
        f"int8: {whole.stat().st_size:,} bytes become {output.stat().st_size:,}; window "
        f"scores change by {np.median(shifts):.2%} (median) and {shifts.max():.2%} "
        f"(at most), {flips} of 55 decisions differ"
    )
