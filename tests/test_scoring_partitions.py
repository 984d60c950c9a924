"""`score_partition`: what `score_table` gives for each machine, in a declared schema."""

import pickle

import numpy as np
import pandas as pd
import pytest

import kdjax
from kdjax.data.series import Series
from kdjax.detection import storage
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.tables import score_table
from kdjax.errors import ArtifactError, DataError
from kdjax.scoring.files import score_file
from kdjax.scoring.partitions import SCORE_SCHEMA, score_partition

SIZES = {"a": 14, "z": 9, "b": 30}  # `a` is known to the detector `small`


def clock(rows, **options):
    return pd.date_range("2026-05-26", periods=rows, freq="1s", **options)


@pytest.fixture
def frame():
    """Rows of three machines, mixed, each in its order."""
    rng = np.random.default_rng(5)
    parts = []
    for name, rows in SIZES.items():
        part = pd.DataFrame(2 * rng.normal(size=(rows, 2)), columns=["y", "x"])
        part.insert(0, "entity", name)
        parts.append(part.assign(time=clock(rows)))
    whole = pd.concat(parts, ignore_index=True)
    order = np.append(0, 1 + rng.permutation(len(whole) - 1))
    for name in SIZES:
        own = np.flatnonzero((whole["entity"] == name).to_numpy()[order])
        order[own] = np.sort(order[own])
    return whole.iloc[order]


def by_hand(detector, frame, clocked, **options):
    """`score_table` of each machine from arrays, one below the other."""
    tables = []
    for name in frame["entity"].unique():
        rows = frame[frame["entity"] == name]
        values = rows[["x", "y"]].to_numpy(np.float32)
        time = rows["time"].to_numpy("M8[ns]") if clocked else None
        used = name if name in detector.entities else "pooled"
        series = Series(name, values, ("x", "y"), time)
        tables.append(score_table(detector, series, entity=used, **options))
    return pd.concat(tables, ignore_index=True)


def same(found, wanted):
    """Whether values are equal bit by bit, whatever holds text."""
    assert list(found) == list(wanted) and len(found) == len(wanted)
    for name in wanted:
        one, other = found[name], wanted[name]
        if name in ("entity", "state"):
            assert one.tolist() == other.tolist(), name
        else:
            np.testing.assert_array_equal(
                one.to_numpy(), other.to_numpy(one.to_numpy().dtype), name
            )


@pytest.mark.parametrize("clocked", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"causal": True, "contributions": True}], ids=["plain", "all"]
)
def test_each_machine_has_its_score_table(moving, frame, clocked, options):
    columns = {"time_column": "time"} if clocked else {}
    rows = frame if clocked else frame.drop(columns="time")
    found = score_partition(rows, moving, **columns, **options)
    same(found, by_hand(moving, frame, clocked, **options))
    assert found["alarm"].any() and found["entity"].unique().tolist() == [
        *frame["entity"].unique()
    ]
    schema = {name: str(kind) for name, kind in found.dtypes.items()}
    more = [f"contribution:{name}" for name in "xy"] if options else []
    assert schema == SCORE_SCHEMA | {
        "time": str(frame["time"].dtype) if clocked else "int64",
        **dict.fromkeys(more, "float64"),
    }
    # Machine by machine, as engines do, and their empty parts.
    parts = [
        score_partition(part, moving, **columns, **options)
        for _, part in rows.groupby("entity", sort=False)
    ]
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), found)
    empty = score_partition(rows.iloc[:0], moving, **columns, **options)
    pd.testing.assert_frame_equal(empty, found.iloc[:0].reset_index(drop=True))


def test_it_gives_what_the_program_writes(moving, frame, tmp_path):
    save_detector(tmp_path / "d", moving)
    frame.sort_values("entity", kind="stable").to_parquet(
        tmp_path / "in.parquet", index=False
    )
    output = tmp_path / "out.parquet"
    options = {"time_column": "time", "entity_column": "entity"}
    list(
        score_file(
            tmp_path / "in.parquet", detector=tmp_path / "d", output=output, **options
        )
    )
    found = score_partition(
        frame.sort_values("entity", kind="stable"), tmp_path / "d", **options
    )
    same(found, pd.read_parquet(output))


def test_a_frame_without_rows_or_columns_has_the_schema(small):
    nothing = score_partition(pd.DataFrame(), small)
    assert {k: str(v) for k, v in nothing.dtypes.items()} == SCORE_SCHEMA
    nothing = score_partition(
        pd.DataFrame({"t": []}, dtype=object), small, time_column="t"
    )
    assert nothing["time"].dtype == np.dtype("M8[ns]") and not len(nothing)


