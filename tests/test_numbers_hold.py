"""Numbers that must not depend on what doesn't matter, and order where there is one.

Scores are no numbers below 0 and no NaN; they don't depend on how a series was cut, how
windows were batched, how many devices there were, what else was scored in the same call,
or the order and units of the channels. Moments merge to those of the whole. A threshold
falls with the rate and the count, and alarms with the threshold.
"""

import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdjax import (
    KDDetector,
    load_sample,
    save_detector,
    score_table,
)
from kdjax.cli import main
from kdjax.config import get_config, override, resolve
from kdjax.data.prepared import prepare
from kdjax.data.scaler import Scaler
from kdjax.data.series import Dataset, Series
from kdjax.data.splits import window_starts
from kdjax.detection.detector import Detector, score_windows
from kdjax.detection.gaussian import (
    Gaussian,
    gaussian_from_moments,
    merge_all,
    moments_of,
)
from kdjax.detection.scores import window_scores
from kdjax.detection.thresholds import (
    Rule,
    Threshold,
    find_threshold,
    needed,
)
from kdjax.experiment.assemble import calibration_rules
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.classifier import init_network
from kdjax.models.residual import ResidualModel, join_models, residual_names
from kdjax.training.sharding import batch_mesh

ROOT = Path(__file__).parent.parent

D, L, STRIDE = 3, 8, 3
CHANNELS = ("load", "heat", "flow")
ARCH = Architecture(D, (4,))
# Batches of another size, or shared by more devices, add in another order.
ROUNDING = 1e-5


def made_up(rows, seed=0):
    """Three channels `[N, 3]` float32 of different units, two of which go together."""
    rng = np.random.default_rng(seed)
    load = np.sin(np.arange(rows) / 7) + 0.3 * rng.normal(size=rows)
    heat = 20 + 3 * np.roll(load, 2) + 0.5 * rng.normal(size=rows)
    flow = 0.01 * rng.normal(size=rows)
    return np.stack([load, heat, flow], axis=1).astype(np.float32)


def series(values, entity="a"):
    return Series(entity, values, CHANNELS)


def net(seed=0):
    params = network(ARCH).init(jax.random.key(seed))
    return ResidualModel("autoencoder", jax.tree.map(np.asarray, params), ARCH)


def classifier():
    rng = np.random.default_rng(0)
    networks = [init_network(rng, D) for _ in range(2)]
    params = {
        "low": np.full(D, -3, np.float32),
        "scale": np.full(D, 6, np.float32),
        "mean": np.full(D, 0.5, np.float32),
        "level": np.float32([0, 1]),
        "networks": jax.tree.map(lambda *own: np.stack(own), *networks),
    }
    return ResidualModel("classifier", params)


NETWORK = "autoencoder+difference"
MODELS = {
    "mahalanobis": ResidualModel("mahalanobis", {}),
    "moving_average": ResidualModel("moving_average", {}),
    "autoencoder": net(),
    NETWORK: join_models([net(), ResidualModel("difference", {})]),
    "classifier": classifier(),
}


def detector_of(kind, entities=("a",)):
    """A detector whose Normals and scales differ from entity to entity."""
    model = MODELS[kind]
    width, places = len(residual_names(kind, CHANNELS)), len(entities) + 1
    rng = np.random.default_rng(1)
    whiten = [
        2 * np.eye(width) + np.tril(rng.normal(size=(width, width)), -1) / width
        for _ in range(places)
    ]
    offset = np.tile(np.float32([0, 20, 0]), (places, 1))
    scale = np.outer(1 + np.arange(places), [1, 3, 0.01]).astype(np.float32)
    return Detector(
        model=model, channels=CHANNELS, window=L, stride=STRIDE, allowed_points=0,
        max_gap=5.0, entities=entities, scalers=Scaler(offset, scale),
        gaussians=Gaussian(
            np.full((places, width), 0.1, np.float32), np.float32(whiten)
        ),
        thresholds=(Threshold(20.0, "conformal", 0.1, 20, 19, "own"),) * places,
        card={"title": "by hand", "data": {"name": "none"}},
    )  # fmt: skip


each_kind = pytest.mark.parametrize(
    "kind", ["mahalanobis", "moving_average", NETWORK, "classifier"]
)


def close(got, wanted, tolerance=ROUNDING):
    assert np.isfinite(wanted).all()
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=0)


