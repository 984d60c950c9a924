"""Disturbed windows against their definition; the classifier against numpy."""

import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import kdjax
from kdjax.data.disturb import KINDS, Stretch, disturbed
from kdjax.models.classifier import (
    classifier_contributions,
    classifier_points,
    count_numbers,
    in_ranges,
)
from kdjax.training import fitting as training
from kdjax.training.fitting import most_windows

PART = Stretch(
    values=np.array([[1.0, 10], [2, 30], [4, 20], [7, 40]]),
    strength=np.array([0.5, -2.0]),
    unit=np.array([2.0, 1.0]),
    other=np.arange(8.0).reshape(4, 2),
)
# By hand: the channels are 1, 2, 4, 7 with a step of 1 and 10, 30, 20, 40 with −2.
BY_HAND = {
    "level": [[2, 8], [3, 28], [5, 18], [8, 38]],
    "freeze": [[1, 10]] * 4,
    "exchange": [[0, 1], [2, 3], [4, 5], [6, 7]],
    "reverse": [[7, 40], [4, 20], [2, 30], [1, 10]],
    "ramp": [[1.25, 9.5], [2.5, 29], [4.75, 18.5], [8, 38]],
    "amplitude": np.array([[-2.5, -15], [-1.5, 5], [0.5, -5], [3.5, 15]])
    * np.exp([0.5, -2])
    + [3.5, 25],
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_disturbance(kind):
    drawn = [disturbed(kind, PART, np.random.default_rng(i)) for i in range(60)]
    if kind in BY_HAND:
        for found in drawn:
            np.testing.assert_allclose(found, BY_HAND[kind])
        return
    steps = np.array(drawn) - PART.values
    if kind == "noise":
        noise = steps / (PART.strength * PART.unit)
        assert abs(noise.mean()) < 0.15 and abs(noise.std() - 1) < 0.1
    if kind == "spike":
        assert (np.count_nonzero(steps, axis=1) == 1).all()
        assert set(np.unique(steps)) == {0.0, 1.0, -2.0}
    if kind == "speed":
        fast, slow = PART.values[[0, 2, 0, 2]], PART.values[[0, 0, 1, 1]]
        assert all((f == fast).all() or (f == slow).all() for f in drawn)
        assert 10 < sum((f == fast).all() for f in drawn) < 50
    if kind == "constant":
        assert (np.ptp(drawn, axis=1) == 0).all()
        assert np.min(drawn) > -0.5 and np.max(drawn) < 1.5 and np.std(drawn) > 0.4


def test_a_copy_has_one_disturbed_stretch_of_some_channels():
    windows = np.random.default_rng(0).uniform(size=(20, 30, 8)).astype(np.float32)
    found = kdjax.disturb_windows(windows, copies=20, seed=3)
    np.testing.assert_array_equal(
        found, kdjax.disturb_windows(windows, copies=20, seed=3)
    )
    changed = found != np.repeat(windows, 20, axis=0)
    assert changed.any(axis=(1, 2)).mean() > 0.97  # a spike may be clipped away
    channels, rows = changed.any(axis=1), changed.any(axis=2)
    assert set(channels.sum(axis=1)) <= {0, 1, 2, 3}
    assert 0.4 < channels[:, 0].mean() < 0.75  # 40 % and its share of the rest
    whole = rows[:, [0, -1]].all(axis=1).mean()
    assert 0.15 < whole < 0.45
    assert found.min() >= -4 and found.max() <= 5
    assert not (found == kdjax.disturb_windows(windows, copies=20, seed=4)).all()


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(1)
    waves = np.sin(np.arange(1500)[:, None] / 5 + np.arange(3))
    return (waves * [1, 10, 100] + rng.normal(0, [0.1, 1, 10], (1500, 3))).astype("f")


@pytest.fixture(scope="module")
def params(rows):
    windows = np.asarray(kdjax.windows(rows[:1000], length=32, stride=2))
    return kdjax.fit_classifier(windows, networks=2, steps=200)


def numpy_values(params, windows):
    return np.clip((np.float64(windows) - params["low"]) / params["scale"], -4, 5)


def numpy_scores(params, values, dilation=4):
    return np.logaddexp(0, numpy_logits(params, values, dilation)).mean(axis=0)


def numpy_logits(params, values, dilation=4):
    """The definition `[V, B]`, window by window, row by row, in float64."""
    params = jax.tree.map(np.float64, params)
    logits = []
    for window in values:
        found = []
        for place, level in enumerate(params["level"]):
            own = {name: leaf[place] for name, leaf in params["networks"].items()}
            layer, pooled = 2 * (window - (window.mean(axis=0) if level else 0.5)), []
            for name, apart in (("first", 1), ("second", dilation)):
                kernel = own[name]
                layer = np.array(
                    [
                        sum(layer[t + k * apart] @ kernel[k] for k in range(5))
                        for t in range(len(layer) - 4 * apart)
                    ]
                )
                layer = np.maximum(layer + own[f"{name}_bias"], 0)
                pooled += [layer.mean(axis=0), layer.max(axis=0)]
            hidden = np.concatenate(pooled) @ own["dense"] + own["dense_bias"]
            logit = np.maximum(hidden, 0) @ own["head"] + own["head_bias"]
            found.append(logit[0])
        logits.append(found)
    return np.array(logits).T


def test_scores_are_the_mean_negative_log_probability_of_a_normal_window(rows, params):
    windows = np.asarray(kdjax.windows(rows[1000:], length=32, stride=60)).copy()
    windows[3:, 10:20] += 0.3
    found = jax.jit(kdjax.classifier_scores)(params, windows)
    wanted = numpy_scores(params, numpy_values(params, windows))
    np.testing.assert_allclose(found, wanted, rtol=2e-3)
    points = classifier_points(params, windows)
    np.testing.assert_allclose(points, np.tile(found[:, None], 32), rtol=1e-6)
    # 8 and 6 ranges above the lowest, 3 and 1 beyond 5 in row 4: log(1 + 4) in these parts.
    windows[0, 4, :2] = (params["low"] + params["scale"] * [8, 6, 0])[:2]
    points = classifier_points(params, windows)[0]
    np.testing.assert_allclose(points[4] - points[5], np.log(5), rtol=1e-3)
    parts = classifier_contributions(params, windows)[0]
    wanted = np.log(5) * np.array([3, 1, 0]) / 4
    np.testing.assert_allclose(parts[4] - parts[5], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("length", "dilation"), [(9, 1), (16, 2), (20, 3), (21, 4)])
def test_short_windows_have_a_smaller_dilation(rows, params, length, dilation):
    windows = np.asarray(kdjax.windows(rows, length=length, stride=400))
    wanted = numpy_scores(params, numpy_values(params, windows), dilation)
    found = kdjax.classifier_scores(params, windows)
    np.testing.assert_allclose(found, wanted, rtol=2e-3)


def test_contributions_are_what_holding_a_channel_takes_away(rows, params):
    windows = np.asarray(kdjax.windows(rows[1000:], length=32, stride=60)).copy()
    windows[3:, 10:20, 1] += 25
    parts = classifier_contributions(params, windows)
    found = parts[:, 0]
    np.testing.assert_allclose(parts, np.tile(found[:, None], (32, 1)), rtol=1e-5)
    values = numpy_values(params, windows)
    whole, falls = numpy_scores(params, values), np.zeros((len(windows), 3))
    for channel in range(3):
        held = values.copy()
        flat = held[..., channel].mean(axis=1, keepdims=True)
        held[..., channel] = 0.75 * flat + 0.25 * params["mean"][channel]
        falls[:, channel] = np.maximum(whole - numpy_scores(params, held), 0)
    falls += 0.01 * whole[:, None]
    wanted = whole[:, None] * falls / falls.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, rtol=2e-2, atol=1e-3)
    np.testing.assert_allclose(found.sum(axis=1), whole, rtol=2e-3)
    assert (np.argmax(found[3:], axis=1) == 1).all()
    means = kdjax.windows(rows[:1000], length=32, stride=2).mean(axis=(0, 1))
    middle = params["low"] + params["scale"] * params["mean"]
    np.testing.assert_allclose(middle, means, rtol=1e-3, atol=1e-3)


