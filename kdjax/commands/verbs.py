"""What each verb of the program does with its arguments and flags.

JAX is imported by the verbs that compute, so that help and refusals come at once.
"""

import functools
import inspect
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

from kdjax.errors import ConfigError, KdjaxError


class Design(NamedTuple):
    """A config file of a sweep.

    Attributes:
        name: of the file, without its ending.
        config: before checks.
        defined: what the file defines, such as `sweep`.
        arguments: what follows the file's name after a colon: one text or none.
    """

    name: str
    config: Any
    defined: Mapping[str, Any]
    arguments: tuple[str, ...]


class Request(NamedTuple):
    """A command line after parsing.

    Attributes:
        arguments: what follows the verb without being a flag.
        flags: the program's own flags by name.
        settings: gives the config after all checks.
        design: gives the config file of a sweep.
        changes: dotted fields of the config that the command line sets.
        config_given: whether a config file was named.
        default_workdir: gives a run's folder where none was named.
    """

    arguments: tuple[str, ...]
    flags: Mapping[str, Any]
    settings: Callable[[], dict[str, Any]]
    design: Callable[[], Design]
    changes: Mapping[str, Any]
    config_given: bool
    default_workdir: Callable[[dict[str, Any]], str]


Verb = Callable[[Request], None]

# How score and calibrate read a file.
COLUMNS = ("missing", "time_column", "entity_column", "label_column", "exclude")

# Endings of a score table; another output of `score` is a folder of them.
SCORES = (".csv", ".parquet")


def _run(request: Request) -> None:
    """trains, distils, calibrates and judges; goes on with a run found in --workdir"""
    _no_arguments("run", request)
    settings = request.settings()
    workdir = Path(request.flags["workdir"] or request.default_workdir(settings))
    _start(request)
    from kdjax.evaluation.tables import rates_table, results_table, unlabelled_table
    from kdjax.experiment.pipeline import run
    from kdjax.training import hosts

    console = Console(quiet=not hosts.is_first())
    results = run(settings, workdir, console=console)
    labelled = results["dataset"]["positive_windows"] is not None
    console.print(results_table(results) if labelled else unlabelled_table(results))
    console.print(rates_table(results))
    if recommended := results.get("recommendation"):
        console.print(recommended["text"], highlight=False)
    for note in results["notes"]:
        console.print(f"Note: {note}", highlight=False)
    written = (
        f"Written: {workdir}/results.json, report.html, report.md, detectors/student"
    )
    console.print(written, soft_wrap=True)


def _sweep(request: Request) -> None:
    """--config=FILE with sweep(add) or search(trial): trains and compares many members"""
    _no_arguments("sweep", request)
    given = request.design()
    if "search" in given.defined:
        _search(request, given)
        return
    if "sweep" not in given.defined:
        raise ConfigError(
            f"{given.name} has no sweep(add): define one that calls add for each member, as "
            "configs/sweep_quick.py does."
        )
    from kdjax.experiment.sweeps.design import make_design

    # A file that takes an argument gives it to both of its functions.
    sweep = functools.partial(_with, given.defined["sweep"], given.arguments)
    try:
        design = make_design(given.name, given.config, sweep)
    except KdjaxError:
        raise
    except Exception as error:  # a config file is a program and may raise anything
        raise ConfigError(
            f"{given.name}: sweep(add) raises {error!r}: correct it; add takes a mapping "
            "of dotted fields, as in configs/sweep_quick.py."
        ) from error
    workdir = Path(request.flags["workdir"] or request.default_workdir(design.base))
    _start(request)
    from kdjax.experiment.sweeps.run import run_sweep, shown
    from kdjax.experiment.sweeps.tables import summary_table
    from kdjax.training import hosts

    console = Console(quiet=not hosts.is_first())
    outcome = run_sweep(design, workdir, way=request.flags["way"], console=console)
    members, fields = outcome.members, outcome.fields
    console.print(
        summary_table(members, name=design.name, fields=fields, measures=shown(outcome))
    )
    written = f"Written: {workdir}/members.csv, summary.csv, report.html, members/"
    console.print(written, soft_wrap=True)


def _search(request: Request, given: Design) -> None:
    if "sweep" in given.defined:
        raise ConfigError(f"{given.name} has sweep and search: define one of them.")
    from kdjax.experiment.sweeps.space import make_search
    from kdjax.experiment.sweeps.study import load_optuna

    load_optuna()
    suggest = functools.partial(_with, given.defined["search"], given.arguments)
    defined = {**given.defined, "search": suggest}
    search = make_search(given.name, given.config, defined)
    workdir = Path(request.flags["workdir"] or request.default_workdir(search.base))
    trials, way = request.flags["trials"], request.flags["way"]
    _start()
    from kdjax.experiment.sweeps.search import run_search
    from kdjax.experiment.sweeps.trials import best_lines

    found = run_search(search, workdir, trials=trials, way=way, console=Console())
    for line in best_lines(found):
        print(line)
    print(f"Written: {workdir}/trials.csv, members.csv, best.json, report.html")


