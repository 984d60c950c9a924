"""`benchmarks/tsbad.py`: the benchmark's window, its files, and a run that continues."""

import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, f1_score

from kdjax.data.series import Dataset, Series

for folder in ("benchmarks", "examples"):
    sys.path.insert(0, str(Path(__file__).parent.parent / folder))
import tsb_ad
import tsbad


def test_the_window_is_the_lag_of_the_highest_local_maximum():
    rows = np.arange(3000)
    noise = np.random.default_rng(0).normal(size=3000)
    for values in (
        np.sin(2 * np.pi * rows / 70) + 0.1 * noise,
        np.sin(2 * np.pi * rows / 24) + np.sin(2 * np.pi * rows / 168),
        np.cumsum(noise),
        rows % 3 == 0,
    ):
        centred = values - np.mean(values)
        # Autocorrelation by its definition.
        lags = [centred[: 3000 - k] @ centred[k:] for k in range(401)]
        tops = [k for k in range(4, 400) if lags[k - 1] < lags[k] > lags[k + 1]]
        best = max(tops, key=lambda k: lags[k]) if tops else 0
        expected = best if 6 <= best <= 303 else 125
        assert tsbad.vus_window(values) == expected


def test_a_column_without_a_period_has_the_usual_window():
    assert tsbad.vus_window(np.ones(1000)) == 125
    assert tsbad.vus_window(np.arange(1000.0)) == 125


@pytest.fixture
def root(tmp_path):
    """Two series in the benchmark's form; the second has its anomaly in each channel."""
    rng = np.random.default_rng(1)
    for number, name in enumerate(("A", "B"), start=1):
        rows = np.sin(np.arange(900)[:, None] / 8 + [0, 1]) + rng.normal(
            0, 0.1, (900, 2)
        )
        labels = np.zeros(900, int)
        labels[700:720] = 1
        rows[700:720] += 3
        frame = pd.DataFrame(rows, columns=["x", "y"]).assign(Label=labels)
        path = tmp_path / f"00{number}_{name}_id_1_Sensor_tr_500_1st_700.csv"
        frame.to_csv(path, index=False)
    return tmp_path


def test_a_run_has_a_line_for_each_series_and_model_and_continues(root, monkeypatch):
    output = root / "found.jsonl"
    items = list(tsbad.published(root))
    assert [item.collection for item in items] == ["A", "B"]
    assert {item.prefix for item in items} == {500}
    assert items[0].labels.sum() == 20 and items[0].rows.shape == (900, 2)
    name = "kdjax mahalanobis"
    tsbad.run(iter(items), output, [name], (0, 1))
    first = output.read_text()
    lines = tsbad.read(output)
    assert [(one["file"], one["seed"]) for one in lines] == [
        (item.file, 0) for item in items
    ]
    assert all(one["vus_pr"] > 0.8 and one["numbers"] == 11 for one in lines)
    for item, line in zip(items, lines, strict=True):
        fitted = tsbad.MODELS[name](item, 0)
        table = fitted.table(item.rows)
        after, truth = slice(500, None), item.labels
        alarms, scores = table["alarm"][after], table["score"]
        assert line["f1"] == f1_score(truth[after], alarms) > 0.05
        assert line["alarms"] == alarms.mean() > 0.02
        assert line["average_precision"] == average_precision_score(truth, scores)
        # Above the ⌈0.9 (n + 1)⌉-th smallest of the n scores until then.
        so_far, above = list(fitted.calibration), []
        for score in table["window_score"][after]:
            rank = math.ceil(0.9 * (len(so_far) + 1))
            above.append(rank <= len(so_far) and score > sorted(so_far)[rank - 1])
            so_far.append(score)
        assert line["f1_rolling"]["0.1"] == f1_score(truth[after], above) > 0.05
        assert line["alarms_rolling"]["0.1"] == np.mean(above) > 0.02
    monkeypatch.setitem(tsbad.MODELS, name, None)  # nothing is fitted again
    tsbad.run(iter(items), output, [name], (0, 1))
    assert output.read_text() == first


def test_other_collections_have_their_newest_training_rows_before_the_test(monkeypatch):
    train = Series("omi-9", np.arange(9000.0)[:, None], ("a",))
    test = Series("omi-9", np.full((30, 1), -1.0), ("a",), labels=np.arange(30) > 20)
    asked = []

    def load(name, *, root, entities):
        asked.append((name, root, *entities))
        return Dataset(name, (train,), (test,))

    monkeypatch.setattr(tsbad, "load_benchmark", load)
    items = list(tsbad.others({"ASD": "here", "JumpStarter2": ""}))
    assert asked == [("asd", "here", f"omi-{i}") for i in (9, 10, 11, 12)]
    rows = np.concatenate([np.arange(5000.0, 9000), np.full(30, -1)])
    np.testing.assert_array_equal(items[0].rows[:, 0], rows)
    assert items[0].prefix == 4000 and items[0].labels.sum() == 9
    assert items[0].labels[-9:].all()


