"""Whole runs on small plants: what they leave behind, and numbers counted again."""

import csv
import io
import json
import math
import re
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from kdjax.config import get_config, override, resolve
from kdjax.data.datasets import load_dataset
from kdjax.data.series import Dataset, Series
from kdjax.detection.alarming import EventRule
from kdjax.detection.detector import score_windows
from kdjax.detection.storage import card_markdown, load_detector
from kdjax.detection.thresholds import Rule
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.evaluation.evaluate import evaluate_models
from kdjax.evaluation.rows import LEVELS, METRICS, SCOPES
from kdjax.experiment.assemble import calibration_rules, data_digests
from kdjax.experiment.pipeline import (
    count_networks,
    prepare_dataset,
    prepare_groups,
    run,
)
from kdjax.models.residual import ResidualModel

NETWORKS = ("teacher", "student", "student_alone")
BASELINES = (
    "random",
    "mahalanobis",
    "pca",
    "kmeans",
    "difference",
    "moving_average",
)
MODELS = NETWORKS + BASELINES
CHANNELS = ("load", "heat", "dead")


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory, plant, tiny):
    """A run without test rows or labels, in which the student has no teacher (α = 0)."""
    settings = tiny(
        {
            "data.path": str(plant.train),
            "data.entity_column": "machine",
            "distill.alpha": 0.0,
        }
    )
    workdir = tmp_path_factory.mktemp("unlabelled") / "run"
    return workdir, run(settings, workdir)


def lines(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def network_params(workdir, name):
    model = load_detector(workdir / "detectors" / name).model
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.params)]


# What a run leaves behind.


def test_the_work_directory_holds_what_is_promised_and_no_more(finished):
    found = {p.name for p in finished.workdir.iterdir() if not p.name.startswith(".")}
    assert found == {
        "config.json", "data.json", "metrics.jsonl", "checkpoints", "detectors",
        "results.json", "report.html", "learning_curve.png",
        "report.md", "results.csv", "entities.csv", "results.tex",
    }  # fmt: skip
    assert {p.name for p in (finished.workdir / "detectors").iterdir()} == set(MODELS)
    checkpoints = finished.workdir / "checkpoints"
    assert {p.name for p in checkpoints.iterdir()} == set(NETWORKS)
    assert not (finished.workdir / ".lock.pid").exists()


