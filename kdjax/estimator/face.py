"""kdjax with the names and senses of PyOD, for what is built around scikit-learn.

Zhao, Nasrullah and Li, JMLR 2019, "PyOD: A Python Toolbox for Scalable Outlier
Detection": a higher score is more abnormal, and `predict` gives 0 or 1. scikit-learn's
own detectors turn both around (a lower score, −1 for outliers), which is why `KDDetector`
is a `BaseEstimator` and no `OutlierMixin`.

Each row's score is that of the latest window that ended at or before it: what a live
system knew at that row. τ is a threshold on just these scores.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from kdjax.data.cells import Place, to_float32
from kdjax.data.series import Series
from kdjax.data.tables import numbered_channels
from kdjax.detection.detector import POOLED, Detector, entity_index
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.table import CONTRIBUTION, score_events, score_table
from kdjax.detection.threshold import Rule, choose_threshold
from kdjax.errors import ConfigError, DataError
from kdjax.estimator.learning import (
    UNTAUGHT,
    Tuition,
    in_alarm,
    learn,
    verdicts,
    with_threshold,
)
from kdjax.estimator.parameters import parameters_of, settings_of
from kdjax.estimator.rows import ROWS, time_of
from kdjax.lessons import Scorer
from kdjax.recalibration import recalibrated
from kdjax.rules import threshold_rule

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
        detector: which model detects: the `student`, its `teacher` alone, or a control
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
        teacher_: the calibrated teacher; None for a control, or loaded without it.
        entity_: whose scaler, Normal and threshold of `detector_` are used.
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
        teachers: Sequence[Scorer] = (),
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
                `settings={"distill.disturbed_copies": 3}` asks the teachers about
                windows that were disturbed on purpose as well.
            weights: of the teachers; () to count them the same.

        Raises:
            ConfigError: a parameter, or too few rows for the false-alarm rate.
            DataError: too few rows for the window, cells that are no finite numbers, or
                a teacher's answer that isn't one score for each row.
        """
        lesson = Tuition(tuple(teachers), tuple(weights))
        return self._learn(self._series(X, reset=True), lesson=lesson)

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
            entity: whose scaler, Normal and threshold to use; by default those of its
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

    def _settings(self, lesson: Tuition = UNTAUGHT) -> dict[str, Any]:
        further = dict(self.settings or {})
        if lesson.teachers:
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
        lesson: Tuition = UNTAUGHT,
    ) -> Self:
        made = learn(
            series,
            self.detector,
            settings=self._settings(lesson),
            teacher=teacher,
            entity=entity,
            lesson=lesson,
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
        return verdicts(self.detector_, series, entity=self.entity_)

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
