"""`KDDetector`: kdjax with the names and conventions of PyOD and scikit-learn.

As in PyOD (Zhao, Nasrullah and Li, JMLR 2019) a higher score is more abnormal and
`predict` gives 0 or 1. scikit-learn's own detectors have lower scores and −1 for outliers,
so `KDDetector` is a `BaseEstimator` but no `OutlierMixin`.

A row's score is that of the latest window that ended at or before it, as in a live system.
"""

import contextlib
import copy
import logging
import numbers
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from rich.console import Console
from scipy.special import erf
from scipy.stats import binom
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from kdjax.config import ADVICE, CHOICES, get_config, leaves, override, resolve
from kdjax.data.cells import mark_missing, to_number
from kdjax.data.grid import fill_forward
from kdjax.data.prepared import Prepared, value_notes
from kdjax.data.raw import Place, as_array, to_rows
from kdjax.data.scaler import needs_float64
from kdjax.data.schema import (
    FEW_VALUES,
    Advice,
    Reading,
    long_columns,
    missing_error,
    parse_numbers,
)
from kdjax.data.series import Dataset, Series
from kdjax.data.splits import segments
from kdjax.data.tables import check_names, numbered_channels
from kdjax.data.times import TimeForm, Times, parse_time, time_form
from kdjax.detection.alarming import alarm_rule, row_alarms
from kdjax.detection.calibration import calibrate, count_windows
from kdjax.detection.detector import (
    POOLED,
    Detector,
    entity_index,
    scaler_of,
    usual_entity,
)
from kdjax.detection.false_alarms import ExpectedEvents, expected_events
from kdjax.detection.reading import CONTRIBUTION, fill_limit, reading_of
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.tables import check_precision, score_events, score_table
from kdjax.detection.thresholds import (
    BLOCKS,
    BY_FOLDS,
    Rule,
    choose_threshold,
    needed,
    too_few_message,
)
from kdjax.errors import ConfigError, DataError, KdjaxError, check_choice, counted
from kdjax.experiment.assemble import calibration_rules, data_digests, make_detector
from kdjax.experiment.jobs import is_distilled
from kdjax.experiment.pipeline import check_windows, prepare_dataset
from kdjax.experiment.recalibrate import (
    confirm_normal,
    recalibrated,
    rule_of,
    with_rule,
    with_settings,
    with_threshold,
)
from kdjax.experiment.train import baseline_options, held_out_models, train_networks
from kdjax.io.processes import check_not_forked
from kdjax.metrics.checks import as_labels
from kdjax.models.baselines import BASELINES
from kdjax.models.classifier import SHORTEST
from kdjax.training.components import HeldOut, fit_baseline
from kdjax.training.targets import ScoreFunction

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["EXPECTED_FAILED_CHECKS", "KDDetector"]

logger = logging.getLogger(__name__)

EXPECTED_FAILED_CHECKS = {
    "check_methods_sample_order_invariance": (
        "a row is scored in the window of rows before it, so its score depends on their "
        "order, as is intended for time series"
    ),
    "check_methods_subset_invariance": (
        "a few rows alone lack the rows before them, and a single row is shorter than any "
        "window"
    ),
}
"""The checks of `sklearn.utils.estimator_checks.check_estimator` that fail, and why."""

ROWS = "X"  # name of the rows in messages, and their entity
IN_FRAME = Advice(
    "correct it, or remove the column",
    "make it NaN, or name it in data.missing_values",
)

DETECTORS = ("student", "teacher", *BASELINES)

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

# Fields that `fit` chooses by its rows if they are None.
_BY_ROWS = ("data.window", "data.stride", "threshold.false_alarm_rate")

# Parameters that `calibrate` applies, and those that apply to the next rows at once; all
# others need another `fit`.
_CALIBRATED = ("threshold.", "data.step_seconds")
_AT_ONCE = ("data.missing", "data.fill_limit")

# A date or a time of day in text.
_TIME_TEXT = r"\d[-/.]\d+[-/.]\d|\d:\d\d|^\d{8}T\d"

# Further fields that apply to rows in memory.
_GROUPS = (
    "model", "teacher", "student", "classifier", "forecast", "train", "distill",
    "detection", "threshold", "alarm",
)  # fmt: skip
_OF_DATA = (
    "calibration", "context", "dense_below", "fill_limit", "ignore", "max_gap",
    "missing_values", "step_seconds", "train_stride", "validation",
)  # fmt: skip

Settings = Mapping[str, Any]


# The fields in messages, by their parameters' names. `seed` is a word as well.
_NAMED = re.compile(
    "|".join(rf"\b{re.escape(f)}\b" for f in PARAMETERS if "." in f)
    + r"|(?<![\w.])seed(?==| must be)"
)


@contextlib.contextmanager
def _own_names() -> Iterator[None]:
    """Names parameters, not the config's fields, in the errors raised in the block."""
    try:
        yield
    except KdjaxError as error:
        text = str(error)
        if not text.startswith("settings"):
            text = _NAMED.sub(lambda found: PARAMETERS[found[0]], text)
            text = ADVICE.sub(_as_setting, text)
            text = re.sub(r"^config: ", "KDDetector: ", text)
        error.args = (text, *error.args[1:])
        raise


def _as_setting(advice: re.Match[str]) -> str:
    verb, field, value = advice.groups()
    if not re.fullmatch(r"-?[\d.]+", value):
        value = repr(value.strip("'"))
    return f'{verb}settings={{"{field}": {value}}}'


def parameters_of(detector: Detector) -> dict[str, Any]:
    """The parameters that give such a detector, from the settings in its card."""
    fields = {k: _plain(v) for k, v in leaves(detector.card.get("settings", {}))}
    fields |= {"data.window": detector.window, "data.stride": detector.stride}
    usual = {k: _plain(v) for k, v in leaves(get_config().to_dict())}
    further = {
        field: value
        for field, value in fields.items()
        if field not in PARAMETERS and _applies(field) and value != usual.get(field)
    }
    return {
        **{name: fields[field] for name, field in FIELDS.items() if field in fields},
        "detector": detector.card.get("model", {}).get("name", detector.model.kind),
        "settings": further or None,
    }


