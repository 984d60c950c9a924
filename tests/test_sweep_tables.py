"""A sweep's tables: tidy rows, their file, and means over entities, then members."""

import csv
import io
import math
import statistics

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from rich.console import Console

from kdjax.evaluation.tables import printed
from kdjax.experiment.sweeps.report import (
    field_text,
    measure_names,
    member_means,
    members_table,
    spread_text,
    summary_means,
    summary_notes,
    summary_table,
    summary_text,
    write_table,
)

FIELDS = ["student.hidden", "distill.alpha", "seed"]
MEASURES = ["f1_oracle", "parameters"]
NAN = math.nan


def row(member, entity, fields, f1=None, *, reason="", **changes):
    """One row; a reason makes it failed."""
    line = {"member": member, "entity": entity, "reason": reason}
    line |= {"status": "failed" if reason else "done"}
    line |= dict(zip(FIELDS, fields, strict=True))
    return line | ({} if f1 is None else {"f1_oracle": f1}) | changes


# Two settings by two seeds, then a setting whose second seed failed.
ROWS = [
    row("002", "saw", ("64,64", 0.35, 1), 0.8, parameters=900),
    row("002", "press", ("64,64", 0.35, 1), 0.6, parameters=900),
    row("000", "saw", ("16", 0.35, 0), 0.2, parameters=100),
    row("000", "press", ("16", 0.35, 0), 0.4, parameters=100),
    row("001", "saw", ("16", 0.35, 1), 0.5, parameters=100),
    row("001", "press", ("16", 0.35, 1), parameters=100),
    row("010", "saw", ("64,64", 1.0, 0), 0.9, parameters=900),
    row("010", "press", ("64,64", 1.0, 0), 0.7, parameters=900),
    row("011", "saw", ("64,64", 1.0, 1), 0.1, reason="loss, at epoch 3: \"inf\"\nend"),
    row("011", "press", ("64,64", 1.0, 1), reason="loss"),
]  # fmt: skip


def table(rows=ROWS, fields=FIELDS):
    return members_table(rows, fields)


def read_table(path):
    """A table of the disk: quoted cells are texts, others floats."""
    with path.open(encoding="utf-8", newline="") as file:
        names, *lines = csv.reader(file, quoting=csv.QUOTE_NONNUMERIC)
    return pd.DataFrame(lines, columns=names)


def test_rows_are_sorted_by_member_and_entities_keep_their_order():
    members = table()
    columns = ["member", "entity", "status", "reason", *FIELDS, *MEASURES]
    assert list(members.columns) == columns
    names = ["000", "001", "002", "010", "011"]
    assert list(members["member"]) == [name for name in names for _ in range(2)]
    assert list(members["entity"]) == ["saw", "press"] * 5
    assert list(members["reason"])[:9] == [""] * 8 + [ROWS[8]["reason"]]
    assert list(members["status"]) == ["done"] * 8 + ["failed"] * 2
    expected = [0.2, 0.4, 0.5, NAN, 0.8, 0.6, 0.9, 0.7, 0.1, NAN]
    np.testing.assert_array_equal(members["f1_oracle"], expected)
    assert members["parameters"].dtype == np.float64
    assert members["seed"].dtype == np.int64
    assert members.loc[4, "student.hidden"] == "64,64"


def test_a_measure_that_is_none_is_nan_and_nan_is_no_field():
    members = table([row("0", "a", ("16", 1, 0), parameters=None, f1_oracle=None)])
    assert members[MEASURES].isna().all(axis=None)


def test_measures_are_the_other_columns():
    assert measure_names(table(), FIELDS) == tuple(MEASURES)
    assert measure_names(table([]), FIELDS) == ()


# The file.


