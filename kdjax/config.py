"""All settings with their defaults, ranges and rules for combinations.

Only this module and the program's flags import ml_collections. `get_config` is the
package's own config file; files under `configs/` start from it and change some fields.
`resolve` checks a config as a whole and turns it into nested plain dicts, which the rest
of kdjax reads.
"""

import difflib
import json
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from kdjax.errors import ConfigError, did_you_mean
from kdjax.io.stores import check_local

Settings = dict[str, Any]

# NUL and surrogates; those that stand for bytes of a path that isn't UTF-8 are allowed.
_NOT_IN_NAMES = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")

# Fields of version 0.1 and their current names; configs and detectors may use both.
RENAMED = {
    "controls": "baselines",
    "teacher.parts": "teacher.components",
    "student.parts": "student.components",
    "detection.blame": "detection.attribution",
    "distill.disturbed_copies": "distill.augmented_copies",
    "threshold.following_share": "threshold.rolling_share",
}
_RENAMED_LEAVES = {
    old.split(".")[-1]: new.split(".")[-1] for old, new in RENAMED.items()
}
# Removed fields of `distill`, which older settings have, mostly unset as None.
_REMOVED = ("alpha_end", "temperature_end")


class _Group(ConfigDict):  # type: ignore[misc]
    """A `ConfigDict` that takes a renamed field under its old name, with a warning."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(_current_leaf(self, name), value)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(_current_leaf(self, name), value)

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(_current_leaf(self, name))


def _current_leaf(group: _Group, name: str) -> str:
    new = _RENAMED_LEAVES.get(name)
    if not new or new not in group:
        return name
    _warn_renamed(name, new, stacklevel=4)
    return new


def current_name(field: str) -> str:
    """The current dotted name of a field; warns if `field` is its name of version 0.1.

    >>> current_name("data.window")
    'data.window'
    """
    if field not in RENAMED:
        return field
    _warn_renamed(field, RENAMED[field])
    return RENAMED[field]


def _warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    warnings.warn(
        f"the config field {old} is now called {new}; the old name is still read.",
        FutureWarning,
        stacklevel=stacklevel,
    )


class Range(NamedTuple):
    """Bounds of a number; `closed`: whether the bounds are allowed values."""

    low: float
    high: float = math.inf
    closed: bool = True


BENCHMARKS = ("smd", "asd", "jumpstarter2", "smap", "msl")
# The default baselines of a run; kdjax.models.baselines has all.
BASELINES = ("random", "mahalanobis", "pca", "kmeans", "difference", "moving_average")
_MILLION = 1_000_000

# Each field: its default, or the type of a field without one, and its allowed values: a
# tuple of choices, a range, or None for any value of the default's type.
FIELDS: dict[str, tuple[Any, tuple[str, ...] | Range | None]] = {
    "seed": (0, Range(0, 2**31 - 1)),
    # "shared": one teacher and one student for all entities of a data set;
    # "per_entity": one pair for each entity.
    "entity_mode": ("shared", ("shared", "per_entity")),
    # A benchmark's name, or "" for a user's own file at data.path. "smd" without a
    # root is the one machine in the package.
    "data.name": ("", ("", *BENCHMARKS)),
    "data.root": ("", None),
    # Entities to use; () for all of them.
    "data.entities": ((), None),
    "data.path": ("", None),
    "data.test_path": ("", None),
    # Columns of a user's file; the time column is also found by its name or type.
    "data.time_column": ("", None),
    "data.entity_column": ("", None),
    "data.label_column": ("", None),
    # Columns that are not channels, with any content; in long layout tags as well.
    "data.ignore": ((), None),
    # Channels that models read but don't score: set-points, commands and modes.
    "data.context": ((), None),
    # "wide": one column per channel; "long": one row per reading (time, tag, value).
    "data.layout": ("wide", ("wide", "long")),
    "data.tag_column": ("tag", None),
    "data.value_column": ("value", None),
    # Resamples readings to an even grid: a duration such as "1min" or "500ms", or a number
    # ("60") of seconds, or of the unit of numeric times. Long layout needs it.
    "data.step": ("", None),
    # Missing cells: "error" refuses them, "ffill" repeats the last value, "mask" leaves
    # them out of loss, error moments and scores.
    "data.missing": ("error", ("error", "ffill", "mask")),
    # Markers of missing cells besides the empty cell, NA, N/A, NaN, NULL, None and #N/A.
    "data.missing_values": ((), None),
    # Most rows for which "ffill" or a grid (data.step) repeats a value; later cells are
    # missing. data.window where not set.
    "data.fill_limit": (int, Range(1, _MILLION)),
    # Rows out of order in time: "strict" refuses them, "sort" sorts them.
    "data.order": ("strict", ("strict", "sort")),
    # Rows of the same time: "error" refuses them, "last" keeps the last.
    "data.duplicates": ("error", ("error", "last")),
    # CSV of spans to leave out, such as maintenance: start, end, optional entity.
    "data.exclude": ("", None),
    # No window crosses a step in time longer than this many median steps.
    "data.max_gap": (5.0, Range(1)),
    # Offset and scale of each channel, fitted on its fit rows; see docs/data.md. A sigmoid
    # head needs `minmax`, or `none` for data in [0, 1].
    "data.scaler": ("quantile", ("quantile", "minmax", "zscore", "robust", "none")),
    "data.window": (100, Range(2, _MILLION)),
    "data.stride": (10, Range(1, _MILLION)),
    # Stride of training windows; data.stride where not set.
    "data.train_stride": (int, Range(1, _MILLION)),
    # With fewer training rows, the stride of training windows is 1 if data.train_stride is
    # not set; an epoch then has as many steps as with data.stride.
    "data.dense_below": (0, Range(0, 2**62)),
    # Training rows that need more memory, as float32, stay on disk and are read in
    # chunks.
    "data.memory_bytes": (4_000_000_000, Range(0, 2**62)),
    # Seconds between rows for threshold.budget if the file has no datetimes; 0 takes the
    # file's.
    "data.step_seconds": (0.0, Range(0)),
    "data.validation": (0.15, Range(0, 0.9, closed=False)),
    "data.calibration": (0.15, Range(0, 0.9, closed=False)),
    # A window is labelled anomalous if it has this many anomalous rows.
    "data.min_anomalous_points": (1, Range(1, _MILLION)),
    "model.channels": ("joint", ("joint", "independent")),
    "model.decoder": ("repeat", ("repeat", "feedback")),
    "model.head": ("linear", ("linear", "sigmoid")),
    # Components of a model: "autoencoder" is its network, the others are baselines. A
    # student's target is the output of the teacher's first component, see `distill`.
    "teacher.components": (("autoencoder",), None),
    # Widths of the encoder's layers; the decoder has them reversed.
    "teacher.hidden": ((64, 64), None),
    "teacher.epochs": (40, Range(1, _MILLION)),
    # Epochs without a new lowest validation loss after which the teacher's training stops.
    "teacher.patience": (8, Range(1, _MILLION)),
    # `seed` where not set: sweeps over students keep one teacher.
    "teacher.seed": (int, Range(0, 2**31 - 1)),
    "student.components": (("autoencoder",), None),
    "student.hidden": ((16,), None),
    # Students train for all epochs, so that `student_alone` has the same budget.
    "student.epochs": (40, Range(1, _MILLION)),
    # The kind `classifier`: number of networks (every second one doesn't see the level),
    # channels of their convolutions, steps of each.
    "classifier.networks": (4, Range(1, 64)),
    "classifier.channels": (16, Range(1, 1024)),
    "classifier.steps": (1500, Range(1, _MILLION)),
    # The kinds `cnn_forecast` and `gru_forecast`: width of their layers, steps.
    "forecast.units": (24, Range(1, 1024)),
    "forecast.steps": (1000, Range(1, _MILLION)),
    "train.batch_size": (32, Range(1, _MILLION)),
    "train.learning_rate": (3e-3, Range(0, closed=False)),
    "train.schedule": ("cosine", ("constant", "cosine")),
    "train.warmup_steps": (20, Range(0, _MILLION)),
    "train.clip_norm": (1.0, Range(0, closed=False)),
    "train.log_every": (20, Range(1, _MILLION)),
    # Least seconds between two checkpoints.
    "train.checkpoint_seconds": (60.0, Range(0)),
    # Weight of the teacher's term in Eq. 2 (other libraries may weight the data's term).
    "distill.alpha": (0.35, Range(0, 1)),
    "distill.temperature": (1.0, Range(0, closed=False)),
    "distill.temperature_mode": ("output", ("output", "logit")),
    # The distillation target: the teacher's "reconstruction" (Eq. 2), its "errors", its
    # "hidden" code, or its "scores".
    "distill.target": (
        "reconstruction",
        ("reconstruction", "errors", "hidden", "scores"),
    ),
    # Weight of each of teacher.components in the target; () takes the first component
    # only, or for "scores" all of them.
    "distill.weights": ((), None),
    # Copies of the training rows with disturbances, which have the teacher's target only;
    # the number of steps doesn't change.
    "distill.augmented_copies": (0, Range(0, 4)),
    # The teacher's outputs are cached up to this size, else recomputed.
    "distill.cache_bytes": (2_000_000_000, Range(0)),
    # A window is anomalous if more than `count` of its points lie above τ.
    "detection.count": (0, Range(0, _MILLION)),
    # Least standard deviation of a channel's errors, in scaled units, and the ridge on
    # their correlations. Both were chosen with SMD's test labels in view.
    "detection.floor": (0.03, Range(0)),
    "detection.ridge": (0.1, Range(0)),
    "detection.shrinkage": ("none", ("none", "ledoit_wolf", "oas")),
    # Share of the validation windows, the most abnormal, to leave out of the error moments.
    "detection.trim": (0.0, Range(0, 0.5)),
    # How a score is divided among channels: "correlation" or "conditional".
    "detection.attribution": ("correlation", ("correlation", "conditional")),
    # "per_entity": one Gaussian and one threshold per entity; "pooled": one for all.
    "detection.scope": ("per_entity", ("per_entity", "pooled")),
    # Windows that are scored in one batch.
    "detection.batch_size": (256, Range(1, _MILLION)),
    # How τ is chosen, without labels; see docs/thresholds.md.
    "threshold.method": (
        "blocks",
        ("blocks", "conformal", "budget", "pot", "quantile", "fixed"),
    ),
    # Target share of false alarms among normal windows; not used by "budget".
    "threshold.false_alarm_rate": (0.01, Range(0, 1, closed=False)),
    # Events that "budget" allows, as 2/day, 1/week or 0.5/hour; by mode "stream" (also
    # `score --causal`) or "score", which has a window every data.stride rows.
    "threshold.budget": ("1/day", None),
    "threshold.mode": ("stream", ("stream", "score")),
    # Whether "budget" applies to each entity, or to all machines of `kdjax fleet`
    # together.
    "threshold.budget_scope": ("entity", ("entity", "fleet")),
    # τ of the method "fixed".
    "threshold.value": (float, Range(0)),
    # Share of windows above the rolling threshold, which the results show too; 0 for
    # none.
    "threshold.rolling_share": (0.1, Range(0, 0.999)),
    # Successive rows above τ before an alarm, and rows after an alarm without a new one.
    "threshold.min_duration": (1, Range(1, 1_000_000_000)),
    "threshold.cooldown": (0, Range(0, 1_000_000_000)),
    # An alarm goes on down to this share of τ; with 1 it ends at τ.
    "threshold.clear": (1.0, Range(0.01, 1)),
    # Events besides those of scores: channels (one or all) that keep a value for longer
    # than in training, and gaps in time longer than data.max_gap.
    "alarm.frozen": (True, None),
    "alarm.no_data": (True, None),
    # Whether to add point-adjusted F1 and PA%K, which are high even for random scores.
    "evaluation.point_adjusted": (False, None),
    # Detectors without training, which each table of results compares.
    "baselines": (BASELINES, None),
    # A saved detector, or the `detectors` folder of a run, to start training from;
    # --init_from sets it too.
    "init_from": ("", None),
}
# What a message advises, such as "set data.missing=mask".
_NAMES = "|".join(map(re.escape, FIELDS))
ADVICE = re.compile(rf"\b((?:[Ss]et|[Uu]se|add|or|and|by) )({_NAMES})=(\S*[^\s.,;:)])")
_LIMITS = {name: allowed for name, (_, allowed) in FIELDS.items() if allowed}
RANGES = {name: own for name, own in _LIMITS.items() if isinstance(own, Range)}
CHOICES = {name: own for name, own in _LIMITS.items() if not isinstance(own, Range)}


def get_config() -> ConfigDict:
    """The defaults: small networks that suit a user's own file."""
    config = _Group()
    for name, (default, _) in FIELDS.items():
        group, _, leaf = name.rpartition(".")
        if group and group not in config:
            config[group] = _Group()
        if isinstance(default, type):
            default = config_dict.placeholder(default)
        (config[group] if group else config)[leaf] = default
    return config.lock()