def _applies(field: str) -> bool:
    group, _, name = field.partition(".")
    return group in _GROUPS or (group == "data" and name in _OF_DATA)


def _check_further(settings: Any) -> None:
    """Raises ConfigError unless `settings` are fields other than the parameters'."""
    if not isinstance(settings, Mapping):
        raise ConfigError(
            f"settings={settings!r} must be a mapping of the config's fields, such as "
            '{"train.learning_rate": 1e-2}.'
        )
    for field in settings:
        if field in PARAMETERS:
            raise ConfigError(
                f"settings: {field} is the parameter {PARAMETERS[field]}: set that instead."
            )
        if not _applies(str(field)):
            raise ConfigError(
                f"settings: {field} has no effect on rows in memory: remove it, or "
                "name a field such as train.learning_rate."
            )


def _teachers(teachers: Any, weights: Any) -> tuple[ScoreFunction, ...]:
    """The teachers of `fit`, checked together with their weights."""
    for name, given in (("teachers", teachers), ("weights", weights)):
        if not isinstance(given, list | tuple | np.ndarray):
            raise ConfigError(f"{name}={given!r} must be a list or tuple.")
    for teacher in teachers:
        if not callable(teacher):
            raise ConfigError(
                f"teachers: {teacher!r} is not callable: give functions of windows "
                "[B, L, D] that return scores [B, L]."
            )
    found = [_real(weight) for weight in weights]
    valid = all(number >= 0 for number in found) and any(found)
    if found and not (valid and len(found) == len(teachers)):
        raise ConfigError(
            f"weights={weights!r} must have a finite number for each of "
            f"{counted(len(teachers), 'teacher')}: none negative, not all 0."
        )
    return tuple(teachers)


def _real(value: Any) -> float:
    """A finite number of Python, numpy or JAX as a float; NaN for anything else."""
    if hasattr(value, "item") and np.ndim(value) == 0:
        value = value.item()
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        number = float(value) if real else np.nan
    except OverflowError:
        return np.nan
    return number if np.isfinite(number) else np.nan


