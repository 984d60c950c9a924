"""What each part of the default classifier brings: the same without it.

    python benchmarks/levers.py --smd=data/smd --nasa=data/smap_msl --asd=data/asd \
        --jumpstarter2=data/jumpstarter2 --seeds=0,1,2 --output=levers.jsonl --table

On series of `tsbad` and entities of ASD and JumpStarter2 whose labels may choose settings.
A line of the output is a series, a seed and a variant: VUS-PR by the protocol of
`tsbad`. Fewer networks, one view and no excess are derived from the fit of the four
networks; the other variants train two networks, to be compared with `two networks`.
A rerun continues; `--table` prints the differences with 95 % bootstrap intervals
over series, seeds averaged first.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
import pandas as pd
from new_machine import CHOOSING
from tsbad import (
    Item,
    append,
    covering_scores,
    entities_of,
    make_parser,
    read,
    rebuilt,
)

import kdjax
from kdjax.data import disturb
from kdjax.evaluation.intervals import paired_difference
from kdjax.metrics import vus_pr
from kdjax.models.classifier import classifier_points

SERIES = {"MSL": 2, "SMAP": 3, "SMD": 2}  # of each collection, spread evenly
HELD = 0.15  # share of the prefix that a detector can be calibrated on
Params = dict[str, Any]
WHOLE, PAIR = "four networks", "two networks"


def length_of(item: Item) -> int:
    """L, as the estimator chooses it."""
    return min(96, item.prefix // 8)


def fitted(rows: np.ndarray, length: int, seed: int, **options: Any) -> Params:
    """A classifier of all windows of rows `[N, D]`."""
    found = np.asarray(kdjax.windows(rows, length=length))
    return kdjax.fit_classifier(found, seed=seed, **options)


def some(params: Params, chosen: slice) -> Params:
    """A classifier of some of its networks."""
    networks = jax.tree.map(lambda leaf: leaf[chosen], params["networks"])
    return params | {"networks": networks, "level": params["level"][chosen]}


def row_scores(params: Params, item: Item, length: int, excess: bool) -> np.ndarray:
    """Mean over the windows that cover a row, `[N]`; with what leaves the range or not."""
    score = classifier_points if excess else kdjax.classifier_scores
    return covering_scores(score, params, item.rows, length)


def variants(item: Item, seed: int) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Names and functions that give the row scores."""
    rows, length = item.rows[: item.prefix].astype(np.float32), length_of(item)
    kept: list[Params] = []

    def whole() -> Params:
        if not kept:
            kept.append(fitted(rows, length, seed))
        return kept[0]

    def derived(chosen: slice, excess: bool = True) -> Callable[[], np.ndarray]:
        return lambda: row_scores(some(whole(), chosen), item, length, excess)

    def trained(own: np.ndarray, **patched: Any) -> Callable[[], np.ndarray]:
        def scores() -> np.ndarray:
            with contextlib.ExitStack() as stack:
                for name, value in patched.items():
                    stack.enter_context(patch.object(disturb, name, value))
                params = fitted(own, length, seed, networks=2)
            return row_scores(params, item, length, excess=True)

        return scores

    yield WHOLE, derived(slice(None))
    yield PAIR, derived(slice(2))
    yield "one network, values", derived(slice(1))
    yield "values alone", derived(slice(0, None, 2))
    yield "values less their mean alone", derived(slice(1, None, 2))
    yield "no excess", derived(slice(None), excess=False)
    yield "two, channels alike", trained(rows, _FIRST=0.0)
    simple = ("level", "noise", "spike")
    yield "two, three kinds of disturbances", trained(rows, KINDS=simple)
    yield "two, first 85 % of the prefix", trained(rows[: int((1 - HELD) * len(rows))])


def items(roots: dict[str, str]) -> Iterator[Item]:
    """The series that are measured."""
    found = list(rebuilt(roots["SMD"], roots["nasa"], "choose"))
    for name, number in SERIES.items():
        own = [item for item in found if item.collection == name]
        yield from (own[i] for i in np.linspace(0, len(own) - 1, number).astype(int))
    for name in ("ASD", "JumpStarter2"):
        if roots[name]:
            yield from entities_of(name, roots[name], CHOOSING[name.lower()][:2])


def table(lines: list[dict[str, Any]]) -> str:
    """Means by variant, and the difference from what it was derived from."""
    frame = pd.DataFrame(lines)
    frame = frame.groupby(["variant", "file"], sort=False)["vus_pr"].mean().unstack()
    text = [
        "| variant | VUS-PR | compared with | difference |",
        "| --- | ---: | --- | ---: |",
    ]
    for name, own in frame.iterrows():
        base = PAIR if str(name).startswith(("two,", "one")) else WHOLE
        row = f"| {name} | {own.mean():.3f} |"
        if name != WHOLE:
            gain = paired_difference(list(own), list(frame.loc[base]))
            row += f" {base} | {gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}) |"
        else:
            row += " – | – |"
        text.append(row)
    return "\n".join(text)


def main() -> None:
    """Reads flags, measures, prints."""
    parser = make_parser(__doc__, seeds="0,1,2")
    parser.add_argument("--asd", default="", help="folder of ASD")
    parser.add_argument("--jumpstarter2", default="", help="folder of JumpStarter2")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the table as well")
    given = parser.parse_args()
    roots = {"SMD": given.smd, "nasa": given.nasa, "ASD": given.asd}
    roots["JumpStarter2"] = given.jumpstarter2
    done = {(one["file"], one["seed"], one["variant"]) for one in read(given.output)}
    for seed in map(int, given.seeds.split(",")):
        for item in items(roots):
            for name, scores in variants(item, seed):
                if (item.file, seed, name) in done:
                    continue
                quality = vus_pr(item.labels, scores(), window=item.window)
                line = {"file": item.file, "collection": item.collection}
                append(
                    given.output,
                    line | {"seed": seed, "variant": name, "vus_pr": quality},
                )
    if given.table:
        print(table(read(given.output)))


if __name__ == "__main__":
    main()
