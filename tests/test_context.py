"""Context channels: models see them, but never score or blame them."""

import io
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import kdjax
from kdjax.cli import main
from kdjax.config import get_config, override, resolve
from kdjax.data.prepared import Prepared, windows_source
from kdjax.data.scaler import Scaler
from kdjax.data.series import Dataset, Ranges, Series
from kdjax.detection.detector import Detector, score_batches
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.stream_rules import plan_of, plan_to_json
from kdjax.detection.tables import score_events, score_table
from kdjax.detection.thresholds import Threshold
from kdjax.errors import ArtifactError, ConfigError
from kdjax.evaluation.evaluate import test_notes as notes_on_test_rows
from kdjax.experiment import jobs, populations
from kdjax.experiment.pipeline import prepare_dataset
from kdjax.experiment.recalibrate import recalibrated
from kdjax.experiment.workdir import read_results
from kdjax.export.container import load_onnx
from kdjax.export.onnx import onnx_file
from kdjax.export.stablehlo import load_stablehlo, stablehlo_file
from kdjax.io.files import write_manifest
from kdjax.models.autoencoder import network
from kdjax.models.classifier import classifier_contributions, classifier_points
from kdjax.models.residual import ResidualModel
from kdjax.training import batching, steps
from kdjax.training.targets import Distillation, compute_targets

CHANNELS = ("flow", "mode", "valve", "heat")
CONTEXT = (1, 2)
SCORED = [0, 3]
L = 6
TAU = 4.0


# Detectors by hand, against numpy.


def by_hand(kind, attribution="correlation"):
    """A detector of four channels, two of them context, with numbers drawn at random."""
    rng = np.random.default_rng(7)
    copies = len(kind.split("+"))
    width = 2 * copies
    whiten = np.triu(rng.normal(0, 0.4, (2, width, width))) + 2 * np.eye(width)
    gaussian = Gaussian(rng.normal(0, 0.1, (2, width)).astype("f"), whiten.astype("f"))
    if kind == "classifier":
        gaussian = Gaussian(np.zeros((2, 0), "f"), np.zeros((2, 0, 0), "f"))
    tau = Threshold(TAU, "conformal", 0.1, 20, 19, "own")
    settings = {"data": {"path": "a.csv", "missing": "mask", "context": ["mode"]}}
    params = kdjax_classifier() if kind == "classifier" else {}
    return Detector(
        model=ResidualModel(kind, params, context=CONTEXT),
        channels=CHANNELS,
        window=L if kind != "classifier" else 12,
        stride=2,
        allowed_points=0,
        max_gap=5.0,
        entities=("a",),
        scalers=Scaler(np.full((2, 4), 1, "f"), np.full((2, 4), 2, "f")),
        gaussians=gaussian,
        thresholds=(tau, tau),
        card={"settings": settings, "data": {"channels": list(CHANNELS)}},
        attribution=attribution,
    )


def kdjax_classifier():
    rng = np.random.default_rng(8)
    windows = kdjax.windows(rng.uniform(size=(200, 4)).astype("f"), length=12)
    return kdjax.fit_classifier(windows, networks=2, steps=30, context=CONTEXT)


KINDS = ("mahalanobis", "mahalanobis+difference", "classifier")


@pytest.fixture(scope="module")
def detectors():
    return {kind: by_hand(kind) for kind in KINDS}


def raw_rows(missing=False):
    """Rows in raw units; the context leaves every range, and overflows once."""
    rows = np.random.default_rng(9).normal(size=(30, 4)).astype("f")
    rows[:, 1] *= 1000
    rows[21, 2] = 1e30
    if missing:
        rows[2:5, 1] = np.nan  # context alone
        rows[9, 0] = np.nan  # a scored channel
        rows[12, [1, 3]] = np.nan  # both
        rows[14, [0, 3]] = np.nan  # all that is scored
        rows[16] = np.nan
    return rows


def numpy_windows(rows):
    """Scaled windows, their gaps filled, and which cells were observed."""
    windows = kdjax.windows((np.float64(rows) - 1) / 2, length=L)
    filled = [pd.DataFrame(one).ffill().bfill().fillna(0).to_numpy() for one in windows]
    return np.array(filled), ~np.isnan(windows)


