"""What float32 costs: the whole chain against the same formulas in float64.

    python benchmarks/precision.py --root=data --output=docs/results/precision.json

Scaler, model, residuals, Gaussian, a_t, window score, τ and alarm of kdjax, which scores in
float32, beside numpy and scipy in float64 throughout, for networks and baselines on all
windows of every entity that lies below `--root` (`smd`, `asd`, `jumpstarter2`,
`smap_msl`). Only the spans of rows and a model's parameters are shared: networks are
small and trained for a few steps, since their size hardly matters here. The scores are
those of `kdjax run` with the package's own settings of detection, but for the stride,
which is 50: each row lies in two windows. About ten minutes of a CPU core, most of it in
float64. Rows of data sets that aren't among `--names` stay in the output as they were.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from scipy.linalg import cholesky, solve_triangular
from scipy.special import expit

from kdjax.config import get_config, override, resolve
from kdjax.data.datasets import load_benchmark
from kdjax.data.prepared import Entity, Prepared, prepare
from kdjax.data.splits import window_starts
from kdjax.data.windowing import span_pieces
from kdjax.detection.calibration import (
    Calibration,
    Rules,
    calibrate,
    point_pieces,
)
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.scores import window_scores
from kdjax.detection.thresholds import Threshold
from kdjax.experiment.assemble import calibration_rules
from kdjax.experiment.train import train_networks
from kdjax.io.environment import describe_environment
from kdjax.io.files import write_text
from kdjax.models.autoencoder import Architecture
from kdjax.models.residual import (
    NETWORK,
    ResidualModel,
    component,
    components_of,
    join_models,
)
from kdjax.training.components import fit_baseline

FOLDERS = {"smap": "smap_msl", "msl": "smap_msl"}
SCALERS = {"jumpstarter2": "minmax"}  # the others are published scaled
NAMES = ("smd", "asd", "jumpstarter2", "smap", "msl")
BASELINES = ("mahalanobis", "difference", "moving_average", "pca")
NETWORKS: dict[str, dict[str, Any]] = {
    "repeat 8": {"teacher.hidden": (8,)},
    "feedback 8, 4": {"teacher.hidden": (8, 4), "model.decoder": "feedback"},
    "independent 4": {"teacher.hidden": (4,), "model.channels": "independent"},
}
# These run a network once a channel: they have the fewest.
INDEPENDENT = ("asd", "jumpstarter2")
STRIDE = 50
STEPS = 300  # of a network's training, about
MOVING_AVERAGE_ROWS = 60
SMALL = 1e-6

Array = np.ndarray
# Rows `[N, D]` and starts `[M]` to errors `[M, L, F]`.
Errors = Callable[[Array, Array], Array]


class Difference(NamedTuple):
    """Of numbers in float32 from those in float64.

    Attributes:
        n: of the numbers.
        largest: difference relative to the number in float64, or to `SMALL` of τ where
            that is more: rows of constants have scores of 0.
        median: of these.
        of_tau: the largest difference in units of τ, since small scores decide nothing.
    """

    n: int
    largest: float
    median: float
    of_tau: float


def main() -> None:
    """Measures, prints the table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--names", nargs="*", default=NAMES)
    parser.add_argument("--entities", type=int, help="the first ones of each")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    for name in given.names:
        prepared, settings = ready(name, given.root, given.entities)
        rules = calibration_rules(settings, prepared)
        found = []
        for label, model in models(prepared, settings):
            measured = compare(model, prepared, rules)
            found.append({"data": name, "model": label} | measured)
            print(json.dumps(found[-1]), flush=True)
        report = joined_report(found, rules, given.output)
        if given.output:
            text = json.dumps(report, indent=1, allow_nan=False)
            write_text(given.output, text + "\n")
        print(table(report), flush=True)


