"""`kdjax fleet`: a detector for each of many machines."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import kdjax
from kdjax.cli import main
from kdjax.data.partitions import Machine, frame_machines, list_machines, read_machine
from kdjax.data.tables import frame_table
from kdjax.detection.fleet import (
    CATALOGUE_SCHEMA,
    catalogue_frame,
    open_machine,
    quoted,
    read_catalogue,
)
from kdjax.evaluation.fleet import by_oddness, fleet_words
from kdjax.experiment import fleet, fleet_units
from kdjax.experiment.fleet import fit_fleet, fit_partition
from kdjax.io.executors import Unit, run_units

ROOT = Path(__file__).parent.parent
# Small networks that learn alone.
SMALL = {
    "student.hidden": (4,),
    "student.epochs": 2,
    "teacher.hidden": (6,),
    "teacher.epochs": 1,
    "data.window": 20,
    "distill.alpha": 0.0,
    "entity_mode": "per_entity",
}
WORDS = [
    f"--config.{k}={v[0] if isinstance(v, tuple) else v}" for k, v in SMALL.items()
]


def rows(seed, count=1500, names=("a", "b", "c")):
    rng, time = np.random.default_rng(seed), np.arange(count)
    waves = [np.sin(2 * np.pi * time / (20 + 5 * seed + i)) for i in range(len(names))]
    values = np.stack(waves, axis=1) + 0.1 * rng.normal(size=(count, len(names)))
    frame = pd.DataFrame(values, columns=[*names])
    frame.insert(0, "time", pd.date_range("2026-01-01", periods=count, freq="1min"))
    return frame


def resolved(path, **changes):
    changes = {k.replace("__", "."): v for k, v in changes.items()}
    config = kdjax.override(
        kdjax.get_config(), SMALL | changes | {"data.path": str(path)}
    )
    return kdjax.resolve(config)


def fit(path, output, **changes):
    return fit_fleet(path, output, resolved(path, **changes)).set_index("entity")


def digests(folder):
    """The bytes of all detectors, by machine."""
    found = folder.glob("detectors/*/MANIFEST.sha256")
    return {path.parent.name: path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def plants(tmp_path_factory):
    """A folder of five machines, one of them with few rows."""
    folder = tmp_path_factory.mktemp("plants")
    for i in range(4):
        rows(i).to_csv(folder / f"m{i}.csv", index=False)
    rows(4, 150).to_csv(folder / "young.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def fitted(plants, tmp_path_factory):
    output = tmp_path_factory.mktemp("fleet") / "plants"
    return output, fit(plants, output)


def test_each_machine_is_as_a_run_of_its_own(plants, fitted, tmp_path):
    """The same student, τ and expected events as `kdjax run` of the machine's file."""
    output, catalogue = fitted
    settings = resolved(plants / "m2.csv", baselines=())
    results = kdjax.run(settings, tmp_path / "m2")
    ours, _ = open_machine(output, "m2")
    theirs = kdjax.load_detector(tmp_path / "m2" / "detectors" / "student" / "m2")
    assert ours.thresholds[0].tau == pytest.approx(theirs.thresholds[0].tau, rel=1e-6)
    assert catalogue.loc["m2", "threshold"] == ours.thresholds[0].tau
    pairs = zip(_leaves(ours.model.params), _leaves(theirs.model.params), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    (expected,) = [
        rate["expected_events"]["number"]
        for rate in results["rates"]
        if rate["model"] == "student" and rate["used"]
    ]
    assert catalogue.loc["m2", "events_a_day"] == pytest.approx(expected)
    series = kdjax.read_table(plants / "m2.csv")[0]
    table = kdjax.score_table(ours, series, entity="m2")
    other = kdjax.score_table(theirs, series, entity="m2")
    np.testing.assert_allclose(table["score"], other["score"], rtol=1e-5)


def test_a_fleet_of_classifiers_is_as_runs_of_their_own(plants, tmp_path):
    changes = {
        "student__components": ("classifier",),
        "classifier__networks": 2,
        "classifier__steps": 40,
    }
    (tmp_path / "two").mkdir()
    for name in ("m0", "m2"):
        shutil.copy(plants / f"{name}.csv", tmp_path / "two")
    catalogue = fit(tmp_path / "two", tmp_path / "fleet", **changes)
    assert [*catalogue["state"]] == ["ready", "ready"]
    kdjax.run(resolved(plants / "m2.csv", baselines=(), **changes), tmp_path / "m2")
    ours, _ = open_machine(tmp_path / "fleet", "m2")
    theirs = kdjax.load_detector(tmp_path / "m2" / "detectors" / "student" / "m2")
    assert ours.model.kind == "classifier"
    assert ours.thresholds == theirs.thresholds
    pairs = zip(_leaves(ours.model.params), _leaves(theirs.model.params), strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)
    assert catalogue.loc["m2", "threshold"] == ours.thresholds[0].tau
    assert not (tmp_path / "fleet" / "shared").exists()  # no teacher is trained


def test_the_catalogue_has_its_types_and_says_what_is_borrowed(fitted):
    output, catalogue = fitted
    assert catalogue["state"].tolist() == ["ready"] * 5
    assert catalogue["rows"].tolist() == [1500] * 4 + [150]
    young = catalogue.loc["young"]
    assert (
        young["detector"] == "shared/student"
        and "150 rows are too few" in young["reason"]
    )
    detector, entity = open_machine(output, "young")
    assert entity == "pooled" and young["threshold"] == detector.thresholds[-1].tau
    stored = read_catalogue(output)
    assert dict(stored.dtypes.astype(str)) == CATALOGUE_SCHEMA
    page = (output / "index.html").read_text("utf-8")
    assert "5 machines: 5 ready, 0 failed; 1 use the fleet" in page and "m3" in page


@pytest.mark.parametrize("form", ["csv", "parquet", "partitions"])
def test_tables_and_partitions_give_the_detectors_of_files(
    plants, fitted, tmp_path, form
):
    parts = {
        f"m{i}": pd.read_csv(plants / f"m{i}.csv", parse_dates=["time"]) for i in (0, 3)
    }
    if form == "partitions":
        path, column = tmp_path / "table", ""
        for name, part in parts.items():
            folder = path / f"machine={name}"
            folder.mkdir(parents=True)
            for place, piece in enumerate(np.array_split(np.arange(len(part)), 2)):
                part.iloc[piece].to_parquet(
                    folder / f"part-{place}.parquet", index=False
                )
    else:
        path, column = tmp_path / f"table.{form}", "machine"
        whole = pd.concat([part.assign(machine=name) for name, part in parts.items()])
        if form == "csv":
            whole.to_csv(path, index=False)
        else:
            whole.to_parquet(path, index=False)
    catalogue = fit(path, tmp_path / "fleet", data__entity_column=column)
    assert catalogue.index.tolist() == ["m0", "m3"]
    for name in parts:
        ours, theirs = (
            open_machine(tmp_path / "fleet", name)[0],
            open_machine(fitted[0], name)[0],
        )
        assert ours.thresholds[0].tau == pytest.approx(
            theirs.thresholds[0].tau, rel=1e-6
        )
        assert ours.channels == ("a", "b", "c")


def test_a_second_call_fits_only_new_and_changed_machines(
    plants, tmp_path, monkeypatch
):
    folder, output = tmp_path / "plants", tmp_path / "fleet"
    shutil.copytree(plants, folder)
    fit(folder, output)
    before = digests(output)
    trained = []

    def train(prepared, *rest):
        trained.extend(prepared)
        return real(prepared, *rest)

    real = fleet_units._train
    monkeypatch.setattr(fleet_units, "_train", train)
    catalogue = fit(folder, output)
    assert trained == [] and len(catalogue) == 5 and digests(output) == before
    rows(9).to_csv(folder / "new.csv", index=False)
    rows(1, 1600).to_csv(folder / "m1.csv", index=False)
    (output / "detectors" / "m0" / "MANIFEST.sha256").write_text("damaged")
    catalogue = fit(folder, output)
    assert sorted(trained) == ["m0", "m1", "new"] and len(catalogue) == 6
    after = digests(output)
    assert {name for name in after if after[name] != before.get(name)} == {"m1", "new"}
    assert catalogue.loc["m1", "rows"] == 1600


def test_other_settings_and_foreign_folders_are_refused(plants, fitted, tmp_path):
    with pytest.raises(kdjax.ConfigError, match=r"data.window: 20 -> 30"):
        fit(plants, fitted[0], data__window=30)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(
        kdjax.ConfigError, match=r"holds thesis.txt and is not the folder"
    ):
        fit(plants, tmp_path)


@pytest.fixture
def broken(plants, tmp_path):
    """Beside two good machines one of each fault."""
    folder = tmp_path / "broken"
    (folder / "line").mkdir(parents=True)
    for name in ("m0.csv", "m1.csv"):
        shutil.copy(plants / name, folder)
    rows(5, names=("a", "b")).to_csv(folder / "other.csv", index=False)
    empty = rows(6)
    empty[["a", "b", "c"]] = np.nan
    empty.to_csv(folder / "nan.csv", index=False)
    rows(7, 3).to_csv(folder / "three.csv", index=False)
    rows(8).to_csv(folder / "twice.csv", index=False)
    rows(8).to_csv(folder / "line" / "twice.csv", index=False)
    (folder / "junk.parquet").write_bytes(b"hello")
    return folder


FAULTS = {
    "other": "missing: c",
    "nan": "column 2 ('a'): the value is missing (4500 such cells in all)",
    "three": "3 rows, fewer than a window of 20: give more rows",
    "twice": "2 files have this name",
    "junk": "not a whole Parquet file",
}


def test_the_program_names_faulty_machines_and_fits_the_others(broken, capsys):
    output = broken.parent / "fleet"
    command = ["kdjax", "fleet", str(broken), f"--output={output}", *WORDS]
    assert main(command) == 2
    out, err = capsys.readouterr()
    for name, fault in FAULTS.items():
        (line,) = [
            one for one in out.splitlines() if one.startswith(f"failed: {name}: ")
        ]
        assert fault in line
    assert (
        "2 ready, 5 failed" in out
        and "5 of 7 machines failed; the first is junk" in err
    )
    catalogue = read_catalogue(output).set_index("entity")
    assert catalogue.index[catalogue["state"] == "ready"].tolist() == ["m0", "m1"]
    with pytest.raises(kdjax.DataError, match=r"three: its detector failed \(3 rows"):
        open_machine(output, "three")
    with pytest.raises(kdjax.DataError, match=r"m9: the fleet .* has no such machine"):
        open_machine(output, "m9")


def test_a_table_names_the_faulty_machine_and_its_line(plants, tmp_path):
    parts = [
        pd.read_csv(plants / f"m{i}.csv").assign(machine=f"m{i}") for i in range(3)
    ]
    parts[1].loc[:, "b"] = np.nan
    parts.append(parts[2])  # twice
    pd.concat(parts).to_csv(tmp_path / "table.csv", index=False)
    found = fit(
        tmp_path / "table.csv", tmp_path / "fleet", data__entity_column="machine"
    )
    assert found["state"].tolist() == ["ready", "failed", "failed"]
    assert "row 1 (line 1502), column 3 ('b')" in found.loc["m1", "reason"]
    assert "row 1501 (line 4502)" in found.loc["m2", "reason"]


def test_one_student_for_all_has_own_values(plants, tmp_path):
    catalogue = fit(plants, tmp_path, entity_mode="shared")
    opened = {name: open_machine(tmp_path, name)[0] for name in ("m0", "m1")}
    shared = kdjax.load_detector(tmp_path / "shared" / "student")
    first, second = (own.model.params for own in opened.values())
    for a, b, c in zip(
        *map(_leaves, (first, second, shared.model.params)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert catalogue.loc["m0", "threshold"] != catalogue.loc["m1", "threshold"]
    assert not np.array_equal(
        opened["m0"].scalers.offset[0], opened["m1"].scalers.offset[0]
    )


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def test_students_learn_from_the_teacher_of_the_fleet(plants, fitted, tmp_path):
    fit(plants, tmp_path, distill__alpha=0.9)
    teacher = kdjax.load_detector(tmp_path / "shared" / "teacher")
    assert teacher.model.architecture.hidden == (6,)
    taught, alone = open_machine(tmp_path, "m0")[0], open_machine(fitted[0], "m0")[0]
    pairs = zip(_leaves(taught.model.params), _leaves(alone.model.params), strict=True)
    assert any(not np.array_equal(a, b) for a, b in pairs)


def test_labels_of_test_rows_give_quality(plants, tmp_path):
    tests = tmp_path / "tests"
    tests.mkdir()
    for name in ("m0", "m1", "m2", "m3", "young"):
        part = rows(int(name[1]) if name[0] == "m" else 4, 800).assign(label=0)
        part.loc[400:450, ["a", "b"]] = 6.0
        part.loc[400:450, "label"] = 1
        part.to_csv(tests / f"{name}.csv", index=False)
    changes = {"data__test_path": str(tests), "data__label_column": "label"}
    catalogue = fit(plants, tmp_path / "fleet", **changes)
    quality = catalogue["quality"].dropna()
    assert len(quality) == 4 and (quality > 0.8).all()
    assert catalogue["test_events_a_day"].dropna().between(0, 30).all()


def test_fit_partition_gives_the_rows_of_the_fleet(plants, fitted, tmp_path):
    settings = resolved(plants)
    frames = [pd.read_csv(plants / f"m{i}.csv", parse_dates=["time"]) for i in range(2)]
    whole = pd.concat([part.assign(entity=f"m{i}") for i, part in enumerate(frames)])
    found = fit_partition(whole, output=tmp_path / "fleet", settings=settings)
    assert dict(found.dtypes.astype(str)) == CATALOGUE_SCHEMA
    own = fitted[1].loc[["m0", "m1"], "threshold"]
    np.testing.assert_allclose(found["threshold"], own, rtol=1e-6)
    assert fit_partition(whole.iloc[:0], output=tmp_path / "fleet").empty


def test_fit_partition_fails_few_rows_where_no_networks_are_shared(tmp_path):
    young = rows(4, 150).assign(entity="young")
    settings = resolved("frame")
    found = fit_partition(young, output=tmp_path / "fleet", settings=settings)
    assert found["state"].tolist() == ["failed"] and found["detector"].tolist() == [""]
    assert "150 rows are too few" in found["reason"][0]
    assert found["reason"][0].endswith("this fleet has none")


def test_a_frame_is_scored_by_the_detectors_of_a_fleet(plants, fitted):
    output, catalogue = fitted
    parts = []
    for name in ("young", "m2"):
        frame = pd.read_csv(plants / f"{name}.csv", parse_dates=["time"])
        parts.append(frame.assign(entity=name))
    whole, options = pd.concat(parts), {"time_column": "time", "contributions": True}
    found = kdjax.score_partition(whole, output, **options)
    assert found["entity"].unique().tolist() == ["young", "m2"]
    for name, scores in found.groupby("entity"):
        detector, used = open_machine(output, name)
        series = kdjax.read_table(plants / f"{name}.csv")[0]
        wanted = kdjax.score_table(detector, series, entity=used, contributions=True)
        assert scores["state"].tolist() == wanted["state"].tolist()
        for column in wanted.columns[2:].drop("state"):
            np.testing.assert_array_equal(scores[column], wanted[column], column)
        assert (scores["tau"] == catalogue.loc[name, "threshold"]).all()
    empty = kdjax.score_partition(whole.iloc[:0], output, **options)
    assert empty.dtypes.to_dict() == found.dtypes.to_dict()
    with pytest.raises(kdjax.DataError, match="entity 'm9': .*has no such machine"):
        kdjax.score_partition(whole.assign(entity="m9"), output, **options)


def test_machines_of_an_input(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".hidden.csv").write_text("x\n1\n")
    (tmp_path / "a" / "note.md").write_text("no rows")
    with pytest.raises(kdjax.DataError, match="has no file of rows"):
        list_machines(tmp_path / "a", entity_column="")
    with pytest.raises(kdjax.DataError, match="does not exist"):
        list_machines(tmp_path / "none", entity_column="")
    rows(0).to_csv(tmp_path / "one.csv", index=False)
    with pytest.raises(kdjax.ConfigError, match=r"data.entity_column"):
        list_machines(tmp_path / "one.csv", entity_column="")
    frame = rows(0, 4).assign(entity=["b", "a", "b", "a"])
    first, second = frame_machines(frame_table(frame, "frame"), "entity")
    assert (first.entity, second.entity) == ("a", "b")
    np.testing.assert_allclose(
        read_machine(first).values[:, 0], frame["a"][[1, 3]], rtol=1e-6
    )


def test_names_of_folders():
    names = ["m/1", "m%2F1", "..", ".", "a b", "ü" * 200, "ü" * 201, "a", "A"]
    found = [quoted(name) for name in names]
    assert len({*found}) == len(names)
    assert all(
        "/" not in name and name not in (".", "..") and len(name) < 200
        for name in found
    )


def test_odd_machines_come_first():
    rows = [
        {
            "entity": f"m{i}",
            "state": "ready",
            "reason": "",
            "threshold": 10.0 + i,
            "rows": 5,
        }
        for i in range(6)
    ]
    rows[4]["threshold"] = 900.0
    rows.append({"entity": "bad", "state": "failed", "reason": "3 rows", "rows": 0})
    odd = by_oddness(catalogue_frame(rows))
    assert odd["entity"].tolist()[:2] == ["bad", "m4"]
    assert fleet_words(odd)[0] == "7 machines: 6 ready, 1 failed."


def double(data):
    if data < 0:
        raise kdjax.DataError(f"{data} is below 0:\nexpected more.")
    return 2 * data


def test_local_units_go_on_after_a_failure():
    units = [Unit("a", 1), Unit("b", -1), Unit("c", 3)]
    found = {own.name: (own.value, own.error) for own in run_units(double, units)}
    assert found == {
        "a": (2, ""),
        "b": (None, "-1 is below 0: expected more."),
        "c": (6, ""),
    }
    with pytest.raises(kdjax.ConfigError, match="executor='spark' is unknown"):
        run_units(double, units, executor="spark")
    with pytest.raises(kdjax.ConfigError, match="needs --executor=ray"):
        run_units(double, units, address="auto")


def test_records_hold_no_nan(fitted):
    for path in (fitted[0] / "machines").iterdir():
        json.loads(path.read_text("utf-8"), parse_constant=pytest.fail)


@pytest.mark.slow
def test_kills_lose_no_machine_and_leave_the_same_bytes(tmp_path):
    """SIGKILL at five moments; the same command then ends with what an undisturbed has."""
    folder = tmp_path / "plants"
    folder.mkdir()
    for i in range(70):
        rows(i, 400).to_csv(folder / f"m{i:02d}.csv", index=False)
    command = [sys.executable, str(ROOT / "launch.py"), "fleet", str(folder), *WORDS]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, f"--output={whole}"], check=True, capture_output=True)
    interrupted = 0
    for moment in range(5):
        process = subprocess.Popen(
            [*command, f"--output={killed}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wanted, started = 14 * moment + 1, time.monotonic()
        while process.poll() is None and time.monotonic() - started < 120:
            if len([*killed.glob("machines/*.json")]) >= wanted:
                process.kill()
                interrupted += 1
                break
            time.sleep(0.01)
        process.wait()
    assert interrupted >= 3
    subprocess.run([*command, f"--output={killed}"], check=True, capture_output=True)
    assert digests(killed) == digests(whole) and len(digests(whole)) == 70
    found = [read_catalogue(one).drop(columns="seconds") for one in (killed, whole)]
    pd.testing.assert_frame_equal(*found)
    assert not [*killed.rglob(".*.new")] and not (killed / "work").exists()


def test_one_table_in_a_store_is_refused(tmp_path):
    settings = resolved("table.parquet", data__entity_column="machine")
    with pytest.raises(
        kdjax.ConfigError, match="is for one local file: copy s3://b/table"
    ):
        fleet._list("s3://b/table.parquet", settings["data"])
    with pytest.raises(kdjax.ConfigError, match="is not a path for kdjax"):
        fit_fleet("gs://b/plants", tmp_path / "fleet", settings)


def test_finish_fleet_joins_the_rows_of_an_engine(plants, fitted, tmp_path):
    frames = [pd.read_csv(plants / f"m{i}.csv", parse_dates=["time"]) for i in range(2)]
    for i, part in enumerate(frames):
        found = fit_partition(
            part.assign(entity=f"m{i}"),
            output=tmp_path / "fleet",
            settings=resolved(plants),
        )
        (tmp_path / "fleet" / "catalogue.parquet").mkdir(exist_ok=True)
        found.to_parquet(tmp_path / "fleet" / "catalogue.parquet" / f"part-{i}.parquet")
    catalogue = kdjax.finish_fleet(tmp_path / "fleet")
    assert (tmp_path / "fleet" / "catalogue.parquet").is_file()
    pd.testing.assert_frame_equal(catalogue, read_catalogue(tmp_path / "fleet"))
    np.testing.assert_allclose(
        catalogue["threshold"], fitted[1].loc[["m0", "m1"], "threshold"], rtol=1e-6
    )
    assert "2 machines: 2 ready" in (tmp_path / "fleet" / "index.html").read_text(
        "utf-8"
    )


def test_units_have_few_large_machines():
    machines = [
        Machine(f"m{i}", size=size) for i, size in enumerate([10] * 40 + [150e6] * 3)
    ]
    parts = [[m.entity for m in part] for part in fleet._parts(machines)]
    assert [len(part) for part in parts] == [32, 9, 1, 1]
    assert [name for part in parts for name in part] == [m.entity for m in machines]
