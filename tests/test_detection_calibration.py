"""Calibration against numpy by hand: each entity its own, and who borrows what."""

import io
import itertools

import numpy as np
import pytest
from rich.console import Console
from sklearn.covariance import ledoit_wolf_shrinkage, oas

from kdjax.data.prepared import prepare
from kdjax.data.scaler import fit_scaler
from kdjax.data.series import Dataset, Series
from kdjax.detection.calibration import NothingLeft, Rules, calibrate, check_enough
from kdjax.detection.detector import scoring_batch
from kdjax.detection.thresholds import Rule, find_threshold
from kdjax.errors import ConfigError, DataError
from kdjax.evaluation.evaluate import evaluate_models
from kdjax.models.autoencoder import Architecture
from kdjax.models.residual import ResidualModel, join_models

RULES = Rules(
    allowed_points=1, floor=0.05, ridge=0.1, shrinkage="none", scope="per_entity",
    threshold=Rule("conformal", 0.1), trim=0.0, batch_size=16,
)  # fmt: skip
WINDOW, STRIDE = 6, 4
OPTIONS = {
    "window": WINDOW, "stride": STRIDE, "max_gap": 5.0, "validation": 0.2,
    "calibration": 0.2, "scaler": "minmax",
}  # fmt: skip
MODEL = ResidualModel("mahalanobis", {})
STEPS = ResidualModel("difference", {})
BOTH = join_models([MODEL, STEPS])
ERRORS = {
    "mahalanobis": lambda x: x,
    "difference": lambda x: np.abs(np.diff(x, axis=0, prepend=x[:1])),
}
ERRORS["mahalanobis+difference"] = lambda x: np.hstack([x, ERRORS["difference"](x)])


def series(entity, rows, seed, *, scale=1.0):
    rng = np.random.default_rng(seed)
    values = scale * rng.normal(size=(rows, 3)) @ rng.normal(size=(3, 3)) + rng.normal()
    values[:, 2] = 4.0
    return Series(entity, values.astype(np.float32), ("u", "v", "dead"))


def ready(*sizes, **options):
    train = tuple(series(f"m{i}", rows, i, scale=1 + i) for i, rows in enumerate(sizes))
    return prepare(Dataset("plant", train, ()), **(OPTIONS | options))


# m0 and m1 have all of their own, m1 with exactly 9 calibration windows; m2 has 4 calibration windows, m3 7 validation rows.
SIZES = (300, 200, 100, 45)


@pytest.fixture(scope="module")
def mixed():
    return ready(*SIZES)


class ByHand:
    """Calibration in float64 with loops, from splits and scalers."""

    def __init__(self, prepared, model, rules):
        self.prepared, self.rules, self.errors = prepared, rules, ERRORS[model.kind]
        self.width = self.errors(np.zeros((1, 3))).shape[1]

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
        return np.concatenate([np.empty((0, self.width)), *pieces])

    def distinct(self, index):
        spans = self.prepared.entities[index].split.validation
        return {row for i, j in self.windows(spans) for row in range(i, j)}

    def gaussian(self, errors, shrinkage=0.0):
        """Of the channels that move, the first two of each component; 0 elsewhere."""
        moving = np.flatnonzero(np.arange(self.width) % 3 < 2)
        own = self.gaussian_of_all(errors[:, moving], shrinkage)[1]
        precision = np.zeros((self.width, self.width))
        precision[np.ix_(moving, moving)] = own
        return errors.mean(axis=0), precision

    def gaussian_of_all(self, errors, shrinkage):
        scale = np.maximum(errors.std(axis=0), self.rules.floor)
        correlation = np.cov(errors.T, ddof=0) / np.outer(scale, scale)
        identity = np.eye(len(scale))
        target = np.trace(correlation) / len(scale) * identity
        correlation = (1 - shrinkage) * correlation + shrinkage * target
        sigma = (correlation + self.rules.ridge * identity) * np.outer(scale, scale)
        return errors.mean(axis=0), np.linalg.inv(sigma)

    def scores(self, index, scaler, gaussian):
        mean, precision = gaussian
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
        return self.gaussian(self.validation_errors(index, scaler))

    def pooled(self):
        """Normal and calibration scores of all rows under the pooled scaler."""
        scaler, everyone = self.prepared.pooled_scaler, range(len(SIZES))
        errors = [self.validation_errors(i, scaler) for i in everyone]
        gaussian = self.gaussian(np.concatenate(errors))
        return gaussian, [s for i in everyone for s in self.scores(i, scaler, gaussian)]


