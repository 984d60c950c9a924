"""The program: verbs, flags, and one clear line for each fault of the user's.

    kdjax run    --config=configs/quickstart.py --workdir=runs/quickstart
    kdjax score  FILE --detector=DIR --output=FILE
    kdjax fetch  smd
    kdjax info   [--json] [--config=…]
    kdjax bench  [--quick] [--output=FILE]

`python launch.py VERB …` in a checkout is the same program. JAX is imported by the
verbs that compute, so that help and refusals come at once.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.progress import Progress

from kdjax import config as config_module
from kdjax.config import resolve, unknown_key
from kdjax.errors import ConfigError, KdjaxError

Verb = Callable[[flags.FlagValues, Sequence[str]], None]

OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")


def program() -> None:
    """Entry point of `kdjax` and `launch.py`."""
    app.run(main, flags_parser=_leave_flags_to_main)


def main(argv: Sequence[str]) -> int:
    """Runs a verb.

    Args:
        argv: name of the program, verb, arguments and flags.

    Returns:
        The exit code: 0; 2 after a fault of the user's; 130 when interrupted.
    """
    # Libraries tell of every file they write; their warnings are what a user needs.
    logging.set_verbosity(logging.WARNING)
    try:
        if _asks_for_help(argv):
            print(help_text())
            return 0
        values, arguments = parse(argv)
        verb, *rest = arguments or [""]
        if verb not in VERBS:
            said = f"unknown verb {verb!r}" if verb else "no verb given"
            raise ConfigError(
                f"{said}: expected one of {', '.join(VERBS)}; see kdjax --help."
            )
        VERBS[verb](values, rest)
    except KdjaxError as error:
        # One line whatever the message quotes.
        print(f"kdjax: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        # A full disk or a folder without permission; what was whole before still is.
        print(f"kdjax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kdjax: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def parse(argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """Flags and remaining arguments of a command line.

    Raises:
        ConfigError: all faulty flags in one message.
    """
    ordered = _config_first(argv)
    try:
        values = define_flags(ordered)
        return values, values(ordered)[1:]
    except Exception as error:  # a config file is a program and may raise anything
        problems = _problems(ordered) or [_one_line(error)]
        raise ConfigError(f"flags: {'; '.join(problems)}.") from error


def define_flags(argv: Sequence[str]) -> flags.FlagValues:
    """The program's flags; `argv` tells which fields of the config become flags."""
    values: flags.FlagValues = flags.FlagValues()  # type: ignore[no-untyped-call]
    own: dict[str, Any] = {"flag_values": values}
    config_flags.DEFINE_config_file(
        "config",
        config_module.__file__,
        "Config file, as configs/NAME.py[:argument]; the package's own by default. "
        "--config.a.b=value changes a field.",
        sys_argv=list(argv),
        **own,
    )
    text, switch = flags.DEFINE_string, flags.DEFINE_bool
    text("workdir", None, "run: the run's folder [runs/NAME].", **own)
    text("detector", None, "score: folder of a saved detector.", **own)
    text("output", None, "score, fetch, bench: file or folder to write.", **own)
    text("entity", None, "score: whose scaler, Normal and threshold to use.", **own)
    switch("causal", False, "score: rows by the window that ends there.", **own)
    text("time_column", "", "score: name of the time column.", **own)
    text("entity_column", "", "score: name of the entity column.", **own)
    text("label_column", "", "score: a label column to leave out.", **own)
    switch("json", False, "info: print JSON.", **own)
    switch("quick", False, "bench: less of everything, in about two minutes.", **own)
    return values


def help_text() -> str:
    """Verbs and flags."""
    values = define_flags(["kdjax"])
    lines = [f"  {verb:<6} {run.__doc__}" for verb, run in VERBS.items()]
    own = [
        f"  --{name:<14} {values[name].help}"
        for name in ("config", *sorted(set(values) - {"config"}))
    ]
    return "\n".join(["kdjax VERB [ARGUMENT] [FLAGS]", "", *lines, "", "Flags:", *own])


def _settings(values: flags.FlagValues) -> dict[str, Any]:
    """The config after all checks."""
    config = values["config"].value
    if not isinstance(config, ConfigDict):
        # What config_flags gives for a file that it can't read.
        filename = config_flags.get_config_filename(values["config"])
        raise ConfigError(f"--config={filename} can't be read: check the path.")
    return resolve(config)


