"""Benchmarks: the machine in the package, the published facts, and damaged copies."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdjax.data.datasets import (
    BENCHMARKS,
    SMD_CHANNELS,
    load_benchmark,
    load_sample,
    width,
)
from kdjax.errors import ConfigError, DataError

SHARED = Path(__file__).parents[1] / "../shared/data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real data sets are not beside the checkout"
)


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def _lines(values):
    return "".join(",".join(f"{x:.6f}" for x in row) + "\n" for row in values)


def _values(columns=38, rows=20, seed=0):
    return np.random.default_rng(seed).random((rows, columns)).round(6)


def _smd(root, entity="machine-1-1", ending=".txt", seed=0):
    """One machine in SMD's layout; its train and test rows."""
    train, test = _values(seed=seed), _values(rows=15, seed=seed + 1)
    labels = "".join(f"{int(5 <= i < 8)}\n" for i in range(15))
    _write(root / "train" / f"{entity}{ending}", _lines(train))
    _write(root / "test" / f"{entity}{ending}", _lines(test))
    _write(root / "test_label" / f"{entity}{ending}", labels)
    return train, test


def _nasa(root, channels=("A-1",), columns=25, spacecraft="SMAP"):
    """Channels in the layout of SMAP and MSL with one range of anomalies."""
    lines = ["chan_id,spacecraft,anomaly_sequences,class,num_values"]
    (root / "channels").mkdir(parents=True)
    for channel in channels:
        train, test = _values(columns), _values(columns, rows=12, seed=1)
        np.savez_compressed(root / f"channels/{channel}.npz", train=train, test=test)
        lines.append(f'{channel},{spacecraft},"[[3, 5], [9, 9]]","[point]",12')
    _write(root / "labeled_anomalies.csv", "\n".join(lines) + "\n")
    return train, test


# The machine in the package.


def test_sample_is_machine_1_2():
    sample = load_sample()
    (train,), (test,) = sample.train, sample.test
    assert sample.name == "smd"
    assert train.entity == test.entity == "machine-1-2"
    assert train.values.shape == test.values.shape == (23694, 38)
    assert train.values.dtype == test.values.dtype == np.float32
    assert train.channels == test.channels == SMD_CHANNELS
    assert train.time is None
    assert train.labels is None
    assert test.labels.dtype == bool
    assert test.labels.sum() == 542
    assert (np.ptp(train.values, axis=0) == 0).sum() == 5


def test_sample_values_are_those_of_the_text():
    sample = load_sample()
    folder = Path(__file__).parents[1] / "kdjax/data/sample"
    for series, part in ((sample.train[0], "train"), (sample.test[0], "test")):
        with gzip.open(folder / part / "machine-1-2.txt.gz", "rt") as file:
            head = [[float(cell) for cell in next(file).split(",")] for _ in range(50)]
        np.testing.assert_array_equal(series.values[:50], np.float32(head))


# Facts of the published sets.

FACTS = {
    "smd": ("smd", 13, 308030, 308039, 15431),
    "asd": ("asd", 8, 67771, 34560, 1515),
    "jumpstarter2": ("jumpstarter2", 20, 115200, 144000, 6894),
    "smap": ("smap_msl", 53, 135183, 427617, 54696),
    "msl": ("smap_msl", 27, 58317, 73729, 7766),
}


@needs_shared
@pytest.mark.parametrize("name", BENCHMARKS)
def test_published_counts(name):
    folder, entities, train_rows, test_rows, anomalous = FACTS[name]
    data = load_benchmark(name, root=SHARED / folder)
    assert len(data.train) == len(data.test) == entities
    assert sum(len(series.values) for series in data.train) == train_rows
    assert sum(len(series.values) for series in data.test) == test_rows
    assert sum(series.labels.sum() for series in data.test) == anomalous
    for train, test in zip(data.train, data.test, strict=True):
        assert train.entity == test.entity
        assert len(train.channels) == width(name) == train.values.shape[1]
        assert train.channels == test.channels
        assert np.isfinite(train.values).all()
        assert np.isfinite(test.values).all()


@needs_shared
def test_published_order_is_natural():
    names = [s.entity for s in load_benchmark("asd", root=SHARED / "asd").train]
    assert names == [f"omi-{i}" for i in (2, 3, 5, 8, 9, 10, 11, 12)]