def _with(function: Callable[..., Any], arguments: Sequence[str], first: Any) -> Any:
    takes = len(inspect.signature(function).parameters) > 1
    return function(first, *(arguments if takes else ()))


def _score(request: Request) -> None:
    """FILE|FOLDER … --detector=DIR --output=FILE|DIR: scores each row of CSV, Parquet, .npy"""
    if not all(request.arguments or [""]):
        raise ConfigError("score needs a file to score, got nothing.")
    detector, output = _needed("score", request, "detector"), _output(request)
    options = _given(
        request, "entity", "causal", "contributions", "attribution", *COLUMNS
    )
    _start()
    if output.suffix in SCORES:
        from kdjax.scoring.files import score_file

        lines = score_file(
            request.arguments[0], detector=detector, output=output, **options
        )
    else:
        from kdjax.scoring.folders import score_fleet

        lines = score_fleet(
            request.arguments,
            detector=detector,
            output=output,
            shard=request.flags["shard"],
            **options,
        )
    for line in lines:
        print(line, flush=True)


def _calibrate(request: Request) -> None:
    """FILE --detector=DIR --output=DIR: a new threshold from clean rows, no training"""
    path = _one_argument("calibrate", request, "a file of clean rows")
    detector = _needed("calibrate", request, "detector")
    output = _needed("calibrate", request, "output")
    threshold = _threshold_changes(request)
    _start()
    from kdjax.experiment.recalibrate import calibrate_file

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
    from kdjax.export.files import export_file

    columns = ("time_column", "entity_column", "label_column")
    options = _given(request, "format", "entity", "quantize", "data", *columns)
    for line in export_file(detector, output=output, **options):
        print(line)


def _stream(request: Request) -> None:
    """--detector=DIR [--state=FILE]: rows in on stdin, one JSON line out a row"""
    _no_arguments("stream", request)
    detector = _needed("stream", request, "detector")
    output = request.flags["output"] or sys.stdout
    if sys.stdin is None or output is None:
        # Python has none in place of one that whoever started it has closed.
        raise ConfigError(
            "stream reads rows from standard input and answers on standard output: open "
            "them, or give --output."
        )
    _start()
    from kdjax.scoring.streams import run_stream

    # A byte that is no UTF-8 spoils its line only.
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace")
    options = _given(request, "entity", "backend", "state", "time_column", "on_error")
    run_stream(
        sys.stdin,
        output,
        detector=detector,
        adaptive_step=request.flags["adaptive"],
        rolling=request.flags["rolling"],
        ignored=tuple(filter(None, request.flags["ignore"].split(","))),
        tell=lambda text: print(f"kdjax: {text}", file=sys.stderr),
        **options,
    )


def _start(together: Request | None = None) -> None:
    """Starts JAX; for a verb that several processes may run together, with the others."""
    from kdjax.training.sharding import start_program

    start_program()
    if together is None:
        return
    from kdjax.training import hosts

    number = together.flags["process_id"]
    hosts.start(
        together.flags["coordinator"],
        together.flags["num_processes"] or None,
        None if number < 0 else number,
    )


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
    from kdjax.data.download import fetch_smd

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
    from kdjax.io.environment import describe_environment

    facts = describe_environment()
    if request.config_given or request.changes:
        from kdjax.experiment.pipeline import count_networks

        facts["parameters"] = count_networks(request.settings())
    if request.flags["json"]:
        print(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {item}" for name, item in value.items())
        print(f"{key}: {value}")


def _no_arguments(verb: str, request: Request) -> None:
    if request.arguments:
        got = " ".join(request.arguments)
        raise ConfigError(f"{verb} takes flags only, got {got}.")


def _one_argument(verb: str, request: Request, what: str) -> str:
    arguments = request.arguments
    if len(arguments) != 1 or not arguments[0]:
        said = " ".join(arguments) or "nothing"
        raise ConfigError(f"{verb} needs {what}, got {said}.")
    return arguments[0]


def _needed(verb: str, request: Request, name: str) -> str:
    value = request.flags[name]
    if not value:
        raise ConfigError(f"{verb} needs --{name}; see kdjax --help.")
    return str(value)


def _output(request: Request) -> Path:
    """A file for the scores of one file, a folder for those of several."""
    text, (first, *more) = _needed("score", request, "output"), request.arguments
    output = Path(text)
    several = bool(more or request.flags["shard"]) or Path(first).is_dir()
    if several and output.suffix in SCORES:
        raise ConfigError(
            f"--output={output} must be a folder: several files are to be scored."
        )
    folder = several or text.endswith("/") or output.is_dir()
    if not folder and output.suffix not in SCORES:
        raise ConfigError(
            f"--output={output} must end in .csv or .parquet, or in / for a folder."
        )
    return output


VERBS: dict[str, Verb] = {
    "run": _run,
    "sweep": _sweep,
    "score": _score,
    "calibrate": _calibrate,
    "export": _export,
    "stream": _stream,
    "fetch": _fetch,
    "info": _info,
}
