"""The program `kdjax VERB [ARGUMENTS] [FLAGS]`: parsing, help, errors, exit codes.

Each verb is a file in `kdjax/commands`, with its flags and its help. `python launch.py
VERB …` in a checkout is the same program. Verbs import JAX only to compute, so that
help and errors of flags appear at once.
"""

import errno
import io
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from kdjax import config as config_module
from kdjax.commands import (
    calibrate,
    export,
    fetch,
    fleet,
    info,
    plot,
    run,
    score,
    serve,
    stream,
    sweep,
)
from kdjax.commands.common import Flag, Flags, in_config_flags
from kdjax.config import FIELDS, RENAMED, TEXTS, leaves, unknown_key
from kdjax.errors import ConfigError, DataError, KdjaxError, did_you_mean
from kdjax.io import signals

_ALL = (run, sweep, fleet, score, plot, calibrate, export, stream, serve, fetch, info)
VERBS: dict[str, ModuleType] = {m.__name__.rpartition(".")[2]: m for m in _ALL}
# Names of flags in version 0.1, and today's.
OLD_FLAGS = {"blame": "attribution", "following": "rolling"}
OLD_FLAGS |= {f"config.{old}": f"config.{new}" for old, new in RENAMED.items()}

# Most characters of a message.
LONGEST = 2_000
CONFIG_FLAG = re.compile(r"--?config(=|$)")
# What Python and absl say of a flag's value, and what they expect.
VALUES = {
    r"invalid literal for int\(\) with base 10: .*": "a whole number",
    r"could not convert string to float: .*": "a number",
    r"\('Non-boolean argument to boolean flag', .*\)": "true or false",
}
OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")
EXIT_CODES = """\
Exit codes: 0 success; 2 error, in one line on standard error; 130 after SIGINT and 143
after SIGTERM: rerun the command to resume."""


