"""Train and compare many variants of a config, or search its settings.

The config file defines sweep(add), which lists the variants, or search(trial), for
which Optuna chooses values. Writes tables, a report and detectors into the work
directory. Rerun the same command to resume; a search adds --trials each time.
"""

from pathlib import Path
from typing import Any

from rich.console import Console

from kdjax.commands import common
from kdjax.commands.common import Flag
from kdjax.errors import ConfigError, KdjaxError

USAGE = "--config=FILE [--config.FIELD=VALUE …] [--workdir=DIR]"
EXAMPLE = "kdjax sweep --config=configs/sweep_quick.py --workdir=runs/sweep_quick"
FLAGS = {
    "Settings": common.CONFIG,
    "Input and output": common.WORKDIR,
    "Execution": (
        Flag("way", "WAY", "auto", "together, alone, or auto for the faster of them."),
        Flag("trials", "N", 10, "With search(trial): trials to add."),
    ),
    "Workers": common.EXECUTION,
    "Several processes": common.PROCESSES,
}
# Names that a config file defines.
Names = dict[str, Any]


def main(arguments: list[str], flags: common.Flags) -> None:
    """Runs the verb."""
    common.no_arguments("sweep", arguments)
    path, argument = common.config_file(flags)
    if not path:
        raise ConfigError(
            "sweep needs --config: a config file with sweep(add) or search(trial)."
        )
    name, config = Path(path).stem, common.read_config(flags)
    from kdjax.experiment.sweeps.design import read_file

    defined = read_file(path, argument)
    kinds = [kind for kind in ("sweep", "search") if kind in defined]
    if not kinds:
        raise ConfigError(
            f"{name} has no sweep(add) or search(trial): define one of them, see "
            "configs/sweep_quick.py."
        )
    kind, *more = kinds
    if more:
        raise ConfigError(f"{name} has sweep and search: define one of them.")
    {"sweep": _sweep, "search": _search}[kind](name, config, defined, flags)


def _sweep(name: str, config: Any, defined: Names, flags: common.Flags) -> None:
    from kdjax.experiment.sweeps.design import make_design

    try:
        design = make_design(name, config, defined["sweep"])
    except KdjaxError:
        raise
    except Exception as error:  # a config file is a program: any error is possible
        raise ConfigError(
            f"{name}: sweep(add) raises {error!r}: correct it; add takes a mapping of "
            "dotted fields, see configs/sweep_quick.py."
        ) from error
    workdir = common.work_directory(flags, design.base)
    execution = common.execution(flags)
    console = Console(quiet=not common.start_processes(flags, execution))
    from kdjax.evaluation.tables import printed
    from kdjax.experiment.sweeps.report import summary_table
    from kdjax.experiment.sweeps.sweep import run_sweep, shown

    found = run_sweep(design, workdir, way=flags.way, console=console, **execution)
    fields, measures = found.fields, shown(found)
    table = summary_table(found.members, name=name, fields=fields, measures=measures)
    console.print(printed(table))
    written = "members.csv, summary.csv, report.html, members/"
    console.print(f"Written: {workdir}/{written}", soft_wrap=True)


def _search(name: str, config: Any, defined: Names, flags: common.Flags) -> None:
    from kdjax.experiment.sweeps.design import load_optuna, make_search

    load_optuna()
    path, argument = common.config_file(flags)
    search = make_search(name, config, defined)
    search = search._replace(path=str(Path(path).absolute()), argument=tuple(argument))
    workdir = common.work_directory(flags, search.base)
    execution = common.execution(flags)
    common.start_jax(execution)
    from kdjax.experiment.sweeps.search import best_lines, run_search

    options = common.chosen(flags, "trials", "way") | execution
    for line in best_lines(run_search(search, workdir, console=Console(), **options)):
        print(line)
    print(f"Written: {workdir}/trials.csv, members.csv, best.json, report.html")
