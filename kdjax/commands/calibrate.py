"""Give a saved detector a new threshold from clean rows, without training.

An entity that the detector doesn't know also gets a scaler and a Gaussian.
"""

from pathlib import Path

from kdjax.commands import common
from kdjax.commands.common import Flag
from kdjax.errors import ConfigError
from kdjax.io.files import check_detector_folder, check_replaceable

USAGE = "FILE --detector=DIR --output=DIR"
EXAMPLE = f"kdjax calibrate plant.csv {common.EXAMPLE_DETECTOR} --output=runs/again"
FLAGS = {
    "Input and output": (
        common.DETECTOR,
        Flag("output", "DIR", None, "Folder of the new detector; may be --detector."),
    ),
    "Columns and cells": common.READING,
    "Threshold": (
        Flag("entity", "NAME", None, "Entity of rows without an entity column."),
        Flag("confirmed_normal", "SPANS", "",
             "CSV of confirmed normal spans of FILE; columns as in --exclude."),
        Flag("config.threshold.FIELD", "VALUE", None,
             "Changes a field of the threshold, such as false_alarm_rate."),
    ),
}  # fmt: skip


def main(arguments: list[str], flags: common.Flags) -> None:
    """Runs the verb."""
    what = "a file of clean rows (normal operation, best recorded after training)"
    path = common.one_argument("calibrate", arguments, what)
    detector = common.required("calibrate", flags, "detector")
    output = common.required("calibrate", flags, "output")
    changes = common.config_changes(flags)
    foreign = [name for name in changes if not name.startswith("threshold.")]
    if foreign or common.config_file(flags)[0]:
        raise ConfigError(
            "calibrate keeps the detector's settings, except --config.threshold.FIELD: "
            f"remove {', '.join(foreign) or '--config'}."
        )
    check_detector_folder(Path(detector))
    check_replaceable(Path(output))
    threshold = {name.split(".", 1)[1]: value for name, value in changes.items()}
    with common.reading(flags, common.READING) as reading:
        common.check_rows(path, detector, reading)
        common.start_jax()
        from kdjax.experiment.recalibrate import calibrate_file

        calibrate_file(
            path,
            detector=detector,
            output=output,
            log=common.say,
            threshold=threshold,
            entity=flags.entity,
            confirmed_normal=flags.confirmed_normal,
            **reading,
        )