@needs_shared
def test_jumpstarter_keeps_its_raw_units():
    data = load_benchmark(
        "jumpstarter2", root=SHARED / "jumpstarter2", entities=["service0"]
    )
    path = SHARED / "jumpstarter2/train/service0.csv.gz"
    expected = pd.read_csv(path, header=None).to_numpy(np.float32)
    np.testing.assert_array_equal(data.train[0].values, expected)
    assert expected.max() > 1e8


@needs_shared
def test_smap_labels_are_the_ranges_with_both_ends():
    data = load_benchmark("smap", root=SHARED / "smap_msl", entities=["P-1"])
    marked = np.zeros(8505, bool)
    for first, last in [[2149, 2349], [4536, 4844], [3539, 3779]]:
        marked[np.arange(first, last + 1)] = True
    np.testing.assert_array_equal(data.test[0].labels, marked)


@needs_shared
@pytest.mark.parametrize("name", ["smap", "msl"])
def test_channels_without_sound_labels_stay_out(name):
    data = load_benchmark(name, root=SHARED / "smap_msl")
    assert not {"P-2", "T-10"} & {series.entity for series in data.train}


# Layouts.


@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
@pytest.mark.parametrize("below", ["", "ServerMachineDataset"])
def test_smd_is_read_plain_and_packed(tmp_path, ending, below):
    train, test = _smd(tmp_path / below, ending=ending)
    data = load_benchmark("smd", root=tmp_path)
    np.testing.assert_array_equal(data.train[0].values, np.float32(train))
    np.testing.assert_array_equal(data.test[0].values, np.float32(test))
    assert np.flatnonzero(data.test[0].labels).tolist() == [5, 6, 7]


def test_entities_are_sorted_naturally_and_selected(tmp_path):
    for entity in ("machine-1-10", "machine-1-2", "machine-2-1"):
        _smd(tmp_path, entity)
    names = [s.entity for s in load_benchmark("smd", root=str(tmp_path)).train]
    assert names == ["machine-1-2", "machine-1-10", "machine-2-1"]
    chosen = ["machine-2-1", "machine-1-2"]
    data = load_benchmark("smd", root=tmp_path, entities=chosen)
    assert [series.entity for series in data.train] == chosen
    assert [series.entity for series in data.test] == chosen


def test_jumpstarter_labels_may_end_in_crlf(tmp_path):
    _write(tmp_path / "train/service3.csv", _lines(_values(19)))
    _write(tmp_path / "test/service3.csv.gz", _lines(_values(19, rows=3)))
    _write(tmp_path / "test_label/service3.csv", "0\r\n1\r\n0\r\n")
    data = load_benchmark("jumpstarter2", root=tmp_path)
    assert data.test[0].labels.tolist() == [False, True, False]
    assert data.test[0].channels[-1] == "metric_19"


@pytest.mark.parametrize("below", ["", "data"])
def test_smap_in_its_original_layout(tmp_path, below):
    train, test = _nasa(tmp_path)
    packed = load_benchmark("smap", root=tmp_path)
    (tmp_path / "channels/A-1.npz").unlink()
    for part, values in (("train", train), ("test", test)):
        (tmp_path / below / part).mkdir(parents=True)
        np.save(tmp_path / below / part / "A-1.npy", values)
    plain = load_benchmark("smap", root=tmp_path)
    np.testing.assert_array_equal(plain.train[0].values, packed.train[0].values)
    np.testing.assert_array_equal(plain.test[0].values, np.float32(test))
    assert np.flatnonzero(plain.test[0].labels).tolist() == [3, 4, 5, 9]


def test_smap_takes_its_own_channels_without_p2(tmp_path):
    _nasa(tmp_path, channels=("A-10", "A-2", "P-2"))
    table = tmp_path / "labeled_anomalies.csv"
    table.write_text(table.read_text() + 'M-1,MSL,"[[1, 2]]",[point],12\n')
    names = [s.entity for s in load_benchmark("smap", root=tmp_path).train]
    assert names == ["A-2", "A-10"]


def test_width_is_known_without_data():
    assert [width(name) for name in BENCHMARKS] == [38, 19, 19, 25, 55]
    assert len(set(SMD_CHANNELS)) == 38


# What is refused, and in which words.


def test_unknown_benchmark_gets_a_suggestion():
    with pytest.raises(
        ConfigError, match=r"'smdd' is not a known .*did you mean 'smd'"
    ):
        load_benchmark("smdd", root="")
    with pytest.raises(ConfigError, match="use one of smd, asd, jumpstarter2"):
        width("other")


