"""Data larger than memory: read where they lie, in pieces, to the same end as whole."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console
from sklearn.decomposition import PCA

from kdjax.data import scaler
from kdjax.data import windowing as large
from kdjax.data.prepared import (
    channel_notes,
    fit_rows,
    is_large,
    prepare,
    training_ranges,
    training_windows,
    windows_source,
)
from kdjax.data.readers import load_files
from kdjax.data.series import Dataset, Series
from kdjax.data.windowing import WindowSource, gather, on_disk
from kdjax.detection.calibration import Rules, calibrate
from kdjax.detection.thresholds import Rule
from kdjax.errors import ConfigError, DataError
from kdjax.evaluation.evaluate import evaluate_models, inspect_training
from kdjax.evaluation.evaluate import test_notes as notes_of_test
from kdjax.experiment.assemble import data_digests
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.baselines import fit_pca
from kdjax.models.residual import ResidualModel
from kdjax.training.batching import (
    BatchSource,
    IndexedBatch,
    WindowDataset,
    disk_batches,
    memory_batches,
)
from kdjax.training.loop import fit, resume
from kdjax.training.sharding import batch_mesh, place
from kdjax.training.steps import (
    dataset_outputs,
    init_state,
    make_optimizer,
    make_step,
    make_validate,
    student_loss,
    teacher_loss,
    validation_loss,
)

pytestmark = pytest.mark.slow

WINDOW, STRIDE, WIDTH = 6, 4, 3
ROWS = {"a": 700, "b": 420}
OPTIONS = {
    "window": WINDOW, "stride": STRIDE, "max_gap": 5.0, "validation": 0.2,
    "calibration": 0.2, "scaler": "minmax",
}  # fmt: skip


@pytest.fixture
def small_chunks(monkeypatch):
    """Files of more than 50 rows count as too large to hold."""
    monkeypatch.setattr(large, "CHUNK_BYTES", 50 * 4 * WIDTH)


@pytest.fixture
def mapped(tmp_path):
    """Makes the rows of a series a memory map."""

    def make(series):
        path = tmp_path / f"{series.entity}{len(series.values)}.npy"
        np.save(path, series.values)
        return series._replace(values=np.load(path, mmap_mode="r"))

    return make


def series(entity, rows, *, seed=0, gaps=0.0, excluded=None):
    rng = np.random.default_rng(seed)
    values = np.cumsum(rng.normal(size=(rows, WIDTH)), axis=0).astype(np.float32)
    values[rng.random(values.shape) < gaps] = np.nan
    names = tuple(f"c{i}" for i in range(WIDTH))
    labels = np.arange(rows) % 50 < 3
    return Series(entity, values, names, None, labels, excluded)


def both(mapped, *, gaps=0.0, **options):
    """The same data prepared in memory and on disk."""
    excluded = np.array([[30, 95], [300, 310]])
    train = [
        series("a", ROWS["a"], gaps=gaps, excluded=excluded),
        series("b", ROWS["b"], seed=1, gaps=gaps),
    ]
    test = [series("a", 240, seed=2, gaps=gaps), series("b", 200, seed=3, gaps=gaps)]
    whole = Dataset("plant", tuple(train), tuple(test))
    lying = Dataset("plant", tuple(map(mapped, train)), tuple(map(mapped, test)))
    assert all(on_disk(one.values) for one in (*lying.train, *lying.test))
    return [prepare(data, **OPTIONS | options) for data in (whole, lying)]


def rules(**changes):
    chosen = Rule("conformal", 0.1)
    return Rules(0, 0.03, 0.1, "none", "per_entity", chosen, 0.0, 16)._replace(
        **changes
    )


# Windows read one by one.


@pytest.mark.parametrize("gaps", [0.0, 0.05])
@pytest.mark.parametrize("part", ["fit", "validation", "calibration"])
def test_a_source_reads_the_windows_of_training_windows(
    small_chunks, mapped, part, gaps
):
    whole, lying = both(mapped, gaps=gaps)
    rows, starts = training_windows(whole, part, stride=3)
    source = windows_source(lying, part, stride=3)
    assert source.windows == len(starts) and source.missing is (gaps > 0)
    wanted = rows[starts[:, None] + np.arange(WINDOW)]
    found = source.read(np.arange(len(starts)))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)
    places = np.random.default_rng(0).permutation(len(starts))[:20]
    np.testing.assert_array_equal(source.read(places), wanted[places])


def test_large_is_what_all_train_rows_take_as_float32(mapped):
    prepared = prepare(
        Dataset("plant", (series("a", 300), series("b", 200)), ()), **OPTIONS
    )
    size = 500 * WIDTH * 4
    assert is_large(prepared, size - 1) and not is_large(prepared, size)


# The feed.


@pytest.fixture(scope="module")
def source():
    """103 windows of two entities, each told by its first value."""
    values = [
        np.random.default_rng(i).normal(size=(n, WIDTH)).astype(np.float32)
        for i, n in enumerate((260, 180))
    ]
    for i, rows in enumerate(values):
        rows[:, 0] = 1000 * i + np.arange(len(rows))
    same = scaler.Scaler(np.zeros(WIDTH, np.float32), np.ones(WIDTH, np.float32))
    starts = (np.arange(0, 250, 4), np.arange(0, 170, 4)[:40])
    return WindowSource(tuple(values), (same, same), starts, WINDOW)


def firsts(source):
    """The first value of each window."""
    return np.concatenate(
        [v[s, 0] for v, s in zip(source.values, source.starts, strict=True)]
    )


def seen(batch_source, epoch, first=0):
    """First values of the windows of weight 1, batch by batch."""
    found = []
    for dataset, index, weight in batch_source.batches(epoch, first):
        rows, starts = np.asarray(dataset.rows), np.asarray(dataset.starts)
        windows = gather(rows, starts[index], WINDOW)
        assert windows.shape == (batch_source.batch_size, WINDOW, WIDTH)
        assert set(weight.tolist()) <= {0.0, 1.0}
        found.append(windows[weight > 0, 0, 0])
    return found


def test_an_epoch_is_an_order_of_all_windows_the_same_when_asked_again(source):
    batch_source = disk_batches(source, seed=(5,), batch_size=16)
    assert batch_source.windows == source.windows == 103 and batch_source.steps == 7
    epochs = [np.concatenate(seen(batch_source, epoch)) for epoch in range(3)]
    for epoch, order in enumerate(epochs):
        np.testing.assert_array_equal(np.sort(order), firsts(source))
        again = disk_batches(source, seed=(5,), batch_size=16)
        np.testing.assert_array_equal(np.concatenate(seen(again, epoch)), order)
        assert (order != firsts(source)).mean() > 0.9
    assert not np.array_equal(epochs[0], epochs[1])
    other = disk_batches(source, seed=(5, 1), batch_size=16)
    assert not np.array_equal(np.concatenate(seen(other, 0)), epochs[0])
    assert [len(batch) for batch in seen(batch_source, 0)] == [16] * 6 + [7]


def test_a_feed_goes_on_at_any_batch_and_reads_no_window_before_it(source, monkeypatch):
    batch_source = disk_batches(source, seed=(1,), batch_size=16)
    whole, read = seen(batch_source, 4), []

    def counting(self, places, read_windows=WindowSource.read):
        read.extend(places)
        return read_windows(self, places)

    monkeypatch.setattr(WindowSource, "read", counting)
    for first in range(batch_source.steps + 1):
        read.clear()
        rest = seen(batch_source, 4, first)
        assert len(rest) == batch_source.steps - first
        for found, wanted in zip(rest, whole[first:], strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert len(read) == 16 * (batch_source.steps - first)


def gathered_feed(source, batches_of, *, missing=False, teacher=None, targets=None):
    """The oracle: the same order, looked up in rows that lie on the device."""
    rows = np.concatenate(source.values)
    shifts = np.cumsum([0, *map(len, source.values)])
    starts = np.concatenate(
        [s + shift for s, shift in zip(source.starts, shifts, strict=False)]
    )
    dataset = WindowDataset(
        jnp.asarray(rows), jnp.asarray(starts), targets, teacher, missing=missing
    )
    known = {value: place for place, value in enumerate(firsts(source))}

    def batches(epoch, first):
        for found in seen(batches_of, epoch, first):
            places = np.array([known[value] for value in found])
            gap = batches_of.batch_size - len(places)
            weight = np.pad(np.ones(len(places), np.float32), (0, gap))
            index = np.pad(places, (0, gap), mode="edge")
            yield IndexedBatch(dataset, index, weight)

    return BatchSource(batches_of.windows, batches_of.batch_size, batches), dataset


def trained(batch_source, objective, net, validate, *, mesh=None, teacher=None):
    optimizer = make_optimizer(
        learning_rate=3e-3, schedule="constant", steps=20, warmup_steps=0, clip_norm=1.0
    )
    step = make_step(objective, optimizer, window=WINDOW, teacher=teacher, mesh=mesh)
    start = resume(None, init_state(net.init(jax.random.key(0)), optimizer))
    start = start._replace(state=place(start.state, mesh), best=place(start.best, mesh))
    return fit(start, step, batch_source, validate, epochs=2, patience=None)


def near(found, wanted, **tolerance):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


@pytest.mark.parametrize("shared", [False, True], ids=["one device", "mesh"])
def test_a_fit_on_windows_from_disk_is_that_on_rows_in_memory(source, shared):
    mesh = batch_mesh(32) if shared else None
    assert (mesh is not None) == shared
    batch_source = disk_batches(source, seed=(0,), batch_size=32)
    net = network(Architecture(WIDTH, (4,)))
    oracle, dataset = gathered_feed(source, batch_source)
    loss = validation_loss(net)
    found = trained(
        batch_source, teacher_loss(net), net,
        make_validate(
            loss, disk_batches(source, seed=None, batch_size=32, mesh=mesh),
            window=WINDOW, mesh=mesh,
        ), mesh=mesh,
    )  # fmt: skip
    wanted = trained(
        oracle, teacher_loss(net), net,
        make_validate(
            loss, memory_batches(dataset, key=None, batch_size=32), window=WINDOW
        ),
    )  # fmt: skip
    assert found.progress.step == wanted.progress.step == 8
    assert found.progress.best_loss == pytest.approx(
        wanted.progress.best_loss, rel=1e-5
    )
    near(found.params, wanted.params, rtol=1e-4, atol=1e-6)


def test_a_student_learns_from_a_teacher_who_looks_at_each_batch(source):
    big, net = (network(Architecture(WIDTH, hidden)) for hidden in ((5,), (2,)))
    teacher = big.init(jax.random.key(7))
    objective = student_loss(
        net, big, alpha=0.5, temperature=1.0, temperature_mode="output"
    )
    batch_source = disk_batches(source, seed=(0,), batch_size=16, teacher=teacher)
    _, dataset = gathered_feed(source, batch_source)
    targets = dataset_outputs(big, teacher, dataset, window=WINDOW, batch_size=16)
    oracle, dataset = gathered_feed(source, batch_source, targets=jnp.asarray(targets))
    validate = make_validate(
        validation_loss(net),
        memory_batches(dataset, key=None, batch_size=16),
        window=WINDOW,
    )
    found = trained(batch_source, objective, net, validate, teacher=big)
    wanted = trained(oracle, objective, net, validate)
    near(found.params, wanted.params, rtol=1e-4, atol=1e-6)
    # And it is the teacher that it learns from.
    alone = trained(oracle, teacher_loss(net), net, validate)
    with pytest.raises(AssertionError):
        near(found.params, alone.params, rtol=1e-3)


def test_missing_cells_are_left_out_from_disk_as_in_memory(small_chunks, mapped):
    whole, lying = both(mapped, gaps=0.1)
    net = network(Architecture(WIDTH, (4,)))
    params, loss = net.init(jax.random.key(1)), validation_loss(net)
    rows, starts = training_windows(whole, "validation", stride=STRIDE)
    dataset = WindowDataset(jnp.asarray(rows), jnp.asarray(starts), missing=True)
    wanted = make_validate(
        loss, memory_batches(dataset, key=None, batch_size=16), window=WINDOW
    )(params)
    source = windows_source(lying, "validation", stride=STRIDE)
    assert make_validate(
        loss, disk_batches(source, seed=None, batch_size=16), window=WINDOW
    )(params) == pytest.approx(wanted, rel=1e-5)
    (batch, *_) = disk_batches(source, seed=(0,), batch_size=16).batches(0, 0)
    assert batch[0].missing


def test_without_grain_it_says_what_to_install(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ConfigError, match=r"needs grain: pip install 'kdjax\[large\]'"):
        disk_batches(source, seed=(0,), batch_size=4)


# What a run makes of rows, in pieces and whole.


@pytest.mark.parametrize("gaps", [0.0, 0.05])
@pytest.mark.parametrize("method", scaler.METHODS)
def test_scalers_ranges_and_notes_are_those_of_the_whole(
    small_chunks, mapped, method, gaps
):
    whole, lying = both(mapped, scaler=method, gaps=gaps)
    exact = {} if method == "zscore" else {"rtol": 0}
    for one, other in zip(lying.entities, whole.entities, strict=True):
        near(one.scaler, other.scaler, **exact)
        near(one.split, other.split, rtol=0)
        assert (one.pooled, one.missing) == (other.pooled, gaps > 0)
    near(lying.pooled_scaler, whole.pooled_scaler, **exact)
    near(training_ranges(lying), training_ranges(whole), rtol=0)
    assert channel_notes(lying) == channel_notes(whole)
    near(
        np.concatenate(list(fit_rows(lying))),
        np.concatenate(list(fit_rows(whole))),
        rtol=0 if exact else 1e-4,
        atol=0 if exact else 1e-5,
    )
    assert max(map(len, fit_rows(lying))) <= 50


def test_robust_sorts_some_channels_at_a_time_and_refuses_too_long_ones(
    small_chunks, mapped, monkeypatch
):
    whole, _ = both(mapped, scaler="robust")
    rows = sum(map(len, fit_rows(whole)))
    monkeypatch.setattr(scaler, "COLUMN_BYTES", 8 * rows)  # One of the pooled scaler.
    _, lying = both(mapped, scaler="robust")
    near(lying.pooled_scaler, whole.pooled_scaler, rtol=0)
    monkeypatch.setattr(scaler, "COLUMN_BYTES", 8 * rows - 1)
    with pytest.raises(ConfigError, match="robust.*use minmax or zscore"):
        both(mapped, scaler="robust")


def test_dead_channels_and_copies_are_found_on_disk(small_chunks, mapped):
    one = series("a", 600)
    one.values[:, 1] = 7
    one.values[:, 2] = 3 - 2 * one.values[:, 0]
    prepared = prepare(Dataset("plant", (mapped(one),), ()), **OPTIONS)
    assert channel_notes(prepared) == [
        "a: constant in the training rows: c1",
        "a: copies of another channel: c2 (of c0)",
    ]


def test_digests_are_of_the_content_wherever_it_lies(small_chunks, mapped):
    one = series("a", 333)._replace(time=np.arange(333).astype("datetime64[ns]"))
    wanted = hashlib.sha256(repr(one.channels).encode())
    for array in (one.values, one.time, one.labels):
        wanted.update(array.tobytes())
    for found in (one, mapped(one)):
        digests = data_digests(Dataset("plant", (found,), ()))
        assert digests == {"train/a": wanted.hexdigest()}


@pytest.mark.parametrize("variance", [0.5, 0.95, 0.99])
def test_pca_of_pieces_projects_as_scikit_learn(variance):
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(900, 3)) @ rng.normal(size=(3, 6)) + 5).astype(np.float32)
    rows += 0.1 * rng.normal(size=rows.shape).astype(np.float32)
    pieces = np.split(rows, [0, 100, 101, 400])
    found = fit_pca(pieces, variance=variance)
    oracle = PCA(n_components=variance, svd_solver="full").fit(rows.astype(np.float64))
    assert found["components"].shape == oracle.components_.shape
    np.testing.assert_allclose(found["mean"], oracle.mean_, rtol=1e-6)
    np.testing.assert_allclose(
        found["components"].T @ found["components"],
        oracle.components_.T @ oracle.components_,
        atol=1e-5,
    )
    near(fit_pca([rows], variance=variance), fit_pca(rows, variance=variance), rtol=0)
    still = fit_pca([np.full((9, 2), 3.0), np.full((4, 2), 3.0)])
    np.testing.assert_array_equal(still["components"], [[0, 0]])


@pytest.mark.parametrize(
    ("gaps", "stride", "changes"),
    [
        (0.0, STRIDE, {}),
        (0.05, STRIDE, {"shrinkage": "ledoit_wolf"}),
        (0.0, WINDOW + 1, {"trim": 0.1, "shrinkage": "oas", "scope": "pooled"}),
    ],
)
def test_calibration_judgement_and_inspection_in_pieces(
    small_chunks, mapped, gaps, stride, changes
):
    chosen = rules(**changes)
    net = Architecture(WIDTH, (3,))
    models = {
        "student": ResidualModel(
            "autoencoder", network(net).init(jax.random.key(0)), net
        ),
        "difference": ResidualModel("difference", {}),
    }
    results = []
    for prepared in both(mapped, gaps=gaps, stride=stride):
        evaluated = evaluate_models(
            models, prepared, chosen, min_anomalous_points=1,
            console=Console(quiet=True),
        )  # fmt: skip
        inspected = inspect_training(evaluated["student"], prepared, chosen)
        results.append(
            (
                evaluated,
                inspected,
                notes_of_test(evaluated["student"], prepared),
            )
        )
    (whole, looked, notes), (lying, looked_too, notes_too) = results
    assert notes == notes_too
    for name in models:
        one, other = lying[name].calibration, whole[name].calibration
        near(one.gaussians, other.gaussians, rtol=1e-4, atol=1e-6)
        near(one.scores, other.scores, rtol=1e-4)
        near(one.starts, other.starts, rtol=0)
        taus = [[found.tau for found in each.thresholds] for each in (one, other)]
        near(*taus, rtol=1e-4)
        for mine, theirs in zip(lying[name].scores, whole[name].scores, strict=True):
            near(mine.scores, theirs.scores, rtol=1e-4)
            near(mine.window_scores, theirs.window_scores, rtol=1e-4)
    for mine, theirs in zip(looked_too, looked, strict=True):
        near(mine.scores, theirs.scores, rtol=1e-4)
        assert [w["start"] for w in mine.worst] == [w["start"] for w in theirs.worst]


def test_calibration_holds_no_more_than_chunks(small_chunks, mapped, monkeypatch):
    _, lying = both(mapped)
    seen_rows = []
    applied = large.apply_scaler

    def watched(one, values):
        seen_rows.append(len(values))
        return applied(one, values)

    monkeypatch.setattr(large, "apply_scaler", watched)
    calibrate(ResidualModel("difference", {}), lying, rules())
    assert len(seen_rows) > 10 and max(seen_rows) <= 50


# Files that are not loaded.


def plant(rows=260):
    """Two machines in turn, with a time each, labels, and channels of several types."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "time": np.repeat(
                pd.date_range("2024-01-01", periods=rows // 2, freq="s"), 2
            ),
            "machine": ["press", "saw"] * (rows // 2),
            "load": rng.normal(size=rows).astype(np.float32),
            "count": rng.integers(0, 9, rows),
            "on": rng.random(rows) < 0.5,
            "heat": 20 + rng.normal(size=rows),
            "fault": rng.integers(0, 2, rows),
        }
    )
    return frame


