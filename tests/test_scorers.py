"""Teachers' point scores as targets of students, against numpy in float64."""

import numpy as np
import pytest
from rich.console import Console

from kdjax.config import get_config, override
from kdjax.data.prepared import prepare, training_windows
from kdjax.data.series import Dataset, Series
from kdjax.experiment import train
from kdjax.experiment.jobs import job_targets, make_training_data, student_job
from kdjax.experiment.sweeps import members
from kdjax.experiment.sweeps.design import make_design
from kdjax.experiment.train import scorers_of
from kdjax.models.residual import ResidualModel, join_models
from kdjax.training.targets import log_tails

L, STRIDE, D = 6, 4, 3
FLOOR, RIDGE = 0.05, 0.1
TEACHER = join_models(
    [ResidualModel("mahalanobis", {}), ResidualModel("difference", {})]
)
ERRORS = {
    "mahalanobis": lambda x: x,
    "difference": lambda x: np.abs(np.diff(x, axis=-2, prepend=x[..., :1, :])),
}
ERRORS["mahalanobis+difference"] = lambda x: np.concatenate(
    [ERRORS[kind](x) for kind in ("mahalanobis", "difference")], axis=-1
)


def series(entity, rows, seed, scale):
    rng = np.random.default_rng(seed)
    values = scale * rng.normal(size=(rows, D)) @ rng.normal(size=(D, D)) + seed
    values[:, 2] = 4.0
    return Series(entity, values.astype(np.float32), ("u", "v", "dead"))


@pytest.fixture(scope="module")
def prepared():
    """Two machines, each with a scaler of its own."""
    train = (series("a", 300, 0, 1.0), series("b", 200, 1, 5.0))
    made = prepare(
        Dataset("plant", train, ()), window=L, stride=STRIDE, max_gap=5.0,
        validation=0.2, calibration=0.2, scaler="zscore",
    )  # fmt: skip
    first, second = (entity.scaler.scale for entity in made.entities)
    assert second[0] > 2 * first[0]
    return made


@pytest.fixture(scope="module")
def settings(tiny):
    def make(**changes):
        given = {
            "data.name": "smd", "distill.target": "scores", "detection.floor": FLOOR,
            "detection.ridge": RIDGE, "detection.batch_size": 16,
            "teacher.components": ("mahalanobis", "difference"),
        }  # fmt: skip
        return tiny(given | {k.replace("__", "."): v for k, v in changes.items()})

    return make


def scaled_windows(prepared, part):
    """Windows `[M, L, D]` of all machines, each scaled by its own scaler."""
    found = []
    for entity in prepared.entities:
        rows = (entity.train.values - entity.scaler.offset) / entity.scaler.scale
        found += [
            rows[start : start + L]
            for low, high in getattr(entity.split, part)
            for start in range(low, high - L + 1, STRIDE)
        ]
    return np.stack(found)


def normal_by_hand(prepared, kind):
    """Mean and covariance of the validation errors, with floor and ridge."""
    errors = ERRORS[kind](np.float64(scaled_windows(prepared, "validation")))
    errors = errors.reshape(-1, errors.shape[-1])
    scale = np.maximum(errors.std(axis=0), FLOOR)
    sigma = np.cov(errors.T, ddof=0) + RIDGE * np.diag(scale**2)
    return errors.mean(axis=0), sigma


def distances(windows, kind, gaussian):
    mean, sigma = gaussian
    centred = ERRORS[kind](np.float64(windows)) - mean
    return np.einsum("mli,ij,mlj->ml", centred, np.linalg.inv(sigma), centred)


def test_a_teacher_scores_windows_under_the_normal_of_all(prepared, settings):
    (scorer,) = scorers_of(TEACHER, prepared, settings())
    windows = scaled_windows(prepared, "fit")
    wanted = distances(windows, TEACHER.kind, normal_by_hand(prepared, TEACHER.kind))
    found = scorer(windows)
    assert found.shape == windows.shape[:2]
    np.testing.assert_allclose(found, wanted, rtol=2e-3)


@pytest.mark.parametrize("scope", ["per_entity", "pooled"])
def test_weights_make_a_teacher_of_each_part(prepared, settings, scope):
    changes = {"distill__weights": (1.0, 3.0), "detection__scope": scope}
    scorers = scorers_of(TEACHER, prepared, settings(**changes))
    windows = scaled_windows(prepared, "fit")
    for kind, scorer in zip(("mahalanobis", "difference"), scorers, strict=True):
        wanted = distances(windows, kind, normal_by_hand(prepared, kind))
        np.testing.assert_allclose(scorer(windows), wanted, rtol=2e-3)


def test_of_one_machine_it_is_its_own_normal(prepared, settings):
    one = prepared._replace(entities=prepared.entities[1:])
    (scorer,) = scorers_of(ResidualModel("mahalanobis", {}), one, settings())
    windows = scaled_windows(one, "calibration")
    wanted = distances(windows, "mahalanobis", normal_by_hand(one, "mahalanobis"))
    np.testing.assert_allclose(scorer(windows), wanted, rtol=2e-3)