def joined_report(
    found: list[dict[str, Any]], rules: Rules, output: Path | None
) -> dict[str, Any]:
    """What the JSON file holds: the rows found, and its own of other data sets."""
    names = {row["data"] for row in found}
    old = json.loads(output.read_text("utf-8")) if output and output.exists() else {}
    rows = [row for row in old.get("rows", []) if row["data"] not in names] + found
    detection = rules._asdict() | {"threshold": rules.threshold._asdict()}
    detection["threshold"].pop("value")
    return {
        "window": 100,
        "stride": STRIDE,
        "detection": detection,
        "rows": sorted(rows, key=lambda row: NAMES.index(row["data"])),
        "environment": describe_environment(),
    }


def ready(
    name: str, root: Path, entities: int | None
) -> tuple[Prepared, Mapping[str, Any]]:
    """A benchmark's data, and settings in which only networks differ from the defaults."""
    folder = root / FOLDERS.get(name, name)
    dataset = load_benchmark(name, root=folder)
    if entities:
        train, test = dataset.train[:entities], dataset.test[:entities]
        dataset = dataset._replace(train=train, test=test)
    rows = sum(len(series.values) for series in dataset.train)
    settings = resolve(
        override(
            get_config(),
            {
                "data.name": name,
                "data.root": str(folder),
                "data.stride": STRIDE,
                "data.scaler": SCALERS.get(name, "none"),
                # Two epochs of batches of 32.
                "data.train_stride": max(10, round(2 * rows / (32 * STEPS))),
                "teacher.epochs": 2,
                "train.learning_rate": 1e-2,
            },
        )
    )
    fields = ("window", "stride", "max_gap", "validation", "calibration", "scaler")
    data = settings["data"]
    return prepare(dataset, **{field: data[field] for field in fields}), settings


def models(
    prepared: Prepared, settings: Mapping[str, Any]
) -> Iterator[tuple[str, ResidualModel]]:
    """Baselines, networks, and an ensemble of both, by name."""
    baselines = {kind: fit_baseline(kind, prepared) for kind in BASELINES}
    yield from baselines.items()
    networks = {}
    for label, changes in NETWORKS.items():
        if label.startswith("independent") and prepared.name not in INDEPENDENT:
            continue
        own = {**settings}
        for field, value in changes.items():
            room, key = field.split(".")
            own[room] = {**own[room], key: value}
        with tempfile.TemporaryDirectory() as folder:
            trained = train_networks(
                prepared, own, Path(folder), Console(quiet=True), names=("teacher",)
            )
        networks[label] = trained["teacher"]
    yield from networks.items()
    joined = join_models([networks["repeat 8"], baselines["difference"]])
    yield "repeat 8 + difference", joined


# kdjax's chain beside the one in float64.


def compare(model: ResidualModel, prepared: Prepared, rules: Rules) -> dict[str, Any]:
    """Differences of a model's numbers on a data set from those in float64."""
    ours = calibrate(model, prepared, rules)
    exact = calibrate_exactly(model, prepared, rules, ours.thresholds)
    points, windows, flips = [], [], []
    taus = [
        abs(own.tau / tau - 1)
        for own, tau in zip(ours.thresholds, exact.taus, strict=True)
    ]
    for index, entity in enumerate(prepared.entities):
        assert entity.test is not None
        starts = _starts(prepared, entity.test_spans)
        found = _points(model, ours, index, entity.test.values, starts, prepared, rules)
        wanted = exact.scorers[index](entity.test.values, starts)
        tau, own = exact.taus[index], ours.thresholds[index].tau
        points.append((found, wanted, tau))
        scores, exactly = (
            window_scores(p, count=rules.allowed_points) for p in (found, wanted)
        )
        windows.append((scores, exactly, tau))
        differ = (scores > own) != (exactly > tau)
        flips += np.abs(exactly[differ] / tau - 1).tolist()
    return {
        "entities": len(prepared.entities),
        "points": _difference(points)._asdict(),
        "windows": _difference(windows)._asdict(),
        "tau": max(taus),
        "decisions_that_differ": len(flips),
        # How close to τ the score lies, in float64.
        "farthest_from_tau": max(flips, default=0.0),
    }