COLUMNS = {"entity_column": "machine", "label_column": "fault"}


def changed(frame, kind):
    rng = np.random.default_rng(1)
    if kind == "gaps":
        frame.loc[rng.choice(np.arange(10, len(frame)), 40), ["load", "heat"]] = np.nan
    if kind == "infinite":
        frame.loc[[50, 51, 90], "load"] = np.inf
    if kind == "shuffled":
        frame = frame.sample(frac=1, random_state=2)
    if kind == "repeated":
        frame = pd.concat([frame[:100], frame[90:]])
    return frame.reset_index(drop=True)


def same_series(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert isinstance(one.values, np.memmap) and one.values.dtype == np.float32
        assert not isinstance(other.values, np.memmap)
        np.testing.assert_array_equal(one.values, other.values)
        assert (one.entity, one.channels) == (other.entity, other.channels)
        assert one.notes == other.notes
        for field in ("time", "labels", "excluded"):
            a, b = getattr(one, field), getattr(other, field)
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("plain", {}),
        ("plain", {"entity_column": ""}),
        ("gaps", {"missing": "ffill"}),
        ("gaps", {"missing": "ffill", "fill_limit": 1}),
        ("gaps", {"missing": "mask"}),
        ("infinite", {"missing": "ffill"}),
        ("shuffled", {"order": "sort"}),
        ("repeated", {"order": "sort", "duplicates": "last"}),
    ],
)
def test_parquet_on_disk_is_read_as_in_memory(small_chunks, tmp_path, kind, options):
    path = tmp_path / "plant.parquet"
    frame = changed(plant(), kind)
    if options.get("entity_column") == "":
        frame = frame[frame["machine"] == "press"].drop(columns="machine")
    frame.to_parquet(path, row_group_size=70)
    options = COLUMNS | options
    found = load_files(path, memory_bytes=0, **options)
    wanted = load_files(path, **options)
    assert found.name == wanted.name
    same_series(found.train, wanted.train)


