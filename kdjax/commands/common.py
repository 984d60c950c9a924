"""Shared by the verbs: flags, checks of arguments, the config, the start of JAX."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl.flags import FlagValues
from ml_collections import ConfigDict, config_flags

from kdjax.config import FIELDS, Settings, check_budget, override, resolve
from kdjax.errors import ConfigError, KdjaxError, check_choice
from kdjax.io.files import check_folder

Flags = FlagValues

# Files of up to this many bytes are checked before JAX starts, which takes seconds.
_SMALL = 4_000_000


class Flag(NamedTuple):
    """A flag of a verb; a name has the same default in all verbs that use it."""

    name: str
    value: str  # shown after `=` in the help; empty for a switch
    # Its type is the flag's; None stands for a text, () for texts of a repeated flag.
    default: str | bool | int | float | tuple[()] | None
    help: str


# Flags named `config…` are defined by ml_collections.
CONFIG = (
    Flag("config", "FILE[:ARG]", None, "Config file; kdjax/config.py by default."),
    Flag("config.FIELD", "VALUE", None, "Changes a field; see kdjax run --help."),
)
WORKDIR = (
    Flag("workdir", "DIR", None, "Folder for all output; runs/NAME by default."),
    Flag("init_from", "DIR", None, "Saved detector to start training from."),
)
PROCESSES = (
    Flag("coordinator", "HOST:PORT", "", "Address of process 0; auto on a cluster."),
    Flag("num_processes", "N", 0, "Number of processes that share the work."),
    Flag("process_id", "I", -1, "Number of this process, counted from 0."),
)
EXECUTION = (
    Flag("executor", "WHERE", "local", "local or ray."),
    Flag(
        "ray_address", "HOST:PORT", "", "Ray cluster, or auto; empty starts Ray here."
    ),
    Flag("unit_cpus", "N", 1, "With ray: CPU cores for each task."),
    Flag("unit_gpus", "N", 0.0, "With ray: GPUs for each task."),
)
EXAMPLE_DETECTOR = (
    "--detector=runs/plant/detectors/classifier"  # in examples of the help
)
DETECTOR = Flag(
    "detector", "DIR", None, "Saved detector, such as runs/plant/detectors/classifier."
)
ENTITY = Flag(
    "entity", "NAME", None, "Entity whose scaler and threshold to use, or pooled."
)
# How rows are read; the defaults are those of training.
COLUMNS = (
    Flag("time_column", "NAME", "", "Time column; that of training by default."),
    Flag("entity_column", "NAME", "", "Column that names the entity of each row."),
    Flag("label_column", "NAME", "", "Label column; it is not a channel."),
    Flag("ignore", "NAME,…", "", "Further columns, or tags, that are not channels."),
    Flag("missing_values", "TEXT,…", "", "Further markers of missing cells."),
    Flag("layout", "LAYOUT", "", "wide, or long with one row for each reading."),
    Flag("tag_column", "NAME", "", "With long layout: column of channel names."),
    Flag("value_column", "NAME", "", "With long layout: column of values."),
    Flag("step", "DURATION", "", "Resamples rows to even steps, such as 1min or 10s."),
)
EXCLUDE = Flag(
    "exclude", "FILE", "", "CSV of spans to leave out: start, end, optional entity."
)
# How `score` and `calibrate` read a file; the defaults are those of training.
READING = (
    *COLUMNS,
    Flag("missing", "RULE", "", "error, ffill or mask; that of training by default."),
    Flag("order", "RULE", "", "strict or sort; that of training by default."),
    Flag("duplicates", "RULE", "", "error or last; that of training by default."),
    EXCLUDE,
)


@contextlib.contextmanager
def reading(flags: Flags, group: Sequence[Flag]) -> Iterator[dict[str, Any]]:
    """Values of `COLUMNS` or `READING`, lists split at commas; errors name flags."""
    options = chosen(flags, *(flag.name for flag in group))
    for name in ("ignore", "missing_values"):
        texts = options[name].split(",")
        options[name] = [text.strip() for text in texts if text.strip()]
    try:
        yield options
    except KdjaxError as error:
        error.args = (in_flags(str(error)),)
        raise


def in_flags(text: str) -> str:
    """A message with `data.…` of `READING`, and `backend`, replaced by flags.

    >>> in_flags("sort the file, or set data.order=sort")
    'sort the file, or set --order=sort'
    """
    names = "|".join(flag.name for flag in READING)
    text = re.sub(r"(?<![-\w])backend=", "--backend=", text)
    return re.sub(rf"\bdata\.({names})\b", r"--\1", text)


def in_config_flags(verb: str, text: str) -> str:
    """A message with the config fields that a verb's flags set as these flags.

    >>> in_config_flags("run", "set data.window=5, or seed=1")
    'set --config.data.window=5, or --config.seed=1'
    """
    begin = {"calibrate": "threshold."}.get(verb, "")
    if verb not in ("run", "fleet", "sweep", "info", "calibrate"):
        return text
    names = [re.escape(name) for name in FIELDS if name.startswith(begin)]
    ends = [
        rf"{name}(?![\w/:]|\.\w)" if "." in name else f"{name}(?==)" for name in names
    ]
    # Not in flags, paths and quotes.
    return re.sub(rf"(?<![-\w./'\"])({'|'.join(ends)})", r"--config.\1", text)


def say(message: str) -> None:
    """Prints a message, which names flags instead of fields, without buffering."""
    print(in_flags(message), flush=True)


def no_arguments(verb: str, arguments: Sequence[str]) -> None:
    """Raises ConfigError for any argument of a verb that takes flags only."""
    if arguments:
        raise ConfigError(f"{verb} takes flags only: remove {' '.join(arguments)}.")


def one_argument(verb: str, arguments: Sequence[str], what: str) -> str:
    """The only argument of a verb; `what` describes it in the error."""
    if len(arguments) != 1 or not arguments[0]:
        got = " ".join(arguments) or "nothing"
        raise ConfigError(f"{verb} needs {what}, got {got}.")
    return arguments[0]


def required(verb: str, flags: Flags, name: str) -> str:
    """The value of a flag that the verb requires."""
    if not flags[name].value:
        raise ConfigError(f"{verb} needs --{name}; see kdjax {verb} --help.")
    return str(flags[name].value)


def chosen(flags: Flags, *names: str) -> dict[str, Any]:
    """The values of flags by their names."""
    return {name: flags[name].value for name in names}


def config_file(flags: Flags) -> tuple[str, list[str]]:
    """Path of the config file, empty if none was given, and its argument if any."""
    if flags["config"].using_default_value:
        return "", []
    path, *argument = config_flags.get_config_filename(flags["config"]).split(":", 1)
    return path, argument


def config_changes(flags: Flags) -> dict[str, Any]:
    """The dotted config fields that the command line sets."""
    return dict(config_flags.get_override_values(flags["config"]))


def read_config(flags: Flags) -> ConfigDict:
    """The config with the command line's changes, before checks."""
    config = flags["config"].value
    if not isinstance(config, ConfigDict):
        # config_flags returns another type for a file that it can't read.
        filename = config_flags.get_config_filename(flags["config"])
        raise ConfigError(f"--config={filename} can't be read: check the path.")
    if flags["init_from"].value:
        config = override(config, {"init_from": flags["init_from"].value})
    return config


