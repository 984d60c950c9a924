"""The report's numbers for other programs: Markdown, CSV and LaTeX.

report.md      verdict, notes and tables
results.csv    a line for each row of results.json
entities.csv   a line for each model, entity and threshold
results.tex    the tables as LaTeX, without a package
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kdjax.evaluation.report import data_words
from kdjax.evaluation.report_tables import latex_sheet, markdown_sheet, markdown_text
from kdjax.evaluation.sheets import digest_sheet, sheets
from kdjax.evaluation.summary import summarise
from kdjax.evaluation.tables import Results
from kdjax.io.files import write_text

MARKDOWN, ROWS, ENTITIES, LATEX = (
    "report.md",
    "results.csv",
    "entities.csv",
    "results.tex",
)
REST = (
    "## Where the rest is\n\nSettings: `config.json`. All numbers: `results.json`. "
    "Pictures: `report.html`, `learning_curve.png`."
)


def write_texts(folder: str | os.PathLike[str], results: Results) -> None:
    """Writes the four files, each whole or not at all.

    Args:
        folder: of the run.
        results: what results.json holds.
    """
    folder = Path(folder)
    write_text(folder / MARKDOWN, markdown_report(results))
    write_text(folder / ROWS, csv_lines(results["rows"]))
    write_text(folder / ENTITIES, csv_lines(results["entities"]))
    write_text(folder / LATEX, "\n".join(map(latex_sheet, sheets(results))))


def markdown_report(results: Results) -> str:
    """Verdict, notes, all tables, versions and digests as GitHub Markdown."""
    first, *further = sheets(results)
    digests = digest_sheet((results.get("data") or {}).get("sha256") or {})
    notes = "\n".join(f"- {markdown_text(str(n))}" for n in results.get("notes", ()))
    parts = [
        f"# Anomaly detection on {markdown_text(results['dataset']['name'])}",
        data_words(results),
        markdown_text(summarise(results)),
        markdown_sheet(first),
        f"## Notes\n\n{notes}" if notes else "",
        *map(markdown_sheet, further),
        REST,
        _environment(results.get("environment") or {}),
        markdown_sheet(digests) if digests else "",
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def csv_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of results.json as CSV; an object becomes text, `key: value; key: value`."""
    flat = [{name: _cell(cell) for name, cell in row.items()} for row in rows]
    buffer = io.StringIO()
    # Objects, so that whole numbers stay whole beside missing ones.
    pd.DataFrame(flat, dtype=object).to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def _cell(cell: Any) -> Any:
    if isinstance(cell, Mapping):
        return "; ".join(f"{key}: {value}" for key, value in cell.items())
    return cell


def _environment(environment: Mapping[str, Any]) -> str:
    versions = environment.get("versions") or {}
    parts = [f"{name} {version}" for name, version in versions.items()]
    parts += [f"{k} {environment[k]}" for k in ("device", "commit") if k in environment]
    return f"## Environment\n\n{markdown_text(', '.join(parts))}." if parts else ""