def test_a_numeric_file_without_roles_and_with_a_time_found_by_content(tmp_path):
    path = tmp_path / "plant.parquet"
    frame = plant().drop(columns=["machine", "fault"])[::2]
    for name, kept in (("when", ["when", "load"]), ("none", ["load", "heat"])):
        frame.rename(columns={"time": name})[kept].to_parquet(path)
        found, wanted = load_files(path, memory_bytes=0), load_files(path)
        same_series(found.train, wanted.train)
        assert (found.train[0].time is None) == (name == "none")
    # As text, which is a time only if all of it is.
    frame["when"] = frame["time"].astype(str)
    frame[["load", "when"]].to_parquet(path)
    same_series(load_files(path, memory_bytes=0).train, load_files(path).train)


def test_npy_files_of_other_types_and_with_labels(small_chunks, tmp_path):
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.normal(size=(400, 2)), rng.integers(0, 2, (400, 1))], 1
    )
    np.save(tmp_path / "plant.npy", values)
    for options in ({}, {"label_column": "channel_3"}):
        path = tmp_path / "plant.npy"
        found = load_files(path, memory_bytes=4 * 1200 - 1, **options)
        same_series(found.train, load_files(path, **options).train)
        held = load_files(path, memory_bytes=4 * 1200, **options)
        assert not isinstance(held.train[0].values, np.memmap)