def read_settings(flags: Flags) -> Settings:
    """The config after all checks."""
    settings = resolve(read_config(flags))
    check_budget(config_changes(flags), settings)
    return settings


def work_directory(flags: Flags, settings: Settings) -> Path:
    """--workdir, or runs/NAME."""
    if flags["workdir"].value:
        return Path(flags["workdir"].value)
    path, argument = config_file(flags)
    if not path:
        data = settings["data"]
        return Path("runs", data["name"] or Path(data["path"]).name.split(".")[0])
    # A config's arguments, such as smap and msl, have a work directory each.
    parts = [Path(path).stem, *(re.sub(r"\W+", "-", part) for part in argument)]
    return Path("runs", "_".join(parts))


def check_rows(path: str, folder: str, options: Mapping[str, Any]) -> None:
    """Raises the errors of `read_like` and of the channels early, for small files."""
    from kdjax.data.raw import about
    from kdjax.data.readers import match_channels
    from kdjax.detection.reading import read_description, read_like

    detector = read_description(Path(folder))
    if detector is None or _is_large(path):
        return
    for series in read_like(detector, path, **options):
        with about(path):
            match_channels(series, detector.channels)


def check_inputs(settings: Settings, workdir: Path) -> None:
    """Refuses a work directory of other settings and, if they are small, bad files."""
    from kdjax.data.datasets import load_dataset
    from kdjax.experiment.workdir import check_settings, settings_of_begun

    check_folder(workdir)
    if os.access(workdir, os.R_OK | os.W_OK | os.X_OK) and workdir.is_dir():
        check_settings(workdir, settings_of_begun(workdir, settings))
    data = settings["data"]
    if not any(map(_is_large, (data["path"], data["test_path"]))) and data["path"]:
        load_dataset(data)


def _is_large(path: str) -> bool:
    return os.path.isfile(path) and os.path.getsize(path) > _SMALL


def execution(flags: Flags) -> dict[str, Any]:
    """Arguments of `run_units` by `EXECUTION`."""
    from kdjax.io.executors import EXECUTORS, RAY, Resources

    check_choice("--executor", flags.executor, EXECUTORS)
    if flags.executor != RAY:
        for name in ("ray_address", "unit_cpus", "unit_gpus"):
            if flags[name].present:
                raise ConfigError(f"--{name} needs --executor=ray.")
    if flags.unit_cpus < 1 or flags.unit_gpus < 0:
        raise ConfigError(
            f"--unit_cpus={flags.unit_cpus} must be 1 or more and "
            f"--unit_gpus={flags.unit_gpus:g} 0 or more."
        )
    return {
        "executor": flags.executor,
        "address": flags.ray_address,
        "resources": Resources(flags.unit_cpus, flags.unit_gpus),
    }


def start_jax(execution: Mapping[str, Any] | None = None) -> None:
    """Starts JAX with the program's choice of devices and compilation cache.

    With Ray, this process has as many CPU devices as a worker has cores.
    """
    from kdjax.training.sharding import start_program

    if execution and execution["executor"] == "ray":
        start_program(cpus=execution["resources"].cpus)
    else:
        start_program()


def start_processes(flags: Flags, execution: Mapping[str, Any] | None = None) -> bool:
    """Starts JAX and joins other processes; returns whether this process prints."""
    start_jax(execution)
    from kdjax.training import hosts

    number = None if flags.process_id < 0 else flags.process_id
    hosts.start(flags.coordinator, flags.num_processes or None, number)
    return hosts.is_first()
