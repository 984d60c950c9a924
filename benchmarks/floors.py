"""Floor and ridge of each model, chosen on machines other than those that evaluate it.

    python benchmarks/floors.py --workdir=runs/smd --output=docs/results/floors.json

Uses the data and saved detectors of a finished run; trains nothing. Residuals are
computed once for each model and entity. For each pair of floor and ridge a Gaussian is
fitted to those of the validation windows, τ is chosen on the calibration windows, and
the test windows are scored. Leave-one-out, for networks and baselines alike: for each
entity the pair with the best mean VUS-PR on the test rows of all others is taken, and
its measures on that entity are reported. So an entity's own labels choose nothing for
it. In a tie the run's own pair is kept; all others are compared with it.
Minutes on 2 CPU cores.
"""

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from recipes import CRITERION, Measures, differences, left_out, mean, measures_of
from rich.console import Console
from rich.progress import track

from kdjax.config import completed
from kdjax.data.datasets import load_dataset
from kdjax.data.prepared import Entity, Prepared
from kdjax.data.scaler import apply_scaler
from kdjax.data.splits import window_starts
from kdjax.data.windowing import (
    add_scores,
    empty_sums,
    mean_of_sums,
    window_labels,
)
from kdjax.detection.calibration import Rules, constant_values
from kdjax.detection.detector import residual_batches, score_scaled
from kdjax.detection.gaussian import (
    Moments,
    gaussian_from_moments,
    merge_all,
    moments_of,
    without_channels,
)
from kdjax.detection.scores import window_scores
from kdjax.detection.storage import load_detector
from kdjax.detection.thresholds import BY_FOLDS, find_threshold, needed, too_few_message
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.evaluation.evaluate import test_starts
from kdjax.evaluation.intervals import LEVEL, RESAMPLES, paired_rows
from kdjax.evaluation.rows import NETWORKS, EntityScores, metric_rows
from kdjax.experiment.assemble import calibration_rules, data_digests
from kdjax.experiment.pipeline import prepare_groups
from kdjax.experiment.train import group_name
from kdjax.experiment.workdir import (
    CONFIG,
    check_data,
    read_json,
    read_results,
)
from kdjax.io.environment import describe_environment
from kdjax.io.files import write_text
from kdjax.models.residual import ResidualModel, residual_names

FLOORS = (0.01, 0.03, 0.1)
RIDGES = (0.01, 0.1, 1.0)
# Other ways to a Normal would need the errors themselves again, pair by pair.
PLAIN = {"shrinkage": "none", "scope": "per_entity", "trim": 0.0}
# Its errors are the rows it gets, so that errors can stand in for rows.
AS_THEY_ARE = ResidualModel("mahalanobis", {})
# In the order of `measures_of` and of `paired_rows`.
HEADS = ("F1, oracle", "F1, label-free τ", "AP of rows", "VUS-PR")

Fields = Mapping[str, Any]
Rows = list[dict[str, Any]]
# By model, pair and entity: rows as in `results["entities"]`.
Found = dict[str, dict[str, dict[str, Rows]]]


class Pair(NamedTuple):
    """Fields of a Gaussian, see `kdjax.detection.gaussian`."""

    floor: float
    ridge: float


class Seen(NamedTuple):
    """A model's residuals on one entity.

    Attributes:
        names: of the F errors.
        moments: of the validation windows' errors.
        calibration: `[m·L, F]`, the calibration windows one after the other.
        test: `[M·L, F]`, the test windows likewise.
    """

    names: tuple[str, ...]
    moments: Moments
    calibration: np.ndarray
    test: np.ndarray