def resolve(config: ConfigDict | Mapping[str, Any]) -> Settings:
    """The settings of a config as nested dicts, after all checks.

    Raises:
        ConfigError: all problems in one message.

    >>> resolve(override(get_config(), {"data.name": "smd"}))["data"]["window"]
    100
    """
    try:
        given: Settings = json.loads(to_json(config))
    except (RecursionError, TypeError, ValueError) as error:
        raise ConfigError(f"config: {error}; use numbers, texts and tuples.") from None
    defaults = json.loads(to_json(get_config()))
    # Rules between fields are checked only if each field is valid.
    problems = (
        [*_compare(given, defaults, "")]
        or [*_check_choices(given), *_check_ranges(given)]
        or [*_check_together(given)]
    )
    if problems:
        raise ConfigError(f"config: {'; '.join(problems)}.")
    return given


def check_budget(changes: Collection[str], settings: Settings) -> None:
    """Raises ConfigError if changes name a budget, and no rule, without effect."""
    method = settings["threshold"]["method"]
    alone = "threshold.budget" in changes and "threshold.method" not in changes
    if alone and method != "budget":
        raise ConfigError(
            f"config: threshold.budget has no effect with threshold.method={method!r}: add "
            "threshold.method=budget, or remove it."
        )


def completed(settings: Mapping[str, Any]) -> Settings:
    """Settings of an older kdjax, completed with today's fields and names.

    New fields have their defaults; removed fields without a value are left out.
    """
    defaults: Settings = json.loads(to_json(get_config()))

    def fill(given: Mapping[str, Any], usual: Mapping[str, Any]) -> Settings:
        found = {}
        for key, value in given.items():
            new = _RENAMED_LEAVES.get(key, key)
            # Other unknown fields stay: the checks report them.
            if value is not None or key not in _REMOVED:
                found[new if new in usual and new not in given else key] = value
        return found | {
            key: fill(found.get(key, {}), value)
            if isinstance(value, Mapping) and isinstance(found.get(key, {}), Mapping)
            else found.get(key, value)
            for key, value in usual.items()
        }

    return fill(settings, defaults)


