"""The numbers in the documents are those of the committed results."""

import json
from pathlib import Path

import pytest

from kdjax.config import resolve
from kdjax.evaluation.tables import markdown_table

ROOT = Path(__file__).parent.parent
RESULTS = sorted((ROOT / "docs" / "results").glob("*.json"))


def table_of(path: Path) -> str:
    """The table's lines, without the caption below it."""
    results = json.loads(path.read_text("utf-8"))
    return markdown_table(results).split("\n\n")[0]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_stand_in_their_document(path: Path) -> None:
    document = path.with_suffix(".md").read_text("utf-8")
    assert table_of(path) in document
    settings = json.loads(path.read_text("utf-8"))["settings"]
    assert resolve(settings) == settings
    assert f"seed {settings['seed']}" in document


def test_readme_has_the_table_of_smd() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert table_of(ROOT / "docs" / "results" / "smd.json") in readme
