"""What students learn from whom: teachers' answers against scikit-learn and loops."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from rich.console import Console
from sklearn.decomposition import PCA

from kdjax.data.datasets import load_dataset
from kdjax.errors import ConfigError, DataError
from kdjax.experiment.jobs import (
    is_distilled,
    make_distillation,
    make_training_data,
    student_job,
    train_job,
)
from kdjax.experiment.pipeline import prepare_dataset
from kdjax.experiment.train import train_networks
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.residual import ResidualModel
from kdjax.training.batching import WindowDataset
from kdjax.training.components import fit_components
from kdjax.training.targets import (
    compute_targets,
    leading_components,
    log_tails,
    target_shape,
)

L, D, M = 5, 3, 14
QUIET = Console(quiet=True)


# Codes.


def codes(rows, width, seed=0):
    """Codes whose units go together, each with a mean and a scale of its own."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, width)) @ rng.normal(size=(width, width))
    return np.tanh(0.3 * mixed + rng.normal(size=width)).astype(np.float32)


@pytest.mark.parametrize("width", [1, 3, 6])
@pytest.mark.parametrize("recorded", [80, 50])
def test_codes_are_scikit_learns_components_of_recorded_windows(width, recorded):
    said = codes(80, 6)
    found = leading_components(said, width, recorded=recorded)
    assert found.shape == (80, width) and found.dtype == np.float32
    pca = PCA(width, svd_solver="full").fit(np.float64(said[:recorded]))
    wanted = pca.transform(np.float64(said))
    wanted *= 0.5 / wanted[:recorded, 0].std()
    signs = np.sign((found * wanted).sum(axis=0))
    np.testing.assert_allclose(found, wanted * signs, rtol=1e-4, atol=1e-5)
    deviations = found[:recorded].std(axis=0)
    assert deviations[0] == pytest.approx(0.5, rel=1e-5)
    assert (np.diff(deviations) < 0).all()


@pytest.mark.parametrize(("rows", "width"), [(40, 2), (3, 6)])
def test_components_that_are_not_there_are_zeros(rows, width):
    """Of a narrower code than the student's, and of few windows."""
    said = codes(rows, width)
    found = leading_components(said, 8, recorded=rows)
    assert found.shape == (rows, 8)
    known = min(rows - 1, width)
    assert found[:, :known].any(axis=0).all()
    np.testing.assert_allclose(found[:, known:], 0, atol=1e-6)


def test_codes_that_never_change_are_zeros():
    same = np.full((9, 4), 0.1, np.float32)
    assert not leading_components(same, 3, recorded=9).any()
    # Whatever disturbed windows make of them.
    same[7:] = 0.8
    found = leading_components(same, 3, recorded=7)
    assert not found.any()


# Scores.


numbers = st.one_of(
    st.integers(-3, 3).map(float), st.sampled_from([np.inf, -np.inf]), st.floats(-9, 9)
)


