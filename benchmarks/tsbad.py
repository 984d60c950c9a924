"""Detectors on the multivariate series of TSB-AD, by that benchmark's own protocol.

    python benchmarks/tsbad.py --smd=data/smd --nasa=data/smap_msl --output=tsbad.jsonl
    python benchmarks/tsbad.py --root=TSB-AD-M --output=tsbad.jsonl --table

A model is fitted on the published prefix of a series and scores every row of it; VUS-PR
with the benchmark's window, then the mean over series. `series.csv` lists 34 of the 180
series that can be made from the published files of SMD, SMAP and MSL, and entities of
those whose labels may choose settings (`--list=choose`); `--root` reads the benchmark's
own files, all that are there. Each series, model and seed is a line of the output; a
rerun continues. `--table` prints Markdown: kdjax's rows beside the published ones.

`--asd` and `--jumpstarter2` add what is not of the benchmark, entities of these collections
whose labels report only: the last 4,000 training rows, then the test rows. Lines also have
what the detector's own threshold, chosen without labels, gives on the rows after the prefix,
and what rolling thresholds give there (`kdjax.detection.rolling`), by their share of alarms.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy.signal import argrelmax, correlate
from sklearn.metrics import average_precision_score, f1_score

import kdjax
from kdjax import KDDetector
from kdjax.data.datasets import load_benchmark
from kdjax.data.series import Series
from kdjax.data.tables import numbered_channels
from kdjax.detection.detector import Detector
from kdjax.detection.rolling import rolling_taus
from kdjax.detection.tables import score_table
from kdjax.export.costs import numbers
from kdjax.metrics import vus_pr

HERE = Path(__file__).parent / "tsbad"
# Collections whose first column is a measurement and whose others are commands.
COMMANDED = ("MSL", "SMAP")
# Entities of other collections that have chosen nothing, and their training rows.
OTHERS = {
    "ASD": ("omi-9", "omi-10", "omi-11", "omi-12"),
    "JumpStarter2": tuple(f"service{i}" for i in (1, 7, 11, 13, 15, 17, 21, 27)),
}
LATEST = 4000
PIECE = 512  # windows scored at once
SHARES = (0.02, 0.05, 0.1)  # of all windows above a rolling threshold
SHOWN = 3  # published detectors in the picture
# The benchmark looks for a period among so many rows and lags; this one, if it is none.
ROWS, LAGS, SHORTEST, LONGEST, USUAL = 20_000, 400, 3, 300, 125


class Item(NamedTuple):
    """A series: rows `[N, D]`, labels `[N]`, the length of the prefix, the window."""

    file: str
    collection: str
    rows: np.ndarray
    labels: np.ndarray
    prefix: int
    window: int


def vus_window(column: np.ndarray) -> int:
    """The benchmark's window of a series, from its first column `[N]`.

    The lag of the highest local maximum of the autocorrelation; 125 if there is none or
    it is too long (TSB-AD, `find_length_rank` with rank 1).

    >>> vus_window(np.sin(np.arange(2000) * 2 * np.pi / 50))
    50
    """
    values = np.asarray(column, np.float64)[:ROWS]
    values = values - values.mean()
    full = correlate(values, values, method="fft")[len(values) - 1 :]
    lags = full[: LAGS + 1][SHORTEST:]
    tops = argrelmax(lags)[0]
    if not full[0] > 0 or not len(tops):
        return USUAL
    # The last of equal ones, as a sort in descending order has it.
    best = int(tops[np.argsort(lags[tops])[-1]])
    return best + SHORTEST if SHORTEST <= best <= LONGEST else USUAL


def rebuilt(smd: str, nasa: str, which: str) -> Iterator[Item]:
    """The series of a list that can be made from published files."""
    roots = {"SMD": smd, "SMAP": nasa, "MSL": nasa}
    table = pd.read_csv(HERE / "series.csv")
    for one in table[table["list"] == which].itertuples():
        if not roots[one.collection]:
            continue
        dataset = load_benchmark(
            one.collection.lower(), root=roots[one.collection], entities=(one.entity,)
        )
        series = dataset.test[0]
        yield Item(
            one.file, one.collection, series.values, series.labels,
            one.train_rows, one.vus_window,
        )  # fmt: skip


def others(roots: Mapping[str, str]) -> Iterator[Item]:
    """Series of ASD and JumpStarter2, in folders by collection; none of the benchmark."""
    for collection, entities in OTHERS.items():
        if roots.get(collection):
            yield from entities_of(collection, roots[collection], entities)


def entities_of(collection: str, root: str, entities: Sequence[str]) -> Iterator[Item]:
    """The last 4,000 training rows and the test rows of entities of a collection."""
    for name in entities:
        dataset = load_benchmark(collection.lower(), root=root, entities=(name,))
        known, tested = dataset.train[0].values[-LATEST:], dataset.test[0]
        rows = np.concatenate([known, tested.values])
        labels = np.concatenate([np.zeros(len(known), bool), tested.labels > 0])
        yield Item(name, collection, rows, labels, len(known), vus_window(rows[:, 0]))


def published(root: str) -> Iterator[Item]:
    """The series of a folder in the benchmark's form.

    `001_NAME_id_1_FIELD_tr_500_1st_900.csv`: channels, then the column Label.
    """
    for path in sorted(Path(root).glob("*_tr_*.csv")):
        words = path.stem.split("_")
        frame = pd.read_csv(path)
        rows = frame.drop(columns="Label").to_numpy(np.float64)
        yield Item(
            path.name, words[1], rows, frame["Label"].to_numpy() > 0,
            int(words[words.index("tr") + 1]), vus_window(rows[:, 0]),
        )  # fmt: skip


class Fitted(NamedTuple):
    """A model that was fitted on a prefix."""

    table: Callable[[np.ndarray], pd.DataFrame]  # rows [N, D] to scores and alarms
    numbers: int  # that it stores
    calibration: np.ndarray  # window scores of the prefix


def _estimator(
    *, context: bool = False, **parameters: Any
) -> Callable[[Item, int], Fitted]:
    """The estimator; with `context` commands are seen and not scored."""

    def fitted(item: Item, seed: int) -> Fitted:
        settings = dict(parameters.get("settings", {}))
        if context and item.collection in COMMANDED:
            settings["data.context"] = numbered_channels(item.rows.shape[1])[1:]
        made = KDDetector(**{**parameters, "settings": settings}, random_state=seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="KDDetector: .*false-alarm rate")
            detector = made.fit(item.rows[: item.prefix]).detector_
        known = detector.calibration[0]
        return Fitted(lambda rows: row_table(detector, rows), numbers(detector), known)

    return fitted


# Of 5,000 numbers at most.
TWO = {"settings": {"classifier.networks": 2, "classifier.channels": 8}}
# How each model is fitted on the prefix.
MODELS = {
    "kdjax": _estimator(),
    "kdjax small": _estimator(**TWO),
    "kdjax small with context": _estimator(context=True, **TWO),
}
FILTERS = ("mahalanobis", "pca", "kmeans", "memory", "difference", "moving_average")
FORECASTERS = ("cnn_forecast", "gru_forecast")
for name in ("student", "teacher", *FILTERS, *FORECASTERS):
    MODELS[f"kdjax {name}"] = _estimator(detector=name)
    MODELS[f"kdjax {name} with context"] = _estimator(context=True, detector=name)
# Without a seed: one line serves.
UNSEEDED = [name for name in MODELS if set(name.split()) & {*FILTERS}]


def measure(item: Item, model: str, seed: int) -> dict[str, Any]:
    """A line of the output."""
    started = time.perf_counter()
    fitted = MODELS[model](item, seed)
    trained = time.perf_counter()
    table = fitted.table(item.rows)
    scored = time.perf_counter()
    scores, labels = table["score"].to_numpy(), item.labels[item.prefix :]
    alarms = table["alarm"].to_numpy()[item.prefix :]
    windows = table["window_score"].to_numpy()[item.prefix :]
    following = {
        share: windows > rolling_taus(fitted.calibration, windows, share)
        for share in SHARES
    }
    return {
        "file": item.file,
        "collection": item.collection,
        "model": model,
        "seed": seed,
        "vus_pr": vus_pr(item.labels, scores, window=item.window),
        "average_precision": float(average_precision_score(item.labels, scores)),
        "f1": float(f1_score(labels, alarms, zero_division=0)),
        "alarms": float(alarms.mean()),
        "f1_rolling": {
            share: float(f1_score(labels, above, zero_division=0))
            for share, above in following.items()
        },
        "alarms_rolling": {share: float(a.mean()) for share, a in following.items()},
        "numbers": fitted.numbers,
        "fit_seconds": round(trained - started, 2),
        "score_seconds": round(scored - trained, 2),
    }


def row_table(detector: Detector, rows: np.ndarray) -> pd.DataFrame:
    """`score_table`: a row's score is the mean over the windows that cover it."""
    series = Series("rows", rows.astype(np.float32), detector.channels)
    return score_table(detector, series, entity=detector.entities[0])