def main() -> None:
    """Measures, chooses, prints tables, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--root", help="folder of the data, where they have moved")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    report = tuned(given.workdir, Console(), root=given.root)
    write_text(given.output, json.dumps(report, indent=1, allow_nan=False) + "\n")
    print(models_table(report))
    print(f"\n{paired_table(report)}")
    print(f"\nlargest departure from the run: {report['departure']:.1e}")


def tuned(
    workdir: Path, console: Console, *, root: str | None = None
) -> dict[str, Any]:
    """What the JSON file holds, of a finished run.

    Args:
        workdir: of the run.
        console: shows progress.
        root: folder of the data; None: where the run had it.

    Raises:
        ArtifactError: the run isn't finished.
        ConfigError: its settings make Gaussians in another way than this one.
        DataError: other data, or too few entities with labels.
    """
    settings, results = _read(workdir)
    if root:
        settings["data"]["root"] = root
    found = measure(workdir, settings, console)
    names = [*pairs(settings)]
    models = {model: _chosen(grid, names) for model, grid in found.items()}
    return {
        "settings": _without_root(results["settings"]),
        "floors": FLOORS,
        "ridges": RIDGES,
        "default": pairs(settings)[names[0]]._asdict(),
        "criterion": CRITERION,
        "chosen_on": "test labels of all other entities, for each entity",
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "seed": 0},
        "models": models,
        "order": _order(models),
        "paired": _paired(found, models, names[0]),
        "departure": _departure(found, names[0], results["entities"]),
        "environment": describe_environment(),
    }


def pairs(settings: Fields) -> dict[str, Pair]:
    """By name such as `0.03/0.1`, the run's own pair first."""
    detection = settings["detection"]
    own = Pair(detection["floor"], detection["ridge"])
    grid = itertools.starmap(Pair, itertools.product(FLOORS, RIDGES))
    return {f"{p.floor:g}/{p.ridge:g}": p for p in dict.fromkeys([own, *grid])}


def measure(workdir: Path, settings: Fields, console: Console) -> Found:
    """Rows of each model under each pair on each entity."""
    if settings["threshold"]["method"] in BY_FOLDS:
        raise ConfigError(
            "the scores that were kept are of calibration rows, and threshold.method="
            f"{settings['threshold']['method']!r} takes all training rows: measure a run "
            "with conformal."
        )
    # Classifiers give scores without residuals: no floor or ridge.
    models = [m for m in (*NETWORKS, *settings["baselines"]) if m != "classifier"]
    found: Found = {m: {pair: {} for pair in pairs(settings)} for m in models}
    dataset = load_dataset(settings["data"])
    check_data(workdir, data_digests(dataset))
    parts = prepare_groups(dataset, settings)
    for part, prepared in track(parts.items(), console=console):
        rules = calibration_rules(settings, prepared)
        for name in models:
            folder = workdir / "detectors" / group_name(name, part)
            model = load_detector(folder).model
            for entity in prepared.entities:
                _check_entity(entity)
                seen = look(model, prepared, entity, rules.batch_size)
                for pair, values in pairs(settings).items():
                    scores = score(
                        seen, prepared, entity, rules._replace(**values._asdict()),
                        settings["data"]["min_anomalous_points"],
                    )  # fmt: skip
                    _, found[name][pair][entity.name] = metric_rows(
                        name,
                        model.parameters,
                        [scores],
                        method=rules.threshold.method,
                        window=prepared.window,
                    )
    return found


