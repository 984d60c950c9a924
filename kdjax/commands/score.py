"""Score each row of CSV, Parquet or .npy files with a saved detector.

One file is scored into a .csv or .parquet file; several files, or a folder, into a
folder, where complete outputs are not computed again. Events of alarms are written to
OUTPUT.events.csv. All paths may be s3://BUCKET/KEY; see docs/fleet.md.
"""

from pathlib import Path

from kdjax.commands import common
from kdjax.commands.common import Flag
from kdjax.errors import ConfigError
from kdjax.io.files import check_detector_folder
from kdjax.io.stores import check_store, is_remote

USAGE = "FILE|FOLDER … --detector=DIR --output=FILE|DIR"
EXAMPLE = f"kdjax score plant.csv {common.EXAMPLE_DETECTOR} --output=scores.csv"
FLAGS = {
    "Input and output": (
        common.DETECTOR,
        Flag("output", "PATH", None, "A .csv or .parquet file, or a folder."),
        Flag("shard", "I/N", "", "Score part I of N parts of the files, from 0."),
    ),
    "Columns and cells": common.READING,
    "Scores": (
        common.ENTITY,
        Flag("causal", "", False, "Score each row in the window that ends at it."),
        Flag("contributions", "", False, "Add a column of contributions per channel."),
        Flag("attribution", "METHOD", "",
             "How to divide scores among channels: correlation or conditional."),
    ),
    "Workers": common.EXECUTION,
}  # fmt: skip
# File endings of scores; any other output is a folder.
ENDINGS = (".csv", ".parquet")


def main(arguments: list[str], flags: common.Flags) -> None:
    """Runs the verb."""
    if not all(arguments or [""]):
        raise ConfigError("score needs a file to score, got nothing.")
    detector = common.required("score", flags, "detector")
    if Path(detector).is_file():
        check_detector_folder(Path(detector))  # of an ONNX file says what takes it
    output = _output(arguments, flags)
    one = Path(output).suffix in ENDINGS
    remote = [*filter(is_remote, [*arguments, detector, output])]
    options = {"detector": detector, "output": output, "log": common.say}
    options |= common.chosen(flags, "entity", "causal", "contributions", "attribution")
    for path in remote:
        check_store(path)
    if not is_remote(detector):
        check_detector_folder(Path(detector), fleets=True)
    execution = common.execution(flags)
    if one and execution["executor"] != "local":
        raise ConfigError(
            f"--executor={flags.executor} needs a folder of outputs: give one as --output."
        )
    with common.reading(flags, common.READING) as reading:
        if one and not remote:
            common.check_rows(arguments[0], detector, reading)
        common.start_jax(execution)
        from kdjax.scoring.files import score_file, score_fleet

        if one:
            score_file(arguments[0], **options, **reading)
        else:
            options |= execution
            score_fleet(arguments, shard=flags.shard, **options, **reading)


def _output(arguments: list[str], flags: common.Flags) -> str:
    """The output: a file for the scores of one file, a folder for those of several."""
    text, (first, *more) = common.required("score", flags, "output"), arguments
    output = Path(text)
    several = bool(more or flags.shard) or Path(first).is_dir()
    if is_remote(first) and not several:
        from kdjax.data.tables import SUFFIXES

        several = not first.lower().endswith(SUFFIXES)
    if several and output.suffix in ENDINGS:
        raise ConfigError(f"--output={text} must be a folder to score several files.")
    folder = several or text.endswith("/") or output.is_dir()
    if not folder and output.suffix not in ENDINGS:
        raise ConfigError(
            f"--output={text} must end in .csv or .parquet, or in / for a folder."
        )
    return text
