"""What values settings may have, alone and together."""

from collections.abc import Iterator
from typing import Any

Settings = dict[str, Any]

BENCHMARKS = ("smd", "asd", "jumpstarter2", "smap", "msl")
CONTROLS = (
    "random",
    "mahalanobis",
    "pca",
    "kmeans",
    "difference",
    "moving_average",
)

CHOICES = {
    "entity_mode": ("shared", "per_entity"),
    "data.name": ("", *BENCHMARKS),
    "data.missing": ("error", "ffill", "mask"),
    "data.order": ("strict", "sort"),
    "data.duplicates": ("error", "last"),
    "data.scaler": ("minmax", "zscore", "robust", "none"),
    "model.channels": ("joint", "independent"),
    "model.decoder": ("repeat", "feedback"),
    "model.head": ("linear", "sigmoid"),
    "train.schedule": ("constant", "cosine"),
    "distill.temperature_mode": ("output", "logit"),
    "distill.target": ("reconstruction", "errors", "hidden", "scores"),
    "detection.shrinkage": ("none", "ledoit_wolf", "oas"),
    "detection.scope": ("per_entity", "pooled"),
    "detection.blame": ("correlation", "conditional"),
    "threshold.method": ("conformal", "budget", "pot", "quantile", "fixed"),
}

# Units of a layer.
_WIDEST = 1_000_000

# Bounds as (lowest, highest, whether the bounds themselves are allowed).
RANGES: dict[str, tuple[float, float, bool]] = {
    "seed": (0, 2**31 - 1, True),
    "data.max_gap": (1, float("inf"), True),
    "data.window": (2, 1_000_000, True),
    "data.stride": (1, 1_000_000, True),
    "data.train_stride": (1, 1_000_000, True),
    "data.dense_below": (0, 2**62, True),
    "data.memory_bytes": (0, 2**62, True),
    "data.step_seconds": (0, float("inf"), True),
    "data.validation": (0, 0.9, False),
    "data.calibration": (0, 0.9, False),
    "data.min_anomalous_points": (1, 1_000_000, True),
    "teacher.epochs": (1, 1_000_000, True),
    "teacher.patience": (1, 1_000_000, True),
    "teacher.seed": (0, 2**31 - 1, True),
    "student.epochs": (1, 1_000_000, True),
    "train.batch_size": (1, 1_000_000, True),
    "train.learning_rate": (0, float("inf"), False),
    "train.warmup_steps": (0, 1_000_000, True),
    "train.clip_norm": (0, float("inf"), False),
    "train.log_every": (1, 1_000_000, True),
    "train.checkpoint_seconds": (0, float("inf"), True),
    "distill.alpha": (0, 1, True),
    "distill.alpha_end": (0, 1, True),
    "distill.temperature": (0, float("inf"), False),
    "distill.temperature_end": (0, float("inf"), False),
    "distill.disturbed_copies": (0, 4, True),
    "distill.cache_bytes": (0, float("inf"), True),
    "detection.count": (0, 1_000_000, True),
    "detection.floor": (0, float("inf"), True),
    "detection.ridge": (0, float("inf"), True),
    "detection.trim": (0, 0.5, True),
    "detection.batch_size": (1, 1_000_000, True),
    "threshold.false_alarm_rate": (0, 1, False),
    "threshold.value": (0, float("inf"), True),
    "threshold.following_share": (0, 0.999, True),
    "threshold.min_duration": (1, 1_000_000_000, True),
    "threshold.cooldown": (0, 1_000_000_000, True),
}


def value_problems(settings: Settings) -> list[str]:
    """What is wrong with the values of settings whose fields have the right types."""
    problems = [*_check_choices(settings), *_check_ranges(settings)]
    # Rules between fields make sense only where each field does.
    return problems or [*_check_together(settings)]


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
    for name in ("teacher", "student"):
        yield from _part_problems(name, settings[name]["parts"])


def _part_problems(name: str, parts: list[str]) -> Iterator[str]:
    known = ("autoencoder", *(kind for kind in CONTROLS if kind != "random"))
    if not parts or len(set(parts)) < len(parts) or set(parts) - set(known):
        yield (
            f"{name}.parts={parts!r} must name one or more of {', '.join(known)}, each "
            "once"
        )
    elif name == "student" and "autoencoder" not in parts:
        yield "student.parts must name autoencoder: a student is a network that learns"


def _check_ranges(settings: Settings) -> Iterator[str]:
    for name, (low, high, closed) in RANGES.items():
        value = _field(settings, name)
        if value is None:
            continue
        if not (low <= value <= high if closed else low < value < high):
            bounds = f"[{low}, {high}]" if closed else f"({low}, {high})"
            yield f"{name}={value!r} must lie in {bounds}"
    for name in ("teacher", "student"):
        if max(settings[name]["hidden"]) > _WIDEST:
            yield f"{name}.hidden={settings[name]['hidden']!r} exceeds {_WIDEST:,} units"


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
    if data["path"] and data["entities"]:
        yield (
            "data.entities chooses among a benchmark's: leave the others out of the file, "
            "or set data.name"
        )
    if data["path"] and data["root"]:
        yield "data.root belongs to a benchmark: leave it empty with data.path"
    own_file = ("test_path", "time_column", "entity_column", "label_column", "exclude")
    for field in own_file:
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
    yield from _lesson_problems(distill, settings["teacher"]["parts"])
    teaching = settings["teacher"]["parts"][0]
    if distill["temperature_mode"] == "logit" and teaching != "autoencoder":
        yield (
            f"distill.temperature_mode='logit' needs a network as teacher, and "
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
    if len(set(settings["controls"])) < len(settings["controls"]):
        yield "controls names a control twice"


def _lesson_problems(distill: Settings, parts: list[str]) -> Iterator[str]:
    target, weights = distill["target"], distill["weights"]
    heated = distill["temperature"] != 1 or distill["temperature_end"] is not None
    if target == "hidden" and parts[0] != "autoencoder":
        yield (
            "distill.target='hidden' needs a network as teacher: name autoencoder first "
            f"in teacher.parts={parts!r}"
        )
    if target == "scores" and heated:
        yield (
            "distill.temperature has no effect on distill.target='scores', which are "
            "standardised: leave it at 1"
        )
    if target != "reconstruction" and distill["temperature_mode"] == "logit":
        yield (
            f"distill.temperature_mode='logit' softens reconstructions, not {target}: "
            "use output"
        )
    if not weights:
        return
    if target == "hidden" or distill["temperature_mode"] == "logit":
        yield (
            "distill.weights join reconstructions, errors or scores: leave it empty "
            "with hidden codes and with logits"
        )
    if len(weights) != len(parts) or min(weights) < 0 or not any(weights):
        yield (
            f"distill.weights={weights!r} must have a number from 0 on for each of "
            f"teacher.parts={parts!r}, not all of them 0"
        )
