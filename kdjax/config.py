"""Every setting, its default, and what settings may not do together.

The only module of the package that knows ml_collections, apart from the program's
flags. `get_config` is the package's own config file; files under `configs/` start from
it and change what they need. `resolve` checks a config as a whole and turns it into
nested plain dicts, which is what the rest of kdjax reads.
"""

import difflib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from kdjax.errors import ConfigError

Settings = dict[str, Any]

BENCHMARKS = ("smd", "asd", "jumpstarter2", "smap", "msl")
CONTROLS = ("random", "mahalanobis", "pca", "difference", "moving_average")


def get_config() -> ConfigDict:
    """The defaults: small networks that suit a user's own file."""
    config = ConfigDict()
    config.seed = 0
    # "shared": one teacher and one student for all entities of a data set.
    config.entity_mode = "shared"

    config.data = data = ConfigDict()
    # A benchmark's name, or "" for a user's own file at data.path. "smd" without a
    # root is the one machine that ships with the package.
    data.name = ""
    data.root = ""
    # Entities to use; () for all that are found.
    data.entities = ()
    data.path = ""
    data.test_path = ""
    # Columns of an own file; the time column is also found by its name or type.
    data.time_column = ""
    data.entity_column = ""
    data.label_column = ""
    data.missing = "error"
    # Windows end at steps in time longer than this many median steps.
    data.max_gap = 5.0
    data.scaler = "minmax"
    data.window = 100
    data.stride = 10
    # Stride of training windows; data.stride where not set.
    data.train_stride = config_dict.placeholder(int)
    data.validation = 0.15
    data.calibration = 0.15
    # Anomalous rows that make a window anomalous.
    data.min_anomalous_points = 1

    config.model = model = ConfigDict()
    model.channels = "joint"
    model.decoder = "repeat"
    model.head = "linear"

    config.teacher = teacher = ConfigDict()
    # Widths of the encoder's layers; the decoder has them reversed.
    teacher.hidden = (64, 64)
    teacher.epochs = 40
    # Epochs without a new lowest validation loss after which the teacher is done.
    teacher.patience = 8

    config.student = student = ConfigDict()
    student.hidden = (16,)
    # Students use all their epochs, so that `student_alone` has the same budget.
    student.epochs = 40

    config.train = train = ConfigDict()
    train.batch_size = 32
    train.learning_rate = 3e-3
    train.schedule = "cosine"
    train.warmup_steps = 20
    train.clip_norm = 1.0
    train.log_every = 20
    # Least seconds between two checkpoints.
    train.checkpoint_seconds = 60.0

    config.distill = distill = ConfigDict()
    # Weight of the teacher's term in Eq. 2 (others' libraries may weigh the data's).
    distill.alpha = 0.35
    distill.temperature = 1.0
    distill.temperature_mode = "output"
    # The teacher's outputs are kept up to this size, and recomputed past it.
    distill.cache_bytes = 2_000_000_000

    config.detection = detection = ConfigDict()
    # A window is anomalous if more than `count` of its points lie above τ.
    detection.count = 0
    # Least standard deviation of a channel's errors, in scaled units, and the ridge on
    # their correlations. Both were chosen with SMD's test labels in view.
    detection.floor = 0.03
    detection.ridge = 0.1
    detection.shrinkage = "none"
    # "per_entity": a Normal and a threshold each; "pooled": one for all.
    detection.scope = "per_entity"
    # Windows scored at once.
    detection.batch_size = 256

    config.threshold = threshold = ConfigDict()
    threshold.method = "conformal"
    threshold.false_alarm_rate = 0.01

    # Detectors without training that stand beside the networks in each table.
    config.controls = CONTROLS
    return config.lock()