def test_the_table_has_means_over_series_beside_the_published_ones():
    theirs = pd.read_csv(tsbad.HERE / "published.csv", index_col="file")
    files = theirs.index[[0, 1, -1]]
    lines = [
        {"file": file, "collection": "MSL" if place < 2 else "SMD", "model": "kdjax",
         "seed": seed, "vus_pr": 0.2 * place + 0.1 * seed, "numbers": 10,
         "fit_seconds": 2.0, "score_seconds": 1.0}
        for place, file in enumerate(files)
        for seed in (0, 1)
    ]  # fmt: skip
    shown = tsbad.table(lines).splitlines()
    assert (
        shown[0]
        == "| model | all (3) | MSL (2) | SMD (1) | numbers | fit s | score s |"
    )
    # Seeds: 0.05, 0.25, 0.45.
    assert "| kdjax | 0.250 | 0.150 | 0.450 | 10 | 2 | 1 |" in shown
    mean = theirs.loc[files, "CNN"].mean()
    assert any(line.startswith(f"| CNN | {mean:.3f} |") for line in shown)


def test_the_picture_has_each_model_and_the_best_published_ones():
    theirs = pd.read_csv(tsbad.HERE / "published.csv", index_col="file")
    files = theirs.index[:4]
    lines = [
        {"file": file, "model": model, "vus_pr": score, "numbers": numbers}
        for file in files
        for model, score, numbers in (("kdjax", 0.5, 900), ("kdjax small", 0.25, 90))
    ]
    axes = tsbad.plot(lines).axes[0]
    shown = {line.get_xdata()[0]: line.get_ydata()[0] for line in axes.lines[:2]}
    assert shown == {900: 0.5, 90: 0.25}
    best = theirs.loc[files].mean().nlargest(3)
    np.testing.assert_allclose([line.get_ydata()[0] for line in axes.lines[2:]], best)
    words = [text.get_text() for text in axes.texts]
    assert words[2:] == [f"{model}, published" for model in best.index]


def test_the_lists_are_apart_and_complete():
    series = pd.read_csv(tsbad.HERE / "series.csv")
    published = pd.read_csv(tsbad.HERE / "published.csv")
    evaluation = series[series["list"] == "evaluation"]
    assert evaluation["file"].tolist() == published["file"].tolist()
    assert not series["entity"].duplicated().any()
    assert (series["train_rows"] >= 500).all()
    assert published.iloc[:, 1:].mean().idxmax() == "KMeansAD"


def test_the_entry_scores_a_file_as_the_benchmark_here_does(root, monkeypatch):
    path = next(root.glob("*.csv"))
    few = {"settings": {"classifier.networks": 1, "classifier.steps": 40}}
    run = tsb_ad.run_kdjax
    monkeypatch.setattr(tsb_ad, "run_kdjax", lambda *rows: run(*rows, **few))
    tsb_ad.main(str(path), str(root / "scores.npy"))
    scores = np.load(root / "scores.npy")
    assert scores.shape == (900,) and scores.min() == 0 and scores.max() == 1
    assert 690 < scores.argmax() < 730
    item = next(tsbad.published(root))
    fitted = tsbad._estimator(**few)(item, 0)
    own = fitted.table(item.rows)["score"].to_numpy()
    np.testing.assert_allclose(scores, (own - own.min()) / np.ptp(own), atol=1e-5)


@pytest.mark.slow
def test_models_of_whole_windows_find_a_level_shift(root):
    item = next(tsbad.published(root))
    for name in ("kdjax", "kdjax memory"):
        line = tsbad.measure(item, name, 0)
        assert line["vus_pr"] > 0.5, line
        assert line["numbers"] > 1000


def test_commands_are_context_where_the_collection_has_them(root):
    item = next(tsbad.published(root))._replace(collection="MSL")
    few = {"settings": {"classifier.networks": 1, "classifier.steps": 2}}
    for context in (False, True):
        made = tsbad._estimator(context=context, detector="mahalanobis")(item, 0)
        rows = item.rows.copy()
        rows[:, 1:] += 1000
        before, after = (made.table(part)["score"] for part in (item.rows, rows))
        unmoved = np.array_equal(before, after)
        assert unmoved is context
        network = tsbad._estimator(context=context, **few)(item, 0)
        before, after = (network.table(part)["score"] for part in (item.rows, rows))
        assert not np.array_equal(before, after)
    assert "kdjax mahalanobis with context" in tsbad.UNSEEDED
    assert "kdjax small with context" not in tsbad.UNSEEDED
