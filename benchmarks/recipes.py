"""Which baselines to combine into a teacher, chosen on all machines but the evaluated one.

    python benchmarks/recipes.py --name=smd --root=data/smd --output=docs/results/recipes.json

Every ensemble of up to three baselines is fitted and calibrated for each entity by
itself, and measured on its test rows. Leave-one-out: for each entity the recipe with the
best mean VUS-PR on all others is taken, and its measures on that entity are reported. The
recipe that is best on all entities is the one in the configs; its measures, chosen with
these labels, are reported apart.
"""

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from kdjax.config import get_config, override, resolve
from kdjax.data.datasets import load_dataset
from kdjax.evaluation.evaluate import evaluate_models
from kdjax.evaluation.intervals import paired_difference
from kdjax.evaluation.rows import ROLLING
from kdjax.experiment.assemble import calibration_rules
from kdjax.experiment.pipeline import prepare_groups
from kdjax.models.residual import join_models
from kdjax.training.components import fit_baseline

PARTS = ("mahalanobis", "pca", "kmeans", "difference", "moving_average")
MOST = 3
CRITERION = "vus_pr"
WANTED = {"window": ("f1",), "point": ("average_precision", "vus_pr")}

# By choice (here a recipe), entity and name.
Measures = dict[str, dict[str, dict[str, float | None]]]


def recipes() -> list[tuple[str, ...]]:
    """All ensembles of one to `MOST` baselines."""
    numbers = range(1, MOST + 1)
    return [own for n in numbers for own in itertools.combinations(PARTS, n)]


def measure(settings: dict[str, Any], console: Console) -> Measures:
    """Measures by recipe, entity and name."""
    found: Measures = {"+".join(recipe): {} for recipe in recipes()}
    parts = prepare_groups(load_dataset(settings["data"]), settings)
    for entity, prepared in track(parts.items(), console=console):
        fitted = {kind: fit_baseline(kind, prepared) for kind in PARTS}
        for recipe in recipes():
            name = "+".join(recipe)
            evaluated = evaluate_models(
                {name: join_models([fitted[kind] for kind in recipe])},
                prepared,
                calibration_rules(settings, prepared),
                min_anomalous_points=settings["data"]["min_anomalous_points"],
                console=Console(quiet=True),
            )[name]
            found[name][entity] = measures_of(evaluated.entities)
    return found


def measures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What counts here of one entity's rows in `results["entities"]`: τ stays put."""
    return {
        f"{key}_{row['threshold']}" if key == "f1" else key: row[key]
        for row in rows
        if row["threshold"] != ROLLING
        for key in WANTED[row["level"]]
    }


def best(measures: Measures, names: list[str], entities: list[str]) -> str:
    """The recipe of highest mean criterion over some entities."""
    return max(names, key=lambda name: mean(measures, name, CRITERION, entities))


def mean(measures: Measures, name: str, key: str, entities: list[str]) -> float:
    """Of a measure of a recipe, over the entities where it is defined."""
    values = [measures[name][entity][key] for entity in entities]
    return statistics.fmean(value for value in values if value is not None)


def left_out(measures: Measures, names: list[str]) -> dict[str, Any]:
    """What the choices made on all other entities reach on each."""
    entities = [*next(iter(measures.values()))]
    chosen = {
        entity: best(measures, names, [other for other in entities if other != entity])
        for entity in entities
    }
    own = {entity: measures[name][entity] for entity, name in chosen.items()}
    return {"chosen": chosen, "measures": own}


def differences(
    first: Mapping[str, Mapping[str, Any]], second: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Of each measure by entity the paired difference, with None where it has no value."""
    found = {}
    for key in next(iter(first.values())):
        fields = paired_difference(
            [first[entity][key] for entity in first],
            [second[entity][key] for entity in first],
        )._asdict()
        fields = {"difference": fields.pop("mean"), **fields}
        found[key] = {
            field: None if isinstance(value, float) and math.isnan(value) else value
            for field, value in fields.items()
        }
    return found


def main() -> None:
    """Measures, chooses, and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="smd")
    parser.add_argument("--root", default="data/smd")
    parser.add_argument("--scaler", default="none")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    changes = {
        "data.name": given.name,
        "data.root": given.root,
        "data.scaler": given.scaler,
        "entity_mode": "per_entity",
    }
    settings = resolve(override(get_config(), changes))
    measures = measure(settings, Console())
    singles = [name for name in measures if "+" not in name]
    joined = left_out(measures, [*measures])
    single = left_out(measures, singles)
    keys = [*next(iter(joined["measures"].values()))]
    entities = [*joined["chosen"]]
    compared = differences(joined["measures"], single["measures"])
    settings["data"].pop("root")  # of one machine
    report = {
        "settings": settings,
        "criterion": CRITERION,
        "best_with_all_labels": best(measures, [*measures], entities),
        "means_with_all_labels": {
            name: {key: mean(measures, name, key, entities) for key in keys}
            for name in measures
        },
        "left_out_joined": joined,
        "left_out_single": single,
        "left_out_differences": compared,
    }
    given.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(compared, indent=2))


if __name__ == "__main__":
    main()
