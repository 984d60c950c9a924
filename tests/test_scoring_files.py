"""Files scored by a saved detector: formats, entities, columns, and what is said."""

import gzip

import numpy as np
import pandas as pd
import pytest

from kdjax.data.series import Series
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.storage import save_detector
from kdjax.detection.tables import score_table
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.scoring.files import score_file


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        (2 * rng.normal(size=(14, 2))).astype(np.float32), columns=["x", "y"]
    )


@pytest.fixture
def score(tmp_path, small):
    """Scores a frame in a file; gives the table read back and the lines said."""
    save_detector(tmp_path / "detector", small)

    def run(frame, name="plant.csv", output="scores.csv", **options):
        path, target = tmp_path / name, tmp_path / output
        if name.endswith(".parquet"):
            frame.to_parquet(path)
        else:
            path.write_text(frame.to_csv(index=False))
        said = list(
            score_file(path, detector=tmp_path / "detector", output=target, **options)
        )
        read = pd.read_parquet if output.endswith(".parquet") else pd.read_csv
        return read(target), said

    return run


def table_of(small, frame, entity, used, **options):
    values = frame[["x", "y"]].to_numpy(np.float32)
    return score_table(
        small, Series(entity, values, ("x", "y")), entity=used, **options
    )


@pytest.mark.parametrize("output", ["scores.csv", "scores.parquet"])
@pytest.mark.parametrize("causal", [False, True])
def test_each_row_is_scored(score, small, frame, output, causal):
    table, _ = score(frame, output=output, causal=causal)
    wanted = table_of(small, frame, "plant", "pooled", causal=causal)
    pd.testing.assert_frame_equal(
        table, wanted, check_dtype=False, check_categorical=False, rtol=1e-12
    )
    assert len(table) == len(frame)


def test_what_is_said(score, tmp_path, frame):
    table, said = score(frame)
    output = tmp_path / "scores.csv"
    events = len(pd.read_csv(f"{output}.events.csv"))
    assert events == 1
    assert said == [
        "plant: 14 rows scored with the detector's threshold",
        f"{output}: {table['alarm'].sum()} of 14 rows in alarm, {events} event",
    ]


def test_rows_of_another_step_are_refused_before_a_word(small, tmp_path, frame):
    save_detector(tmp_path / "minutes", small._replace(step=60.0))
    path, heard = tmp_path / "a.csv", []
    times = pd.date_range("2026-01-01", periods=len(frame), freq="h")
    frame.assign(time=times).to_csv(path, index=False)
    options = {"detector": tmp_path / "minutes", "output": tmp_path / "scores.csv"}
    with pytest.raises(DataError, match="step"):
        score_file(path, log=heard.append, **options)
    assert heard == []


def test_the_files_name_is_its_entity(score, small, frame):
    table, said = score(frame, name="a.csv")
    assert said[0] == "a: 14 rows scored with the threshold of a"
    assert np.allclose(table["score"], table_of(small, frame, "a", "a")["score"])


def test_an_entity_given_wins(score, small, frame):
    table, said = score(frame, name="other.csv", entity="a")
    assert said[0] == "other: 14 rows scored with the threshold of a"
    assert np.allclose(table["score"], table_of(small, frame, "a", "a")["score"])
    assert set(table["entity"]) == {"other"}
    table, said = score(frame, name="a.csv", entity="pooled")
    assert said[0] == "a: 14 rows scored with the detector's threshold"


def test_several_entities_have_a_pooled_threshold(small, frame, tmp_path):
    def twice(fields):
        return type(fields)(*(np.concatenate([f[:1], f]) for f in fields))

    both = small._replace(
        entities=("a", "b"),
        scalers=twice(small.scalers),
        gaussians=twice(small.gaussians),
        thresholds=(small.thresholds[0], *small.thresholds),
    )
    save_detector(tmp_path / "both", both)
    path = tmp_path / "new.csv"
    frame.to_csv(path, index=False)
    output = tmp_path / "s.csv"
    (said, *_) = score_file(path, detector=tmp_path / "both", output=output)
    assert said == "new: 14 rows scored with the pooled threshold"


def test_an_entity_column_parts_the_rows(score, small, frame):
    mixed = pd.concat([frame.assign(unit="a"), frame.assign(unit="new")])
    table, said = score(mixed, entity_column="unit")
    assert said[:2] == [
        "a: 14 rows scored with the threshold of a",
        "new: 14 rows scored with the detector's threshold",
    ]
    wanted = [table_of(small, frame, "a", "a"), table_of(small, frame, "new", "pooled")]
    wanted = pd.concat(wanted, ignore_index=True)
    pd.testing.assert_frame_equal(
        table, wanted, check_dtype=False, check_categorical=False, rtol=1e-12
    )


