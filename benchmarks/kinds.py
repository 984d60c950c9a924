"""Further kinds of detectors: chosen by ten trials each, then judged on other series.

    python benchmarks/kinds.py --choose --smd=data/smd --nasa=data/smap_msl --output=kinds
    python benchmarks/kinds.py --judge  --smd=data/smd --nasa=data/smap_msl --output=kinds
    python benchmarks/kinds.py --time --table --output=kinds

Series are those of `benchmarks/tsbad.py` whose labels may choose (list `choose`), by its
protocol: fitted on the prefix, all rows scored, VUS-PR with the benchmark's window. Six
series choose (`choosing`; after two trials the two of them on which options differ), up
to 20 others judge (`judging`). Trials are lines of OUTPUT_choose.jsonl, what is judged
(seeds 0, 1 and 2) of OUTPUT_judge.jsonl, milliseconds of OUTPUT_time.jsonl; a rerun
continues. `--table` prints Markdown, with the fronts of quality against numbers and
against milliseconds.
"""

import itertools
import json
import statistics
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from kinds_models import KINDS, OWN, Scorer, in_chunks
from tsbad import Item, append, make_parser, on_front, read, rebuilt

from kdjax import apply_scaler, fit_scaler, row_scores
from kdjax.data.windowing import gather
from kdjax.metrics import vus_pr

TRIALS = 10
SEEDS = (0, 1, 2)
UNSEEDED = ("fourier", "mahalanobis", "moving_average", "memory")
JUDGED = 20
FULL = 2  # trials on all six series
DECIDING = ("MSL_M-4", "SMAP_D-9")
COVERING = 8  # windows that cover a row


def trials(name: str) -> list[dict[str, Any]]:
    """The options of a kind's trials, drawn at random; no two are alike."""
    space = KINDS[name].space
    combinations = list(itertools.product(*space.values()))
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    places = rng.permutation(len(combinations))[:TRIALS]
    return [dict(zip(space, combinations[place], strict=True)) for place in places]


def choosing(items: Sequence[Item]) -> list[Item]:
    """Two short series of MSL, three of SMAP, one of SMD, each of another subsystem."""
    chosen = []
    for collection, number in (("MSL", 2), ("SMAP", 3), ("SMD", 1)):
        own = [item for item in items if item.collection == collection]
        own.sort(key=lambda item: len(item.rows))
        letters: dict[str, Item] = {}
        for item in own:
            letters.setdefault(subsystem(item), item)
        chosen += list(letters.values())[:number]
    return chosen


def subsystem(item: Item) -> str:
    """The letter of a channel of MSL or SMAP, by its place in the list; `m` of SMD."""
    return ENTITIES[item.file][0]


def deciding(items: Sequence[Item]) -> list[Item]:
    """Those of the six on which options differ, by the first trials: all trials run on them."""
    return [item for item in choosing(items) if item.file in DECIDING]


def judging(items: Sequence[Item]) -> list[Item]:
    """Others: all of MSL and SMD, and of SMAP as many as fill the number, spread evenly.

    Collections take turns, so that a run that ends early has some of each.
    """
    used = {item.file for item in choosing(items)}
    others = [item for item in items if item.file not in used]
    own = {
        name: [item for item in others if item.collection == name]
        for name in ("SMD", "MSL", "SMAP")
    }
    number = JUDGED - len(own["SMD"]) - len(own["MSL"])
    places = np.linspace(0, len(own["SMAP"]) - 1, number).round().astype(int)
    own["SMAP"] = [own["SMAP"][place] for place in places]
    turns = [
        (place / len(part), item)
        for part in own.values()
        for place, item in enumerate(part)
    ]
    return [item for _, item in sorted(turns, key=lambda turn: turn[0])]


_TABLE = pd.read_csv(Path(__file__).parent / "tsbad" / "series.csv")
ENTITIES = dict(zip(_TABLE["file"], _TABLE["entity"], strict=True))


