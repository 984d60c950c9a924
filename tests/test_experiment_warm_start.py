"""Training that starts from a saved detector, and the old one judged beside the new."""

import contextlib
import io
import json
import shutil

import jax
import numpy as np
import pytest

from kdjax.cli import main
from kdjax.config import get_config, override, resolve
from kdjax.data.series import Dataset, Ranges, Series
from kdjax.detection.storage import load_detector, save_detector
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.experiment.warm_start import load_warm_start, reordered
from kdjax.io.files import MANIFEST, sha256

CHANNELS = ("load", "heat", "dead")
NETWORKS = ("teacher", "student", "student_alone")


@pytest.fixture(scope="module")
def detectors(finished, tmp_path_factory):
    """A copy of the first run's detectors: tests change it."""
    folder = tmp_path_factory.mktemp("origin") / "detectors"
    shutil.copytree(finished.workdir / "detectors", folder)
    return folder


@pytest.fixture(scope="module")
def command(finished, detectors, tmp_path_factory):
    """A run that goes on from the first one with steps too small to see."""
    changed = {
        f"{group}.{field}": value
        for group, fields in finished.settings.items()
        if isinstance(fields, dict)
        for field, value in fields.items()
        if value not in (None, "", [])
    }
    changed |= {"train.learning_rate": 1e-12, "teacher.epochs": 1, "student.epochs": 1}
    words = {
        name: ",".join(map(str, value)) if isinstance(value, list) else value
        for name, value in changed.items()
    }
    return [
        "kdjax",
        "run",
        *(f"--config.{name}={value}" for name, value in words.items()),
        "--config.baselines=pca",
        f"--init_from={detectors}",
        f"--workdir={tmp_path_factory.mktemp('renewed') / 'run'}",
    ]


def say(command):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def renewed(command):
    code, _, err = say(command)
    assert (code, err) == (0, "")
    return command[-1].removeprefix("--workdir=")


@pytest.fixture(scope="module")
def results(renewed):
    with open(f"{renewed}/results.json", encoding="utf-8") as file:
        return json.load(file)


# What comes of it.


def test_training_starts_from_the_saved_parameters(renewed, detectors):
    first = {"teacher": "teacher", "student": "student", "student_alone": "student"}
    for name, warm_start in first.items():
        found = load_detector(f"{renewed}/detectors/{name}").model
        wanted = load_detector(detectors / warm_start).model
        assert found.architecture == wanted.architecture
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-8),
            found.params,
            wanted.params,
        )


def test_the_old_detector_is_judged_as_it_was(results, finished):
    """The same test rows under the same τ, so the numbers of the first run."""

    def rows_of(found, model, part):
        return [
            {k: v for k, v in row.items() if k != "model"}
            for row in found[part]
            # The old detector's τ stays where it was.
            if row["model"] == model and row["threshold"] != "rolling"
        ]

    for part in ("rows", "entities"):
        before = rows_of(results, "previous", part)
        assert before and before == rows_of(finished.results, "student", part)
    used = {
        rate["entity"]: rate["tau"]
        for rate in results["rates"]
        if rate["model"] == "previous" and rate["used"]
    }
    student = load_detector(finished.workdir / "detectors" / "student")
    taus = [threshold.tau for threshold in student.thresholds]
    assert used == {"press": taus[0], "saw": taus[1]}
    assert {row["model"] for row in results["rows"]} == {*NETWORKS, "pca", "previous"}


def test_cards_tell_what_a_detector_descends_from(renewed, detectors):
    for name in NETWORKS:
        told = load_detector(f"{renewed}/detectors/{name}").card["descends_from"]
        assert told["title"] == "student of train"
        assert told["networks"] == ["student", "teacher"]
        assert told["trained_on"]["channels"] == list(CHANNELS)
        assert told["sha256"] == {
            network: sha256(detectors / network / MANIFEST)
            for network in ("teacher", "student")
        }
    card = load_detector(f"{renewed}/detectors/pca").card
    assert "descends_from" not in card
    with pytest.raises(ArtifactError):
        load_detector(f"{renewed}/detectors/before")


def test_an_origin_that_changed_is_refused(renewed, command, detectors):
    code, out, _ = say(command)
    assert code == 0 and "is finished: nothing to do." in " ".join(out.split())
    old = load_detector(detectors / "student")
    save_detector(detectors / "student", old._replace(max_gap=6.0))
    try:
        code, _, err = say(command)
    finally:
        save_detector(detectors / "student", old)
    assert code == 2 and err.count("\n") == 1
    assert "the data changed since" in err and "init_from/student" in err