def test_a_test_file_with_other_order_and_excluded_spans(small_chunks, tmp_path):
    train, test = tmp_path / "train.parquet", tmp_path / "test.parquet"
    plant().drop(columns="fault").to_parquet(train)
    plant()[["fault", "heat", "on", "machine", "count", "load", "time"]].to_parquet(
        test
    )
    spans = tmp_path / "spans.csv"
    spans.write_text("start,end\n2024-01-01 00:00:10,2024-01-01 00:00:20\n")
    options = COLUMNS | {"test_path": test, "exclude": spans}
    found = load_files(train, memory_bytes=0, **options)
    wanted = load_files(train, **options)
    same_series(found.train, wanted.train)
    same_series(found.test, wanted.test)
    assert found.test[0].channels == ("load", "count", "on", "heat")


def broken(kind):
    frame = plant()
    if kind == "missing":
        frame.loc[123, "heat"] = np.nan
    if kind == "infinite":
        frame.loc[123, "heat"] = np.inf
    if kind == "text":
        frame["heat"] = frame["heat"].astype(str).where(frame.index != 123, "hot")
    if kind == "huge":
        frame.loc[123, "heat"] = 1e39
    if kind == "backwards":
        frame.loc[123, "time"] = frame.loc[3, "time"]
    if kind == "label":
        frame.loc[123, "fault"] = 2
    if kind == "empty":
        frame["heat"] = np.nan
    if kind == "nobody":
        frame.loc[123, "machine"] = None
    return frame


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("missing", {}),
        ("infinite", {"missing": "mask"}),
        ("empty", {"missing": "ffill"}),
        ("text", {}),
        ("huge", {}),
        ("huge", {"missing": "mask"}),
        ("backwards", {}),
        ("label", {}),
        ("empty", {"missing": "mask"}),
        ("nobody", {}),
        ("plain", {"label_column": "failure"}),
        ("plain", {"time_column": "machine"}),
    ],
)
def test_faults_are_told_as_in_memory(small_chunks, tmp_path, kind, options):
    path = tmp_path / "plant.parquet"
    broken(kind).to_parquet(path, row_group_size=70)
    messages = []
    for size in (0, np.inf):
        with pytest.raises(DataError) as error:
            load_files(path, memory_bytes=size, **COLUMNS | options)
        messages.append(str(error.value))
    assert messages[0] == messages[1] and str(path) in messages[0]


