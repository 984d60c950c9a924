"""Rows that an engineer confirms as normal: what they change, and what stays as it was."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from kdjax.cli import main
from kdjax.data.series import Series
from kdjax.data.unchanged import runs_within
from kdjax.detection.alarming import EventRule
from kdjax.detection.detector import score_windows
from kdjax.detection.false_alarms import expected_events
from kdjax.detection.gaussian import (
    fit_gaussian,
    moments_of,
    updated_gaussian,
    without_channels,
)
from kdjax.detection.storage import load_detector
from kdjax.detection.tables import score_events, score_table
from kdjax.detection.thresholds import Rule, find_threshold
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.estimator import KDDetector
from kdjax.experiment.recalibrate import (
    ROUNDING,
    _with_causes,
    confirm_normal,
    recalibrated,
)

LENGTH, STRIDE, RATE = 10, 2, 0.05
NAMES = ("load", "dead", "flow")
OPTIONS = {"window_size": LENGTH, "stride": STRIDE, "false_alarm_rate": RATE}
FALSE, TRUE = (200, 206), (400, 403)  # rows of a false alarm and of a fault


def signals(rows, seed=0):
    rng, t = np.random.default_rng(seed), np.arange(rows)
    load = np.sin(t / 9) + rng.normal(0, 0.1, rows)
    flow = np.cos(t / 7) + rng.normal(0, 0.1, rows)
    index = pd.date_range("2026-01-01", periods=rows, freq="1min", name="time")
    return pd.DataFrame({"load": load, "dead": 4.0, "flow": flow}, index=index)


def later():
    """Rows with a rise of `load` that is normal and a fault of `flow`."""
    frame = signals(600, 1)
    frame.iloc[slice(*FALSE), 0] += 4
    frame.iloc[slice(*TRUE), 2] -= 5
    return frame


def fitted(method="quantile", detector="mahalanobis", **settings):
    if method == "budget":
        settings |= {"threshold.budget": "4/day"}
    given = {"threshold": method, "settings": settings}
    return KDDetector(detector=detector, **given, **OPTIONS).fit(signals(1000))


def series_of(detector, frame):
    time = frame.index.to_numpy().astype("datetime64[ns]")
    values = frame.to_numpy(np.float32)
    return Series(detector.entities[0], values, NAMES, time)


def alarms(detector, series, *, causal=False):
    table = score_table(detector, series, entity=series.entity, causal=causal)
    return table["alarm"].to_numpy() > 0


def event_of(alarm, row):
    """The rows in alarm around a row, as a span."""
    stop = row + int(np.argmin(alarm[row:]))
    return row - int(np.argmin(alarm[row::-1])) + 1, stop


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


# The Gaussian.


def test_a_gaussian_grows_by_further_residuals():
    rng = np.random.default_rng(0)
    # The last has no part in scores.
    rows = rng.normal(size=(64, 4)) @ np.triu(np.ones((4, 4)))
    new = rng.normal(3, 2, size=(16, 4))
    scored = np.array([True, True, True, False])
    before = without_channels(fit_gaussian(rows[:, :3]), rows.mean(axis=0), scored)
    found = updated_gaussian(before, moments_of(new), weight=0.25)
    assert_same([found.mean], [before.mean])
    whiten = before.whiten[:3, :3].astype(np.float64)
    away = (new - before.mean)[:, :3]
    wanted = np.linalg.inv(whiten.T @ whiten) + 0.25 * away.T @ away / len(away)
    inverse = found.whiten.T @ found.whiten
    np.testing.assert_allclose(inverse[:3, :3], np.linalg.inv(wanted), rtol=1e-4)
    assert not inverse[3].any() and not inverse[:, 3].any()


# τ and alarms.


@pytest.mark.parametrize("method", ["quantile", "conformal", "pot", "blocks", "budget"])
@pytest.mark.filterwarnings("ignore")
def test_a_confirmed_alarm_is_none_and_a_fault_still_is(method):
    detector = fitted(method).detector_
    series, causal = series_of(detector, later()), method == "budget"
    before = alarms(detector, series, causal=causal)
    span = np.array([event_of(before, 205)])
    (start, stop), fault = span[0], event_of(before, 405)
    assert FALSE[0] - 2 < start <= FALSE[0] + STRIDE and stop >= FALSE[1] + LENGTH - 1
    found, note = confirm_normal(detector, series, span)
    for each_row in (causal, True):  # in a stream as well
        after = alarms(found, series, causal=each_row)
        assert not after[start:stop].any() and after[slice(*fault)].any()
    tau, old = found.thresholds[0], detector.thresholds[0]
    assert tau == found.thresholds[1] and old.tau <= tau.tau <= 1.5 * old.tau
    # No score rises, and no other row begins to alarm.
    for frame in (later(), signals(600, 2)):
        some = series_of(detector, frame)
        old_scores, new_scores = (
            score_table(one, some, entity="X", causal=True)["window_score"].to_numpy()
            for one in (detector, found)
        )
        known = ~np.isnan(old_scores)
        assert known.sum() == 600 - LENGTH + 1
        assert (new_scores[known] <= old_scores[known] * (1 + 1e-5)).all()
        began = alarms(found, some, causal=causal) & ~alarms(
            detector, some, causal=causal
        )
        assert not began.any()
    assert (tau.method, tau.source, tau.spacing) == (method, "own", int(causal))
    # The rows before it are normal too, and windows from 9 rows before to its end hold one.
    first = start - LENGTH + 1
    own = np.arange(first - LENGTH + 1, stop)
    points = score_windows(found, 0, series.values, own)
    rows = own[:, None] + np.arange(LENGTH)
    held = (rows >= first) & (rows < stop)
    scores = np.where(held, points, -np.inf).max(axis=1)[:: 1 if causal else STRIDE]
    kept, blocks = detector.calibration[0], 5 if method == "blocks" else 1
    parts = [np.array_split(x, blocks) for x in (kept, scores.astype(np.float32))]
    every = np.concatenate([x for pair in zip(*parts, strict=True) for x in pair])
    if method not in ("blocks", "budget"):
        every = np.sort(every)
    np.testing.assert_allclose(found.calibration[0], every, rtol=1e-4)
    highest = np.where(held, points, -np.inf).max() * (1 + ROUNDING)
    assert tau.n == len(every) and tau.tau >= highest * (1 - 1e-6)
    if method == "quantile":
        rank = math.ceil(len(every) * (1 - RATE))
        assert tau.tau == pytest.approx(max(every[rank - 1], highest), rel=1e-4)
    assert f"X: τ {old.tau:.6g}" in note and f"-> {tau.tau:.6g} (" in note
    assert f"{before[start:stop].sum()} -> 0 of {stop - start} that were normal" in note
    count = (
        before.sum() - before[start:stop].sum(),
        alarms(found, series, causal=causal),
    )
    assert f", {count[0]} -> {count[1].sum()} of the others" in note
    said = note.partition("; expect ")[2].partition("; Σ")[0]
    if method in ("blocks", "budget"):
        rule = Rule(method, RATE, caution=3, overlap=5.0, per_day=4)
        spacing, gap = (1, LENGTH) if causal else (STRIDE, LENGTH)
        rule = rule._replace(events=EventRule(gap, spacing, 1440))
        expected = expected_events(found.calibration[0], rule, least=tau.tau)
        joined = len(every) - len(kept)
        text = f"{expected}, by {len(kept):,} previous scores and {joined:,} of these"
        assert f"expect {said}" == text
    else:
        assert not said
    assert found.card["confirmed_normal"]["X"][0]["note"] == note
    assert detector.thresholds[0] == old and "confirmed_normal" not in detector.card


def test_the_gaussian_takes_no_more_than_it_needs():
    detector = fitted().detector_
    series = series_of(detector, later())
    span = np.array([event_of(alarms(detector, series), 205)])
    found, note = confirm_normal(detector, series, span)
    share = float(note.split("Σ grows by ")[1].split(" ")[0])
    assert 0 < share < 1 and math.log2(share) == pytest.approx(
        round(math.log2(share)), abs=0.05
    )
    # By hand: half of that share leaves a row of the span in alarm.
    first, stop = span[0, 0] - LENGTH + 1, span[0, 1]
    values = (series.values - detector.scalers.offset[0]) / detector.scalers.scale[0]
    starts = np.arange(first - LENGTH + 1, stop)
    rows = (starts[:, None] + np.arange(LENGTH)).ravel()
    rows = rows[(rows >= first) & (rows < stop)]
    usual = type(detector.gaussians)(*(field[0] for field in detector.gaussians))
    scores = (((values - usual.mean) @ usual.whiten.T) ** 2).sum(axis=1)
    rows = rows[
        scores[rows] > detector.thresholds[0].tau
    ]  # those that raised the alarm
    new = moments_of(values[rows])
    weight, most = 2.0 ** round(math.log2(share)), []
    for part in (weight, weight / 2):
        gaussian = updated_gaussian(usual, new, weight=part)
        away = (values[first:stop] - gaussian.mean) @ gaussian.whiten.T
        most.append((away**2).sum(axis=1).max())
        if part == weight:
            np.testing.assert_allclose(
                found.gaussians.whiten[0], gaussian.whiten, rtol=1e-3, atol=1e-5
            )
            assert_same(found.gaussians.mean, detector.gaussians.mean)
    assert most[0] <= detector.thresholds[0].tau < most[1]
    assert_same(found.gaussians.whiten[:1], found.gaussians.whiten[1:])


def test_rows_that_never_alarmed_leave_the_gaussian_as_it_is():
    detector = fitted().detector_
    series = series_of(detector, later())
    found, note = confirm_normal(detector, series, np.array([[30, 34]]))
    assert_same(found.gaussians, detector.gaussians)
    # Windows that hold a row from 21 to 33, one every second row.
    assert found.thresholds[0].n == detector.thresholds[0].n + 11
    assert "Σ grows" not in note and "0 -> 0 of 4 that were normal" in note


def test_an_alarm_of_long_before_the_span_stays():
    detector = fitted().detector_
    frame = later()
    frame.iloc[185:198, 2] -= 5  # a fault that goes on until shortly before
    series = series_of(detector, frame)
    before = alarms(detector, series)
    with pytest.warns(UserWarning, match="confirm_normal: some are still in alarm"):
        found = fitted().confirm_normal(frame, [(frame.index[200], frame.index[214])])
    after = alarms(found.detector_, series)
    assert before[186:215].all() and after[186:206].all()
    assert not after[208:215].any()
    found, note = confirm_normal(detector, series, np.array([[200, 215]]))
    said = (
        "; warning: some are still in alarm, since their windows have rows outside the"
    )
    assert said in note


def test_an_alarm_goes_with_the_rows_that_caused_it():
    """Also those before the span, which `score`'s event need not hold."""
    detector = fitted("budget").detector_
    series = series_of(detector, later())
    stream = event_of(alarms(detector, series, causal=True), 205)
    for late in range(4):  # rows
        span = np.array([[stream[0] + late, stream[1]]])
        found, _ = confirm_normal(detector, series, span)
        assert not alarms(found, series, causal=True)[slice(*stream)].any()
    for place in range(2):
        estimator, frame = fitted("budget"), later()
        events = estimator.detect(frame)
        events = events[events["start"].between(frame.index[200], frame.index[215])]
        estimator.confirm_normal(frame, events.iloc[[min(place, len(events) - 1)]])
        after = alarms(estimator.detector_, series, causal=True)
        assert not after[slice(*stream)].any()


