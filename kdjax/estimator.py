"""The PyOD-shaped face: `KDDetector`, for what is built around scikit-learn.

What scikit-learn checks of estimators and a detector of time series can't pass.

What a caller's rows are called, and their time.

The estimator's parameters as settings of a run, and back from a detector's card.

One series in memory made into detectors, and what a detector says of each row.

kdjax with the names and senses of PyOD, for what is built around scikit-learn.

Zhao, Nasrullah and Li, JMLR 2019, "PyOD: A Python Toolbox for Scalable Outlier
Detection": a higher score is more abnormal, and `predict` gives 0 or 1. scikit-learn's
own detectors turn both around (a lower score, −1 for outliers), which is why `KDDetector`
is a `BaseEstimator` and no `OutlierMixin`.

Each row's score is that of the latest window that ended at or before it: what a live
system knew at that row. τ is a threshold on just these scores.
"""

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from rich.console import Console
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from kdjax.config import (
    BASELINES,
    get_config,
    leaves,
    override,
    resolve,
)
from kdjax.data.prepared import Prepared
from kdjax.data.raw import Place, to_float32
from kdjax.data.scaler import Scaler
from kdjax.data.series import Dataset, Series
from kdjax.data.splits import segments
from kdjax.data.tables import numbered_channels
from kdjax.data.times import parse_time
from kdjax.detection.alarming import AlarmRule, row_alarms
from kdjax.detection.calibration import calibrate
from kdjax.detection.detector import (
    POOLED,
    Detector,
    entity_index,
    scaler_of,
)
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.tables import CONTRIBUTION, score_events, score_table
from kdjax.detection.thresholds import Rule, Threshold, choose_threshold
from kdjax.errors import ConfigError, DataError
from kdjax.experiment.assemble import (
    calibration_rules,
    data_digests,
    make_detector,
    threshold_rule,
)
from kdjax.experiment.jobs import is_distilled
from kdjax.experiment.pipeline import prepare_dataset
from kdjax.experiment.recalibrate import recalibrated
from kdjax.experiment.train import train_networks
from kdjax.models.residual import ResidualModel, fit_baseline
from kdjax.training.targets import ScoreFunction

__all__ = ["EXPECTED_FAILED_CHECKS", "KDDetector"]


EXPECTED_FAILED_CHECKS = {
    "check_methods_sample_order_invariance": (
        "a row is judged in the window of rows before it, so its score depends on their "
        "order: that is what a detector for time series is for"
    ),
    "check_methods_subset_invariance": (
        "rows given a few at a time lack the rows before them, and a single row is "
        "shorter than any window"
    ),
}
"""The checks of `sklearn.utils.estimator_checks.check_estimator` that fail, and why."""


ROWS = "X"  # what messages call the rows, and detectors their entity


def time_of(X: Any) -> np.ndarray | None:
    """The rows' time, where X has a `DatetimeIndex`."""
    index = getattr(X, "index", None)
    if not isinstance(index, pd.DatetimeIndex):
        return None
    time = parse_time(index.to_series(name="time"), Place(Path(ROWS), ("time",)))
    late = np.flatnonzero(time[1:] <= time[:-1])
    if len(late):
        raise DataError(
            f"{ROWS}: row {late[0] + 2} of the index is at {index[late[0] + 1]}, not after "
            "the row before: sort the rows and remove duplicates, or call "
            "reset_index(drop=True) if the index is no time."
        )
    return time


# The config field that each parameter sets.
FIELDS = {
    "window_size": "data.window",
    "stride": "data.stride",
    "teacher_hidden": "teacher.hidden",
    "student_hidden": "student.hidden",
    "teacher_epochs": "teacher.epochs",
    "student_epochs": "student.epochs",
    "alpha": "distill.alpha",
    "temperature": "distill.temperature",
    "scaler": "data.scaler",
    "missing": "data.missing",
    "threshold": "threshold.method",
    "false_alarm_rate": "threshold.false_alarm_rate",
    "random_state": "seed",
}
PARAMETERS = {field: name for name, field in FIELDS.items()}