def test_faults_that_it_never_saw_score_above_normal_windows(rows, params):
    normal = np.asarray(kdjax.windows(rows[1000:], length=32, stride=8))
    faults = normal.copy()
    faults[:, 12:, 1] = faults[:, :20, 1][:, ::-1] + 8  # another phase, moved
    scores = [kdjax.classifier_scores(params, part) for part in (normal, faults)]
    truth = np.repeat([0, 1], len(normal))
    assert roc_auc_score(truth, np.concatenate(scores)) > 0.95


def test_units_of_channels_do_not_matter(rows, params):
    windows = np.asarray(kdjax.windows(rows[:1000], length=32, stride=2))
    units = np.float32([1024, 0.125, 2])
    other = kdjax.fit_classifier(windows * units, networks=2, steps=200)
    test = np.asarray(kdjax.windows(rows[1000:], length=32, stride=40))
    np.testing.assert_allclose(
        kdjax.classifier_scores(other, test * units),
        kdjax.classifier_scores(params, test),
        rtol=1e-3,
        atol=1e-4,
    )


def test_more_networks_begin_with_those_of_fewer(rows):
    windows = np.asarray(kdjax.windows(rows[:1000], length=32, stride=8))
    two, four = (kdjax.fit_classifier(windows, networks=v, steps=30) for v in (2, 4))
    for name, leaf in four["networks"].items():
        np.testing.assert_allclose(two["networks"][name], leaf[:2], atol=1e-4)
        assert name.endswith("_bias") or not np.allclose(leaf[2:], leaf[:2], atol=1e-2)