def test_rows_with_gaps_have_the_distance_of_what_was_observed(prepared, settings):
    (scorer,) = scorers_of(ResidualModel("mahalanobis", {}), prepared, settings())
    windows = scaled_windows(prepared, "fit")[:20].copy()
    windows[3, 2, 1] = windows[5, 0] = np.nan
    found = scorer(windows)
    mean, sigma = normal_by_hand(prepared, "mahalanobis")
    wanted = distances(windows, "mahalanobis", (mean, sigma))
    centred = (windows[3, 2] - mean)[[0, 2]]
    wanted[3, 2] = centred @ np.linalg.inv(sigma[np.ix_([0, 2], [0, 2])]) @ centred
    assert np.isnan(found).sum() == 1 and np.isnan(found[5, 0])
    np.testing.assert_allclose(found, wanted, rtol=2e-3)


@pytest.mark.parametrize(
    "changes", [{"distill__target": "errors"}, {"distill__alpha": 0.0}]
)
def test_nobody_is_asked_for_scores_that_nobody_learns(prepared, settings, changes):
    assert scorers_of(TEACHER, None, settings(**changes)) == ()


def test_a_student_hears_the_weighted_tails_of_all_its_windows(prepared, settings):
    """From the data to the targets of training."""
    made = settings(distill__weights=(1.0, 3.0))
    training = student_job(
        make_training_data(prepared, made["data"] | {"stride": STRIDE}), made,
        name="student", teacher=TEACHER, scorers=scorers_of(TEACHER, prepared, made),
    )  # fmt: skip
    found = job_targets(training, {})
    rows, starts = training_windows(prepared, "fit", stride=STRIDE)
    windows = rows[starts[:, None] + np.arange(L)]
    np.testing.assert_allclose(windows, scaled_windows(prepared, "fit"), rtol=1e-6)
    tails = []
    for kind in ("mahalanobis", "difference"):
        scores = distances(windows, kind, normal_by_hand(prepared, kind))
        tails.append(log_tails(scores, scores.ravel()))
    wanted = np.average(tails, axis=0, weights=(1, 3))
    # Scores that are nearly alike may change places by rounding.
    np.testing.assert_allclose(found, wanted, atol=0.02)


# In a sweep.


@pytest.fixture
def planned(plant_changes, monkeypatch, tmp_path):
    """The students' trainings of a sweep of such changes, none of which is trained."""
    from conftest import TINY

    def plan(*changes, **base):
        given = TINY | plant_changes | {
            "teacher.components": ("kmeans", "difference"), "teacher.seed": 0,
            "distill.target": "scores",
        }  # fmt: skip
        given |= {name.replace("__", "."): value for name, value in base.items()}
        design = make_design(
            "s",
            override(get_config(), given),
            lambda add: [add(own) for own in changes],
        )
        asked, students = [], []
        monkeypatch.setattr(
            members,
            "_train",
            lambda wanted, *rest, **where: students.extend(wanted) or {},
        )
        made = train.scorers_of

        def counted(*given):
            found = made(*given)
            asked.extend([1] * len(found))
            return found

        monkeypatch.setattr(train, "scorers_of", counted)
        sweep_data = members.load_sweep_data(design.name, design.members)
        quiet = Console(quiet=True)
        tasks = members.tasks_of(design.members, sweep_data)
        members.train_members(tasks, tmp_path, way="alone", console=quiet)
        return students, len(asked)

    return plan


def test_members_share_their_teachers_scores(planned):
    students, asked = planned(
        {"distill.alpha": 0.5},
        {"distill.alpha": 0.9, "seed": 1},
        {"threshold.false_alarm_rate": 0.2, "distill.alpha": 0.5},
        {"detection.floor": 0.2, "distill.alpha": 0.5},
        {"distill.target": "errors"},
        {"distill.alpha": 0.0},
    )
    # The one that differs in its threshold needs no student of its own.
    assert len(students) == 5 and asked == 2
    first, second, floored, errors, alone = (one.distillation for one in students)
    assert first.scorers[0] is second.scorers[0] and first.source == second.source
    assert floored.scorers[0] is not first.scorers[0]
    assert floored.source != first.source
    assert errors.scorers == () and alone is None


def test_each_machine_has_its_own_scorers(planned):
    students, asked = planned(
        {"distill.alpha": 0.5}, {"distill.alpha": 0.9},
        entity_mode="per_entity", distill__weights=(1.0, 1.0),
        threshold__false_alarm_rate=0.3,
    )  # fmt: skip
    assert len(students) == 4 and asked == 2 * 2
    by_part = {}
    for one in students:
        assert len(one.distillation.scorers) == 2 and one.distillation.weights == (
            1.0,
            1.0,
        )
        by_part.setdefault(one.name.split("/")[1], set()).add(one.distillation.scorers)
    assert sorted(by_part) == ["press", "saw"]
    assert all(len(found) == 1 for found in by_part.values())
    assert by_part["press"] != by_part["saw"]