@pytest.mark.parametrize(
    ("runs", "spans", "wanted"),
    [
        ([(205, 215)], [(212, 215)], [(196, 215)]),  # from L - 1 before the alarm
        ([(203, 215)], [(212, 215)], [(194, 215)]),
        ([(202, 215)], [(212, 215)], [(212, 215)]),  # it began L rows before
        ([(205, 212)], [(212, 216)], [(196, 216)]),  # a stride of two rows
        ([(205, 211)], [(212, 216)], [(211, 216)]),
        ([(207, 215), (195, 200)], [(207, 215)], [(200, 215)]),  # another one before
        ([(224, 226)], [(212, 216), (227, 229)], [(203, 216), (218, 229)]),
        ([(225, 226)], [(212, 216), (228, 230)], [(203, 216), (226, 230)]),
        ([(104, 108)], [(104, 108)], [(102, 108)]),  # a gap before
    ],
)
def test_the_rows_that_go_with_a_span(runs, spans, wanted):
    detector = fitted().detector_
    series = series_of(detector, later())._replace(excluded=np.array([[100, 102]]))
    alarm, rows = np.zeros((2, 600), bool)
    for marked, pairs in ((alarm, runs), (rows, wanted)):
        for start, stop in pairs:
            marked[start:stop] = True
    found = _with_causes(detector, series, np.array(spans), alarm)
    np.testing.assert_array_equal(found, rows)


