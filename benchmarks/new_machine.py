"""What a teacher from other machines gives a machine with few training rows.

    python benchmarks/new_machine.py --name=smd --root=data/smd --output=new_machine.jsonl

Each entity in turn is the new machine, of whose training rows the newest 200 to 4,000 are
known. The teacher is a classifier of other entities' windows, each scaled by its own
range. *alone* learns from the new machine's rows, *distilled* as well from the teacher's
soft labels (`kdjax.fit_classifier(…, teacher=…)`), *self* from those of *alone*; *joint*
learns from the windows of both without a teacher. A line of the output is an entity, a
number of rows and a seed: VUS-PR of the test rows. A rerun continues; `--table` prints
means over entities and seeds.

New machines are those whose labels may choose settings, each with a teacher from the
rest of them, or with `--list=evaluation` those whose labels report only; the teacher
then learns from all that may choose.
"""

import argparse
import functools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tsbad import HERE, LATEST, OTHERS, append, covering_scores, read, vus_window

import kdjax
from kdjax.data.datasets import load_benchmark
from kdjax.data.windowing import spread_evenly
from kdjax.metrics import vus_pr

# The entities whose labels may choose (benchmarks/tsbad/README.md), and the others.
CHOOSING = {
    "smd": ("machine-1-4", "machine-1-6", "machine-1-8", "machine-3-5"),
    "asd": ("omi-2", "omi-3", "omi-5", "omi-8"),
    "jumpstarter2": tuple(f"service{i}" for i in (0, 16, 2, 24, 28, 6)),
}
LISTED = pd.read_csv(HERE / "series.csv").query("collection == 'SMD'")
JUDGING = {
    "smd": tuple(LISTED.query("list == 'evaluation'")["entity"]),
    "asd": OTHERS["ASD"],
    "jumpstarter2": OTHERS["JumpStarter2"],
}
LENGTH, MOST = 48, 1500
OPTIONS: dict[str, Any] = {"networks": 2, "channels": 8, "steps": 1000}
Rows = np.ndarray


def windows_of(rows: Rows, most: int = MOST) -> np.ndarray:
    """At most so many windows of rows, spread evenly, `[N, D] -> [M, L, D]`."""
    found = np.asarray(kdjax.windows(rows, length=LENGTH))
    return found[spread_evenly(len(found), most)]


def in_own_range(rows: Rows) -> Rows:
    """Rows `[N, D]` scaled by their least and largest values."""
    return np.asarray(kdjax.apply_scaler(kdjax.fit_scaler(rows, method="minmax"), rows))


def row_scores(params: dict[str, Any], rows: Rows) -> Rows:
    """The mean score of the windows that cover a row, `[N, D] -> [N]`."""
    return covering_scores(kdjax.classifier_scores, params, rows, LENGTH)


def lines(
    train: dict[str, Rows], test: dict[str, tuple[Rows, Rows]], teaching: Collection[str],
    counts: list[int], seed: int, done: set[tuple[Any, ...]],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Measures what is not `done`: entity, rows, seed and the VUS-PR of each model.

    A teacher learns from the entities `teaching` but the new one.
    """
    options = OPTIONS | {"seed": seed}

    @functools.cache
    def taught_by(others: tuple[str, ...]) -> tuple[Rows, dict[str, Any]]:
        known = [
            windows_of(in_own_range(train[o]), MOST // len(others)) for o in others
        ]
        windows = np.concatenate(known)
        return windows, kdjax.fit_classifier(windows, **options)

    for name, (rows, labels) in test.items():
        missing = [count for count in counts if (name, count, seed) not in done]
        if not missing:
            continue
        known, teacher = taught_by(tuple(other for other in teaching if other != name))
        window = vus_window(np.concatenate([train[name], rows])[:, 0])
        for count in missing:
            scaler = kdjax.fit_scaler(train[name][-count:], method="minmax")
            own = windows_of(
                np.asarray(kdjax.apply_scaler(scaler, train[name][-count:]))
            )
            alone = kdjax.fit_classifier(own, **options)
            both = np.concatenate([own, known])
            models = {"alone": alone, "joint": kdjax.fit_classifier(both, **options)}
            for kind, known_by in {"self": alone, "distilled": teacher}.items():
                models[kind] = kdjax.fit_classifier(own, **options, teacher=known_by)
            scaled = np.asarray(kdjax.apply_scaler(scaler, rows))
            found = {
                kind: vus_pr(labels, row_scores(model, scaled), window=window)
                for kind, model in models.items()
            }
            yield {"entity": name, "rows": count, "seed": seed, **found}


def table(found: pd.DataFrame) -> str:
    """Means over entities by number of rows, and the gain with its standard error."""
    entities = found.groupby(["rows", "entity"]).mean(numeric_only=True)
    text = [
        "| rows | entities | alone | self | joint | distilled | distilled − alone |"
    ]
    text.append("| ---: " * 7 + "|")
    for count, own in entities.groupby("rows"):
        gain = own["distilled"] - own["alone"]
        means = own[["alone", "self", "joint", "distilled"]].mean()
        cells = [f"{count:,}", str(len(own)), *(f"{mean:.3f}" for mean in means)]
        text.append(f"| {' | '.join(cells)} | {gain.mean():+.3f} ± {gain.sem():.3f} |")
    return "\n".join(text)


def main() -> None:
    """Reads flags, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", choices=CHOOSING, required=True)
    parser.add_argument("--root", required=True, help="folder of the collection")
    parser.add_argument(
        "--list",
        choices=("choose", "evaluation"),
        default="choose",
        help="new machines",
    )
    parser.add_argument("--rows", default="200,500,1000,2000,4000")
    parser.add_argument("--seeds", default="0", help="numbers, by commas")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the table as well")
    given = parser.parse_args()
    teaching = CHOOSING[given.name]
    new = teaching if given.list == "choose" else JUDGING[given.name]
    entities = tuple(dict.fromkeys([*teaching, *new]))
    dataset = load_benchmark(given.name, root=given.root, entities=entities)
    train = {one.entity: one.values[-LATEST:] for one in dataset.train}
    test = {
        one.entity: (one.values, one.labels > 0)
        for one in dataset.test
        if one.entity in new
    }
    known = read(given.output)
    done = {(one["entity"], one["rows"], one["seed"]) for one in known}
    counts = [int(count) for count in given.rows.split(",")]
    for seed in map(int, given.seeds.split(",")):
        for line in lines(train, test, teaching, counts, seed, done):
            append(given.output, line)
    if given.table:
        print(table(pd.DataFrame(read(given.output))))


if __name__ == "__main__":
    main()