def program() -> None:
    """Entry point of `kdjax` and `launch.py`."""
    signals.install_handlers()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # encodings without τ
    try:
        app.run(lambda _: main(sys.argv), argv=sys.argv[:1])  # `main` parses flags
    except KeyboardInterrupt as error:  # between two lines of `app.run`
        sys.exit(signals.stop_message(error))
    finally:
        signals.ignore_signals()


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv`, which starts with the program's name.

    Returns:
        The exit code: 0; 2 after a user's error; 128 + the number of SIGINT or SIGTERM.
    """
    # Libraries log every file that they write; only their warnings are shown.
    logging.set_verbosity(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # On one line, such as the warning of a config file with an old name.
            warnings.showwarning = lambda message, _, file, line, *__: _print(
                f"{file}:{line}: {_shown(message)}"
            )
            _dispatch(argv)
    except KdjaxError as error:
        message = _shown(error)
        verb = next((arg for arg in argv[1:] if arg in VERBS), "")
        # The members of a sweep have their settings from a config file.
        if verb != "sweep" or isinstance(error, DataError):
            message = in_config_flags(verb, message)
    except OSError as error:
        advice = "check the path and its permissions."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free disk space, then rerun the command."
        message = f"{_shown(error)}: {advice}"
    except (Exception, KeyboardInterrupt) as error:
        if (code := signals.stop_message(error)) is not None:
            return code
        if not _lacks_memory(error):
            raise
        message = (
            f"out of memory ({_shown(error)}): use fewer rows or channels at once, "
            "or smaller networks and batches."
        )
    else:
        return 0
    _print(message)
    return 2


def _dispatch(argv: Sequence[str]) -> None:
    if list(argv[1:2]) == ["bench"]:
        raise ConfigError(
            "the verb bench was removed: run python benchmarks/speed.py in a checkout."
        )
    if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
        verb = next((arg for arg in argv[1:] if arg in VERBS), "")
        print(verb_help(verb) if verb else program_help())
        return
    values, arguments = parse(argv)
    verb, *rest = arguments or [""]
    if verb not in VERBS:
        hint = did_you_mean(verb, VERBS)
        got = f"unknown verb {verb!r}{hint}" if verb else "no verb given"
        raise ConfigError(
            f"{got}: expected one of {', '.join(VERBS)}; see kdjax --help."
        )
    given = dict.fromkeys(k.split(".")[0] for k in values if values[k].present)
    without_effect = [
        f"--{name} (for {', '.join(v for v in VERBS if name in flags_of(v))})"
        for name in given
        if name not in flags_of(verb)
    ]
    if without_effect:
        raise ConfigError(f"{verb} takes no {'; '.join(without_effect)}: remove it.")
    VERBS[verb].main(rest, values)


def program_help() -> str:
    """What `kdjax --help` prints."""
    verbs = "\n".join(f"  {verb:<10} {_about(verb)[0]}" for verb in VERBS)
    return (
        "kdjax distils anomaly detectors for multivariate time series.\n\n"
        f"Usage: kdjax VERB [ARGUMENTS] [FLAGS]\n\nVerbs:\n{verbs}\n\n"
        "kdjax VERB --help shows the flags of a verb and an example.\n"
        f"To start with your own file:\n  {run.EXAMPLE}\n\n"
        f"{EXIT_CODES}"
    )


def verb_help(verb: str) -> str:
    """What `kdjax VERB --help` prints."""
    module = VERBS[verb]
    lines = [f"Usage: kdjax {verb} {module.USAGE}", "", *_about(verb)]
    for group, found in module.FLAGS.items():
        lines += ["", f"{group}:", *map(_flag_help, found)]
    if verb == "run":
        lines += ["", "Config fields and their defaults, explained in kdjax/config.py:"]
        lines += _fields_help()
    lines += ["", "Example:", f"  {module.EXAMPLE}", "", EXIT_CODES]
    return "\n".join(lines)


def flags_of(verb: str) -> dict[str, Flag]:
    """The flags of a verb by name; `config` stands for its fields too."""
    found = [flag for group in VERBS[verb].FLAGS.values() for flag in group]
    return {flag.name.split(".")[0]: flag for flag in found}


def _about(verb: str) -> list[str]:
    return (VERBS[verb].__doc__ or verb).strip().splitlines()


def _flag_help(flag: Flag) -> str:
    name = f"  --{flag.name}={flag.value}".rstrip("=")
    default = f" [{flag.default}]" if flag.default not in (None, "", 0, -1, ()) else ""
    indents = {"initial_indent": f"{name:<27} ", "subsequent_indent": " " * 28}
    return textwrap.fill(flag.help + default, 88, **indents)  # type: ignore[arg-type]


def _fields_help() -> Iterator[str]:
    """The config's fields in shell syntax, one paragraph for each group."""
    groups: dict[str, list[str]] = {}
    for name, value in leaves(config_module.get_config().to_dict()):
        text = f'"{value}"'.replace(" ", "") if isinstance(value, tuple) else value
        word = f"{name}={'' if text is None else text}"
        groups.setdefault(name.rpartition(".")[0], []).append(word)
    for words in groups.values():
        text = " ".join(words)
        yield textwrap.fill(text, 88, initial_indent="  ", subsequent_indent="    ")


def parse(argv: Sequence[str]) -> tuple[Flags, list[str]]:
    """Flags and remaining arguments of a command line.

    Raises:
        ConfigError: all faulty flags in one message.
    """
    ordered = _as_tuples(_config_first([argv[0], *map(_current_flag, argv[1:])]))
    # absl joins the values of a tuple's flag that is given twice.
    given = [match[1] for arg in ordered[1:] if (match := OVERRIDE.match(arg))]
    for field in given:
        default, _ = FIELDS.get(field, ("", None))
        if given.count(field) > 1 and isinstance(default, tuple):
            raise ConfigError(f"flags: --config.{field} is given twice: give one.")
    if len(ordered) > 1 and CONFIG_FLAG.match(ordered[1]):
        path = " ".join(ordered[1:3]) if ordered[1].endswith("config") else ordered[1]
        path = path[path.index("config") + 7 :].split(":")[0]
        if path and not Path(path).exists():
            raise ConfigError(
                f"--config={path} can't be read: check the path; configs/… are files of a "
                "checkout of kdjax."
            )
    try:
        values = define_flags(ordered)
        return values, values(ordered)[1:]
    except Exception as error:  # a config file is a program: any error is possible
        problems = _problems(ordered) or [_one_line(error)]
        raise ConfigError(f"flags: {'; '.join(problems)}.") from error


def define_flags(argv: Sequence[str]) -> Flags:
    """The flags of all verbs; `argv` determines which config fields are flags."""
    values: Flags = Flags()  # type: ignore[no-untyped-call]
    own: dict[str, Any] = {"flag_values": values}
    path = config_module.__file__
    config_flags.DEFINE_config_file("config", path, sys_argv=list(argv), **own)
    kinds = {bool: "bool", int: "integer", float: "float", tuple: "multi_string"}
    every = {k: f for verb in VERBS for k, f in flags_of(verb).items()}
    # `serve` takes several detectors, other verbs one.
    every |= next((flags_of(arg) for arg in argv[1:] if arg in VERBS), {})
    for flag in every.values():
        if not flag.name.startswith("config"):
            define = getattr(flags, f"DEFINE_{kinds.get(type(flag.default), 'string')}")
            define(flag.name, flag.default, flag.help, **own)
    return values


def _current_flag(argument: str) -> str:
    """The argument with a flag's current name; an old name is reported."""
    name, equals, value = argument.partition("=")
    old = name.lstrip("-")
    if old == name or old not in OLD_FLAGS:
        return argument
    new = OLD_FLAGS[old]
    _print(f"--{old} is now called --{new}; the old name still works.")
    return f"--{new}{equals}{value}"


def _config_first(argv: Sequence[str]) -> list[str]:
    """argv with `--config` before its overrides, in whatever order they came."""
    args = list(argv[1:])
    places = [i for i, arg in enumerate(args) if CONFIG_FLAG.match(arg)]
    if len(places) > 1:
        raise ConfigError("flags: --config is given twice: give one.")
    for i in places:
        end = i + 1 if "=" in args[i] else i + 2
        # A flag without its value stays last: absl reports it.
        if end <= len(args):
            args = args[i:end] + args[:i] + args[end:]
    return [argv[0], *args]


def _as_tuples(argv: Sequence[str]) -> list[str]:
    """argv with texts listed by commas, such as `a,b`, as a config file has them."""
    found, field = list[str](), ""
    for arg in argv:
        own = OVERRIDE.match(arg)
        field = own[1] if own else field
        name, equals, value = arg.partition("=") if own else ("", "", arg)
        if field in TEXTS and (equals or not own) and value[:1] not in {*"([\"'", ""}:
            value = repr(tuple(text.strip() for text in value.split(",")))
        found.append(name + equals + value)
        field = field if own and not equals else ""  # its value comes next
    return found


def _problems(argv: Sequence[str]) -> list[str]:
    """The fault of each flag, found by parsing it alone."""
    start = 1
    if len(argv) > 1 and CONFIG_FLAG.match(argv[1]):
        start = 2 if "=" in argv[1] else 3
    base, rest, problems = argv[:start], list(argv[start:]), []
    if fault := _fault(base):
        return [_one_line(fault)]
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
    """The exception of parsing, or None."""
    try:
        define_flags(argv)(argv)
    except Exception as error:  # noqa: BLE001 - see `parse`
        return error
    return None


def _one_line(error: BaseException) -> str:
    """First and last line of a message; ml_collections puts long quotes between."""
    # The text of a KeyError is its message in quotes.
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    first, cut, _ = lines[0].partition(" Other fields present")
    first = first.lstrip("'\"") if cut else first
    text = " ".join([first, *lines[1:][-1:]]).rstrip(".")
    for said, expected in VALUES.items():
        text = re.sub(rf"^(flag --\S+: ){said}$", rf"\1expected {expected}", text)
    return text


def _print(message: str) -> None:
    print(f"kdjax: {message}", file=sys.stderr)


def _lacks_memory(error: BaseException) -> bool:
    """Whether Python or a device ran out of memory; doesn't import JAX."""
    of_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return isinstance(error, MemoryError) or (
        of_jax and str(error).startswith("RESOURCE_EXHAUSTED")
    )


def _shown(error: BaseException) -> str:
    """A message as one printable line."""
    text = " ".join(str(error).split())
    if len(text) > LONGEST:
        # Such as the names of a thousand columns; the remedy stands at the end.
        text = f"{text[: LONGEST // 2]} […] {text[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