def test_labels_are_softened_by_a_teacher(rows, params, monkeypatch):
    given = {}

    def train(network, level, clean, disturbed, labels):
        given.update(clean=clean, disturbed=disturbed, labels=labels)
        return network

    monkeypatch.setattr(training, "_train", train)
    windows = np.asarray(kdjax.windows(rows[:400], length=32, stride=40))
    for alpha, teacher in [(0.5, None), (0.25, params), (1.0, params)]:
        kdjax.fit_classifier(windows, steps=2, teacher=teacher, alpha=alpha)
        for hard, part in enumerate(("clean", "disturbed")):
            (values, _), labels = given[part], given["labels"][hard]
            wanted = np.full(len(values), hard, float)
            if teacher is not None:
                logits = numpy_logits(params, np.float64(values))
                soft = (1 / (1 + np.exp(-logits))).mean(axis=0)
                wanted = (1 - alpha) * hard + alpha * soft
            np.testing.assert_allclose(labels, wanted, atol=1e-3)
    with pytest.raises(kdjax.DataError, match="have 2 channels, but the teacher has 3"):
        kdjax.fit_classifier(windows[..., :2], steps=2, teacher=params)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(kdjax.ConfigError, match=f"alpha={wrong} must be in"):
            kdjax.fit_classifier(windows, steps=2, teacher=params, alpha=wrong)


def test_a_student_takes_over_what_its_teacher_says(rows, params):
    """A teacher that finds any window disturbed with probability 0.119, and α = 1."""
    networks = {name: np.zeros_like(leaf) for name, leaf in params["networks"].items()}
    networks["head_bias"] -= 2
    teacher = params | {"networks": networks}
    windows = np.asarray(kdjax.windows(rows[:400], length=32, stride=4))
    student = kdjax.fit_classifier(
        windows, networks=2, steps=200, teacher=teacher, alpha=1.0
    )
    values = np.asarray(in_ranges(student, windows))
    tested = np.concatenate([values, kdjax.disturb_windows(values, copies=1, seed=9)])
    found = 1 / (1 + np.exp(-numpy_logits(student, tested)))
    assert found.shape == (2, len(tested))
    assert abs(np.median(found) - 0.119) < 0.02 and np.quantile(found, 0.9) < 0.3


def test_huge_windows_are_fewer():
    assert most_windows(96, 38) == 1500  # 5.5 million cells
    assert most_windows(1000, 100) == 250  # of 100,000 cells each
    assert most_windows(5000, 1000) == 100
    assert most_windows(96, 38, 2000) == 2000
    assert most_windows(500, 50, 2000) == 1000  # of 25,000 cells each


def test_few_rows_and_constant_channels():
    flat = np.ones((30, 9, 2), np.float32)
    params = kdjax.fit_classifier(flat, networks=2, steps=5)
    assert np.isfinite(kdjax.classifier_scores(params, flat[:2])).all()
    with pytest.raises(kdjax.DataError, match="8 rows: a classifier needs at least 9"):
        kdjax.fit_classifier(flat[:, :8])
    flat[3, 4, 1] = np.nan
    with pytest.raises(kdjax.DataError, match="missing or infinite values: fill them"):
        kdjax.fit_classifier(flat)
    wide = kdjax.fit_classifier(np.ones((5, 21, 41), np.float32), networks=1, steps=1)
    # 41·5·8 + 8, 8·5·16 + 16, 48·16 + 16, 16 + 1, two limits, a mean and the view.
    numbers = sum(np.size(leaf) for leaf in jax.tree.leaves(wide))
    assert numbers == 1648 + 656 + 784 + 17 + 3 * 41 + 1 == count_numbers(41, 1)
    assert count_numbers(41) == 4 * (numbers - 3 * 41) + 3 * 41


@pytest.mark.parametrize(("width", "first"), [(38, 8), (41, 4)])
def test_narrower_networks(width, first):
    windows = np.ones((5, 21, width), np.float32)
    params = kdjax.fit_classifier(windows, networks=2, channels=8, steps=1)
    numbers = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    one = 5 * first * (width + 8) + first + 8 + 2 * (first + 8) * 16 + 16 + 17
    assert numbers == 2 * (one + 1) + 3 * width == count_numbers(width, 2, 8)
    found = kdjax.classifier_scores(params, windows)
    wanted = numpy_scores(params, numpy_values(params, windows))
    np.testing.assert_allclose(found, wanted, rtol=2e-3)
