"""Settings: defaults that hold, and a message for each field that doesn't."""

import importlib.util
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from kdjax import config as fields
from kdjax import losses as objectives
from kdjax.config import (
    BASELINES,
    BENCHMARKS,
    CHOICES,
    RANGES,
    completed,
    differences,
    get_config,
    leaves,
    override,
    resolve,
    to_json,
    unknown_key,
)
from kdjax.data import datasets as benchmarks
from kdjax.data import scaler
from kdjax.data import schema as roles
from kdjax.detection import attribution, gaussian
from kdjax.detection import thresholds as threshold
from kdjax.errors import ConfigError
from kdjax.evaluation.rows import SCOPES
from kdjax.models import autoencoder, baselines, residual
from kdjax.training import steps

NETWORK = residual.NETWORK
CONFIGS = Path(__file__).parent.parent / "configs"
SMD = {"data.name": "smd"}


def resolved(**changes):
    """Settings of the machine in the package, with changes by `group__field`."""
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return resolve(override(get_config(), SMD | dotted))


def problems(**changes):
    with pytest.raises(ConfigError) as caught:
        resolved(**changes)
    return str(caught.value)


# What holds.


def test_defaults_need_a_data_set_and_nothing_else():
    settings = resolved()
    assert settings["data"]["name"] == "smd"
    defaults = json.loads(to_json(get_config()))
    assert differences(defaults, settings) == ["data.name: '' -> 'smd'"]
    with pytest.raises(ConfigError, match="set one of data.path .*and data.name"):
        resolve(get_config())


def test_documented_defaults():
    settings = resolved()
    assert settings["data"]["window"] == 100 and settings["data"]["stride"] == 10
    assert settings["data"]["max_gap"] == 5 and settings["data"]["train_stride"] is None
    assert settings["data"]["validation"] == settings["data"]["calibration"] == 0.15
    assert settings["data"]["min_anomalous_points"] == 1
    detection = settings["detection"]
    assert (detection["count"], detection["floor"], detection["ridge"]) == (
        0,
        0.03,
        0.1,
    )
    assert settings["threshold"] == {
        "method": "blocks", "false_alarm_rate": 0.01, "budget": "1/day",
        "mode": "stream",
        "budget_scope": "entity",
        "value": None, "rolling_share": 0.1, "min_duration": 1, "cooldown": 0,
        "clear": 1.0,
    }  # fmt: skip
    assert (detection["trim"], detection["attribution"]) == (0, "correlation")
    assert settings["model"] == {
        "channels": "joint", "decoder": "repeat", "head": "linear",
    }  # fmt: skip
    assert (
        settings["distill"]["temperature"] == 1
        and settings["data"]["scaler"] == "quantile"
    )


def test_settings_are_plain_json():
    settings = resolved(teacher__hidden=(8, 4))
    assert json.loads(json.dumps(settings, allow_nan=False)) == settings
    assert settings["teacher"]["hidden"] == [8, 4]
    assert resolve(settings) == settings


def test_each_range_and_choice_belongs_to_a_field():
    names = {name for name, _ in leaves(get_config().to_dict())}
    assert set(RANGES) | set(CHOICES) <= names


def test_lists_equal_those_of_the_rooms():
    rooms = {
        "data.missing": roles.MISSING,
        "data.order": roles.ORDERS,
        "data.duplicates": roles.DUPLICATES,
        "data.scaler": scaler.METHODS,
        "model.channels": autoencoder.CHANNELS,
        "model.decoder": autoencoder.DECODERS,
        "model.head": autoencoder.HEADS,
        "train.schedule": steps.SCHEDULES,
        "distill.temperature_mode": objectives.TEMPERATURE_MODES,
        "detection.shrinkage": gaussian.SHRINKAGES,
        "detection.attribution": attribution.METHODS,
    }
    for field, choices in rooms.items():
        assert CHOICES[field] == choices, field
    # In another order: a help text, not what is tried first.
    assert sorted(CHOICES["threshold.method"]) == sorted(threshold.METHODS)
    assert BENCHMARKS == benchmarks.BENCHMARKS
    assert CHOICES["data.name"] == ("", *BENCHMARKS)
    assert {*BASELINES} <= {*baselines.BASELINES}
    assert get_config().baselines == BASELINES
    assert "pooled" in CHOICES["detection.scope"] and "pooled" in SCOPES


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_is_accepted(name):
    for choice in CHOICES[name]:
        changes = {name: choice}
        if name == "data.name":
            changes["data.root" if choice else "data.path"] = "somewhere"
        if choice == "logit":
            changes["model.head"] = "sigmoid"
        if "sigmoid" in changes.values():
            changes["data.scaler"] = "minmax"
        if choice == "fixed":
            changes["threshold.value"] = 3.5
        if name == "threshold.budget_scope":
            changes["threshold.method"] = "budget"
        if choice == "long":
            changes |= {"data.name": "", "data.path": "plant.csv", "data.step": "1min"}
        settings = resolve(override(get_config(), SMD | changes))
        assert dict(leaves(settings))[name] == choice