def numpy_scores(detector, rows):
    """a_t `[M, L]` and contributions `[M, L, D]` of Eq. 1 over the scored channels."""
    filled, observed = numpy_windows(rows)
    residuals, kinds = [], detector.model.kind.split("+")
    for kind in kinds:
        if kind == "mahalanobis":
            residuals.append(filled)
        else:
            steps_ = np.abs(np.diff(filled, axis=1))
            residuals.append(np.pad(steps_, ((0, 0), (1, 0), (0, 0))))
    found = np.concatenate([one[:, :, SCORED] for one in residuals], axis=2)
    seen = np.concatenate([observed[:, :, SCORED]] * len(kinds), axis=2)
    whiten = np.float64(detector.gaussians.whiten[0])
    sigma = np.linalg.inv(whiten.T @ whiten)
    deviation = found - detector.gaussians.mean[0]
    points = np.full(found.shape[:2], np.nan)
    parts = np.full((*points.shape, 4), np.nan)
    scale = np.sqrt(np.diag(sigma))
    values, vectors = np.linalg.eigh(sigma / np.outer(scale, scale))
    matrix = vectors @ np.diag(values**-0.5) @ vectors.T / scale
    for place in np.ndindex(points.shape):
        own, d = seen[place], deviation[place]
        if own.any():
            points[place] = d[own] @ np.linalg.solve(sigma[np.ix_(own, own)], d[own])
        if own.all():
            parts[place] = 0
            parts[place][SCORED] = ((matrix @ d) ** 2).reshape(-1, 2).sum(axis=0)
    return points, parts


@pytest.mark.parametrize("way", ["jax", "onnx", "stablehlo"])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", KINDS[:2])
def test_scores_and_contributions_are_those_of_the_other_channels(
    detectors, kind, missing, way
):
    detector, rows = detectors[kind], raw_rows(missing)
    points, parts = scores_by(way, detector, rows)
    wanted, shares = numpy_scores(detector, rows)
    assert np.isnan(wanted).any() == missing
    np.testing.assert_allclose(points, wanted, rtol=2e-4, atol=1e-5)
    whole = ~np.isnan(shares[..., 0])
    np.testing.assert_allclose(parts[whole], shares[whole], rtol=2e-4, atol=1e-5)
    assert (parts[..., CONTEXT] == 0).all()


def scores_by(way, detector, rows):
    if way == "jax":
        starts = np.arange(len(rows) - detector.window + 1)
        pieces = [*score_batches(detector, 0, rows, starts, explain=True)]
        return (np.concatenate(field) for field in zip(*pieces, strict=True))
    make, load = {
        "onnx": (onnx_file, load_onnx),
        "stablehlo": (stablehlo_file, load_stablehlo),
    }[way]
    found = load(make(detector, 0)).run(kdjax.windows(rows, length=detector.window))
    return found.point_score, found.contribution


@pytest.mark.parametrize("way", ["jax", "onnx", "stablehlo"])
def test_a_classifier_sees_the_context_and_gives_it_no_share(detectors, way):
    detector, rows = detectors["classifier"], raw_rows(missing=True)
    points, parts = scores_by(way, detector, rows)
    windows = kdjax.windows((np.float64(rows) - 1) / 2, length=12)
    filled = [pd.DataFrame(one).ffill().bfill().to_numpy() for one in windows]
    params = detector.model.params
    network_scores = np.asarray(kdjax.classifier_scores(params, np.array(filled)))
    ranges = (np.array(filled) - params["low"]) / params["scale"]
    beyond = np.abs(ranges - np.clip(ranges, -4, 5))[..., SCORED].sum(axis=-1)
    wanted = network_scores[:, None] + np.log1p(beyond)
    wanted[np.isnan(windows)[..., SCORED].all(axis=-1)] = np.nan
    np.testing.assert_allclose(points, wanted, rtol=1e-4, atol=1e-5)
    assert (parts[..., CONTEXT] == 0).all()
    known = ~np.isnan(wanted)
    np.testing.assert_allclose(parts.sum(axis=-1)[known], wanted[known], rtol=1e-4)
    # It sees the context: another mode gives another score.
    other = np.array(filled)
    other[..., 1] = params["low"][1] - other[..., 1]
    changed = kdjax.classifier_scores(params, other)
    assert np.abs(changed - network_scores).max() > 1e-3


def test_a_classifier_without_context_is_as_before(detectors):
    params = detectors["classifier"].model.params
    windows = np.random.default_rng(3).uniform(-9, 9, (5, 12, 4)).astype("f")
    parts = np.asarray(classifier_contributions(params, windows))
    points = np.asarray(classifier_points(params, windows))
    assert (parts > 0).all()
    np.testing.assert_allclose(parts.sum(axis=-1), points, rtol=1e-4)


