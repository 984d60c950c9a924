"""Quality of every kind of detector against all the numbers that it stores.

    python benchmarks/frontier_kinds.py --smd=data/smd --nasa=data/smap_msl --run=FILE.jsonl
    python benchmarks/frontier_kinds.py --run=FILE.jsonl --output=docs/results/frontier_kinds

On series of `tsbad` whose labels may choose settings. Each kind is fitted once a series
and seed on the series' prefix; the variants are derived from that fit: fewer networks or
windows, weights of 16 and 8 bits, pruned weights, products of low rank. A line of the
run is a variant on a series; a rerun continues. `--output` writes OUTPUT.csv and
OUTPUT.png and prints the table.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import tsbad
from matplotlib.figure import Figure
from sklearn.cluster import KMeans
from sklearn.metrics import average_precision_score, f1_score

from kdjax import KDDetector
from kdjax.data.windowing import spread_evenly
from kdjax.detection.detector import Detector
from kdjax.export.costs import numbers, window_milliseconds
from kdjax.export.onnx import LARGE, onnx_file
from kdjax.io.files import write_text
from kdjax.metrics import vus_pr
from kdjax.models.residual import ResidualModel

# So that a run which is cut short has series of each collection.
FILES = (
    "MSL_D-15", "SMAP_A-7", "SMD_machine-1-8", "MSL_T-13", "SMAP_E-2", "SMD_machine-3-5",
    "MSL_M-1", "SMAP_P-1", "MSL_F-8", "SMAP_T-1", "SMAP_D-2", "SMAP_G-7",
)  # fmt: skip
BASES = (
    "mahalanobis", "moving_average", "pca", "kmeans", "memory", "cnn_forecast",
    "gru_forecast", "classifier", "autoencoders",
)  # fmt: skip
# Scored of a series, so that those of SMD don't take most of the time.
ROWS = 10_000
WINDOW = 50  # rows of windows of all but classifiers
QUANTIZE = {"float32": "none", "int8": "int8"}
BANKS = ("memory", "kmeans")
MEASURES = ("vus_pr", "average_precision", "f1")


class Form(NamedTuple):
    """How weights are stored: what comes back, and what one array costs."""

    restored: Callable[[np.ndarray], np.ndarray]
    numbers: Callable[[np.ndarray], float]
    bytes: Callable[[np.ndarray], float]


def rounded(weights: np.ndarray) -> np.ndarray:
    """Weights `[…, O]` in 8 bits, in steps of an output's largest / 127."""
    others = tuple(range(weights.ndim - 1))
    step = np.abs(weights).max(axis=others) / 127
    step = np.where(step > 0, step, 1)
    return (np.round(weights / step) * step).astype(np.float32)


def rounded_bank(bank: np.ndarray) -> np.ndarray:
    """Windows `[K, L, D]` in 8 bits, each number from that of the first window."""
    flat = (bank - bank[:1]).reshape(len(bank), -1)
    return bank[:1] + rounded(flat).reshape(bank.shape)


def pruned(weights: np.ndarray, share: float) -> np.ndarray:
    """Weights without the smallest, 0 in their place."""
    least = np.quantile(np.abs(weights), share)
    return np.where(np.abs(weights) > least, weights, np.float32(0))


def low_rank(weights: np.ndarray) -> np.ndarray:
    """`[…, O]`, as a matrix of half the rank that it can have."""
    matrix = weights.reshape(-1, weights.shape[-1])
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    rank = half_rank(matrix)
    product = (left[:, :rank] * values[:rank]) @ right[:rank]
    return product.reshape(weights.shape).astype(np.float32)


