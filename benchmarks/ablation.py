"""What each lesson of configs/ablation.py brings over the same student taught by nobody.

    python benchmarks/ablation.py --workdir=runs/ablation --output=docs/results/ablation.json

Reads `members.csv` of the sweep, or of several that shared the lessons out among them; a field
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

from kdjax.artifacts import write_text
from kdjax.evaluation.intervals import mean_sd, paired_difference

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


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


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
        for lesson, own in lessons.items():
            found = compared(own, alone)
            rows.append(
                {
                    "parts": parts,
                    **{
                        name.removeprefix("distill."): value
                        for name, value in zip(LESSON, lesson, strict=True)
                    },
                    "parameters": int(own["parameters"].iloc[0]),
                    "seeds": own["seed"].nunique(),
                    "entities": own["entity"].nunique(),
                    **found,
                }
            )
    write_text(given.output, json.dumps(rows, indent=2, allow_nan=False) + "\n")
    for row in rows:
        cells = [
            f"{row[m]['mean']:.3f} ± {row[m]['sd_over_seeds']:.3f} "
            f"({', '.join(_signed(row[m][key]) for key in ('difference', 'low', 'high'))})"
            for m in MEASURES
        ]
        lesson = " ".join(str(row[name.removeprefix("distill.")]) for name in LESSON)
        print(" | ".join([str(row["parts"]), lesson, *cells]))


if __name__ == "__main__":
    main()