def test_disturbed_copies_leave_the_context_alone():
    windows = np.random.default_rng(0).uniform(size=(20, 30, 4)).astype("f")
    found = kdjax.disturb_windows(windows, copies=20, context=(0, 3))
    changed = (found != np.repeat(windows, 20, axis=0)).any(axis=1)
    assert not changed[:, [0, 3]].any() and changed[:, [1, 2]].any(axis=1).mean() > 0.97
    assert changed[:, 1].mean() > changed[:, 2].mean() > 0.2  # the first scored one


# Streams and saved detectors.


@pytest.mark.parametrize("entry", ["csv", "parquet", "lines", "json", "onnx"])
def test_every_entry_scores_alike(entry, detectors, tmp_path, monkeypatch, capsys):
    detector = detectors["mahalanobis"]
    rows = raw_rows(missing=True)
    rows[21, 2] = 5
    rows[24:27, 0] += 20
    frame = pd.DataFrame(rows, columns=CHANNELS)
    points, parts = numpy_scores(detector, rows)
    save_detector(tmp_path / "saved", detector)
    saved = tmp_path / "saved"
    if entry in ("csv", "parquet"):
        path, output = tmp_path / f"a.{entry}", tmp_path / "scores.csv"
        write = {"csv": frame.to_csv, "parquet": frame.to_parquet}[entry]
        write(path, index=False)
        verb = ["score", path, f"--detector={saved}", f"--output={output}"]
        verb += ["--causal", "--contributions"]
        assert main(["kdjax", *map(str, verb)]) == 0
        table = pd.read_csv(output)
        found = table["score"].to_numpy()
        assert (table.loc[~np.isnan(found), "contribution:mode"] == 0).all()
        np.testing.assert_allclose(
            table["contribution:flow"][24], parts[24 - 5, 5, 0], rtol=1e-4
        )
        named = pd.read_csv(f"{output}.events.csv")["channels"]
        names = {name for own in named for name in own.split(";")}
    else:
        if entry == "onnx":
            saved = tmp_path / "a.onnx"
            saved.write_bytes(onnx_file(detector, 0))
        text = frame.to_csv(index=False)
        if entry == "json":
            text = frame.to_json(orient="records", lines=True)
        source = io.TextIOWrapper(io.BufferedReader(io.BytesIO(text.encode())))
        monkeypatch.setattr("sys.stdin", source)
        backend = ["--backend=onnxruntime"] * (entry == "onnx")
        assert main(["kdjax", "stream", f"--detector={saved}", *backend]) == 0
        answers = [
            json.loads(line)
            for line in capsys.readouterr().out.splitlines()
            if '"event"' not in line
        ]
        answers = [one for one in answers if one["row"] is not None]
        found = np.array([one["score"] for one in answers], float)
        names = {name for one in answers for name in one.get("channels", ())}
    assert np.isnan(found[:5]).all()
    np.testing.assert_allclose(found[5:], points[:, -1], rtol=2e-4, atol=1e-5)
    assert names == {"flow", "heat"}


def test_a_saved_detector_keeps_its_context(detectors, tmp_path):
    for kind, detector in detectors.items():
        save_detector(tmp_path / kind, detector)
        loaded = load_detector(tmp_path / kind)
        assert loaded.context == ("mode", "valve") and loaded.model.context == CONTEXT
    folder = tmp_path / "mahalanobis"
    description = json.loads((folder / "detector.json").read_text())
    assert description["context"] == ["mode", "valve"]


def test_a_saved_context_of_other_channels_is_refused(detectors, tmp_path):
    detector = detectors["mahalanobis"]
    renamed = detector._replace(channels=("flow", "mode", "gate", "heat"))
    for wrong in (
        detector._replace(model=detector.model._replace(context=(1,))),
        detector._replace(model=detector.model._replace(context=())),
    ):
        save_detector(tmp_path / "wrong", wrong)
        with pytest.raises(ArtifactError, match="normal/mean is float32"):
            load_detector(tmp_path / "wrong")
    save_detector(tmp_path / "renamed", renamed)
    assert load_detector(tmp_path / "renamed").context == ("mode", "gate")


