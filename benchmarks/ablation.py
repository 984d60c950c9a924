"""What each lesson of configs/ablation.py brings over the same student taught by nobody.

    python benchmarks/ablation.py --workdir=runs/ablation --output=docs/results/ablation.json

Reads `members.csv` of the sweep, or of several that shared the lessons among them; a field
that a sweep didn't vary is that of its config. For each lesson: means over entities and seeds, the
standard deviation over seeds of the mean over entities, and the mean over entities of the
paired difference to the student trained alone (its seeds averaged first), with a 95 %
bootstrap interval over entities. Labels of the test rows serve for nothing else.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdjax.evaluation.intervals import mean_sd, paired_difference
from kdjax.io.files import write_text

LESSON = [
    "teacher.parts",
    "distill.target",
    "distill.alpha",
    "distill.alpha_end",
    "distill.weights",
    "distill.disturbed_copies",
]
PARTS = "student.parts"
MEASURES = ("f1_oracle", "f1_conformal", "point_average_precision", "vus_pr")


def members_of(workdir: Path) -> pd.DataFrame:
    """A sweep's members with all fields of `LESSON`, as text."""
    members = pd.read_csv(workdir / "members.csv")
    base = json.loads((workdir / "sweep.json").read_text("utf-8"))["base"]
    for name in LESSON:
        if name not in members:
            group, field = name.split(".")
            value = base[group][field]
            several = isinstance(value, list)
            text = ",".join(map(str, value)) if several else str(value).lower()
            members[name] = text
        members[name] = members[name].fillna("").astype(str)  # NaN: of no weights
    return members


def by_entity(members: pd.DataFrame, measure: str) -> np.ndarray:
    """A measure of one lesson, `[S, E]`: seeds by entities, both in order."""
    table = members.pivot(index="seed", columns="entity", values=measure)
    return table.sort_index(axis=0).sort_index(axis=1).to_numpy(np.float64)


def compared(own: pd.DataFrame, alone: pd.DataFrame) -> dict[str, Any]:
    """Each measure of a lesson, and its difference to the student trained alone."""
    found = {}
    for measure in MEASURES:
        values, others = (by_entity(members, measure) for members in (own, alone))
        seeds = mean_sd(np.nanmean(values, axis=1))
        difference = paired_difference(values.mean(axis=0), others.mean(axis=0))
        found[measure] = {
            "mean": seeds.mean,
            "sd_over_seeds": seeds.sd,
            # No interval tells of one entity.
            **{
                key: None if math.isnan(value) else value
                for key, value in difference._asdict().items()
                if key in ("difference", "low", "high")
            },
        }
    return found


def lesson_name(row: dict[str, Any]) -> str:
    """What sets a lesson apart from Eq. 2 with α = 0.35 and the joined teacher."""
    words = []
    if "autoencoder" in row["teacher.parts"]:
        words.append("LSTM teacher")
    if row["target"] != "reconstruction":
        words.append(row["target"])
    if row["alpha_end"] != "none":
        words.append(f"α {float(row['alpha']):g} → {float(row['alpha_end']):g}")
    elif float(row["alpha"]) != 0.35:
        words.append(f"α = {float(row['alpha']):g}")
    if row["weights"]:
        words.append("three teachers, weighed alike")
    if row["disturbed_copies"] != "0":
        words.append(f"{row['disturbed_copies']} disturbed copies")
    return ", ".join(words) or "α = 0.35"


def _cell(found: dict[str, float | None]) -> str:
    numbers = (found[key] for key in ("difference", "low", "high"))
    middle, low, high = (
        "–" if number is None else f"{number:+.3f}".replace("-", "−")
        for number in numbers
    )
    return f"{middle} ({low} to {high})"


def table(rows: list[dict[str, Any]], parts: str) -> str:
    """Differences to the student alone, as Markdown: a line a lesson of students of `parts`."""
    lines = [
        "| lesson | F1, oracle | F1, own τ | AP of rows | VUS-PR |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        if row["parts"] != parts:
            continue
        alone = float(row["alpha"]) == 0 and row["alpha_end"] == "none"
        cells = (
            f"{row[name]['mean']:.3f}" if alone else _cell(row[name])
            for name in MEASURES
        )
        name = "none (means)" if alone else lesson_name(row)
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def main() -> None:
    """Compares, prints a table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    members = pd.concat(map(members_of, given.workdir), ignore_index=True)
    rows = []
    for parts, same in members.groupby(PARTS, sort=False):
        lessons = dict(list(same.groupby(LESSON, sort=False, dropna=False)))
        alone = same[same["distill.alpha"].astype(float).eq(0)]
        for distillation, own in lessons.items():
            found = compared(own, alone)
            rows.append(
                {
                    "parts": parts,
                    **{
                        name.removeprefix("distill."): value
                        for name, value in zip(LESSON, distillation, strict=True)
                    },
                    "parameters": int(own["parameters"].iloc[0]),
                    "seeds": own["seed"].nunique(),
                    "entities": own["entity"].nunique(),
                    **found,
                }
            )
    write_text(given.output, json.dumps(rows, indent=2, allow_nan=False) + "\n")
    for parts in dict.fromkeys(row["parts"] for row in rows):
        print(f"{parts}\n\n{table(rows, parts)}\n")


if __name__ == "__main__":
    main()
