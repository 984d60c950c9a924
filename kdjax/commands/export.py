"""Write a saved detector to one ONNX or StableHLO file.

The file holds scaler, model, scores, threshold and contributions. Before it is written,
its output is compared with the detector's on real windows.
"""

from pathlib import Path

from kdjax.commands import common
from kdjax.commands.common import Flag
from kdjax.errors import check_choice
from kdjax.io.files import check_detector_folder

USAGE = "--detector=DIR --output=FILE [--format=onnx|stablehlo]"
EXAMPLE = f"kdjax export {common.EXAMPLE_DETECTOR} --format=onnx --output=plant.onnx"
FLAGS = {
    "Input and output": (
        common.DETECTOR,
        Flag("output", "FILE", None, "File to write."),
        Flag("format", "FORMAT", "onnx", "onnx or stablehlo."),
        Flag("quantize", "TYPE", "none", "int8 stores weights in 8 bits; onnx only."),
        common.ENTITY,
    ),
    "Rows for the comparison": (
        Flag("data", "FILE", "", "CSV, Parquet or .npy; the training file by default."),
        *common.COLUMNS,
    ),
}


def main(arguments: list[str], flags: common.Flags) -> None:
    """Runs the verb."""
    common.no_arguments("export", arguments)
    detector = common.required("export", flags, "detector")
    output = common.required("export", flags, "output")
    check_detector_folder(Path(detector))
    names = ("format", "entity", "quantize", "data")
    options = common.chosen(flags, *names)
    from kdjax.export.container import FORMATS, QUANTIZE

    check_choice("--format", flags.format, FORMATS)
    check_choice("--quantize", flags.quantize, QUANTIZE)
    with common.reading(flags, common.COLUMNS) as reading:
        if flags.data:
            common.check_rows(flags.data, detector, reading | {"missing": "mask"})
        common.start_jax()
        from kdjax.export.files import export_file

        export_file(detector, output=output, log=common.say, **options, **reading)