@examples(deadline=None, max_examples=100)
@given(st.lists(numbers, min_size=1, max_size=12), st.lists(numbers, max_size=12))
def test_tails_are_shares_counted_one_by_one(scores, usual):
    found = log_tails(np.array(scores), np.array(usual))
    for score, tail in zip(scores, found, strict=True):
        share = (1 + sum(other >= score for other in usual)) / (1 + len(usual))
        assert tail == pytest.approx(-np.log(share), abs=1e-12)
    order = np.argsort(scores, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    assert (found >= 0).all() and (found <= np.log(len(usual) + 1) + 1e-12).all()


@pytest.fixture(scope="module")
def distillation(tiny):
    """Makes a distillation whose teachers score windows."""

    def make(*scorers, weights=(), **changes):
        given = {"data.name": "smd", "distill.target": "scores"}
        settings = tiny(given | {"detection.batch_size": 4} | changes)
        return make_distillation(settings, None, scorers, weights)

    return make


@pytest.fixture(scope="module")
def dataset():
    """14 windows; one row lacks a cell, one lacks all."""
    rows = np.random.default_rng(0).normal(size=(40, D)).astype(np.float32)
    rows[4, 1] = rows[11] = np.nan
    starts = jnp.arange(0, 28, 2, dtype=jnp.int32)
    assert len(starts) == M
    return WindowDataset(jnp.asarray(rows), starts, missing=True)


def loud(windows):
    """The largest value; NaN of rows without any."""
    return np.where(
        np.isnan(windows).all(axis=2),
        np.nan,
        np.nan_to_num(windows, nan=-9).max(axis=2),
    )


def late(windows):
    return np.broadcast_to(np.arange(L), windows.shape[:2])


def told(distillation, dataset, recorded=M):
    shape = Architecture(D, (2,))
    return compute_targets(
        distillation, dataset, window=L, student=shape, recorded=recorded
    )


def windows_of(dataset):
    rows = np.asarray(dataset.rows)
    return np.stack([rows[start : start + L] for start in np.asarray(dataset.starts)])


def tails_by_hand(scores, recorded=M):
    usual = [score for score in scores[:recorded].ravel() if not np.isnan(score)]
    tails = np.zeros(scores.shape)
    for place, score in np.ndenumerate(scores):
        if not np.isnan(score):
            above = sum(other >= score for other in usual)
            tails[place] = np.log((len(usual) + 1) / (above + 1))
    return tails


@pytest.mark.parametrize("recorded", [M, 6])
def test_scores_become_tails_among_recorded_windows(distillation, dataset, recorded):
    """Whatever the batch; rows without a value score nothing."""
    found = told(distillation(loud), dataset, recorded)
    scores = loud(windows_of(dataset))
    assert np.isnan(scores).sum() == 2 and found.dtype == np.float32
    assert found.shape == (
        M,
        *target_shape(distillation(loud), Architecture(D, (2,)), L),
    )
    wanted = tails_by_hand(scores, recorded)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert found.max() == pytest.approx(wanted.max()) and wanted.max() > 2
    whole = distillation(loud, **{"detection.batch_size": 64})
    np.testing.assert_array_equal(told(whole, dataset, recorded), found)


def test_only_the_order_of_scores_counts(distillation, dataset):
    found = told(distillation(loud), dataset)
    other = told(distillation(lambda windows: np.exp(3 * loud(windows)) - 7), dataset)
    np.testing.assert_array_equal(other, found)
    # Infinite is the largest.
    endless = told(
        distillation(lambda x: np.where(loud(x) > 1, np.inf, loud(x))), dataset
    )
    top = loud(windows_of(dataset)) > 1
    assert len(set(endless[top])) == 1 and endless[top].min() > endless[~top].max()


@pytest.mark.parametrize("weights", [(), (1.0, 3.0), (0.0, 2.0)])
def test_several_teachers_say_the_mean_of_their_tails(distillation, dataset, weights):
    found = told(distillation(loud, late, weights=weights), dataset)
    tails = [tails_by_hand(f(windows_of(dataset)).astype(float)) for f in (loud, late)]
    wanted = np.average(tails, axis=0, weights=weights or None)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "scorer",
    [
        lambda windows: windows.sum(axis=(1, 2)),
        lambda windows: windows,
        lambda windows: 1.0,
        lambda windows: np.zeros((len(windows) + 1, L)),
    ],
)
def test_scores_of_another_shape_are_refused(distillation, dataset, scorer):
    message = r"for windows of shape \(4, 5, 3\): expected one for each row, \(4, 5\)"
    with pytest.raises(DataError, match=message):
        told(distillation(scorer), dataset)


def test_a_row_with_values_needs_a_score(distillation, dataset):
    with pytest.raises(DataError, match="NaN as the score of a row that has values"):
        # NaN where any cell is missing.
        told(distillation(lambda windows: windows.sum(axis=2)), dataset)
    # Where all are missing it may be whatever; a number is taken as one.
    assert (
        told(distillation(lambda windows: np.nansum(windows, axis=2)), dataset)
        .all(axis=0)
        .any()
    )


# Codes of a corpus.