# Scores of whatever is finite.

SPIKES = (1e15, -1e15, 3e38, -3e38)


def values_of(elements, rows=20):
    return arrays(np.float32, (rows, D), elements=elements)


calm = st.floats(-30, 30, width=32)


@each_kind
@settings(deadline=None, max_examples=25)
@given(values_of(st.one_of(calm, st.sampled_from([1e15, -1e15]))), st.booleans())
def test_scores_are_finite_and_not_below_zero(kind, values, causal):
    table = score_table(detector_of(kind), series(values), entity="a", causal=causal)
    known = table["state"] != "unknown"
    assert known.sum() == len(values) - L + 1
    for name in ("score", "window_score"):
        assert np.isfinite(table[name][known]).all()
        assert (table[name][known] >= 0).all()


@each_kind
@settings(deadline=None, max_examples=25)
@given(values_of(st.one_of(calm, st.sampled_from(SPIKES))), st.booleans())
def test_what_overflows_alarms_and_is_never_normal(kind, values, causal):
    table = score_table(detector_of(kind), series(values), entity="a", causal=causal)
    known = table["state"] != "unknown"
    assert known.sum() == len(values) - L + 1
    assert not table[known][["score", "window_score"]].isna().any(axis=None)
    assert (table[["score", "window_score"]][known] >= 0).all(axis=None)
    assert (table["state"][known & np.isinf(table["window_score"])] == "anomaly").all()
    if causal and kind != "moving_average":  # whose first row is its own mean
        huge = (np.abs(values) > 1e30).any(axis=1)
        assert (table["alarm"][known & huge] == 1).all()


@each_kind
@pytest.mark.parametrize("spike", SPIKES)
def test_a_spike_is_seen_by_its_own_windows_only(kind, spike):
    values = made_up(60)
    spiked = values.copy()
    spiked[30, 1] = spike
    detector, starts = detector_of(kind), np.arange(53)
    before, after = (
        score_windows(detector, 0, rows, starts) for rows in (values, spiked)
    )
    holds = (starts <= 30) & (30 < starts + L)
    assert before[~holds].tobytes() == after[~holds].tobytes()
    # A window that begins with it has no row before to tell by.
    later = holds & (starts < 30)
    # A classifier takes the log of what lies beyond its ranges.
    least = np.log(1e13) if kind == "classifier" else 1e20
    assert (after[later, 30 - starts[later]] > max(least, 1.5 * before.max())).all()


# Splits, batches, devices.


@each_kind
@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(1, 52), max_size=4), st.integers(0, 99))
def test_windows_score_the_same_in_any_pieces(kind, cuts, seed):
    detector, values = detector_of(kind), made_up(60, seed)
    starts = np.random.default_rng(seed).permutation(53)
    whole = score_windows(detector, 0, values, starts)
    pieces = np.split(starts, sorted(cuts))
    found = [score_windows(detector, 0, values, piece) for piece in pieces]
    close(np.concatenate(found), whole)


@each_kind
@settings(deadline=None, max_examples=10)
@given(st.integers(L, 60 - L), st.booleans())
def test_rows_score_the_same_in_two_calls(kind, cut, causal):
    """The second call begins L − 1 rows earlier, or a little more to keep the stride."""
    detector, values = detector_of(kind), made_up(60 + L)
    whole = score_table(detector, series(values), entity="a", causal=causal)
    stride = 1 if causal else STRIDE
    first = (cut - L + 1) // stride * stride
    later = score_table(detector, series(values[first:]), entity="a", causal=causal)
    assert len(later) - (cut - first) == len(values) - cut
    mine, wanted = later.iloc[cut - first :], whole.iloc[cut:]
    close(mine["score"], wanted["score"])
    # The grid's window that ended before the row may lie before the second call.
    known = (later["state"] != "unknown").to_numpy()[cut - first :]
    assert known[stride - 1 :].all()
    close(mine["window_score"][known], wanted["window_score"][known])
    assert (mine["alarm"][known].to_numpy() == wanted["alarm"][known]).all()