def test_gzip_is_read(score, small, tmp_path, frame):
    score(frame)
    path, output = tmp_path / "a.csv.gz", tmp_path / "packed.csv"
    path.write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
    heard = []
    options = {"detector": tmp_path / "detector", "output": output}
    said = score_file(path, log=heard.append, **options)
    assert said == heard and output.exists()
    assert said[0].startswith("a: 14 rows scored with the threshold of a")
    wanted = table_of(small, frame, "a", "a")["score"]
    assert np.allclose(pd.read_csv(output)["score"], wanted)


def test_parquet_is_read(score, small, frame):
    table, _ = score(frame, name="a.parquet")
    assert np.allclose(table["score"], table_of(small, frame, "a", "a")["score"])


def test_columns_in_another_order_are_matched_by_name(score, frame):
    wanted, _ = score(frame)
    table, _ = score(frame[["y", "x"]])
    pd.testing.assert_frame_equal(table, wanted)


def test_wrong_channels_are_refused(score, tmp_path, frame):
    with pytest.raises(
        DataError, match="plant: channels differ.*missing: y; not exp.*z"
    ):
        score(frame.rename(columns={"y": "z"}))
    with pytest.raises(DataError, match="; missing: y. Rename"):
        score(frame[["x"]])
    assert not (tmp_path / "scores.csv").exists()


def test_a_label_column_is_left_out_only_where_named(score, frame):
    labelled = frame.assign(label=0)
    wanted, _ = score(frame)
    with pytest.raises(DataError, match="not expected: label"):
        score(labelled)
    table, _ = score(labelled, label_column="label")
    pd.testing.assert_frame_equal(table, wanted)


def test_times_are_kept(score, frame):
    stamped = frame.assign(when=pd.date_range("2024-01-01", periods=14, freq="1min"))
    table, _ = score(stamped, time_column="when", output="scores.parquet")
    assert (table["time"] == stamped["when"]).all()
    # Numbers are a time only where they are said to be.
    counted = frame.assign(clock=np.arange(14) * 60.0)
    table, _ = score(counted, time_column="clock")
    assert (table["time"] == counted["clock"]).all()
    with pytest.raises(DataError, match="not expected: clock"):
        score(counted)
    table, _ = score(stamped, output="scores.csv")
    assert table["time"][1] == "2024-01-01 00:01:00"


def test_an_infinite_score_is_written_as_inf(score, tmp_path, frame):
    frame.loc[5, "x"] = 1e30
    table, said = score(frame)
    line = (tmp_path / "scores.csv").read_text().splitlines()[6]
    assert line.split(",")[2] == "inf"
    assert np.isinf(table["score"][5])
    assert "in alarm" in said[-1]


def test_unknown_rows_have_empty_cells(score, tmp_path, frame):
    score(frame, causal=True)
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "entity,time,score,window_score,tau,alarm,state"
    assert lines[1] == "plant,0,,,12.0,0,unknown"


def test_a_failure_leaves_an_older_output_alone(score, tmp_path, frame):
    score(frame)
    before = (tmp_path / "scores.csv").read_bytes()
    with pytest.raises(DataError, match="but not the 4 successive rows of a window"):
        score(frame[:3])
    assert (tmp_path / "scores.csv").read_bytes() == before


@pytest.mark.parametrize("value", ["", "nan", "inf", "1e39"])
def test_rows_without_numbers_are_refused_with_their_place(score, frame, value):
    text = frame.astype(str)
    text.loc[3, "y"] = value
    with pytest.raises(DataError, match=r"row 4 \(line 5\), column 2 \('y'\)"):
        score(text)


def test_a_missing_detector_is_refused(tmp_path, frame):
    with pytest.raises(ArtifactError, match="none is not a folder"):
        score_file(tmp_path / "x.csv", detector=tmp_path / "none", output="o.csv")


# Events, contributions, and how a file is read.


def test_events_lie_beside_the_scores(score, small, tmp_path, frame):
    """Under the pooled entry a row's score is x² + y², and τ is 12.

    Windows start at 0, 3, 6, 9 and 10, so rows 8 and 9 are known of from row 9 on, and
    the window that ends with the last row has neither. Row 8 is the largest, and 9 the
    largest of those in alarm.
    """
    frame = 0.01 * frame
    frame["y"] = frame["y"].where(
        ~frame.index.isin([8, 9]), [0.0] * 8 + [60, 50] + [0.0] * 4
    )
    table, said = score(frame)
    events = pd.read_csv(tmp_path / "scores.csv.events.csv")
    assert list(events.columns) == [
        "entity", "start", "end", "severity", "peak", "channels", "id", "kind",
    ]  # fmt: skip
    assert np.flatnonzero(table["alarm"]).tolist() == [9, 10, 11, 12]
    (event,) = events.itertuples(index=False)
    known = ("plant", 9, 12, pytest.approx(300, rel=1e-3), 9, "y;x")
    assert tuple(event) == (*known, event.id, "score")
    assert said[-1].endswith("4 of 14 rows in alarm, 1 event")


