"""Score rows from standard input as they arrive; write one JSON line for each.

Rows are CSV with a header, or one JSON object a line. Scores equal those of
`kdjax score --causal`. SIGTERM, SIGINT and the end of the input end the stream. The exit
code is 0; it is 2 if most lines were faulty, or if no row had a score at all or for long.

With --entity_column each entity, such as a machine, has a stream of its own.

To send messages of events, also across restarts (docs/alarms.md):
  kdjax stream --detector=DIR --state=FILE --on_alarm=webhook:https://host/alarms < ROWS
"""

import codecs
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from kdjax.commands import common
from kdjax.commands.common import Flag
from kdjax.errors import ConfigError, check_choice
from kdjax.io.files import check_detector_folder, check_state_kind, is_fleet
from kdjax.notify.outbox import receivers

_AT_HAND = 65_536  # most bytes that are read together, as many as a pipe holds

USAGE = "--detector=DIR [--state=FILE] < ROWS > ANSWERS"
EXAMPLE = f"kdjax stream {common.EXAMPLE_DETECTOR} < plant.csv > answers.jsonl"
FLAGS = {
    "Input and output": (
        common.DETECTOR._replace(help="Saved detector, or ONNX file with onnxruntime."),
        Flag("output", "FILE", None, "File to append to; standard output by default."),
        Flag("state", "FILE", None, "File of the state: resumed from, then updated."),
        Flag("on_error", "RULE", "skip", "Faulty lines: skip reports them, stop ends."),
        Flag(
            "most_open",
            "N",
            1000,
            "With --entity_column: most entities in memory; the rest are kept on disk.",
        ),
    ),
    "Alarms": (
        Flag(
            "on_alarm",
            "RECEIVER",
            (),
            "Where to send a message when an event begins and when it ends: webhook:URL,"
            " command:PROGRAM, file:PATH, mqtt://HOST/TOPIC or kafka://BROKERS/TOPIC. "
            "May be repeated.",
        ),
        Flag(
            "shelve",
            "FILE",
            "",
            "CSV of spans in which events that begin send no message: start, end, "
            "optional entity. Read again when it changes.",
        ),
        Flag("acknowledged", "FILE", "", "CSV of the ids of acknowledged events."),
    ),
    "Columns and cells": (*common.COLUMNS, common.EXCLUDE),
    "Threshold": (
        common.ENTITY,
        Flag("adaptive", "STEP", 0.0, "Step of an adaptive τ, such as 0.01; 0: off."),
        Flag("rolling", "SHARE", 0.0, "Share of windows above a rolling τ; 0: off."),
    ),
    "Execution": (
        Flag("backend", "NAME", "auto", "jax, onnxruntime, or auto: by --detector."),
    ),
}


def main(arguments: list[str], flags: common.Flags) -> None:
    """Runs the verb."""
    common.no_arguments("stream", arguments)
    detector = common.required("stream", flags, "detector")
    output = flags.output or sys.stdout
    if sys.stdin is None or output is None:
        # Python has None in place of a stream that the parent process closed.
        raise ConfigError(
            "stream needs an open standard input, and an open standard output or --output: "
            "one of them is closed."
        )
    if not Path(detector).is_file():  # an ONNX file is checked when it is loaded
        check_detector_folder(Path(detector), fleets=True)
    # Errors are reported before JAX starts.
    to = receivers(flags.on_alarm)
    if flags.state:
        fleet = is_fleet(detector) and not flags.entity
        check_state_kind(flags.state, several=bool(flags.entity_column) or fleet)
    for name in ("exclude", "shelve", "acknowledged"):
        given = flags[name].value
        if given and not Path(given).is_file():
            raise ConfigError(f"--{name}={given} is not a file: correct the path.")
        if given and name != "exclude" and not to:
            raise ConfigError(
                f"--{name} selects messages of --on_alarm: give --on_alarm too."
            )
    from kdjax.scoring.opening import BACKENDS
    from kdjax.scoring.streams import ON_ERROR, run_stream

    check_choice("--backend", flags.backend, BACKENDS)
    check_choice("--on_error", flags.on_error, ON_ERROR)
    common.start_jax()
    names = (
        *("entity", "backend", "state", "on_error", "on_alarm", "rolling", "most_open"),
        *("exclude", "shelve", "acknowledged"),
    )
    with common.reading(flags, common.COLUMNS) as reading:
        run_stream(
            _lines(sys.stdin),
            output,
            detector=detector,
            adaptive_step=flags.adaptive,
            reading=reading,
            log=lambda text: print(f"kdjax: {common.in_flags(text)}", file=sys.stderr),
            **common.chosen(flags, *names),
        )


def _lines(source: TextIO) -> Iterator[list[str]]:
    """Lists of the lines that standard input holds; reads without waiting for more.

    DataError if they are not text.
    """
    from kdjax.data.lines import check_start

    if not isinstance(source, io.TextIOWrapper):
        yield from ([line] for line in source)
        return
    buffer = source.buffer
    if isinstance(buffer, io.BufferedReader):
        check_start(buffer.peek(8))
    # Invalid UTF-8 makes only its own line faulty; CR ends a line as in a file.
    utf8 = codecs.getincrementaldecoder("utf-8-sig")("replace")
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    rest: list[str] = []  # of a line whose end has not arrived
    while data := buffer.read1(_AT_HAND):
        first, *lines = decoder.decode(data).split("\n")
        rest.append(first)
        if lines:
            yield ["".join(rest), *lines[:-1]]
            rest = lines[-1:]
    rest.append(decoder.decode(b"", final=True))
    if last := "".join(rest):
        yield last.split("\n")