def override(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """A locked copy of `config` with changes such as `{"data.window": 50}`.

    >>> override(get_config(), {"data.window": 50}).data.window
    50
    """
    copied = config.copy_and_resolve_references()
    problems = []
    for given, value in changes.items():
        key = current_name(given)
        if key not in FIELDS:
            problems.append(unknown_key(key))
            continue
        try:
            if isinstance(value, bool) and not isinstance(FIELDS[key][0], bool):
                raise TypeError(value)  # ml_collections takes True as 1.0
            copied.update_from_flattened_dict({key: value})
        except (OverflowError, TypeError, ValueError):
            problems.append(_type_problem(key, value))
    if problems:
        raise ConfigError(f"config: {'; '.join(problems)}.")
    return copied.lock()


def to_json(config: ConfigDict | Mapping[str, Any]) -> str:
    """The config as indented JSON text with sorted keys; tuples become lists."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else config
    return json.dumps(plain, indent=2, sort_keys=True)


def differences(old: Settings, new: Settings) -> list[str]:
    """Lines such as `data.window: 100 -> 50` for the fields that differ."""
    before, after = dict(leaves(old)), dict(leaves(new))
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def unknown_key(key: str) -> str:
    """The message for an unknown field, with the nearest known one."""
    near = difflib.get_close_matches(key, FIELDS, n=1, cutoff=0.5)
    last = difflib.get_close_matches(
        key.split(".")[-1], [name.split(".")[-1] for name in FIELDS], n=1
    )
    near = near or [name for name in FIELDS if last and name.endswith(last[0])][:1]
    hint = f"did you mean {near[0]}?" if near else "kdjax/config.py lists all fields"
    return f"unknown field {key} ({hint})"


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of nested settings by their dotted names.

    >>> dict(leaves({"data": {"window": 50}}))
    {'data.window': 50}
    """
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _compare(given: Settings, defaults: Settings, prefix: str) -> Iterator[str]:
    """Unknown, missing and wrongly typed fields."""
    for key in given.keys() - defaults.keys():
        yield unknown_key(prefix + key)
    for key, default in defaults.items():
        name = prefix + key
        if key not in given:
            yield f"field {name} is missing"
        elif isinstance(default, dict):
            if isinstance(given[key], dict):
                yield from _compare(given[key], default, name + ".")
            else:
                yield f"{name} must be a group of fields, got {given[key]!r}"
        elif problem := _type_problem(name, given[key]):
            yield problem


def _type_problem(name: str, value: Any) -> str:
    default, _ = FIELDS[name]
    is_open = isinstance(default, type)
    kind = default if is_open else type(default)
    wanted, fits = _LISTS.get(name) or _TYPES[kind]
    if fits(value) or (is_open and value is None):
        return ""
    return f"{name} must be {wanted}{' or None' if is_open else ''}, got {value!r}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        # JSON, the format of results, has no other numbers.
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond float64
        return False


def _lists_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


_Check = tuple[str, Callable[[Any], bool]]
_TYPES: dict[type, _Check] = {
    bool: ("true or false", lambda v: isinstance(v, bool)),
    str: ("a text", lambda v: isinstance(v, str) and not _NOT_IN_NAMES.search(v)),
    float: ("a finite number", _is_finite),
    int: ("a whole number", _is_whole),
    tuple: ("a tuple of texts", _lists_of(lambda v: isinstance(v, str))),
}
_HIDDEN: _Check = (
    "a tuple of one or more whole numbers above 0",
    lambda v: v != [] and _lists_of(lambda n: _is_whole(n) and n > 0)(v),
)
_LISTS: dict[str, _Check] = {
    "teacher.hidden": _HIDDEN,
    "student.hidden": _HIDDEN,
    "distill.weights": ("a tuple of finite numbers", _lists_of(_is_finite)),
}
# Fields that are tuples of texts.
TEXTS = {n for n, (v, _) in FIELDS.items() if isinstance(v, tuple) and n not in _LISTS}


def _check_choices(settings: Settings) -> Iterator[str]:
    values = dict(leaves(settings))
    for name, choices in CHOICES.items():
        if values[name] not in choices:
            yield (
                f"{name}={values[name]!r} must be one of {', '.join(map(repr, choices))}"
                f"{did_you_mean(values[name], choices)}"
            )
    components = {name: settings[name]["components"] for name in ("teacher", "student")}
    baselines = _known_baselines({*settings["baselines"]}.union(*components.values()))
    for baseline in settings["baselines"]:
        if baseline not in baselines:
            hint = did_you_mean(baseline, baselines)
            yield f"baselines={baseline!r} must be among {', '.join(baselines)}{hint}"
    known = ("autoencoder", *(kind for kind in baselines if kind != "random"))
    for name, kinds in components.items():
        if not kinds or len(set(kinds)) < len(kinds) or set(kinds) - set(known):
            yield (
                f"{name}.components={kinds!r} must name one or more of "
                f"{', '.join(known)}, each once"
            )
        elif "classifier" in kinds and len(kinds) > 1:
            yield (
                f"{name}.components={kinds!r} combines a classifier with others, but it has "
                "scores and no residuals: use it alone"
            )
        elif name == "student" and not {"autoencoder", "classifier"} & set(kinds):
            yield (
                "student.components must contain autoencoder, or classifier alone: a "
                "student is a trained network"
            )


def _known_baselines(names: set[str]) -> tuple[str, ...]:
    """All baselines; imports JAX only for names other than the default ones."""
    if names <= {"autoencoder", *BASELINES}:
        return BASELINES
    from kdjax.models.baselines import BASELINES as registered

    return *BASELINES, *(name for name in registered if name not in BASELINES)


def _check_ranges(settings: Settings) -> Iterator[str]:
    values = dict(leaves(settings))
    for name, (low, high, closed) in RANGES.items():
        value = values[name]
        if value is None or (low <= value <= high if closed else low < value < high):
            continue
        bounds = f"[{low}, {high}]" if closed else f"({low}, {high})"
        yield f"{name}={value!r} must lie in {bounds}"
    for name in ("teacher", "student"):
        if max(settings[name]["hidden"]) > _MILLION:
            yield f"{name}.hidden={settings[name]['hidden']!r} exceeds {_MILLION:,} units"


def _check_together(settings: Settings) -> Iterator[str]:
    data, model = settings["data"], settings["model"]
    distill, detection = settings["distill"], settings["detection"]
    if bool(data["name"]) == bool(data["path"]):
        yield (
            "set one of data.path (your own CSV, Parquet or .npy file) and data.name "
            f"(a benchmark: {', '.join(BENCHMARKS)}), got "
            f"data.path={data['path']!r} and data.name={data['name']!r}"
        )
    for field in ("path", "test_path", "exclude"):
        try:
            check_local(data[field], f"data.{field}=")
        except ConfigError as error:
            yield str(error).rstrip(".")
    if data["name"] not in ("", "smd") and not data["root"]:
        yield f"data.name={data['name']!r} needs data.root, the folder of the data set"
    if data["path"] and data["entities"]:
        yield (
            "data.entities is for benchmarks only: remove other entities from the file, "
            "or set data.name"
        )
    if data["path"] and data["root"]:
        yield "data.root is for benchmarks only: leave it empty with data.path"
    own_file = ("test_path", "time_column", "entity_column", "label_column", "exclude")
    for field in (*own_file, "ignore", "step"):
        if data["name"] and data[field]:
            yield f"data.{field} is for your own file only: set data.path, or remove it"
    if data["step"] or data["layout"] == "long":
        from kdjax.data.schema import Reading, check_reading  # imports pandas

        try:
            check_reading(Reading(layout=data["layout"], step=data["step"]))
        except ConfigError as error:
            yield str(error).rstrip(".")
    if data["min_anomalous_points"] > data["window"]:
        yield (
            f"data.min_anomalous_points={data['min_anomalous_points']} must be at most "
            f"data.window={data['window']}"
        )
    if detection["count"] >= data["window"]:
        yield (
            f"detection.count={detection['count']} must be below "
            f"data.window={data['window']}: else no window can raise an alarm"
        )
    if model["head"] == "sigmoid" and data["scaler"] not in ("minmax", "none"):
        yield (
            "model.head='sigmoid' has outputs in [0, 1], but data.scaler="
            f"{data['scaler']!r} has not: use minmax, or none for data in [0, 1]"
        )
    yield from _distill_problems(distill, settings["teacher"]["components"])
    teaching = settings["teacher"]["components"][0]
    if distill["temperature_mode"] == "logit" and teaching != "autoencoder":
        yield (
            "distill.temperature_mode='logit' needs a network as teacher, and "
            f"{teaching!r} has no head: use output, or name autoencoder first"
        )
    if distill["temperature_mode"] == "logit" and model["head"] != "sigmoid":
        yield "distill.temperature_mode='logit' needs model.head='sigmoid'"
    threshold = settings["threshold"]
    if (threshold["method"] == "fixed") != (threshold["value"] is not None):
        yield (
            "threshold.value is the τ of threshold.method='fixed': set both or neither, "
            f"got {threshold['value']!r} with {threshold['method']!r}"
        )
    if threshold["budget_scope"] == "fleet" and threshold["method"] != "budget":
        yield (
            "threshold.budget_scope='fleet' needs threshold.method='budget', got "
            f"{threshold['method']!r}"
        )
    if len(set(settings["baselines"])) < len(settings["baselines"]):
        yield "baselines contains a baseline twice: remove one"


def _distill_problems(distill: Settings, parts: list[str]) -> Iterator[str]:
    target, weights = distill["target"], distill["weights"]
    if target == "hidden" and parts[0] != "autoencoder":
        yield (
            "distill.target='hidden' needs a network as teacher: name autoencoder first "
            f"in teacher.components={parts!r}"
        )
    if target == "scores" and distill["temperature"] != 1:
        yield (
            "distill.temperature has no effect with distill.target='scores', which are "
            "standardised: set it to 1"
        )
    if target != "reconstruction" and distill["temperature_mode"] == "logit":
        yield (
            "distill.temperature_mode='logit' needs distill.target='reconstruction', got "
            f"{target!r}: use output"
        )
    if not weights:
        return
    if target == "hidden" or distill["temperature_mode"] == "logit":
        yield (
            "distill.weights combine reconstructions, errors or scores: leave it empty "
            "with hidden codes and with logits"
        )
    if len(weights) != len(parts) or min(weights) < 0 or not any(weights):
        yield (
            f"distill.weights={weights!r} must have one number per component of "
            f"teacher.components={parts!r}: none negative, not all 0"
        )