def _points(
    model: ResidualModel,
    ours: Calibration,
    index: int,
    values: Array,
    starts: Array,
    prepared: Prepared,
    rules: Rules,
) -> Array:
    """a_t `[M, L]` as kdjax has them."""
    gaussian = Gaussian(*(field[index] for field in ours.gaussians))
    scaler = type(ours.scalers)(*(field[index] for field in ours.scalers))
    pieces = point_pieces(
        model, gaussian, scaler, values, starts,
        window=prepared.window, batch_size=rules.batch_size,
    )  # fmt: skip
    return np.concatenate([points for points, _ in pieces])


def _difference(parts: Sequence[tuple[Array, Array, float]]) -> Difference:
    relative, of_tau = [], 0.0
    for found, wanted, tau in parts:
        apart = np.abs(found - wanted).ravel()
        relative.append(apart / np.maximum(wanted.ravel(), SMALL * tau))
        # Past τ by far a rounding is as large as τ, and as little to the point.
        near = wanted.ravel() < 2 * tau
        of_tau = max(of_tau, float(apart[near].max(initial=0)) / tau)
    every = np.concatenate(relative)
    assert np.isfinite(every).all()
    return Difference(len(every), float(every.max()), float(np.median(every)), of_tau)


# The same in float64.


class Exact(NamedTuple):
    """Calibration in float64.

    Attributes:
        scorers: of each entity, raw rows and starts to a_t `[M, L]`.
        taus: of each entity, and the pooled one.
    """

    scorers: list[Callable[[Array, Array], Array]]
    taus: list[float]


class _Scale(NamedTuple):
    offset: Array
    scale: Array


class _Gauss(NamedTuple):
    mean: Array
    whiten: Array


def calibrate_exactly(
    model: ResidualModel,
    prepared: Prepared,
    rules: Rules,
    thresholds: Sequence[Threshold],
) -> Exact:
    """Scalers, Gaussians and τ; entities borrow as in `thresholds`.

    Raises:
        ValueError: rules that this script doesn't know.
    """
    plain = ("none", "per_entity", 0.0)
    if (rules.shrinkage, rules.scope, rules.trim) != plain:
        raise ValueError(f"expected shrinkage, scope and trim of {plain}")
    errors = exact_errors(model, prepared.window)
    entities = prepared.entities
    method = "none" if not np.any(prepared.pooled_scaler.offset) else "minmax"
    everything = _scale([_fit_rows(entity) for entity in entities], method)
    scales = [
        everything if entity.pooled else _scale([_fit_rows(entity)], method)
        for entity in entities
    ]
    alike = all(np.array_equal(a, b) for s in scales for a, b in zip(s, everything))
    own = [_moments(e, s, errors, prepared) for e, s in zip(entities, scales)]
    pooled = own
    if not alike:
        pooled = [_moments(e, everything, errors, prepared) for e in entities]
    *moving, moved = _moving(entities)
    common = _gauss(pooled, rules, moved)
    gaussians = [
        common if entity.pooled else _gauss([moments], rules, moves)
        for entity, moments, moves in zip(entities, own, moving)
    ]
    scorers = [_scorer(errors, s, n) for s, n in zip(scales, gaussians)]
    scores = [_calibration(e, f, prepared, rules) for e, f in zip(entities, scorers)]
    under_all = _scorer(errors, everything, common)
    pool = np.concatenate(
        [_calibration(e, under_all, prepared, rules) for e in entities]
    )
    sets = {"shared": np.concatenate(scores), "pooled": pool}
    threshold_scores = [
        found if tau.source == "own" else sets[tau.source]
        for found, tau in zip([*scores, pool], thresholds, strict=True)
    ]
    return Exact(
        scorers, [_tau(found, rules.threshold.rate) for found in threshold_scores]
    )


def _moving(entities: Sequence[Entity]) -> list[Array]:
    """Channels `[D]` that move in the training rows of each entity, and of all at last."""
    low = np.stack([entity.train.values.min(axis=0) for entity in entities])
    high = np.stack([entity.train.values.max(axis=0) for entity in entities])
    return [*(high > low), high.max(axis=0) > low.min(axis=0)]