def _run(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """trains, distils, calibrates and judges; goes on with a run found in --workdir"""
    _no_arguments("run", arguments)
    settings = _settings(values)
    workdir = Path(values["workdir"].value or _default_workdir(values, settings))
    console = Console()
    _start_jax()
    from kdjax.evaluation.tables import results_table
    from kdjax.pipeline import run

    results = run(settings, workdir, console=console)
    console.print(results_table(results))
    for note in results["notes"]:
        console.print(f"Note: {note}", highlight=False)
    console.print(f"Written: {workdir}/results.json, report.html, detectors/student")


def _score(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """FILE --detector=DIR --output=FILE: scores each row of a CSV, Parquet or .npy file"""
    path = _one_argument("score", arguments, "a file to score")
    detector, output = _needed("score", values, "detector"), _output(values)
    _start_jax()
    from kdjax.scoring import score_file

    fields = ("entity", "causal", "time_column", "entity_column", "label_column")
    options: dict[str, Any] = {field: values[field].value for field in fields}
    for line in score_file(path, detector=detector, output=output, **options):
        print(line)


def _fetch(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """smd [--output=DIR]: downloads the Server Machine Dataset into data/smd"""
    name = _one_argument("fetch", arguments, "a data set's name, smd")
    if name != "smd":
        raise ConfigError(f"fetch knows no data set {name!r}: expected smd.")
    from kdjax.data.fetch import fetch_smd

    folder = values["output"].value or "data/smd"
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


def _info(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """[--json] [--config=…]: versions, devices, optional parts; a config's networks"""
    _no_arguments("info", arguments)
    from kdjax.environment import describe_environment

    facts = describe_environment()
    config = values["config"]
    if not config.using_default_value or config_flags.get_override_values(config):
        from kdjax.pipeline import count_networks

        facts["parameters"] = count_networks(_settings(values))
    if values["json"].value:
        print(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {item}" for name, item in value.items())
        print(f"{key}: {value}")


def _bench(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """[NAME …] [--quick] [--output=FILE.json]: times kdjax against torch and onnxruntime"""
    output = values["output"].value
    if output and Path(output).suffix != ".json":
        raise ConfigError(f"--output={output} must end in .json.")
    from kdjax.artifacts import write_text
    from kdjax.bench.run import bench

    quick = bool(values["quick"].value)
    found = bench(quick=quick, names=arguments, console=Console())
    if output:
        write_text(Path(output), json.dumps(found["rows"], indent=1) + "\n")
        print(f"Written: {output}")


def _start_jax() -> None:
    """What a program may choose and a library may not: devices, and where to cache."""
    from kdjax.devices import keep_compiled, use_all_cores

    use_all_cores()
    keep_compiled()


VERBS: dict[str, Verb] = {
    "run": _run,
    "score": _score,
    "fetch": _fetch,
    "info": _info,
    "bench": _bench,
}


def _leave_flags_to_main(argv: Sequence[str]) -> Sequence[str]:
    flags.FLAGS(argv[:1])
    return argv


def _asks_for_help(argv: Sequence[str]) -> bool:
    return bool({"--help", "-h", "-help", "--helpfull"} & set(argv[1:]))


def _config_first(argv: Sequence[str]) -> list[str]:
    """argv with `--config` before its overrides, whatever their order was."""
    args = list(argv[1:])
    places = [i for i, arg in enumerate(args) if re.match(r"--?config(=|$)", arg)]
    if len(places) > 1:
        raise ConfigError("flags: --config is given twice: give one.")
    chosen: list[str] = []
    for i in places:
        end = i + 1 if "=" in args[i] else i + 2
        # Without its value it stays the last, for absl to say so.
        if end <= len(args):
            chosen = args[i:end]
            args = args[:i] + args[end:]
    return [argv[0], *chosen, *args]


def _problems(argv: Sequence[str]) -> list[str]:
    """What is wrong with each flag, found by parsing it alone."""
    chosen = [arg for arg in argv[1:3] if re.match(r"--?config(=|$)", arg)]
    if chosen and "=" not in chosen[0]:
        chosen = list(argv[1:3])
    base = [argv[0], *chosen]
    if fault := _fault(base):
        return [_one_line(fault)]
    problems, rest = [], list(argv[len(base) :])
    while rest:
        arg = rest.pop(0)
        fault = _fault([*base, arg]) if arg.startswith("-") else None
        if fault and "=" not in arg and rest:
            # Its value may be the next argument.
            together = _fault([*base, arg, rest[0]])
            if not together or not rest[0].startswith("-"):
                fault, rest = together, rest[1:]
        field = OVERRIDE.match(arg)
        if field and isinstance(fault, (AttributeError, KeyError)):
            problems.append(unknown_key(field[1]))
        elif fault:
            problems.append(_one_line(fault))
    return problems


def _fault(argv: Sequence[str]) -> Exception | None:
    """What parsing raises, if anything."""
    try:
        define_flags(argv)(argv)
    except Exception as error:  # noqa: BLE001 - see `parse`
        return error
    return None


def _one_line(error: BaseException) -> str:
    """The first and the last line of a message: ml_collections quotes much between."""
    # The text of a KeyError is its message in quotes.
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    first, cut, _ = lines[0].partition(" Other fields present")
    first = first.lstrip("'\"") if cut else first
    return " ".join([first, *lines[1:][-1:]]).rstrip(".")


def _default_workdir(values: flags.FlagValues, settings: dict[str, Any]) -> str:
    if values["config"].using_default_value:
        data = settings["data"]
        return f"runs/{data['name'] or Path(data['path']).name.split('.')[0]}"
    path, *argument = config_flags.get_config_filename(values["config"]).split(":", 1)
    # Two arguments are two runs, such as smap and msl.
    parts = [Path(path).stem, *(re.sub(r"\W+", "-", part) for part in argument)]
    return f"runs/{'_'.join(parts)}"


def _no_arguments(verb: str, arguments: Sequence[str]) -> None:
    if arguments:
        raise ConfigError(f"{verb} takes flags only, got {' '.join(arguments)}.")


def _one_argument(verb: str, arguments: Sequence[str], what: str) -> str:
    if len(arguments) != 1:
        said = " ".join(arguments) or "nothing"
        raise ConfigError(f"{verb} needs {what}, got {said}.")
    return arguments[0]


def _needed(verb: str, values: flags.FlagValues, name: str) -> str:
    value = values[name].value
    if not value:
        raise ConfigError(f"{verb} needs --{name}; see kdjax --help.")
    return str(value)


def _output(values: flags.FlagValues) -> Path:
    output = Path(_needed("score", values, "output"))
    if output.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--output={output} must end in .csv or .parquet.")
    return output
