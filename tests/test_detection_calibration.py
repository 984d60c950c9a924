"""Calibration against numpy by hand: each entity its own, and who borrows what."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage, oas

from kdjax.data.prepared import prepare
from kdjax.data.scaler import fit_scaler
from kdjax.data.series import Dataset, Series
from kdjax.detection.calibration import Rules, calibrate, check_enough
from kdjax.detection.detector import scoring_batch
from kdjax.errors import ConfigError, DataError
from kdjax.models.autoencoder import Architecture
from kdjax.models.residual import ResidualModel

RULES = Rules(
    allowed_points=1, floor=0.05, ridge=0.1, shrinkage="none", scope="per_entity",
    false_alarm_rate=0.1, batch_size=16,
)  # fmt: skip
WINDOW, STRIDE = 6, 4
MODEL = ResidualModel("mahalanobis", {})
STEPS = ResidualModel("difference", {})
ERRORS = {
    "mahalanobis": lambda x: x,
    "difference": lambda x: np.abs(np.diff(x, axis=0, prepend=x[:1])),
}


def series(entity, rows, seed, *, scale=1.0):
    rng = np.random.default_rng(seed)
    values = scale * rng.normal(size=(rows, 3)) @ rng.normal(size=(3, 3)) + rng.normal()
    values[:, 2] = 4.0
    return Series(entity, values.astype(np.float32), ("u", "v", "dead"))


def ready(*sizes, **options):
    train = tuple(series(f"m{i}", rows, i, scale=1 + i) for i, rows in enumerate(sizes))
    options = {
        "window": WINDOW, "stride": STRIDE, "max_gap": 5.0, "validation": 0.2,
        "calibration": 0.2, "scaler": "minmax",
    } | options  # fmt: skip
    return prepare(Dataset("plant", train, ()), **options)


# m0 and m1 have all of their own, m1 with exactly 9 calibration windows; m2 has 4 calibration windows, m3 7 validation rows.
SIZES = (300, 200, 100, 45)


@pytest.fixture(scope="module")
def mixed():
    return ready(*SIZES)


class ByHand:
    """Calibration in float64 with loops, from splits and scalers."""

    def __init__(self, prepared, model, rules):
        self.prepared, self.rules, self.errors = prepared, rules, ERRORS[model.kind]

    def windows(self, spans):
        return [
            (start, start + WINDOW)
            for low, high in spans
            for start in range(low, high - WINDOW + 1, STRIDE)
        ]

    def scaled(self, index, scaler):
        values = self.prepared.entities[index].train.values
        return ((values - scaler.offset) / scaler.scale).astype(np.float64)

    def validation_errors(self, index, scaler):
        rows = self.scaled(index, scaler)
        spans = self.prepared.entities[index].split.validation
        pieces = [self.errors(rows[i:j]) for i, j in self.windows(spans)]
        return np.concatenate([np.empty((0, 3)), *pieces])

    def distinct(self, index):
        spans = self.prepared.entities[index].split.validation
        return {row for i, j in self.windows(spans) for row in range(i, j)}

    def normal(self, errors, shrinkage=0.0):
        scale = np.maximum(errors.std(axis=0), self.rules.floor)
        correlation = np.cov(errors.T, ddof=0) / np.outer(scale, scale)
        target = np.trace(correlation) / 3 * np.eye(3)
        correlation = (1 - shrinkage) * correlation + shrinkage * target
        sigma = (correlation + self.rules.ridge * np.eye(3)) * np.outer(scale, scale)
        return errors.mean(axis=0), np.linalg.inv(sigma)

    def scores(self, index, scaler, normal):
        mean, precision = normal
        rows = self.scaled(index, scaler)
        found = []
        for i, j in self.windows(self.prepared.entities[index].split.calibration):
            centred = self.errors(rows[i:j]) - mean
            points = sorted((centred @ precision * centred).sum(axis=1))
            found.append(points[-1 - self.rules.allowed_points])
        return found

    def tau(self, scores):
        rank = int(np.ceil(round((len(scores) + 1) * 9) / 10))  # rate 0.1
        return sorted(scores)[rank - 1], rank

    def own(self, index):
        scaler = self.prepared.entities[index].scaler
        return self.normal(self.validation_errors(index, scaler))

    def pooled(self):
        """Normal and calibration scores of all rows under the pooled scaler."""
        scaler, everyone = self.prepared.pooled_scaler, range(len(SIZES))
        errors = [self.validation_errors(i, scaler) for i in everyone]
        normal = self.normal(np.concatenate(errors))
        return normal, [s for i in everyone for s in self.scores(i, scaler, normal)]


def same_normal(calibration, index, normal):
    mean, precision = normal
    np.testing.assert_allclose(calibration.normals.mean[index], mean, atol=1e-6)
    whiten = calibration.normals.whiten[index].astype(np.float64)
    size = np.sqrt(np.outer(np.diag(precision), np.diag(precision)))
    np.testing.assert_allclose(whiten.T @ whiten / size, precision / size, atol=1e-4)


@pytest.mark.parametrize("model", [MODEL, STEPS], ids=lambda model: model.kind)
def test_each_entity_its_own_and_borrowers_what_they_lack(mixed, model):
    hand = ByHand(mixed, model, RULES)
    calibration = calibrate(model, mixed, RULES)
    pooled_normal, pooled_scores = hand.pooled()
    normals = [hand.own(0), hand.own(1), hand.own(2), pooled_normal]
    for index, normal in enumerate([*normals, pooled_normal]):
        same_normal(calibration, index, normal)
    scores = [
        hand.scores(i, mixed.entities[i].scaler, normal)
        for i, normal in enumerate(normals)
    ]
    assert [len(own) for own in scores] == [14, 9, 4, 1]
    for got, wanted in zip(calibration.scores, scores, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-3)
    shared = hand.tau([score for own in scores for score in own])
    wanted = [
        (*hand.tau(scores[0]), 14, "own"),
        (*hand.tau(scores[1]), 9, "own"),
        (*shared, 28, "shared"),
        (*hand.tau(pooled_scores), 28, "pooled"),
        (*hand.tau(pooled_scores), 28, "pooled"),
    ]
    for threshold, (tau, rank, n, source) in zip(
        calibration.thresholds, wanted, strict=True
    ):
        assert threshold.tau == pytest.approx(tau, rel=1e-3)
        assert (threshold.rank, threshold.n, threshold.source) == (rank, n, source)
        assert (threshold.method, threshold.rate) == ("conformal", 0.1)
    # The last two sources differ here, so that neither passes for the other.
    assert shared[0] != pytest.approx(hand.tau(pooled_scores)[0], rel=0.01)


def test_notes_name_who_borrows_with_n_and_rank(mixed):
    assert calibrate(MODEL, mixed, RULES).notes == (
        "pooled Normal and τ (the 27-th smallest of 28): m3 (1 calibration windows)",
        (
            "too few calibration windows, so τ from all entities' scores "
            "(the 27-th smallest of 28): m2 (4 calibration windows)"
        ),
    )


def test_nobody_borrows_where_all_have_enough():
    prepared = ready(300, 260)
    calibration = calibrate(MODEL, prepared, RULES)
    assert calibration.notes == ()
    assert [t.source for t in calibration.thresholds] == ["own", "own", "pooled"]


def test_scalers_stand_in_order_with_the_pooled_last(mixed):
    scalers = calibrate(MODEL, mixed, RULES).scalers
    wanted = [*(e.scaler for e in mixed.entities), mixed.pooled_scaler]
    for field in ("offset", "scale"):
        rows = np.stack([getattr(scaler, field) for scaler in wanted])
        np.testing.assert_array_equal(getattr(scalers, field), rows)


def test_scope_pooled_gives_all_one_normal_and_one_threshold(mixed):
    rules = RULES._replace(scope="pooled")
    hand = ByHand(mixed, MODEL, rules)
    calibration = calibrate(MODEL, mixed, rules)
    everyone = range(len(SIZES))
    scalers = [entity.scaler for entity in mixed.entities]
    errors = [hand.validation_errors(i, scalers[i]) for i in everyone]
    normal = hand.normal(np.concatenate(errors))
    scores = [s for i in everyone for s in hand.scores(i, scalers[i], normal)]
    for i in everyone:
        same_normal(calibration, i, normal)
        assert calibration.thresholds[i].tau == pytest.approx(
            hand.tau(scores)[0], rel=1e-3
        )
        assert calibration.thresholds[i].source == "pooled"
    assert len(calibration.notes) == 1
    assert "m0 (14 calibration windows), m1 (9" in calibration.notes[0]


def test_a_common_scaler_needs_no_second_pass():
    prepared = ready(300, 260, scaler="none")
    hand = ByHand(prepared, MODEL, RULES)
    scaler = prepared.pooled_scaler
    errors = [hand.validation_errors(i, scaler) for i in range(2)]
    same_normal(
        calibrate(MODEL, prepared, RULES), 2, hand.normal(np.concatenate(errors))
    )


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas"])
def test_shrinkage_counts_distinct_rows(shrinkage):
    prepared = ready(300, stride=2)
    rules = RULES._replace(shrinkage=shrinkage)
    entity = prepared.entities[0]
    starts = [
        start
        for low, high in entity.split.validation
        for start in range(low, high - WINDOW + 1, 2)
    ]
    scaled = (entity.train.values - entity.scaler.offset) / entity.scaler.scale
    repeated = np.concatenate([scaled[s : s + WINDOW] for s in starts]).astype(float)
    distinct = len({row for s in starts for row in range(s, s + WINDOW)})
    assert len(repeated) > 2 * distinct
    z = (repeated - repeated.mean(axis=0)) / np.maximum(repeated.std(axis=0), 0.05)
    if shrinkage == "oas":
        # Its formula holds n once: from that of all repeats, by hand.
        c = z.T @ z / len(z)
        square, mean = (c**2).mean(), (np.trace(c) / 3) ** 2
        share = min(1, (square + mean) / ((distinct + 1) * (square - mean / 3)))
        all_rows = oas(z, assume_centered=True)[1]
    else:
        # Its noise term is in 1/n: scikit-learn's for all repeats, times their ratio.
        all_rows = ledoit_wolf_shrinkage(z, assume_centered=True)
        share = min(1, all_rows * len(z) / distinct)
    assert share > 1.5 * all_rows
    hand = ByHand(prepared, MODEL, rules)
    same_normal(calibrate(MODEL, prepared, rules), 0, hand.normal(repeated, share))


def test_floored_channels_are_listed_by_entity(mixed):
    floored = calibrate(MODEL, mixed, RULES).floored
    assert floored == {f"m{i}": ["dead"] for i in range(4)}
    assert calibrate(MODEL, mixed, RULES._replace(floor=1e-9)).floored["m0"] == ["dead"]


def test_an_entity_without_any_validation_window_has_no_floored_channels():
    prepared = ready(300, 12)
    calibration = calibrate(MODEL, prepared, RULES)
    assert set(calibration.floored) == {"m0"}
    assert calibration.scores[1].shape == (0,)
    assert "m1 (0 calibration windows)" in calibration.notes[0]


def test_batches_do_not_change_the_outcome(mixed):
    first = calibrate(STEPS, mixed, RULES)
    second = calibrate(STEPS, mixed, RULES._replace(batch_size=3))
    for a, b in zip(first.thresholds, second.thresholds, strict=True):
        assert a.tau == pytest.approx(b.tau, rel=1e-5)


def test_networks_of_independent_channels_make_smaller_batches():
    shape = Architecture(8, (2,), channels="independent")
    model = ResidualModel("autoencoder", {}, shape)
    assert scoring_batch(model, 8, 128) == 16
    assert scoring_batch(model, 8, 5) == 1
    joint = ResidualModel("autoencoder", {}, shape._replace(channels="joint"))
    assert scoring_batch(joint, 8, 128) == 128
    assert scoring_batch(MODEL, 8, 128) == 128


# Refusals.


def test_a_rate_that_no_entity_can_hold_is_refused_before_training(mixed):
    # 28 calibration windows in all hold 1/29 = 0.0345 and no less.
    check_enough(mixed, false_alarm_rate=0.035)
    message = (
        r"false_alarm_rate=0.034 needs at least 29 calibration windows, have 28: give"
    )
    with pytest.raises(ConfigError, match=message):
        check_enough(mixed, false_alarm_rate=0.034)


def test_huge_validation_values_are_refused():
    prepared = ready(300)
    entity = prepared.entities[0]
    row = entity.split.validation[0][0]
    entity.train.values[row, 1] = 3e38
    scaler = fit_scaler(np.full((2, 3), 1e-30), method="none")._replace(
        scale=np.full(3, 1e-10, np.float32)
    )
    prepared = prepared._replace(
        entities=(entity._replace(scaler=scaler),), pooled_scaler=scaler
    )
    with (
        np.errstate(over="ignore"),
        pytest.raises(DataError, match="channel 2 are not"),
    ):
        calibrate(MODEL, prepared, RULES)


def test_huge_calibration_values_are_refused():
    prepared = ready(300)
    entity = prepared.entities[0]
    entity.train.values[entity.split.calibration[0][0] :: 2, 1] = 3e38
    with pytest.raises(DataError, match="the threshold is inf"):
        calibrate(MODEL, prepared, RULES)


def test_alike_channels_without_ridge_are_named():
    prepared = ready(300)
    values = prepared.entities[0].train.values
    values[:, 2] = values[:, 0]
    prepared = prepare(
        Dataset("plant", (prepared.entities[0].train,), ()),
        window=WINDOW, stride=STRIDE, max_gap=5.0, validation=0.2, calibration=0.2,
        scaler="minmax",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="channels u, dead depend on each other"):
        calibrate(MODEL, prepared, RULES._replace(ridge=0.0))