def test_the_file_gives_back_texts_numbers_and_nan(tmp_path):
    rows = [
        row("000", "007", ("16", 1e-300, -3), 0.1 + 0.2),
        row("001", "007", ("64,64", 1 / 3, 2**62 + 1), math.inf, reason='"b", c\r\nd'),
        row("002", "007", ("nan", 0.1 + 0.2, 0), 5e-324, reason="ends in a comma,"),
        row("003", "007", ("", -0.0, 7), -math.inf, reason="τ 异"),
        row("9", "b", ("1e5", 2.0, 1)),
    ]
    path = tmp_path / "below" / "members.csv"
    write_table(path, table(rows))
    found = read_table(path)
    assert_frame_equal(found, table(rows), check_dtype=False)
    assert found["member"].tolist() == ["000", "001", "002", "003", "9"]
    assert found["student.hidden"].tolist() == ["16", "64,64", "nan", "", "1e5"]
    assert math.copysign(1, found["distill.alpha"][3]) == -1
    assert f",{2**62 + 1}," in path.read_text("utf-8")
    assert path.read_text("utf-8").endswith('"9","b","done","","1e5",2.0,1,nan\n')
    assert [file.name for file in path.parent.iterdir()] == ["members.csv"]


def test_other_programs_can_read_the_file(tmp_path):
    write_table(tmp_path / "m.csv", table())
    found = pd.read_csv(tmp_path / "m.csv", dtype={"member": str})
    np.testing.assert_array_equal(found["f1_oracle"], table()["f1_oracle"])
    assert list(found["student.hidden"]) == list(table()["student.hidden"])


def test_a_field_may_hold_numbers_and_texts(tmp_path):
    rows = [row("0", "a", ("auto", 1, 0)), row("1", "a", (16, 1, 0)),
            row("2", "a", ("16", 1, 0))]  # fmt: skip
    write_table(tmp_path / "m.csv", table(rows))
    found = read_table(tmp_path / "m.csv")["student.hidden"].tolist()
    assert found == ["auto", 16, "16"]
    assert len(summary_means(table(rows), fields=FIELDS, measures=[])) == 3


# The summary.


def test_means_over_entities_then_over_members():
    found = summary_means(table(), fields=FIELDS, measures=MEASURES)
    columns = ["student.hidden", "distill.alpha", "members", "failed"]
    columns += [f"{m}_{what}" for m in MEASURES for what in ("mean", "sd")]
    assert list(found.columns) == columns
    assert found["student.hidden"].tolist() == ["16", "64,64", "64,64"]
    assert found["distill.alpha"].tolist() == [0.35, 0.35, 1.0]
    assert found["members"].tolist() == [2, 1, 1]
    assert found["failed"].tolist() == [0, 0, 1]
    # Member 001 has a number on one entity: the mean is not that of three rows.
    means = [(0.2 + 0.4) / 2, 0.5]
    np.testing.assert_allclose(
        found["f1_oracle_mean"], [statistics.mean(means), 0.7, 0.8]
    )
    np.testing.assert_allclose(
        found["f1_oracle_sd"], [statistics.stdev(means), NAN, NAN]
    )
    np.testing.assert_allclose(found["parameters_mean"], [100, 900, 900])
    np.testing.assert_allclose(found["parameters_sd"], [0, NAN, NAN])


def test_the_summary_equals_that_of_pandas_on_random_members():
    rng = np.random.default_rng(3)
    rows = [
        row(f"{i:02d}", entity, (str(i % 3), i % 2, i), f1=rng.normal())
        for i in range(30)
        for entity in "abc"
        if rng.random() < 0.8
    ]
    found = summary_means(table(rows), fields=FIELDS, measures=["f1_oracle"])
    frame = pd.DataFrame(rows)
    by_member = frame.groupby(["student.hidden", "distill.alpha", "member"])
    by_group = by_member["f1_oracle"].mean().groupby(level=[0, 1])
    for number, line in found.iterrows():
        key = line["student.hidden"], line["distill.alpha"]
        assert line["members"] == by_group.count()[key], number
        assert line["f1_oracle_mean"] == pytest.approx(by_group.mean()[key])
        assert line["f1_oracle_sd"] == pytest.approx(by_group.std()[key])
    assert len(found) == len(by_group.mean()) == 6


