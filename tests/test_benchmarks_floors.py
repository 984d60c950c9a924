"""`benchmarks/floors.py`: each model's floor and ridge, chosen on other entities."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kdjax.data.datasets import load_dataset
from kdjax.detection.storage import load_detector
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.evaluation.evaluate import evaluate_models
from kdjax.experiment.assemble import calibration_rules
from kdjax.experiment.pipeline import prepare_groups, run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
QUIET = Console(quiet=True)
MACHINES = ("press", "saw")
CHANGES = {
    "threshold.method": "conformal",
    "threshold.false_alarm_rate": 0.3,
    "entity_mode": "per_entity",
    "teacher.components": ("kmeans", "difference"),
    "student.epochs": 1,
    "baselines": ("random", "mahalanobis", "difference"),
}
MODELS = ["teacher", "student", "student_alone", "random", "mahalanobis", "difference"]
# The plant's errors deviate more than those of SMD.
FLOORS = (0.03, 0.5, 2.0)
OWN = "0.03/0.1"
NINE = [OWN, "0.03/0.01", "0.03/1", "0.5/0.01", "0.5/0.1", "0.5/1"] + [
    *("2/0.01", "2/0.1", "2/1")
]


@pytest.fixture(scope="module")
def floors():
    """The module, with other floors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        module = importlib.import_module("floors")
        patch.setattr(module, "FLOORS", FLOORS)
        yield module


@pytest.fixture(scope="module")
def done(plant_changes, tiny, tmp_path_factory):
    """A run with a part for each machine: its folder, settings and results."""
    workdir = tmp_path_factory.mktemp("floors") / "run"
    settings = tiny(plant_changes | CHANGES)
    return workdir, settings, run(settings, workdir)


@pytest.fixture(scope="module")
def found(floors, done):
    workdir, settings, _ = done
    return floors.measure(workdir, settings, QUIET)