def _starts(prepared: Prepared, spans: Array) -> Array:
    return window_starts(spans, window=prepared.window, stride=prepared.stride)


def _fit_rows(entity: Entity) -> Array:
    rows = span_pieces(entity.train.values, entity.split.fit)
    return np.concatenate([*rows, np.empty((0, entity.train.values.shape[1]))])


def _scale(rows: Sequence[Array], method: str) -> _Scale:
    values = np.concatenate(rows).astype(np.float64)
    if method == "none":
        return _Scale(np.zeros(values.shape[1]), np.ones(values.shape[1]))
    low, high = values.min(axis=0), values.max(axis=0)
    return _Scale(low, np.where(high > low, high - low, 1.0))


def _moments(
    entity: Entity, scale: _Scale, errors: Errors, prepared: Prepared
) -> tuple[int, Array, Array]:
    """Number, sum and sum of squares about a fixed point: the first error."""
    starts = _starts(prepared, entity.split.validation)
    values = (np.float64(entity.train.values) - scale.offset) / scale.scale
    found = errors(values, starts) if len(starts) else None
    if found is None:
        return 0, np.zeros(0), np.zeros(0)
    flat = found.reshape(-1, found.shape[-1])
    mean = flat.mean(axis=0)
    return len(flat), mean, np.cov(flat.T, ddof=0).reshape(len(mean), -1)