def test_spans_that_change_nothing_are_refused(capsys, saved):
    frame = pd.read_csv(saved / "later.csv", index_col="time", parse_dates=["time"])
    frame.iloc[185:206, 0] += 4
    detector = fitted().detector_
    with pytest.raises(DataError, match="7 confirmed rows in alarm, and nothing would"):
        confirm_normal(detector, series_of(detector, frame), np.array([[208, 215]]))
    frame.reset_index().to_csv(saved / "long.csv", index=False)
    text = f"start,end\n{frame.index[208]},{frame.index[214]}\n"
    code, out, err = run(capsys, saved, text, rows="long", output="refused")
    assert (code, out) == (2, "") and "Begin the spans at the cause" in err


@pytest.mark.parametrize(("method", "spacing"), [("quantile", 0), ("budget", 1)])
def test_a_fixed_threshold_stays(method, spacing):
    estimator = fitted(method)
    estimator.set_threshold(estimator.threshold_ * 1.1)
    detector, frame = estimator.detector_, later()
    frame.iloc[205, 0] += 40 * spacing
    series = series_of(detector, frame)
    span = np.array([event_of(alarms(detector, series), 207)])
    found, note = confirm_normal(detector, series, span)
    assert found.thresholds[0].tau == detector.thresholds[0].tau
    assert found.thresholds[0].method == "fixed"
    # Of one far row among many the mean product is too small.
    said = "; warning: some are still in alarm, since τ is fixed: set threshold" in note
    assert said == (method == "budget") != (" -> 0 of " in note)
    assert found.thresholds[0].spacing == spacing
    # Windows from 18 rows before the span to its end hold a row of it or before.
    windows = np.diff(span)[0, 0] + 2 * LENGTH - 2
    joined = found.thresholds[0].n - len(detector.calibration[0])
    assert joined == math.ceil(windows / (spacing or STRIDE))