@pytest.fixture(scope="module")
def report(floors, found, done, tmp_path_factory):
    """What the program writes, of measures that were taken before."""
    output = tmp_path_factory.mktemp("floors") / "floors.json"
    command = ["floors.py", f"--workdir={done[0]}", f"--output={output}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(floors, "measure", lambda *_: found)
        patch.setattr("sys.argv", command)
        floors.main()
    return json.loads(output.read_text("utf-8"))


@pytest.fixture(scope="module")
def shared(done, tmp_path_factory):
    """A folder as of a run of both machines together, with the models of `press`."""
    workdir = tmp_path_factory.mktemp("shared")
    for name in MODELS:
        detectors = done[0] / "detectors" / name
        shutil.copytree(detectors / "press", workdir / "detectors" / name)
    return workdir, done[1] | {"entity_mode": "shared"}


def value(rows, threshold, level, metric):
    (row,) = (r for r in rows if (r["threshold"], r["level"]) == (threshold, level))
    return row[metric]


def grid_of(vus):
    """Rows by pair and entity, as `measure` has them of one model, from their VUS-PR."""
    return {
        pair: {
            entity: [
                {"threshold": t, "level": level, "f1": 0.5} | {
                    "average_precision": own, "vus_pr": own,
                }
                for level in ("window", "point")
                for t in ("oracle", "conformal")
            ]
            for entity, own in by_entity.items()
        }
        for pair, by_entity in vus.items()
    }  # fmt: skip


def evaluated(workdir, settings, part, prepared, **pair):
    """What the package finds under a pair, by model."""
    models = {
        name: load_detector(workdir / "detectors" / name / part).model
        for name in MODELS
    }
    rules = calibration_rules(settings, prepared)._replace(**pair)
    return evaluate_models(
        models, prepared, rules, min_anomalous_points=1, console=QUIET
    )


def assert_rows(found, expected):
    assert len(found) == len(expected) == 4
    for row, wanted in zip(found, expected, strict=True):
        assert row.keys() == wanted.keys()
        assert row["entity"] == wanted["entity"]
        for key in ("f1", "tau", "average_precision", "vus_pr", "alarm_rate"):
            if wanted.get(key) is not None:
                assert row[key] == pytest.approx(wanted[key], rel=1e-4), key


@pytest.mark.parametrize(
    ("name", "pair"),
    [(OWN, {}), ("0.5/0.01", {"floor": 0.5, "ridge": 0.01}), ("2/1", (2.0, 1.0))],
)
def test_errors_that_were_kept_score_as_the_models_do(floors, found, done, name, pair):
    workdir, settings, _ = done
    values = pair if isinstance(pair, dict) else floors.Pair(*pair)._asdict()
    parts = prepare_groups(load_dataset(settings["data"]), settings)
    assert tuple(parts) == MACHINES
    for part, prepared in parts.items():
        wanted = evaluated(workdir, settings, part, prepared, **values)
        for model in MODELS:
            assert_rows(found[model][name][part], wanted[model].entities)


def test_machines_of_one_model_are_measured_as_well(floors, shared):
    workdir, settings = shared
    own = floors.measure(workdir, settings, QUIET)
    ((_, prepared),) = prepare_groups(load_dataset(settings["data"]), settings).items()
    wanted = evaluated(workdir, settings, "", prepared, floor=2.0, ridge=1.0)
    for model in MODELS:
        rows = [row for m in MACHINES for row in own[model]["2/1"][m]]
        assert_rows(rows[:4], wanted[model].entities[:4])
        assert_rows(rows[4:], wanted[model].entities[4:])


def test_missing_cells_are_left_out_as_the_package_does_it(floors, done):
    workdir, settings, _ = done
    prepared = prepare_groups(load_dataset(settings["data"]), settings)["press"]
    (entity,) = prepared.entities
    series = []
    for seed, own in enumerate((entity.train, entity.test)):
        values = own.values.copy()
        gaps = np.random.default_rng(seed).random(values.shape) < 0.05
        series.append(own._replace(values=np.where(gaps, np.float32(np.nan), values)))
    train, test = series
    gappy = entity._replace(train=train, test=test, missing=True)
    prepared = prepared._replace(entities=(gappy,))
    wanted = evaluated(workdir, settings, "press", prepared)["teacher"]
    rules = calibration_rules(settings, prepared)
    seen = floors.look(wanted.model, prepared, gappy, rules.batch_size)
    found = floors.score(seen, prepared, gappy, rules, 1)
    (scores,) = wanted.scores
    np.testing.assert_allclose(found.scores, scores.scores, rtol=1e-3)
    np.testing.assert_allclose(found.window_scores, scores.window_scores, rtol=1e-3)
    assert found.threshold == pytest.approx(scores.threshold, rel=1e-3)


def test_the_run_s_own_pair_comes_first_of_nine(floors, done):
    names = floors.pairs(done[1])
    assert [*names] == NINE
    assert names["2/1"] == (2.0, 1.0)
    other = {"detection": {"floor": 0.02, "ridge": 0.1}}
    assert [*floors.pairs(other)] == ["0.02/0.1", *sorted(NINE)]


def test_floor_and_ridge_matter(found):
    """Else the grid measured one Gaussian nine times."""
    for model in ("mahalanobis", "difference"):
        taus = {
            value(found[model][pair]["press"], "conformal", "window", "tau")
            for pair in NINE
        }
        assert len(taus) == len(NINE)


def test_each_machine_gets_the_pair_that_is_best_on_the_other(found, report):
    assert list(report["models"]) == MODELS
    for model, own in report["models"].items():
        for machine, other in zip(MACHINES, MACHINES[::-1], strict=True):
            there = [
                value(found[model][pair][other], "oracle", "point", "vus_pr")
                for pair in NINE
            ]
            assert own["pairs"][machine] == NINE[int(np.argmax(there))]
        assert sum(own["folds"].values()) == len(MACHINES)
        for key, where in {
            "f1_oracle": ("oracle", "window", "f1"),
            "f1_conformal": ("conformal", "window", "f1"),
            "average_precision": ("oracle", "point", "average_precision"),
            "vus_pr": ("oracle", "point", "vus_pr"),
        }.items():
            after, before = (
                np.mean([value(found[model][p][m], *where) for m, p in chosen.items()])
                for chosen in (own["pairs"], dict.fromkeys(MACHINES, OWN))
            )
            assert own["chosen"][key] == pytest.approx(after)
            assert own["default"][key] == pytest.approx(before)
            difference = own["differences"][key]["difference"]
            assert difference == pytest.approx(after - before)
            best_first = [
                report["models"][name]["chosen"][key]
                for name in report["order"][key]["chosen"]
            ]
            assert best_first == sorted(best_first, reverse=True)


def test_an_entity_s_own_labels_choose_nothing_for_it(floors):
    vus = {"x": {"a": 0.1, "b": 0.9, "c": 0.4}, "y": {"a": 0.5, "b": 0.3, "c": 0.6}}
    chosen = floors._chosen(grid_of(vus), ["x", "y"])
    # Means on the others: a: 0.65, 0.45; b: 0.25, 0.55; c: 0.5, 0.4.
    assert chosen["pairs"] == {"a": "x", "b": "y", "c": "x"}
    assert chosen["folds"] == {"x": 2, "y": 1}
    assert chosen["chosen"]["vus_pr"] == pytest.approx((0.1 + 0.3 + 0.4) / 3)
    assert chosen["default"]["vus_pr"] == pytest.approx((0.1 + 0.9 + 0.4) / 3)
    assert chosen["differences"]["vus_pr"]["difference"] == pytest.approx(-0.2)
    assert chosen["differences"]["vus_pr"]["entities"] == 3
    vus["y"]["a"] = 1.0
    assert floors._chosen(grid_of(vus), ["x", "y"])["pairs"]["a"] == "x"


def test_a_tie_leaves_the_run_s_own_pair(floors):
    vus = {pair: {"a": 0.5, "b": 0.5} for pair in ("y", "x")}
    assert floors._chosen(grid_of(vus), ["x", "y"])["folds"] == {"x": 2}


def test_under_its_own_pair_it_finds_what_the_run_found(floors, found, done, report):
    results = done[2]
    assert report["departure"] < 1e-5
    key = ("model", "against", "threshold", "level", "metric", "baseline")
    run_s = [r for r in results["paired"] if r["threshold"] != "rolling"]
    again = report["paired"]["default"]
    assert [[r[k] for k in key] for r in again] == [[r[k] for k in key] for r in run_s]
    for row, wanted in zip(again, run_s, strict=True):
        assert row["difference"] == pytest.approx(wanted["difference"], abs=1e-6)
    rows = [dict(row) for row in results["entities"]]
    for row in rows[2:4]:
        row["vus_pr"] += 0.25
    departure = floors._departure(found, OWN, rows)
    assert departure == pytest.approx(0.25, abs=1e-5)


def test_models_are_compared_under_chosen_pairs(report):
    paired, means = report["paired"]["chosen"], report["models"]
    baselines = ("random", "mahalanobis", "difference")
    assert len(paired) == 4 * 4
    for row in paired:
        by_threshold = row["metric"] == "f1"
        key = f"f1_{row['threshold']}" if by_threshold else row["metric"]
        chosen = {name: own["chosen"][key] for name, own in means.items()}
        against = row["against"]
        if against == "best baseline":
            against = max(baselines, key=chosen.__getitem__)
            assert row["baseline"] == against
        difference = chosen[row["model"]] - chosen[against]
        assert row["difference"] == pytest.approx(difference)
        assert row["low"] is None  # of 2 entities
    assert paired != report["paired"]["default"]


def test_the_file_names_no_folder_and_has_its_tables(floors, report, done):
    text = json.dumps(report, allow_nan=False)
    assert str(done[0]) not in text
    assert "root" not in report["settings"]["data"]
    table = floors.models_table(report).splitlines()
    assert len(table) == 2 + len(MODELS)
    assert table[2].startswith("| teacher | ")
    paired = floors.paired_table(report)
    assert "| teacher − best baseline | chosen | " in paired


# What it refuses.


def test_a_run_that_isn_t_finished_is_refused(floors, tmp_path):
    with pytest.raises(ArtifactError, match=r"no results\.json: it is no finished run"):
        floors.tuned(tmp_path, QUIET)


def test_other_ways_to_a_normal_are_refused(floors, done, tmp_path):
    settings = json.loads((done[0] / "config.json").read_text("utf-8"))
    settings["detection"]["trim"] = 0.1
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"detection\.trim=0\.1, expected 0\.0"):
        floors.tuned(tmp_path, QUIET)