CHOICES = {
    "entity_mode": ("shared",),
    "data.name": ("", *BENCHMARKS),
    "data.missing": ("error", "ffill"),
    "data.scaler": ("minmax", "zscore", "robust", "none"),
    "model.channels": ("joint", "independent"),
    "model.decoder": ("repeat", "feedback"),
    "model.head": ("linear", "sigmoid"),
    "train.schedule": ("constant", "cosine"),
    "distill.temperature_mode": ("output", "logit"),
    "detection.shrinkage": ("none", "ledoit_wolf", "oas"),
    "detection.scope": ("per_entity", "pooled"),
    "threshold.method": ("conformal",),
}

# Bounds as (lowest, highest, whether the bounds themselves are allowed).
RANGES: dict[str, tuple[float, float, bool]] = {
    "seed": (0, 2**31 - 1, True),
    "data.max_gap": (1, float("inf"), True),
    "data.window": (2, 1_000_000, True),
    "data.stride": (1, 1_000_000, True),
    "data.train_stride": (1, 1_000_000, True),
    "data.validation": (0, 0.9, False),
    "data.calibration": (0, 0.9, False),
    "data.min_anomalous_points": (1, 1_000_000, True),
    "teacher.epochs": (1, 1_000_000, True),
    "teacher.patience": (1, 1_000_000, True),
    "student.epochs": (1, 1_000_000, True),
    "train.batch_size": (1, 1_000_000, True),
    "train.learning_rate": (0, float("inf"), False),
    "train.warmup_steps": (0, 1_000_000, True),
    "train.clip_norm": (0, float("inf"), False),
    "train.log_every": (1, 1_000_000, True),
    "train.checkpoint_seconds": (0, float("inf"), True),
    "distill.alpha": (0, 1, True),
    "distill.temperature": (0, float("inf"), False),
    "distill.cache_bytes": (0, float("inf"), True),
    "detection.count": (0, 1_000_000, True),
    "detection.floor": (0, float("inf"), True),
    "detection.ridge": (0, float("inf"), True),
    "detection.batch_size": (1, 1_000_000, True),
    "threshold.false_alarm_rate": (0, 1, False),
}


def resolve(config: ConfigDict | Mapping[str, Any]) -> Settings:
    """The settings of a config as nested dicts, after all checks.

    Raises:
        ConfigError: all problems in one message.
    """
    try:
        given: Settings = json.loads(to_json(config))
    except TypeError as error:
        raise ConfigError(f"config: {error}; use numbers, texts and tuples.") from None
    defaults = json.loads(to_json(get_config()))
    problems = list(_compare(given, defaults, ""))
    if not problems:
        problems = [*_check_choices(given), *_check_ranges(given)]
        # Rules between fields make sense only where each field does.
        problems = problems or [*_check_together(given)]
    if problems:
        raise ConfigError(f"config: {'; '.join(problems)}.")
    return given