# Recipes.


def recipe(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECIPES = [
    (path, argument)
    for path in sorted(CONFIGS.glob("*.py"))
    for argument in {"paper": (None, "gpu"), "smap_msl": ("smap", "msl")}.get(
        path.stem, (None,)
    )
]


@pytest.mark.parametrize(
    ("path", "argument"), RECIPES, ids=[f"{p.stem}:{a}" for p, a in RECIPES]
)
def test_every_recipe_resolves_and_says_how_it_is_run(path, argument):
    module = recipe(path)
    config = module.get_config(*([argument] if argument else []))
    if not config.data.name:
        config = override(config, {"data.path": "plant.csv"})
    settings = resolve(config)
    assert settings["data"]["name"] in ("", *BENCHMARKS)
    many = hasattr(module, "sweep") or hasattr(module, "search")
    verb = "sweep" if many else "run"
    assert f"python launch.py {verb} --config=configs/{path.name}" in module.__doc__
    if argument in ("smap", "msl"):
        assert settings["data"]["name"] == argument


@pytest.mark.parametrize(
    ("name", "said"), [("paper", "paper.py:gpu"), ("smap_msl", ":msl")]
)
def test_recipes_refuse_an_argument_that_they_do_not_know(name, said):
    with pytest.raises(ConfigError, match=f"{name}.py:tpu: expected .*{said}"):
        recipe(CONFIGS / f"{name}.py").get_config("tpu")


# Unknown, missing and wrongly typed fields.


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("data.windw", "unknown field data.windw (did you mean data.window?)"),
        ("window", "unknown field window (did you mean data.window?)"),
        ("train.lr", "unknown field train.lr"),
        ("zzz", "unknown field zzz (kdjax/config.py lists all fields)"),
        ("distill.alhpa", "did you mean distill.alpha?"),
        ("teacher.hiden", "did you mean teacher.hidden?"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, said):
    assert said in unknown_key(key)
    with pytest.raises(ConfigError) as caught:
        override(get_config(), {key: 3})
    assert str(caught.value) == f"config: {unknown_key(key)}."


def test_an_unknown_field_of_an_unlocked_config_is_found_by_resolve():
    config = override(get_config(), SMD).unlock()
    config.data.windw = 50
    config.extra = ConfigDict({"a": 1})
    with pytest.raises(ConfigError) as caught:
        resolve(config)
    assert "unknown field data.windw (did you mean data.window?)" in str(caught.value)
    assert "unknown field extra" in str(caught.value)


def test_a_missing_field_is_named():
    settings = resolved()
    del settings["data"]["window"], settings["distill"]
    with pytest.raises(ConfigError) as caught:
        resolve(settings)
    assert "field data.window is missing" in str(caught.value)
    assert "field distill is missing" in str(caught.value)


def test_a_group_that_is_none_is_named():
    with pytest.raises(ConfigError, match="data must be a group of fields, got 3"):
        resolve(resolved() | {"data": 3})


WRONG = [
    ("seed", "0", "seed must be a whole number, got '0'"),
    ("seed", True, "seed must be a whole number, got True"),
    ("data.window", 50.5, "data.window must be a whole number, got 50.5"),
    ("data.window", None, "data.window must be a whole number, got None"),
    (
        "data.train_stride",
        "x",
        "data.train_stride must be a whole number or None, got 'x'",
    ),
    ("data.train_stride", 2.5, "must be a whole number or None, got 2.5"),
    ("data.path", 3, "data.path must be a text, got 3"),
    ("distill.alpha", "a", "distill.alpha must be a finite number, got 'a'"),
    ("distill.alpha", False, "distill.alpha must be a finite number, got False"),
    ("distill.alpha", float("nan"), "distill.alpha must be a finite number, got nan"),
    ("data.max_gap", float("inf"), "data.max_gap must be a finite number, got inf"),
    (
        "teacher.hidden",
        [],
        "teacher.hidden must be a tuple of one or more whole numbers",
    ),
    ("teacher.hidden", [0], "above 0, got [0]"),
    ("teacher.hidden", [8, 2.5], "above 0, got [8, 2.5]"),
    ("teacher.hidden", [True], "above 0, got [True]"),
    (
        "student.hidden",
        8,
        "student.hidden must be a tuple of one or more whole numbers",
    ),
    ("baselines", ["pca", 3], "baselines must be a tuple of texts, got ['pca', 3]"),
    (
        "data.entities",
        "machine",
        "data.entities must be a tuple of texts, got 'machine'",
    ),
]


@pytest.mark.parametrize(("key", "value", "said"), WRONG)
def test_a_wrong_type_is_named_with_what_is_wanted(key, value, said):
    settings = resolved()
    *groups, field = key.split(".")
    node = settings
    for group in groups:
        node = node[group]
    node[field] = value
    with pytest.raises(ConfigError) as caught:
        resolve(settings)
    assert said in str(caught.value)
    assert str(caught.value).count(";") == 0


def test_what_json_lacks_is_refused():
    with pytest.raises(
        ConfigError, match="type set is not JSON.*numbers, texts and tup"
    ):
        resolve(resolved() | {"baselines": {"pca"}})


# Ranges and choices.


def outside():
    """For each range the values just outside, and those just inside."""
    for name, (low, high, closed) in RANGES.items():
        whole = isinstance(dict(leaves(resolved()))[name], int | None)
        step = 1 if whole else 1e-9
        yield name, low - step if closed else low, low if closed else low + step
        if high != float("inf"):
            yield name, high + step if closed else high, high if closed else high - step


@pytest.mark.parametrize(("name", "bad", "good"), list(outside()))
def test_bounds(name, bad, good):
    settings = resolved()
    *groups, field = name.split(".")
    node = settings
    for group in groups:
        node = node[group]
    node[field] = bad
    with pytest.raises(ConfigError) as caught:
        resolve(settings)
    low, high, closed = RANGES[name]
    bounds = f"[{low}, {high}]" if closed else f"({low}, {high})"
    assert f"{name}={bad!r} must lie in {bounds}" in str(caught.value)
    node[field] = good
    together = [*fields._check_ranges(settings)]
    assert together == []


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_that_is_none_is_refused_with_those_that_are(name):
    key = name.replace(".", "__")
    choices = ", ".join(map(repr, CHOICES[name]))
    assert f"{name}='nonsense' must be one of {choices}" in problems(
        **{key: "nonsense"}
    )


def test_an_unknown_control_is_refused():
    said = problems(baselines=("pca", "isolation_forest"))
    assert f"baselines='isolation_forest' must be among {', '.join(BASELINES)}" in said


def test_a_new_baseline_is_known_by_its_entry(monkeypatch):
    entry = baselines.BASELINES["difference"]
    monkeypatch.setitem(baselines.BASELINES, "two_rows_before", entry)
    assert resolved(baselines=("two_rows_before",))["baselines"] == ["two_rows_before"]
    joined = ("autoencoder", "two_rows_before")
    assert resolved(student__components=joined)["student"]["components"] == [*joined]
    assert "two_rows_before" not in get_config().baselines


def test_no_controls_and_some_are_fine():
    assert resolved(baselines=())["baselines"] == []
    assert resolved(baselines=("pca",))["baselines"] == ["pca"]


# Parts of a teacher and a student.


def test_a_teacher_and_a_student_are_networks_by_default():
    settings = resolved()
    assert (
        settings["teacher"]["components"]
        == settings["student"]["components"]
        == [NETWORK]
    )


def test_parts_that_are_fine():
    every = (NETWORK, *(n for n in BASELINES if n != "random"))
    for name in every:
        assert resolved(teacher__components=(name,))["teacher"]["components"] == [name]
    settings = resolved(teacher__components=every, student__components=every[::-1])
    assert settings["teacher"]["components"] == [*every]
    assert settings["student"]["components"] == [*every[::-1]]


@pytest.mark.parametrize("name", ["teacher", "student"])
@pytest.mark.parametrize(
    "parts",
    [
        (NETWORK, "random"),
        (NETWORK, "kmeans", "kmeans"),
        (NETWORK, NETWORK),
        (NETWORK, "kmeans+pca"),
        (NETWORK, "isolation_forest"),
        ("",),
    ],
)
def test_parts_that_are_none_or_twice_are_refused(name, parts):
    said = problems(**{f"{name}__components": parts})
    assert (
        f"{name}.components={[*parts]!r} must name one or more of {NETWORK}, " in said
    )
    assert ", kmeans, " in said and said.endswith(", each once.")
    assert "random," not in said.split("one or more of")[1]


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_no_parts_at_all_are_refused(name):
    settings = resolved()
    settings[name]["components"] = []
    with pytest.raises(ConfigError, match=rf"{name}\.components.* one or more"):
        resolve(settings)


def test_a_student_without_a_network_is_refused():
    said = problems(student__components=("kmeans", "difference"))
    assert said == (
        "config: student.components must contain autoencoder, or classifier alone: a student "
        "is a trained network."
    )
    assert resolved(student__components=("classifier",))
    for role in ("teacher", "student"):
        said = problems(**{f"{role}__components": (NETWORK, "classifier")})
        assert "combines a classifier with others, but it has scores and no " in said
    assert resolved(teacher__components=("kmeans", "difference"))


def test_forecasters_are_components_with_units_and_steps():
    kinds = ("gru_forecast", "cnn_forecast")
    assert resolved(teacher__components=kinds, forecast__units=1, forecast__steps=1)
    assert resolved(student__components=(NETWORK, *kinds), baselines=kinds)
    said = problems(student__components=kinds)
    assert "student.components must contain autoencoder, or classifier alone" in said
    for name, most in (("units", 1024), ("steps", 1_000_000)):
        for value in (0, most + 1):
            said = problems(**{f"forecast__{name}": value})
            assert f"forecast.{name}={value} must lie in [1, {most}]" in said
        with pytest.raises(
            ConfigError, match=f"forecast.{name} must be a whole number"
        ):
            override(get_config(), {f"forecast.{name}": "many"})
    head = {"model__head": "sigmoid", "data__scaler": "minmax"}
    said = problems(
        teacher__components=kinds, distill__temperature_mode="logit", **head
    )
    assert "'gru_forecast' has no head" in said


def test_logits_are_what_a_network_has():
    changes = {"model__head": "sigmoid", "distill__temperature_mode": "logit"}
    changes["data__scaler"] = "minmax"
    said = problems(teacher__components=("kmeans", NETWORK), **changes)
    assert "temperature_mode='logit' needs a network as teacher, and 'kmeans' has " in (
        said
    )
    assert said.count(";") == 0
    assert resolved(teacher__components=(NETWORK, "kmeans"), **changes)


# Rules between fields.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__name": ""}, "set one of data.path (your own CSV"),
        ({"data__path": "a.csv"}, "got data.path='a.csv' and data.name='smd'"),
        (
            {"data__name": "asd"},
            "data.name='asd' needs data.root, the folder of the data set",
        ),
        (
            {"data__name": "", "data__path": "a.csv", "data__root": "r"},
            "data.root is for benchmarks only: leave it empty with data.path",
        ),
        ({"data__test_path": "t"}, "data.test_path is for your own file only"),
        ({"data__time_column": "t"}, "data.time_column is for your own file only"),
        ({"data__entity_column": "t"}, "data.entity_column is for your own file only"),
        ({"data__label_column": "t"}, "data.label_column is for your own file only"),
        (
            {"data__min_anomalous_points": 101},
            "data.min_anomalous_points=101 must be at most data.window=100",
        ),
        (
            {"detection__count": 100},
            "detection.count=100 must be below data.window=100: else no window can raise",
        ),
        (
            {"model__head": "sigmoid"},
            "has outputs in [0, 1], but data.scaler='quantile' has not: use min",
        ),
        (
            {"model__head": "sigmoid", "data__scaler": "zscore"},
            "model.head='sigmoid' has outputs in [0, 1], but data.scaler='zscore'",
        ),
        ({"model__head": "sigmoid", "data__scaler": "robust"}, "data.scaler='robust'"),
        (
            {"distill__temperature_mode": "logit"},
            "distill.temperature_mode='logit' needs model.head='sigmoid'",
        ),
        (
            {"baselines": ("pca", "pca")},
            "baselines contains a baseline twice: remove one",
        ),
    ],
)
def test_fields_that_contradict_each_other(changes, said):
    message = problems(**changes)
    assert said in message and message.startswith("config: ") and message.endswith(".")
    assert message.count(";") == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"data__min_anomalous_points": 100},
        {"detection__count": 99},
        {"model__head": "sigmoid", "data__scaler": "minmax"},
        {"model__head": "sigmoid", "data__scaler": "none"},
        {
            "model__head": "sigmoid",
            "data__scaler": "minmax",
            "distill__temperature_mode": "logit",
        },
        {"data__name": "msl", "data__root": "somewhere"},
        {"data__train_stride": 20},
    ],
)
def test_fields_that_agree(changes):
    assert resolved(**changes)


