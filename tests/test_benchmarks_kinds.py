"""`benchmarks/kinds.py`: each kind finds a gross fault; what choices and fronts are."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import kinds
import kinds_models
import tsbad

PREFIX, FAULT = 240, slice(320, 330)
SMALL = {"window": 16, "units": 4, "steps": 60, "rate": 0.01}
FORECASTERS = [name for name in kinds.KINDS if name.endswith("_forecast")]


@pytest.fixture(scope="module")
def item():
    """Two channels, the second behind the first, with a fault of both after the prefix."""
    rng = np.random.default_rng(0)
    time = np.arange(400)[:, None]
    rows = np.sin(time / 4 + [0, 1]) + 0.05 * rng.normal(size=(400, 2))
    labels = np.zeros(400, bool)
    labels[FAULT] = True
    rows[FAULT] += [4, -4]
    return tsbad.Item("made", "SMD", rows, labels, PREFIX, 20)


def small(name):
    """The options of a kind's first trial, but smaller."""
    own = kinds.trials(name)[0] if name in kinds.KINDS else kinds.OWN[name][1]
    return own | {key: SMALL[key] for key in own if key in SMALL}


# Compiling the training of the others takes seconds each.
QUICK = ("gru_forecast", "fourier", "mahalanobis", "moving_average", "memory")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in (*kinds.KINDS, *kinds.OWN)
    ],
)
def test_each_kind_is_highest_at_a_gross_fault(name, item):
    scorer, rows = kinds.fitted(item, name, small(name), 0)
    assert np.ptp(rows[:PREFIX], axis=0) == pytest.approx([1, 1])
    scores = kinds.scores_of(scorer, rows)
    assert scores.shape == (400,) and np.isfinite(scores).all()
    normal = np.delete(scores, np.arange(FAULT.start - 16, FAULT.stop + 16))
    assert scores[FAULT].mean() > 1.5 * np.quantile(normal, 0.95)
    assert 0 < scorer.numbers < 10_000


@pytest.mark.parametrize("options", kinds.trials("fourier")[:4])
def test_the_fourier_regression_is_least_squares(options):
    length = options["window"]
    time = 2 * np.pi * np.arange(length) / length / options["span"]
    orders = np.arange(1, options["harmonics"] + 1)
    columns = [np.sin(np.outer(time, orders)), np.cos(np.outer(time, orders))]
    if options["constant"]:
        columns.append(np.ones((length, 1)))
    design = np.concatenate(columns, axis=1)
    windows = np.random.default_rng(1).normal(size=(3, length, 2)).astype(np.float32)
    basis = kinds_models.fourier_basis(length, options)
    assert basis.size < 1000
    found = kinds_models.fourier_predict(basis, windows)
    for window, fit in zip(windows, found, strict=True):
        expected = design @ np.linalg.lstsq(design, window, rcond=None)[0]
        np.testing.assert_allclose(fit, expected, atol=1e-4)


def test_the_associative_scan_is_the_recurrence():
    rng = np.random.default_rng(2)
    decay, inputs = rng.random((2, 3, 13, 4)).astype(np.float32)
    found = kinds_models.linear_recurrence(decay, inputs)
    state = np.zeros((3, 4))
    for step in range(13):
        state = decay[:, step] * state + inputs[:, step]
        np.testing.assert_allclose(found[:, step], state, rtol=1e-5)


@pytest.mark.parametrize("name", FORECASTERS)
def test_a_forecast_sees_the_rows_before_alone(name):
    network, rng = kinds.KINDS[name].fit.args[0], np.random.default_rng(3)
    params = network.init(rng, 2, {"units": 4, "layers": 2})
    windows = rng.normal(size=(2, 9, 2)).astype(np.float32)
    changed = windows.copy()
    changed[:, 5] += 1
    found, later = network.predict(params, windows), network.predict(params, changed)
    assert found.shape == windows.shape
    np.testing.assert_allclose(found[:, 1:6], later[:, 1:6], atol=1e-6)
    assert np.abs(found - later)[:, 6].min() > 1e-6


@pytest.mark.slow  # compiles two trainings
@pytest.mark.parametrize("name", ["gru_forecast", "patches"])
def test_channels_of_zeros_change_nothing(name, item, monkeypatch):
    options = small(name) | {"steps": 10}
    window = np.float32(item.rows[None, :16])
    found = kinds.fitted(item, name, options, 0)[0].points(window)
    monkeypatch.setattr(kinds_models, "WIDE", 2)
    alone = kinds.fitted(item, name, options, 0)[0].points(window)
    np.testing.assert_allclose(found, alone, rtol=1e-3)


def test_a_widened_tree_is_narrowed_to_itself():
    tree = {"a": np.ones((3, 2, 4)), "b": [np.arange(2.0)]}
    like = {"a": np.empty((3, 5, 4)), "b": [np.empty(5)]}
    wide = kinds_models.widened(tree, like)
    assert wide["a"].shape == (3, 5, 4) and wide["a"].sum() == 24
    np.testing.assert_array_equal(wide["b"][0], [0, 1, 0, 0, 0])
    narrow = kinds_models.narrowed(wide, tree)
    np.testing.assert_array_equal(narrow["a"], tree["a"])
    np.testing.assert_array_equal(narrow["b"][0], tree["b"][0])


