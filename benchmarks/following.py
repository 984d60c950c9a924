"""A rolling τ compared with a fixed one, at the same wanted share of alarms.

    python benchmarks/following.py --config=configs/smd.py --root=data/smd \
        --output=docs/results/following_smd.json

The baselines, and the recipe's teacher if it consists of baselines, are calibrated as in
a run; nothing is trained. Each test window is then compared with a fixed conformal τ and
with one of all scores so far (`kdjax.detection.rolling.start_rolling`), at several
wanted shares of windows. Leave-one-out: for each entity the share of best mean F1 on all
others. A few minutes for 13 machines on 2 CPU cores.
"""

import argparse
import json
import math
import runpy
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from kdjax.config import override, resolve
from kdjax.data.datasets import load_dataset
from kdjax.data.prepared import Prepared
from kdjax.detection.calibration import Calibration
from kdjax.detection.rolling import rolling_taus, shuffled
from kdjax.detection.thresholds import Rule, find_threshold, needed
from kdjax.evaluation.evaluate import evaluate_models
from kdjax.evaluation.intervals import paired_difference
from kdjax.evaluation.rows import EntityScores
from kdjax.experiment.assemble import calibration_rules
from kdjax.experiment.pipeline import prepare_groups
from kdjax.io.environment import describe_environment
from kdjax.io.files import write_text
from kdjax.models.residual import join_models
from kdjax.training.components import fit_baseline

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
SHOWN = 0.1
BASELINES = ("mahalanobis", "pca", "kmeans", "difference", "moving_average")
RULES = ("fixed", "following")

# By model, rule and share: what came of it on each entity.
Found = dict[tuple[str, str, float], dict[str, dict[str, float]]]


def main() -> None:
    """Measures, chooses, and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="a recipe, such as smd.py")
    parser.add_argument("--root", required=True, help="the data set's folder")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    path, _, argument = given.config.partition(":")
    recipe = runpy.run_path(path)["get_config"](*filter(None, [argument]))
    settings = resolve(override(recipe, {"data.root": given.root}))
    found = measure(settings)
    settings["data"].pop("root")  # of one machine
    report = {
        "settings": settings,
        "shares": SHARES,
        "means": [
            {"model": model, "rule": rule, "share": share} | mean(entities)
            for (model, rule, share), entities in found.items()
        ],
        "left_out": [*left_out_rows(found)],
        "entities": {" ".join(map(str, key)): own for key, own in found.items()},
        "environment": describe_environment(),
    }
    write_text(given.output, json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["left_out"], indent=1))


def measure(settings: dict[str, Any]) -> Found:
    """Each model under each rule and share, on each entity with an anomalous window."""
    found: Found = {}
    parts = prepare_groups(load_dataset(settings["data"]), settings)
    for prepared in track([*parts.values()], console=Console(stderr=True)):
        evaluated = evaluate_models(
            models(prepared, settings["teacher"]["components"]),
            prepared,
            calibration_rules(settings, prepared),
            min_anomalous_points=settings["data"]["min_anomalous_points"],
            console=Console(quiet=True),
        )
        for name, own in evaluated.items():
            for place, scores in enumerate(own.scores):
                for rule, share, alarms in decisions(own.calibration, place, scores):
                    assert scores.window_labels is not None
                    if scores.window_labels.any():
                        entities = found.setdefault((name, rule, share), {})
                        entities[scores.entity] = counts(scores.window_labels, alarms)
    return found


def models(prepared: Prepared, parts: Sequence[str]) -> dict[str, Any]:
    """The baselines, and the teacher where it needs no training."""
    fitted = {kind: fit_baseline(kind, prepared) for kind in BASELINES}
    if set(parts) <= set(BASELINES):
        return {"teacher": join_models([fitted[kind] for kind in parts]), **fitted}
    return fitted


def decisions(
    calibration: Calibration, place: int, scores: EntityScores
) -> Iterator[tuple[str, float, np.ndarray]]:
    """Rule, share and `[M]` alarms; a share that calibration is too short for is left out."""
    threshold_scores, windows = (
        calibration.threshold_scores[place],
        scores.window_scores,
    )
    for share in SHARES:
        rule = Rule("conformal", share)
        if len(threshold_scores) >= needed(rule):
            yield "fixed", share, windows > find_threshold(threshold_scores, rule).tau
        yield (
            "following",
            share,
            windows > rolling_taus(shuffled(threshold_scores), windows, share),
        )


def counts(labels: np.ndarray, alarms: np.ndarray) -> dict[str, float]:
    """F1 of windows, the share of clean ones in alarm, and what pooled F1 is made of."""
    found = {
        "clean_alarms": float(alarms[~labels].mean()) if not labels.all() else math.nan,
        "hits": int((labels & alarms).sum()),
        "alarms": int(alarms.sum()),
        "positives": int(labels.sum()),
    }
    # Without an alarm precision is undefined, but F1 is 0.
    return found | {"f1": 2 * found["hits"] / (found["alarms"] + found["positives"])}


def mean(entities: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Over entities; of the clean windows in alarm also the lowest and the highest."""
    own = [*entities.values()]
    clean = [one["clean_alarms"] for one in own if not math.isnan(one["clean_alarms"])]
    hits, alarms, positives = (
        sum(one[key] for one in own) for key in ("hits", "alarms", "positives")
    )
    return {
        "entities": len(own),
        "f1": statistics.fmean(one["f1"] for one in own),
        "pooled_f1": 2 * hits / (alarms + positives),
        "clean_alarms": statistics.fmean(clean),
        "clean_alarms_least": min(clean),
        "clean_alarms_most": max(clean),
    }


def left_out_rows(found: Found) -> Iterator[dict[str, Any]]:
    """Of each model and rule the share chosen on the other entities, and differences."""
    for model in dict.fromkeys(key[0] for key in found):
        chosen = {rule: left_out(found, model, rule) for rule in RULES}
        fixed = found.get((model, "fixed", SHOWN))
        rolling = found[model, "following", SHOWN]
        yield {
            "model": model,
            **{
                rule: {"chosen": dict(Counter(shares.values()))} | mean(own)
                for rule, (shares, own) in chosen.items()
            },
            "following_minus_fixed": difference(
                chosen["following"][1], chosen["fixed"][1]
            ),
            "following_minus_fixed_at_one_share": fixed and difference(rolling, fixed),
            "one_share": SHOWN,
        }


def left_out(
    found: Found, model: str, rule: str
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """By entity the share that is best on all others, and what it gives there."""
    options = {
        share: own for (*key, share), own in found.items() if key == [model, rule]
    }
    entities = [*max(options.values(), key=len)]
    options = {
        share: own for share, own in options.items() if len(own) == len(entities)
    }
    shares = {
        entity: max(
            options,
            key=lambda share: statistics.fmean(
                own["f1"] for name, own in options[share].items() if name != entity
            ),
        )
        for entity in entities
    }
    return shares, {entity: options[share][entity] for entity, share in shares.items()}


def difference(
    first: Mapping[str, Mapping[str, float]], second: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """The mean paired difference in F1, with its interval over entities."""
    fields = paired_difference(
        [first[entity]["f1"] for entity in first],
        [second[entity]["f1"] for entity in first],
    )._asdict()
    return {"difference": fields.pop("mean"), **fields}


if __name__ == "__main__":
    main()
