"""Files that are scored with a fleet: each machine by its own detector."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdjax.cli import main
from kdjax.detection.fleet import BUDGET
from kdjax.errors import ArtifactError, DataError
from kdjax.scoring.files import score_file, score_fleet

START = "2024-03-01"


def machine_rows(seed, rows=40, machine=None):
    values = 3 * np.random.default_rng(seed).normal(size=(rows, 2)).astype(np.float32)
    frame = pd.DataFrame(values, columns=["x", "y"])
    frame.insert(0, "time", pd.date_range(START, periods=rows, freq="1s"))
    if machine is not None:
        frame.insert(0, "pump", machine)
    return frame


@pytest.fixture
def files(tmp_path):
    """A file of each of two machines, and one of a machine with few rows."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for seed, name in enumerate(("m1", "m2", "few")):
        machine_rows(seed).to_csv(folder / f"{name}.csv", index=False)
    return folder


def same(first, second):
    for ending in ("", ".events.csv"):
        names = [Path(f"{path}{ending}") for path in (first, second)]
        assert names[0].read_bytes() == names[1].read_bytes()


@pytest.mark.parametrize("options", [{}, {"causal": True, "contributions": True}])
def test_a_folder_has_the_bytes_of_single_detectors(fleet, files, tmp_path, options):
    score_fleet([files], detector=fleet.path, output=tmp_path / "all", **options)
    for name, entity in (("m1", None), ("m2", None), ("few", "pooled")):
        alone = tmp_path / f"{name}.csv"
        score_file(
            files / f"{name}.csv",
            detector=fleet.of(name),
            output=alone,
            entity=entity,
            **options,
        )
        found = tmp_path / "all" / f"{name}.csv"
        assert found.read_bytes() == alone.read_bytes()
        if name != "few":  # whose events have the machine's name in their ids
            same(found, alone)
    taus = [pd.read_csv(tmp_path / "all" / f"{n}.csv")["tau"][0] for n in ("m1", "m2")]
    assert taus == [3.0, 5.0]


def test_a_restart_scores_what_changed_only(fleet, files, tmp_path):
    """A new machine leaves the outputs of others as they are; a new detector does not."""
    output = tmp_path / "all"
    score_fleet([files], detector=fleet.path, output=output)
    machine_rows(7).to_csv(files / "m3.csv", index=False)
    fleet.add("m3", tau=4.0)
    said = score_fleet([files], detector=fleet.path, output=output)
    assert [line for line in said if line.endswith("verified")] == [
        "few.csv: verified", "m1.csv: verified", "m2.csv: verified"
    ]  # fmt: skip
    assert said[-1].endswith("4 of 4 files: 1 scored, 3 verified, 0 failed")
    fleet.add("m2", tau=6.0, scale=2.0)
    said = score_fleet([files], detector=fleet.path, output=output)
    assert said[-1].endswith("1 scored, 3 verified, 0 failed")
    assert pd.read_csv(output / "m2.csv")["tau"][0] == 6.0
    record = json.loads((output / "m2.csv.done.json").read_text())
    assert [*record["detectors"]] == ["m2"]


def test_a_machine_that_failed_or_is_unknown_is_named(fleet, files, tmp_path, capsys):
    machine_rows(8).to_csv(files / "bad.csv", index=False)
    machine_rows(9).to_csv(files / "new.csv", index=False)
    arguments = ["kdjax", "score", str(files), f"--detector={fleet.path}"]
    assert main([*arguments, f"--output={tmp_path / 'all'}"]) == 2
    said = capsys.readouterr().out
    assert "failed: bad.csv: bad: its detector failed (3 rows, fewer" in said
    assert f"failed: new.csv: new: the fleet {fleet.path} has no such machine" in said
    assert "5 of 5 files: 3 scored, 0 verified, 2 failed" in said
    assert not (tmp_path / "all" / "bad.csv").exists()
    with pytest.raises(DataError, match="^new: the fleet .* has no such machine: add"):
        score_file(files / "new.csv", detector=fleet.path, output=tmp_path / "o.csv")
    assert not (tmp_path / "o.csv").exists()
    score_file(
        files / "new.csv", detector=fleet.path, output=tmp_path / "o.csv", entity="m1"
    )
    assert pd.read_csv(tmp_path / "o.csv")["tau"][0] == 3.0