def test_empty_root_is_for_smd_only():
    with pytest.raises(ConfigError, match=r"data\.root is empty: give the folder"):
        load_benchmark("asd", root="")


def test_folder_without_the_set_names_the_layout(tmp_path):
    expected = r"has no entity of smd: expected train/machine-\*\.txt, .*fetch smd"
    with pytest.raises(DataError, match=expected):
        load_benchmark("smd", root=tmp_path)
    with pytest.raises(DataError, match=r"nowhere is not a folder: .*fetch smd"):
        load_benchmark("smd", root=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"labeled_anomalies\.csv is missing: expected"):
        load_benchmark("msl", root=tmp_path)
    _nasa(tmp_path)
    with pytest.raises(DataError, match=r"has no entity of msl: expected labeled"):
        load_benchmark("msl", root=tmp_path)


def test_unknown_entity_gets_a_suggestion(tmp_path):
    _smd(tmp_path)
    expected = r"no entity 'machine-1-7' \(did you mean 'machine-1-1'\?\): it has"
    with pytest.raises(DataError, match=expected):
        load_benchmark("smd", root=tmp_path, entities=["machine-1-7"])
    with pytest.raises(
        DataError, match="machine-1-1 repeats an entity: name each once"
    ):
        load_benchmark("smd", root=tmp_path, entities=["machine-1-1"] * 2)


@pytest.mark.parametrize("folder", ["train", "test", "test_label"])
def test_missing_file_of_a_set(tmp_path, folder):
    _smd(tmp_path)
    (tmp_path / folder / "machine-1-1.txt").unlink()
    expected = rf"{folder}/machine-1-1\.txt \(or \.gz\) is missing: .*fetch smd"
    with pytest.raises(DataError, match=expected):
        load_benchmark("smd", root=tmp_path)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("abc", "'abc' is not a number; correct it"),
        ("", "nan is not a finite number"),
        ("NA", "nan is not a finite number"),
        ("1_0", "'1_0' is not a number"),
        ("nan", "nan is not a finite number"),
        ("inf", "inf is not a finite number"),
        ("1e400", "inf is not a finite number"),
        ("1e39", r"1e\+39 is beyond float32"),
        ("-1e39", r"-1e\+39 is beyond float32"),
    ],
)
def test_bad_cell_is_named_with_row_and_column(tmp_path, cell, message):
    _smd(tmp_path)
    path = tmp_path / "train/machine-1-1.txt"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    rows[6][2] = cell
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    place = r"train/machine-1-1\.txt: row 7 \(line 7\), column 3 \('load_5'\): "
    with pytest.raises(DataError, match=place + message):
        load_benchmark("smd", root=tmp_path)


@pytest.mark.parametrize(
    ("row", "text", "cells"),
    [(4, "1,2", 2), (4, ",".join("1" * 39), 39)],
)
def test_ragged_row_is_named(tmp_path, row, text, cells):
    _smd(tmp_path)
    path = tmp_path / "test/machine-1-1.txt"
    lines = path.read_text().splitlines()
    lines[row] = text
    path.write_text("\n".join(lines) + "\n")
    expected = rf"row {row + 1} \(line {row + 1}\) has {cells} cells, expected 38"
    with pytest.raises(DataError, match=expected):
        load_benchmark("smd", root=tmp_path)


def test_wrong_number_of_columns(tmp_path):
    _smd(tmp_path)
    _write(tmp_path / "train/machine-1-1.txt", _lines(_values(37)))
    expected = r"machine-1-1\.txt has 37 columns, expected 38 of numbers without a"
    with pytest.raises(DataError, match=expected):
        load_benchmark("smd", root=tmp_path)


def test_labels_are_zero_or_one(tmp_path):
    _smd(tmp_path)
    _write(tmp_path / "test_label/machine-1-1.txt", "0\n" * 3 + "2\n" + "0\n" * 11)
    expected = r"row 4 \(line 4\), column 1 \('label'\): label 2 is neither 0"
    with pytest.raises(DataError, match=expected):
        load_benchmark("smd", root=tmp_path)


def test_labels_are_as_many_as_test_rows(tmp_path):
    _smd(tmp_path)
    _write(tmp_path / "test_label/machine-1-1.txt", "0\n" * 14)
    expected = r"machine-1-1\.txt has 14 labels, but .*machine-1-1\.txt has 15 rows"
    with pytest.raises(DataError, match=expected):
        load_benchmark("smd", root=tmp_path)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_empty_file(tmp_path, text):
    _smd(tmp_path)
    _write(tmp_path / "train/machine-1-1.txt", text)
    with pytest.raises(DataError, match=r"train/machine-1-1\.txt is empty"):
        load_benchmark("smd", root=tmp_path)