def look(
    model: ResidualModel, prepared: Prepared, entity: Entity, batch_size: int
) -> Seen:
    """The model's errors on one entity."""
    names = residual_names(model.kind, prepared.channels)
    window, stride = prepared.window, prepared.stride

    def errors(values: np.ndarray, starts: np.ndarray) -> list[np.ndarray]:
        rows = apply_scaler(entity.scaler, values)
        return list(
            residual_batches(model, rows, starts, window=window, batch_size=batch_size)
        )

    def in_training(spans: np.ndarray) -> list[np.ndarray]:
        starts = window_starts(spans, window=window, stride=stride)
        return errors(entity.train.values, starts)

    def as_rows(batches: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(batches).reshape(-1, len(names))

    assert entity.test is not None
    return Seen(
        names,
        merge_all(
            moments_of(batch[~np.isnan(batch).any(axis=-1)])
            for batch in in_training(entity.split.validation)
        ),
        as_rows(in_training(entity.split.calibration)),
        as_rows(errors(entity.test.values, test_starts(prepared, entity))),
    )


def score(
    seen: Seen, prepared: Prepared, entity: Entity, rules: Rules, least: int
) -> EntityScores:
    """One entity's scores under the Gaussian of these residuals.

    Args:
        seen: the errors.
        prepared: the data.
        entity: of the data.
        rules: of calibration; their floor and ridge are the pair.
        least: anomalous rows that make a window anomalous.
    """
    window, starts = prepared.window, test_starts(prepared, entity)
    # Channels that are constant in training have no part in scores.
    constant = constant_values(prepared, scope=rules.scope)
    still = ~np.isnan(constant[[e.name for e in prepared.entities].index(entity.name)])
    moves = np.delete(~still, prepared.context)
    scored = np.tile(moves, len(seen.names) // len(moves))
    moments = seen.moments
    gaussian = without_channels(
        gaussian_from_moments(
            Moments(
                moments.n, moments.mean[scored], moments.scatter[np.ix_(scored, scored)]
            ),
            floor=rules.floor,
            ridge=rules.ridge,
            channels=np.array(seen.names)[scored].tolist(),
        ),
        moments.mean,
        scored,
    )
    size = {"window": window, "batch_size": rules.batch_size}
    calibration, points = (
        score_scaled(
            AS_THEY_ARE, gaussian, errors, np.arange(0, len(errors), window), **size
        )
        for errors in (seen.calibration, seen.test)
    )
    clean = window_scores(calibration, count=rules.allowed_points)
    clean = clean[~np.isnan(clean)]
    if len(clean) < needed(rules.threshold):  # A run would borrow a τ.
        message = too_few_message(len(clean), rules.threshold)
        raise ConfigError(f"{entity.name}: {message}")
    assert entity.test is not None and entity.test.labels is not None
    sums = empty_sums(len(entity.test.values))
    add_scores(sums, points, starts)
    return EntityScores(
        entity=entity.name,
        labels=entity.test.labels,
        scores=mean_of_sums(sums),
        window_labels=window_labels(
            entity.test.labels, starts, window=window, min_anomalous_points=least
        ),
        window_scores=window_scores(points, count=rules.allowed_points),
        threshold=find_threshold(clean, rules.threshold).tau,
    )


def models_table(report: Mapping[str, Any]) -> str:
    """Means under the run's pair and under the chosen ones, as `docs/results/floors.md` has it."""

    def cell(model: Mapping[str, Any], key: str) -> str:
        before, after = model["default"][key], model["chosen"][key]
        return f"{before:.3f} → {after:.3f}: {_interval(model['differences'][key])}"

    lines = [["model", "floor/ridge (machines)", *HEADS]]
    for name, model in report["models"].items():
        folds = ", ".join(f"{pair} ({n})" for pair, n in model["folds"].items())
        lines.append([name, folds, *(cell(model, key) for key in model["default"])])
    return _markdown(lines)


def paired_table(report: Mapping[str, Any]) -> str:
    """Differences of models, both under the run's pair or both under the chosen ones."""
    lines = [["", "floor and ridge", *HEADS]]
    for which, rows in report["paired"].items():
        by_models: dict[str, list[str]] = {}
        for row in rows:
            against = row["against"].replace("control", "baseline")  # of version 0.1
            best = row.get("baseline") or row.get("control")  # the key of version 0.1
            baseline = f", {best}" if best else ""
            cells = by_models.setdefault(f"{row['model']} − {against}", [])
            cells.append(f"{_interval(row)}{baseline}")
        lines += [[name, which, *cells] for name, cells in by_models.items()]
    return _markdown(lines)


def _read(workdir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields and results of a finished run that makes its Gaussians plainly."""
    results = read_results(workdir)
    if results is None:
        raise ArtifactError(
            f"{workdir} holds no results.json: it is no finished run. Give the "
            "--workdir of one, or finish it by the same `kdjax run`."
        )
    settings = completed(read_json(workdir / CONFIG))
    for field, plain in PLAIN.items():
        value = settings["detection"][field]
        if value != plain:
            raise ConfigError(
                f"{workdir}: detection.{field}={value}, expected {plain}: floors and "
                "ridges can't be compared here for another. Give another run."
            )
    return settings, results


def _without_root(settings: Fields) -> dict[str, Any]:
    """The run's settings without the folder of its data."""
    data = {key: value for key, value in settings["data"].items() if key != "root"}
    return {**settings, "data": data}


def _check_entity(entity: Entity) -> None:
    if entity.test is None or entity.test.labels is None:
        raise DataError(
            f"{entity.name}: no labelled test rows, which choose floor and ridge for "
            "the others: give a run on labelled data."
        )
    if entity.pooled:
        raise DataError(
            f"{entity.name}: too few validation rows for a Gaussian of its own: give a "
            "run on longer series, or set data.entities."
        )


def _chosen(grid: Mapping[str, Mapping[str, Rows]], names: list[str]) -> dict[str, Any]:
    """One model's pairs, and what they bring beside the first."""
    measures: Measures = {
        pair: {entity: measures_of(rows) for entity, rows in by_entity.items()}
        for pair, by_entity in grid.items()
    }
    default = measures[names[0]]
    evaluated = [
        entity for entity, own in default.items() if own[CRITERION] is not None
    ]
    if len(evaluated) < 2:
        raise DataError(
            f"{len(evaluated)} of {len(default)} entities have anomalous and normal test "
            "rows: leave-one-out choice needs at least 2."
        )
    found = left_out(measures, names)
    keys, entities = [*next(iter(default.values()))], [*default]
    return {
        "default": {key: mean(measures, names[0], key, entities) for key in keys},
        "chosen": {
            key: mean({"chosen": found["measures"]}, "chosen", key, entities)
            for key in keys
        },
        "differences": differences(found["measures"], default),
        "folds": dict(Counter(found["chosen"].values()).most_common()),
        "pairs": found["chosen"],
        "measures": {"default": default, "chosen": found["measures"]},
        "means_with_all_labels": {
            pair: {key: mean(measures, pair, key, entities) for key in keys}
            for pair in names
        },
    }


def _order(models: Fields) -> dict[str, dict[str, list[str]]]:
    """By measure, the models from the best mean to the worst, before and after."""

    def ordered(which: str, key: str) -> list[str]:
        return sorted(models, key=lambda name: -models[name][which][key])

    return {
        key: {which: ordered(which, key) for which in ("default", "chosen")}
        for key in next(iter(models.values()))["default"]
    }


def _paired(found: Found, models: Fields, default: str) -> dict[str, Any]:
    """Comparisons as in `results["paired"]`, where all models are tuned alike."""
    kept: dict[str, Rows] = {"default": [], "chosen": []}
    for model, grid in found.items():
        for entity, pair in models[model]["pairs"].items():
            kept["default"] += grid[default][entity]
            kept["chosen"] += grid[pair][entity]
    return {which: paired_rows(rows) for which, rows in kept.items()}


def _departure(found: Found, default: str, entities: Sequence[Fields]) -> float:
    """How far a measure under the run's own pair is from what the run had, at most."""
    departures = [0.0]
    for model, grid in found.items():
        for entity, rows in grid[default].items():
            key = (model, entity)
            own = [row for row in entities if (row["model"], row["entity"]) == key]
            before, after = measures_of(own), measures_of(rows)
            departures += [
                abs((after[name] or 0) - (value or 0)) for name, value in before.items()
            ]
    return max(departures)


def _interval(row: Mapping[str, Any]) -> str:
    """Such as `+0.010 (−0.012 to +0.033)`; without an interval where there is none."""
    if row["difference"] is None:
        return "–"
    ends = [row[key] for key in ("low", "high") if row[key] is not None]
    interval = f" ({' to '.join(f'{end:+.3f}' for end in ends)})" if ends else ""
    return f"{row['difference']:+.3f}{interval}".replace("-", "−")


def _markdown(lines: list[list[str]]) -> str:
    rule = ["---", "---", *["---:"] * (len(lines[0]) - 2)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


if __name__ == "__main__":
    main()