def _plain(value: Any) -> Any:
    """A value as configs hold it: Python numbers and tuples."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else value


class KDDetector(BaseEstimator):  # type: ignore[misc]
    """A detector of anomalies in the rows of a multivariate time series.

    X is `[N, D]`: rows in time order, an array or a DataFrame. A `DatetimeIndex` or
    `PeriodIndex` is the rows' time, so that no window crosses a gap; other indices only
    label the results. A frame's columns must be those of `fit` in the same order. Masked
    cells are missing data, and arrays of objects or text are read as cells of files. `fit`
    needs at least 67 rows.

    Args:
        window_size: L, rows of a window; None for 96, or an eighth of fewer rows but at least 9.
        stride: rows from one window to the next; with 1 a window ends at each row. None
            for 10, or 1 where that leaves too few calibration windows.
        detector: the model: `classifier`, small networks that distinguish disturbed
            windows from clean ones; `student` or `teacher` of distillation;
            `cnn_forecast` or `gru_forecast`, a network that forecasts the next row; or a
            baseline without one, such as `mahalanobis`, `pca`, `moving_average`, `memory`.
        teacher_hidden: widths of the teacher's encoder layers.
        student_hidden: widths of the student's.
        teacher_epochs: maximum epochs of the teacher, which stops early.
        student_epochs: epochs of the student.
        alpha: weight of the teacher's term in the student's loss.
        temperature: T, see docs/method.md.
        scaler: `quantile`, `minmax`, `zscore`, `robust`, or `none` after a scaler in a
            `Pipeline`.
        missing: `error` refuses NaN, `ffill` repeats the last value for up to
            `data.fill_limit` rows (`window_size` if not set) and leaves out cells that are
            still missing, `mask` leaves missing cells out.
        threshold: how τ is chosen, without labels: `blocks`, `conformal`, `quantile`,
            `pot`, `budget` or `fixed`; see docs/thresholds.md.
        false_alarm_rate: wanted share of false alarms among normal windows that the
            networks were not trained on. (PyOD's `contamination` is the share of
            outliers in the training rows.) None for 0.01, or, with a warning, the least
            rate that the number of calibration windows allows.
        random_state: the seed, a whole number; the same one gives the same detector.
        settings: further fields of `kdjax.config` by their dotted names, such as
            `{"train.learning_rate": 1e-2}`.
        verbose: whether `fit` writes its phases, and the epochs of networks that are
            trained in epochs, to standard error.

    Attributes:
        detector_: the `kdjax.detection.detector.Detector`.
        teacher_: the calibrated teacher; None for a baseline, or loaded without it.
        entity_: the entity of `detector_` whose scaler, Gaussian and threshold are used.
        decision_scores_: `[N]` scores of the rows of `fit`; not saved.
        threshold_: τ.
        labels_: `[N]` 0 or 1, of `decision_scores_` with the current τ.
        n_features_in_: D.
        feature_names_in_: the names of the columns as text, if X was a DataFrame.

    >>> rows = np.random.default_rng(0).normal(size=(800, 3))
    >>> detector = KDDetector(detector="pca", window_size=10, false_alarm_rate=0.1)
    >>> detector.fit(rows).predict(rows[:50] + 9).all()
    np.True_
    """

    detector_: Detector
    teacher_: Detector | None
    entity_: str
    decision_scores_: np.ndarray
    _by_rows: Mapping[str, float] = {}  # what `fit` found for `_BY_ROWS`

    def __init__(
        self,
        *,
        window_size: int | None = None,
        stride: int | None = None,
        detector: str = "classifier",
        teacher_hidden: Sequence[int] = (64, 64),
        student_hidden: Sequence[int] = (16,),
        teacher_epochs: int = 40,
        student_epochs: int = 40,
        alpha: float = 0.35,
        temperature: float = 1.0,
        scaler: str = "quantile",
        missing: str = "error",
        threshold: str = "blocks",
        false_alarm_rate: float | None = None,
        random_state: int = 0,
        settings: Mapping[str, Any] | None = None,
        verbose: bool | int = False,
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
        self.verbose = verbose

    @_own_names()
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        teachers: Sequence[ScoreFunction] = (),
        weights: Sequence[float] = (),
    ) -> Self:
        """Trains on rows `[N, D]` that are assumed normal; `y` is ignored.

        Args:
            X: the rows.
            y: for scikit-learn's pipelines.
            teachers: detectors to distil instead of a network: callables that return a score
                for each row `[B, L]` of scaled windows `[B, L, D]`, higher for more abnormal.
                The student's loss is that of `distill.target="scores"`.
                `settings={"distill.augmented_copies": 3}` adds augmented windows.
            weights: of the teachers; () for equal ones.

        Raises:
            ConfigError: an invalid parameter, or too few rows for the false-alarm rate.
            DataError: too few rows for the window, cells that are not finite numbers, or
                a teacher's output that isn't one score for each row.

        A fit that fails or is interrupted changes nothing.
        """
        fitted = copy.copy(self)
        own = _teachers(teachers, weights)
        series = fitted._series(X, reset=True)
        fitted._fit(series, teachers=own, weights=tuple(weights))
        return self._become(fitted)

    def set_params(self, **params: Any) -> Self:
        """Sets parameters by name: all of them, or after an error none.

        In a fitted detector, `missing` and `data.fill_limit` apply to the next rows at once;
        `threshold`, `false_alarm_rate` and the fields `threshold.…` and
        `data.step_seconds` of `settings` from `calibrate` on; all others from the next
        `fit` on. Until then methods that score warn.
        """
        changed = copy.copy(self)
        super(KDDetector, changed).set_params(**params)
        return self._become(changed)

    @_own_names()
    def decision_function(self, X: Any) -> Any:
        """The score of each row, `[N, D] -> [N]`; higher is more abnormal.

        The score of the latest window that ended at or before the row. The first L − 1 rows, and
        those after each gap in time, have that of the window that begins there and so ends
        later. Infinite after an overflow. NaN where
        there is no score: between gaps that are closer than the window, and in windows
        without a value under `missing="mask"`.
        """
        return self._output(X, self._row_scores(X), "score")

    @_own_names()
    def predict(self, X: Any) -> Any:
        """1 for rows in alarm, else 0: `decision_function(X) > threshold_`.

        `threshold.min_duration` and `threshold.cooldown` suppress some of these.

        Raises:
            DataError: a row has no score.
        """
        return self._output(X, self._labels(self._row_scores(X)), "alarm")

    @_own_names()
    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """`fit`, then `labels_`: 0 or 1 for each row; `y` is ignored."""
        return self.fit(X).labels_

    @_own_names()
    def predict_proba(self, X: Any, *, method: str = "linear") -> np.ndarray:
        """Outlier probabilities as PyOD has them, `[N, D] -> [N, 2]`: normal, abnormal.

        Args:
            X: the rows.
            method: `linear` puts the scores of `fit` on [0, 1]; `unify` is the error
                function of how many standard deviations a score lies above their mean
                (Kriegel et al., 2011, "Interpreting and Unifying Outlier Scores").

        Raises:
            ConfigError: an unknown method, or a loaded detector, whose scores of `fit`
                were not saved.
        """
        check_choice("method", method, ("linear", "unify"))
        usual = self._usual_scores()
        scores = self._row_scores(X)
        if method == "linear":
            low, high = usual.min(), usual.max()
            share = (scores - low) / (high - low if high > low else 1.0)
        else:
            spread = usual.std() or 1.0
            share = erf((scores - usual.mean()) / (spread * np.sqrt(2)))
        abnormal = np.clip(share, 0, 1)
        return np.stack([1 - abnormal, abnormal], axis=1)

    @_own_names()
    def predict_confidence(self, X: Any) -> np.ndarray:
        """How sure `predict` is of each row, `[N, D] -> [N]` in [0, 1].

        The probability that the row would get the same label had other rows of the same
        kind been seen (Perini et al., 2020, "Quantifying the Confidence of Anomaly
        Detectors in Their Example-Wise Predictions"), with the share of the scores of
        `fit` above τ in the place of PyOD's `contamination`.

        Raises:
            ConfigError, DataError: as `predict_proba` and `predict`.
        """
        usual = np.sort(self._usual_scores())
        scores = self._row_scores(X)
        labels, n = self._labels(scores), len(usual)
        lower = np.searchsorted(usual, scores, side="right")
        chance = (1 + lower) / (2 + n)
        normal = int((usual <= self.threshold_).sum())
        sure = 1 - binom.cdf(normal, n, chance)
        return np.where(labels == 1, sure, 1 - sure)

    def set_output(self, *, transform: str | None = None) -> Self:
        """Whether `decision_function` and `predict` give a Series for a DataFrame.

        Args:
            transform: `pandas` for a Series with the index of X, `default` for an array,
                None for no change.
        """
        if transform not in ("default", "pandas", None):
            raise ConfigError(
                f"set_output: transform={transform!r} must be default, pandas or None."
            )
        if transform is not None:
            # The attribute that scikit-learn's `clone` copies.
            self._sklearn_output_config = {"transform": transform}
        return self

    @_own_names()
    def explain(self, X: Any) -> pd.DataFrame:
        """Contribution of each channel to each row, `[N, D]` with the index of X.

        A row's contributions sum to its mean a_t over the windows that cover it.
        """
        series = self._series(X)
        self._warn_of_changes()
        table = score_table(
            self.detector_, series, entity=self.entity_, contributions=True
        )
        parts = table[[CONTRIBUTION + name for name in series.channels]].to_numpy()
        if isinstance(X, pd.DataFrame):
            columns = _channels_of(X, self._reading(reset=False))[0].columns
            return pd.DataFrame(parts, index=X.index, columns=columns)
        return pd.DataFrame(parts, columns=pd.Index(series.channels))

    @_own_names()
    def detect(self, X: Any) -> pd.DataFrame:
        """The events in X: stretches of rows in alarm, those nearer than L as one.

        Columns: `start`, `end`, `severity` (largest score / τ), `peak` (the most abnormal
        row between the two) and `channels` (the three of largest contribution). The first,
        second and fourth are labels of the index of X, or row numbers of an array. Rows without a
        score are in no event; their number is logged.
        """
        series = self._series(X)
        table = self._scores(series)
        unknown = int(table["window_score"].isna().sum())
        if unknown:
            text = "%d of %d rows have no score: no event can be there"
            logger.warning(text, unknown, len(table))
        numbered = table.assign(time=np.arange(len(table)))
        entity = self.entity_
        events = score_events(
            self.detector_, series, numbered, entity=entity, name=entity
        )
        events = events.drop(columns="entity")
        if not isinstance(X, pd.DataFrame):
            return events
        labels = X.index.to_flat_index()
        places = {name: labels[events[name]] for name in ("start", "end", "peak")}
        return events.assign(**places)

    @_own_names()
    def plot(self, X: Any, y: Any = None) -> "go.Figure":
        """A Plotly figure of X: alarms, window score with τ, signals and contributions.

        All are on one time axis, which one zooms by dragging; long X are drawn as the
        extremes of stretches of rows. `write_html` of the figure makes a file.

        Args:
            X: the rows.
            y: `[N]` labels to draw as well, 1 in anomalous rows.
        """
        from kdjax.evaluation import plots

        series = self._series(X)
        if y is not None:
            series = series._replace(labels=as_labels(y))
            if len(y) != len(series.values):
                raise DataError(
                    f"y has {len(y)} labels, and X {len(series.values)} rows: give a "
                    "label for each row."
                )
        table = self._scores(series, contributions=True)
        timeline = plots.score_timeline(table, series, model=self.detector)
        return plots.timeline_figure(timeline)

    @_own_names()
    def calibrate(self, X: Any = None) -> Self:
        """Chooses τ again by the present parameters, without training.

        `threshold.min_duration` and `threshold.cooldown` are taken over as well.

        Args:
            X: clean rows that the networks were not trained on; None for the scores that
                τ was chosen on before, as after `set_params(false_alarm_rate=…)`.
        """
        check_is_fitted(self, "detector_")
        settings = self._settings()
        if X is not None and self.entity_ == POOLED:
            raise ConfigError(
                "calibrate(X): the detector has several entities and none was chosen: "
                "load it with entity=NAME."
            )
        self._warn_of_changes(calibrating=True)
        changed, detector = copy.copy(self), with_rule(self.detector_, settings)
        if X is None:
            rule = self._rule(detector, settings)
            self._check_order(rule)
            known = len(self._known_scores)
            if known < needed(rule):
                todo = "give more rows to calibrate(X)"
                raise ConfigError(too_few_message(known, rule, todo=todo))
            tau = choose_threshold(self._known_scores, rule)
            spacing = detector.thresholds[self._place].spacing
            tau = tau._replace(spacing=spacing)
            changed.detector_ = with_threshold(detector, self._place, tau)
        else:
            series = self._series(X)._replace(entity=self.entity_)
            changed.detector_, _ = recalibrated(detector, series, threshold={})
        now = self._fields()
        chosen = {name: now[name] for name in now if name.startswith(_CALIBRATED)}
        changed._made_with = self._made_with | chosen
        return self._become(changed)

    @_own_names()
    def confirm_normal(self, X: Any, spans: Any) -> Self:
        """Takes rows that were normal, such as false alarms, into Gaussian and τ.

        Nothing is trained, and `decision_scores_` stay those of `fit`.

        Args:
            X: rows with the spans and, if it goes on, what was before and after.
            spans: events as `detect(X)` gives them, or pairs of first and last labels of
                the index of X, or row numbers of an array.

        >>> rows = np.random.default_rng(0).normal(size=(2000, 3))
        >>> detector = KDDetector(detector="mahalanobis", window_size=20).fit(rows)
        >>> rows[1000:1020] += 3
        >>> int(detector.confirm_normal(rows, [(1000, 1019)]).predict(rows)[1000])
        0
        """
        series = self._series(X)._replace(entity=self.entity_)
        self._warn_of_changes()
        index = X.index if isinstance(X, pd.DataFrame) else pd.RangeIndex(len(X))
        if isinstance(spans, pd.DataFrame):
            spans = zip(spans["start"], spans["end"], strict=True)
        try:
            found = [index.slice_indexer(start, end) for start, end in spans]
        except (KeyError, TypeError, ValueError):
            found = []
        rows = np.array([(one.start, one.stop) for one in found], int).reshape(-1, 2)
        if not len(rows) or (rows[:, 0] >= rows[:, 1]).any():
            raise DataError(
                "confirm_normal: give one or more spans with a row of X each, as "
                "events of detect(X), or pairs of first and last labels of its index."
            )
        changed = copy.copy(self)
        changed.detector_, note = confirm_normal(self.detector_, series, rows)
        logger.info(note)
        for text in note.split("; warning: ")[1:]:
            warnings.warn(f"confirm_normal: {text}", stacklevel=3)
        return self._become(changed)

    def set_threshold(self, tau: float) -> Self:
        """Sets τ by hand; `threshold_`, `predict` and `labels_` follow.

        Args:
            tau: a finite number from 0 on, of Python, numpy or JAX.
        """
        check_is_fitted(self, "detector_")
        number = _real(tau)
        if not number >= 0:
            raise ConfigError(
                f"set_threshold: tau={tau!r} must be a finite number from 0 on."
            )
        rule = Rule("fixed", value=number)
        chosen = choose_threshold(self._known_scores, rule)
        spacing = self.detector_.thresholds[self._place].spacing
        chosen = chosen._replace(spacing=spacing)
        self.detector_ = with_threshold(self.detector_, self._place, chosen)
        return self

    @_own_names()
    def distill(self, X: Any, *, student_hidden: Sequence[int]) -> "KDDetector":
        """A new detector: another student of this one's teacher, trained on X.

        The teacher is not trained again, and X is scaled by the teacher's scaler. X is
        best the rows of `fit`.

        Raises:
            ConfigError: there is no teacher.
        """
        series = self._series(X)
        teacher = self.teacher_
        if teacher is None or teacher.model.architecture is None:
            raise ConfigError(
                f"this KDDetector(detector={self.detector!r}) has no teacher: "
                "fit a student or a teacher, or load the teacher's folder."
            )
        other: KDDetector = clone(self).set_params(
            detector="student",
            teacher_hidden=teacher.model.architecture.hidden,
            student_hidden=student_hidden,
            window_size=teacher.window,
        )
        other._name_features(series.channels, named=hasattr(self, "feature_names_in_"))
        return other._fit(series, teacher, self.entity_)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `detector_` as arrays, JSON and a manifest, without `teacher_`.

        `kdjax.save_detector(folder, detector.teacher_)` saves the teacher.
        """
        check_is_fitted(self, "detector_")
        limit = self._settings()["data"]["fill_limit"]
        rule = {"missing": self.missing, "fill_limit": limit}
        save_detector(folder, with_settings(self.detector_, "data", **rule))

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, entity: str | None = None
    ) -> "KDDetector":
        """A fitted detector from any folder that `save` or a run wrote.

        Args:
            folder: of the saved detector.
            entity: of the scaler, Gaussian and threshold; by default the only entity, or
                the pooled ones of several.
        """
        detector = load_detector(folder)
        loaded = cls(**parameters_of(detector))
        loaded.detector_ = detector
        loaded.entity_ = entity or usual_entity(detector)
        entity_index(detector, loaded.entity_)  # refuses an unknown one
        loaded.teacher_ = detector if loaded.detector == "teacher" else None
        unnamed = detector.channels == numbered_channels(len(detector.channels))
        named = detector.card.get("data", {}).get("named", not unnamed)
        loaded._name_features(detector.channels, named=named)
        loaded._made_with = loaded._fields()
        return loaded

    @property
    def threshold_(self) -> float:
        """τ: rows of a higher score are in alarm."""
        return self.detector_.thresholds[self._place].tau

    @property
    def expected_events(self) -> ExpectedEvents | None:
        """Events to expect in normal behaviour, of `threshold` `blocks` or `budget`.

        By blocks of the training rows, each with a τ that was chosen without it; a day if
        `data.step_seconds` or a time gives the length of a row, else in 10,000 rows.
        None if other rules chose τ, or rows are too few.

        >>> rows = np.random.default_rng(0).normal(size=(2000, 3))
        >>> detector = KDDetector(detector="mahalanobis", window_size=20).fit(rows)
        >>> detector.expected_events.unit
        'in 10,000 rows'
        """
        check_is_fitted(self, "detector_")
        if self.detector_.thresholds[self._place].method not in BY_FOLDS:
            return None
        rule = self._rule(self.detector_, self._settings())
        return expected_events(self._known_scores, rule)

    def _rule(self, detector: Detector, settings: Settings) -> Rule:
        # Whether the step of the rows of `fit` is in seconds.
        dated = self.detector_.card.get("data", {}).get("dated", True)
        return rule_of(detector, settings, step_seconds=detector.step if dated else 0.0)

    @property
    def classes_(self) -> np.ndarray:
        """The labels 0 and 1, for scikit-learn's `cross_val_predict`."""
        check_is_fitted(self, "detector_")
        return np.array([0, 1])

    @property
    def labels_(self) -> np.ndarray:
        """0 or 1 for each row of `fit`, with the current τ."""
        return self._labels(self.decision_scores_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing != "error"
        return tags

    @property
    def _place(self) -> int:
        return entity_index(self.detector_, self.entity_)

    def _check_order(self, rule: Rule) -> None:
        """Raises ConfigError if the known scores aren't those that the rule needs."""
        before = self._made_with["threshold.method"]
        same = before == rule.method and (
            self._made_with["threshold.mode"] == self._fields()["threshold.mode"]
        )
        if rule.method in BY_FOLDS and not same:
            raise ConfigError(
                f"threshold={rule.method!r} needs the scores of all rows in order of time, "
                f"but threshold={before!r} used others: give clean rows to "
                "calibrate(X), or fit again."
            )

    @property
    def _known_scores(self) -> np.ndarray:
        """The window scores that τ was chosen on; none for a detector made by hand."""
        scores = self.detector_.calibration
        return scores[self._place] if scores else np.empty(0)

    def _become(self, other: "KDDetector") -> Self:
        """Takes all attributes of another in one step, without interruption."""
        self.__dict__ = other.__dict__
        return self

    def _config(self, **changes: Any) -> dict[str, Any]:
        """The config of the current parameters, before the checks of `resolve`."""
        further = {} if self.settings is None else self.settings
        _check_further(further)
        given = {field: getattr(self, name) for name, field in FIELDS.items()}
        given = {k: v for k, v in given.items() if v is not None or k not in _BY_ROWS}
        given |= {**further, **changes, "data.path": ROWS}  # it needs a file's path
        plain = {field: _plain(value) for field, value in given.items()}
        usual = override(get_config(), self._by_rows)
        return override(usual, plain).to_dict()

    def _settings(self, **changes: Any) -> dict[str, Any]:
        return resolve(self._config(**changes))

    def _fields(self) -> dict[str, Any]:
        """The current parameters by the config's fields, for comparisons."""
        fields = {name: _plain(v) for name, v in leaves(self._config())}
        return fields | {"detector": self.detector}

    def _warn_of_changes(self, *, calibrating: bool = False) -> None:
        """Warns of parameters that were set after `fit` and have no effect yet."""
        now, changed = self._fields(), dict[str, list[str]](fit=[], calibrate=[])
        for name in sorted(now):
            if now[name] != self._made_with[name] and name not in _AT_ONCE:
                todo = "calibrate" if name.startswith(_CALIBRATED) else "fit"
                changed[todo].append(PARAMETERS.get(name, name))
        for todo, names in changed.items():
            if names and not (calibrating and todo == "calibrate"):
                warnings.warn(
                    f"KDDetector: {', '.join(names)} changed since `{todo}`, without effect "
                    f"on the fitted detector: call {todo} again, or set the old "
                    "value.",
                    stacklevel=4,
                )

    def _series(self, X: Any, *, reset: bool = False) -> Series:
        """X as a series, checked against the rows of `fit` unless it is them."""
        check_not_forked()
        if not reset:
            check_is_fitted(self, "detector_")
        if isinstance(X, str | os.PathLike):
            raise _RowsError(
                f"{ROWS} is the path {os.fspath(X)!r}, not rows: give "
                f"kdjax.read_table({os.fspath(X)!r})[0].frame()."
            )
        check_choice("missing", self.missing, CHOICES["data.missing"])
        reading, time, form = self._reading(reset), None, TimeForm()
        if not isinstance(X, pd.DataFrame) and reset and reading.ignore:
            raise ConfigError(
                "settings: data.ignore names columns of a frame, but X is an array: "
                "remove these columns from X."
            )
        try:
            if isinstance(X, pd.DataFrame):
                rows, times = _channels_of(X, reading)
                if times is not None:
                    time, form = times.values, time_form(times, np.arange(len(X)))
                rows = _as_numbers(rows, reading)
                # scikit-learn compares names that are text; arrays it takes in any order.
                if reset or hasattr(self, "feature_names_in_"):
                    rows = rows.set_axis(_column_names(rows), axis=1)
            else:
                rows = _read_array(X, reading)
            values = validate_data(
                self,
                rows,
                reset=reset,
                dtype=(np.float64, np.float32),
                ensure_all_finite=False,
                # No window has a single row.
                ensure_min_samples=2 if reset else 1,
            )
        except (TypeError, ValueError) as error:
            if isinstance(X, pd.DataFrame) and isinstance(error, DataError):
                raise DataError(f"{error} {_long_hint(X, reading)}".strip()) from None
            raise _RowsError(_refusal(str(error), reading.channels)) from None
        if reset:
            least = SHORTEST if self.detector == "classifier" else 2
            self._by_rows = {"data.window": max(least, min(96, len(values) // 8))}
        values = mark_missing(values, reading.missing_values)
        if self.missing == "ffill":
            data = self._settings()["data"]
            window = data["window"] if reset else self.detector_.window
            values, *_ = fill_forward(values, data["fill_limit"] or window)
        numbered = numbered_channels(values.shape[1])
        own = tuple(getattr(self, "feature_names_in_", numbered))
        place = Place(Path(ROWS), reading.channels or own)
        absent = np.isnan(values)
        if self.missing == "error" and absent.any():
            raise missing_error(values, absent, place.columns, place, len(values))
        dtype: Any = np.float64 if needs_float64([values]).any() else np.float32
        if not reset:
            check_precision(self.detector_, values.dtype)
            dtype = self.detector_.scalers.offset.dtype
        values = to_rows(values, place, missing="mask", dtype=dtype)
        return Series(ROWS, values, place.columns, time, form=form)

    def _reading(self, reset: bool) -> Reading:
        """How columns and cells are read: in `fit` by the settings, then as there."""
        if reset:
            data = self._settings()["data"]
            return Reading(ignore=data["ignore"], missing_values=data["missing_values"])
        detector = self.detector_
        return reading_of(detector)._replace(
            time_column=detector.card.get("data", {}).get("time_column", ""),
            channels=detector.channels,
            fill_limit=fill_limit(detector),
        )

    def _fit(
        self,
        series: Series,
        teacher: Detector | None = None,
        entity: str = POOLED,
        *,
        teachers: tuple[ScoreFunction, ...] = (),
        weights: tuple[float, ...] = (),
    ) -> Self:
        """Fits to a series as `kdjax.run` does to files.

        A trained `teacher` is kept, and its scaler for `entity` used.
        """
        name, console = self.detector, Console(stderr=True, quiet=not self.verbose)
        target = {"distill.target": "scores"} if teachers else {}
        settings = self._settings(**target)
        if name not in DETECTORS:
            raise ConfigError(
                f"detector={name!r} must be one of {', '.join(DETECTORS)}."
            )
        if teachers and (name != "student" or not is_distilled(settings["distill"])):
            raise ConfigError(
                f"teachers: detector={name!r} with alpha={self.alpha} uses no teacher: "
                "set detector='student' and alpha above 0."
            )
        dataset = Dataset("rows in memory", (series,), ())
        prepared = self._prepare(dataset)
        settings = self._settings(**target)
        for note in value_notes(prepared):
            warnings.warn(f"KDDetector: {note}.", stacklevel=4)
        if teacher is not None:
            scaler = scaler_of(teacher, entity_index(teacher, entity))
            (one,) = prepared.entities
            prepared = prepared._replace(
                entities=(one._replace(scaler=scaler),), pooled_scaler=scaler
            )
        if name in BASELINES:
            console.print(f"{name}: fitting {counted(len(series.values), 'row')}")
            models = {name: fit_baseline(name, prepared, **baseline_options(settings))}
        else:
            with tempfile.TemporaryDirectory() as folder:
                models = train_networks(
                    prepared,
                    settings,
                    Path(folder),
                    console,
                    names=(name,) if teachers else ("teacher", name),
                    teacher=None if teacher is None else teacher.model,
                    scorers=teachers,
                    weights=weights,
                )
        made = {} if teacher is None else {"teacher": teacher}
        known: HeldOut = {}
        for found, model in models.items():
            if found not in made:
                rules = calibration_rules(settings, prepared)
                console.print(f"{found}: calibrating")
                held_out = held_out_models(prepared, settings, known, model)
                calibration = calibrate(model, prepared, rules, held_out=held_out)
                detector = make_detector(
                    found,
                    model,
                    calibration,
                    prepared,
                    settings=settings,
                    digests=data_digests(dataset),
                )
                # Columns may be called as arrays' channels are.
                named = hasattr(self, "feature_names_in_")
                data = {**detector.card["data"], "named": named}
                made[found] = detector._replace(card={**detector.card, "data": data})
        self.detector_ = made[name]
        self.teacher_ = made.get("teacher")
        self.entity_ = series.entity
        self._made_with = self._fields()
        console.print(f"{name}: scoring the rows; τ = {self.threshold_:.4g}")
        self.decision_scores_ = self._scores(series)["window_score"].to_numpy()
        return self

    def _prepare(self, dataset: Dataset) -> Prepared:
        """The rows of `fit`, with a stride and a rate that fit them, where none is given."""
        kinds = {"baselines": [self.detector]}  # which limits windows
        prepared = prepare_dataset(dataset, self._settings() | kinds)
        rule = calibration_rules(self._settings(), prepared).threshold
        enough = needed(rule)
        if rule.method == "blocks":
            enough = int(BLOCKS / rule.rate)  # each block shows the rate
        if self.stride is None and count_windows(prepared, rule) < enough:
            strides = {"data.stride": 1, "data.train_stride": prepared.stride}
            self._by_rows = {**self._by_rows, **strides}
            prepared = prepare_dataset(dataset, self._settings() | kinds)
        count, rated = count_windows(prepared, rule), rule.method != "budget"
        if self.false_alarm_rate is None and rated and 1 < count < needed(rule):
            self._by_rows = {**self._by_rows, "threshold.false_alarm_rate": 1 / count}
            warnings.warn(
                f"KDDetector: {count} calibration windows allow a false-alarm rate of "
                f"{1 / count:.2g}, not {rule.rate:g}: give more rows, or set the rate.",
                stacklevel=5,
            )
        check_windows(prepared, self._settings() | kinds)
        return prepared

    def _scores(self, series: Series, *, contributions: bool = False) -> pd.DataFrame:
        """`score_table`, with the first window's score in the rows before its end.

        So each row has a `window_score` and may be in alarm, unless it is in no window.
        """
        self._warn_of_changes()
        detector = self.detector_
        table = score_table(
            detector, series, entity=self.entity_, contributions=contributions
        )
        scores = table["window_score"].to_numpy(copy=True)
        options = {"max_gap": detector.max_gap, "step": detector.step}
        for start, stop in segments(series.time, len(scores), **options):
            end = start + detector.window - 1
            if end < stop:
                scores[start:end] = scores[end]
        return table.assign(window_score=scores, alarm=self._alarms(scores))

    def _alarms(self, scores: np.ndarray) -> np.ndarray:
        """Rows in alarm by their window scores, `[N] -> [N]` bool."""
        return row_alarms(scores, self.threshold_, alarm_rule(self.detector_))

    def _usual_scores(self) -> np.ndarray:
        """The scores of `fit` that are finite."""
        check_is_fitted(self, "detector_")
        if not hasattr(self, "decision_scores_"):
            raise ConfigError(
                "this KDDetector was loaded, and decision_scores_, the scores of the rows "
                "of `fit`, are not saved: fit it again, or keep it by pickle."
            )
        return self.decision_scores_[np.isfinite(self.decision_scores_)]

    def _row_scores(self, X: Any) -> np.ndarray:
        return self._scores(self._series(X))["window_score"].to_numpy()

    def _output(self, X: Any, values: np.ndarray, name: str) -> Any:
        """Values of the rows as `set_output` asks."""
        output = getattr(self, "_sklearn_output_config", {}).get("transform")
        if output != "pandas":
            return values
        index = X.index if isinstance(X, pd.DataFrame) else None
        return pd.Series(values, index=index, name=name)

    def _labels(self, scores: np.ndarray) -> np.ndarray:
        unknown = np.flatnonzero(np.isnan(scores))
        if len(unknown):
            raise DataError(
                f"{ROWS}: {len(unknown)} of {len(scores)} rows have no score, the first "
                f"is row {unknown[0] + 1}, so that predict has no answer: remove them, "
                "or use decision_function, which gives NaN there."
            )
        return self._alarms(scores).astype(np.int64)

    def _name_features(self, channels: Sequence[str], *, named: bool) -> None:
        """Sets scikit-learn's attributes of the columns; `named`: they came in a frame."""
        self.n_features_in_ = len(channels)
        if named:
            self.feature_names_in_ = np.array(channels, object)


def _channels_of(
    X: pd.DataFrame, reading: Reading
) -> tuple[pd.DataFrame, Times | None]:
    """A frame without the columns that are not channels, and the rows' time.

    Ignored columns are required in `fit` only. For a detector of a file, that file's
    columns of times, entities and labels are removed too.
    """
    names, clock, entity = _column_names(X), reading.time_column, reading.entity_column
    absent = [name for name in reading.ignore if name not in names]
    if absent and not reading.channels:
        raise DataError(
            f"{ROWS} has no column {', '.join(absent)}: remove it from data.ignore."
        )
    drop = {*reading.ignore, clock, entity} - {*reading.channels}
    if names and drop.issuperset(names):
        raise DataError(f"{ROWS}: data.ignore names all columns: keep a channel.")
    if entity in drop.intersection(names):
        column = X.iloc[:, names.index(entity)]
        if column.nunique() > 1:
            raise DataError(
                f"{ROWS} has rows of several entities, {column.iloc[0]!r} among them: "
                f"give those of one, such as X[X[{entity!r}] == {column.iloc[0]!r}]."
            )
    times = _time_of(X)
    if times is None and clock in drop.intersection(names):
        times = X.iloc[:, names.index(clock)].rename(clock)
    time = None if times is None else _increasing(times)
    return X.loc[:, [name not in drop for name in names]], time


def _time_of(X: pd.DataFrame) -> pd.Series | None:
    """The index of X if it holds datetimes, periods or days."""
    index: Any = X.index
    if index.nlevels > 1:
        if any(map(_is_dated, index.levels)):
            raise DataError(
                f"{ROWS}: the index has times and other levels: give the rows of one "
                "entity with their times only, such as X.xs(name)."
            )
        return None
    if not _holds_times(index):
        return None
    if not _is_dated(index) and index.inferred_type not in ("datetime", "date"):
        raise DataError(
            f"{ROWS}: the index holds times as text, such as {str(index[0])!r}: "
            f"convert it, X.index = {_conversion(index, 'X.index')}, or call "
            "reset_index(drop=True) if it is no time."
        )
    index = index.to_timestamp() if isinstance(index, pd.PeriodIndex) else index
    return index.to_series(name="time")


def _increasing(times: pd.Series) -> Times:
    """A column of times as `parse_time` reads it; they must increase."""
    found = parse_time(times, Place(Path(ROWS), (str(times.name),)))
    late = np.flatnonzero(found.values[1:] <= found.values[:-1])
    if len(late):
        raise DataError(
            f"{ROWS}: row {late[0] + 2} is at {times.iloc[late[0] + 1]}, not after "
            "the row before: sort the rows and remove duplicates, or call "
            "reset_index(drop=True) if the index is no time."
        )
    return found


def _column_names(X: pd.DataFrame) -> list[str]:
    """The labels of the columns as text; those of several levels joined by `/`."""
    return [
        "/".join(map(str, label)) if isinstance(label, tuple) else str(label)
        for label in X.columns
    ]


class _RowsError(DataError, TypeError):
    """X that isn't rows of numbers; some of it is a TypeError to scikit-learn."""


def _refusal(problem: str, channels: Sequence[str]) -> str:
    """The message about X; `channels` are those of `fit`, if it was called."""
    # scikit-learn shows the array on lines of its own.
    problem = re.sub(r"(?s)\narray=.*\n(?=Reshape)|(?<=supported)\n.*", " ", problem)
    known = ", ".join(channels[:9]) + ", …" * (len(channels) > 9)
    if "feature names should match" in problem:
        return (
            f"{ROWS}: {problem.strip()}\nAdd what is missing, then give "
            f"{ROWS}[detector.feature_names_in_]: the columns {known} in this order."
        )
    return (
        f"{ROWS}: {problem.removeprefix(f'{ROWS}: ').rstrip('. ')}. This argument must be a "
        "frame or a dense array of numbers, or of strings of numbers: rows in order of time "
        f"[N, {len(channels) or 'D'}]{known and f' with the columns {known} in this order'}."
    )


def _read_array(X: Any, reading: Reading) -> Any:
    """X, with cells of objects and text in an array read as those of a frame."""
    X = as_array(X) if isinstance(X, np.ma.MaskedArray) else X
    cells = np.asarray(X)
    if cells.dtype.kind in "mM":
        raise TypeError(f"{cells.dtype} is a time or a duration, not a number")
    if cells.dtype.kind not in "OUS" or cells.ndim != 2 or not cells.size:
        return X
    # numpy makes text of all cells of a list if one is text.
    names = numbered_channels(cells.shape[1])
    frame = pd.DataFrame(np.array(X, object), columns=names, dtype=object)
    return _as_numbers(frame, reading).to_numpy()


def _as_numbers(X: pd.DataFrame, reading: Reading) -> pd.DataFrame:
    """A frame with columns of numbers, whose other cells are read as in files."""
    names = check_names(Path(ROWS), _column_names(X))
    place, columns = Place(Path(ROWS), names), {}
    for position, name in enumerate(names):
        column, advice = X.iloc[:, position], IN_FRAME
        label = f"{X.columns[position]!r}"
        if pd.api.types.is_timedelta64_dtype(column):
            todo = f"convert them, X[{label}].dt.total_seconds(), or leave it out"
            advice = Advice(todo)
        elif _holds_times(column):
            times = _conversion(column, f"X[{label}]")
            todo = f"make it the index, X.drop(columns=[{label}]).set_index({times})"
            advice = Advice(f"{todo}, or leave it out")
        if not pd.api.types.is_numeric_dtype(column):
            column, marks = column.rename(name), reading.missing_values
            numbers = parse_numbers(column, place, advice, missing_values=marks)
            column = pd.Series(numbers, X.index)
        columns[position] = column
    return pd.DataFrame(columns, X.index).set_axis(X.columns, axis=1)


def _is_dated(values: Any) -> bool:
    """Whether an index or a column has the dtype of datetimes or periods."""
    period = isinstance(values.dtype, pd.PeriodDtype)
    return period or pd.api.types.is_datetime64_any_dtype(values)


def _holds_times(values: Any) -> bool:
    """Whether an index or a column holds datetimes, periods or text that looks like it."""
    types = pd.api.types
    if types.is_numeric_dtype(values) or types.is_timedelta64_dtype(values):
        return False
    known = pd.Series(values).dropna()[:100].astype(str)
    looks = len(known) and known.str.contains(_TIME_TEXT).all()
    return bool(looks or _is_dated(values))


def _may_be_times(column: pd.Series) -> bool:
    """Whether a column of readings holds times, maybe numbers that never fall."""
    rising = pd.api.types.is_numeric_dtype(column) and column.is_monotonic_increasing
    return _holds_times(column) or (rising and column.nunique() > FEW_VALUES)


def _long_hint(X: pd.DataFrame, reading: Reading) -> str:
    """Advice for a frame with one row per reading; empty for any other."""
    frame, known = X.set_axis(_column_names(X), axis=1), reading.ignore
    frame = frame.drop(columns=[*known, reading.entity_column], errors="ignore")
    if not frame.columns.is_unique:
        return ""
    times = [name for name in frame if _may_be_times(frame[name])]
    columns = long_columns(frame.drop(columns=times))
    if columns is None or not (times or _holds_times(X.index)):
        return ""
    (tag, value), index, table, grid = columns, "X.index", "X", ""
    if times:
        index = f"X[{times[0]!r}]"
        if _holds_times(frame[times[0]]):
            index = _conversion(frame[times[0]], index)
        elif reading.step:
            index = f"pd.to_datetime({index}, unit='s')"
    if not pd.api.types.is_numeric_dtype(frame[value]):
        cells, marks = frame[value].dropna().unique(), reading.missing_values
        absent = [c for c in cells if np.isnan(to_number(c, missing=marks) or 0)]
        numbers = f"pd.to_numeric(X[{value!r}].replace({absent!r}, float('nan')))"
        table = f"X.assign(**{{{value!r}: {numbers}}})"
    if reading.step:
        step = reading.step if isinstance(reading.step, str) else f"{reading.step}s"
        grid = (
            f".resample({step!r}, closed='right', label='right', origin='epoch').mean()"
            f".ffill(limit={reading.fill_limit}).dropna(how='all')"
        )
    return (
        f"{ROWS} looks like long layout (one row per reading); give a column for each "
        f"channel: {table}.pivot_table(index={index}, columns={tag!r}, "
        f"values={value!r}, aggfunc='last'){grid}."
    )


def _conversion(values: Any, text: str) -> str:
    """How to convert values to an index of times; `text` names them."""
    if isinstance(values.dtype, pd.PeriodDtype):
        return text
    try:
        pd.to_datetime(values)
    except ValueError:  # offsets that differ
        return f"pd.to_datetime({text}, utc=True)"
    return f"pd.to_datetime({text})"