def test_attention_weighs_the_rows_by_query_and_key():
    rng = np.random.default_rng(4)
    block = {"attention": kinds_models.layer(rng, 4, 12)}
    states = rng.normal(size=(2, 5, 4)).astype(np.float32)
    found = kinds_models.attention(block, states)
    for window, mixed in zip(states, found, strict=True):
        query, key, value = np.split(window @ block["attention"]["kernel"], 3, axis=1)
        for head in (slice(0, 2), slice(2, 4)):
            weights = np.exp(query[:, head] @ key[:, head].T / np.sqrt(2))
            weights /= weights.sum(axis=1, keepdims=True)
            np.testing.assert_allclose(
                mixed[:, head], weights @ value[:, head], rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize("name", kinds.KINDS)
def test_trials_are_ten_different_ones_of_the_space(name):
    found = kinds.trials(name)
    assert found == kinds.trials(name)
    assert len({json.dumps(one) for one in found}) == kinds.TRIALS
    space = kinds.KINDS[name].space
    for one in found:
        assert one.keys() == space.keys()
        assert all(value in space[key] for key, value in one.items())


def test_series_that_choose_never_judge_and_none_only_reports():
    table = pd.read_csv(tsbad.HERE / "series.csv")
    items = [
        tsbad.Item(one.file, one.collection, np.empty((one.rows, 1)), None, 0, 0)
        for one in table[table["list"] == "choose"].itertuples()
    ]
    chosen = [item.file for item in kinds.choosing(items)]
    judged = [item.file for item in kinds.judging(items)]
    assert {item.file for item in kinds.deciding(items)} == set(kinds.DECIDING)
    assert [name[:3] for name in judged[:3]] == ["SMD", "004", "149"]
    assert chosen[:2] == ["MSL_T-8", "MSL_M-4"] and len(chosen) == 6
    assert len(set(judged)) == 20 and not set(chosen) & set(judged)
    reporting = set(table[table["list"] == "evaluation"]["file"])
    assert not reporting & {*chosen, *judged}


def test_the_best_options_have_the_highest_mean_over_the_series_that_decide():
    lines = [
        {"kind": kind, "options": {"window": 64, "units": units}, "vus_pr": value, "file": file}
        for kind in ("patches", "transformer")
        for units, values in ((8, (0.3, 0.7, 0.1)), (16, (0.4, 0.5, 0.9)), (32, (0.7, 0.9, 0.1)))
        for file, value in zip((*kinds.DECIDING, "MSL_T-8"), values, strict=True)
    ]  # fmt: skip
    found = kinds.best(lines)
    assert found["patches"]["units"] == 32
    assert found["transformer"]["units"] == 32


def line(kind, seed, quality, numbers):
    return {
        "file": "f", "collection": "MSL", "kind": kind, "options": {}, "seed": seed,
        "vus_pr": quality, "numbers": numbers, "seconds": 1.0,
    }  # fmt: skip


def test_the_table_tells_the_fronts():
    lines = [line("a", 0, 0.4, 10), line("a", 1, 0.6, 10), line("b", 0, 0.45, 20)]
    lines += [line("c", 0, 0.2, 5)]
    # One that not every kind has.
    lines += [line("a", 0, 0.9, 10) | {"file": "g"}]
    times = [
        {"kind": kind, "milliseconds": ms}
        for kind, ms in (("a", 2.0), ("b", 3.0), ("c", 2.5))
    ]
    assert kinds.table(lines, times).splitlines() == [
        "| kind | MSL (1) | numbers | ms | fronts |",
        "| --- | ---: | ---: | ---: | --- |",
        "| a | 0.500 (0.400–0.600) | 10 | 2.00 | MSL numbers, MSL ms |",
        "| b | 0.450 | 20 | 3.00 | none |",
        "| c | 0.200 | 5 | 2.50 | MSL numbers |",
    ]


def test_a_run_continues(item, tmp_path):
    output = tmp_path / "found.jsonl"
    jobs = [(item, "mahalanobis", {"window": 16}, seed) for seed in (0, 1)]
    kinds.run(jobs[:1], output, kinds.measure)
    first = output.read_text("utf-8")
    kinds.run(jobs, output, kinds.measure)
    lines = output.read_text("utf-8").splitlines()
    assert output.read_text("utf-8").startswith(first) and len(lines) == 2
    found = json.loads(first)
    assert found["vus_pr"] > 0.8 and found["numbers"] == 11


def test_the_document_has_the_table_of_its_lines():
    results = Path(__file__).parent.parent / "docs" / "results"
    lines, times = (
        tsbad.read(results / f"kinds_{part}.jsonl") for part in ("judge", "time")
    )
    document = (results / "kinds.md").read_text("utf-8")
    assert kinds.table(lines, times) in document
    chosen = kinds.best(tsbad.read(results / "kinds_choose.jsonl"))
    assert chosen.keys() == kinds.KINDS.keys()
    for one in lines:
        assert one["options"] == chosen.get(one["kind"], one["options"])