def test_a_borrowed_threshold_is_refused(floors, shared):
    """For so low a rate `saw` has too few calibration windows, and would share a τ."""
    workdir, settings = shared
    threshold = settings["threshold"] | {"false_alarm_rate": 0.1}
    with pytest.raises(ConfigError, match="^saw: .* at least 9 calibration windows"):
        floors.measure(workdir, settings | {"threshold": threshold}, QUIET)


def test_entities_without_labels_or_rows_are_refused(floors, done):
    settings = done[1]
    prepared = prepare_groups(load_dataset(settings["data"]), settings)["press"]
    (entity,) = prepared.entities
    unlabelled = entity._replace(test=entity.test._replace(labels=None))
    with pytest.raises(DataError, match="press: no labelled test rows"):
        floors._check_entity(unlabelled)
    with pytest.raises(DataError, match="press: too few validation rows"):
        floors._check_entity(entity._replace(pooled=True))
    floors._check_entity(entity)


def test_one_entity_has_no_other_to_choose_on(floors):
    vus = {"x": {"a": 0.5, "b": None}}
    with pytest.raises(DataError, match="1 of 2 entities .* at least 2"):
        floors._chosen(grid_of(vus), ["x"])


# What is committed.


def test_committed_numbers_stand_in_the_document(floors):
    report = json.loads((RESULTS / "floors.json").read_text("utf-8"))
    document = (RESULTS / "floors.md").read_text("utf-8")
    assert floors.models_table(report) in document
    rows = floors.paired_table(report).splitlines()
    shown = [row for row in rows[2:] if row.startswith("| teacher − best baseline |")]
    assert len(shown) == 2
    assert all(row in document for row in shown)