def test_a_damaged_parquet_file_is_refused(tmp_path):
    path = tmp_path / "plant.parquet"
    path.write_bytes(b"PAR1" + bytes(99))
    for size in (0, np.inf):
        with pytest.raises(DataError, match="is not a whole Parquet file"):
            load_files(path, memory_bytes=size)
    with pytest.raises(DataError, match="does not exist"):
        load_files(tmp_path / "none.parquet", memory_bytes=0)


def test_a_disk_without_room_is_told_with_its_folder(tmp_path, monkeypatch):
    path = tmp_path / "plant.parquet"
    plant().to_parquet(path)
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ConfigError, match=r"GB in .* \(the disk is full\): set TMPDIR"):
        load_files(path, memory_bytes=0, **COLUMNS)


def test_the_copy_leaves_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    plant().to_parquet(tmp_path / "plant.parquet")
    found = load_files(tmp_path / "plant.parquet", memory_bytes=0, **COLUMNS)
    assert np.isfinite(found.train[0].values).all()
    assert not list((tmp_path / "scratch").iterdir())


# Files larger than the memory there is.

FILE_ROWS, FILE_WIDTH, BLOCK = 5_200_000, 64, 100_000
FILE_BYTES = 4 * FILE_ROWS * FILE_WIDTH
# What a process may allocate; JAX, XLA's compiler, grain and Plotly take most of it.
LIMIT = 1_300_000_000