# What else of a config means something where rows come as an array.
_GROUPS = ("model", "teacher", "student", "train", "distill", "detection", "threshold")
_OF_DATA = (
    "calibration",
    "dense_below",
    "max_gap",
    "step_seconds",
    "train_stride",
    "validation",
)


def settings_of(
    parameters: Mapping[str, Any], further: Mapping[str, Any]
) -> dict[str, Any]:
    """The resolved config of an estimator.

    Args:
        parameters: of the estimator; those that `FIELDS` lacks are passed over.
        further: config fields by their dotted names.

    Raises:
        ConfigError: a value that is none, or a field that is a parameter or means
            nothing here.
    """
    for field in further:
        if field in PARAMETERS:
            raise ConfigError(
                f"settings: {field} is the parameter {PARAMETERS[field]}: set that one."
            )
        if not _is_read(field):
            raise ConfigError(
                f"settings: {field} means nothing for rows in memory: leave it out."
            )
    changes = {field: parameters[name] for name, field in FIELDS.items()}
    plain = {key: _plain(value) for key, value in (changes | dict(further)).items()}
    # A config wants to know its file; these rows have none.
    return resolve(override(get_config(), plain | {"data.path": "X"}))


def parameters_of(detector: Detector) -> dict[str, Any]:
    """The parameters that would make such a detector, from the settings in its card."""
    fields = _flat(detector.card.get("settings", {}))
    fields |= {"data.window": detector.window, "data.stride": detector.stride}
    usual = _flat(get_config().to_dict())
    further = {
        field: value
        for field, value in fields.items()
        if field not in PARAMETERS and _is_read(field) and value != usual.get(field)
    }
    return {
        **{name: fields[field] for name, field in FIELDS.items() if field in fields},
        "detector": detector.card.get("model", {}).get("name", detector.model.kind),
        "settings": further or None,
    }


def _is_read(field: str) -> bool:
    group, _, name = field.partition(".")
    return group in _GROUPS or (group == "data" and name in _OF_DATA)


