"""Every setting, its default, and what settings may not do together.

The only module of the package that knows ml_collections, apart from the program's
flags. `get_config` is the package's own config file; files under `configs/` start from
it and change what they need. `resolve` checks a config as a whole and turns it into
nested plain dicts, which is what the rest of kdjax reads.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from kdjax.errors import ConfigError
from kdjax.fields import CONTROLS, value_problems

Settings = dict[str, Any]

# Halves of characters. Those that stand for bytes of a path, which aren't UTF-8, pass.
_LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")

# The others that may be left open are whole.
_OPTIONAL_NUMBERS = ("distill.alpha_end", "distill.temperature_end", "threshold.value")


def get_config() -> ConfigDict:
    """The defaults: small networks that suit a user's own file."""
    config = ConfigDict()
    config.seed = 0
    # "shared": one teacher and one student for all entities of a data set;
    # "per_entity": a pair of them for each.
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
    # Missing cells: "error" refuses them, "ffill" repeats the last value, "mask" leaves
    # them out of loss, error moments and scores.
    data.missing = "error"
    # Rows out of order in time: "strict" refuses them, "sort" sorts them.
    data.order = "strict"
    # Rows of the same time: "error" refuses them, "last" keeps the last.
    data.duplicates = "error"
    # CSV of spans to leave out, such as maintenance: start, end and maybe entity.
    data.exclude = ""
    # Windows end at steps in time longer than this many median steps.
    data.max_gap = 5.0
    data.scaler = "minmax"
    data.window = 100
    data.stride = 10
    # Stride of training windows; data.stride where not set.
    data.train_stride = config_dict.placeholder(int)
    # With fewer training rows than this the stride of training windows is 1 where
    # data.train_stride is not set; epochs then count as at data.stride, in steps.
    data.dense_below = 0
    # Training rows that take more, as float32, stay on disk and are read as they are
    # needed.
    data.memory_bytes = 4_000_000_000
    # Seconds between rows, for a threshold.budget where the file has no datetimes; 0
    # takes the file's.
    data.step_seconds = 0.0
    data.validation = 0.15
    data.calibration = 0.15
    # Anomalous rows that make a window anomalous.
    data.min_anomalous_points = 1

    config.model = model = ConfigDict()
    model.channels = "joint"
    model.decoder = "repeat"
    model.head = "linear"

    config.teacher = teacher = ConfigDict()
    # What a model joins: "autoencoder" is its network, the others are controls. A
    # student learns what the teacher's first part makes of a window, see `distill`.
    teacher.parts = ("autoencoder",)
    # Widths of the encoder's layers; the decoder has them reversed.
    teacher.hidden = (64, 64)
    teacher.epochs = 40
    # Epochs without a new lowest validation loss after which the teacher is done.
    teacher.patience = 8
    # Where not set, `seed` is the teacher's too: sweeps over students keep one teacher.
    teacher.seed = config_dict.placeholder(int)

    config.student = student = ConfigDict()
    student.parts = ("autoencoder",)
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
    # α and T after the last step, to which they change evenly; where not set they stay.
    distill.alpha_end = config_dict.placeholder(float)
    distill.temperature_end = config_dict.placeholder(float)
    # What the student's is compared with: the teacher's "reconstruction" (Eq. 2), its
    # "errors", its "hidden" code, or its "scores".
    distill.target = "reconstruction"
    # Of each of teacher.parts, which then teach together; () for the first part alone,
    # or for the scores of all.
    distill.weights = ()
    # Copies of the training rows, disturbed on purpose, that only the teacher explains;
    # the number of steps stays.
    distill.disturbed_copies = 0
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
    # Share of the most abnormal validation windows to leave out of the error moments.
    detection.trim = 0.0
    # How a score is divided among channels: "correlation" or "conditional".
    detection.blame = "correlation"
    # "per_entity": a Normal and a threshold each; "pooled": one for all.
    detection.scope = "per_entity"
    # Windows scored at once.
    detection.batch_size = 256

    config.threshold = threshold = ConfigDict()
    # Chosen without labels, see docs/thresholds.md.
    threshold.method = "conformal"
    # Wanted share of false alarms among normal windows; "budget" makes its own.
    threshold.false_alarm_rate = 0.01
    # Alarms that "budget" may raise, as 2/day, 1/week or 0.5/hour.
    threshold.budget = "1/day"
    # τ of "fixed".
    threshold.value = config_dict.placeholder(float)
    # Share of windows above a τ that follows its stream, told of in the results beside the
    # rule above; 0 for none.
    threshold.following_share = 0.1
    # Rows in a row above τ before an alarm, and rows after it in which none begins.
    threshold.min_duration = 1
    threshold.cooldown = 0

    config.evaluation = evaluation = ConfigDict()
    # Whether to add point-adjusted F1 and PA%K, which flatter even random scores.
    evaluation.point_adjusted = False

    # Detectors without training that stand beside the networks in each table.
    config.controls = CONTROLS

    # A saved detector, or a run's `detectors` folder, whose networks training starts
    # from; --init_from is short for it.
    config.init_from = ""
    return config.lock()