def test_detectors_and_plans_of_before_have_none(small, tmp_path):
    save_detector(tmp_path / "old", small)
    path = tmp_path / "old" / "detector.json"
    description = json.loads(path.read_text())
    del description["context"]
    path.write_text(json.dumps(description))
    write_manifest(tmp_path / "old")
    assert load_detector(tmp_path / "old").context == ()
    assert "context" not in json.loads(plan_to_json(plan_of(small, 0)))


# What training leaves out.


def plant(rows, seed=0):
    """`mode` is commanded and moves `flow`; `heat` goes its own way."""
    rng = np.random.default_rng(seed)
    mode = np.repeat(rng.integers(0, 3, rows // 20 + 1), 20)[:rows].astype(float)
    flow = 3 * mode + rng.normal(0, 0.1, rows)
    heat = np.sin(np.arange(rows) / 4) + rng.normal(0, 0.1, rows)
    return pd.DataFrame({"flow": flow, "mode": mode, "heat": heat})


OPTIONS = {
    "window_size": 12,
    "stride": 2,
    "false_alarm_rate": 0.05,
    "missing": "mask",
}
AWARE = {"data.context": ("mode",)}


def settings_of(path="", **changes):
    fields = {"data.path": str(path), "data.window": 12, "data.stride": 2}
    fields |= {"threshold.false_alarm_rate": 0.05, "data.missing": "mask"}
    fields |= {"teacher.hidden": (4,), "student.hidden": (3,), "train.batch_size": 16}
    fields |= {"teacher.epochs": 1, "student.epochs": 1, **AWARE, **changes}
    return resolve(override(get_config(), fields))


@pytest.fixture(scope="module")
def prepared():
    rows = plant(400)
    rows.loc[30:40, "heat"] = np.nan
    series = Series("X", rows.to_numpy("f"), tuple(rows))
    return prepare_dataset(Dataset("X", (series,), ()), settings_of("a.csv"))


@pytest.mark.parametrize("target", ["teacher", "reconstruction", "errors"])
def test_losses_count_only_the_other_channels(prepared, target):
    data = jobs.make_training_data(prepared, settings_of("a.csv")["data"])
    assert data.context == (1,) and data.missing
    places = data.fit[8:14]
    dataset = batching.WindowDataset(
        jnp.asarray(data.rows), jnp.asarray(data.fit), missing=True, context=(1,)
    )
    batch = batching.take_batch(dataset, jnp.asarray(places), jnp.ones(6), 12)
    seen = ~np.isnan(np.stack([data.rows[i : i + 12] for i in places]))
    seen[..., 1] = False
    assert not seen[..., 2].all()
    windows = np.asarray(batch.windows, float)
    net = network(jobs.architecture(settings_of("a.csv"), "student", width=3))
    params = net.init(jax.random.key(0))
    made = np.asarray(net.apply(params, batch.windows), float)

    def mean(squares):
        return np.mean(
            [one[own].mean() for one, own in zip(squares, seen, strict=True)]
        )

    wanted = mean((made - windows) ** 2)
    if target == "teacher":
        for loss in (steps.teacher_loss(net), steps.validation_loss(net)):
            np.testing.assert_allclose(loss(params, batch), wanted, rtol=1e-5)
        return
    given = np.random.default_rng(0).normal(size=windows.shape).astype("f")
    batch = batch._replace(targets=jnp.asarray(given))
    own = made if target == "reconstruction" else np.abs(windows - made)
    wanted = 0.7 * wanted + 0.3 * mean((own / 2 - given / 2) ** 2)
    options = {"alpha": 0.3, "temperature": 2.0, "target": target}
    loss = steps.student_loss(net, net, temperature_mode="output", **options)
    np.testing.assert_allclose(loss(params, batch), wanted, rtol=1e-5)


def test_windows_from_disk_and_populations_leave_it_out_too(prepared):
    source = windows_source(prepared, "fit", stride=2)
    made = batching.disk_batches(source, seed=None, batch_size=4)
    dataset = next(iter(made.batches(0, 0))).dataset
    assert dataset.context == (1,) and dataset.missing
    settings = settings_of("a.csv")
    data = jobs.make_training_data(prepared, settings["data"])
    group = [jobs.teacher_job(data, settings, name=name) for name in ("a", "b")]
    joined, _ = populations.join_datasets(group, {})
    assert joined.context == (1,)
    other = group[0]._replace(data=data._replace(context=()))
    assert len(populations.group_jobs([*group, other])) == 2


def test_a_teacher_may_give_no_score_where_nothing_scored_was_seen(prepared):
    rows = np.float32([[1, 2, 3], [np.nan, 2, np.nan], [4, 5, 6], [7, 8, 9]])

    def scorer(windows):
        known = ~np.isnan(windows[..., [0, 2]]).all(axis=2)
        return np.where(known, np.nansum(windows, axis=2), np.nan)

    distillation = Distillation(
        None, 1.0, 1.0, "output", "scores", (), (scorer,), 1e9, 4
    )
    dataset = batching.WindowDataset(
        jnp.asarray(rows), jnp.asarray([0]), missing=True, context=(1,)
    )
    options = {"window": 4, "student": None, "recorded": 1}
    found = compute_targets(distillation, dataset, **options)
    # −log of the share of the three known scores that are at least as large.
    wanted = -np.log([[4 / 4, 1, 3 / 4, 2 / 4]])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


# A plant whose command moves a sensor.


@pytest.fixture(scope="module")
def fitted():
    """With context and without, of one kind that explains channels by each other."""
    options = {"detector": "pca", "threshold": "fixed"}
    tau = {"threshold.value": 8.0}
    return {
        name: kdjax.KDDetector(**OPTIONS | options, settings=tau | own).fit(plant(900))
        for name, own in (("aware", AWARE), ("blind", {}))
    }


def test_commands_raise_no_alarm_and_faults_are_named(fitted):
    aware, blind = fitted["aware"], fitted["blind"]
    # A command that was never given before, which the sensor follows.
    rows = plant(300, seed=1)
    rows.loc[100:160, "mode"] = 4
    rows.loc[100:160, "flow"] += 12 - 3 * plant(300, seed=1)["mode"][100:161]
    assert not aware.predict(rows)[80:200].any()
    assert (aware.explain(rows)["mode"] == 0).all()
    # A fault of the sensor alone.
    rows = plant(300, seed=2)
    rows.loc[100:160, "flow"] += 2
    events = aware.detect(rows)
    assert len(events) == 1 and events["channels"][0].split(";")[0] == "flow"
    assert 100 <= events["start"][0] < 115 and 160 <= events["end"][0] < 175
    assert "mode" not in events["channels"][0]
    # Without context the command has the same share as the sensor.
    assert (blind.explain(rows)["mode"][110:150] > 1).all()
    assert "mode" in blind.detect(rows)["channels"][0]


def test_a_gap_in_the_context_leaves_a_score(fitted):
    aware, rows = fitted["aware"], plant(100, seed=3)
    series = Series("X", rows.to_numpy("f"), tuple(rows))
    holed = series.values.copy()
    # The mode that goes on is what a missing one is filled with.
    steady = np.flatnonzero(np.diff(series.values[:, 1]) == 0)[30] + 1
    holed[steady, 1] = np.nan
    options = {"entity": "X", "causal": True, "contributions": True}
    found = score_table(aware.detector_, series._replace(values=holed), **options)
    wanted = score_table(aware.detector_, series, **options)
    assert found["score"][11:].notna().all()
    np.testing.assert_allclose(found["score"], wanted["score"], rtol=1e-4, atol=1e-5)
    assert (found["contribution:mode"][11:] == 0).all()


@pytest.mark.parametrize("kind", ["mahalanobis", "difference"])
@pytest.mark.parametrize("shrinkage", ["none", "ledoit_wolf"])
def test_models_of_single_channels_are_as_if_it_were_left_out(kind, shrinkage):
    """Gaussian, τ and scores, though the context lacks cells and the others do not."""
    rows, new = plant(500), plant(120, seed=4)
    rows.loc[200:450, "mode"] = np.nan
    new.loc[::3, "mode"] = np.nan
    more = {"detection.shrinkage": shrinkage, "detection.trim": 0.1}
    with_it, without = (
        kdjax.KDDetector(detector=kind, settings=own | more, **OPTIONS).fit(rows)
        for own in (AWARE, {"data.ignore": ("mode",)})
    )
    for name in ("mean", "whiten"):
        ours, theirs = (
            getattr(one.detector_.gaussians, name) for one in (with_it, without)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert with_it.threshold_ == pytest.approx(without.threshold_, rel=1e-5)
    np.testing.assert_allclose(
        with_it.decision_function(new), without.decision_function(new), rtol=1e-4
    )


def test_card_plan_and_later_entities_have_it(fitted):
    detector = fitted["aware"].detector_
    assert detector.card["data"]["context"] == ["mode"]
    assert detector.card["settings"]["data"]["context"] == ["mode"]
    assert plan_of(detector, 0).context == ("mode",)
    rows = plant(500, seed=5)
    series = Series("new", rows.to_numpy("f"), tuple(rows))
    grown, _ = recalibrated(detector, series, threshold={})
    assert grown.gaussians.mean.shape == (3, 2) and grown.context == ("mode",)
    table = score_table(grown, series, entity="new", contributions=True)
    assert (table["contribution:mode"] == 0).all()
    table.loc[200:220, "alarm"] = 1
    events = score_events(grown, series, table, entity="new")
    assert sorted(events["channels"][0].split(";")) == ["flow", "heat"]


def test_rows_outside_the_range_of_the_context_are_no_warning():
    low, high = np.zeros(2, "f"), np.ones(2, "f")
    entity = types.SimpleNamespace(
        name="a",
        ranges=Ranges(low, high),
        test=Series("a", np.float32([[0.5, 9], [0.5, 9]]), ("x", "y")),
    )
    judged = types.SimpleNamespace(rates=[])
    for context, wanted in (((1,), []), ((), ["a 100%"])):
        prepared = Prepared("a", ("x", "y"), (entity,), None, 4, 1, context)
        found = notes_on_test_rows(judged, prepared)
        assert [note.split(": ")[1] for note in found] == wanted


# The program.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of teacher and student on a file."""
    folder = tmp_path_factory.mktemp("context")
    plant(500).to_csv(folder / "plant.csv", index=False)
    tested = plant(200, seed=6).assign(mode=9.0)
    tested.to_csv(folder / "test.csv", index=False)
    settings = settings_of(
        folder / "plant.csv",
        **{"data.test_path": str(folder / "test.csv"), "baselines": ("difference",)},
    )
    kdjax.run(settings, folder / "run", console=Console(quiet=True))
    return folder / "run"


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_a_run_trains_networks_that_never_learn_the_context(finished, name):
    detector = load_detector(finished / "detectors" / name)
    assert detector.context == ("mode",)
    bias = detector.model.params["head"]["bias"]
    start = network(detector.model.architecture).init(jax.random.key(0))["head"]["bias"]
    assert bias[1] == start[1] == 0 and (bias[[0, 2]] != 0).all()
    assert detector.gaussians.mean.shape == (2, 2)
    card = (finished / "detectors" / name / "card.md").read_text()
    assert "- context:\n  - mode" in card


def test_exports_of_networks_agree(finished, tmp_path):
    folder = finished / "detectors" / "student"
    for kind in ("onnx", "stablehlo"):
        verb = ["export", f"--detector={folder}", f"--format={kind}"]
        assert main(["kdjax", *verb, f"--output={tmp_path / kind}"]) == 0
    assert not any("outside" in note for note in read_results(finished)["notes"])


def test_info_says_it(tmp_path, capsys):
    plant(60).to_csv(tmp_path / "plant.csv", index=False)
    verb = ["kdjax", "info", f"--config.data.path={tmp_path / 'plant.csv'}"]
    assert main([*verb, "--config.data.context=('mode',)"]) == 0
    assert "\ncontext: mode\n" in capsys.readouterr().out


# What is refused.

WRONG = {
    "unknown": (("mode", "speed"), ()),
    "all": (("flow", "mode", "heat"), ()),
    "twice": (("mode", "mode"), ()),
    "ignored": (("mode",), ("mode",)),
}


@pytest.mark.parametrize("entry", ["frame", "csv"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_context_is_refused(name, entry, tmp_path):
    context, ignore = WRONG[name]
    channels = [one for one in ("flow", "mode", "heat") if one not in ignore]
    changes = {"data.context": context, "data.ignore": ignore}
    with pytest.raises(ConfigError) as error:
        if entry == "frame":
            kdjax.KDDetector(detector="pca", settings=changes, **OPTIONS).fit(
                plant(300)
            )
        else:
            plant(300).to_csv(tmp_path / "plant.csv", index=False)
            settings = settings_of(tmp_path / "plant.csv", **changes)
            kdjax.run(settings, tmp_path / "run", console=Console(quiet=True))
    text, source = str(error.value), "rows in memory" if entry == "frame" else "plant"
    wanted = (
        f"data.context={context!r} must name channels of {source}, each once, and not "
        f"all: {', '.join(channels)}. Remove names that are not channels (or are in "
        "data.ignore), and leave at least one channel to score."
    )
    assert text == wanted
    assert not (tmp_path / "run" / "detectors").exists()
