"""What each verb of the program does with its arguments and flags.

JAX is imported by the verbs that compute, so that help and refusals come at once.
"""

import io
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

from kdjax.errors import ConfigError


class Request(NamedTuple):
    """A command line after parsing.

    Attributes:
        arguments: what follows the verb without being a flag.
        flags: the program's own flags by name.
        settings: gives the config after all checks.
        changes: dotted fields of the config that the command line sets.
        config_given: whether a config file was named.
        default_workdir: gives a run's folder where none was named.
    """

    arguments: tuple[str, ...]
    flags: Mapping[str, Any]
    settings: Callable[[], dict[str, Any]]
    changes: Mapping[str, Any]
    config_given: bool
    default_workdir: Callable[[dict[str, Any]], str]


Verb = Callable[[Request], None]

# How score and calibrate read a file.
COLUMNS = ("missing", "time_column", "entity_column", "label_column", "exclude")


def _run(request: Request) -> None:
    """trains, distils, calibrates and judges; goes on with a run found in --workdir"""
    _no_arguments("run", request)
    settings = request.settings()
    workdir = Path(request.flags["workdir"] or request.default_workdir(settings))
    console = Console()
    _start()
    from kdjax.evaluation.tables import rates_table, results_table, unlabelled_table
    from kdjax.pipeline import run

    results = run(settings, workdir, console=console)
    labelled = results["dataset"]["positive_windows"] is not None
    console.print(results_table(results) if labelled else unlabelled_table(results))
    console.print(rates_table(results))
    for note in results["notes"]:
        console.print(f"Note: {note}", highlight=False)
    console.print(f"Written: {workdir}/results.json, report.html, detectors/student")


def _score(request: Request) -> None:
    """FILE --detector=DIR --output=FILE: scores each row of a CSV, Parquet or .npy file"""
    path = _one_argument("score", request, "a file to score")
    detector, output = _needed("score", request, "detector"), _output(request)
    _start()
    from kdjax.scoring import score_file

    options = _given(request, "entity", "causal", "contributions", "blame", *COLUMNS)
    for line in score_file(path, detector=detector, output=output, **options):
        print(line)


def _calibrate(request: Request) -> None:
    """FILE --detector=DIR --output=DIR: a new threshold from clean rows, no training"""
    path = _one_argument("calibrate", request, "a file of clean rows")
    detector = _needed("calibrate", request, "detector")
    output = _needed("calibrate", request, "output")
    threshold = _threshold_changes(request)
    _start()
    from kdjax.recalibration import calibrate_file

    for line in calibrate_file(
        path,
        detector=detector,
        output=output,
        threshold=threshold,
        **_given(request, "entity", *COLUMNS),
    ):
        print(line)


def _export(request: Request) -> None:
    """--detector=DIR --format=onnx|stablehlo --output=FILE: one file that runs anywhere"""
    _no_arguments("export", request)
    detector = _needed("export", request, "detector")
    output = _needed("export", request, "output")
    _start()
    from kdjax.export.run import export_file

    columns = ("time_column", "entity_column", "label_column")
    options = _given(request, "format", "entity", "quantize", "data", *columns)
    for line in export_file(detector, output=output, **options):
        print(line)


def _stream(request: Request) -> None:
    """--detector=DIR [--state=FILE]: rows in on stdin, one JSON line out a row"""
    _no_arguments("stream", request)
    detector = _needed("stream", request, "detector")
    _start()
    from kdjax.streaming import run_stream

    # A byte that is no UTF-8 spoils its line only.
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace")
    options = _given(request, "entity", "backend", "state", "time_column", "on_error")
    run_stream(
        sys.stdin,
        request.flags["output"] or sys.stdout,
        detector=detector,
        adaptive_step=request.flags["adaptive"],
        ignored=tuple(filter(None, request.flags["ignore"].split(","))),
        tell=lambda text: print(f"kdjax: {text}", file=sys.stderr),
        **options,
    )


def _start() -> None:
    from kdjax.devices import start_program

    start_program()


def _given(request: Request, *names: str) -> dict[str, Any]:
    return {name: request.flags[name] for name in names}


def _threshold_changes(request: Request) -> dict[str, Any]:
    """The fields of `threshold` that the command line sets; no others make sense."""
    changed = request.changes
    foreign = [name for name in changed if not name.startswith("threshold.")]
    if foreign or request.config_given:
        raise ConfigError(
            "calibrate keeps the detector's settings and takes only "
            f"--config.threshold.…, got {', '.join(foreign) or '--config'}."
        )
    return {name.split(".", 1)[1]: value for name, value in changed.items()}


def _fetch(request: Request) -> None:
    """smd [--output=DIR]: downloads the Server Machine Dataset into data/smd"""
    name = _one_argument("fetch", request, "a data set's name, smd")
    if name != "smd":
        raise ConfigError(f"fetch knows no data set {name!r}: expected smd.")
    from kdjax.data.fetch import fetch_smd

    folder = request.flags["output"] or "data/smd"
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("SMD", total=None)
        fetched = fetch_smd(
            folder,
            progress=lambda name, done, total: bar.update(
                task, description=name, completed=done, total=total
            ),
        )
    print(
        f"{folder}: {len(fetched.downloaded)} files downloaded, "
        f"{len(fetched.skipped)} there and verified"
    )


def _info(request: Request) -> None:
    """[--json] [--config=…]: versions, devices, optional parts; a config's networks"""
    _no_arguments("info", request)
    from kdjax.environment import describe_environment

    facts = describe_environment()
    if request.config_given or request.changes:
        from kdjax.pipeline import count_networks

        facts["parameters"] = count_networks(request.settings())
    if request.flags["json"]:
        print(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {item}" for name, item in value.items())
        print(f"{key}: {value}")


def _bench(request: Request) -> None:
    """[NAME …] [--quick] [--output=FILE.json]: times kdjax against torch and onnxruntime"""
    output = request.flags["output"]
    if output and Path(output).suffix != ".json":
        raise ConfigError(f"--output={output} must end in .json.")
    from kdjax.artifacts import write_text
    from kdjax.bench.run import bench

    quick = bool(request.flags["quick"])
    found = bench(quick=quick, names=request.arguments, console=Console())
    if output:
        write_text(Path(output), json.dumps(found["rows"], indent=1) + "\n")
        print(f"Written: {output}")


def _no_arguments(verb: str, request: Request) -> None:
    if request.arguments:
        got = " ".join(request.arguments)
        raise ConfigError(f"{verb} takes flags only, got {got}.")


def _one_argument(verb: str, request: Request, what: str) -> str:
    arguments = request.arguments
    if len(arguments) != 1:
        said = " ".join(arguments) or "nothing"
        raise ConfigError(f"{verb} needs {what}, got {said}.")
    return arguments[0]


def _needed(verb: str, request: Request, name: str) -> str:
    value = request.flags[name]
    if not value:
        raise ConfigError(f"{verb} needs --{name}; see kdjax --help.")
    return str(value)


def _output(request: Request) -> Path:
    output = Path(_needed("score", request, "output"))
    if output.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--output={output} must end in .csv or .parquet.")
    return output


VERBS: dict[str, Verb] = {
    "run": _run,
    "score": _score,
    "calibrate": _calibrate,
    "export": _export,
    "stream": _stream,
    "fetch": _fetch,
    "info": _info,
    "bench": _bench,
}
