"""The numbers in the documents are those of the committed results."""

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kdjax.config import completed, resolve
from kdjax.evaluation.report import markdown_section
from kdjax.evaluation.tables import detection_table

ROOT = Path(__file__).parent.parent
# These hold no run; the tests of what they measure check them.
OTHERS = {
    "ablation", "blame", "floors", "following_asd", "following_jumpstarter2",
    "following_msl", "following_smap", "following_smd", "frontier", "precision", "recipes", "thresholds",
}  # fmt: skip
RESULTS = sorted(
    path
    for path in (ROOT / "docs" / "results").glob("*.json")
    if path.stem not in OTHERS
)


def table_of(path: Path) -> str:
    """The table's lines, without the caption below it."""
    results = json.loads(path.read_text("utf-8"))
    table = detection_table(results)._replace(title="", words="")
    return markdown_section(table).strip()


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_stand_in_their_document(path: Path) -> None:
    document = path.with_suffix(".md").read_text("utf-8")
    assert table_of(path) in document
    settings = json.loads(path.read_text("utf-8"))["settings"]
    # Fields that came since the run have their defaults; where the data lay is the reader's.
    full = completed(settings)
    full["data"]["root"] = "somewhere"
    assert resolve(full) == full
    assert f"seed {settings['seed']}" in document


def test_frontier_has_the_table_of_its_students(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    frontier = importlib.import_module("frontier")
    found = pd.read_csv(ROOT / "docs" / "results" / "frontier.csv")
    assert len(found) == 8 * 2 * 3
    document = (ROOT / "docs" / "results" / "frontier.md").read_text("utf-8")
    assert frontier.table(found) in document


def test_ablation_has_the_tables_of_its_students(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    ablation = importlib.import_module("ablation")
    rows = ablation.read_rows(ROOT / "docs" / "results" / "ablation.json")
    assert len(rows) == 11 * 2
    document = (ROOT / "docs" / "results" / "ablation.md").read_text("utf-8")
    for parts in {row["components"] for row in rows}:
        table = ablation.table(rows, parts)
        assert len(table.splitlines()) == 2 + 11
        assert table in document


def test_performance_has_the_numbers_of_the_comparison() -> None:
    document = (ROOT / "docs" / "performance.md").read_text("utf-8")
    rows = json.loads((ROOT / "docs" / "performance" / "bench.json").read_text("utf-8"))
    assert len(rows) == 19
    for row in rows:
        target = "–" if row["target"] is None else f"{row['target']:.1f}"
        cells = (
            row["name"],
            row["peer"],
            f"{row['ratio']:.2f}",
            f"{row['low']:.2f}–{row['high']:.2f}",
            target,
        )
        assert f"| {' | '.join(cells)} |" in document, row["name"]


def attacks() -> str:
    """`docs/attacks.md` in one line."""
    return " ".join((ROOT / "docs" / "attacks.md").read_text("utf-8").split())


def attack(name: str) -> dict[str, Any]:
    """The report of a campaign of `benchmarks/attacks`."""
    found: dict[str, Any] = json.loads(
        (ROOT / "docs" / "attacks" / f"{name}.json").read_text("utf-8")
    )
    return found


@pytest.mark.parametrize("how", ["kill", "signal", "full"])
def test_what_was_disturbed_came_to_the_same(how: str) -> None:
    text = attacks()
    trials = [t for case in attack(how)["cases"].values() for t in case["trials"]]
    assert f"{sum(trial['disturbed'] for trial in trials)} " in text
    for trial in trials:
        assert trial["code_of_last"] == 0
        assert not trial["mismatches"] and not trial["leftovers"]
        assert not trial.get("traceback")
    if how == "kill":
        assert f"in {len(trials)} trials" in text
    if how == "signal":
        took = max(trial["took"] for trial in trials)
        assert took < 5 and f"{math.ceil(10 * took) / 10} s at most" in text
    if how == "full":
        assert {trial["code"] for trial in trials} == {0, 2}


def test_no_damage_was_passed_over() -> None:
    text = attacks()
    report = attack("mutations")
    assert set(report["outcomes"]) == {"refused", "fell back", "same"}
    assert sum(report["outcomes"].values()) == report["mutations"]
    for number in (report["mutations"], *report["outcomes"].values()):
        assert f"{number:,} " in text
    assert report["runs"]["fell back"] + report["runs"]["same"] == 30


@pytest.mark.parametrize("target", ["readers", "configs", "artifacts", "stream"])
def test_the_fuzzers_ran_for_ten_minutes_and_found_no_more(target: str) -> None:
    report = attack(f"fuzz_{target}")
    assert report["seconds"] >= 600 and report["findings"] == []
    text = attacks()
    assert f"{report['executions']:,}" in text