def test_only_the_seed_makes_one_group():
    found = summary_means(table(), fields=["seed"], measures=["f1_oracle"])
    assert list(found.columns) == [
        "members", "failed", "f1_oracle_mean", "f1_oracle_sd",
    ]  # fmt: skip
    assert found.loc[0, ["members", "failed"]].tolist() == [4, 1] and len(found) == 1
    means = [0.3, 0.5, 0.7, 0.8]
    assert found["f1_oracle_mean"][0] == pytest.approx(statistics.mean(means))
    assert found["f1_oracle_sd"][0] == pytest.approx(statistics.stdev(means))


def test_a_member_that_failed_on_one_entity_has_failed():
    rows = [
        row("0", "a", ("16", 1, 0), 0.5),
        row("0", "b", ("16", 1, 0), reason="x"),
        row("1", "a", ("16", 1, 1), 0.3),
        row("1", "b", ("16", 1, 1), 0.1),
    ]
    means = member_means(table(rows), fields=FIELDS, measures=["f1_oracle"])
    assert means["status"].tolist() == ["failed", "done"]
    np.testing.assert_allclose(means["f1_oracle"], [NAN, 0.2])
    found = summary_means(table(rows), fields=FIELDS, measures=["f1_oracle"])
    assert found.loc[0, ["members", "failed"]].tolist() == [1, 1]
    assert summary_notes(table(rows), measures=["f1_oracle"])[1:] == []


def test_no_members():
    assert summary_means(table([]), fields=FIELDS, measures=[]).empty
    assert summary_means(table([]), fields=["seed"], measures=[]).empty


# As text.


def test_cells_show_mean_and_deviation():
    cells = summary_text(table(), fields=FIELDS, measures=MEASURES)
    assert list(cells) == [
        "student.hidden", "distill.alpha", "members", "failed", *MEASURES,
    ]  # fmt: skip
    # The deviation of 0.3 and 0.5 is 0.1414.
    assert cells.to_numpy().tolist() == [
        ["16", "0.35", "2", "0", "0.40 ± 0.14", "100 ± 0"],
        ["64,64", "0.35", "1", "0", "0.7", "900"],
        ["64,64", "1", "1", "1", "0.8", "900"],
    ]


def test_undefined_numbers_are_counted():
    notes = summary_notes(table(), measures=MEASURES)
    assert len(notes) == 2
    assert notes[1].startswith("f1_oracle is undefined in 1 of 8 rows of done members")


@pytest.mark.parametrize(
    ("mean", "sd", "text"),
    [
        (0.39514, 0.00123, "0.3951 ± 0.0012"),
        (12345.6, 78.9, "12,346 ± 79"),
        (1.5, 12.3, "2 ± 12"),
        (2e-9, 3e-10, "2e-09 ± 3e-10"),
        (3e12, 1e3, "3e+12 ± 1e+03"),
        (math.inf, NAN, "inf"),
        (1e-3, math.inf, "0.001"),
        (0.0, 0.0, "0 ± 0"),
    ],
)
def test_means_are_as_long_as_their_deviation_says(mean, sd, text):
    assert spread_text(mean, sd) == text


def test_numbers_of_the_frame_show_as_their_own():
    members = table([row("0", "a", (np.int64(2**31 - 1), np.float64(1e-4), 3))])
    first = members.iloc[0]
    assert field_text(first["student.hidden"]) == "2147483647"
    assert field_text(first["distill.alpha"]) == "0.0001"


def test_the_terminal_shows_every_cell_in_eighty_characters():
    found = summary_table(table(), name="[red]", fields=FIELDS, measures=MEASURES)
    stream = io.StringIO()
    Console(file=stream, width=80).print(printed(found))
    text = stream.getvalue()
    cells = summary_text(table(), fields=FIELDS, measures=MEASURES)
    assert "[red]: members" in text and "…" not in text
    lines = [line.split() for line in text.splitlines()]
    for line in cells.to_numpy().tolist():
        assert " ".join(line).split() in lines
    assert "f1_oracle is undefined in 1 of 8 rows" in " ".join(text.split())