def fitted(
    item: Item, name: str, options: dict[str, Any], seed: int
) -> tuple[Scorer, np.ndarray]:
    """A kind that was fitted on an item's prefix, and all rows, scaled by the prefix."""
    fit = KINDS[name].fit if name in KINDS else OWN[name][0]
    scaler = fit_scaler(item.rows[: item.prefix], method="minmax")
    rows = apply_scaler(scaler, item.rows)
    return fit(rows[: item.prefix], options, seed), rows


def scores_of(scorer: Scorer, rows: np.ndarray) -> np.ndarray:
    """Mean score of each row over about 8 windows that cover it, `[N, D] -> [N]`."""
    last = len(rows) - scorer.length
    stride = max(1, scorer.length // COVERING)
    starts = np.unique(np.append(np.arange(0, last, stride), last))
    points = in_chunks(scorer.points, gather(rows, starts, scorer.length))
    return row_scores(points, starts=starts, rows=len(rows))


def measure(
    item: Item, name: str, options: dict[str, Any], seed: int
) -> dict[str, Any]:
    """A line: quality of a kind on an item."""
    started = time.perf_counter()
    scorer, rows = fitted(item, name, options, seed)
    scores = scores_of(scorer, rows)
    return {
        **job_of(item, name, options, seed),
        "vus_pr": vus_pr(item.labels, scores, window=item.window),
        "numbers": scorer.numbers,
        "seconds": round(time.perf_counter() - started, 2),
    }


def measure_time(
    item: Item, name: str, options: dict[str, Any], seed: int
) -> dict[str, Any]:
    """A line: milliseconds of one window, the median of 200 calls of a compiled function."""
    scorer, rows = fitted(item, name, options, seed)
    points, window = jax.jit(scorer.points), rows[None, : scorer.length]
    taken = []
    for _ in range(220):
        started = time.perf_counter()
        points(window).block_until_ready()
        taken.append(time.perf_counter() - started)
    milliseconds = round(1e3 * statistics.median(taken[20:]), 4)
    return job_of(item, name, options, seed) | {"milliseconds": milliseconds}


def job_of(item: Item, name: str, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """What a line says of its job."""
    return {
        "file": item.file,
        "collection": item.collection,
        "kind": name,
        "options": options,
        "seed": seed,
    }


def key(line: dict[str, Any]) -> tuple[str, ...]:
    """What tells lines apart."""
    options = json.dumps(line["options"], sort_keys=True)
    return line["file"], line["kind"], options, str(line["seed"])


Job = tuple[Item, str, dict[str, Any], int]


def run(
    jobs: Iterable[Job], output: Path, measured: Callable[..., dict[str, Any]]
) -> None:
    """Measures what the output lacks; a line as soon as it is known."""
    done = set(map(key, read(output)))
    for job in jobs:
        if key(job_of(*job)) not in done:
            append(output, measured(*job))


def best(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The options of each kind with the highest mean over the series that decide."""
    frame = pd.DataFrame(
        {
            "kind": line["kind"],
            "options": json.dumps(line["options"]),
            "vus_pr": line["vus_pr"],
        }
        for line in lines
        if line["file"] in DECIDING
    )
    means = frame.groupby(["kind", "options"], sort=False)["vus_pr"].mean()
    found = means.groupby("kind").idxmax()
    return {name: json.loads(options) for name, options in found}


def front(frame: pd.DataFrame, cost: str, quality: str) -> set[str]:
    """Names that none beats: no other is as good at no more cost, and better in one."""
    return set(map(str, frame.index[on_front(frame[cost], frame[quality])]))


def table(lines: Sequence[dict[str, Any]], times: Sequence[dict[str, Any]]) -> str:
    """Markdown: quality by collection, mean and range over seeds, costs, fronts.

    Only series that every kind has are counted.
    """
    frame = pd.DataFrame(lines)
    kinds = frame["kind"].nunique()
    complete = frame.groupby("file")["kind"].nunique() == kinds
    frame = frame[frame["file"].isin(complete.index[complete])]
    # Seeds that a kind has for all of these series.
    runs = frame.groupby(["kind", "seed"])["file"].transform("nunique")
    frame = frame[runs == complete.sum()]
    shape = ["kind", "collection"]
    found = frame.groupby(shape)[["numbers"]].median()
    by_seed = frame.groupby([*shape, "seed"])["vus_pr"].mean().groupby(shape)
    found["vus_pr"] = by_seed.mean()
    found["low"], found["high"] = by_seed.min(), by_seed.max()
    times_of = pd.DataFrame(times).groupby("kind")["milliseconds"].median()
    found["ms"] = found.index.get_level_values("kind").map(times_of)
    fronts: dict[str, list[str]] = {str(kind): [] for kind in frame["kind"].unique()}
    for collection, own in found.groupby("collection"):
        for cost in ("numbers", "ms"):
            for kind in front(own.droplevel("collection"), cost, "vus_pr"):
                fronts[kind].append(f"{collection} {cost}")
    counts = frame.drop_duplicates("file")["collection"].value_counts().sort_index()
    heads = [f"{name} ({count})" for name, count in counts.items()]
    text = [
        f"| kind | {' | '.join(heads)} | numbers | ms | fronts |",
        "| --- |" + " ---: |" * (len(heads) + 2) + " --- |",
    ]
    order = found["vus_pr"].groupby("kind").mean().sort_values(ascending=False)
    for kind in map(str, order.index):
        own = found.loc[kind]
        cells = []
        for collection in counts.index:
            row = own.loc[collection]
            spread = f" ({row['low']:.3f}–{row['high']:.3f})"
            cells.append(
                f"{row['vus_pr']:.3f}{spread if row['high'] > row['low'] else ''}"
            )
        cells.append(" / ".join(f"{n:,.0f}" for n in own["numbers"]))
        cells.append(f"{own['ms'].iloc[0]:.2f}")
        cells.append(", ".join(fronts[kind]) or "none")
        text.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(text)


def main() -> None:
    """Reads flags, measures, prints."""
    parser = make_parser(__doc__, seeds=",".join(map(str, SEEDS)))
    parser.add_argument("--choose", action="store_true", help="run the trials")
    parser.add_argument("--judge", action="store_true", help="run the chosen options")
    parser.add_argument("--time", action="store_true", help="time the chosen options")
    parser.add_argument("--table", action="store_true", help="print what was judged")
    parser.add_argument("--kinds", default=",".join([*KINDS, *OWN]), help="by commas")
    parser.add_argument("--series", type=int, default=JUDGED, help="how many judge")
    parser.add_argument("--output", required=True, help="how the files' names begin")
    given = parser.parse_args()
    names = given.kinds.split(",")
    tried, judged, timed = (
        Path(f"{given.output}_{part}.jsonl") for part in ("choose", "judge", "time")
    )
    items = []
    if given.choose or given.judge:
        items = list(rebuilt(given.smd, given.nasa, "choose"))
    if given.choose:
        jobs = [
            (item, name, trials(name)[number], 0)
            for number in range(TRIALS)
            for name in names
            if name in KINDS
            for item in (choosing(items) if number < FULL else deciding(items))
        ]
        run(jobs, tried, measure)
    options = best(read(tried)) | {name: own for name, (_, own) in OWN.items()}
    if given.judge:
        seeds = [int(seed) for seed in given.seeds.split(",")]
        jobs = [
            (item, name, options[name], seed)
            for seed in seeds
            for item in judging(items)[: given.series]
            for name in names
            if seed == seeds[0] or name not in UNSEEDED
        ]
        run(jobs, judged, measure)
    if given.time:
        noise = np.random.default_rng(0).normal(size=(1000, 25))  # as wide as SMAP
        item = Item("noise", "noise", noise, np.zeros(1000, bool), 800, 100)
        # It takes long to train, and the time of a window is the same without.
        options["classifier"] = options["classifier"] | {"steps": 2}
        run([(item, n, options[n], 0) for n in names], timed, measure_time)
    if given.table:
        print(json.dumps({name: options[name] for name in names}, indent=1))
        print(table(read(judged), read(timed)))


if __name__ == "__main__":
    main()