# Sizes past the number of windows shrink to the next power of two: 1,024 here.
SIZES = (1, 2, 7, 100, 256, 1024)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mahalanobis", NETWORK])
def test_batches_of_any_size_score_the_same(kind):
    detector, values = detector_of(kind), made_up(700)
    starts = np.arange(650)
    wanted = score_windows(detector, 0, values, starts, batch_size=32)
    for size in SIZES:
        # Of small batches few, each of which is padded at the end.
        count = min(650, 31 * size)
        found = score_windows(detector, 0, values, starts[:count], batch_size=size)
        close(found, wanted[:count])


def test_windows_score_the_same_beside_any_padding():
    detector, values = detector_of(NETWORK), made_up(200)
    wanted = score_windows(detector, 0, values, np.arange(32), batch_size=32)
    for count in (17, 20, 31, 32):
        found = score_windows(detector, 0, values, np.arange(count), batch_size=32)
        assert found.tobytes() == wanted[:count].tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mahalanobis", NETWORK])
def test_any_number_of_devices_scores_the_same(kind, monkeypatch):
    detector, values = detector_of(kind), made_up(500)
    starts, devices = np.arange(490), jax.local_devices()
    wanted = score_windows(detector, 0, values, starts, batch_size=16)
    for count, used in ((2, 2), (3, 3), (8, 6)):
        monkeypatch.setattr(jax, "local_devices", lambda n=count: devices[:n])
        assert batch_mesh(96).size == used
        close(score_windows(detector, 0, values, starts, batch_size=96), wanted)


@pytest.fixture
def saved(tmp_path):
    """The folder of a detector of entities `a`, `b` and `c`."""
    save_detector(tmp_path / "detector", detector_of(NETWORK, ("a", "b", "c")))
    return tmp_path / "detector"