def covering_scores(
    score: Callable[..., Any], params: Any, rows: np.ndarray, length: int
) -> np.ndarray:
    """Means over the windows that cover a row of `score(params, windows)`, `[N]`.

    `score` is a function of JAX that gives a number a window, `[B]`, or a row, `[B, L]`.
    """
    found = np.asarray(kdjax.windows(rows, length=length))
    scored = jax.jit(score)
    pieces = np.array_split(found, len(found) // PIECE + 1)
    points = np.concatenate([np.asarray(scored(params, piece)) for piece in pieces])
    points = np.broadcast_to(points.reshape(len(found), -1), found.shape[:2])
    return kdjax.row_scores(points, starts=np.arange(len(found)), rows=len(rows))


def run(
    items: Iterator[Item], output: Path, models: Sequence[str], seeds: Sequence[int]
) -> None:
    """Measures what the output lacks; a line as soon as it is known."""
    done = {(one["file"], one["model"], one["seed"]) for one in read(output)}
    for item in items:
        for model in models:
            for seed in seeds[:1] if model in UNSEEDED else seeds:
                if (item.file, model, seed) in done:
                    continue
                append(output, measure(item, model, seed))


def append(output: Path, line: dict[str, Any]) -> None:
    """Adds a line to an output and prints it."""
    text = json.dumps(line)
    with output.open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    print(text, flush=True)


def read(output: Path) -> list[dict[str, Any]]:
    """The lines of an output; none of one that does not exist."""
    if not output.exists():
        return []
    return [json.loads(line) for line in output.read_text("utf-8").splitlines()]


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean VUS-PR by model and collection, kdjax's beside the published ones.

    Seeds are averaged first. Only series that every model of kdjax has are counted.
    """
    own = pd.DataFrame(lines)
    scores = own.pivot_table(index="file", columns="model", values="vus_pr").dropna()
    theirs = pd.read_csv(HERE / "published.csv", index_col="file")
    theirs = theirs.reindex(scores.index).dropna(axis="columns")
    both = pd.concat([scores, theirs], axis="columns")
    collection = own.drop_duplicates("file").set_index("file")["collection"]
    means = both.groupby(collection.reindex(both.index)).mean().T
    means.insert(0, "all", both.mean())
    costs = own.groupby("model")[["numbers", "fit_seconds", "score_seconds"]].median()
    found = means.join(costs).sort_values("all", ascending=False)
    counts = collection.reindex(both.index).value_counts()
    heads = [f"{name} ({counts.get(name, len(both))})" for name in means]
    lines_ = [
        "| model | " + " | ".join([*heads, "numbers", "fit s", "score s"]) + " |",
        "|---" * (len(found.columns) + 1) + "|",
    ]
    for model, row in found.iterrows():
        cells = [f"{value:.3f}" for value in row[: len(heads)]]
        rest = ["–" if np.isnan(v) else f"{v:,.0f}" for v in row[len(heads) :]]
        lines_.append(f"| {model} | " + " | ".join([*cells, *rest]) + " |")
    return "\n".join(lines_)


def on_front(costs: Any, quality: Any) -> np.ndarray:
    """Which none beats: no other is as good at no more cost, and better in one of both."""
    costs, quality = np.asarray(costs), np.asarray(quality)
    return np.array([
        not np.any(
            (costs <= cost) & (quality >= own) & ((costs < cost) | (quality > own))
        )
        for cost, own in zip(costs, quality, strict=True)
    ])  # fmt: skip


def plot(lines: Sequence[dict[str, Any]]) -> Figure:
    """VUS-PR over the median of stored numbers, and the best published detectors."""
    own = pd.DataFrame(lines)
    scores = own.pivot_table(index="file", columns="model", values="vus_pr").dropna()
    stored = own.groupby("model")["numbers"].median()
    theirs = pd.read_csv(HERE / "published.csv", index_col="file")
    theirs = theirs.reindex(scores.index).mean().nlargest(SHOWN)
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    for model, score in scores.mean().items():
        axes.plot(stored[model], score, "o", color="tab:blue")
        axes.annotate(
            str(model), (stored[model], score), (5, 4), textcoords="offset points",
            fontsize=8,
        )  # fmt: skip
    for model, score in theirs.items():
        axes.axhline(score, color="tab:grey", linewidth=0.8, linestyle="--")
        axes.annotate(
            f"{model}, published", (0.55, score), (3, 2), fontsize=8,
            xycoords=("axes fraction", "data"), textcoords="offset points",
        )  # fmt: skip
    axes.set(xscale="log", xlabel="numbers stored for a machine")
    decades = np.log10([stored.min(), stored.max()])
    axes.set_xlim(10 ** np.floor(decades[0]), 10 ** np.ceil(decades[1]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(f"VUS-PR, mean of {len(scores)} series")
    axes.set_ylim(0, 1.15 * scores.mean().max())
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def make_parser(description: str | None, seeds: str = "0") -> argparse.ArgumentParser:
    """Flags that the benchmarks on these series share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smd", default="", help="folder of SMD")
    parser.add_argument("--nasa", default="", help="folder of SMAP and MSL")
    parser.add_argument("--seeds", default=seeds, help="numbers, by commas")
    return parser


def main() -> None:
    """Reads flags, measures, prints."""
    parser = make_parser(__doc__)
    parser.add_argument("--asd", default="", help="folder of ASD")
    parser.add_argument("--jumpstarter2", default="", help="folder of JumpStarter2")
    parser.add_argument(
        "--root", default="", help="folder of the benchmark's own files"
    )
    parser.add_argument("--list", default="evaluation", help="evaluation or choose")
    parser.add_argument("--models", default=",".join(MODELS), help="names, by commas")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the table as well")
    parser.add_argument("--plot", type=Path, help="file of a picture, such as PNG")
    given = parser.parse_args()
    more = {"ASD": given.asd, "JumpStarter2": given.jumpstarter2}
    items = (
        published(given.root)
        if given.root
        else rebuilt(given.smd, given.nasa, given.list)
    )
    seeds = [int(seed) for seed in given.seeds.split(",")]
    run(chain(items, others(more)), given.output, given.models.split(","), seeds)
    if given.table:
        print(table(read(given.output)))
    if given.plot:
        plot(read(given.output)).savefig(given.plot, dpi=150)


if __name__ == "__main__":
    main()