def half_rank(weights: np.ndarray) -> int:
    """Half of the largest rank that `[…, O]` can have as a matrix."""
    outputs = weights.shape[-1]
    return max(1, min(weights.size // outputs, outputs) // 2)


def factors(weights: np.ndarray) -> int:
    """Numbers of the two factors of `low_rank`."""
    outputs = weights.shape[-1]
    return half_rank(weights) * (weights.size // outputs + outputs)


def _pruning(share: float) -> Form:
    """An index costs half a number, so that a weight which is kept costs 6 bytes."""
    return Form(
        lambda weights: pruned(weights, share),
        lambda weights: float(np.count_nonzero(pruned(weights, share))),
        lambda weights: 6.0 * np.count_nonzero(pruned(weights, share)),
    )


FORMS = {
    "float32": Form(lambda w: w, np.size, lambda w: 4 * w.size),
    "float16": Form(
        lambda w: w.astype(np.float16).astype(np.float32), np.size, lambda w: 2 * w.size
    ),
    "int8": Form(
        rounded, lambda w: w.size + w.shape[-1], lambda w: w.size + 4 * w.shape[-1]
    ),
    "pruned 50 %": _pruning(0.5),
    "pruned 80 %": _pruning(0.8),
    "half rank": Form(low_rank, factors, lambda w: 4 * factors(w)),
}
# A step for each number of a window, and the first window in 32 bits.
BANK = Form(
    rounded_bank, lambda w: w.size + 2 * w[0].size, lambda w: w.size + 8 * w[0].size
)


def weights_of(model: ResidualModel) -> tuple[list[np.ndarray], Callable[..., Any]]:
    """Leaves of the parameters, a classifier's of each network, and what joins them."""
    params = model.params
    if model.kind == "classifier":
        count = len(params["level"])
        networks = params["networks"].items()
        each = [{name: leaf[i] for name, leaf in networks} for i in range(count)]
        rest = {name: params[name] for name in params if name != "networks"}
        leaves, tree = jax.tree.flatten((each, rest))

        def joined(changed: list[np.ndarray]) -> Any:
            each, rest = jax.tree.unflatten(tree, changed)
            return rest | {"networks": jax.tree.map(lambda *own: np.stack(own), *each)}

        return [*map(np.asarray, leaves)], joined
    leaves, tree = jax.tree.flatten(params)
    return [*map(np.asarray, leaves)], lambda changed: jax.tree.unflatten(tree, changed)


def is_kernel(leaf: np.ndarray) -> bool:
    """Whether it is stored in another form: what `export --quantize` rounds."""
    return leaf.ndim > 1 and leaf.size >= LARGE


def stored(model: ResidualModel, name: str) -> tuple[ResidualModel, float, float]:
    """The model whose kernels went through a form, its numbers and their bytes."""
    form = BANK if name == "int8" and model.kind in BANKS else FORMS[name]
    leaves, joined = weights_of(model)
    kernels = [leaf for leaf in leaves if is_kernel(leaf)]
    others = sum(leaf.size for leaf in leaves if not is_kernel(leaf))
    changed = [form.restored(leaf) if is_kernel(leaf) else leaf for leaf in leaves]
    return (
        model._replace(params=joined(changed)),
        others + sum(map(form.numbers, kernels)),
        4 * others + sum(map(form.bytes, kernels)),
    )


def first_networks(model: ResidualModel, count: int) -> ResidualModel:
    """A classifier of the first of its networks."""
    params = dict(model.params)
    params["networks"] = jax.tree.map(lambda leaf: leaf[:count], params["networks"])
    return model._replace(params=params | {"level": params["level"][:count]})


def fewer_windows(model: ResidualModel, count: int) -> ResidualModel:
    """A memory of so many of its windows, spread evenly."""
    known = model.params["windows"]
    chosen = known[spread_evenly(len(known), count)]
    return model._replace(params={"windows": chosen})


def centres(model: ResidualModel, count: int) -> ResidualModel:
    """A memory of the centres of clusters of its windows."""
    known = model.params["windows"]
    flat = known.reshape(len(known), -1)
    found = KMeans(count, n_init=1, max_iter=50, random_state=0).fit(flat)
    kept = found.cluster_centers_.astype(np.float32).reshape(-1, *known.shape[1:])
    return model._replace(params={"windows": kept})


Change = Callable[[ResidualModel], ResidualModel]
# What is derived from a fit by leaving something out, by the kind's name.
SMALLER: dict[str, dict[str, Change]] = {
    "classifier": {
        "classifier, 4 networks": lambda model: model,
        "classifier, 2 networks": lambda model: first_networks(model, 2),
        "classifier, 1 network": lambda model: first_networks(model, 1),
    },
    "memory": {
        "memory": lambda model: model,
        "memory, 300 windows": lambda model: fewer_windows(model, 300),
        "memory, 100 windows": lambda model: fewer_windows(model, 100),
        "memory, 100 centres": lambda model: centres(model, 100),
    },
}
NETWORK_FORMS = ("pruned 50 %", "pruned 80 %", "half rank")
WITH_ALL_FORMS = ("classifier, 4 networks", "teacher")


def forms_of(name: str, model: ResidualModel) -> tuple[str, ...]:
    """The forms that a variant is stored in."""
    leaves, _ = weights_of(model)
    if not any(map(is_kernel, leaves)):
        return ("float32",)
    if model.kind == "pca":  # which `export --quantize` leaves alone
        return ("float32", "float16")
    more = NETWORK_FORMS if name in WITH_ALL_FORMS else ()
    return ("float32", "float16", "int8", *more)


def fitted(item: tsbad.Item, base: str, seed: int) -> dict[str, Detector]:
    """Detectors of a kind that was fitted on a series' prefix, by name."""
    estimator = KDDetector(
        detector="student" if base == "autoencoders" else base,
        window_size=None if base == "classifier" else WINDOW,
        stride=1,
        random_state=seed,
        false_alarm_rate=0.1,
    ).fit(item.rows[: item.prefix])
    if base == "autoencoders":
        return {"teacher": estimator.teacher_, "student": estimator.detector_}
    return {base: estimator.detector_}


def variants(kind: str, detector: Detector) -> Iterator[tuple[str, str, Any]]:
    """Names, forms and what `stored` gives of all that is derived from a detector."""
    for name, change in SMALLER.get(kind, {kind: lambda model: model}).items():
        smaller = change(detector.model)
        for form in forms_of(name, smaller):
            yield name, form, stored(smaller, form)


def measure(
    item: tsbad.Item, base: str, seed: int, detectors: Mapping[str, Detector]
) -> Iterator[dict[str, Any]]:
    """The lines of a kind's variants on a series, under the Gaussian and τ of the fit."""
    known = dict[str, tuple[int, float]]()
    for kind, detector in detectors.items():
        rest = numbers(detector) - detector.model.parameters
        for name, form, (model, count, size) in variants(kind, detector):
            changed = detector._replace(model=model)
            file = "int8" if form == "int8" else "float32"
            if form == file:
                # Weights of 8 bits don't change where they are rounded once more.
                content = onnx_file(changed, 0, quantize=QUANTIZE[file])
                known[file] = len(content), window_milliseconds(content)
            scores = tsbad.row_table(changed, item.rows)["score"].to_numpy()
            above = scores > detector.thresholds[0].tau
            yield {
                "file": item.file,
                "collection": item.collection,
                "base": base,
                "seed": seed,
                "name": name,
                "form": form,
                "vus_pr": vus_pr(item.labels, scores, window=item.window),
                "average_precision": average_precision_score(item.labels, scores),
                "f1": f1_score(item.labels, above, zero_division=0.0),
                "numbers": count + rest,
                "bytes": size + 4 * rest,
                "file_bytes": known[file][0] if form == file else None,
                "milliseconds": known[file][1],
            }


def run(items: Sequence[tsbad.Item], output: Path, seeds: Sequence[int]) -> None:
    """Measures what the output lacks; the lines of a kind as soon as they are known."""
    for seed in seeds:
        for item in items:
            lines = tsbad.read(output)
            done = {(one["file"], one["base"], one["seed"]) for one in lines}
            for base in BASES:
                if (item.file, base, seed) in done:
                    continue
                lines = [*measure(item, base, seed, fitted(item, base, seed))]
                with output.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(line) + "\n" for line in lines)
                print(item.file, base, seed, flush=True)


def means(lines: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A line a variant: means over the series (and seeds) that all kinds have.

    Variants that not all of these series have are left out, such as a projection of pca in
    16 bits, which is large enough for that where there are many channels.
    """
    found = pd.DataFrame(lines)
    kinds = found.groupby(["file", "seed"])["base"].nunique()
    whole = kinds.index[kinds == len(BASES)]
    found = found.set_index(["file", "seed"]).loc[whole].reset_index()
    variants = found.groupby(["base", "name", "form"], sort=False)
    table = variants[[*MEASURES, "numbers", "bytes", "file_bytes"]].mean()
    # A median, since other programs may run at the same time.
    table["milliseconds"] = variants["milliseconds"].median()
    table.insert(0, "series", variants["file"].nunique())
    table = table[table["series"] == table["series"].max()].reset_index()
    # As the table shows it: less than a thousandth is no gain.
    table["front"] = tsbad.on_front(table["bytes"], table["vus_pr"].round(3))
    return table.sort_values(["bytes", "vus_pr"], ignore_index=True)


def markdown(table: pd.DataFrame) -> str:
    """The table of a run; variants on the front are bold."""
    heads = [
        "detector",
        "weights",
        "VUS-PR",
        "AP",
        "F1",
        "numbers",
        "bytes",
        "ONNX",
        "ms",
    ]
    lines = [f"| {' | '.join(heads)} |", "| --- | --- |" + " ---: |" * 7]
    for row in table.itertuples():
        name = f"**{row.name}**" if row.front else row.name
        exported = "–" if np.isnan(row.file_bytes) else f"{row.file_bytes:,.0f}"
        lines.append(
            f"| {name} | {row.form} | {row.vus_pr:.3f} | {row.average_precision:.3f} | "
            f"{row.f1:.3f} | {row.numbers:,.0f} | {row.bytes:,.0f} | {exported} | "
            f"{row.milliseconds:.2f} |"
        )
    return "\n".join(lines)


COLOURS = {
    "classifier": "tab:blue", "autoencoders": "tab:orange", "memory": "tab:green",
    "kmeans": "tab:olive", "cnn_forecast": "tab:purple", "gru_forecast": "tab:pink",
    "mahalanobis": "black", "moving_average": "tab:red", "pca": "tab:brown",
}  # fmt: skip
MARKS = {
    "float32": "o", "float16": "D", "int8": "s", "pruned 50 %": "v",
    "pruned 80 %": "x", "half rank": "^",
}  # fmt: skip


def plot(table: pd.DataFrame) -> Figure:
    """VUS-PR over bytes: a mark a variant, a line through the front, its names."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    front = table[table["front"]].sort_values("bytes")
    axes.step(
        front["bytes"], front["vus_pr"], where="post", color="0.6", lw=1.5, zorder=1
    )
    for row in table.itertuples():
        axes.plot(
            row.bytes, row.vus_pr, MARKS[row.form], color=COLOURS[row.base],
            markersize=8 if row.front else 6, alpha=1 if row.front else 0.65,
        )  # fmt: skip
    for row in front.itertuples():
        last = row.bytes == front["bytes"].max()
        axes.annotate(
            f"{row.name}, {row.form}",
            (row.bytes, row.vus_pr),
            xytext=(0, 12) if last else (-10, 0),
            textcoords="offset points",
            ha="left" if last else "right",
            va="center",
            fontsize=8,
        )
    handles = [
        axes.plot([], [], mark, color=colour, label=label)[0]
        for label, colour, mark in (
            *((base, colour, "o") for base, colour in COLOURS.items()),
            *((form, "0.3", mark) for form, mark in MARKS.items()),
        )
    ]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    axes.set(xscale="log", xlabel="bytes of all numbers that score", ylabel="VUS-PR")
    axes.margins(y=0.15)
    # Room for the labels to the left.
    axes.set_xlim(left=table["bytes"].min() / 6)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Reads flags, measures or reports."""
    parser = tsbad.make_parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="lines of the run")
    parser.add_argument("--output", type=Path, help="report instead of measuring")
    given = parser.parse_args()
    if given.output is None:
        every = tsbad.rebuilt(given.smd, given.nasa, "choose")
        items = {
            item.file: item._replace(rows=item.rows[:ROWS], labels=item.labels[:ROWS])
            for item in every
            if item.file in FILES
        }
        seeds = [int(seed) for seed in given.seeds.split(",")]
        run([items[name] for name in FILES if name in items], given.run, seeds)
        return
    table = means(tsbad.read(given.run)).round(5)
    text = table.to_csv(index=False)
    write_text(given.output.with_suffix(".csv"), text)
    plot(table).savefig(given.output.with_suffix(".png"), dpi=110)
    print(markdown(table))


if __name__ == "__main__":
    main()
