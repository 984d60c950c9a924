"""Fit a detector for each of many machines.

The input is a folder with a file for each machine, a Parquet folder partitioned by
machine, or one file with a column of entities (data.entity_column). Writes a catalogue,
a page and the detectors; score, stream and serve take the folder as --detector. Rerun
the same command to resume, and to fit new or changed machines.
"""

from pathlib import Path

from rich.console import Console

from kdjax.commands import common
from kdjax.commands.common import Flag
from kdjax.config import check_budget, override, resolve
from kdjax.errors import ConfigError, DataError
from kdjax.io.stores import check_store, is_remote

USAGE = "FOLDER|FILE --output=FLEET [--config=FILE] [--config.FIELD=VALUE …]"
EXAMPLE = "kdjax fleet plants --output=fleets/plants"
FLAGS = {
    "Settings": common.CONFIG,
    "Input and output": (
        Flag("output", "PATH", None, "Folder of the fleet to write."),
    ),
    "Execution": common.EXECUTION,
}
ODD = 10  # machines in the printed table


def main(arguments: list[str], flags: common.Flags) -> None:
    """Runs the verb."""
    path = common.one_argument("fleet", arguments, "one folder or file of machines")
    output = common.required("fleet", flags, "output")
    config = common.read_config(flags)
    if config.data.name:
        raise ConfigError(
            f"data.name={config.data.name!r} is a benchmark: remove it; kdjax fleet "
            "reads the folder or file of its argument."
        )
    if (
        "entity_mode" not in common.config_changes(flags)
        and not common.config_file(flags)[0]
    ):
        # By default each machine has a detector of its own.
        config = override(config, {"entity_mode": "per_entity"})
    # Settings name local files only; the fleet reads URLs itself.
    name = Path(path).name if is_remote(path) else path
    settings = resolve(override(config, {"data.path": name}))
    check_budget(common.config_changes(flags), settings)
    for place in filter(is_remote, (path, output)):
        check_store(place)
    common.start_jax()
    from kdjax.detection.fleet import FAILED
    from kdjax.evaluation.fleet import by_oddness, fleet_table
    from kdjax.evaluation.tables import Table, printed
    from kdjax.experiment.fleet import fit_fleet

    console = Console()
    catalogue = fit_fleet(
        path, output, settings, console=console, **common.execution(flags)
    )
    shown = fleet_table(by_oddness(catalogue).head(ODD))
    shown = shown.drop(columns="reason", errors="ignore").astype(str)
    console.print(
        printed(Table("The machines that differ most from the others", shown))
    )
    written = "index.html, catalogue.parquet, detectors/"
    console.print(f"Written: {output}/{written}", soft_wrap=True)
    failed = catalogue[catalogue["state"] == FAILED]
    if len(failed):
        first = failed.iloc[0]
        raise DataError(
            f"{len(failed):,} of {len(catalogue):,} machines failed; the first is "
            f"{first['entity']}: {first['reason']}"
        )