# What may be given.


@pytest.fixture
def warm_start(finished):
    """Asks for an origin under the first run's settings, with changes."""

    def load(folder, channels=CHANNELS, **changes):
        dotted = {name.replace("__", "."): value for name, value in changes.items()}
        config = get_config()
        config.unlock()
        config.update(finished.settings | {"baselines": ()})
        return load_warm_start(str(folder), channels, resolve(override(config, dotted)))

    return load


def test_folders_that_are_understood(warm_start, finished, detectors, tmp_path):
    for folder in (finished.workdir, detectors, detectors / "student"):
        found = warm_start(folder)
        assert set(found.params) == {"teacher", "student"}
        assert found.detector.card["model"]["name"] == "student"
    found = warm_start(detectors / "teacher")
    assert set(found.params) == {"teacher", "student"}
    assert found.detector.card["model"]["name"] == "teacher"
    # Beside a copy under another name lies whatever it may be.
    shutil.copytree(detectors / "student", tmp_path / "mine")
    shutil.copytree(detectors / "teacher", tmp_path / "teacher")
    found = warm_start(tmp_path / "mine")
    assert set(found.params) == {"student"}


@pytest.mark.parametrize(
    ("channels", "said"),
    [
        (("load", "heat", "new"), "missing in the new data: dead; new: new. Rename"),
        (("load", "heat"), "missing in the new data: dead; new: none"),
    ],
)
def test_other_channels_are_refused(warm_start, detectors, channels, said):
    with pytest.raises(DataError, match=said):
        warm_start(detectors, channels)


def test_channels_in_another_order_are_put_in_the_old_one(warm_start, detectors):
    assert warm_start(detectors, ("heat", "load", "dead")).detector.channels == CHANNELS
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    series = Series("a", rows, ("heat", "dead", "load"))
    found = reordered(Dataset("x", (series,), (series,)), CHANNELS)
    for part in (found.train, found.test):
        assert part[0].channels == CHANNELS
        np.testing.assert_array_equal(part[0].values, rows[:, [2, 0, 1]])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"student__hidden": (3,)},
            "the student has .*set student.hidden and model as",
        ),
        ({"teacher__hidden": (3, 3)}, "the teacher has the shape .*set teacher.hidden"),
        ({"model__decoder": "feedback"}, "decoder='feedback'.*set teacher.hidden and"),
        ({"data__window": 12}, "set data.window=10 and detection.count=0"),
        ({"detection__count": 1}, "scores windows of 10 rows and allows 0 above τ"),
    ],
)
def test_another_shape_is_refused_with_what_to_set(
    warm_start, detectors, changes, said
):
    with pytest.raises(ConfigError, match=said):
        warm_start(detectors, **changes)


def test_what_has_no_network_is_refused(warm_start, detectors, tmp_path):
    for name in ("pca", "student_alone"):
        with pytest.raises(ArtifactError, match=f'is the detector "{name}", which has'):
            warm_start(detectors / name)
    with pytest.raises(ArtifactError, match="holds no detector to start from: give a"):
        warm_start(tmp_path)
    with pytest.raises(ArtifactError, match="holds no detector to start from"):
        warm_start(tmp_path / "nowhere")


def test_entities_that_the_old_one_does_not_know_get_its_pooled_threshold(finished):
    from kdjax.data.datasets import load_dataset
    from kdjax.experiment.pipeline import prepare_dataset
    from kdjax.experiment.warm_start import previous_calibration

    old = load_detector(finished.workdir / "detectors" / "student")
    known = old._replace(
        entities=("saw",),
        scalers=type(old.scalers)(*(field[1:] for field in old.scalers)),
        gaussians=type(old.gaussians)(*(field[1:] for field in old.gaussians)),
        thresholds=old.thresholds[1:],
        ranges=Ranges(*(side[1:] for side in old.ranges)),
        calibration=old.calibration[1:],
    )
    settings = finished.settings
    prepared = prepare_dataset(load_dataset(settings["data"]), settings)
    found = previous_calibration(known, prepared)  # of press and saw
    assert found.thresholds == tuple(old.thresholds[i] for i in (2, 1, 2))
    for field, wanted in zip(found.gaussians, old.gaussians, strict=True):
        np.testing.assert_array_equal(field, wanted[[2, 1, 2]])
    for field, wanted in zip(found.scalers, old.scalers, strict=True):
        np.testing.assert_array_equal(field, wanted[[2, 1, 2]])
    assert found.notes == (
        "previous: entities that are new to it are scored with its pooled threshold: press",
    )
    assert previous_calibration(old, prepared).notes == ()