LIMITED = """
import json, os, resource, sys
# Each core's threads take some memory of their own.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]),) * 2)
"""
TRAINED = """
import jax
from kdjax.experiment.assemble import data_digests
from kdjax.data.readers import load_files
from kdjax.data.prepared import is_large, prepare, windows_source
from kdjax.detection.calibration import Rules, calibrate
from kdjax.detection.thresholds import Rule
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.residual import ResidualModel
from kdjax.training.batching import disk_batches
from kdjax.training.loop import fit, resume
from kdjax.training.steps import (
    init_state, make_optimizer, make_step, make_validate, teacher_loss,
    validation_loss,
)

memory = 100_000_000
data = load_files(sys.argv[1], memory_bytes=memory)
digests = data_digests(data)
prepared = prepare(
    data, window=20, stride=4000, max_gap=5, validation=0.15, calibration=0.15,
    scaler="minmax",
)
assert is_large(prepared, memory)
shape = Architecture(len(prepared.channels), (4,))
net = network(shape)
loss = teacher_loss(net)
fed = disk_batches(windows_source(prepared, "fit", stride=1000), seed=(0,), batch_size=128)
optimizer = make_optimizer(
    learning_rate=1e-2, schedule="constant", steps=2 * fed.steps, warmup_steps=0,
    clip_norm=1.0,
)
losses = []
held_out = windows_source(prepared, "validation", stride=1000)
held_out = disk_batches(held_out, seed=None, batch_size=128)
validate = make_validate(validation_loss(net), held_out, window=20)
params = net.init(jax.random.key(0))
before = validate(params)
fitted = fit(
    resume(None, init_state(params, optimizer)),
    make_step(loss, optimizer, window=20), fed, validate, epochs=2, patience=None,
)
model = ResidualModel("autoencoder", fitted.params, shape)
rules = Rules(0, 0.03, 0.1, "none", "per_entity", Rule("conformal", 0.1), 0.0, 64)
calibration = calibrate(model, prepared, rules)
print(json.dumps({
    "before": before, "after": fitted.progress.best_loss,
    "steps": fitted.progress.step, "n": calibration.thresholds[0].n,
    "digest": digests["train/rows"],
}))
"""