@pytest.fixture(scope="module")
def classifier():
    steps = {"classifier.steps": 2, "classifier.networks": 2}
    return fitted("blocks", "classifier", **steps).detector_


def test_a_classifier_takes_them_into_its_threshold_only(classifier):
    frame = later()
    frame.iloc[slice(*FALSE), 1] = 5.0
    series = series_of(classifier, frame)
    low = find_threshold(classifier.calibration[0], Rule("fixed", value=1e-9))
    for tau in (classifier.thresholds[0], low._replace(method="blocks")):
        detector = classifier._replace(thresholds=(tau, tau))
        found, note = confirm_normal(detector, series, np.array([FALSE]))
        starts = np.arange(FALSE[0] - 2 * LENGTH + 2, FALSE[1])
        if tau.tau == 1e-9:  # all rows alarm: none before the span is taken for normal
            starts = np.arange(FALSE[0] - LENGTH + 1, FALSE[1])
        highest = score_windows(detector, 0, series.values, starts).max() * (
            1 + ROUNDING
        )
        again = found.thresholds[0]
        assert again.tau >= max(tau.tau, highest * (1 - 1e-6))
        factor = (
            f"; warning: τ is {again.tau / tau.tau:.3g} times the previous τ, for all"
        )
        assert (factor in note) == (again.tau > 1.05 * tau.tau)
        raised = again.tau == pytest.approx(highest, rel=1e-6)
        assert raised == again.detail.endswith(
            "raised to the highest score of confirmed rows"
        )
        assert not alarms(found, series)[slice(*FALSE)].any()
        assert_same(found.gaussians, detector.gaussians)
        # Its networks are held at the value: it would not be silent of its own.
        assert_same(found.constant, detector.constant)
        assert "; still checked, since classifier has it: dead" in note
        rule = Rule(
            "blocks", RATE, caution=3, overlap=5.0, events=EventRule(10, 2, 1440)
        )
        expected = expected_events(found.calibration[0], rule, least=again.tau)
        assert (
            f"; {expected}, by {len(classifier.calibration[0]):,} previous scores"
            in note
        )


def test_expected_events_are_of_thresholds_that_are_raised():
    scores = np.tile([1.0, 1.0, 9.0, 1.0], 50)
    rule = Rule("quantile", 0.3, events=EventRule(gap=1))
    assert expected_events(scores, rule).number > 0
    assert expected_events(scores, rule, least=9.0).number == 0


# Limits that need no score.