def _plain(value: Any) -> Any:
    """A value as configs hold it: numpy's numbers and lists made Python's own."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else value


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {field: _plain(value) for field, value in leaves(settings)}


DETECTORS = ("student", "teacher", *BASELINES)

Settings = Mapping[str, Any]


class TeacherSource(NamedTuple):
    """Who teaches a student instead of a network of its own run.

    Attributes:
        teachers: scaled windows `[B, L, D]` to scores of their rows `[B, L]`.
        weights: of the teachers; () to count them the same.
    """

    teachers: tuple[ScoreFunction, ...] = ()
    weights: tuple[float, ...] = ()


UNTAUGHT = TeacherSource()


def fit_detectors(
    series: Series,
    name: str,
    *,
    settings: Settings,
    teacher: Detector | None = None,
    entity: str = POOLED,
    distillation: TeacherSource = UNTAUGHT,
) -> dict[str, Detector]:
    """The detector `name`, and beside a student its teacher, by name.

    Args:
        series: rows that are believed normal.
        name: one of `DETECTORS`.
        settings: from `kdjax.config.resolve`.
        teacher: one that is trained already. It stays as it is, and the rows are scaled
            as it knows them.
        entity: of the teacher, whose scaler to take.
        lesson: of a student without a network as teacher.

    Raises:
        ConfigError: an unknown name, too few rows for the false-alarm rate, or teachers
            that nobody learns from.
        DataError: too few rows for the window.
    """
    if name not in DETECTORS:
        raise ConfigError(f"detector={name!r} must be one of {', '.join(DETECTORS)}.")
    _check_lesson(distillation, name, settings)
    dataset = Dataset("rows in memory", (series,), ())
    prepared = prepare_dataset(dataset, settings)
    known = {}
    if teacher is not None:
        known = {"teacher": teacher}
        prepared = _rescaled(
            prepared, scaler_of(teacher, entity_index(teacher, entity))
        )
    rules = calibration_rules(settings, prepared)
    made = {
        found: make_detector(
            found,
            model,
            calibrate(model, prepared, rules),
            prepared,
            settings=settings,
            digests=data_digests(dataset),
        )
        for found, model in _models(
            name, prepared, settings, teacher, distillation
        ).items()
        if found not in known
    }
    return made | known


def row_results(detector: Detector, series: Series, *, entity: str) -> pd.DataFrame:
    """`score_table`, but with the first window's score in the rows before its end.

    So each row has a `window_score` and may be in alarm, except where no window is.
    """
    table = score_table(detector, series, entity=entity)
    scores = table["window_score"].to_numpy(copy=True)
    stretches = segments(
        series.time,
        len(scores),
        max_gap=detector.max_gap,
        step=detector.step or None,
    )
    for start, stop in stretches:
        end = start + detector.window - 1
        if end < stop:
            scores[start:end] = scores[end]
    return table.assign(
        window_score=scores, alarm=in_alarm(detector, scores, entity=entity)
    )


def in_alarm(detector: Detector, scores: np.ndarray, *, entity: str) -> np.ndarray:
    """Which rows are in alarm by their window scores, `[N] -> [N]` bool."""
    tau = detector.thresholds[entity_index(detector, entity)].tau
    rule = AlarmRule(detector.min_duration, detector.cooldown)
    return row_alarms(scores > tau, ~np.isnan(scores), rule)


def with_threshold(
    detector: Detector, threshold: Threshold, *, entity: str
) -> Detector:
    """The detector with another τ for one entity, in its card as well."""
    place = entity_index(detector, entity)
    thresholds = list(detector.thresholds)
    thresholds[place] = threshold
    known = {**detector.card.get("thresholds", {}), entity: threshold._asdict()}
    return detector._replace(
        thresholds=tuple(thresholds), card={**detector.card, "thresholds": known}
    )


def _rescaled(prepared: Prepared, scaler: Scaler) -> Prepared:
    entities = tuple(entity._replace(scaler=scaler) for entity in prepared.entities)
    return prepared._replace(entities=entities, pooled_scaler=scaler)


def _models(
    name: str,
    prepared: Prepared,
    settings: Settings,
    teacher: Detector | None,
    distillation: TeacherSource,
) -> dict[str, ResidualModel]:
    """The model `name`, and beside a student its teacher."""
    if name in BASELINES:
        return {name: fit_baseline(name, prepared)}
    with tempfile.TemporaryDirectory() as folder:
        return train_networks(
            prepared,
            settings,
            Path(folder),
            Console(quiet=True),
            names=(name,) if distillation.teachers else ("teacher", name),
            teacher=None if teacher is None else teacher.model,
            scorers=distillation.teachers,
            weights=distillation.weights,
        )


def _check_lesson(distillation: TeacherSource, name: str, settings: Settings) -> None:
    """Refuses teachers that nobody learns from, and weights that are none of theirs."""
    if distillation.teachers and (
        name != "student" or not is_distilled(settings["distill"])
    ):
        raise ConfigError(
            f"teachers: detector={name!r} with alpha={settings['distill']['alpha']} "
            "learns from none: set detector='student' and alpha above 0."
        )
    weights = distillation.weights
    recorded = all(0 <= weight < np.inf for weight in weights) and any(weights)
    if weights and (len(weights) != len(distillation.teachers) or not recorded):
        raise ConfigError(
            f"weights={weights!r} must have a finite number from 0 on for each of "
            f"{len(distillation.teachers)} teachers, not all of them 0."
        )


logger = logging.getLogger(__name__)


class KDDetector(BaseEstimator):  # type: ignore[misc]
    """A distilled detector of anomalies in the rows of a multivariate time series.

    X is `[N, D]`: rows in time order, an array or a DataFrame. A `DatetimeIndex` is the
    rows' time, so that no window crosses a gap; other indices say nothing. With few rows
    make `window_size` small, or `data.validation` and `data.calibration` large.

    Args:
        window_size: L, rows of a window.
        stride: rows from one window to the next; with 1 each row has a window of its
            own that ends there.
        detector: which model detects: the `student`, its `teacher` alone, or a baseline
            without a network: `mahalanobis`, `pca`, `difference`, `moving_average`.
        teacher_hidden: widths of the teacher's encoder layers.
        student_hidden: widths of the student's.
        teacher_epochs: the most epochs of the teacher, which stops early.
        student_epochs: epochs of the student.
        alpha: weight of the teacher's term in the student's loss.
        temperature: T, see docs/method.md.
        scaler: `minmax`, `zscore`, `robust`, or `none` after a scaler in a `Pipeline`.
        missing: `error` refuses NaN, `ffill` repeats the last value, `mask` leaves
            missing cells out.
        threshold: how τ is chosen, without labels: `conformal`, `quantile`, `pot`,
            `budget` or `fixed`.
        false_alarm_rate: wanted share of false alarms among normal windows, on rows that
            the networks did not learn from. PyOD's `contamination` is another thing: the
            share of outliers believed to be in the training rows.
        random_state: the seed, a whole number; the same one gives the same detector.
        settings: further fields of `kdjax.config` by their dotted names, such as
            `{"train.learning_rate": 1e-2}`.

    Attributes:
        detector_: the `kdjax.detection.detector.Detector`.
        teacher_: the calibrated teacher; None for a baseline, or loaded without it.
        entity_: whose scaler, Gaussian and threshold of `detector_` are used.
        decision_scores_: `[N]` scores of the rows that `fit` saw, most of which the
            networks learnt from; not saved.
        threshold_: τ.
        labels_: `[N]` 0 or 1, of `decision_scores_` under the present τ.
        n_features_in_: D.
        feature_names_in_: the names of the columns, if X had any.
    """

    detector_: Detector
    teacher_: Detector | None
    entity_: str
    decision_scores_: np.ndarray

    def __init__(
        self,
        *,
        window_size: int = 100,
        stride: int = 10,
        detector: str = "student",
        teacher_hidden: Sequence[int] = (64, 64),
        student_hidden: Sequence[int] = (16,),
        teacher_epochs: int = 40,
        student_epochs: int = 40,
        alpha: float = 0.35,
        temperature: float = 1.0,
        scaler: str = "minmax",
        missing: str = "error",
        threshold: str = "conformal",
        false_alarm_rate: float = 0.01,
        random_state: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.window_size = window_size
        self.stride = stride
        self.detector = detector
        self.teacher_hidden = teacher_hidden
        self.student_hidden = student_hidden
        self.teacher_epochs = teacher_epochs
        self.student_epochs = student_epochs
        self.alpha = alpha
        self.temperature = temperature
        self.scaler = scaler
        self.missing = missing
        self.threshold = threshold
        self.false_alarm_rate = false_alarm_rate
        self.random_state = random_state
        self.settings = settings

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        teachers: Sequence[ScoreFunction] = (),
        weights: Sequence[float] = (),
    ) -> Self:
        """Learns from rows `[N, D]` that are believed normal; `y` is not looked at.

        Args:
            X: the rows.
            y: for scikit-learn's pipelines.
            teachers: your own detectors to learn from instead of a network: callables
                that take scaled windows `[B, L, D]` and give a score for each of their
                rows, `[B, L]`, larger where it is more abnormal. The student's loss is
                that of `distill.target="scores"`; `alpha` weighs it, and
                `settings={"distill.augmented_copies": 3}` asks the teachers about
                windows that were disturbed on purpose as well.
            weights: of the teachers; () to count them the same.

        Raises:
            ConfigError: a parameter, or too few rows for the false-alarm rate.
            DataError: too few rows for the window, cells that are no finite numbers, or
                a teacher's answer that isn't one score for each row.
        """
        distillation = TeacherSource(tuple(teachers), tuple(weights))
        return self._learn(self._series(X, reset=True), distillation=distillation)

    def decision_function(self, X: Any) -> np.ndarray:
        """The score of each row, `[N, D] -> [N]`; higher is more abnormal.

        The window score of the latest window that ended at or before the row; the rows
        before the end of the first window have that one's. Infinite after an overflow;
        NaN where there is no score: in a stretch between gaps that is shorter than the
        window, and in windows without a value under `missing="mask"`.
        """
        return self._verdicts(self._series(X))["window_score"].to_numpy()

    def predict(self, X: Any) -> np.ndarray:
        """1 for rows in alarm, else 0: `decision_function(X) > threshold_`.

        `threshold.min_duration` and `threshold.cooldown` hold back some of these.

        Raises:
            DataError: a row has no score, so that neither 0 nor 1 would be true.
        """
        return self._labels(self.decision_function(X))

    def explain(self, X: Any) -> pd.DataFrame:
        """What each channel contributed to each row, `[N, D]` with the index of X.

        A row's contributions sum to its mean a_t over the windows that cover it, which
        tells where in a window the anomaly is.
        """
        series = self._series(X)
        table = score_table(
            self.detector_, series, entity=self.entity_, contributions=True
        )
        parts = table[[CONTRIBUTION + name for name in series.channels]]
        index = X.index if isinstance(X, pd.DataFrame) else None
        return pd.DataFrame(
            parts.to_numpy(), index=index, columns=pd.Index(series.channels)
        )

    def detect(self, X: Any) -> pd.DataFrame:
        """The events in X: stretches of rows in alarm, those nearer than L as one.

        Columns: `start`, `end`, `severity` (largest score / τ), `peak` (where the rows
        are most abnormal) and `channels` (the three most to blame). Times where X has
        them, else row numbers. Rows without a score are in no event and logged.
        """
        series = self._series(X)
        table = self._verdicts(series)
        unknown = int(table["window_score"].isna().sum())
        if unknown:
            logger.warning(
                "%d of %d rows have no score: no event can be there",
                unknown,
                len(table),
            )
        events = score_events(self.detector_, series, table, entity=self.entity_)
        return events.drop(columns="entity")

    def calibrate(self, X: Any = None) -> Self:
        """Chooses τ anew without training, by the parameters as they are now.

        Args:
            X: clean rows that the networks did not learn from; None for the scores that
                τ was chosen on before, as after `set_params(false_alarm_rate=…)`.
        """
        check_is_fitted(self, "detector_")
        settings, detector = self._settings(), self.detector_
        if X is None:
            rule = threshold_rule(
                settings, step_seconds=detector.step, stride=detector.stride
            )
            return self._choose(rule)
        if self.entity_ == POOLED:
            raise ConfigError(
                "calibrate(X): the detector knows several entities and none was chosen: "
                "load it with entity=NAME."
            )
        series = self._series(X)._replace(entity=self.entity_)
        threshold = settings["threshold"]
        self.detector_ = recalibrated(detector, series, threshold=threshold).detector
        return self

    def set_threshold(self, tau: float) -> Self:
        """Sets τ by hand; `threshold_`, `predict` and `labels_` follow."""
        check_is_fitted(self, "detector_")
        return self._choose(Rule("fixed", value=tau))

    def distill(self, X: Any, *, student_hidden: Sequence[int]) -> "KDDetector":
        """A new detector: another student, taught on X by this one's teacher.

        The teacher is not trained again, and X is scaled as it was for the teacher; best
        give the rows of `fit`.

        Raises:
            ConfigError: there is no teacher.
        """
        series = self._series(X)
        teacher = self.teacher_
        if teacher is None or teacher.model.architecture is None:
            raise ConfigError(
                f"this KDDetector(detector={self.detector!r}) has no teacher to learn "
                "from: fit a student or a teacher, or load the teacher's folder."
            )
        other: KDDetector = clone(self).set_params(
            detector="student",
            teacher_hidden=teacher.model.architecture.hidden,
            student_hidden=student_hidden,
        )
        other._name_features(series.channels)
        return other._learn(series, teacher, self.entity_)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `detector_` as arrays, JSON and a manifest; `teacher_` stays behind.

        `kdjax.save_detector(folder, detector.teacher_)` keeps the teacher.
        """
        check_is_fitted(self, "detector_")
        save_detector(folder, self.detector_)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, entity: str | None = None
    ) -> "KDDetector":
        """A fitted detector from any folder that `save` or a run wrote.

        Args:
            folder: of the saved detector.
            entity: whose scaler, Gaussian and threshold to use; by default those of its
                only entity, and pooled ones where there are several.
        """
        detector = load_detector(folder)
        only = len(detector.entities) == 1
        loaded = cls(**parameters_of(detector))
        loaded.detector_ = detector
        loaded.entity_ = entity or (detector.entities[0] if only else POOLED)
        entity_index(detector, loaded.entity_)  # Refuses an unknown one.
        loaded.teacher_ = detector if loaded.detector == "teacher" else None
        loaded._name_features(detector.channels)
        return loaded

    @property
    def threshold_(self) -> float:
        """τ: a row whose score is above is in alarm."""
        return self.detector_.thresholds[self._place].tau

    @property
    def labels_(self) -> np.ndarray:
        """0 or 1 for each row that `fit` saw, under the present τ."""
        return self._labels(self.decision_scores_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing != "error"
        return tags

    @property
    def _place(self) -> int:
        return entity_index(self.detector_, self.entity_)

    def _settings(self, distillation: TeacherSource = UNTAUGHT) -> dict[str, Any]:
        further = dict(self.settings or {})
        if distillation.teachers:
            further["distill.target"] = "scores"
        return settings_of(self.get_params(deep=False), further)

    def _series(self, X: Any, *, reset: bool = False) -> Series:
        """X as a series, checked against the rows of `fit` unless it is them."""
        if not reset:
            check_is_fitted(self, "detector_")
        if isinstance(X, pd.DataFrame) and not X.columns.is_unique:
            shared = ", ".join(map(str, X.columns[X.columns.duplicated()]))
            raise DataError(f"{ROWS}: columns share a name ({shared}): rename them.")
        values = validate_data(
            self,
            X,
            reset=reset,
            dtype=(np.float64, np.float32),
            ensure_all_finite=True if self.missing == "error" else "allow-nan",
            # No window has a single row.
            ensure_min_samples=2 if reset else 1,
        )
        if self.missing == "ffill":
            values = pd.DataFrame(values).ffill().to_numpy()
        names = numbered_channels(values.shape[1])
        if not reset:
            names = self.detector_.channels
        elif hasattr(self, "feature_names_in_"):
            names = tuple(map(str, self.feature_names_in_))
        place = Place(Path(ROWS), names)
        values = to_float32(values, place, missing=self.missing)
        return Series(ROWS, values, names, time_of(X))

    def _learn(
        self,
        series: Series,
        teacher: Detector | None = None,
        entity: str = POOLED,
        distillation: TeacherSource = UNTAUGHT,
    ) -> Self:
        made = fit_detectors(
            series,
            self.detector,
            settings=self._settings(distillation),
            teacher=teacher,
            entity=entity,
            distillation=distillation,
        )
        self.detector_ = made[self.detector]
        self.teacher_ = made.get("teacher")
        self.entity_ = series.entity
        self.decision_scores_ = self._verdicts(series)["window_score"].to_numpy()
        return self

    def _choose(self, rule: Rule) -> Self:
        """Another τ by the scores that the present one was chosen on."""
        kept = self.detector_.calibration
        scores = kept[self._place] if kept else np.empty(0)
        self.detector_ = with_threshold(
            self.detector_, choose_threshold(scores, rule), entity=self.entity_
        )
        return self

    def _verdicts(self, series: Series) -> pd.DataFrame:
        return row_results(self.detector_, series, entity=self.entity_)

    def _labels(self, scores: np.ndarray) -> np.ndarray:
        unknown = np.flatnonzero(np.isnan(scores))
        if len(unknown):
            raise DataError(
                f"{ROWS}: {len(unknown)} of {len(scores)} rows have no score, the first "
                f"is row {unknown[0] + 1}, so neither 0 nor 1 is true: leave them out, "
                "or use decision_function, which gives NaN there."
            )
        alarm = in_alarm(self.detector_, scores, entity=self.entity_)
        return alarm.astype(np.int64)

    def _name_features(self, channels: Sequence[str]) -> None:
        """What scikit-learn remembers of the columns."""
        self.n_features_in_ = len(channels)
        if tuple(channels) != numbered_channels(len(channels)):
            self.feature_names_in_ = np.array(channels, object)
