"""The report's numbers in Markdown, CSV and LaTeX are those of results.json."""

import copy
import io

import numpy as np
import pandas as pd
import pytest

from kdjax.evaluation.report_tables import latex_sheet, markdown_sheet, markdown_text
from kdjax.evaluation.rows import (
    EntityScores,
    per_entity_rows,
    result_rows,
    unlabelled_rows,
)
from kdjax.evaluation.sheets import sheets
from kdjax.evaluation.summary import summarise
from kdjax.evaluation.text_report import csv_lines, markdown_report, write_texts

EVIL = "<script>|x"


def entity(name, seed):
    random = np.random.default_rng(seed)
    labels, windows = random.random(60) < 0.2, random.random(12) < 0.4
    scores = random.random(60) + labels
    return EntityScores(name, labels, scores, windows, random.random(12) + windows, 0.9)


def make_results(rows=result_rows, windows=4):
    entities = [entity(name, seed) for seed, name in enumerate(["a", EVIL])]
    models = {"teacher": 1000, "student": 400, "random": None}
    return {
        "dataset": {
            "name": "plant", "entities": ["a", EVIL], "window": 10, "stride": 5,
            "min_anomalous_points": 1, "train_rows": 12345, "test_rows": 60,
            "windows": 12, "positive_windows": windows,
        },
        "rows": [row for m, p in models.items() for row in rows(m, p, entities)],
        "entities": [row for m in models for row in per_entity_rows(m, entities)],
        "environment": {"versions": {"jax": "0.10.2"}, "device": "cpu", "commit": None},
        "notes": [f"{EVIL}: pooled τ"],
        "data": {"sha256": {"train/a": "ab12"}},
    }  # fmt: skip


RESULTS = make_results()


@pytest.fixture
def folder(tmp_path):
    write_texts(tmp_path, RESULTS)
    return tmp_path


def test_four_files_are_written(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "entities.csv", "report.md", "results.csv", "results.tex",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["rows", "entities"])
def test_csv_holds_every_number(folder, name):
    file = {"rows": "results.csv", "entities": "entities.csv"}[name]
    table = pd.read_csv(folder / file, dtype=object, keep_default_na=False)
    rows = RESULTS[name]
    assert len(table) == len(rows)
    assert list(table) == list(dict.fromkeys(key for row in rows for key in row))
    for line, row in zip(table.to_dict("records"), rows, strict=True):
        for key, cell in row.items():
            if cell is None:
                assert line[key] == ""
            elif isinstance(cell, dict):
                assert line[key] == "; ".join(f"{k}: {v}" for k, v in cell.items())
            elif isinstance(cell, float):
                assert float(line[key]) == cell  # to the last digit
            else:
                assert line[key] == str(cell)  # whole numbers stay whole


def test_rows_that_lack_a_column_are_empty_there():
    text = csv_lines([{"a": 1}, {"a": None, "b": 2.5}])
    assert text == "a,b\n1,\n,2.5\n"
    assert csv_lines([]).strip() == ""


def test_latex_holds_every_table(folder):
    text = (folder / "results.tex").read_text("utf-8")
    assert text == "\n".join(latex_sheet(sheet) for sheet in sheets(RESULTS))
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") > 1


def test_markdown_says_what_the_page_says(folder):
    text = (folder / "report.md").read_text("utf-8")
    assert text == markdown_report(RESULTS)
    assert text.startswith("# Anomaly detection on plant\n\n2 entities · 12,345 train")
    assert markdown_text(summarise(RESULTS)) in text
    assert "- \\<script>\\|x: pooled τ" in text and "<script" not in text.replace(
        "\\<", ""
    )
    for sheet in sheets(RESULTS):
        assert markdown_sheet(sheet).strip() in text
    assert "| train/a | ab12 |" in text and "jax 0.10.2, device cpu" in text
    assert "`config.json`" in text and "`results.json`" in text


def test_results_alone_are_enough(tmp_path):
    results = copy.deepcopy(RESULTS) | {"notes": [], "environment": {}}
    del results["data"]
    text = markdown_report(results)
    for absent in ("## Notes", "## Environment", "## Data"):
        assert absent not in text
    assert "\n\n\n" not in text


def test_data_without_labels(tmp_path):
    results = make_results(unlabelled_rows, None)
    write_texts(tmp_path, results)
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "Test windows in alarm" in text and "No F1 is defined" in text
    table = pd.read_csv(io.StringIO((tmp_path / "results.csv").read_text("utf-8")))
    assert table["f1"].isna().all() and table["alarm_rate"].notna().any()