def as_file(path, *parts):
    """Writes rows of entities, `(name, values)` each; the entity's column comes last."""
    frames = [
        pd.DataFrame(values, columns=CHANNELS).assign(machine=name)
        for name, values in parts
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(frames).to_csv(path, index=False)
    return path


@pytest.mark.slow
def test_a_program_on_one_device_scores_as_on_eight(saved, tmp_path):
    path = as_file(tmp_path / "rows.csv", ("a", made_up(300)))
    command = [
        "kdjax", "score", path, f"--detector={saved}", "--causal",
        "--entity_column=machine",
    ]  # fmt: skip
    assert main([*map(str, command), f"--output={tmp_path / 'eight.csv'}"]) == 0
    code = (
        "import sys, jax; from kdjax.cli import main; sys.exit(main(sys.argv[1:]) or "
    )
    subprocess.run(
        [
            sys.executable, "-c", code + "jax.device_count() - 1)", *map(str, command),
            f"--output={tmp_path / 'one.csv'}",
        ],
        check=True, capture_output=True,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
    )  # fmt: skip
    eight, one = (pd.read_csv(tmp_path / f"{n}.csv") for n in ("eight", "one"))
    assert 0 < eight["alarm"].sum() < 290
    exact = ["entity", "time", "alarm", "state"]
    pd.testing.assert_frame_equal(eight[exact], one[exact])
    for name in ("score", "window_score"):
        close(one[name][L - 1 :], eight[name][L - 1 :])


# Company.


@pytest.fixture
def verb(saved):
    """Runs `score` of a path; gives the lines of an entity, below the header."""

    def run(path, output, *flags):
        flags = [f"--detector={saved}", f"--output={output}", *flags]
        assert main(["kdjax", "score", str(path), *flags]) == 0

    return run


def lines_of(path, entity):
    return [line for line in path.read_bytes().split(b"\n") if line[:1] == entity]


def test_an_entitys_scores_are_the_same_bytes_in_any_company(verb, tmp_path):
    parts = {
        name: made_up(rows, rows)
        for name, rows in zip("abc", (70, 41, 28), strict=True)
    }
    columns = ["--entity_column=machine", "--contributions"]
    found = {}
    for order in ("a", "b", "c", "abc", "cba", "bca"):
        path = as_file(tmp_path / f"{order}.csv", *((n, parts[n]) for n in order))
        verb(path, tmp_path / "out" / f"{order}.csv", *columns)
        found[order] = tmp_path / "out" / f"{order}.csv"
    for name in "abc":
        as_file(tmp_path / "folder" / f"{name}.csv", (name, parts[name]))
    verb(tmp_path / "folder", tmp_path / "fleet", *columns)
    found |= {f"fleet {n}": tmp_path / "fleet" / f"{n}.csv" for n in "abc"}
    for name in "abc":
        for ending in ("", ".events.csv"):
            wanted = lines_of(tmp_path / "out" / f"{name}.csv{ending}", name.encode())
            assert len(wanted) == len(parts[name]) or ending
            for order, path in found.items():
                if name in order.removeprefix("fleet "):
                    path = path.with_name(path.name + ending)
                    assert lines_of(path, name.encode()) == wanted, (order, ending)
    assert lines_of(tmp_path / "out" / "a.csv.events.csv", b"a")


# Order and units of channels.


def fitted(values, kind="mahalanobis", **changes):
    """A control calibrated on rows without floor and ridge, unless they are given."""
    plain = {"detection.floor": 0.0, "detection.ridge": 0.0}
    return KDDetector(
        window_size=10, stride=5, detector=kind, scaler="none", false_alarm_rate=0.05,
        settings=plain | changes,
    ).fit(values)  # fmt: skip


TRAIN, TEST = made_up(900), made_up(120, 5)
TEST[60:70, 0] += 3
BASELINES = ("mahalanobis", "difference", "moving_average", "pca")


# Without a floor, what a projection leaves of some channels is rounding.
ORDERED = [
    *itertools.product(BASELINES, [0.1]),
    *itertools.product(BASELINES[:3], [0.0]),
]


@pytest.mark.parametrize(("kind", "floor"), ORDERED)
def test_channels_in_any_order_score_the_same(kind, floor):
    options = {"detection.floor": floor, "detection.ridge": floor}
    plain = fitted(TRAIN, kind, **options)
    wanted = plain.decision_function(TEST)
    assert 0 < plain.predict(TEST).sum() < len(TEST)
    for order in ([2, 0, 1], [1, 0, 2], [2, 1, 0]):
        other = fitted(TRAIN[:, order], kind, **options)
        close(other.threshold_, plain.threshold_, 1e-4)
        close(other.decision_function(TEST[:, order]), wanted, 1e-4)
        assert (other.predict(TEST[:, order]) == plain.predict(TEST)).all()


def test_a_network_with_its_channels_in_another_order_scores_the_same():
    """Kernel, head, scaler and Normal of another order, by hand."""
    plain, order = detector_of("autoencoder"), [2, 0, 1]
    params = jax.tree.map(np.copy, plain.model.params)
    params["encoder_0"]["input_kernel"] = params["encoder_0"]["input_kernel"][order]
    params["head"] = {k: v[..., order] for k, v in params["head"].items()}
    other = plain._replace(
        model=ResidualModel("autoencoder", params, ARCH),
        channels=tuple(CHANNELS[i] for i in order),
        scalers=Scaler(*(field[:, order] for field in plain.scalers)),
        gaussians=Gaussian(plain.gaussians.mean, plain.gaussians.whiten[..., order]),
    )
    values, starts = made_up(100), np.arange(90)
    close(
        score_windows(other, 0, values[:, order], starts),
        score_windows(plain, 0, values, starts),
    )
    # And of a series with names it finds the order by itself.
    one, two = (score_table(d, series(values), entity="a") for d in (plain, other))
    close(two["score"], one["score"])


maps = st.tuples(
    st.lists(
        st.sampled_from([-1000.0, -1.8, -0.02, 0.02, 1.8, 1000.0]),
        min_size=D,
        max_size=D,
    ),
    st.lists(st.floats(-30, 30), min_size=D, max_size=D),
)


@pytest.mark.parametrize("kind", BASELINES[:3])
@settings(deadline=None, max_examples=10)
@given(maps)
def test_units_do_not_matter_without_floor_and_ridge(kind, affine):
    """a·x + b in each channel, of training, calibration and test rows alike."""
    factor, offset = map(np.array, affine)

    def mapped(values):
        return (factor * (values + offset * TRAIN.std(axis=0))).astype(np.float32)

    plain, other = fitted(TRAIN, kind), fitted(mapped(TRAIN), kind)
    # float32 keeps about 1e-7 of a value, which here is up to 2,000 deviations.
    close(other.threshold_, plain.threshold_, 2e-3)
    distance = np.sqrt(plain.decision_function(TEST))
    moved = np.sqrt(other.decision_function(mapped(TEST)))
    np.testing.assert_allclose(moved, distance, rtol=1e-3, atol=2e-3)


@pytest.mark.slow
def test_powers_of_two_change_no_bit_of_a_trained_network():
    """From the rows through scaling, training and calibration to the scores."""

    def trained(values):
        return KDDetector(
            window_size=10, stride=5, detector="teacher", teacher_hidden=(2,),
            teacher_epochs=2, false_alarm_rate=0.05,
        ).fit(values)  # fmt: skip

    factor = np.float32([2**5, 2**-7, 2**20])
    plain, other = trained(TRAIN), trained(TRAIN * factor)
    assert other.threshold_ == plain.threshold_
    wanted = plain.decision_function(TEST)
    assert other.decision_function(TEST * factor).tobytes() == wanted.tobytes()
    assert np.isfinite(wanted).all() and (wanted >= 0).all()


def test_of_a_real_machine_neither_order_nor_units_matter():
    sample = load_sample()
    train, test = sample.train[0].values, sample.test[0].values[:6000]
    moving = train.std(axis=0) > 0.02
    train, test = train[:, moving], test[:, moving]
    width = train.shape[1]
    assert width == 27
    rng = np.random.default_rng(0)
    order = rng.permutation(width)
    factor = rng.choice([-1, 1], width) * 10 ** rng.uniform(-3, 3, width)
    offset = rng.uniform(-5, 5, width)

    def mapped(values):
        return (factor * (values + offset))[:, order].astype(np.float32)

    plain, other = fitted(train), fitted(mapped(train))
    close(other.threshold_, plain.threshold_, 1e-3)
    close(other.decision_function(mapped(test)), plain.decision_function(test), 5e-3)
    assert (other.predict(mapped(test)) == plain.predict(test)).mean() > 0.9999


# Merging.


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 3000), max_size=6), st.integers(0, 99))
def test_merged_moments_fit_the_normal_of_the_whole(cuts, seed):
    rng = np.random.default_rng(seed)
    errors = np.abs(rng.normal(size=(3000, 5)) @ rng.normal(size=(5, 5))) * [
        1,
        9,
        1e-3,
        40,
        1,
    ]
    check_merge(errors, np.split(errors, sorted(cuts)))


