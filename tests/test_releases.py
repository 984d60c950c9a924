"""Files of earlier versions are read, and those of newer ones refused with a reason.

`tests/data/releases/make.py` made the folder of each version; `schema1/` was written by
the last code whose detectors had schema 1.
"""

import contextlib
import hashlib
import importlib.util
import json
import shutil
import sqlite3
from pathlib import Path

import jax
import numpy as np
import pytest

from kdjax import KDDetector, load_detector, open_machine, read_catalogue, windows
from kdjax.cli import main
from kdjax.detection.detector import entity_index, score_windows
from kdjax.detection.scores import window_scores
from kdjax.errors import ArtifactError
from kdjax.experiment.sweeps.design import Member
from kdjax.experiment.sweeps.members import read_member
from kdjax.export import container, stablehlo
from kdjax.export.container import load_onnx, sealed
from kdjax.export.stablehlo import load_stablehlo
from kdjax.io.files import (
    load_state,
    read_state,
    save_state,
    state_text,
    write_manifest,
)

# The commands of version 0.1.0 have old names of fields.
pytestmark = pytest.mark.filterwarnings("ignore:the config field:FutureWarning")

RELEASES = Path(__file__).parent / "data" / "releases"
VERSIONS = sorted(path.parent.name for path in RELEASES.glob("*/command.json"))
DETECTORS = [*VERSIONS, "schema1"]
NEWEST = VERSIONS[-1]
# Versions with what came in 0.2.0: fleets, further kinds, streams of many entities.
SINCE_2 = [version for version in VERSIONS if (RELEASES / version / "fleet").exists()]
KINDS = ("classifier", "cnn_forecast", "gru_forecast", "memory")
# Other versions of XLA, onnxruntime and BLAS add in another order.
ROUNDING = 2e-5

each_version = pytest.mark.parametrize("version", VERSIONS)
each_since_2 = pytest.mark.parametrize("version", SINCE_2)
each_detector = pytest.mark.parametrize("version", DETECTORS)


def expected(version):
    with np.load(RELEASES / version / "expected.npz", allow_pickle=False) as file:
        return dict(file)


def close(got, wanted):
    assert np.isfinite(wanted).all()
    np.testing.assert_allclose(got, wanted, rtol=ROUNDING)