def test_files_hold_what_they_say(finished):
    workdir = finished.workdir
    assert json.loads((workdir / "config.json").read_text()) == finished.settings
    assert (workdir / "learning_curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    report = (workdir / "report.html").read_text()
    assert report.startswith("<!") and report.rstrip().endswith("</html>")
    for model in MODELS:
        assert model in report
    for machine in ("press", "saw"):
        assert machine in report


def test_results_are_those_returned_and_json_without_nan(finished):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = (finished.workdir / "results.json").read_text()
    assert json.loads(text, parse_constant=refuse) == json.loads(
        json.dumps(finished.results)
    )


def test_schema_of_results(finished):
    results = finished.results
    assert set(results) == {
        "schema", "dataset", "rows", "entities", "rates", "worst_training_windows",
        "environment", "notes", "settings", "data", "intervals", "paired", "costs",
        "agreement", "unfit", "recommendation",
    }  # fmt: skip
    assert results["schema"] == 1 and results["settings"] == finished.settings
    assert results["dataset"] == {
        "name": "train", "entities": ["press", "saw"], "window": 10, "stride": 5,
        "step_seconds": 1.0,
        "min_anomalous_points": 1, "train_rows": 840, "test_rows": 280,
        # (160 − 10)/5 + 1 and (120 − 10)/5 + 1; windows that meet rows 70–84, 40–51.
        "windows": 31 + 23, "positive_windows": 4 + 4,
    }  # fmt: skip
    cells = [
        (row["model"], row["threshold"], row["scope"], row["level"])
        for row in results["rows"]
    ]
    assert sorted(cells) == sorted(
        (model, threshold, scope, level)
        for model in MODELS
        for threshold in ("oracle", "conformal", "rolling")
        for scope in SCOPES
        for level in LEVELS
        if threshold != "rolling" or level == "window"
    )
    for row in results["rows"]:
        assert {*METRICS, "parameters", "alarm_rate", "tau", "notes"} <= set(row)
        for metric in METRICS:
            assert row[metric] is None or 0 <= row[metric] <= 1
            assert (row[metric] is None) == (metric in row["notes"])
    each = {
        (row["model"], row["entity"], row["threshold"], row["level"])
        for row in results["entities"]
    }
    assert len(each) == len(results["entities"]) == len(MODELS) * 2 * (2 * 2 + 1)


def test_environment_of_results(finished):
    facts = finished.results["environment"]
    assert facts["versions"]["jax"] and facts["versions"]["numpy"] == np.__version__
    assert facts["device"] and "commit" in facts
    assert set(facts["seconds"]) == {"data", "training", "evaluation"}
    assert facts["seconds"]["training"] > 0


def test_parameters_are_counted(finished):
    def lstm(inputs, hidden):
        return 4 * hidden * (inputs + hidden + 1)

    counts = {row["model"]: row["parameters"] for row in finished.results["rows"]}
    assert counts["teacher"] == lstm(3, 3) + lstm(3, 3) + 3 * 3 + 3
    assert counts["student"] == counts["student_alone"] == lstm(3, 2) + lstm(2, 2) + 9
    assert counts["mahalanobis"] == counts["random"] == 0
    assert count_networks(finished.settings) == {
        name: counts[name] for name in ("teacher", "student")
    }


def test_the_log_has_a_line_a_step_and_one_an_epoch(finished):
    found = lines(finished.workdir)
    assert list(dict.fromkeys(line["phase"] for line in found)) == list(NETWORKS)
    for phase in NETWORKS:
        own = [line for line in found if line["phase"] == phase]
        steps = [line["step"] for line in own]
        assert steps == sorted(set(steps))
        epochs = [line for line in own if "validation_loss" in line]
        assert [line["epoch"] for line in epochs] == [1, 2]
        assert epochs[1]["step"] == 2 * epochs[0]["step"]
        assert all(math.isfinite(line["loss"]) for line in own)
        assert all(line["windows_per_second"] > 0 for line in epochs)
        # Every second step, as train.log_every says.
        assert all(line["step"] % 2 == 0 for line in own if line not in epochs)


def test_notes_say_who_borrowed(finished):
    assert finished.results["notes"] == [
        "press: constant in the training rows: dead",
        "saw: constant in the training rows: dead",
        "test rows outside the training range: press 9%, saw 15%",
        (
            "too few calibration windows, so τ from all entities' scores (the 22-th "
            "smallest of 23): saw (6 calibration windows)"
        ),
    ]


def test_detectors_score_with_what_was_judged(finished):
    """The saved student gives the τ and the alarms of results.json."""
    detector = load_detector(finished.workdir / "detectors" / "student")
    assert detector.channels == CHANNELS and detector.entities == ("press", "saw")
    assert (detector.window, detector.stride, detector.max_gap) == (10, 5, 5.0)
    assert [t.source for t in detector.thresholds] == ["own", "shared", "pooled"]
    test = pd.read_csv(finished.plant.test)
    for index, machine in enumerate(("press", "saw")):
        values = test[test["machine"] == machine][list(CHANNELS)].to_numpy(np.float32)
        starts = np.arange(0, len(values) - 9, 5)
        scores = score_windows(detector, index, values, starts).max(axis=1)
        alarms = scores > detector.thresholds[index].tau
        (row,) = (
            row
            for row in finished.results["entities"]
            if row["level"] == "window"
            and (row["model"], row["entity"], row["threshold"])
            == ("student", machine, "conformal")
        )
        assert row["tau"] == detector.thresholds[index].tau
        assert row["alarm_rate"] == pytest.approx(alarms.mean())
        assert (row["windows"], row["positives"]) == (len(starts), 4)


def test_cards_say_where_a_detector_comes_from(finished):
    folder = finished.workdir / "detectors" / "student"
    card = load_detector(folder).card
    assert (folder / "card.md").read_text() == card_markdown(card)
    assert card["title"] == "student of train"
    assert card["model"] == {
        "name": "student", "kind": "autoencoder",
        "parameters": count_networks(finished.settings)["student"],
    }  # fmt: skip
    digests = json.loads((finished.workdir / "data.json").read_text())
    assert card["data"] == {
        "name": "train",
        "channels": list(CHANNELS),
        "time_column": "time",
        "dated": True,
        "sha256": digests,
    }
    assert set(digests) == {"train/press", "train/saw", "test/press", "test/saw"}
    assert all(len(digest) == 64 for digest in digests.values())
    assert card["splits"]["press"] == {
        "fit": 434, "validation": 76, "calibration": 90, "test": 160,
    }  # fmt: skip
    assert sum(card["splits"]["saw"].values()) == 240 + 120
    assert card["settings"] == finished.settings
    assert card["results"] == [
        row for row in finished.results["rows"] if row["model"] == "student"
    ]
    assert set(card["thresholds"]) == {"press", "saw", "pooled"}
    assert card["thresholds"]["saw"]["source"] == "shared"
    assert card["floored_channels"] == {"press": ["dead"], "saw": ["dead"]}
    assert any("sampling rates" in text for text in card["never_tested_on"])


# Numbers counted again.


class Recount:
    """The control `mahalanobis` from the CSV files to F1, in float64 and plain loops."""

    window, stride, rate, floor, ridge = 10, 5, 0.1, 0.03, 0.1

    def __init__(self, plant):
        self.machines = ("press", "saw")
        self.train = self.read(plant.train)
        self.test = self.read(plant.test)
        self.splits = {m: self.split(len(self.train[m][0])) for m in self.machines}
        self.taus, self.window_scores, self.window_labels = {}, {}, {}
        self.row_scores, self.row_labels = {}, {}
        calibration = {m: self.measure(m) for m in self.machines}
        together = [score for own in calibration.values() for score in own]
        for m in self.machines:
            own = calibration[m]
            self.taus[m] = self.conformal(own if len(own) >= 9 else together)

    def read(self, path):
        found = {m: ([], []) for m in self.machines}
        with path.open() as file:
            for row in csv.DictReader(file):
                values, labels = found[row["machine"]]
                values.append([np.float32(row[channel]) for channel in CHANNELS])
                labels.append(int(row.get("fault", 0)))
        return {
            m: (np.array(v, np.float32), np.array(y)) for m, (v, y) in found.items()
        }

    def split(self, rows):
        """Spans: validation blocks centred in equal parts, calibration last."""
        calibration = round(rows * 0.15)
        rest = rows - calibration
        validation = round(rest * 0.15)
        count = max(1, min(5, validation // (3 * self.window)))
        blocks, first = [], 0
        for i in range(count):
            part = rest // count + (i < rest % count)
            length = validation // count + (i < validation % count)
            start = first + (part - length) // 2
            blocks.append((start, start + length))
            first += part
        return blocks, [(rest, rows)]

    def starts(self, spans):
        return [
            start
            for low, high in spans
            for start in range(low, high - self.window + 1, self.stride)
        ]

    def measure(self, machine):
        """Scores of a machine's test rows; returns those of its calibration windows."""
        values = self.train[machine][0]
        validation, calibration = self.splits[machine]
        fit = np.ones(len(values), bool)
        for low, high in validation + calibration:
            fit[low:high] = False
        low, high = values[fit].min(axis=0), values[fit].max(axis=0)
        span = np.where(high > low, high - low, 1).astype(np.float32)
        scaled = ((values - low) / span).astype(np.float64)
        errors = np.concatenate(
            [scaled[s : s + self.window] for s in self.starts(validation)]
        )
        mean, deviation = (
            errors.mean(axis=0),
            np.maximum(errors.std(axis=0), self.floor),
        )
        correlation = np.cov(errors.T, ddof=0) / np.outer(deviation, deviation)
        sigma = (correlation + self.ridge * np.eye(3)) * np.outer(deviation, deviation)
        inverse = np.linalg.inv(sigma)

        def points(rows):
            return np.array([(row - mean) @ inverse @ (row - mean) for row in rows])

        train_points = points(scaled)
        rows, labels = self.test[machine]
        test_points = points(((rows - low) / span).astype(np.float64))
        starts = self.starts([(0, len(rows))])
        ends = [(s, s + self.window) for s in starts]
        self.window_scores[machine] = [test_points[i:j].max() for i, j in ends]
        self.window_labels[machine] = [int(labels[i:j].any()) for i, j in ends]
        covered = ends[-1][1]
        # e = x: a row has the same a_t in each window, so their mean is that.
        self.row_scores[machine] = test_points[:covered]
        self.row_labels[machine] = labels[:covered]
        return [
            train_points[s : s + self.window].max() for s in self.starts(calibration)
        ]

    def conformal(self, scores):
        rank = math.ceil((len(scores) + 1) * 9 / 10)
        return sorted(scores)[rank - 1]

    def counts(self, level, machine, tau):
        scores = (self.window_scores if level == "window" else self.row_scores)[machine]
        labels = (self.window_labels if level == "window" else self.row_labels)[machine]
        alarms = [score > tau for score in scores]
        pairs = list(zip(alarms, labels, strict=True))
        return np.array(
            [pairs.count((True, 1)), pairs.count((True, 0)), pairs.count((False, 1))]
        )

    def best(self, level, machines):
        """τ of best F1 over the machines' scores, by trying each score."""
        chosen = self.window_scores if level == "window" else self.row_scores
        taus = np.concatenate([chosen[m] for m in machines])
        return max(
            sorted(taus, reverse=True),
            key=lambda tau: self.metrics(
                sum(self.counts(level, m, tau) for m in machines)
            )[2],
        )

    @staticmethod
    def metrics(counts):
        tp, fp, fn = (int(n) for n in counts)
        return tp / max(tp + fp, 1), tp / (tp + fn), 2 * tp / (2 * tp + fp + fn)

    def cell(self, threshold, scope, level):
        if scope == "pooled":
            tau = self.best(level, self.machines) if threshold == "oracle" else None
            return self.metrics(
                sum(self.counts(level, m, tau or self.taus[m]) for m in self.machines)
            )
        each = []
        for m in self.machines:
            tau = self.best(level, [m]) if threshold == "oracle" else self.taus[m]
            each.append(self.metrics(self.counts(level, m, tau)))
        return tuple(np.mean(each, axis=0))


def test_a_control_counted_again_from_the_files(finished):
    recount = Recount(finished.plant)
    rows = [
        row
        for row in finished.results["rows"]
        if row["model"] == "mahalanobis" and row["threshold"] != "rolling"
    ]
    assert len(rows) == 8
    for row in rows:
        wanted = recount.cell(row["threshold"], row["scope"], row["level"])
        got = [row[name] for name in ("precision", "recall", "f1")]
        assert got == pytest.approx(wanted, abs=1e-12), row
    thresholds = load_detector(finished.workdir / "detectors/mahalanobis").thresholds
    for threshold, machine in zip(thresholds, recount.machines, strict=False):
        assert threshold.tau == pytest.approx(recount.taus[machine], rel=1e-3)
    # Neither all right nor all wrong, so that the comparison means something.
    assert any(0 < row["f1"] < 1 for row in rows)


def test_pooled_counts_are_the_sums_of_the_entities(finished):
    """From the entities' rates: pooled precision and recall of the label-free rule."""
    for model in MODELS:
        own = [
            row
            for row in finished.results["entities"]
            if row["level"] == "window"
            and (row["model"], row["threshold"]) == (model, "conformal")
        ]
        alarms = sum(round(row["alarm_rate"] * row["windows"]) for row in own)
        hits = sum(round(row["recall"] * row["positives"]) for row in own)
        (pooled,) = (
            row
            for row in finished.results["rows"]
            if (row["model"], row["threshold"], row["scope"], row["level"])
            == (model, "conformal", "pooled", "window")
        )
        assert pooled["recall"] == pytest.approx(hits / 8)
        if alarms:
            assert pooled["precision"] == pytest.approx(hits / alarms)
        else:
            assert pooled["precision"] is None
            assert pooled["notes"]["precision"] == "nothing was predicted positive"


# Seeds and controls.


def test_the_same_seed_gives_the_same_results_and_another_does_not(
    finished, tiny, plant_changes, tmp_path
):
    again = run(finished.settings, tmp_path / "again")
    for part in ("rows", "entities", "dataset", "notes"):
        assert again[part] == finished.results[part]

    def timeless(workdir):
        return [
            {k: v for k, v in line.items() if k != "windows_per_second"}
            for line in lines(workdir)
        ]

    assert timeless(tmp_path / "again") == timeless(finished.workdir)
    other = run(
        tiny(plant_changes | {"seed": 1, "baselines": ("pca",)}), tmp_path / "other"
    )
    assert {row["model"] for row in other["rows"]} == {*NETWORKS, "pca"}
    for name in NETWORKS:
        mine = network_params(finished.workdir, name)
        for a, b in zip(network_params(tmp_path / "again", name), mine, strict=True):
            assert a.tobytes() == b.tobytes()
        pairs = zip(network_params(tmp_path / "other", name), mine, strict=True)
        assert all(a.tobytes() != b.tobytes() for a, b in pairs)


def test_a_student_without_its_teachers_term_is_student_alone(unlabelled, finished):
    workdir, _ = unlabelled
    pairs = zip(
        network_params(workdir, "student"),
        network_params(workdir, "student_alone"),
        strict=True,
    )
    assert all(a.tobytes() == b.tobytes() for a, b in pairs)
    # With α = 0.35 it differs, while the control stays what it was.
    pairs = zip(
        network_params(finished.workdir, "student"),
        network_params(finished.workdir, "student_alone"),
        strict=True,
    )
    assert any(a.tobytes() != b.tobytes() for a, b in pairs)
    pairs = zip(
        network_params(finished.workdir, "student_alone"),
        network_params(workdir, "student_alone"),
        strict=True,
    )
    assert all(a.tobytes() == b.tobytes() for a, b in pairs)


# Without test rows.


def test_without_test_rows_there_are_detectors_and_no_metrics(unlabelled):
    workdir, results = unlabelled
    dataset = results["dataset"]
    assert (dataset["test_rows"], dataset["windows"]) == (0, 0)
    assert dataset["positive_windows"] is None
    assert {row["model"] for row in results["rows"]} == set(MODELS)
    for row in results["rows"]:
        assert all(row[metric] is None and row["notes"][metric] for metric in METRICS)
    assert load_detector(workdir / "detectors/student").entities == ("press", "saw")
    assert (workdir / "report.html").exists()


def test_test_rows_without_labels_have_an_alarm_rate(finished, tiny, plant_changes):
    """Judgement alone, with a control."""
    settings = tiny(plant_changes)
    prepared = prepare_dataset(load_dataset(settings["data"]), settings)
    entities = tuple(
        entity._replace(test=entity.test._replace(labels=None))
        for entity in prepared.entities
    )
    evaluated = evaluate_models(
        {"mahalanobis": ResidualModel("mahalanobis", {})},
        prepared._replace(entities=entities),
        calibration_rules(settings, prepared),
        min_anomalous_points=1,
        console=Console(quiet=True),
    )["mahalanobis"]
    labelled = {
        (row["threshold"], row["scope"], row["level"]): row["alarm_rate"]
        for row in finished.results["rows"]
        if row["model"] == "mahalanobis"
    }
    for row in evaluated.rows:
        assert row["f1"] is None and row["notes"]["f1"] == "no labels"
        if row["threshold"] == "conformal":
            cell = (row["threshold"], row["scope"], row["level"])
            assert row["alarm_rate"] == labelled[cell]
        else:
            assert row["alarm_rate"] is None
    assert [scores.window_labels for scores in evaluated.scores] == [None, None]


# Refusals, and runs that were there before.


def test_a_finished_run_is_read_and_not_repeated(finished):
    before = {
        p: p.stat().st_mtime_ns for p in finished.workdir.rglob("*") if p.is_file()
    }
    text = io.StringIO()
    again = run(
        finished.settings, finished.workdir, console=Console(file=text, width=200)
    )
    assert again == json.loads(json.dumps(finished.results))
    assert "is finished: nothing to do." in text.getvalue()
    after = {
        p: p.stat().st_mtime_ns for p in finished.workdir.rglob("*") if p.is_file()
    }
    assert after == before


def test_another_config_is_refused(finished, tiny, plant_changes):
    settings = tiny(plant_changes | {"seed": 3, "data.stride": 4})
    with pytest.raises(ConfigError, match="data.stride: 5 -> 4; seed: 0 -> 3"):
        run(settings, finished.workdir)


def test_other_data_under_the_same_name_are_refused(
    finished, tiny, plant_changes, plant, tmp_path
):
    copy = tmp_path / "run"
    shutil.copytree(finished.workdir, copy)
    changed = tmp_path / "train.csv"
    changed.write_text(plant.train.read_text().replace("5.0\n", "5.5\n", 1))
    settings = tiny(plant_changes | {"data.path": str(changed)})
    (copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match="data changed since .*: train/press"):
        run(settings, copy)


def test_a_rate_that_can_not_be_held_is_refused_before_training(
    tiny, plant_changes, tmp_path
):
    settings = tiny(plant_changes | {"threshold.false_alarm_rate": 0.01})
    with pytest.raises(ConfigError, match="at least 99 calibration windows, have 23"):
        run(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_foreign_folder_is_refused(tiny, plant_changes, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ArtifactError, match="holds thesis.tex but no config.json"):
        run(tiny(plant_changes), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} <= {"thesis.tex", ".lock"}


# Small functions.


def test_digests_tell_each_change():
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    base = Series("a", values, ("x", "y"), np.arange(3.0), np.zeros(3, bool))

    def digest(**changes):
        one = base._replace(**changes)
        return data_digests(Dataset("d", (one,), ()))["train/a"]

    same = digest(values=np.asfortranarray(values))
    others = [
        digest(values=values + 1),
        digest(channels=("x", "z")),
        digest(time=np.arange(3.0) + 1),
        digest(time=None),
        digest(labels=np.ones(3, bool)),
        digest(labels=None),
    ]
    assert same == digest()
    assert len({digest(), *others}) == 7
    both = data_digests(Dataset("d", (base,), (base._replace(labels=None),)))
    assert both["test/a"] == digest(labels=None) and list(both) == ["train/a", "test/a"]


def test_rules_of_calibration_come_from_their_settings(tiny):
    settings = tiny(
        {
            "data.name": "smd", "detection.count": 2, "detection.floor": 0.2,
            "detection.ridge": 0.3, "detection.shrinkage": "oas",
            "detection.scope": "pooled", "detection.batch_size": 7,
            "detection.trim": 0.2,
        }
    )  # fmt: skip
    prepared = prepare_dataset(load_dataset(settings["data"]), settings)
    # No dates tell how long a row lasts.
    rule = Rule(
        "conformal", 0.1, caution=32, overlap=2, events=EventRule(gap=10, spacing=5)
    )
    found = calibration_rules(settings, prepared)
    # NaN for no value of one's own.
    found = found._replace(threshold=found.threshold._replace(value=rule.value))
    assert found._asdict() == {
        "allowed_points": 2, "floor": 0.2, "ridge": 0.3, "shrinkage": "oas",
        "scope": "pooled", "threshold": rule, "trim": 0.2,
        "batch_size": 7,
    }  # fmt: skip


def test_networks_are_counted_without_data(tiny):
    published = {
        "model.channels": "independent",
        "teacher.hidden": (200, 200),
        "student.hidden": (200,),
    }
    wanted = {"teacher": 1_124_201, "student": 482_601}  # Table 1 of the paper
    settings = tiny({"data.name": "asd", "data.root": "nowhere"} | published)
    assert count_networks(settings) == wanted
    joint = tiny({"data.name": "smd"} | published | {"model.channels": "joint"})
    assert count_networks(joint) == {"teacher": 1_161_238, "student": 519_638}


# Benchmarks in their published layouts.


def smd(root, rng):
    for part, rows in (("train", 400), ("test", 60)):
        (root / part).mkdir(parents=True)
        for name in ("machine-1-1", "machine-1-2"):
            np.savetxt(
                root / part / f"{name}.txt", rng.random((rows, 38)), delimiter=","
            )
    (root / "test_label").mkdir()
    for name in ("machine-1-1", "machine-1-2"):
        labels = (np.arange(60) // 10 == 3).astype(int)
        np.savetxt(root / "test_label" / f"{name}.txt", labels, fmt="%d")


def text_files(prefix, suffix, width):
    def write(root, rng):
        for part, rows in (("train", 400), ("test", 60)):
            (root / part).mkdir(parents=True)
            path = root / part / f"{prefix}1{suffix}"
            np.savetxt(path, rng.random((rows, width)), delimiter=",")
        (root / "test_label").mkdir()
        labels = (np.arange(60) // 10 == 3).astype(int)
        np.savetxt(root / "test_label" / f"{prefix}1{suffix}", labels, fmt="%d")

    return write


def nasa(spacecraft, entity, width):
    def write(root, rng):
        for part, rows in (("train", 400), ("test", 60)):
            (root / part).mkdir(parents=True)
            np.save(root / part / f"{entity}.npy", rng.random((rows, width)))
        (root / "labeled_anomalies.csv").write_text(
            "chan_id,spacecraft,anomaly_sequences,class,num_values\n"
            f'{entity},{spacecraft},"[[30, 39]]",[point],60\n'
        )

    return write


LAYOUTS = {
    "smd": (smd, 38, 2),
    "asd": (text_files("omi-", ".txt", 19), 19, 1),
    "jumpstarter2": (text_files("service", ".csv", 19), 19, 1),
    "smap": (nasa("SMAP", "A-1", 25), 25, 1),
    "msl": (nasa("MSL", "M-1", 55), 55, 1),
}


def written(name, root):
    write, *_ = LAYOUTS[name]
    write(root, np.random.default_rng(0))
    return {"data.name": name, "data.root": str(root), "data.scaler": "none"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_benchmarks_layout_can_be_judged(name, tiny, tmp_path):
    settings = tiny(written(name, tmp_path))
    prepared = prepare_dataset(load_dataset(settings["data"]), settings)
    _, width, entities = LAYOUTS[name]
    assert (len(prepared.channels), len(prepared.entities)) == (width, entities)
    evaluated = evaluate_models(
        {"difference": ResidualModel("difference", {})},
        prepared,
        calibration_rules(settings, prepared),
        min_anomalous_points=1,
        console=Console(quiet=True),
    )["difference"]
    assert len(evaluated.rows) == 8
    for scores in evaluated.scores:
        assert len(scores.window_scores) == 11 and scores.window_labels.sum() == 3
        assert np.isfinite(scores.scores).all() and scores.labels.sum() == 10


@pytest.mark.slow
def test_a_run_on_smds_layout(tiny, tmp_path):
    settings = tiny(
        written("smd", tmp_path / "smd")
        | {
            "data.entities": ("machine-1-2",), "teacher.epochs": 1, "student.epochs": 1,
            "baselines": ("mahalanobis",),
        }
    )  # fmt: skip
    text = io.StringIO()
    results = run(settings, tmp_path / "run", console=Console(file=text, width=200))
    said = text.getvalue()
    assert "smd: 1 entity (machine-1-2), 400 train rows, 38 channels" in said
    for model in (*NETWORKS, "mahalanobis"):
        assert f"{model}: calibrating and scoring" in said
    assert "student: 2 steps, lowest validation loss" in said
    assert results["dataset"]["name"] == "smd"
    assert results["dataset"]["entities"] == ["machine-1-2"]
    assert results["dataset"]["positive_windows"] == 3
    detector = load_detector(tmp_path / "run" / "detectors" / "student")
    assert detector.channels[:2] == ("cpu_r", "load_1") and len(detector.channels) == 38


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        (400, {}),
        (400, {"data.validation": 0.3}),
        (400, {"data.calibration": 0.3}),
        (400, {"data.window": 60}),
        (100, {}),
        (20, {}),
        (20, {"baselines": ("classifier",)}),  # whose windows have 9 rows or more
        (80, {"student.components": ("classifier",)}),
        (900, {"data.window": 20, "data.validation": 0.01}),
        (300, {"data.window": 20, "data.validation": 0.89}),
        (3000, {"threshold.method": "conformal"}),
        (8000, {"threshold.method": "quantile", "threshold.false_alarm_rate": 0.001}),
        (3000, {"threshold.method": "budget", "threshold.budget": "2/day"}),
        (400, {"threshold.method": "budget", "data.window": 50, "data.stride": 3}),
    ],
)
def test_what_a_refusal_advises_is_accepted(rows, changes):
    """Each value is tried as given, and one beyond it is refused."""

    def refusal(rows, **more):
        values = np.random.default_rng(0).normal(size=(rows, 2)).astype(np.float32)
        time = np.datetime64("2026-01-01", "ns") + np.arange(rows) * 10**9
        dataset = Dataset("p", (Series("p", values, ("a", "b"), time=time),), ())
        given = {"data.path": "p.csv", **changes, **more}
        try:
            prepare_groups(dataset, resolve(override(get_config(), given)))
        except (ConfigError, DataError) as error:
            return str(error)
        return ""

    said = refusal(rows)
    count = int(re.search(r"[Gg]ive ([\d,]+) rows or more", said)[1].replace(",", ""))
    assert refusal(count - 1) and not refusal(count)
    advised = re.findall(r"(?:[Ss]et| or) (data\.\w+)=(\d[\d.]*\d|\d)", said)
    for name, value in advised:
        number = float(value) if "." in value else int(value)
        assert not refusal(rows, **{name: number})
        assert "." in value or refusal(rows, **{name: number + 1})
    lowest = re.search(r"threshold.budget=(\d+)/day or above", said)
    if lowest:
        below = f"{int(lowest[1]) - 1}/day"
        assert not refusal(rows, **{"threshold.budget": f"{lowest[1]}/day"})
        assert refusal(rows, **{"threshold.budget": below})
    rate = re.search(r"higher rate, of ([\d.]+) or above", said)
    if rate:
        assert not refusal(rows, **{"threshold.false_alarm_rate": float(rate[1])})
        near = float(rate[1]) - 0.0002
        assert refusal(rows, **{"threshold.false_alarm_rate": near})
    # No window is both long enough for a classifier and short enough for 20 rows.
    assert bool(advised or lowest or rate) != ("baselines" in changes)