def test_limits_take_the_rows_too():
    detector = fitted().detector_
    frame = later()
    frame.iloc[200:230, 1] = 5.0
    frame.iloc[300:340, 2] = frame.iloc[300, 2]
    series = series_of(detector, frame)

    def kinds(detector):
        table = score_table(detector, series, entity="X")
        found = score_events(detector, series, table, entity="X")
        return set(found["kind"]) - {"score"}

    assert kinds(detector) == {"constant_moved", "frozen"}
    assert detector.constant[0, 1] == 4 and detector.unchanged[0].tolist() == [
        1,
        0,
        1,
        1,
    ]
    spans = np.array([[200, 230], [320, 340]])
    found, note = confirm_normal(detector, series, spans)
    assert kinds(found) == set()
    assert np.isnan(found.constant).all() and not found.gaussians.whiten[:, 1].any()
    # The run began before the span.
    assert found.unchanged.tolist() == [[1, 0, 40, 1]] * 2
    assert "; flow unchanged 1 -> 40 rows" in note
    assert "; no longer checked as constant, nor scored: dead" in note
    inside = np.r_[series.values[200:230], series.values[320:340]]
    np.testing.assert_array_equal(
        found.ranges.high[0], np.maximum(detector.ranges.high[0], inside.max(axis=0))
    )
    np.testing.assert_array_equal(
        found.ranges.low[1], np.minimum(detector.ranges.low[1], inside.min(axis=0))
    )


def test_runs_are_counted_from_where_they_began():
    values = np.array([[1.0], [1], [1], [2], [2], [2], [2]])
    rows = np.array([0, 0, 1, 0, 0, 1, 0], bool)
    assert runs_within(values, np.array([[0, 7]]), rows).tolist() == [3, 3]
    assert runs_within(values, np.array([[0, 4], [4, 7]]), rows).tolist() == [3, 3]
    assert runs_within(values, np.array([[1, 4], [5, 7]]), rows).tolist() == [2, 2]


# A machine that started with pooled values.


def test_a_machine_on_its_first_day_keeps_what_was_confirmed():
    detector = fitted().detector_
    new = series_of(detector, later())._replace(entity="b")
    first = new._replace(values=new.values[:30], time=new.time[:30])
    started, _ = recalibrated(detector, first, threshold={})
    found, _ = confirm_normal(started, new, np.array([[200, 216]]))
    assert_same(found.gaussians.whiten[[0, 2]], detector.gaussians.whiten)
    assert not np.array_equal(found.gaussians.whiten[1], detector.gaussians.whiten[1])
    assert found.thresholds[1].source == "pooled"
    again, _ = recalibrated(found, first, threshold={})
    assert_same(again.gaussians, found.gaussians)
    assert again.thresholds == found.thresholds
    clean = series_of(detector, signals(900, 3))._replace(entity="b")
    again, _ = recalibrated(again, clean, threshold={})
    assert again.thresholds[1].source == "own"


# Refusals.


def test_what_cannot_be_confirmed_is_refused(small):
    detector = fitted().detector_
    series, span = series_of(detector, later()), np.array([[200, 206]])
    cut = series._replace(excluded=np.array([[100, 110], [205, 210]]))
    with pytest.raises(
        DataError, match="row 205 .from 0. is both excluded and confirm"
    ):
        confirm_normal(detector, cut, span)
    with pytest.raises(
        DataError, match="the detector has no entity 'b': give one of X"
    ):
        confirm_normal(detector, series._replace(entity="b"), span)
    short = series._replace(excluded=np.array([[195, 200], [206, 215]]))
    with pytest.raises(DataError, match="no window of 10 rows without a gap has rows"):
        confirm_normal(detector, short, span)
    holed = series.values.copy()
    holed[185:206] = np.nan
    with pytest.raises(DataError, match="and have values: give more rows around them"):
        confirm_normal(detector, series._replace(values=holed), span)
    with pytest.raises(
        ConfigError, match="no calibration scores for 'quantile' to add"
    ):
        confirm_normal(detector._replace(calibration=()), series, span)
    other = [tau._replace(method="conformal") for tau in detector.thresholds]
    with pytest.raises(ConfigError, match="calibrate it on clean rows first"):
        confirm_normal(detector._replace(thresholds=tuple(other)), series, span)
    with pytest.raises(ArtifactError, match="has no settings"):
        confirm_normal(small, series, span)