RUN = """
from kdjax.config import get_config, override, resolve
from kdjax.experiment.pipeline import run

settings = resolve(override(get_config(), {
    "data.path": sys.argv[1], "data.memory_bytes": 100_000_000, "data.window": 20,
    "data.stride": 4000, "data.train_stride": 1000, "teacher.hidden": (4,),
    "student.hidden": (2,), "teacher.epochs": 1, "student.epochs": 1,
    "train.batch_size": 128, "baselines": ("difference",),
    "threshold.false_alarm_rate": 0.1,
}))
results = run(settings, os.path.join(os.environ["TMPDIR"], "work"))
print(json.dumps({key: results[key] for key in ("dataset", "rows")}))
"""


@pytest.fixture
def large_file(request, tmp_path):
    """A file of `FILE_ROWS` rows, written in blocks and deleted at the end."""
    path = tmp_path / f"rows.{request.param}"
    names = [f"channel_{i}" for i in range(1, FILE_WIDTH + 1)]
    digest = hashlib.sha256(repr(tuple(names)).encode())
    # Waves that channels share, and a drift from block to block.
    block = np.sin(np.arange(BLOCK)[:, None] / 50 + np.arange(FILE_WIDTH))
    noise = np.random.default_rng(0).standard_normal(block.shape, np.float32)
    block = (block + 0.1 * noise).astype(np.float32)
    with contextlib.ExitStack() as stack:
        if request.param == "npy":
            shape = (FILE_ROWS, FILE_WIDTH)
            rows = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        else:
            schema = pyarrow.schema([(name, pyarrow.float32()) for name in names])
            writer = stack.enter_context(
                pyarrow.parquet.ParquetWriter(
                    path, schema, compression="none", use_dictionary=False
                )
            )
        for first in range(0, FILE_ROWS, BLOCK):
            part = block + np.float32(first / FILE_ROWS)
            digest.update(part.tobytes())
            if request.param == "npy":
                rows[first : first + BLOCK] = part
            else:
                columns = [np.ascontiguousarray(column) for column in part.T]
                writer.write_table(pyarrow.table(columns, schema=schema))
    yield path, digest.hexdigest()
    path.unlink()