def test_truncated_gzip(tmp_path):
    _smd(tmp_path, ending=".txt.gz")
    path = tmp_path / "train/machine-1-1.txt.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"txt\.gz is not a whole gzip file"):
        load_benchmark("smd", root=tmp_path)


def test_text_that_is_no_table_of_numbers(tmp_path):
    _smd(tmp_path)
    _write(tmp_path / "train/machine-1-1.txt", b"\x00\xff\xfe" * 10)
    with pytest.raises(DataError, match=r"machine-1-1\.txt: line 1 holds a NUL byte"):
        load_benchmark("smd", root=tmp_path)


def test_damaged_arrays_of_smap(tmp_path):
    _nasa(tmp_path)
    path = tmp_path / "channels/A-1.npz"
    whole = path.read_bytes()
    for damaged in (whole[:-50], b"", b"text", whole[:200] + b"?" + whole[201:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"A-1\.npz is not a whole \.npz file"):
            load_benchmark("smap", root=tmp_path)
    with path.open("wb") as file:
        np.save(file, np.ones((3, 25)))
    with pytest.raises(DataError, match=r"A-1\.npz is not a whole \.npz file"):
        load_benchmark("smap", root=tmp_path)


def test_arrays_of_smap_are_checked(tmp_path):
    _nasa(tmp_path)
    path = tmp_path / "channels/A-1.npz"
    good = np.ones((12, 25))
    spiked = good.copy()
    spiked[4, 2] = np.nan
    cases = [
        ({"train": good}, "has no array 'test': expected the arrays train and test"),
        (
            {"train": good[:, :24], "test": good},
            r"train holds float64 of shape \(12, 24\), expected rows of 25 numbers",
        ),
        (
            {"train": good[:0], "test": good},
            r"train holds float64 of shape \(0, 25\), expected",
        ),
        (
            {"train": good, "test": good.astype(str)},
            "test holds <U32 of shape .*, expected rows of 25 numbers",
        ),
        (
            {"train": spiked, "test": good},
            r"row 5, column 3 \('command_2'\): nan is not",
        ),
        ({"train": good, "test": good[:9]}, "line 2 .* but test has 9 rows"),
    ]
    for arrays, message in cases:
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=message):
            load_benchmark("smap", root=tmp_path)


def test_missing_test_array_of_smap(tmp_path):
    train, _ = _nasa(tmp_path)
    (tmp_path / "channels/A-1.npz").unlink()
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train/A-1.npy", train)
    with pytest.raises(DataError, match=r"test/A-1\.npy does not exist"):
        load_benchmark("smap", root=tmp_path)


@pytest.mark.parametrize(
    "ranges",
    ["[[5, 3]]", "[[-1, 3]]", "[[1, 2, 3]]", "[3]", "[[1, 2]", "x", '[["a", "b"]]'],
)
def test_ranges_that_cannot_be_read(tmp_path, ranges):
    _nasa(tmp_path)
    table = pd.read_csv(tmp_path / "labeled_anomalies.csv")
    table["anomaly_sequences"] = [ranges]
    table.to_csv(tmp_path / "labeled_anomalies.csv", index=False)
    with pytest.raises(DataError, match=r"line 2 \(channel A-1\) can't be read"):
        load_benchmark("smap", root=tmp_path)


def test_range_past_the_end(tmp_path):
    _nasa(tmp_path)
    table = pd.read_csv(tmp_path / "labeled_anomalies.csv")
    table["anomaly_sequences"] = [json.dumps([[3, 12]])]
    table.to_csv(tmp_path / "labeled_anomalies.csv", index=False)
    with pytest.raises(DataError, match="ranges up to row 12, but test has 12 rows"):
        load_benchmark("smap", root=tmp_path)


def test_table_of_smap_that_is_another_file(tmp_path):
    _nasa(tmp_path)
    (tmp_path / "labeled_anomalies.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="has no column chan_id, spacecraft"):
        load_benchmark("smap", root=tmp_path)
    (tmp_path / "labeled_anomalies.csv").write_text('a,b\n"1,2\n3\n')
    with pytest.raises(
        DataError, match=r"labeled_anomalies\.csv: row 1 \(line 2\) has"
    ):
        load_benchmark("smap", root=tmp_path)
