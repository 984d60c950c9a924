"""Quality of a student against what it costs, from a finished sweep of shapes.

    python launch.py sweep --config=configs/frontier.py --workdir=runs/frontier
    python benchmarks/frontier.py --workdir=runs/frontier --output=docs/results/frontier

Writes OUTPUT.csv, a line a student: its shape and seed, whether it was distilled, what it
costs, and its quality as means over entities; OUTPUT.png, a measure over each cost; and
OUTPUT.json with the shared settings and the machine. Prints a table of means over seeds.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from kdjax.experiment.sweeps.design import DONE, SEED
from kdjax.experiment.sweeps.report import COSTS, SHAPE
from kdjax.experiment.workdir import read_json
from kdjax.io.environment import describe_environment
from kdjax.io.files import write_text

ALPHA = "distill.alpha"
MEASURES = (
    "f1_oracle",
    "f1_conformal",
    "average_precision",
    "point_average_precision",
    "vus_pr",
    "pooled_f1_oracle",
    "pooled_f1_conformal",
    "validation_loss",
)
SHOWN = ("f1_oracle", "f1_conformal", "point_average_precision", "vus_pr")


def students(members: pd.DataFrame) -> pd.DataFrame:
    """A line a student: means over its entities, the smallest shapes first.

    Raises:
        ValueError: a member has failed, so that its shape would be measured by the others alone.
    """
    failed = members[members["status"] != DONE]
    if len(failed):
        raise ValueError(f"failed members: {sorted(set(failed['member']))}")
    found = members.groupby([SHAPE, ALPHA, SEED], sort=False, as_index=False).agg(
        entities=("entity", "nunique"),
        **{name: (name, "mean") for name in (*COSTS, *MEASURES)},
    )
    found.insert(0, "hidden", found.pop(SHAPE).astype(str).str.replace(",", "+"))
    found.insert(1, "distilled", found.pop(ALPHA) > 0)
    whole = {"parameters": np.int64, "bytes": np.int64}
    # Files of one shape differ by some bytes of their metadata.
    found = found.round({name: 0 for name in whole}).astype(whole)
    return found.sort_values(["parameters", "distilled", "seed"], ignore_index=True)


def table(found: pd.DataFrame) -> str:
    """Means over seeds with their standard deviations, as Markdown."""
    lines = [
        "| hidden | distilled | parameters | bytes | ms | "
        + " | ".join(SHOWN)
        + " |\n| --- | --- | "
        + " | ".join(["---:"] * (3 + len(SHOWN)))
        + " |"
    ]
    for (hidden, distilled), own in found.groupby(["hidden", "distilled"], sort=False):
        costs = own[[*COSTS]].mean()
        cells = [f"{own[m].mean():.3f} ± {own[m].std(ddof=1):.3f}" for m in SHOWN]
        lines.append(
            f"| {hidden} | {'yes' if distilled else 'no'} | {costs['parameters']:,.0f} | "
            f"{costs['bytes']:,.0f} | {costs['milliseconds']:.2f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def plot(found: pd.DataFrame, measure: str) -> Figure:
    """The measure over each cost: a dot a student, a line through the means of a shape."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, len(COSTS), sharey=True)
    for place, (cost, title) in zip(axes, COSTS.items(), strict=True):
        for distilled, own in found.groupby("distilled"):
            (dots,) = place.plot(own[cost], own[measure], ".", alpha=0.6, markersize=5)
            line = own.groupby("hidden")[[cost, measure]].mean().sort_values(cost)
            label = "distilled" if distilled else "without a teacher"
            color = dots.get_color()
            place.plot(line[cost], line[measure], color=color, lw=1.2, label=label)
        place.set(xscale="log", xlabel=title)
        # Labels that fit whether a cost spans one decade or three.
        place.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        place.xaxis.set_major_formatter(
            "{x:g}" if cost == "milliseconds" else EngFormatter(sep="")
        )
        place.xaxis.set_minor_formatter(NullFormatter())
        place.grid(axis="y", alpha=0.3, linewidth=0.6)
        place.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(measure)
    axes[-1].legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Reads, writes, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--measure", default="vus_pr", choices=MEASURES)
    given = parser.parse_args()
    members = pd.read_csv(given.workdir / "members.csv")
    found = students(members)
    write_text(given.output.with_suffix(".csv"), found.to_csv(index=False))
    plot(found, given.measure).savefig(given.output.with_suffix(".png"), dpi=110)
    design = read_json(given.workdir / "sweep.json")
    design["base"]["data"].pop("root")
    settings = {"settings": design["base"], "environment": describe_environment()}
    write_text(given.output.with_suffix(".json"), json.dumps(settings, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
