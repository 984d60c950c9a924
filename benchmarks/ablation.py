"""What each distillation of configs/ablation.py gains over the student trained alone.

    python benchmarks/ablation.py --workdir=runs/ablation --output=docs/results/ablation.json

Reads `members.csv` of the sweep, or of several sweeps that share the distillations;
fields that a sweep did not vary come from its config. For each distillation: means over
entities and seeds, the standard deviation over seeds of the mean over entities, and the
mean over entities of the paired difference to the student trained alone (its seeds
averaged first), with a 95 % bootstrap interval over entities.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdjax.config import RENAMED, completed
from kdjax.evaluation.intervals import paired_difference
from kdjax.io.files import write_text

DISTILLATION = [
    "teacher.components",
    "distill.target",
    "distill.alpha",
    "distill.weights",
    "distill.augmented_copies",
]
COMPONENTS = "student.components"
MEASURES = ("f1_oracle", "f1_conformal", "point_average_precision", "vus_pr")


def members_of(workdir: Path) -> pd.DataFrame:
    """A sweep's members with all fields of `DISTILLATION`, as text."""
    members = pd.read_csv(workdir / "members.csv").rename(columns=RENAMED)
    design = json.loads((workdir / "sweep.json").read_text("utf-8"))
    base = completed(design["base"])
    for name in DISTILLATION:
        if name not in members:
            group, field = name.split(".")
            value = base[group][field]
            several = isinstance(value, list)
            text = ",".join(map(str, value)) if several else str(value).lower()
            members[name] = text
        members[name] = members[name].fillna("").astype(str)  # NaN: of no weights
    return members


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows that `main` wrote, with the keys of version 0.1 under their new names."""
    new = {"parts": "components"} | RENAMED
    new |= {
        old.removeprefix("distill."): n.removeprefix("distill.")
        for old, n in new.items()
    }
    rows = json.loads(path.read_text("utf-8"))
    return [{new.get(key, key): value for key, value in row.items()} for row in rows]


def by_entity(members: pd.DataFrame, measure: str) -> np.ndarray:
    """A measure of one distillation, `[S, E]`: seeds by entities, both in order."""
    table = members.pivot(index="seed", columns="entity", values=measure)
    return table.sort_index(axis=0).sort_index(axis=1).to_numpy(np.float64)


def compared(own: pd.DataFrame, alone: pd.DataFrame) -> dict[str, Any]:
    """Each measure, and its difference to the student trained alone."""
    found = {}
    for measure in MEASURES:
        values, others = (by_entity(members, measure) for members in (own, alone))
        over_seeds = pd.Series(np.nanmean(values, axis=1))
        gap = paired_difference(values.mean(axis=0), others.mean(axis=0))
        interval = {"difference": gap.mean, "low": gap.low, "high": gap.high}
        found[measure] = {
            "mean": float(over_seeds.mean()),
            "sd_over_seeds": float(over_seeds.std()),
            # One entity has no interval.
            **{
                key: None if math.isnan(value) else value
                for key, value in interval.items()
            },
        }
    return found


def distillation_name(row: dict[str, Any]) -> str:
    """The difference from Eq. 2 with α = 0.35 and the ensemble teacher."""
    words = []
    if "autoencoder" in row["teacher.components"]:
        words.append("LSTM teacher")
    if row["target"] != "reconstruction":
        words.append(row["target"])
    # A row of when α could change in training.
    if row.get("alpha_end", "none") != "none":
        words.append(f"α {float(row['alpha']):g} → {float(row['alpha_end']):g}")
    elif float(row["alpha"]) != 0.35:
        words.append(f"α = {float(row['alpha']):g}")
    if row["weights"]:
        words.append("three teachers, equal weights")
    if row["augmented_copies"] != "0":
        words.append(f"{row['augmented_copies']} augmented copies")
    return ", ".join(words) or "α = 0.35"


def _cell(found: dict[str, float | None]) -> str:
    numbers = (found[key] for key in ("difference", "low", "high"))
    middle, low, high = (
        "–" if number is None else f"{number:+.3f}".replace("-", "−")
        for number in numbers
    )
    return f"{middle} ({low} to {high})"


def table(rows: list[dict[str, Any]], components: str) -> str:
    """Differences to the student alone, as Markdown: a line a distillation."""
    lines = [
        "| distillation | F1, oracle | F1, label-free τ | AP of rows | VUS-PR |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        if row["components"] != components:
            continue
        alone = float(row["alpha"]) == 0
        cells = (
            f"{row[name]['mean']:.3f}" if alone else _cell(row[name])
            for name in MEASURES
        )
        name = "none (means)" if alone else distillation_name(row)
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
    for components, same in members.groupby(COMPONENTS, sort=False):
        groups = dict(list(same.groupby(DISTILLATION, sort=False, dropna=False)))
        alone = same[same["distill.alpha"].astype(float).eq(0)]
        for distillation, own in groups.items():
            found = compared(own, alone)
            rows.append(
                {
                    "components": components,
                    **{
                        name.removeprefix("distill."): value
                        for name, value in zip(DISTILLATION, distillation, strict=True)
                    },
                    "parameters": int(own["parameters"].iloc[0]),
                    "seeds": own["seed"].nunique(),
                    "entities": own["entity"].nunique(),
                    **found,
                }
            )
    write_text(given.output, json.dumps(rows, indent=2, allow_nan=False) + "\n")
    for components in dict.fromkeys(row["components"] for row in rows):
        print(f"{components}\n\n{table(rows, components)}\n")


if __name__ == "__main__":
    main()
