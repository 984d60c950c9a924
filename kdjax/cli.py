"""The program: verbs, flags, and one clear line for each fault of the user's.

    kdjax run    --config=configs/quickstart.py --workdir=runs/quickstart
    kdjax run    … --coordinator=HOST:PORT --num_processes=N --process_id=I
    kdjax score  FILE --detector=DIR --output=FILE
    kdjax score  FOLDER --detector=DIR --output=DIR [--shard=i/n]
    kdjax calibrate FILE --detector=DIR --output=DIR
    kdjax export --detector=DIR --format=onnx --output=FILE
    kdjax stream --detector=DIR < rows.csv
    kdjax sweep  --config=configs/sweep_quick.py --workdir=runs/sweep
    kdjax fetch  smd
    kdjax info   [--json] [--config=…]

`python launch.py VERB …` in a checkout is the same program. JAX is imported by the
verbs that compute, so that help and refusals come at once.
"""

import errno
import io
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from kdjax import config as config_module
from kdjax.commands.verbs import VERBS, Design, Request
from kdjax.config import (
    RENAMED,
    current_name,
    leaves,
    override,
    resolve,
    unknown_key,
)
from kdjax.errors import ConfigError, KdjaxError
from kdjax.io import signals as stopping

# Characters of a message.
MOST = 2_000
OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")


class Flag(NamedTuple):
    """A flag of the program's own.

    Attributes:
        name: of the flag.
        default: whose kind is the flag's; text where it is None.
        verbs: which take it; the others refuse it.
        help: what it says.
    """

    name: str
    default: str | bool | int | float | None
    verbs: str
    help: str


FLAGS = (
    Flag("workdir", None, "run, sweep", "the folder to work in [runs/NAME]."),
    Flag("init_from", None, "run, sweep", "a saved detector to start from."),
    Flag(
        "coordinator", "", "run, sweep",
        "HOST:PORT of process 0 of several; auto on a cluster.",
    ),
    Flag("num_processes", 0, "run, sweep", "how many processes run it together."),
    Flag("process_id", -1, "run, sweep", "which of them this is, from 0."),
    Flag("detector", None, "score, calibrate, export, stream", "a saved detector."),
    Flag(
        "output", None, "score, calibrate, export, stream, fetch, bench",
        "file or folder to write.",
    ),
    Flag(
        "entity", None, "score, calibrate, export, stream",
        "whose scaler, Normal and threshold to use, or to make.",
    ),
    Flag("causal", False, "score", "rows by the window that ends there."),
    Flag("contributions", False, "score", "a column of each channel's part in the score."),
    Flag("attribution", "", "score", "another division of scores: correlation, conditional."),
    Flag("shard", "", "score", "i/n scores one of n shares of many files, i from 0."),
    Flag("missing", "", "score, calibrate", "missing cells: error, ffill or mask."),
    Flag(
        "time_column", "", "score, calibrate, export, stream", "name of the time column."
    ),
    Flag("entity_column", "", "score, calibrate, export", "name of the entity column."),
    Flag("label_column", "", "score, calibrate, export", "a label column to leave out."),
    Flag("exclude", "", "score, calibrate", "CSV of spans to leave out."),
    Flag("trials", 10, "sweep", "with search(trial): trials that this process adds."),
    Flag("way", "auto", "sweep", "members together or alone; auto takes the faster."),
    Flag("format", "onnx", "export", "onnx or stablehlo."),
    Flag("quantize", "none", "export", "int8 for small weights."),
    Flag("data", "", "export", "rows to check the file on; the detector's own else."),
    Flag("backend", "jax", "stream", "jax or onnxruntime."),
    Flag("adaptive", 0.0, "stream", "step of an adaptive τ, such as 0.01; 0 for none."),
    Flag(
        "rolling", 0.0, "stream",
        "share of windows above a τ that follows the stream; 0 for none.",
    ),
    Flag("state", None, "stream", "file that a restart goes on from."),
    Flag(
        "on_error", "skip", "stream",
        "skip answers a faulty line and goes on; or stop.",
    ),
    Flag("ignore", "", "stream", "columns to leave out, separated by commas."),
    Flag("json", False, "info", "print JSON."),
)  # fmt: skip

# The verbs that read a config.
CONFIGURED = "run, sweep, calibrate, info"

EXIT_CODES = (
    "Exit code: 0; 2 after a fault, told in one line; 130 after SIGINT, 143 after SIGTERM:\n"
    "what there is to save is saved, and the same command goes on. stream ends with 0."
)

_KINDS: dict[type, Any] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    type(None): flags.DEFINE_string,
}


def program() -> None:
    """Entry point of `kdjax` and `launch.py`."""
    stopping.install_handlers()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a τ where it has no sign
    try:
        app.run(main, flags_parser=_leave_flags_to_main)
    except KeyboardInterrupt as error:  # between two lines of `app.run`
        sys.exit(stopping.stop_message(error))
    finally:
        stopping.ignore_signals()