def same_gaussian(calibration, index, gaussian):
    mean, precision = gaussian
    np.testing.assert_allclose(calibration.gaussians.mean[index], mean, atol=1e-6)
    whiten = calibration.gaussians.whiten[index].astype(np.float64)
    size = np.sqrt(np.outer(np.diag(precision), np.diag(precision)))
    size[size == 0] = 1
    np.testing.assert_allclose(whiten.T @ whiten / size, precision / size, atol=1e-4)


@pytest.mark.parametrize("model", [MODEL, STEPS, BOTH], ids=lambda model: model.kind)
def test_each_entity_its_own_and_borrowers_what_they_lack(mixed, model):
    hand = ByHand(mixed, model, RULES)
    calibration = calibrate(model, mixed, RULES)
    pooled_gaussian, pooled_scores = hand.pooled()
    gaussians = [hand.own(0), hand.own(1), hand.own(2), pooled_gaussian]
    for index, gaussian in enumerate([*gaussians, pooled_gaussian]):
        same_gaussian(calibration, index, gaussian)
    scores = [
        hand.scores(i, mixed.entities[i].scaler, gaussian)
        for i, gaussian in enumerate(gaussians)
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
        "pooled Gaussian and τ (the 27-th smallest of 28): m3 (1 calibration windows)",
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
    gaussian = hand.gaussian(np.concatenate(errors))
    scores = [s for i in everyone for s in hand.scores(i, scalers[i], gaussian)]
    for i in everyone:
        same_gaussian(calibration, i, gaussian)
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
    same_gaussian(
        calibrate(MODEL, prepared, RULES), 2, hand.gaussian(np.concatenate(errors))
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
    z = z[:, :2]  # the third channel is constant
    if shrinkage == "oas":
        # Its formula holds n once: from that of all repeats, by hand.
        c = z.T @ z / len(z)
        square, mean = (c**2).mean(), (np.trace(c) / 2) ** 2
        share = min(1, (square + mean) / ((distinct + 1) * (square - mean / 2)))
        all_rows = oas(z, assume_centered=True)[1]
    else:
        # Its noise term is in 1/n: scikit-learn's for all repeats, times their ratio.
        all_rows = ledoit_wolf_shrinkage(z, assume_centered=True)
        share = min(1, all_rows * len(z) / distinct)
    assert share > 1.5 * all_rows
    hand = ByHand(prepared, MODEL, rules)
    same_gaussian(calibrate(MODEL, prepared, rules), 0, hand.gaussian(repeated, share))


def test_floored_channels_are_listed_by_entity(mixed):
    floored = calibrate(MODEL, mixed, RULES).floored
    assert floored == {f"m{i}": ["dead"] for i in range(4)}
    assert calibrate(MODEL, mixed, RULES._replace(floor=1e-9)).floored["m0"] == ["dead"]


def test_a_joined_kind_names_its_parts_errors(mixed):
    calibration = calibrate(BOTH, mixed, RULES)
    assert calibration.gaussians.mean.shape == (5, 6)
    assert calibration.gaussians.whiten.shape == (5, 6, 6)
    assert calibration.scalers.offset.shape == (5, 3)
    dead = ["mahalanobis of dead", "difference of dead"]
    assert calibration.floored == {f"m{i}": dead for i in range(4)}
    # Constant channels need no floor; still ones that moved before do.
    assert np.isfinite(
        calibrate(BOTH, mixed, RULES._replace(floor=0.0)).gaussians.whiten
    ).all()
    still = series("m0", 300, 0)
    still.values[0, 2] = 9
    prepared = prepare(Dataset("plant", (still,), ()), **OPTIONS)
    with pytest.raises(ConfigError, match="deviation: mahalanobis of dead, differ"):
        calibrate(BOTH, prepared, RULES._replace(floor=0.0))


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


# What the threshold was chosen on.


@pytest.mark.parametrize("scope", ["per_entity", "pooled"])
def test_each_threshold_is_a_rank_of_the_scores_behind_it(mixed, scope):
    calibration = calibrate(MODEL, mixed, RULES._replace(scope=scope))
    assert len(calibration.threshold_scores) == len(calibration.thresholds) == 5
    for tau, threshold_scores in zip(
        calibration.thresholds, calibration.threshold_scores, strict=True
    ):
        assert len(threshold_scores) == tau.n and (np.diff(threshold_scores) >= 0).all()
        assert threshold_scores[tau.rank - 1] == tau.tau
    if scope == "per_entity":
        for place in (0, 1):
            np.testing.assert_array_equal(
                calibration.threshold_scores[place], np.sort(calibration.scores[place])
            )


def test_scores_belong_to_their_starts(mixed):
    hand = ByHand(mixed, MODEL, RULES)
    calibration = calibrate(MODEL, mixed, RULES)
    for index, entity in enumerate(mixed.entities):
        spans = entity.split.calibration
        wanted = [start for start, _ in hand.windows(spans)]
        assert calibration.starts[index].tolist() == wanted
        assert len(calibration.scores[index]) == len(wanted)
    np.testing.assert_allclose(
        calibration.scores[0],
        hand.scores(0, mixed.entities[0].scaler, hand.own(0)),
        rtol=1e-3,
    )


RULES_OF = {
    "conformal": Rule("conformal", 0.1),
    "quantile": Rule("quantile", 0.1),
    "pot": Rule("pot", 0.1),
    "fixed": Rule("fixed", value=2.5),
}


def test_blocks_take_all_rows_in_order_of_time(mixed):
    rule = Rule("blocks", 0.1, caution=32)
    check_enough(mixed, rule)
    calibration = calibrate(MODEL, mixed, RULES._replace(threshold=rule))
    for tau, scores in zip(
        calibration.thresholds, calibration.threshold_scores, strict=True
    ):
        assert tau == find_threshold(scores, rule, source=tau.source)
    for entity, scores, starts in zip(
        mixed.entities, calibration.scores, calibration.starts, strict=True
    ):
        total = len(entity.train.values)
        edges = [total * k // 5 for k in range(6)]
        wanted = [
            start
            for first, stop in itertools.pairwise(edges)
            for start in range(first, stop - mixed.window + 1, mixed.stride)
        ]
        assert starts.tolist() == wanted and len(scores) == len(wanted)


@pytest.mark.parametrize("method", RULES_OF)
def test_every_rule_is_applied_to_the_scores_behind(mixed, method):
    rule = RULES_OF[method]
    check_enough(mixed, rule)
    calibration = calibrate(MODEL, mixed, RULES._replace(threshold=rule))
    same = calibrate(MODEL, mixed, RULES)
    for tau, threshold_scores in zip(
        calibration.thresholds, calibration.threshold_scores, strict=True
    ):
        wanted = find_threshold(threshold_scores, rule, source=tau.source)
        assert tau == wanted and tau.method == method
    for a, b in zip(calibration.scores, same.scores, strict=True):
        np.testing.assert_array_equal(a, b)
    details = [
        f"{entity.name}: {tau.detail}"
        for entity, tau in zip(mixed.entities, calibration.thresholds, strict=False)
        if tau.detail
    ]
    assert calibration.notes[len(calibration.notes) - len(details) :] == tuple(details)
    assert bool(details) == (method in ("pot", "fixed"))


def test_a_fixed_threshold_borrows_no_scores(mixed):
    fixed = RULES._replace(threshold=Rule("fixed", value=2.5))
    calibration = calibrate(MODEL, mixed, fixed)
    assert [t.tau for t in calibration.thresholds] == [2.5] * 5
    # m2 has too few windows for a rank of its own, and needs none.
    assert [t.source for t in calibration.thresholds] == [
        "own", "own", "own", "pooled", "pooled",
    ]  # fmt: skip
    assert calibration.notes[0].startswith("pooled Gaussian and τ (of 28): m3 (1 ")
    above = int((calibration.scores[2] > 2.5).sum())
    assert f"m2: {above} of 4 calibration windows lie above" in calibration.notes


# Trimming.


def contaminated(share, seed=0):
    """600 rows of which a share of the validation windows is far off, and which."""
    prepared = ready(600, window=WINDOW, stride=WINDOW)
    entity = prepared.entities[0]
    starts = [
        start
        for low, high in entity.split.validation
        for start in range(low, high - WINDOW + 1, WINDOW)
    ]
    rng = np.random.default_rng(seed)
    bad = rng.choice(len(starts), int(share * len(starts)), replace=False)
    values = entity.train.values.copy()
    for place in bad:
        values[starts[place] : starts[place] + WINDOW, :2] += 40 * values[:, :2].std()
    train = entity.train._replace(values=values)
    clean = np.delete(starts, bad)
    entities = (entity._replace(train=train),)
    return prepared, prepared._replace(entities=entities), clean


def normal_of_windows(prepared, starts):
    """Mean and precision of the rows in these windows, by hand."""
    hand = ByHand(prepared, MODEL, RULES)
    rows = hand.scaled(0, prepared.entities[0].scaler)
    return hand.gaussian(np.concatenate([rows[s : s + WINDOW] for s in starts]))


def test_trimming_leaves_the_contaminated_windows_out():
    clean, dirty, remaining = contaminated(0.2)
    trimmed = calibrate(MODEL, dirty, RULES._replace(trim=0.2))
    # Exactly the clean windows remain, so the moments are theirs.
    same_gaussian(trimmed, 0, normal_of_windows(clean, remaining))
    same_gaussian(trimmed, 1, normal_of_windows(clean, remaining))
    plain = calibrate(MODEL, dirty, RULES)
    untouched = calibrate(MODEL, clean, RULES)
    near = np.abs(trimmed.gaussians.mean[0] - untouched.gaussians.mean[0]).max()
    far = np.abs(plain.gaussians.mean[0] - untouched.gaussians.mean[0]).max()
    assert near < 0.1 * far
    # Calibration windows are never trimmed: rank and n stay those of all.
    assert trimmed.thresholds[0].n == plain.thresholds[0].n
    assert trimmed.thresholds[0].tau > 2 * plain.thresholds[0].tau


def test_no_trimming_is_as_before_to_the_last_bit(mixed):
    hand = ByHand(mixed, MODEL, RULES)
    plain = calibrate(MODEL, mixed, RULES._replace(trim=0.0))
    # Fewer than one window of each entity: 12 windows at most.
    tiny = calibrate(MODEL, mixed, RULES._replace(trim=1e-3))
    for field in range(2):
        np.testing.assert_array_equal(plain.gaussians[field], tiny.gaussians[field])
    assert plain.thresholds == tiny.thresholds
    same_gaussian(plain, 0, hand.own(0))


def test_trimming_keeps_the_share_that_it_says():
    """The kept windows are those of lowest score under the Normal of the kept."""
    prepared = ready(600)
    trim = 0.25
    trimmed = calibrate(MODEL, prepared, RULES._replace(trim=trim))
    hand = ByHand(prepared, MODEL, RULES)
    rows = hand.scaled(0, prepared.entities[0].scaler)
    windows = hand.windows(prepared.entities[0].split.validation)
    count = len(windows) - int(trim * len(windows))
    chosen = windows
    for _ in range(2):
        mean, precision = hand.gaussian(np.concatenate([rows[i:j] for i, j in chosen]))
        scores = []
        for i, j in windows:
            centred = rows[i:j] - mean
            scores.append(np.sort((centred @ precision * centred).sum(axis=1))[-2])
        chosen = [windows[place] for place in np.sort(np.argsort(scores)[:count])]
    assert count < len(windows)
    same_gaussian(
        trimmed, 0, hand.gaussian(np.concatenate([rows[i:j] for i, j in chosen]))
    )


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas"])
def test_trimmed_windows_do_not_make_shrinkage_surer(shrinkage):
    """As if the trimmed windows had never been there."""
    clean, dirty, remaining = contaminated(0.2)
    rules = RULES._replace(shrinkage=shrinkage, trim=0.2)
    trimmed = calibrate(MODEL, dirty, rules)
    spans = np.stack([remaining, remaining + WINDOW], axis=1)
    entity = clean.entities[0]
    alone = entity._replace(split=entity.split._replace(validation=spans))
    wanted = calibrate(
        MODEL, clean._replace(entities=(alone,)), rules._replace(trim=0.0)
    )
    np.testing.assert_allclose(
        trimmed.gaussians.whiten[0], wanted.gaussians.whiten[0], rtol=1e-5, atol=1e-6
    )


# Missing cells.


def with_gaps(*sizes, share=0.02, seed=1, **options):
    """As `ready`, with a share of the cells missing, channel `v` often."""
    rng = np.random.default_rng(seed)
    train = []
    for i, rows in enumerate(sizes):
        one = series(f"m{i}", rows, i, scale=1 + i)
        gone = rng.random(one.values.shape) < share
        gone[:, 1] |= rng.random(rows) < share
        one.values[gone] = np.nan
        train.append(one)
    return prepared_of(train, **options)


def prepared_of(train, **options):
    options = {
        "window": WINDOW, "stride": STRIDE, "max_gap": 5.0, "validation": 0.2,
        "calibration": 0.2, "scaler": "minmax",
    } | options  # fmt: skip
    return prepare(Dataset("plant", tuple(train), ()), **options)


class ByHandWithGaps(ByHand):
    """Complete rows for the Normal; the observed cells' marginal for scores."""

    def validation_errors(self, index, scaler):
        errors = super().validation_errors(index, scaler)
        return errors[~np.isnan(errors).any(axis=1)]

    def scores(self, index, scaler, gaussian):
        mean, precision = gaussian
        moving, rows = np.diag(precision) > 0, self.scaled(index, scaler)
        covariance = np.zeros_like(precision)
        own = np.ix_(moving, moving)
        covariance[own] = np.linalg.inv(precision[own])
        found = []
        for i, j in self.windows(self.prepared.entities[index].split.calibration):
            points = []
            for row in rows[i:j]:
                seen = ~np.isnan(row) & moving
                if seen.any():
                    centred = (row - mean)[seen]
                    own = np.linalg.inv(covariance[np.ix_(seen, seen)])
                    points.append(centred @ own @ centred)
            enough = len(points) > self.rules.allowed_points
            found.append(sorted(points)[-2] if enough else np.nan)
        return found


def test_incomplete_rows_stay_out_of_the_moments_and_in_the_scores():
    prepared = with_gaps(300, 200)
    hand = ByHandWithGaps(prepared, MODEL, RULES)
    calibration = calibrate(MODEL, prepared, RULES)
    assert np.isnan(prepared.entities[0].train.values).any(axis=1).sum() > 10
    for index in range(2):
        gaussian = hand.own(index)
        same_gaussian(calibration, index, gaussian)
        scores = hand.scores(index, prepared.entities[index].scaler, gaussian)
        np.testing.assert_allclose(calibration.scores[index], scores, rtol=1e-3)
        tau, rank = hand.tau(scores)
        threshold = calibration.thresholds[index]
        assert threshold.tau == pytest.approx(tau, rel=1e-3)
        assert threshold.rank == rank


def test_calibration_windows_without_a_score_are_left_out_with_their_starts():
    prepared = with_gaps(300, share=0.0)
    whole = calibrate(MODEL, prepared, RULES)
    values = prepared.entities[0].train.values
    starts = whole.starts[0]
    # Two windows share rows with neighbours: only the third loses all but one point.
    values[starts[2] : starts[2] + WINDOW - 1] = np.nan
    calibration = calibrate(MODEL, prepared, RULES)
    kept = [place for place in range(len(starts)) if place != 2]
    assert calibration.starts[0].tolist() == starts[kept].tolist()
    assert not np.isnan(calibration.scores[0]).any()
    assert (
        calibration.thresholds[0].n
        == len(starts) - 1
        == len(calibration.threshold_scores[0])
    )
    apart = [place for place in kept if abs(place - 2) > 1]
    np.testing.assert_allclose(
        calibration.scores[0][[kept.index(place) for place in apart]],
        whole.scores[0][apart],
        rtol=1e-5,
    )


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas"])
def test_shrinkage_counts_complete_rows_only(shrinkage):
    """Incomplete rows are as if they were not in the file."""
    prepared = with_gaps(300, share=0.0, stride=WINDOW)
    entity = prepared.entities[0]
    low = entity.split.validation[0][0]
    rules = RULES._replace(shrinkage=shrinkage)
    spans = np.array([[low + WINDOW, low + 5 * WINDOW]])
    split = entity.split._replace(validation=spans)
    fewer = prepared._replace(entities=(entity._replace(split=split),))
    wanted = calibrate(MODEL, fewer, rules)
    spans = np.array([[low, low + 5 * WINDOW]])
    split = entity.split._replace(validation=spans)
    entity.train.values[low : low + WINDOW, 0] = np.nan
    gappy = prepared._replace(entities=(entity._replace(split=split),))
    found = calibrate(MODEL, gappy, rules)
    np.testing.assert_allclose(
        found.gaussians.whiten[0], wanted.gaussians.whiten[0], rtol=1e-5, atol=1e-6
    )


def test_windows_without_a_score_are_the_first_to_be_trimmed():
    prepared = with_gaps(300, share=0.0, stride=WINDOW)
    entity = prepared.entities[0]
    hand = ByHand(prepared, MODEL, RULES)
    windows = [
        (start, start + WINDOW)
        for low, high in entity.split.validation
        for start in range(low, high - WINDOW + 1, WINDOW)
    ]
    first, last = windows[1]
    share = 1 / len(windows) + 1e-9
    # One point with a score is not more than the one that may lie above.
    entity.train.values[first : last - 1] = np.nan
    entity.train.values[last - 1] += 1.0
    trimmed = calibrate(MODEL, prepared, RULES._replace(trim=share))
    rows = hand.scaled(0, entity.scaler)
    rest = [rows[i:j] for i, j in windows if (i, j) != (first, last)]
    same_gaussian(trimmed, 0, hand.gaussian(np.concatenate(rest)))


@pytest.mark.parametrize("trim", [0.0, 0.3])
def test_an_entity_without_a_complete_row_borrows(trim):
    train = [series("m0", 300, 0), series("m1", 200, 1)]
    train[1].values[::2, 0] = np.nan
    train[1].values[1::2, 1] = np.nan
    prepared = prepared_of(train)
    assert [entity.pooled for entity in prepared.entities] == [False, True]
    calibration = calibrate(MODEL, prepared, RULES._replace(trim=trim))
    assert [t.source for t in calibration.thresholds] == ["own", "pooled", "pooled"]
    for field in calibration.gaussians:
        np.testing.assert_array_equal(field[1], field[2])
    assert set(calibration.floored) == {"m0"}


@pytest.mark.parametrize("trim", [0.0, 0.3])
def test_no_complete_row_at_all_is_refused(trim):
    one = series("m0", 300, 0)
    one.values[::2, 0] = np.nan
    one.values[1::2, 1] = one.values[::50, 1] = np.nan
    prepared = prepared_of([one])
    message = (
        "no validation row has a value in every channel.* put "
        f"{one.channels[1]!r}, .*data.ignore, .*data.fill_limit.*data.missing=ffill"
    )
    with pytest.raises(DataError, match=message):
        calibrate(MODEL, prepared, RULES._replace(trim=trim))


# Refusals.


def test_a_rate_that_no_entity_can_hold_is_refused_before_training(mixed):
    # 28 calibration windows in all hold 1/29 = 0.0345 and no less.
    check_enough(mixed, Rule("conformal", 0.035))
    message = (
        r"false_alarm_rate=0.034 needs at least 29 calibration windows, have 28: give"
    )
    with pytest.raises(ConfigError, match=message):
        check_enough(mixed, Rule("conformal", 0.034))


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


def whole_pca(prepared):
    """A `pca` of all components, as version 0.1.0 fitted it to independent channels."""
    rows = np.concatenate([e.train.values for e in prepared.entities])
    params = {"mean": rows.mean(axis=0), "components": np.eye(3, dtype=np.float32)}
    return ResidualModel("pca", params)


def test_residuals_of_rounding_are_refused(mixed):
    with pytest.raises(
        NothingLeft, match=r"pca for 3 channels are rounding errors only.*data.ignore"
    ):
        calibrate(whole_pca(mixed), mixed, RULES)
    # Constant rows leave nothing either, but not by rounding.
    still = series("m", 300, 0)
    still.values[:] = 4
    prepared = prepare(Dataset("plant", (still,), ()), **OPTIONS)
    assert calibrate(MODEL, prepared, RULES).thresholds[0].tau < 1e-6


def test_an_evaluation_leaves_out_a_baseline_of_rounding(mixed):
    said = io.StringIO()
    models = {"pca": whole_pca(mixed), "mahalanobis": MODEL}
    options = {"min_anomalous_points": 1, "console": Console(file=said, width=500)}
    assert [*evaluate_models(models, mixed, RULES, **options)] == ["mahalanobis"]
    assert (
        "pca: left out: the residuals of pca for 3 channels are rounding"
        in said.getvalue()
    )
    with pytest.raises(NothingLeft):
        evaluate_models({"teacher": whole_pca(mixed)}, mixed, RULES, **options)