def test_committed_numbers_are_of_the_committed_run(floors):
    report = json.loads((RESULTS / "floors.json").read_text("utf-8"))
    smd = json.loads((RESULTS / "smd.json").read_text("utf-8"))
    assert report["settings"] == smd["settings"]
    assert report["floors"] == [0.01, 0.03, 0.1]
    assert report["ridges"] == [0.01, 0.1, 1.0]
    assert report["departure"] < 1e-3
    for row in smd["rows"]:
        if row["model"] == "classifier":  # without residuals
            continue
        if (row["scope"], row["threshold"]) == ("per_entity_mean", "oracle"):
            own = report["models"][row["model"]]["default"]
            if row["level"] == "window":
                assert own["f1_oracle"] == pytest.approx(row["f1"], abs=1e-3)
            else:
                assert own["vus_pr"] == pytest.approx(row["vus_pr"], abs=1e-3)


def test_the_teacher_leads_by_vus_pr_where_all_share_a_pair():
    """As `docs/results/floors.md` says of the nine, and of what each gains from its best."""
    models = json.loads((RESULTS / "floors.json").read_text("utf-8"))["models"]
    means = {
        name: {p: own["vus_pr"] for p, own in model["means_with_all_labels"].items()}
        for name, model in models.items()
    }
    for pair in means["teacher"]:
        assert max(means, key=lambda name: means[name][pair]) == "teacher"
    gains = {name: max(own.values()) - own[OWN] for name, own in means.items()}
    assert gains.pop("teacher") == pytest.approx(0.001, abs=5e-4)
    assert gains.pop("random") < 0.001
    assert min(gains.values()) == pytest.approx(0.009, abs=5e-4)
    assert max(gains.values()) == pytest.approx(0.038, abs=5e-4)


def test_recipes_compares_as_before(floors):
    recipes = importlib.import_module("recipes")
    report = json.loads((RESULTS / "recipes.json").read_text("utf-8"))
    joined, single = (report[f"left_out_{n}"]["measures"] for n in ("joined", "single"))
    assert recipes.differences(joined, single) == report["left_out_differences"]