def test_a_table_of_many_machines(fleet, tmp_path):
    """Each machine's rows are scored as its own file; faulty machines spoil no other."""
    names = ("m2", "bad", "m1", "few", "m9")
    parts = [machine_rows(seed, machine=name) for seed, name in enumerate(names)]
    parts.append(machine_rows(5, rows=2, machine="m3"))
    fleet.add("m3", tau=3.0)
    table = pd.concat(parts).sample(frac=1, random_state=1).sort_values("time")
    table.to_parquet(tmp_path / "long.parquet", index=False)
    output = tmp_path / "o.csv"
    options = {"detector": fleet.path, "output": output, "entity_column": "pump"}
    said = []
    with pytest.raises(
        DataError, match="^3 of 6 machines not scored, the first: bad: "
    ):
        score_file(tmp_path / "long.parquet", log=said.append, **options)
    assert [line[:11] for line in said if line.startswith("failed")] == [
        "failed: bad", "failed: m3:", "failed: m9:"
    ]  # fmt: skip
    found = pd.read_csv(output, dtype=str)
    assert [*dict.fromkeys(found["entity"])] == ["few", "m1", "m2"]
    for seed, name in ((0, "m2"), (2, "m1")):
        machine_rows(seed).to_csv(tmp_path / f"{name}.csv", index=False)
        alone = tmp_path / "alone.csv"
        score_file(tmp_path / f"{name}.csv", detector=fleet.of(name), output=alone)
        own = found[found["entity"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(own, pd.read_csv(alone, dtype=str))
    fleet.configure(**{"data.entity_column": "pump"})  # as a fleet of one table has it
    del options["entity_column"]
    before = output.read_bytes()
    with pytest.raises(DataError, match="^3 of 6 machines"):
        score_file(tmp_path / "long.parquet", **options)
    assert output.read_bytes() == before


def test_a_partitioned_folder(fleet, tmp_path):
    """The parts of a machine are one series."""
    whole, folder = machine_rows(3), tmp_path / "rows" / "pump=m1"
    folder.mkdir(parents=True)
    whole[:17].to_parquet(folder / "part-0.parquet", index=False)
    whole[17:].to_parquet(folder / "part-1.parquet", index=False)
    whole.to_parquet(tmp_path / "m1.parquet", index=False)
    options = {"detector": fleet.path}
    said = score_fleet([tmp_path / "rows"], output=tmp_path / "all", **options)
    assert said[-1].endswith("1 of 1 file: 1 scored, 0 verified, 0 failed")
    alone = tmp_path / "alone.parquet"
    score_file(tmp_path / "m1.parquet", detector=fleet.of("m1"), output=alone)
    same(tmp_path / "all" / "m1.parquet", alone)
    said = score_fleet([tmp_path / "rows"], output=tmp_path / "all", **options)
    assert said[0] == "pump=m1: verified"
    whole[:5].to_parquet(folder / "part-2.parquet", index=False)
    with pytest.raises(DataError, match="m1"):  # times run backwards now
        score_fleet([tmp_path / "rows"], output=tmp_path / "all", **options)


def test_spans_of_other_machines_are_theirs(fleet, files, tmp_path):
    spans = tmp_path / "spans.csv"
    spans.write_text(
        f"start,end,entity\n{START} 00:00:10,{START} 00:00:12,m1\n"
        f"{START} 00:00:20,{START} 00:00:21,\n"
    )
    said = score_fleet(
        [files], detector=fleet.path, output=tmp_path / "all", exclude=spans
    )
    assert [line for line in said if "excluded" in line] == [
        "few: 2 of 40 rows excluded (spans.csv)",
        "m1: 5 of 40 rows excluded (spans.csv)",
        "m2: 2 of 40 rows excluded (spans.csv)",
    ]


def test_a_shared_budget_is_compared_at_the_end(fleet, files, tmp_path):
    """Also after a restart that scores nothing: records have the numbers."""
    fleet.configure(**{
        "threshold.budget_scope": "fleet", "threshold.method": "budget",
        "threshold.budget": "50/day", "entity_mode": "per_entity",
    })  # fmt: skip
    whole = {"budget": 50.0, "machines": 3,
             "expected": {"number": 48.0, "low": 30.0, "high": 61.0}}  # fmt: skip
    (fleet.path / BUDGET).write_text(json.dumps(whole))
    for _ in range(2):
        said = score_fleet([files], detector=fleet.path, output=tmp_path / "all")
        assert said[-2] == (
            "Budget: 50 events a day for 3 machines of the fleet; expect 48 (30–61)."
        )
        observed = 0.0
        for name in ("m1", "m2", "few"):
            events = pd.read_csv(tmp_path / "all" / f"{name}.csv.events.csv")
            observed += (events["kind"] == "score").sum() / (39 / 86_400)
        assert observed > 0
        assert said[-1].startswith(
            f"The 3 machines scored: expect 900 events a day, observed {observed:,.0f}."
        )


def test_verbs_of_one_detector_name_the_machines_folders(fleet, files, capsys):
    for verb in (
        ["calibrate", str(files / "m1.csv"), f"--output={files}"],
        ["export", f"--output={files}"],
        ["plot", "s.csv", f"--data={files / 'm1.csv'}", "--output=p.html"],
    ):
        assert main(["kdjax", *verb, f"--detector={fleet.path}"]) == 2
        assert f"such as {fleet.path}/detectors/MACHINE" in capsys.readouterr().err
    from kdjax.detection.storage import load_detector

    with pytest.raises(ArtifactError, match="is the folder of a fleet"):
        load_detector(fleet.path)