def of_windows(detector, entity, windows):
    """Point scores `[M, L]` and window scores `[M]` of windows `[M, L, D]`."""
    rows = windows.reshape(-1, windows.shape[-1])
    starts = np.arange(0, len(rows), windows.shape[1])
    points = score_windows(detector, entity_index(detector, entity), rows, starts)
    return points, window_scores(points, count=0)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A version's folder to work in; the current one from then on."""

    def make(version):
        folder = shutil.copytree(RELEASES / version, tmp_path / version)
        monkeypatch.chdir(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def making():
    spec = importlib.util.spec_from_file_location("make", RELEASES / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_this_version_has_its_files(making):
    assert making.source_version() == NEWEST, "run tests/data/releases/make.py"
    sizes = [path.stat().st_size for path in RELEASES.rglob("*") if path.is_file()]
    assert sum(sizes) < 300_000 * len(DETECTORS)


# What was written is read.


@each_detector
def test_a_detector_scores_as_it_did(version):
    detector, wanted = load_detector(RELEASES / version / "detector"), expected(version)
    assert detector.channels == ("load", "heat", "flow") and detector.window == 10
    assert detector.entities == ("press", "saw")
    points, found = of_windows(detector, "press", wanted["windows"])
    close(points, wanted["student/point_score"])
    close(found, wanted["student/window_score"])


def test_a_detector_of_schema_1_has_the_defaults_and_can_be_put_to_use(copy, capsys):
    folder, wanted = copy("schema1"), expected("schema1")
    description = json.loads((folder / "detector" / "detector.json").read_text())
    assert description["schema"] == 1 and "step" not in description
    detector = load_detector("detector")
    assert (detector.step, detector.attribution) == (0.0, "correlation")
    assert (detector.min_duration, detector.cooldown) == (1, 0)
    assert detector.ranges is None and detector.calibration == ()
    points, _ = of_windows(detector, "pooled", wanted["windows"])
    close(points, wanted["pooled/point_score"])
    train, rows = RELEASES / NEWEST / "train.csv", RELEASES / NEWEST / "rows.csv"
    for command in (
        ["score", rows, "--detector=detector", "--output=scores.csv"],
        ["calibrate", train, "--detector=detector", "--output=again",
         "--entity_column=machine"],
        ["export", "--detector=detector", "--format=onnx", "--output=d.onnx",
         f"--data={rows}"],
    ):  # fmt: skip
        assert main(["kdjax", *map(str, command)]) == 0, capsys.readouterr().err
    again = json.loads(Path("again/detector.json").read_text())
    assert again["schema"] == 2 and load_detector("again").calibration == ()
    # Of a detector that keeps no rows the ones to check on have to be given.
    command = ["export", "--detector=detector", "--format=onnx", "--output=e.onnx"]
    assert main(["kdjax", *command]) == 2
    assert "--data" in capsys.readouterr().err


@each_version
def test_an_onnx_file_scores_as_it_did(version):
    pytest.importorskip("onnxruntime")
    scorer, wanted = load_onnx(RELEASES / version / "detector.onnx"), expected(version)
    assert scorer.plan.entity == "press"
    found = scorer.run(wanted["windows"])
    close(found.point_score, wanted["student/point_score"])
    close(found.window_score, wanted["student/window_score"])
    assert (found.alarm == (wanted["student/window_score"] > scorer.plan.tau)).all()


@each_version
def test_a_stablehlo_file_scores_as_it_did_while_jax_reads_it(version):
    """JAX promises six months; what it no longer reads must be refused in one line."""
    path, wanted = RELEASES / version / "detector.stablehlo", expected(version)
    header = json.loads(path.read_bytes().split(b"\n", 2)[1])
    try:
        scorer = load_stablehlo(path)
    except ArtifactError as error:
        made, here = header["jax_version"], jax.__version__
        assert made != here
        assert f"was made with jax {made}, but jax {here} can't read" in str(error)
        pytest.skip(f"jax {here} no longer reads what jax {made} wrote")
    found = scorer.run(wanted["windows"])
    close(found.point_score, wanted["student/point_score"])
    close(found.window_score, wanted["student/window_score"])


@each_version
@pytest.mark.parametrize("backend", ["jax", "onnxruntime"])
def test_a_stream_goes_on_from_its_state(version, backend, copy, making):
    pytest.importorskip("onnxruntime")
    folder, wanted = copy(version), expected(version)
    source = "detector" if backend == "jax" else "detector.onnx"
    rows = making.lines(making.BEFORE_STATE, making.ROWS)
    answers = making.stream(folder / source, Path("state.json"), rows, backend=backend)
    answers = [answer for answer in answers if "event" not in answer]
    assert [answer["row"] for answer in answers] == [*range(25, 60)]
    for name in ("score", "window_score"):
        close([answer[name] for answer in answers], wanted[f"stream/{name}"])
    alarms = [answer["alarm"] for answer in answers]
    assert alarms == wanted["stream/alarm"].tolist() and 0 < sum(alarms) < 35


@pytest.mark.slow
@each_version
def test_a_run_goes_on_from_its_checkpoint(version, copy, capsys):
    """Its teacher was trained and nothing after it."""
    copy(version)
    before = Path("run/metrics.jsonl").read_text()
    command = json.loads(Path("command.json").read_text())
    if version == "0.1.0":  # by default at that time
        command.append("--config.threshold.method=conformal")
    assert main(["kdjax", "run", *command, "--workdir=run"]) == 0
    after = Path("run/metrics.jsonl").read_text()
    assert after.startswith(before)
    phases = [json.loads(line)["phase"] for line in after[len(before) :].splitlines()]
    assert set(phases) == {"student", "student_alone"}
    wanted = expected(version)
    teacher = load_detector("run/detectors/teacher")
    points, found = of_windows(teacher, "press", wanted["windows"])
    close(points, wanted["teacher/point_score"])
    close(found, wanted["teacher/window_score"])


@each_since_2
@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_of_each_kind_scores_as_it_did(version, kind, copy, making):
    copy(version)
    wanted, rows = expected(version), making.with_mode(making.read_rows())
    detector = KDDetector.load(f"kinds/{kind}")
    assert detector.detector_.model.kind == kind
    assert (detector.detector_.context, detector.threshold) == (("mode",), "blocks")
    close(detector.decision_function(rows), wanted[f"{kind}/window_score"])
    labels = detector.predict(rows)
    assert labels.tolist() == wanted[f"{kind}/label"].tolist()
    assert 0 < labels.sum() < len(rows)
    assert (detector.explain(rows)["mode"] == 0).all()


@each_since_2
@pytest.mark.parametrize("kind", KINDS)
def test_an_onnx_file_of_each_kind_scores_as_it_did(version, kind, copy, making):
    pytest.importorskip("onnxruntime")
    copy(version)
    scorer, length = load_onnx(f"kinds/{kind}.onnx"), making.WINDOW
    rows = making.with_mode(making.read_rows())
    found = scorer.run(windows(rows.to_numpy(), length=length, stride=length))
    wanted = expected(version)[f"{kind}/window_score"][length - 1 :: length]
    close(found.window_score, wanted)
    assert scorer.plan.channels == (*making.CHANNELS, "mode")


@each_since_2
def test_a_fleet_has_its_machines_and_their_budget(version, copy, making):
    copy(version)
    catalogue = read_catalogue("fleet").set_index("entity")
    assert catalogue["state"].to_dict() == dict.fromkeys(making.PLANT, "ready")
    assert catalogue["detector"].to_dict() == {
        "few": "shared/student",
        "press": "detectors/press",
        "saw": "detectors/saw",
    }
    budget = json.loads(Path("fleet/budget.json").read_text())
    assert (budget["budget"], budget["machines"]) == (50, 3)
    for name in ("press", "saw"):
        detector, entity = open_machine("fleet", name)
        assert entity == name and detector.clear == 0.8
        assert detector.scalers.offset.dtype == np.float64
        threshold = detector.thresholds[entity_index(detector, name)]
        assert (threshold.method, threshold.spacing) == ("budget", 1)
        assert threshold.tau == catalogue["threshold"][name]
    assert open_machine("fleet", "few")[1] == "pooled"


@each_since_2
@pytest.mark.parametrize("name", ["machines", "fleet"])
def test_a_stream_of_many_entities_goes_on_from_its_state(version, name, copy, making):
    folder = copy(version)
    rows = making.machine_lines(name, making.IN_EVENT, making.ROWS)
    answers = making.stream(
        folder / making.SOURCES[name], Path(f"{name}.sqlite"), rows, making.OF_MANY
    )
    alike(answers, json_lines(f"{name}.jsonl"))
    assert sum("event" not in answer for answer in answers) == len(rows) - 1
    # An event that was open in the state has ended.
    (ended, *_) = (one["event"] for one in answers if "event" in one)
    first = next(one for one in answers if "event" not in one)
    assert ended["end"] is not None and ended["start"] < (first["time"] or first["row"])


@each_since_2
def test_a_service_goes_on_from_its_state(version, copy, making):
    pytest.importorskip("onnxruntime")
    folder = copy(version)
    (folder / "service").mkdir()
    Path("service.sqlite").rename("service/press.sqlite")
    with making.service(folder / "detector.onnx", folder / "service") as answer:
        found = answer(making.IN_EVENT, making.ROWS)
    alike(found, json_lines("service.jsonl"))
    assert [one["row"] for one in found[:2]] == [making.IN_EVENT] * 2


def json_lines(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def alike(found, wanted):
    """Equal, but for the rounding of numbers that aren't whole."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            alike(found[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            alike(one, other)
    elif isinstance(wanted, float):
        close(found, wanted)
    else:
        assert found == wanted


# What is newer is refused: with its schema, ours, and who wrote it.


@pytest.fixture
def refused(capsys):
    """The line that a command ends with."""

    def run(*arguments):
        code = main(["kdjax", *map(str, arguments)])
        err = capsys.readouterr().err
        last = err.splitlines()[-1]
        assert code == 2 and "Traceback" not in err
        assert last.startswith("kdjax: ")
        return last.removeprefix("kdjax: ")

    return run


def rewrite(path, **changes):
    """A JSON object in a file with changes."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def newer(name, schema):
    return (
        f"{name} has schema {schema}, this kdjax reads up to {schema - 1}: install a "
        "newer kdjax (9.9.9 wrote it)."
    )


VERBS = {
    "score": ("rows.csv", "--output=out.csv"),
    "score many": ("rows.csv", "rows.csv", "--output=outputs"),
    "calibrate": ("rows.csv", "--output=out", "--entity=press"),
    "export": ("--format=onnx", "--output=out.onnx"),
    "stream": ("--entity=press",),
    "stream onnx": ("--entity=press", "--backend=onnxruntime"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_newer_detector_is_refused_by_each_verb(verb, copy, refused):
    folder = copy(NEWEST)
    # Of a future that also has a file and a field more, and other thresholds.
    rewrite(
        folder / "detector" / "detector.json",
        schema=3, kdjax_version="9.9.9", thresholds={"kind": "curve"}, more=1,
    )  # fmt: skip
    (folder / "detector" / "more.bin").write_bytes(b"1")
    write_manifest(folder / "detector")
    said = refused(verb.split()[0], *VERBS[verb], "--detector=detector")
    assert said == newer("detector", 3)
    assert not [*folder.glob("out*")]


def test_a_newer_detector_is_nothing_to_start_from(copy, refused):
    folder = copy(NEWEST)
    rewrite(folder / "detector" / "detector.json", schema=3, kdjax_version="9.9.9")
    write_manifest(folder / "detector")
    command = json.loads(Path("command.json").read_text())
    said = refused("run", *command, "--init_from=detector", "--workdir=other")
    assert said == newer("detector", 3)


def test_a_detector_that_does_not_say_who_wrote_it(copy, refused):
    folder = copy(NEWEST)
    path = folder / "detector" / "detector.json"
    description = json.loads(path.read_text())
    del description["kdjax_version"]
    path.write_text(json.dumps(description | {"schema": 4}))
    write_manifest(folder / "detector")
    said = refused("score", "rows.csv", "--detector=detector", "--output=out.csv")
    assert said == (
        "detector has schema 4, this kdjax reads up to 2: install a newer kdjax."
    )


def test_a_newer_checkpoint_is_refused_and_left_alone(copy, refused):
    folder = copy(NEWEST)
    (step,) = (folder / "run" / "checkpoints" / "teacher").iterdir()
    rewrite(step / "kdjax.json", schema=2, kdjax_version="9.9.9")
    write_manifest(step)
    before = digests(folder / "run" / "checkpoints")
    command = json.loads(Path("command.json").read_text())
    said = refused("run", *command, "--workdir=run")
    assert said == newer(f"run/checkpoints/teacher/{step.name}", 2)
    assert digests(folder / "run" / "checkpoints") == before


@pytest.mark.slow
def test_a_checkpoint_without_a_schema_is_one_of_the_first(copy):
    """Written before steps said what they are."""
    folder = copy(NEWEST)
    (step,) = (folder / "run" / "checkpoints" / "teacher").iterdir()
    (step / "kdjax.json").unlink()
    write_manifest(step)
    command = json.loads(Path("command.json").read_text())
    before = Path("run/metrics.jsonl").read_text()
    assert main(["kdjax", "run", *command, "--workdir=run"]) == 0
    assert Path("run/metrics.jsonl").read_text().startswith(before)


def test_newer_results_are_refused(copy, refused):
    folder = copy(NEWEST)
    versions = {"versions": {"kdjax": "9.9.9"}}
    results = {"schema": 2, "environment": versions}
    (folder / "run" / "results.json").write_text(json.dumps(results))
    command = json.loads(Path("command.json").read_text())
    said = refused("run", *command, "--workdir=run")
    assert said == newer("run/results.json", 2)


def test_newer_results_of_a_sweeps_member_are_refused(tmp_path):
    path = tmp_path / "members" / "03" / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 2}')
    with pytest.raises(ArtifactError, match="schema 2, this kdjax reads up to 1: inst"):
        read_member(tmp_path, Member("03", {}, {}))


def test_settings_of_a_newer_version_are_another_config(copy, refused):
    folder = copy(NEWEST)
    rewrite(folder / "run" / "config.json", future={"field": 1})
    command = json.loads(Path("command.json").read_text())
    said = refused("run", *command, "--workdir=run")
    assert "run was made with another config (future" in said
    assert "give another --workdir" in said


def test_a_newer_state_is_refused_and_left_alone(copy, refused, monkeypatch):
    folder = copy(NEWEST)
    state = load_state("state.json")
    state["stream"] |= {"schema": 4, "kdjax_version": "9.9.9", "detector": "other"}
    del state["stream"]["buffer"]
    save_state("state.json", state)
    before = (folder / "state.json").read_bytes()
    said = refused(
        "stream", "--detector=detector", "--entity=press", "--state=state.json"
    )
    assert said == newer("this state can't be restored: it", 4)
    assert (folder / "state.json").read_bytes() == before


def test_a_newer_fleet_is_refused(copy, refused):
    folder = copy(NEWEST)
    rewrite(folder / "fleet" / "fleet.json", schema=2, kdjax_version="9.9.9")
    for command in (
        ("score", "plant_rows.csv", "--output=out.csv"),
        ("stream", "--entity_column=machine"),
    ):
        said = refused(*command, "--detector=fleet")
        assert said == newer("fleet/fleet.json", 2)


def test_a_newer_state_of_many_entities_is_refused_and_left_alone(copy, refused):
    folder = copy(NEWEST)
    with contextlib.closing(sqlite3.connect("machines.sqlite")) as store:
        ((text,),) = store.execute("SELECT state FROM whole")
        state = read_state(text.encode(), "it")
        state |= {"schema": 2, "kdjax_version": "9.9.9"}
        store.execute("UPDATE whole SET state = ?", (state_text(state),))
        store.commit()
    before = (folder / "machines.sqlite").read_bytes()
    said = refused(
        "stream", "--detector=detector", "--entity_column=machine",
        "--state=machines.sqlite",
    )  # fmt: skip
    assert said == newer("machines.sqlite", 2)
    assert (folder / "machines.sqlite").read_bytes() == before


def test_a_newer_onnx_file_is_refused(copy, refused):
    pytest.importorskip("onnxruntime")
    folder = copy(NEWEST)
    data = (folder / "detector.onnx").read_bytes()
    data = replaced(data, b"\x0a\x06schema\x12\x011", b"\x0a\x06schema\x12\x012")
    (folder / "detector.onnx").write_bytes(resealed(of_9_9_9(data), container.SEAL))
    said = refused("stream", "--detector=detector.onnx", "--backend=onnxruntime")
    assert said == newer("detector.onnx", 2)


def test_a_newer_stablehlo_file_is_refused(copy):
    data = (copy(NEWEST) / "detector.stablehlo").read_bytes()
    data = of_9_9_9(replaced(data, b'"schema":"1"', b'"schema":"2"'))
    Path("detector.stablehlo").write_bytes(resealed(data, stablehlo.SEAL))
    with pytest.raises(ArtifactError) as refusal:
        load_stablehlo("detector.stablehlo")
    assert str(refusal.value) == newer("detector.stablehlo", 2)


def replaced(data, old, new):
    assert data.count(old) == 1
    return data.replace(old, new)


def of_9_9_9(data):
    """As if that version had written it."""
    version = NEWEST.encode()
    place = data.index(version, data.index(b"kdjax_version"))
    assert len(version) == 5
    return data[:place] + b"9.9.9" + data[place + 5 :]


def resealed(data, seal):
    """With the digest of what it is now."""
    place = data.index(seal) + len(seal)
    return sealed(data[:place] + container._BLANK + data[place + 64 :], seal)


def digests(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