def resolve(config: ConfigDict | Mapping[str, Any]) -> Settings:
    """The settings of a config as nested dicts, after all checks.

    Raises:
        ConfigError: all problems in one message.
    """
    try:
        given: Settings = json.loads(to_json(config))
    except (RecursionError, TypeError, ValueError) as error:
        raise ConfigError(f"config: {error}; use numbers, texts and tuples.") from None
    defaults = json.loads(to_json(get_config()))
    problems = list(_compare(given, defaults, ""))
    if not problems:
        problems = value_problems(given)
    if problems:
        raise ConfigError(f"config: {'; '.join(problems)}.")
    return given


def completed(settings: Mapping[str, Any]) -> Settings:
    """Settings of an older kdjax with the fields that came since, at their defaults."""
    defaults: Settings = json.loads(to_json(get_config()))

    def fill(given: Mapping[str, Any], usual: Mapping[str, Any]) -> Settings:
        # What it has besides stays, for the checks to find.
        return dict(given) | {
            key: fill(given.get(key, {}), value)
            if isinstance(value, Mapping) and isinstance(given.get(key, {}), Mapping)
            else given.get(key, value)
            for key, value in usual.items()
        }

    return fill(settings, defaults)


def override(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """A locked copy of `config` with changes such as `{"data.window": 50}`.

    >>> override(get_config(), {"data.window": 50}).data.window
    50
    """
    known = dict(leaves(get_config().to_dict()))
    copied = config.copy_and_resolve_references()
    problems = []
    for key, value in changes.items():
        if key not in known:
            problems.append(unknown_key(key))
            continue
        try:
            copied.update_from_flattened_dict({key: value})
        except (OverflowError, TypeError, ValueError):
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
    before, after = dict(leaves(old)), dict(leaves(new))
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def unknown_key(key: str) -> str:
    """What to say about a field that doesn't exist, with the nearest that does."""
    known = [name for name, _ in leaves(get_config().to_dict())]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    last = difflib.get_close_matches(
        key.split(".")[-1], [name.split(".")[-1] for name in known], n=1
    )
    near = near or [name for name in known if last and name.endswith(last[0])][:1]
    hint = f"did you mean {near[0]}?" if near else "see kdjax/config.py for all"
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
        elif problem := _type_problem(name, given[key], default):
            yield problem


def _type_problem(name: str, value: Any, default: Any) -> str:
    checks: dict[type, tuple[str, Callable[[Any], bool]]] = {
        bool: ("true or false", lambda v: isinstance(v, bool)),
        str: ("a text", _is_text),
        float: ("a finite number", _is_finite),
        int: ("a whole number", _is_whole),
        type(None): _optional_check(name),
        list: _list_check(name),
    }
    wanted, fits = checks[type(default)]
    return "" if fits(value) else f"{name} must be {wanted}, got {value!r}"


def _optional_check(name: str) -> tuple[str, Callable[[Any], bool]]:
    """For the fields that may be left open."""
    if name in _OPTIONAL_NUMBERS:
        return "a finite number or None", lambda v: v is None or _is_finite(v)
    return "a whole number or None", lambda v: v is None or _is_whole(v)


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
    if name == "distill.weights":
        return (
            "a tuple of finite numbers",
            lambda v: isinstance(v, list) and all(_is_finite(n) for n in v),
        )
    return (
        "a tuple of texts",
        lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v),
    )


def _is_text(value: Any) -> bool:
    """Whether a value is text that could be the name of a file."""
    return isinstance(value, str) and "\0" not in value and not _LONE.search(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        # JSON, which results are written in, knows no other numbers.
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond float64
        return False