def override(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """A locked copy of `config` with changes such as `{"data.window": 50}`.

    >>> override(get_config(), {"data.window": 50}).data.window
    50
    """
    known = dict(_leaves(get_config().to_dict()))
    copied = config.copy_and_resolve_references()
    problems = []
    for key, value in changes.items():
        if key not in known:
            problems.append(unknown_key(key))
            continue
        try:
            copied.update_from_flattened_dict({key: value})
        except (TypeError, ValueError):
            default = json.loads(json.dumps(known[key]))
            problems.append(_type_problem(key, value, default))
    if problems:
        raise ConfigError(f"config: {'; '.join(problems)}.")
    return copied.lock()


def to_json(config: ConfigDict | Mapping[str, Any]) -> str:
    """The config as indented JSON text with sorted keys; tuples become lists."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else config
    return json.dumps(plain, indent=2, sort_keys=True)


def differences(old: Settings, new: Settings) -> list[str]:
    """Lines such as `data.window: 100 -> 50` for the fields that differ."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def unknown_key(key: str) -> str:
    """What to say about a field that doesn't exist, with the nearest that does."""
    known = [name for name, _ in _leaves(get_config().to_dict())]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    last = difflib.get_close_matches(
        key.split(".")[-1], [name.split(".")[-1] for name in known], n=1
    )
    near = near or [name for name in known if last and name.endswith(last[0])][:1]
    hint = f"did you mean {near[0]}?" if near else "see kdjax/config.py for all"
    return f"unknown field {key} ({hint})"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
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
        elif problem := _type_problem(name, given[key], default):
            yield problem


def _type_problem(name: str, value: Any, default: Any) -> str:
    checks: dict[type, tuple[str, Callable[[Any], bool]]] = {
        str: ("a text", lambda v: isinstance(v, str)),
        float: ("a finite number", _is_finite),
        int: ("a whole number", _is_whole),
        type(None): ("a whole number or None", lambda v: v is None or _is_whole(v)),
        list: _list_check(name),
    }
    wanted, fits = checks[type(default)]
    return "" if fits(value) else f"{name} must be {wanted}, got {value!r}"


def _list_check(name: str) -> tuple[str, Callable[[Any], bool]]:
    if name.endswith(".hidden"):
        return (
            "a tuple of one or more whole numbers above 0",
            lambda v: (
                isinstance(v, list)
                and len(v) > 0
                and all(_is_whole(n) and n > 0 for n in v)
            ),
        )
    return (
        "a tuple of texts",
        lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v),
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    # JSON, which results are written in, knows no other numbers.
    return math.isfinite(value)


def _field(settings: Settings, name: str) -> Any:
    for key in name.split("."):
        settings = settings[key]
    return settings


def _check_choices(settings: Settings) -> Iterator[str]:
    for name, choices in CHOICES.items():
        value = _field(settings, name)
        if value not in choices:
            yield f"{name}={value!r} must be one of {', '.join(map(repr, choices))}"
    for control in settings["controls"]:
        if control not in CONTROLS:
            yield f"controls={control!r} must be among {', '.join(CONTROLS)}"


def _check_ranges(settings: Settings) -> Iterator[str]:
    for name, (low, high, closed) in RANGES.items():
        value = _field(settings, name)
        if value is None:
            continue
        if not (low <= value <= high if closed else low < value < high):
            bounds = f"[{low}, {high}]" if closed else f"({low}, {high})"
            yield f"{name}={value!r} must lie in {bounds}"


def _check_together(settings: Settings) -> Iterator[str]:
    data, model = settings["data"], settings["model"]
    distill, detection = settings["distill"], settings["detection"]
    if bool(data["name"]) == bool(data["path"]):
        yield (
            "set either data.path (a CSV, Parquet or .npy file of your own) or "
            f"data.name (a benchmark: {', '.join(BENCHMARKS)}), got "
            f"data.path={data['path']!r} and data.name={data['name']!r}"
        )
    if data["name"] not in ("", "smd") and not data["root"]:
        yield f"data.name={data['name']!r} needs data.root, the data set's folder"
    if data["path"] and data["root"]:
        yield "data.root belongs to a benchmark: leave it empty with data.path"
    for field in ("test_path", "time_column", "entity_column", "label_column"):
        if data["name"] and data[field]:
            yield f"data.{field} belongs to a file of your own: it needs data.path"
    if data["min_anomalous_points"] > data["window"]:
        yield (
            f"data.min_anomalous_points={data['min_anomalous_points']} exceeds "
            f"data.window={data['window']}"
        )
    if detection["count"] >= data["window"]:
        yield (
            f"detection.count={detection['count']} must be below "
            f"data.window={data['window']}: no window could have more points above τ"
        )
    if model["head"] == "sigmoid" and data["scaler"] in ("zscore", "robust"):
        yield (
            f"model.head='sigmoid' can't give what data.scaler={data['scaler']!r} "
            "makes: use minmax, or none for data in [0, 1]"
        )
    if distill["temperature_mode"] == "logit" and model["head"] != "sigmoid":
        yield "distill.temperature_mode='logit' needs model.head='sigmoid'"
    if len(set(settings["controls"])) < len(settings["controls"]):
        yield "controls names a control twice"