def test_hidden_answers_are_components_of_the_teachers_codes(tiny, dataset):
    shape = Architecture(D, (6, 4))
    params = jax.jit(network(shape).init)(jax.random.key(3))
    teacher = ResidualModel("autoencoder", params, shape)
    settings = tiny({"data.name": "smd", "distill.target": "hidden"})
    one = make_distillation(settings, teacher)
    whole = dataset.replace(rows=jnp.nan_to_num(dataset.rows), missing=False)
    said = network(shape).coded(params, jnp.asarray(windows_of(whole)))[1]
    for student, width in ((Architecture(D, (3,)), 3), (Architecture(D, (9,)), 4)):
        assert target_shape(one, student, L) == (width,)
        found = compute_targets(one, whole, window=L, student=student, recorded=10)
        wanted = leading_components(np.asarray(said), width, recorded=10)
        np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-4)
    # Of independent channels each has a code.
    wide = Architecture(D, (2,), "independent")
    assert target_shape(one, wide, L) == (4,)
    assert target_shape(one, wide._replace(width=1), L) == (2,)


# Trainings.


# Few steps that lead far, so that what a teacher says shows.
LIVELY = {
    "train.learning_rate": 0.02, "train.warmup_steps": 0, "distill.alpha": 0.9,
}  # fmt: skip


@pytest.fixture(scope="module")
def school(tiny, plant_changes):
    """Makes a training of the plant; its teacher has no network."""
    kinds = ("kmeans", "difference", "moving_average")
    base = plant_changes | LIVELY | {"teacher.components": kinds, "student.epochs": 1}
    prepared = prepare_dataset(load_dataset(tiny(base)["data"]), tiny(base))
    teacher = fit_components(kinds, prepared, None, fits={})

    def make(changes, scorers=(), name="student"):
        settings = tiny(base | changes)
        training_data = make_training_data(prepared, settings["data"])
        return student_job(
            training_data, settings, name=name, teacher=teacher, scorers=scorers
        )

    make.prepared, make.settings = prepared, lambda changes: tiny(base | changes)
    return make


@pytest.mark.parametrize(("alpha", "distilled"), [(0.0, False), (0.5, True)])
def test_a_student_is_taught_where_alpha_is_above_0(school, alpha, distilled):
    changes = {"distill.alpha": alpha}
    assert is_distilled(school.settings(changes)["distill"]) is distilled
    assert (school(changes).distillation is not None) is distilled


@pytest.mark.slow
@pytest.mark.parametrize("target", ["reconstruction", "errors"])
def test_several_teachers_in_each_step_give_the_same_student(
    school, tmp_path, caplog, target
):
    changes = {"distill.target": target, "distill.weights": (1.0, 2.0, 0.5)}
    kept = train_job(school(changes), tmp_path / "kept", QUIET).params
    with caplog.at_level(logging.WARNING, logger="kdjax"):
        found = train_job(
            school(changes | {"distill.cache_bytes": 0}), tmp_path / "anew", QUIET
        ).params
    assert "each step computes its own" in caplog.text
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, kept)
    # And another than that of the first part alone.
    first = train_job(
        school({"distill.target": target}), tmp_path / "first", QUIET
    ).params
    assert np.abs(first["head"]["kernel"] - kept["head"]["kernel"]).max() > 1e-4


@pytest.mark.parametrize("place", ["distill.cache_bytes", "data.memory_bytes"])
def test_answers_that_are_asked_once_must_be_kept(school, tmp_path, place):
    changes = {"distill.target": "scores", place: 0}
    message = "distill.target='scores' computes the targets of all windows once"
    with pytest.raises(ConfigError, match=message):
        train_job(school(changes, (loud,)), tmp_path, QUIET)


def test_callables_teach_a_student_without_any_network(school, tmp_path):
    settings = school.settings({"distill.target": "scores"})

    def train(folder, scorers, weights=()):
        models = train_networks(
            school.prepared, settings, tmp_path / folder, QUIET, names=("student",),
            scorers=scorers, weights=weights,
        )  # fmt: skip
        assert list(models) == ["student"]
        return models["student"].params

    loudest = train("loud", (loud,))
    both = train("both", (loud, late_in_ten), (1.0, 0.0))
    jax.tree.map(np.testing.assert_array_equal, both, loudest)
    other = train("other", (loud, late_in_ten))
    assert np.abs(other["head"]["kernel"] - loudest["head"]["kernel"]).max() > 1e-3
    training = school({"distill.target": "scores"}, (loud,))
    by_hand = train_job(training, tmp_path / "hand", QUIET).params
    jax.tree.map(np.testing.assert_array_equal, by_hand, loudest)


def late_in_ten(windows):
    """Later rows of the plant's windows score higher."""
    return np.broadcast_to(np.arange(10.0), windows.shape[:2])
