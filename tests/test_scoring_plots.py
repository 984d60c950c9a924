"""Plots of score files: what they show, and files that don't belong together."""

import sys

import numpy as np
import pandas as pd
import pytest
from test_evaluation_page import Page
from test_experiment_write import array_of, traces_of

from kdjax.cli import main
from kdjax.detection.storage import save_detector
from kdjax.errors import ConfigError, DataError
from kdjax.scoring import plots
from kdjax.scoring.files import score_file
from kdjax.scoring.plots import plot_file

ROWS = 40
TIMES = pd.date_range("2024-03-30 23:00", periods=ROWS, freq="1h", tz="Europe/Berlin")


def frame_of(seed=0):
    rng = np.random.default_rng(seed)
    values = (2 * rng.normal(size=(ROWS, 2))).astype(np.float32)
    frame = pd.DataFrame(values, columns=["x", "y"])
    return frame.assign(fault=(np.arange(ROWS) // 10 == 2).astype(int))


@pytest.fixture
def folder(tmp_path, small):
    """A folder with a detector, and frames written and scored there."""
    save_detector(tmp_path / "detector", small)
    return tmp_path


def write(folder, frame, name="plant.csv", output="scores.csv", **options):
    """Files of rows and of their scores."""
    path, scores = folder / name, folder / output
    to = frame.to_parquet if name.endswith(".parquet") else frame.to_csv
    to(path, index=False)
    ignored = {"ignore": ["fault"]} | options
    score_file(path, detector=folder / "detector", output=scores, **ignored)
    return scores, path


def plotted(folder, files, **options):
    """The page, its figures by heading, and what was said."""
    scores, data = files
    target = folder / "plot.html"
    said = plot_file(scores, data=data, output=target, **options)
    text = target.read_text("utf-8")
    parts = text.split("</main>")[0].split("<h2>")[1:]
    return Page(text), traces_of(dict(part.split("</h2>") for part in parts)), said


@pytest.mark.parametrize("kind", ["rows", "zoned", "numbers"])
@pytest.mark.parametrize(
    ("name", "output"),
    [("plant.csv", "scores.csv"), ("plant.parquet", "scores.parquet")],
)
def test_a_plot_shows_what_the_files_hold(folder, small, kind, name, output):
    frame = frame_of()
    if kind != "rows":
        times = TIMES if kind == "zoned" else np.arange(ROWS) * 0.1 + 3
        frame.insert(0, "time", times)
    files = write(folder, frame, name, output, contributions=True)
    read = pd.read_parquet if output.endswith("parquet") else pd.read_csv
    table = read(files[0])
    page, figures, said = plotted(folder, files, label_column="fault")
    (traces,) = figures.values()
    assert [*figures] == ["plant"] and len(page.figures) == 1
    score = array_of(traces["scatter"]["detector"]["y"])[::2]
    known = table["window_score"].to_numpy() > 0
    np.testing.assert_allclose(score[known], table["window_score"][known])
    for channel in ("x", "y"):
        own = array_of(traces["scatter"][channel]["customdata"])
        np.testing.assert_array_equal(own, frame[channel])
    assert list(traces["scatter"]["τ"]["y"]) == [12, 12] == [*table["tau"][:2]]
    assert set(traces["bar"]) == {"true events", "detector"} and "heatmap" in traces
    alarms = int(table["alarm"].sum())
    assert alarms and said == [f"{folder}/plot.html: 1 entity, {alarms} rows in alarm"]
    base = array_of(traces["bar"]["true events"]["base"])
    first = {"rows": 20, "zoned": np.datetime64("2024-03-31T20:00"), "numbers": 5.0}
    assert base[0] == (first[kind] if kind != "zoned" else base[0])
    if kind == "zoned":  # local times differ by summer time: the axis is in UTC
        assert str(base[0]).startswith("2024-03-31T18:00")


def test_without_labels_contributions_and_tau(folder):
    files = write(folder, frame_of())
    table = pd.read_csv(files[0]).drop(columns="tau")  # as version 0.1 wrote it
    table.to_csv(files[0], index=False)
    _, figures, _ = plotted(folder, files, ignore=["fault"])
    (traces,) = figures.values()
    assert set(traces["scatter"]) == {"detector", "x", "y"}
    assert set(traces["bar"]) == {"detector"} and "heatmap" not in traces


def test_entities_are_drawn_by_name_or_the_first_few(folder, monkeypatch):
    names = ["007", "NA", "b", "c"]
    many = pd.concat([frame_of(i).assign(unit=n) for i, n in enumerate(names)])
    files = write(folder, many, entity_column="unit")
    given = {"entity_column": "unit", "label_column": "fault"}
    _, figures, _ = plotted(folder, files, **given)
    assert [*figures] == names
    monkeypatch.setattr(plots, "DRAWN", 2)
    _, figures, said = plotted(folder, files, **given)
    assert [*figures] == names[:2]
    assert "2 entities (of 4; see --entity)" in said[0]
    _, figures, _ = plotted(folder, files, entity="b", **given)
    own = array_of(figures["b"]["scatter"]["x"]["customdata"])
    np.testing.assert_array_equal(own, frame_of(2)["x"])
    with pytest.raises(DataError, match="has no entity 'd': give one of 007, NA, b, c"):
        plotted(folder, files, entity="d", **given)


def test_rows_are_read_as_the_detector_reads_them(folder, small):
    """Its card knows a column to leave out; the data may have been renamed since."""
    card = small.card | {"settings": {"data": {"ignore": ["fault"]}}}
    save_detector(folder / "knowing", small._replace(card=card))
    scores, data = write(folder, frame_of().assign(fault="none"))
    data = data.rename(folder / "renamed.csv")
    with pytest.raises(DataError, match="fault"):
        plotted(folder, (scores, data))
    _, figures, _ = plotted(folder, (scores, data), detector=folder / "knowing")
    assert [*figures] == ["renamed"]


def test_missing_cells_are_holes(folder):
    frame = frame_of()
    frame.loc[5:7, "x"] = np.nan
    files = write(folder, frame, missing="ffill")
    _, figures, _ = plotted(folder, files, ignore=["fault"])
    own = array_of(figures["plant"]["scatter"]["x"]["customdata"])
    assert np.flatnonzero(np.isnan(own)).tolist() == [5, 6, 7]


def test_files_that_do_not_belong_together_are_refused(folder):
    frame = frame_of().assign(time=TIMES.map(str))
    scores, data = write(folder, frame)
    ignored = {"ignore": ["fault"]}
    frame.iloc[:-1].to_csv(data, index=False)
    with pytest.raises(
        DataError, match="has 40 rows of 'plant', but .* has 39: give the"
    ):
        plotted(folder, (scores, data), **ignored)
    frame.assign(time=(TIMES + pd.Timedelta("1min")).map(str)).to_csv(data, index=False)
    with pytest.raises(DataError, match="row 1 of 'plant' is at 2024-03-30 23:00:00"):
        plotted(folder, (scores, data), **ignored)
    frame.drop(columns="time").to_csv(data, index=False)
    with pytest.raises(DataError, match="row 1 of 'plant' is at 2024-03-30 23:00:00"):
        plotted(folder, (scores, data), **ignored)
    with pytest.raises(
        DataError, match="is not a file of scores, column entity is missing"
    ):
        plotted(folder, (data, data), **ignored)
    table = pd.read_csv(scores)
    table.assign(window_score="high").to_csv(scores, index=False)
    with pytest.raises(DataError, match="column window_score holds text"):
        plotted(folder, (scores, data), **ignored)
    table.iloc[:0].to_csv(scores, index=False)
    with pytest.raises(DataError, match="is not a file of scores"):
        plotted(folder, (scores, data), **ignored)
    with pytest.raises(
        DataError, match="is not a file of scores: give a .csv or .parquet"
    ):
        plotted(folder, (folder, data))
    with pytest.raises(DataError, match=r"none\.csv does not exist: check the path"):
        plotted(folder, (folder / "none.csv", data))
    with pytest.raises(ConfigError, match="must end in .html"):
        plot_file(scores, data=data, output=folder / "plot.png")
    assert not (folder / "plot.html").exists()


def test_the_verb(folder, capsys):
    scores, data = write(folder, frame_of())
    target = folder / "out.html"
    command = ["kdjax", "plot", str(scores), f"--data={data}"]
    flags = [f"--output={target}", "--label_column=fault", "--entity=plant"]
    assert main([*command, *flags]) == 0
    assert capsys.readouterr().out.startswith(f"{target}: 1 entity, ")
    assert "true events" in target.read_text("utf-8")
    assert main(command) == 2 and "plot needs --output" in capsys.readouterr().err
    assert main(["kdjax", "plot"]) == 2
    assert main([*command, *flags, f"--detector={folder}"]) == 2
    assert "kdjax.scoring.plots" in sys.modules