@pytest.mark.parametrize(
    "time",
    [
        clock(14).as_unit("us"),
        clock(14, tz="Europe/Berlin").as_unit("ms"),
        np.arange(14),
        np.arange(14) / 1.0,
        np.arange(14, dtype=np.uint8),
        pd.array(np.arange(14), "Int32"),
    ],
    ids=lambda time: str(time.dtype),
)
def test_times_keep_their_type(small, frame, time):
    rows = frame[frame["entity"] == "a"].assign(time=time)
    found = score_partition(rows, small, time_column="time")
    assert found["time"].dtype == rows["time"].dtype
    assert found["time"].tolist() == rows["time"].tolist()
    empty = score_partition(rows.iloc[:0], small, time_column="time")
    assert empty["time"].dtype == rows["time"].dtype


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_readings_are_put_on_the_grid_of_the_detector(small, zone):
    data = {"layout": "long", "step": "10s", "missing": "mask", "fill_limit": 2}
    detector = small._replace(card={"settings": {"data": data}}, step=10.0)
    rows = 60
    time = pd.date_range("2026-05-26", periods=rows, freq="5s", tz=zone).as_unit("s")
    frame = pd.DataFrame({"time": time, "tag": ["x", "y"] * (rows // 2)})
    frame["value"] = np.arange(rows) % 7.0
    frame = pd.concat([frame.assign(entity="a"), frame.assign(entity="n")])
    found = score_partition(frame, detector, time_column="time")
    assert found["entity"].tolist() == ["a"] * 31 + ["n"] * 31
    # Steps end at 0, 10, 20 s and so on; each but the first has two readings.
    ends = pd.date_range("2026-05-26", periods=31, freq="10s", tz=zone)
    assert found["time"].tolist() == [*ends, *ends]
    empty = score_partition(frame.iloc[:0], detector, time_column="time")
    assert empty.dtypes.to_dict() == found.dtypes.to_dict()
    data["step"] = 10.0  # of numbers
    by_number = frame.assign(time=5 * np.tile(np.arange(rows), 2))
    found = score_partition(by_number, detector, time_column="time")
    empty = score_partition(by_number.iloc[:0], detector, time_column="time")
    assert found["time"].dtype == empty["time"].dtype == np.float64


def test_rules_of_the_card_hold(small, frame):
    """Cells are filled and rows are sorted as for files; the frame stays as it is."""
    data = {"missing": "ffill", "order": "sort", "fill_limit": 1, "ignore": ["site"]}
    detector = small._replace(card={"settings": {"data": data}})
    frame.iloc[20, frame.columns.get_loc("x")] = np.nan
    filled = frame.assign(x=frame.groupby("entity")["x"].ffill())
    mixed = frame.iloc[::-1].assign(site="north")
    before = mixed.copy()
    found = score_partition(mixed, detector, time_column="time")
    pd.testing.assert_frame_equal(mixed, before)
    wanted = by_hand(small, filled, True)
    order = [np.flatnonzero(wanted["entity"] == e) for e in mixed["entity"].unique()]
    same(found, wanted.iloc[np.concatenate(order)])


@pytest.mark.parametrize(
    "names", [[1, 2], pd.Categorical(["1", "2"])], ids=["int", "cat"]
)
def test_names_become_text(small, frame, names):
    rows = frame[frame["entity"] == "b"].drop(columns="time")
    both = pd.concat([rows.assign(machine=name) for name in names], ignore_index=True)
    both["machine"] = both["machine"].astype(pd.Series(names).dtype)
    found = score_partition(both.drop(columns="entity"), small, entity_column="machine")
    assert found["entity"].tolist() == ["1"] * 30 + ["2"] * 30
    assert found["time"].tolist() == [*range(30)] * 2


def test_a_saved_detector_is_loaded_once_until_it_changes(
    small, frame, tmp_path, monkeypatch
):
    loads = []

    def count(path):
        loads.append(path)
        return load_detector(path)

    monkeypatch.setattr(storage, "load_detector", count)
    monkeypatch.chdir(tmp_path)
    save_detector("d", small)
    one = score_partition(frame, "d", time_column="time")
    pd.testing.assert_frame_equal(
        score_partition(frame, tmp_path / "d", time_column="time"), one
    )
    assert loads == [tmp_path / "d"]
    low = tuple(each._replace(tau=1.0) for each in small.thresholds)
    save_detector("d", small._replace(thresholds=low))
    assert (score_partition(frame, "d", time_column="time")["tau"] == 1).all()
    assert len(loads) == 2
    with pytest.raises(ArtifactError, match="nowhere"):
        score_partition(frame, "nowhere", time_column="time")


def test_engines_can_send_the_function_and_a_detector(small, frame):
    function, detector = pickle.loads(pickle.dumps((score_partition, small)))
    found = function(frame, detector, time_column="time")
    same(found, by_hand(small, frame, True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="entity"), r"frame has no column 'entity': its columns"),
        (lambda f: f.assign(entity=[None, *f["entity"][1:]]), "frame: row 1, column 1"),
        (lambda f: f.drop(columns="x"), "entity 'a': a: channels differ .*missing: x"),
        (lambda f: f.assign(w=1.0), "entity 'a': a: channels differ .*not expected: w"),
        (lambda f: f[f["entity"] == "z"].iloc[:3], "entity 'z': .*'z' has 3 rows, but not"),
        (
            lambda f: f.assign(x=f["x"].where(f["entity"] != "b")),
            r"entity 'b': row 1, column \d \('x'\): the value is missing",
        ),
        (
            lambda f: f.assign(x=np.where(f["entity"] == "z", "?", f["x"].astype(str))),
            r"entity 'z': row 1, column \d \('x'\): '\?' is not a number",
        ),
        (
            lambda f: pd.concat([f, f[f["entity"] == "b"]]),
            r"entity 'b': row 31, column \d \('time'\): .* is before",
        ),
        (
            lambda f: f.assign(time=f["time"].astype(str)),
            "entity 'a': the time column 'time' holds str: convert it",
        ),
        (lambda f: f.rename(columns={"time": "at"}), "entity 'a' has no column 'time'"),
        (lambda f: f.rename(columns={"x": "y"}), "frame: columns . and . are both named"),
        (lambda f: f.to_dict("list"), "frame is of type dict: give a DataFrame"),
    ],
)  # fmt: skip
def test_faults_name_the_machine(small, frame, change, message):
    with pytest.raises(DataError, match=message):
        score_partition(change(frame), small, time_column="time")


def test_times_must_be_named(small, frame):
    with pytest.raises(
        DataError, match="entity 'a': column 'time' holds times: name it"
    ):
        score_partition(frame, small)


def test_it_is_public():
    assert kdjax.score_partition is score_partition
    assert kdjax.SCORE_SCHEMA is SCORE_SCHEMA
