"""Writes the results of a finished run to docs/results, without their longest lists.

    python benchmarks/results.py --workdir=runs/smd --output=docs/results/smd.json

Keeps each entity's measures that compare models; leaves out measured false-alarm rates
and the worst training windows. Prints the tables for the document beside it.
"""

import argparse
import json
from pathlib import Path

from kdjax.evaluation.report import markdown_section
from kdjax.evaluation.tables import detection_table
from kdjax.io.files import write_text

KEPT = ("model", "entity", "threshold", "level", "f1", "average_precision", "vus_pr")
LEFT_OUT = ("rates", "worst_training_windows")


def main() -> None:
    """Reads, writes, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    results = json.loads((given.workdir / "results.json").read_text("utf-8"))
    results = {k: v for k, v in results.items() if k not in LEFT_OUT}
    results["settings"]["data"].pop("root")  # of one machine
    results["entities"] = [
        {key: row[key] for key in KEPT if key in row} for row in results["entities"]
    ]
    lines = json.dumps(results, allow_nan=False).replace('}, {"model"', '},\n{"model"')
    write_text(given.output, lines + "\n")
    print(markdown_section(detection_table(results)._replace(title="")))
    for row in results["paired"]:
        against = row.get("baseline") or row.get("control") or row["against"]
        interval = "no interval"
        if row["low"] is not None:
            interval = f"{row['low']:+.3f} to {row['high']:+.3f}"
        print(
            f"{row['model']} − {against}, {row['metric']} ({row['threshold']}, "
            f"{row['level']}): {row['difference']:+.3f} ({interval}), "
            f"{row['entities']} entities"
        )
    print(results["recommendation"]["text"])


if __name__ == "__main__":
    main()