def test_merged_moments_of_a_real_machine_fit_the_normal_of_the_whole():
    rows = load_sample().train[0].values
    check_merge(rows, np.array_split(rows, 97))


def check_merge(errors, pieces):
    merged, whole = merge_all(map(moments_of, pieces)), moments_of(errors)
    assert merged.n == whole.n == len(errors)
    size = np.sqrt(np.diag(whole.covariance))
    assert (
        np.abs(merged.mean - whole.mean) <= 1e-12 * np.abs(errors).max(axis=0)
    ).all()
    difference = np.abs(merged.covariance - whole.covariance)
    assert (difference <= 1e-12 * np.outer(size, size)).all()
    names = [f"c{i}" for i in range(errors.shape[1])]
    first, second = (
        gaussian_from_moments(moments, floor=0.03, ridge=0.1, channels=names)
        for moments in (merged, whole)
    )
    # Both are rounded to float32: at most a last bit apart.
    np.testing.assert_allclose(first.mean, second.mean, rtol=2e-7, atol=1e-20)
    scale = np.abs(second.whiten).max(axis=0)
    assert (np.abs(first.whiten - second.whiten) <= 1.2e-7 * scale).all()


# Thresholds and alarms.

RULES = ("conformal", "quantile", "pot", "blocks")
RATES = (0.3, 0.1, 0.03, 0.01, 0.004, 0.002)


def taus(method, scores, rates):
    """τ at falling rates, as far as there are scores enough for them."""
    rules = [Rule(method, rate) for rate in rates]
    return [find_threshold(scores, r).tau for r in rules if needed(r) <= len(scores)]


@pytest.mark.parametrize("method", RULES)
@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["chi", "heavy", "ties"]))
def test_tau_rises_as_the_rate_falls(method, seed, shape):
    rng = np.random.default_rng(seed)
    scores = {
        "chi": rng.chisquare(3, 600),
        "heavy": rng.pareto(2.5, 600),
        "ties": np.round(rng.chisquare(3, 600)),
    }[shape]
    found = taus(method, scores, RATES)
    assert len(found) >= 5
    assert (np.diff(found) >= 0).all()


