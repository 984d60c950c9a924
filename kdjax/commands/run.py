"""Train, distil, calibrate and evaluate a teacher and a student.

Writes results.json, report.html, report.md and the detectors into the work directory.
Rerun the same command to resume an interrupted run.
"""

from rich.console import Console

from kdjax.commands import common

USAGE = "[--config=FILE] [--config.FIELD=VALUE …] [--workdir=DIR]"
EXAMPLE = "kdjax run --config.data.path=plant.csv --config.baselines=moving_average,classifier"
FLAGS = {
    "Settings": common.CONFIG,
    "Input and output": common.WORKDIR,
    "Several processes": common.PROCESSES,
}


def main(arguments: list[str], flags: common.Flags) -> None:
    """Runs the verb."""
    common.no_arguments("run", arguments)
    settings = common.read_settings(flags)
    workdir = common.work_directory(flags, settings)
    if not flags.coordinator:
        common.check_inputs(settings, workdir)
    console = Console(quiet=not common.start_processes(flags))
    from kdjax.evaluation.summary import expected_words
    from kdjax.evaluation.tables import results_tables, shown_model
    from kdjax.experiment.pipeline import run

    results = run(settings, workdir, console=console)
    console.print(results_tables(results))
    if recommended := results.get("recommendation"):
        console.print(recommended["text"], highlight=False)
        console.print(expected_words(results, shown_model(results)), highlight=False)
    for note in results["notes"]:
        note = common.in_config_flags("run", note)
        console.print(f"Note: {note}", highlight=False)
    used = f"detectors/{shown_model(results)}"
    if settings["entity_mode"] == "shared":
        text = f"Next: kdjax score FILE --detector={workdir}/{used} --output=scores.csv"
        console.print(text, soft_wrap=True, highlight=False)
    written = f"results.json, report.html, report.md, {used}"
    console.print(f"Written: {workdir}/{written}", soft_wrap=True)