# Several at once.


def test_all_problems_of_a_kind_come_in_one_message():
    settings = resolved()
    settings["seed"] = "x"
    settings["data"]["windw"] = 1
    settings["distill"]["alpha"] = None
    with pytest.raises(ConfigError) as caught:
        resolve(settings)
    for said in ("seed must be", "unknown field data.windw", "distill.alpha must be"):
        assert said in str(caught.value)
    said = problems(distill__alpha=2.0, data__scaler="x", data__window=1)
    assert said.count(";") == 2
    said = problems(detection__count=100, distill__temperature_mode="logit")
    assert "detection.count=100" in said and "temperature_mode='logit'" in said


def test_override_names_all_problems_at_once():
    changes = {"data.windw": 1, "seed": "x", "teacher.hidden": 3}
    with pytest.raises(ConfigError) as caught:
        override(get_config(), changes)
    assert str(caught.value) == (
        "config: unknown field data.windw (did you mean data.window?); seed must be a "
        "whole number, got 'x'; teacher.hidden must be a tuple of one or more whole "
        "numbers above 0, got 3."
    )


# Small functions.


def test_override_copies_and_locks():
    config = get_config()
    changed = override(config, {"data.window": 50, "data.train_stride": 5})
    assert (changed.data.window, config.data.window) == (50, 100)
    assert changed.data.train_stride == 5 and changed.is_locked
    with pytest.raises(AttributeError):
        changed.data.windw = 3
    assert override(config.unlock(), {}).is_locked
    assert override(config, {"teacher.hidden": [8, 4]}).teacher.hidden == (8, 4)
    assert override(config, {"data.max_gap": 3}).data.max_gap == 3.0
    for name in ("threshold.clear", "distill.alpha", "seed"):  # a truth is no number
        with pytest.raises(ConfigError, match=f"{name} must be .* number, got True"):
            override(config, {name: True})