@pytest.fixture(scope="module")
def calibration():
    """Point scores `[M, L]` of a real machine's windows, under its own Normal."""
    rows = load_sample().train[0].values
    moments = moments_of(rows[:18000])
    names = [f"c{i}" for i in range(rows.shape[1])]
    gaussian = gaussian_from_moments(moments, floor=0.03, ridge=0.1, channels=names)
    points = (((rows[18000:] - gaussian.mean) @ gaussian.whiten.T) ** 2).sum(axis=1)
    starts = window_starts(np.array([[0, len(points)]]), window=100, stride=10)
    return points[starts[:, None] + np.arange(100)]


@pytest.mark.parametrize("method", RULES)
def test_tau_falls_with_the_count_and_the_rate_on_a_real_machine(calibration, method):
    counts = (0, 1, 2, 4, 8, 16)
    table = np.array(
        [
            taus(method, window_scores(calibration, count=count), RATES[:4])
            for count in counts
        ]
    )
    assert table.shape == (6, 4)
    assert (np.diff(table, axis=0) <= 0).all()
    assert (np.diff(table, axis=1) >= 0).all()
    assert table[0, -1] > 1.2 * table[-1, 0]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["conformal", "quantile", "blocks"]))
def test_tau_falls_with_the_count(seed, method):
    points = np.random.default_rng(seed).pareto(2.0, (150, L))
    found = [
        find_threshold(window_scores(points, count=count), Rule(method, 0.05)).tau
        for count in range(L)
    ]
    assert (np.diff(found) <= 0).all()


@pytest.mark.parametrize("min_duration", [1, 3])
@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.lists(st.floats(1, 200), min_size=2, max_size=6))
def test_rows_in_alarm_at_a_higher_tau_are_in_alarm_at_a_lower(
    min_duration, seed, levels
):
    values = made_up(90, seed)
    values[40:52, 0] += 2
    alarms = []
    for tau in sorted(levels):
        detector = detector_of("mahalanobis")._replace(min_duration=min_duration)
        taus = tuple(t._replace(tau=tau) for t in detector.thresholds)
        table = score_table(
            detector._replace(thresholds=taus), series(values), entity="a", causal=True
        )
        alarms.append(table["alarm"].to_numpy() > 0)
    for lower, higher in itertools.pairwise(alarms):
        assert (lower | ~higher).all()


# float32 against float64.


@pytest.fixture(scope="module")
def precision():
    """The script that compares them, whose formulas share nothing with the package's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("precision")


@pytest.mark.slow
def test_float32_decides_as_float64_does(precision):
    sample = load_sample()
    parts = [sample.train[0], sample.test[0]]
    train, test = (
        Series(one.entity, one.values[:rows], one.channels)
        for one, rows in zip(parts, (5000, 3000), strict=True)
    )
    changes = {
        "data.name": "smd",
        "data.window": 20,
        "threshold.method": "conformal",
        "threshold.false_alarm_rate": 0.05,
    }
    chosen = resolve(override(get_config(), changes))
    fields = ("window", "stride", "max_gap", "validation", "calibration")
    prepared = prepare(
        Dataset("sample", (train,), (test,)),
        **{field: chosen["data"][field] for field in fields}, scaler="minmax",
    )  # fmt: skip
    rules = calibration_rules(chosen, prepared)
    shape = Architecture(38, (4,), head="sigmoid")
    params = network(shape).init(jax.random.key(1))
    both = [ResidualModel("autoencoder", params, shape), MODELS["moving_average"]]
    for model in (MODELS["mahalanobis"], join_models(both)):
        found = precision.compare(model, prepared, rules)
        assert found["windows"]["n"] == 299
        assert found["windows"]["median"] < 2e-6
        assert found["windows"]["of_tau"] < 1e-4 and found["points"]["of_tau"] < 1e-4
        assert found["tau"] < 1e-4
        assert found["decisions_that_differ"] == 0


def test_what_was_measured_on_whole_data_sets_stands_in_its_document(precision):
    report = json.loads((ROOT / "docs" / "results" / "precision.json").read_text())
    assert len(report["rows"]) >= 28
    assert {row["data"] for row in report["rows"]} <= set(precision.NAMES)
    assert precision.table(report) in (ROOT / "docs" / "compatibility.md").read_text()