# The program and the estimator.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    fitted().save(folder / "detector")
    later().reset_index().to_csv(folder / "later.csv", index=False)
    return folder


def run(capsys, folder, spans, *flags, output="again", rows="later"):
    (folder / "spans.csv").write_text(spans)
    code = main([
        "kdjax", "calibrate", str(folder / f"{rows}.csv"), f"--detector={folder / 'detector'}",
        f"--output={folder / output}", f"--confirmed_normal={folder / 'spans.csv'}", *flags,
    ])  # fmt: skip
    return (code, *capsys.readouterr())


def test_confirm_by_the_program(capsys, saved):
    detector = load_detector(saved / "detector")
    series = series_of(detector, later())
    start, stop = event_of(alarms(detector, series), 205)
    ends = [str(series.time[row])[:19] for row in (start, stop - 1)]
    text = f"start,end,entity,reason\n{ends[0]},{ends[1]},X,tool change\n"
    code, out, err = run(capsys, saved, text)
    assert (code, err) == (0, "") and out.startswith("X: τ ")
    wanted, note = confirm_normal(detector, series, np.array([[start, stop]]))
    assert out.splitlines() == [note, f"Written: {saved / 'again'}"]
    found = load_detector(saved / "again")
    assert found.thresholds == wanted.thresholds
    assert_same(found.gaussians, wanted.gaussians)
    assert_same(found.calibration, wanted.calibration)
    # Lines of the events that `score` writes, under the name of the file.
    named = series._replace(entity="later")
    table = score_table(detector, named, entity="X")
    lines = score_events(detector, named, table, entity="X")
    line = lines[lines["start"] == table["time"][start]].to_csv(index=False)
    code, out, _ = run(capsys, saved, line, output="same")
    assert code == 0 and out.splitlines()[0] == note
    card = json.loads((saved / "again" / "card.json").read_text("utf-8"))
    assert card["confirmed_normal"]["X"][0]["rows"] == stop - start
    output = saved / "scores.csv"
    flags = f"--detector={saved / 'again'}", f"--output={output}"
    assert main(["kdjax", "score", str(saved / "later.csv"), *flags]) == 0
    table = pd.read_csv(output)
    assert table["alarm"][start:stop].sum() == 0 < table["alarm"][400:410].sum()


FIRST = "2026-01-01T03:20:00,2026-01-01T03:30:00"


@pytest.mark.parametrize(
    ("spans", "flags", "said"),
    [
        ("start,end\n", (), "spans.csv"),
        (
            "start,end\n2027-01-01,2027-01-02\n",
            (),
            "1 of 1 span without a row of the data",
        ),
        (
            f"start,end\n{FIRST}\n2027-01-01,2027-01-02\n",
            (),
            "1 of 2 spans without a row",
        ),
        (
            f"start,end,entity\n{FIRST},b\n",
            (),
            "the data have no entity 'b': expected X",
        ),
        ("begin,end\n1,2\n", (), "expected start and end"),
        (f"start,end\n{FIRST}\n", ("--entity=b",), "the detector has no entity 'b'"),
        (
            f"start,end\n{FIRST}\n",
            ("--config.threshold.method=pot",),
            "doesn't change the rule",
        ),
    ],
)
def test_spans_are_refused_in_one_line(capsys, saved, spans, flags, said):
    code, out, err = run(capsys, saved, spans, *flags, output="refused")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert said in err and not (saved / "refused").exists()


def test_confirm_by_the_estimator():
    frame = later()
    first, second, third = fitted(), fitted(), fitted()
    events = first.detect(frame)
    own = events[events["start"] <= frame.index[205]].iloc[[-1]]
    start, stop = (frame.index.get_loc(own[name].iloc[0]) for name in ("start", "end"))
    assert first.predict(frame)[start : stop + 1].all()
    found = first.confirm_normal(frame, own)
    assert found is first and not first.predict(frame)[start : stop + 1].any()
    assert first.predict(frame)[slice(*TRUE)].any()
    second.confirm_normal(frame, [(frame.index[start], frame.index[stop])])
    assert second.threshold_ == first.threshold_
    third.confirm_normal(frame.reset_index(drop=True), [(start, stop)])
    assert third.threshold_ == first.threshold_
    for spans in ([], [(5000, 5001)], [("x", "y")]):
        with pytest.raises(DataError, match="spans with a row of X each"):
            third.confirm_normal(frame.reset_index(drop=True), spans)