def test_config_files_can_not_add_fields():
    with pytest.raises(AttributeError):
        get_config().data.windw = 50


def test_differences_by_field():
    old = {"a": 1, "b": {"c": [1, 2], "d": None}, "gone": 0}
    new = {"a": 1, "b": {"c": [1, 3], "d": 4}, "new": "x"}
    assert differences(old, new) == [
        "b.c: [1, 2] -> [1, 3]", "b.d: None -> 4", "gone: 0 -> None", "new: None -> 'x'",
    ]  # fmt: skip
    assert differences(old, old) == []


def test_json_has_sorted_keys():
    text = to_json(get_config())
    assert text == to_json(json.loads(text))
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert to_json({"b": {"d": 1, "c": (2,)}, "a": 3}) == (
        '{\n  "a": 3,\n  "b": {\n    "c": [\n      2\n    ],\n    "d": 1\n  }\n}'
    )


# Settings of an older kdjax.


def without(settings, *names):
    """A copy of nested settings that lacks some dotted fields."""
    copied = json.loads(json.dumps(settings))
    for name in names:
        *groups, field = name.split(".")
        node = copied
        for group in groups:
            node = node[group]
        del node[field]
    return copied


def test_older_settings_are_completed_with_the_defaults_of_what_came_since():
    settings = resolved(data__window=50, threshold__false_alarm_rate=0.02)
    since = ("data.order", "data.exclude", "threshold.budget", "detection.trim")
    old = without(settings, *since, "distill", "init_from")
    with pytest.raises(ConfigError, match="is missing"):
        resolve(old)
    found = completed(old)
    assert found == settings == resolve(found)
    assert old == without(settings, *since, "distill", "init_from")