def main(argv: Sequence[str]) -> int:
    """Runs a verb.

    Args:
        argv: name of the program, verb, arguments and flags.

    Returns:
        The exit code: 0; 2 after a fault of the user's; 130 after SIGINT and 143 after
        SIGTERM (128 + the signal's number).
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
        _check_flags(verb, values)
        VERBS[verb](_request(values, rest))
    except KdjaxError as error:
        print(f"kdjax: {_told(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        # What was whole before still is.
        print(f"kdjax: {_told(error)}: {_advice(error)}", file=sys.stderr)
        return 2
    except (Exception, KeyboardInterrupt) as error:
        code = stopping.stop_message(error)
        if code is None and _lacks_memory(error):
            print(
                f"kdjax: there is not enough memory ({_told(error)}): give fewer rows or "
                "channels at once, or smaller networks and batches.",
                file=sys.stderr,
            )
            return 2
        if code is None:
            raise
        return code
    return 0


def parse(argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """Flags and remaining arguments of a command line.

    Raises:
        ConfigError: all faulty flags in one message.
    """
    ordered = _config_first([_current_flag(arg) for arg in argv])
    _check_repeated(argv)
    try:
        values = define_flags(ordered)
        return values, values(ordered)[1:]
    except Exception as error:  # a config file is a program and may raise anything
        problems = _problems(ordered) or [_one_line(error)]
        raise ConfigError(f"flags: {'; '.join(problems)}.") from error


def _current_flag(argument: str) -> str:
    """An argument with the name of today for a field that version 0.1 called another."""
    found = OVERRIDE.match(argument)
    if not found or found[1] not in RENAMED:
        return argument
    start, end = found.span(1)
    return argument[:start] + current_name(found[1]) + argument[end:]


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
    for flag in FLAGS:
        text = f"{flag.verbs}: {flag.help}"
        _KINDS[type(flag.default)](flag.name, flag.default, text, **own)
    return values


def help_text() -> str:
    """Verbs and flags."""
    values = define_flags(["kdjax"])
    lines = [f"  {verb:<9} {run.__doc__}" for verb, run in VERBS.items()]
    own = [
        f"  --{name:<14} {values[name].help}"
        for name in ("config", *sorted(set(values) - {"config"}))
    ]
    shown = ["kdjax VERB [ARGUMENT] [FLAGS]", "", *lines, "", "Flags:", *own]
    return "\n".join([*shown, "", EXIT_CODES])


def _config(values: flags.FlagValues) -> ConfigDict:
    """The config as it was given."""
    config = values["config"].value
    if not isinstance(config, ConfigDict):
        # What config_flags gives for a file that it can't read.
        filename = config_flags.get_config_filename(values["config"])
        raise ConfigError(f"--config={filename} can't be read: check the path.")
    if values["init_from"].value:
        config = override(config, {"init_from": values["init_from"].value})
    return config


def _design(values: flags.FlagValues) -> Design:
    """The config and what its file defines besides."""
    if values["config"].using_default_value:
        raise ConfigError(
            "sweep needs --config: a config file with sweep(add) or search(trial)."
        )
    path, *argument = _config_file(values)
    config = _config(values)
    return Design(Path(path).stem, config, runpy.run_path(path), tuple(argument))


def _config_file(values: flags.FlagValues) -> list[str]:
    """The config file's path, and its argument if it was given one."""
    return config_flags.get_config_filename(values["config"]).split(":", 1)  # type: ignore[no-any-return]


def _request(values: flags.FlagValues, arguments: Sequence[str]) -> Request:
    """A command line without the library that read it."""
    config = values["config"]
    return Request(
        arguments=tuple(arguments),
        flags={flag.name: values[flag.name].value for flag in FLAGS},
        settings=lambda: resolve(_config(values)),
        design=lambda: _design(values),
        changes=dict(config_flags.get_override_values(config)),
        config_given=not config.using_default_value,
        default_workdir=lambda settings: _default_workdir(values, settings),
    )


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


def _check_repeated(argv: Sequence[str]) -> None:
    """Refuses a field of several values given twice, which absl would join."""
    given = [match[1] for arg in argv[1:] if (match := OVERRIDE.match(arg))]
    known = dict(leaves(config_module.get_config().to_dict()))
    for field in given:
        if given.count(field) > 1 and isinstance(known.get(field), tuple):
            raise ConfigError(f"flags: --config.{field} is given twice: give one.")


def _check_flags(verb: str, values: flags.FlagValues) -> None:
    """Refuses flags that would change nothing, since the verb doesn't look at them."""
    taken = {flag.name: flag.verbs for flag in FLAGS if values[flag.name].present}
    config = values["config"]
    if not config.using_default_value or config_flags.get_override_values(config):
        taken["config"] = CONFIGURED
    unused = [name for name in taken if verb not in taken[name].split(", ")]
    if unused:
        said = "; ".join(f"--{name} (for {taken[name]})" for name in unused)
        raise ConfigError(f"{verb} takes no {said}: leave it out.")


def _advice(error: OSError) -> str:
    """What to do about a fault of the system's."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room on the disk, then run the same command again."
    return "check the path and its rights."


def _lacks_memory(error: BaseException) -> bool:
    """Whether Python or a device had none left; JAX stays unimported here."""
    of_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return isinstance(error, MemoryError) or (
        of_jax and str(error).startswith("RESOURCE_EXHAUSTED")
    )


def _told(error: BaseException) -> str:
    """A message as one line that a terminal shows as it is, whatever it quotes."""
    text = " ".join(str(error).split())
    if len(text) > MOST:
        # Such as the names of a thousand columns; what to do stands at the end.
        text = f"{text[: MOST // 2]} […] {text[-MOST // 2 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


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
    return list(dict.fromkeys(problems))


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
    path, *argument = _config_file(values)
    # Two arguments are two runs, such as smap and msl.
    parts = [Path(path).stem, *(re.sub(r"\W+", "-", part) for part in argument)]
    return f"runs/{'_'.join(parts)}"