def _gauss(
    parts: Sequence[tuple[int, Array, Array]], rules: Rules, moves: Array
) -> _Gauss:
    """Of the channels that move, `[D]` bool; W has zeros elsewhere."""
    some = [component for component in parts if component[0]]
    n = sum(count for count, _, _ in some)
    mean = sum(count * own for count, own, _ in some) / n
    second = sum(
        count * (cov + np.outer(own - mean, own - mean)) for count, own, cov in some
    )
    covariance = second / n
    scored = np.ix_(*[np.tile(moves, len(mean) // len(moves))] * 2)
    whiten, covariance = np.zeros((len(mean), len(mean))), covariance[scored]
    scale = np.maximum(np.sqrt(np.diag(covariance)), rules.floor)
    matrix = covariance / np.outer(scale, scale) + rules.ridge * np.eye(len(scale))
    factor = cholesky(matrix, lower=True)
    whiten[scored] = solve_triangular(factor, np.diag(1 / scale), lower=True)
    return _Gauss(mean, whiten)


def _scorer(
    errors: Errors, scale: _Scale, gaussian: _Gauss
) -> Callable[[Array, Array], Array]:
    def points(rows: Array, starts: Array) -> Array:
        values = (np.float64(rows) - scale.offset) / scale.scale
        found = [
            (((errors(values, some) - gaussian.mean) @ gaussian.whiten.T) ** 2).sum(
                axis=-1
            )
            for some in np.array_split(starts, max(1, len(starts) // 1000))
        ]
        return np.concatenate(found)

    return points


def _calibration(
    entity: Entity,
    scorer: Callable[[Array, Array], Array],
    prepared: Prepared,
    rules: Rules,
) -> Array:
    starts = _starts(prepared, entity.split.calibration)
    if not len(starts):
        return np.empty(0)
    points = scorer(entity.train.values, starts)
    return np.sort(points, axis=1)[:, -1 - rules.allowed_points]


def _tau(scores: Array, rate: float) -> float:
    """The ⌈(n + 1)(1 − rate)⌉-th smallest."""
    place = -(-(len(scores) + 1) * (1 - Fraction(str(rate))) // 1)
    return float(np.sort(scores)[int(place) - 1])


# Errors of the models, from scaled rows `[N, D]` and starts `[M]`.


def exact_errors(model: ResidualModel, window: int) -> Errors:
    """The errors `[M, L, F]` of a model's parts side by side."""
    parts = [_PARTS[kind](component(model, kind)) for kind in components_of(model.kind)]

    def errors(rows: Array, starts: Array) -> Array:
        windows = rows[starts[:, None] + np.arange(window)]
        return np.concatenate([own(windows) for own in parts], axis=-1)

    return errors


def _difference_errors(model: ResidualModel) -> Callable[[Array], Array]:
    return lambda x: np.abs(np.diff(x, axis=1, prepend=x[:, :1]))


def _moving_average_errors(model: ResidualModel) -> Callable[[Array], Array]:
    def errors(x: Array) -> Array:
        last = np.arange(1, x.shape[1] + 1)
        first = np.maximum(last - MOVING_AVERAGE_ROWS, 0)
        means = [x[:, a:b].mean(axis=1) for a, b in zip(first, last, strict=True)]
        return np.abs(x - np.stack(means, axis=1))

    return errors


def _pca_errors(model: ResidualModel) -> Callable[[Array], Array]:
    mean = np.float64(model.params["mean"])
    components = np.float64(model.params["components"])
    return lambda x: np.abs((x - mean) - (x - mean) @ components.T @ components)


def _network_errors(model: ResidualModel) -> Callable[[Array], Array]:
    assert model.architecture is not None
    shape, params = model.architecture, model.params

    def errors(x: Array) -> Array:
        if shape.channels == "joint":
            return np.abs(x - _reconstruct(shape, params, x))
        series = np.moveaxis(x, 2, 0).reshape(-1, x.shape[1], 1)
        found = _reconstruct(shape, params, series)
        return np.abs(x - np.moveaxis(found.reshape(x.shape[2], *x.shape[:2]), 0, 2))

    return errors


class _Layer:
    """An LSTM layer, step by step."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        names = ("input_kernel", "recurrent_kernel", "bias")
        self.w, self.r, self.b = (np.float64(params[name]) for name in names)
        self.c = self.h = np.zeros((1, len(self.r)))

    def __call__(self, x: Array) -> Array:
        i, f, g, o = np.split(x @ self.w + self.h @ self.r + self.b, 4, axis=-1)
        self.c = expit(f) * self.c + expit(i) * np.tanh(g)
        self.h = expit(o) * np.tanh(self.c)
        return self.h


def _reconstruct(shape: Architecture, params: Mapping[str, Any], x: Array) -> Array:
    depth, length = len(shape.hidden), x.shape[1]
    encoder = [_Layer(params[f"encoder_{i}"]) for i in range(depth)]
    decoder = [_Layer(params[f"decoder_layers_{i}"]) for i in range(depth)]
    kernel, bias = (np.float64(params["head"][name]) for name in ("kernel", "bias"))
    activate = expit if shape.head == "sigmoid" else lambda values: values

    def through(layers: Sequence[_Layer], values: Array) -> Array:
        for layer in layers:
            values = layer(values)
        return values

    for t in range(length):
        code = through(encoder, x[:, t])
    if shape.decoder == "repeat":
        steps = [through(decoder, code) @ kernel + bias for _ in range(length)]
        return np.asarray(activate(np.stack(steps, axis=1)))
    for own, twin in zip(decoder, reversed(encoder), strict=True):
        own.c, own.h = twin.c, twin.h
    steps = [activate(decoder[-1].h @ kernel + bias)]
    for _ in range(length - 1):
        steps.append(activate(through(decoder, steps[-1]) @ kernel + bias))
    return np.stack(steps[::-1], axis=1)


_PARTS: dict[str, Callable[[ResidualModel], Callable[[Array], Array]]] = {
    "mahalanobis": lambda model: lambda x: x,
    "difference": _difference_errors,
    "moving_average": _moving_average_errors,
    "pca": _pca_errors,
    NETWORK: _network_errors,
}


def table(report: Mapping[str, Any]) -> str:
    """The report's numbers for a document."""
    head = "| Data | Model | Windows | Largest | Median | Near τ | τ | Decisions that differ |"
    lines = [head, "|---|---|---:|---:|---:|---:|---:|---:|"]
    for row in report["rows"]:
        windows = row["windows"]
        sizes = (windows["largest"], windows["median"], windows["of_tau"], row["tau"])
        cells = [
            row["data"], row["model"], f"{windows['n']:,}",
            *(f"{size:.1e}" for size in sizes), str(row["decisions_that_differ"]),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
