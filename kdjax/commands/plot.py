"""Draw a file of scores beside its data: signals, window score with τ, alarms.

One HTML file, which opens offline; drag in it to zoom. Scores that were written with
--contributions show what each channel contributed, and a label column is drawn if named.
"""

from pathlib import Path

from kdjax.commands import common
from kdjax.commands.common import Flag
from kdjax.io.files import check_detector_folder

USAGE = "SCORES --data=FILE --output=FILE.html"
EXAMPLE = "kdjax plot scores.csv --data=plant.csv --output=scores.html"
FLAGS = {
    "Input and output": (
        Flag("data", "FILE", "", "The file that was scored."),
        Flag("output", "FILE", None, "An .html file."),
        Flag(
            "detector", "DIR", None, "Read the data as this detector's training file."
        ),
        Flag("entity", "NAME", None, "The entity to draw; the first few by default."),
    ),
    "Columns and cells, as for score": common.READING,
}


def main(arguments: list[str], flags: common.Flags) -> None:
    """Runs the verb."""
    scores = common.one_argument("plot", arguments, "a file of scores")
    common.required("plot", flags, "data")
    common.required("plot", flags, "output")
    if flags.detector:
        check_detector_folder(Path(flags.detector))
    options = common.chosen(flags, "data", "output", "detector", "entity")
    with common.reading(flags, common.READING) as reading:
        from kdjax.scoring.plots import plot_file

        plot_file(scores, log=common.say, **options, **reading)
