"""Plot a file of scores with its data: signals, window scores with τ, alarms.

Writes one HTML file, which needs no network; drag in it to zoom. Contributions of the
channels are drawn if score ran with --contributions; labels with --label_column.
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
            "detector", "DIR", None, "Detector; data are read as its training file was."
        ),
        Flag("entity", "NAME", None, "Entity to draw; the first few by default."),
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