def test_an_event_that_ends_at_midnight_leaves_out_no_day(score, tmp_path, frame):
    frame = 0.01 * pd.concat([frame] * 3, ignore_index=True)
    frame.loc[[8, 9], "y"] = [60, 50]
    table, _ = score(frame)
    rows = np.flatnonzero(table["alarm"])
    midnight = pd.Timestamp("2026-01-02")
    times = midnight + (np.arange(len(frame)) - rows[-1]) * pd.Timedelta("10min")
    score(frame.assign(time=times))
    spans = tmp_path / "scores.csv.events.csv"
    assert ",2026-01-02 00:00:00," in spans.read_text("utf-8")
    table, _ = score(frame.assign(time=times), output="again.csv", exclude=spans)
    unknown = table["state"] == "unknown"
    assert unknown[rows].all() and not unknown[rows[-1] + 6 :].any()


@pytest.mark.parametrize("output", ["scores.csv", "scores.parquet"])
def test_an_entity_without_events_is_no_hindrance(score, tmp_path, frame, output):
    calm = (0.01 * frame).assign(unit="calm")
    loud = frame.assign(unit="loud")
    loud.loc[8:9, "y"] = 60.0
    both = pd.concat([calm, loud], ignore_index=True)
    table, _ = score(both, output=output, entity_column="unit")
    events = pd.read_csv(tmp_path / f"{output}.events.csv")
    assert set(events["entity"]) == {"loud"} and len(table) == 28
    score(calm, output=output, entity_column="unit")
    assert len(pd.read_csv(tmp_path / f"{output}.events.csv")) == 0


def test_contributions_are_a_column_a_channel(score, frame):
    table, _ = score(frame, contributions=True)
    parts = table[["contribution:x", "contribution:y"]]
    np.testing.assert_allclose(parts.sum(axis=1), table["score"], rtol=1e-4)
    plain, _ = score(frame)
    assert not [name for name in plain.columns if name.startswith("contribution:")]


def test_scores_can_be_divided_in_another_way(tmp_path, small, frame):
    whiten = np.float32([[1, 0], [-2, 1]])
    tilted = small._replace(
        gaussians=Gaussian(
            small.gaussians.mean, np.stack([whiten] * len(small.thresholds))
        )
    )
    save_detector(tmp_path / "tilted", tilted)
    frame.to_csv(tmp_path / "a.csv", index=False)
    options = {"detector": tmp_path / "tilted", "output": tmp_path / "o.csv"}
    parts = {}
    for attribution in ("", "correlation", "conditional"):
        list(
            score_file(
                tmp_path / "a.csv",
                contributions=True,
                attribution=attribution,
                **options,
            )
        )
        parts[attribution] = pd.read_csv(tmp_path / "o.csv").filter(
            like="contribution:"
        )
    pd.testing.assert_frame_equal(parts[""], parts["correlation"])
    assert not np.allclose(parts["correlation"], parts["conditional"])
    with pytest.raises(
        ConfigError, match="attribution='guess' is unknown: use one of corr"
    ):
        list(score_file(tmp_path / "a.csv", attribution="guess", **options))


def test_a_file_is_read_as_the_training_file_was(tmp_path, small, frame):
    frame.loc[5, "y"] = np.nan
    frame.insert(0, "time", np.arange(14.0)[::-1])
    path, output = tmp_path / "a.csv", tmp_path / "o.csv"
    frame.to_csv(path, index=False)
    reading = {"missing": "mask", "order": "sort", "duplicates": "error"}
    card = {"title": "by hand", "settings": {"data": reading}}
    save_detector(tmp_path / "d", small._replace(card=card))
    said = list(score_file(path, detector=tmp_path / "d", output=output))
    assert "a: 1 of 28 values missing" in said
    assert pd.read_csv(output)["time"].tolist() == list(range(14))
    with pytest.raises(DataError, match="the value is missing"):
        options = {"missing": "error", "output": tmp_path / "no.csv"}
        list(score_file(path, detector=tmp_path / "d", **options))
    assert not (tmp_path / "no.csv").exists()
    save_detector(tmp_path / "strict", small)
    with pytest.raises(DataError, match="time"):
        list(score_file(path, detector=tmp_path / "strict", output=output))


def test_excluded_rows_have_no_score(score, tmp_path, frame):
    frame.insert(0, "time", np.arange(14.0))
    (tmp_path / "spans.csv").write_text("start,end\n6,8\n")
    table, said = score(frame, name="a.csv", exclude=tmp_path / "spans.csv")
    assert np.flatnonzero(table["score"].isna()).tolist() == [6, 7, 8]
    assert (table.loc[6:8, "state"] == "unknown").all()
    assert "a: 3 of 14 rows excluded (spans.csv)" in said