def limited(code, path, folder):
    """What a process prints that may allocate no more than `LIMIT` bytes."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED + code, str(path), str(LIMIT)],
        capture_output=True,
        text=True,
        check=False,
        # Arrow's own pool may reserve a gigabyte at once, which counts as allocated.
        env=os.environ | {"TMPDIR": str(folder), "ARROW_DEFAULT_MEMORY_POOL": "system"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


limited_memory = pytest.mark.skipif(
    sys.platform != "linux", reason="limits memory as Linux does"
)


@pytest.mark.slow
@limited_memory
@pytest.mark.parametrize("large_file", ["parquet"], indirect=True)
def test_it_trains_on_a_file_larger_than_its_memory(large_file, tmp_path):
    path, digest = large_file
    assert path.stat().st_size > LIMIT
    found = limited(TRAINED, path, tmp_path)
    assert found["digest"] == digest
    assert found["steps"] == 2 * 30 and found["after"] < 0.5 * found["before"]
    assert found["n"] == FILE_ROWS * 15 // 100 // 4000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@limited_memory
@pytest.mark.parametrize("large_file", ["npy"], indirect=True)
def test_a_whole_run_on_a_file_larger_than_its_memory(large_file, tmp_path):
    path, digest = large_file
    assert path.stat().st_size > LIMIT
    found = limited(RUN, path, tmp_path)
    assert found["dataset"]["train_rows"] == FILE_ROWS
    models = {row["model"] for row in found["rows"]}
    assert {"teacher", "student", "student_alone", "difference"} <= models
    card = tmp_path / "work" / "detectors" / "student" / "card.json"
    assert json.loads(card.read_text())["data"]["sha256"] == {"train/rows": digest}


@pytest.mark.slow
@limited_memory
def test_the_limit_would_not_let_the_file_in(tmp_path):
    path = tmp_path / "rows.npy"
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (FILE_ROWS, FILE_WIDTH))
    del rows
    code = "import numpy as np\ntry:\n    np.load(sys.argv[1])\n    print(0)\n"
    code += "except MemoryError:\n    print(1)\n"
    assert limited(code, path, tmp_path) == 1