def test_removed_fields_are_passed_over_where_they_were_not_set():
    settings = resolved(distill__alpha=0.5)
    removed = {"alpha_end": None, "temperature_end": None}
    old = {**settings, "distill": settings["distill"] | removed}
    assert completed(old) == settings
    old["distill"]["alpha_end"] = 0.2
    with pytest.raises(ConfigError, match="unknown field distill.alpha_end"):
        resolve(completed(old))


def test_complete_settings_stay_as_they_are():
    settings = resolved(
        teacher__hidden=(8, 4), data__train_stride=3, baselines=("pca",), seed=7
    )
    assert completed(settings) == settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"threshold__method": "fixed"},
            "threshold.value is the τ of threshold.method='fixed': set both or neither",
        ),
        ({"threshold__value": 2.0}, "set both or neither, got 2.0 with 'blocks'"),
        ({"data__exclude": "a.csv"}, "data.exclude is for your own file only"),
    ],
)
def test_new_fields_that_need_another(changes, said):
    assert said in problems(**changes)


def test_a_threshold_of_ones_own_may_be_a_whole_number():
    settings = resolved(threshold__method="fixed", threshold__value=3)
    assert settings["threshold"]["value"] == 3
    settings["threshold"]["value"] = "3"
    with pytest.raises(ConfigError, match="must be a finite number or None, got '3'"):
        resolve(settings)
